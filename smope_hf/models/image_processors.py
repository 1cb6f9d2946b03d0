"""Image processors out of files that somebody else wrote: every field is checked, and no code of a repository runs."""

import math
import os
import re
from collections.abc import Callable
from typing import Any

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME
from transformers.utils.hub import resolve_revision

from ..base.home import expanded
from ..storage.config_guard import read_config_content
from ..storage.safe_json import ADVICE, read_json, shown
from ..storage.weight_files import find_file
from .backbones import local_name

MAX_PROCESSOR_BYTES = 2**20
MAX_SIDE = 2048  # of an image after resizing, where the file gives both sides
MAX_SHORT_SIDE = 1024  # where the other side follows from the image, which may be many times as long
NESTED = "image_processor"  # the field of processor_config.json that holds an image processor's fields
NO_CODE = (
    "names code in a repository, and smope_hf never runs such code for an image processor: everything is read with "
    "trust_remote_code=False. Allowed: an image_processor_type that comes with transformers, and no auto_map."
)
_OWN_CODE = "auto_map"
_SIDES = ("height", "width", "max_height", "max_width", "longest_edge")

_Check = tuple[Callable[[Any], bool], str]  # whether a value fits, and what is allowed


def _is_whole(value, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_number(value, lowest: float, highest: float) -> bool:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value) and lowest <= value <= highest


def _is_size(value) -> bool:
    if isinstance(value, dict):
        limits = {**dict.fromkeys(_SIDES, MAX_SIDE), "shortest_edge": MAX_SHORT_SIDE}
        known = value.keys() <= limits.keys()
        return known and all(side is None or _is_whole(side, 1, limits[name]) for name, side in value.items())
    if isinstance(value, list):
        return len(value) == 2 and all(_is_whole(side, 1, MAX_SIDE) for side in value)
    return _is_whole(value, 1, MAX_SHORT_SIDE)  # some image processors take one number for the shorter side


def _per_channel(lowest: float, highest: float) -> Callable[[Any], bool]:
    def fits(value) -> bool:
        numbers = value if isinstance(value, list) and len(value) == 3 else [value]
        return all(_is_number(number, lowest, highest) for number in numbers)

    return fits


def _one_of(*words: str) -> _Check:
    return lambda value: value in words, " or ".join(words)


def _is_name(value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w{1,100}", value, re.ASCII) is not None


_FLAG: _Check = lambda value: isinstance(value, bool), "true or false"
_SIZE: _Check = (
    _is_size,
    f"whole numbers from 1 to {MAX_SIDE} as height and width, max_height and max_width or longest_edge, or from 1 to "
    f"{MAX_SHORT_SIDE} as shortest_edge or alone",
)
_NAME: _Check = _is_name, "a name"
_FORMAT = _one_of("channels_first", "channels_last")
FIELDS: dict[str, _Check] = {
    **dict.fromkeys(
        ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_pad", "do_reduce_labels",
         "reduce_labels", "do_flip_channel_order", "default_to_square", "use_square_size", "rescale_offset",
         "include_top", "disable_grouping"), _FLAG,
    ),
    **dict.fromkeys(("size", "crop_size", "pad_size"), _SIZE),
    "image_mean": (_per_channel(-1e6, 1e6), "a number from -1e6 to 1e6, or one for each of the 3 channels"),
    "image_std": (_per_channel(1e-6, 1e6), "a number from 1e-6 to 1e6, or one for each of the 3 channels"),
    "rescale_factor": (lambda value: _is_number(value, 1e-6, 1e6), "a number from 1e-6 to 1e6"),
    "crop_pct": (lambda value: _is_number(value, 0.01, 1), "a number from 0.01 to 1"),
    "resample": (lambda value: _is_whole(value, 0, 5), "a number of PIL.Image.Resampling, 0 to 5"),
    "size_divisor": (lambda value: _is_whole(value, 1, MAX_SIDE), f"1 to {MAX_SIDE}"),
    "image_seq_length": (lambda value: _is_whole(value, 1, 2**20), f"1 to {2**20}"),
    "data_format": _FORMAT,
    "input_data_format": _FORMAT,
    "return_tensors": _one_of("pt", "np"),
    "device": (lambda value: isinstance(value, str) and re.fullmatch(r"[a-z]{1,9}(:\d{1,3})?", value), "a device"),
    **dict.fromkeys(("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"), _NAME),
    "_valid_processor_keys": (
        lambda value: isinstance(value, list) and len(value) <= 100 and all(map(_is_name, value)), "names of fields",
    ),
}  # fmt: skip
"""What the file of an image processor may hold: for each field what fits; null, for the default, fits every one."""


def load_image_processor(name_or_path: str | os.PathLike, revision: str | None = None):
    """The image processor of a model, with Pillow; its fields are checked, and no code of the repository is run.

    What transformers' `AutoImageProcessor` reads is read: `image_processor` in processor_config.json, else
    preprocessor_config.json; where that names no type, config.json decides. What was checked is what is used: no file
    is read twice.

    Args:
        name_or_path: Hub id, folder, or "embedded".
        revision: branch, tag or commit on the Hub.

    Returns:
        A transformers image processor.

    Raises:
        ValueError: for a file that is broken or hostile, a field or value that is not allowed, or a type that does not
            come with transformers; the message names the file and the field.
        OSError: when there is no such file.
        ImportError: for a type that needs torchvision, where it is not installed.
    """
    classes, content, source = find_image_processor(local_name(expanded(os.fspath(name_or_path))), revision)
    return _available(classes, source).from_dict(content)


