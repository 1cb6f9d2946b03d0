"""Image processors are read from files of others: nothing but checked fields decides, and no code of theirs runs."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import is_torchvision_available

from smope_hf.models.backbones import EMBEDDED, local_name
from smope_hf.models.image_processors import FIELDS, load_image_processor

PREPROCESSOR, PROCESSOR, CONFIG = "preprocessor_config.json", "processor_config.json", "config.json"
GOOD = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
MAX_SECONDS, MAX_BYTES = 2, 200e6


def write(folder: Path, **files) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


def peak_bytes(act) -> int:
    """What memory an act takes at most, beside what the process has already."""

    def status(field: str) -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = status("VmRSS")
    act()
    return status("VmHWM") - before


def refused(folder: Path, match: str, kind=ValueError):
    """The error, in time and without much memory; nothing is asked and nothing runs."""

    def load():
        with pytest.raises(kind, match=match):
            load_image_processor(folder)

    began = time.process_time()
    assert peak_bytes(load) < MAX_BYTES and time.process_time() - began < MAX_SECONDS
    assert not (folder / "mark").exists()


# ---------------------------------------------------------------------- what works as before


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Beit", "Bit", "CLIP", "Siglip", "ConvNext", "EfficientNet"])
def test_it_is_what_transformers_loads(kind, tmp_path):
    getattr(transformers, f"{kind}ImageProcessorPil")().save_pretrained(tmp_path)
    mine, theirs = load_image_processor(tmp_path), AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(mine) is type(theirs) and mine.to_dict() == theirs.to_dict()
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    assert torch.equal(*(one(image, return_tensors="pt").pixel_values for one in (mine, theirs)))


@pytest.mark.parametrize(
    "content",
    [{"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224},
     {**GOOD, "image_processor_type": "ViTImageProcessorFast", "device": None, "disable_grouping": None},
     {**GOOD, "processor_class": "SiglipProcessor", "_valid_processor_keys": ["images", "size"]},
     {**GOOD, "size": {"height": 512, "width": 512}}, {**GOOD, "size": 1024}, {**GOOD, "size": [224, 256]},
     {**GOOD, "size": {"shortest_edge": 518}, "do_center_crop": True, "crop_size": {"height": 518, "width": 518}},
     {**GOOD, "image_mean": 0.5, "image_std": 1, "rescale_factor": 1.0}, {**GOOD, "size": None, "resample": None}],
)  # fmt: skip
def test_older_and_larger_ones_load_as_in_transformers(content, tmp_path):
    write(tmp_path, preprocessor_config=content)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    mine = load_image_processor(tmp_path)
    assert type(mine) is type(theirs) and mine.to_dict() == theirs.to_dict()


def test_where_no_type_is_named_the_model_decides(tmp_path):
    write(tmp_path, preprocessor_config={"size": 32}, config={"model_type": "ijepa"})
    assert type(load_image_processor(tmp_path)).__name__ == "ViTImageProcessorPil"
    write(tmp_path, config={"model_type": "ijepa", "image_processor_type": "CLIPImageProcessor"})
    assert type(load_image_processor(tmp_path)).__name__ == "CLIPImageProcessorPil"


def test_one_inside_a_processor_comes_first(tmp_path):
    inner = {**GOOD, "size": {"height": 24, "width": 24}}
    write(tmp_path, preprocessor_config=GOOD, processor_config={"image_processor": inner, "processor_class": "X"})
    assert load_image_processor(tmp_path).size == AutoImageProcessor.from_pretrained(tmp_path, backend="pil").size
    assert load_image_processor(tmp_path).size["height"] == 24
    write(tmp_path, processor_config={"processor_class": "X"})
    assert load_image_processor(tmp_path).size["height"] == 16


def test_the_embedded_one_has_its_name():
    expected = AutoImageProcessor.from_pretrained(local_name(EMBEDDED), backend="pil")
    assert load_image_processor(EMBEDDED).to_dict() == expected.to_dict()


# ---------------------------------------------------------------------- what is refused

HUGE = 20_000
WRONG = {
    "size": [HUGE, 0, -1, 1.5, True, "224", [16], [16, 16, 16], [HUGE, 16], {"height": 16, "width": HUGE}, {"area": 9},
             {"shortest_edge": 2048}, {"longest_edge": 10**9}, {"height": {"height": 16}, "width": 16},
             {"min_pixels": 1, "max_pixels": 2**40}, [[[[]]]]],
    "crop_size": [HUGE, {"height": 2049, "width": 1}], "pad_size": [{"height": HUGE, "width": HUGE}],
    "image_mean": [[0.5, 0.5], [0.5] * 4, [[0.5] * 3], "0.5", [None] * 3, 1e300, {}, [True] * 3],
    "image_std": [0, [0.5, 0.5, 0], -1, [1e-300] * 3, 2**62], "rescale_factor": [0, -1, 1e300, "1/255", True, [1]],
    "resample": [-1, 6, 2.0, "bicubic", True, 10**12], "do_resize": [1, "yes", [], {}], "do_normalize": ["false"],
    "crop_pct": [0, 1.5], "size_divisor": [0, 10**9], "image_seq_length": [2**40], "data_format": ["x", 1],
    "return_tensors": ["tf", []], "device": ["cuda:0; rm", 0], "processor_class": ["a/b", 1, "x" * 1000],
    "_valid_processor_keys": ["size", [1], ["a"] * 1000], "preprocess": ["evil"], "__class__": ["evil"],
    "to_dict": [None], "tesseract_config": ["--x"], "class_info_file": ["/etc/passwd"], "crop-size": [1],
    "image_processor_type": [1, "a.b", "", "../evil", ["ViTImageProcessor"]],
}  # fmt: skip
CASES = [(field, value) for field, values in WRONG.items() for value in values]


def test_every_wrong_field_is_refused_by_file_and_name(tmp_path):
    """In one test: each is the same file with one value changed."""
    for field, value in CASES:
        write(tmp_path, preprocessor_config={**GOOD, field: value})
        refused(tmp_path, rf"{PREPROCESSOR}: '?{field}")
        write(tmp_path, preprocessor_config=GOOD, processor_config={"image_processor": {**GOOD, field: value}})
        refused(tmp_path, rf"{PROCESSOR}: image_processor: '?{field}")
        (tmp_path / PROCESSOR).unlink()
    assert len(CASES) > 60 and FIELDS.keys() >= GOOD.keys()


@pytest.mark.parametrize(
    "text",
    ["[]", "[" * 100_000, '{"size": ' + "[" * 500, "{", '{"size": 16, "size": 20000}', '{"rescale_factor": NaN}',
     '{"size": 1' + "0" * 5000 + "}", '{"a": "' + "x" * 2**21 + '"}', '{"image_mean": [1e999, 1, 1]}', "\ufeff{}"],
    ids=range(10),
)  # fmt: skip
def test_broken_json_is_refused_by_the_name_of_the_file(text, tmp_path):
    refused(write(tmp_path, preprocessor_config=text), PREPROCESSOR)
    refused(write(tmp_path, preprocessor_config=GOOD, processor_config=text), PROCESSOR)
    (tmp_path / PROCESSOR).unlink()
    refused(write(tmp_path, preprocessor_config={"size": 16}, config=text), CONFIG)


@pytest.mark.parametrize(
    "kind",
    ["AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoModelForImageClassification",
     "pipeline", "BertModel", "TFViTModel", "VideoMAEVideoProcessor", "Evil"],
)  # fmt: skip
def test_a_class_of_transformers_that_is_no_image_processor_is_not_called(kind, tmp_path):
    """By its name transformers takes any class that it has; an Auto class would ask for the repository's code."""
    code = f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nclass C: pass\n"
    (tmp_path / "evil.py").write_text(code)
    evil = {"auto_map": {"AutoConfig": "evil.C", "AutoProcessor": "evil.C"}, "model_type": "evil"}
    write(tmp_path, preprocessor_config={**GOOD, "image_processor_type": kind}, config=evil, processor_config=evil)
    refused(tmp_path, f"{PREPROCESSOR}: image_processor_type = '{kind}'.*trust_remote_code")


