"""Checks of a config.json that somebody else wrote, before a config, and then a model, is built from it."""

import os
import re

import torch
from huggingface_hub.errors import StrictDataclassError

from .config_fields import REFUSED
from .field_checks import MAX_TASKS
from .safe_json import ADVICE, check_values, clipped, read_json, shown

MAX_CONFIG_BYTES = 16 * 2**20
MAX_CLASSES = 10**5
BACKBONE_OPTION = "from_pretrained(..., backbone=name_or_path), on a command line --backbone"
MAX_SIZE = 2**18  # of any number in a backbone's config; keeps every product of sizes within 64 bits
MAX_SIZES = {"num_hidden_layers": 1024, "num_channels": 1024, "patch_size": 4096, "num_attention_heads": 4096}
PRECISIONS = ("float32", "bfloat16", "float16", "float64")
COMPARED = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "mlp_ratio",
    "image_size", "patch_size", "num_channels",
)  # fmt: skip
REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]{0,254}", re.ASCII)
REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


def read_config_content(path: str | os.PathLike) -> dict:
    """What a config.json holds, of one of our models or of a base model, within the limits of all JSON.

    Raises:
        ValueError: naming the file and the field.
        OSError: when it cannot be read.
    """
    return read_json(path, MAX_CONFIG_BYTES)


def read_config(config_class, path: str | os.PathLike, fields: dict | None = None):
    """A config from its file, checked before it is built.

    Args:
        config_class: [`SMoPEConfig`].
        path: of config.json.
        fields: fields to set in place of the file's.

    Raises:
        ValueError: naming the file and the field.
    """
    content = read_config_content(path)
    if content.get("model_type") != config_class.model_type:
        raise ValueError(
            f"{path}: model_type is {shown(content.get('model_type'))}, not that of a SMoPE model "
            f"({config_class.model_type!r}). Give a checkpoint that smope_hf has saved."
        )
    return config_from(content, config_class, path, fields)


def config_from(content: dict, config_class, path: str | os.PathLike, fields: dict | None = None):
    """The config that a file's content makes; arguments as for `read_config`.

    Raises:
        ValueError: naming the file and the field.
    """
    try:
        return config_class.from_dict(content, **(fields or {}))
    except Exception as error:  # of the backbone's own config class, which may fail in any way on wrong types
        text = clipped(" ".join(str(error).split()), 800)
        if text.startswith("config.json: "):
            raise ValueError(f"{path}{text.removeprefix('config.json')}") from error
        kind = "" if isinstance(error, (ValueError, StrictDataclassError)) else f"{type(error).__name__}: "
        raise ValueError(f"{path} makes no config: {kind}{text} {ADVICE}") from error


def check_config(content: dict, source: str = "config.json"):
    """Check what a SMoPE config would take memory for, or fail on without naming the field.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    check_values(content, source)
    check_forbidden(content, source)
    check_precision(content, source)
    check_label_counts(content, source)
    check_revision(content, source)
    for name, fits in (("id2label", _is_label_table), ("label2id", _is_id_table), ("tasks", _is_task_list)):
        value = content.get(name)
        _require(source, name, value, value is None or fits(value), "ids 0, 1, ... and names of classes")
    backbone = content.get("backbone_config")
    if isinstance(backbone, dict):
        _require(source, "backbone_config.model_type", backbone.get("model_type"), *_text_or_none(backbone))
        check_backbone_sizes(backbone, f"{source}: backbone_config")


def check_forbidden(content: dict, source: str):
    """Refuse fields that make transformers read weights in another way than the checks do.

    Raises:
        ValueError: naming the field.
    """
    for name, reason in REFUSED.items():
        _require(source, name, content.get(name), content.get(name) is None, f"nothing, as {reason}")


def check_precision(content: dict, source: str):
    """Check that `dtype` names a type that a model runs in: transformers looks the text up among all that torch has.

    Raises:
        ValueError: naming the field.
    """
    for name in ("dtype", "torch_dtype"):
        value = content.get(name)
        fits = value is None or isinstance(value, torch.dtype) or (isinstance(value, str) and value in PRECISIONS)
        _require(source, name, value, fits, f"one of {', '.join(PRECISIONS)}")


def check_revision(content: dict, source: str):
    """Check that `base_model_revision` is a branch, tag or commit: it becomes part of paths in the Hub's cache.

    Raises:
        ValueError: naming the field.
    """
    value = content.get("base_model_revision")
    fits = value is None or (isinstance(value, str) and REVISION.fullmatch(value) and ".." not in value)
    _require(source, "base_model_revision", value, bool(fits), "a branch, tag or commit of the Hub")


def check_label_counts(content: dict, source: str):
    """Check every `num_labels`, from which transformers makes a table of names, on the first two levels.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    inner = [(f"{name}.", value) for name, value in content.items() if isinstance(value, dict)]
    for prefix, part in [("", content), *inner]:
        labels = part.get("num_labels")
        allowed = f"0 to {MAX_CLASSES}"
        _require(source, f"{prefix}num_labels", labels, labels is None or _is_size(labels, MAX_CLASSES), allowed)


