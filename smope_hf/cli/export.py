"""`smope export`: a checkpoint as one file that runs without smope_hf."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Backbone, Revision


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run, checkpoint folder or Hub id.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the model, its labels and its processor.")],
    file_format: Annotated[str, typer.Option("--format", metavar="NAME", help="onnx or torch.")] = "onnx",
    revision: Revision = None,
    backbone: Backbone = None,
):
    """Write a model as an ONNX or torch.export program.

    \b
    Examples:
      smope export runs/cifar100 --output deployed
      smope export me/my-model --revision task-03 --format torch \\
          --output deployed

    It takes pixel values of any number of images and gives logits. It is run once: they must be the model's own to
    1e-4 of the largest. ONNX needs the extra: pip install 'smope_hf[export]'.
    """
    from ..models.export import FORMATS, check_packages
    from ..storage.output_check import check_replaceable, try_folder

    if file_format not in FORMATS:
        raise ValueError(f"--format {file_format} is not allowed. Allowed: {' or '.join(FORMATS)}.")
    check_packages(file_format)
    try_folder(output, "--output")
    for name in (FORMATS[file_format], "labels.json", "preprocessor_config.json"):
        check_replaceable(output / name, name)

    from ..base.printing import say
    from ..sharing.hub import find_checkpoint
    from .common import be_quiet

    be_quiet()
    path, difference = write_folder(find_checkpoint(model, revision), output, file_format, backbone)
    megabytes = path.stat().st_size / 1e6
    say(f"{path}: {megabytes:.1f} MB, logits the model's own to {difference:.0e} of the largest")


def write_folder(checkpoint, output: Path, file_format: str, backbone: str | None = None) -> tuple[Path, float]:
    """The model's file, `labels.json` (class names in the order of the logits) and `preprocessor_config.json`.

    Returns:
        The model's file, and what `export_model` returns.
    """
    from ..data.augmentation import processed_size
    from ..models.export import FORMATS, export_model
    from ..models.image_processors import load_image_processor
    from ..storage.files import write_json

    processor = load_image_processor(checkpoint.folder)
    model = checkpoint.load_model(backbone=backbone)
    output.mkdir(parents=True, exist_ok=True)
    path = output / FORMATS[file_format]
    difference = export_model(model, processed_size(processor), path, file_format)
    write_json(output / "labels.json", [model.config.id2label[index] for index in range(model.config.num_labels)])
    processor.save_pretrained(output)
    return path, difference