@pytest.mark.parametrize("kind", ["OneFormer", "LayoutLMv3", "Flava", "Pix2Struct", "Idefics", "Qwen2VL"])
def test_types_that_fetch_files_or_start_programs_are_refused(kind, tmp_path):
    write(tmp_path, preprocessor_config={"image_processor_type": f"{kind}ImageProcessor"})
    refused(tmp_path, f"{PREPROCESSOR}: {kind}.*not for image classification")


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("place", [PREPROCESSOR, PROCESSOR, CONFIG])
def test_code_of_its_own_is_refused_and_never_run(place, typed, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nclass C: pass\n")
    evil = {"auto_map": {"AutoImageProcessor": "evil.C", "AutoConfig": "evil.C"}}
    plain = GOOD if typed else {"size": 16}
    write(tmp_path, preprocessor_config=plain, config={"model_type": "vit"})
    if place == PREPROCESSOR:
        write(tmp_path, preprocessor_config={**plain, **evil})
    elif place == PROCESSOR:
        write(tmp_path, processor_config={"image_processor": {**plain, **evil}})
    else:
        write(tmp_path, config={"model_type": "vit", **evil})
    if place == CONFIG and typed:  # nothing of it is asked for
        load_image_processor(tmp_path)
        assert not (tmp_path / "mark").exists()
    else:
        refused(tmp_path, f"{place}.*auto_map.*trust_remote_code")


def test_what_is_no_file_of_the_folder_is_not_read(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    refused(folder, f"holds no image processor.*{PREPROCESSOR}", OSError)
    write(tmp_path, elsewhere=GOOD)
    (folder / PREPROCESSOR).symlink_to(tmp_path / "elsewhere.json")
    refused(folder, f"{PREPROCESSOR} leads out of its folder")
    (folder / PREPROCESSOR).unlink()
    os.mkfifo(folder / PREPROCESSOR)  # nobody writes to it: reading would wait for ever
    refused(folder, "holds no image processor", OSError)


@pytest.mark.skipif(is_torchvision_available(), reason="it loads where torchvision is installed")
def test_a_type_without_its_package_says_what_to_install(tmp_path):
    write(tmp_path, preprocessor_config={**GOOD, "image_processor_type": "DINOv3ViTImageProcessorFast"})
    refused(tmp_path, f"{PREPROCESSOR}: DINOv3ViTImageProcessor.*pip install torchvision", ImportError)