def check_class_count(count: int):
    """Refuse more classes than a checkpoint's config may list, before anything is learned.

    Raises:
        ValueError: with the number and what is allowed.
    """
    if count > MAX_CLASSES:
        raise ValueError(
            f"{count} classes are not allowed in one model. Allowed: at most {MAX_CLASSES}, as no checkpoint with "
            "more is read back. Learn fewer classes, or check that the label column holds classes."
        )


def sizes_of(config) -> str:
    """The sizes in a backbone's config, for messages on weights that do not fit them."""
    found = {name: getattr(config, name, None) for name in COMPARED}
    return ", ".join(f"{name} = {shown(value)}" for name, value in found.items() if value is not None)


def check_backbone_sizes(backbone: dict, source: str):
    """Check that a backbone's config has no number that could be a size beyond any model.

    Raises:
        ValueError: naming the field, the value and the limits.
    """
    check_precision(backbone, source)
    for name, value in backbone.items():
        limit = MAX_CLASSES if name == "num_labels" else MAX_SIZES.get(name, MAX_SIZE)
        lowest = 1 if name in (*MAX_SIZES, *COMPARED) else -limit
        numbers = value if isinstance(value, (list, tuple)) else [value]
        fits = all(lowest <= number <= limit for number in numbers if isinstance(number, (int, float)))
        _require(source, name, value, fits, f"{lowest} to {limit}")
    labels = backbone.get("id2label")
    _require(source, "id2label", labels, labels is None or _is_label_table(labels), "ids and names of classes")


def _require(source: str, name: str, value, fits: bool, allowed: str):
    if not fits:
        raise ValueError(f"{source}: {name} = {shown(value)} is not allowed. Allowed: {allowed}. {ADVICE}")


def _text_or_none(backbone: dict) -> tuple[bool, str]:
    return isinstance(backbone.get("model_type"), (str, type(None))), "the name of a family"


def _is_size(value, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def _is_label_table(value) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_CLASSES
        and all(isinstance(name, str) for name in value.values())
        and all(re.fullmatch("[0-9]{1,7}", str(index)) for index in value)
    )


def _is_id_table(value) -> bool:
    return isinstance(value, dict) and all(_is_size(index, MAX_CLASSES) for index in value.values())


def _is_task_list(value) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) <= MAX_TASKS
        and all(
            isinstance(task, (list, tuple)) and all(_is_size(index, MAX_CLASSES) for index in task) for task in value
        )
    )


def check_same_backbone(expected, found, source: str):
    """Compare a base model's config with the one that a checkpoint was trained on.

    Raises:
        ValueError: naming the first field that differs, and both values.
    """
    for name in COMPARED:
        trained_on, present = getattr(expected, name, None), getattr(found, name, None)
        if trained_on != present:
            raise ValueError(
                f"The base model {source!r} has {name} = {shown(present)}, but config.json says "
                f"backbone_config.{name} = {shown(trained_on)}. Give the base model that the checkpoint was trained "
                f"on as {BACKBONE_OPTION}."
            )


def check_base_name(name: str, checkpoint: str):
    """Refuse a base model that a checkpoint from the Hub looks for on this machine.

    Raises:
        ValueError: when the name is anything but that of a Hub repository.
    """
    if not REPOSITORY.fullmatch(name) or ".." in name:
        raise ValueError(
            f"config.json of {checkpoint!r}: base_model_name_or_path = {shown(name)} is a path on its author's "
            "machine, which is not read for a checkpoint from the Hub. Give the base model as "
            f"{BACKBONE_OPTION}."
        )
