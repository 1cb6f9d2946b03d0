"""Checkpoints, base models and data sets of somebody who wants their code to run; it would leave a mark.

The attacker makes the checkpoint's hashes anew, so that nothing but the content can be held against it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from smope_hf.storage.checksums import update_checksums

PREPROCESSOR, PROCESSOR, CONFIG = "preprocessor_config.json", "processor_config.json", "config.json"
AUTO = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor", "AutoProcessor",
        "AutoTokenizer", "AutoFeatureExtractor")  # fmt: skip


def evil_code(mark: Path) -> str:
    """A module that leaves a mark when it is imported, and has the class that is asked for."""
    return f"""
from transformers import PreTrainedConfig, ViTImageProcessorPil
open({str(mark)!r}, "a").write(__name__)
class C(PreTrainedConfig):
    model_type = "evil"
class P(ViTImageProcessorPil):
    pass
"""


def edit(folder: Path, file: str, **fields):
    """Set fields of a JSON file, None removes one, and take its hash anew where there are hashes."""
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {name: value for name, value in {**content, **fields}.items() if value is not None}
    path.write_text(json.dumps(content))
    if (folder / "checksums.json").exists():
        update_checksums(folder, [file])


def all_auto(code: str) -> dict[str, str]:
    """An `auto_map` that names code for everything."""
    return {name: f"{code}.{'P' if 'Processor' in name else 'C'}" for name in AUTO}


def processor_without_type(folder: Path, code: str):
    edit(folder, PREPROCESSOR, image_processor_type=None, auto_map=all_auto(code))


def processor_with_type(folder: Path, code: str):
    edit(folder, PREPROCESSOR, auto_map=all_auto(code))


def nested_processor(folder: Path, code: str):
    content = json.loads((folder / PREPROCESSOR).read_text())
    inner = {**content, "image_processor_type": "EvilImageProcessor", "auto_map": all_auto(code)}
    edit(folder, PROCESSOR, image_processor=inner, auto_map=all_auto(code))


def config_decides(folder: Path, code: str):
    """The image processor names no type, so the model's config is asked."""
    edit(folder, PREPROCESSOR, image_processor_type=None)
    edit(folder, CONFIG, auto_map=all_auto(code), image_processor_type="EvilImageProcessor")


def another_auto_class(folder: Path, code: str):
    """By its name transformers takes any class that it has, and that one reads another file."""
    edit(folder, PREPROCESSOR, image_processor_type="AutoProcessor")
    edit(folder, PROCESSOR, processor_class="EvilProcessor", auto_map=all_auto(code))


def configs_alone(folder: Path, code: str):
    """Code is named where classes of our own are there: it is passed over, and all works."""
    content = json.loads((folder / CONFIG).read_text())
    backbone = content.get("backbone_config")
    inner = {} if backbone is None else {"backbone_config": {**backbone, "auto_map": all_auto(code)}}
    edit(folder, CONFIG, auto_map=all_auto(code), custom_pipelines={"image-classification": {"impl": "x.Y"}}, **inner)


PROCESSORS: tuple[Callable[[Path, str], None], ...] = (
    processor_without_type, processor_with_type, nested_processor, config_decides, another_auto_class
)  # fmt: skip
"""Ways to ask for code where an image processor is loaded; a checkpoint like this is refused there."""


def hostile_copy(folder: Path, place: Path, attack, code: str, mark: Path) -> Path:
    """A copy of a checkpoint or base model with an attack in it, and the code beside it."""
    shutil.copytree(folder, place)
    (place / "evil.py").write_text(evil_code(mark))
    attack(place, code)
    return place


def upload(hub, name: str, folder: Path, kind: str = "models") -> str:
    """Put a folder's files into a new repository of mallory's on the loopback Hub; gives the commit."""
    storage = hub.api.storage
    with storage.lock:
        repository = storage.repository(kind, *name.split("/"))
        repository.create(private=False)
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        tree = {path: repository.store_file(file.read_bytes()) for path, file in files.items()}
        return repository.record("main", "mallory", "upload", "", tree)


def write_images(folder: Path, classes: str, count: int):
    """Images of noise, in a folder for each class, whose names are letters."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.effect_noise((20, 20), 60 + index).convert("RGB").save(folder / name / f"{index}.png")