def find_image_processor(name: str, revision: str | None = None) -> tuple[dict[str, str], dict, str]:
    """All of `load_image_processor` but loading the class.

    Args:
        name: Hub id or folder.
        revision: branch, tag or commit on the Hub.

    Returns:
        The names of its classes by backend, its checked fields, and where they stand, for messages.

    Raises:
        ValueError, OSError: as `load_image_processor`.
    """
    revision = resolve_revision(name, revision)
    source, content = _read(name, revision)
    check_fields(content, source)
    kind = content.get("image_processor_type") or (content.get("feature_extractor_type") or "").replace(
        "FeatureExtractor", "ImageProcessor"
    )
    if kind:
        return _classes_named(kind, f"{source}: image_processor_type = {shown(kind)}"), content, source
    return _classes_of_model(name, revision, source), content, source


def check_fields(content: dict, source: str | os.PathLike):
    """Check the fields of an image processor's file before anything is made from them.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    if content.get(_OWN_CODE) is not None:
        raise ValueError(f"{source}: {_OWN_CODE} = {shown(content[_OWN_CODE])} {NO_CODE} {ADVICE}")
    for name, value in content.items():
        if name == _OWN_CODE:
            continue
        if name not in FIELDS:
            raise ValueError(
                f"{source}: {shown(name)} is no field of an image processor that only resizes, crops, rescales and "
                f"normalises. Allowed: {', '.join(FIELDS)}. Remove the field if the image processor does not need it."
            )
        fits, allowed = FIELDS[name]
        if value is not None and not fits(value):
            raise ValueError(f"{source}: {name} = {shown(value)} is not allowed. Allowed: {allowed}. {ADVICE}")


def _read(name: str, revision) -> tuple[str, dict]:
    """Where an image processor's fields are, and the fields."""
    path = find_file(name, PROCESSOR_NAME, revision, {})
    if path is not None:
        nested = read_json(path, MAX_PROCESSOR_BYTES).get(NESTED)
        if isinstance(nested, dict):
            return f"{path}: {NESTED}", nested
        if nested is not None:
            raise ValueError(f"{path}: {NESTED} = {shown(nested)} is not allowed. Allowed: an object. {ADVICE}")
    path = find_file(name, IMAGE_PROCESSOR_NAME, revision, {})
    if path is None:
        raise OSError(
            f"{name!r} holds no image processor: neither {IMAGE_PROCESSOR_NAME} nor {NESTED!r} in {PROCESSOR_NAME}. "
            "Put the file of the model's image processor there; image_processor.save_pretrained(folder) writes it."
        )
    return str(path), read_json(path, MAX_PROCESSOR_BYTES)


def _shipped() -> list[dict[str, str]]:
    """The image processors that come with transformers: for each, the names of its classes by backend."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    return list(IMAGE_PROCESSOR_MAPPING_NAMES.values())


def _classes_named(kind: str, what: str) -> dict[str, str]:
    """The classes of a type by its name: transformers would take any class that it has, a model's too."""
    base = kind.removesuffix("Fast")
    for classes in _shipped():
        if base in classes.values():
            return classes
    raise ValueError(
        f"{what} is no image processor that comes with transformers, and classes from elsewhere are not loaded "
        f"(trust_remote_code=False). Allowed: such as ViTImageProcessor. {ADVICE}"
    )


def _classes_of_model(name: str, revision, source: str) -> dict[str, str]:
    """The classes for a model, where its image processor's file names no type."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    path = find_file(name, CONFIG_NAME, revision, {})
    config = {} if path is None else read_config_content(path)
    own = config.get(_OWN_CODE)
    if own is not None and (not isinstance(own, dict) or "AutoImageProcessor" in own):
        raise ValueError(f"{path}: {_OWN_CODE} = {shown(own)} {NO_CODE} {ADVICE}")
    kind, model_type = config.get("image_processor_type"), config.get("model_type")
    if isinstance(kind, str):
        return _classes_named(kind, f"{path}: image_processor_type = {shown(kind)}")
    if not isinstance(model_type, str) or model_type not in IMAGE_PROCESSOR_MAPPING_NAMES:
        raise ValueError(
            f"{source} has no image_processor_type, and {CONFIG_NAME} of {name!r} is of no model that has an image "
            f"processor in transformers (model_type = {shown(model_type)}). Put the type into the file, such as "
            '"image_processor_type": "ViTImageProcessor".'
        )
    return IMAGE_PROCESSOR_MAPPING_NAMES[model_type]


def _available(classes: dict[str, str], source: str):
    """The class that works with Pillow; where there is none, the one for torchvision, if that is installed.

    Raises:
        ValueError: for a class with fields beyond `FIELDS`: it would do more than prepare an image for a classifier,
            such as fetch files or start another program.
        ImportError: where torchvision is needed and missing.
    """
    import transformers

    name = classes.get("pil") or classes["torchvision"]
    found = getattr(transformers, name)
    if getattr(found, "is_dummy", False):
        raise ImportError(f"{source}: {name} needs a package that is not installed here: pip install torchvision")
    beyond = sorted(found.valid_kwargs.__annotations__.keys() - FIELDS.keys())
    if beyond:
        raise ValueError(
            f"{source}: {name} is not for image classification, it has {', '.join(beyond[:3])}. Allowed: an "
            "image_processor_type that only resizes, crops, rescales and normalises, such as ViTImageProcessor."
        )
    return found
