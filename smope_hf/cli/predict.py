"""`smope predict`: the classes of image files."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..base.home import expanded
from ..base.printing import print_json, say
from .options import AsJson, Backbone, Revision


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run, checkpoint folder or Hub id.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES", help="Files, folders, or patterns in quotes.")],
    revision: Revision = None,
    top: Annotated[int, typer.Option(metavar="INT", min=1, help="Best classes to show for each image.")] = 5,
    batch_size: Annotated[int, typer.Option(metavar="INT", min=1, help="Images per step.")] = 16,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be read.")] = False,
    backbone: Backbone = None,
    as_json: AsJson = False,
):
    """Classify images. Folders are searched with all folders in them.

    \b
    Examples:
      smope predict runs/cifar100 photo.jpg
      smope predict me/my-model photos/ "more/*.png" --top 1 --json
    """
    from ..sharing.hub import find_checkpoint
    from .common import be_quiet

    be_quiet()
    paths, bad = check_images(find_images(images))
    if bad and not skip_bad:
        path, reason = bad[0]
        more = "" if len(bad) == 1 else f" and {len(bad) - 1} more images"
        raise ValueError(f"{path}{more} cannot be read: {reason}. --skip-bad goes on without images like that")
    for path, reason in bad:
        say(f"skipped {path}: {reason}", err=True)
    if bad:
        say(f"skipped {len(bad)} of {len(bad) + len(paths)} images", err=True)
    if not paths:
        raise ValueError(f"none of the {len(bad)} images can be read")
    predictions = list(classify(find_checkpoint(model, revision), paths, top, batch_size, backbone))
    if as_json:
        print_json([{"image": str(path), "predictions": best} for path, best in zip(paths, predictions)])
    else:
        _print_table(paths, predictions)


def find_images(names: list[str]) -> list[Path]:
    """The files that names, folders and patterns stand for, each once, in order.

    Of a folder these are its images as training sees them, and those of a kind that training does not read.

    Raises:
        ValueError: when a name stands for nothing.
    """
    from ..data.image_files import is_image, is_unread_image, list_folder

    found: list[Path] = []
    for name in names:
        path = expanded(Path(name))
        if path.is_dir():
            listed = sorted(path / file for file in list_folder(path)[1] if is_image(file) or is_unread_image(file))
            files = [file for file in listed if file.is_file()]
            nothing = f"the folder {name} holds no image (.jpg, .png or the like)"
        elif path.exists() or not glob.has_magic(name):
            files, nothing = [path], ""
        else:
            files = [Path(file) for file in sorted(glob.glob(str(path), recursive=True)) if Path(file).is_file()]
            nothing = f"no file matches {name!r}"
        if not files:
            raise ValueError(nothing)
        found.extend(files)
    return list(dict.fromkeys(found))


def check_images(paths: list[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Look at every image once: those that can be used, and the others with the reason."""
    from ..data.image_files import is_unread_image
    from ..data.image_reading import UnreadableImage, check_image, reason_of
    from ..storage.foreign_files import read_bytes

    good, bad = [], []
    for path in paths:
        try:
            check_image(read_bytes(path))
        except (UnreadableImage, OSError) as error:
            advice = "; convert it to .jpg or .png" if is_unread_image(str(path)) else ""
            bad.append((path, reason_of(error) + advice))
        else:
            good.append(path)
    return good, bad


def read_image(path: Path):
    """An image as training sees it: upright, 8-bit RGB.

    Raises:
        ValueError: when the file cannot be used any more, since it was changed behind `check_images`.
    """
    from ..data.image_reading import UnreadableImage, decode_image, reason_of
    from ..storage.foreign_files import read_bytes

    try:
        return decode_image(read_bytes(path))
    except (UnreadableImage, OSError) as error:
        raise ValueError(
            f"{path} has changed since all images were looked at: {reason_of(error)}. Put it back, or leave it out, "
            "and predict again."
        ) from error


def classify(
    checkpoint, paths: list[Path], top: int, batch_size: int, backbone: str | None = None
) -> Iterator[list[dict]]:
    """The best classes of each image with their probabilities, best first."""
    from transformers import pipeline

    from ..models.image_processors import load_image_processor

    processor = load_image_processor(checkpoint.folder)
    model = checkpoint.load_model(backbone=backbone)
    if getattr(model.config, "output_router_scores", False):  # of each layer, which a pipeline takes for each image's
        model.config.output_router_scores = False
    classifier = pipeline("image-classification", model=model, image_processor=processor, trust_remote_code=False)
    top = min(top, classifier.model.config.num_labels)
    for start in range(0, len(paths), batch_size):
        images = [read_image(path) for path in paths[start : start + batch_size]]
        # by itself a pipeline would give the only class of a model its logit's sigmoid
        yield from classifier(images, top_k=top, batch_size=len(images), function_to_apply="softmax")


def _print_table(paths: list[Path], predictions: list[list[dict]]):
    from ..reports.terminal import print_table

    rows = [
        ["" if place else str(path), entry["label"], f"{100 * entry['score']:.1f}"]
        for path, best in zip(paths, predictions)
        for place, entry in enumerate(best)
    ]
    columns = {"image": "left", "class": "left", "%": "right"}
    print_table("Classes of each image, the most probable first", columns, rows)
