"""Checks of a base model before its weights take memory."""

import os
from collections.abc import Callable, Collection

from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, is_peft_available

from ..storage.checkpoint_guard import build_on_meta, check_depth, check_memory
from ..storage.config_fields import backbone_fields, image_half
from ..storage.config_guard import check_forbidden, check_label_counts, check_precision, read_config_content, sizes_of
from ..storage.safe_json import shown
from ..storage.weight_files import find_file, find_pickle, find_weights, read_headers


def read_base_config(
    name: str | os.PathLike, revision: str | None, where: dict, families: Collection[str]
) -> dict | None:
    """The fields of a base model's config.json that say what the backbone is; of two halves those of the image half.

    Args:
        name: Hub id or folder.
        revision: branch, tag or commit on the Hub.
        where: as for `find_file`.
        families: the model types that are supported. Configs of all others are code that would run on fields which
            nobody has checked, and some fetch the config of another repository that a field names.

    Returns:
        None where there is no config.json.

    Raises:
        ValueError: naming the field.
    """
    path = find_file(name, CONFIG_NAME, revision, where)
    if path is None:
        return None
    content = read_config_content(path)
    half = image_half(content)
    check_model_type(half, str(path), families)
    check_label_counts(content, str(path))
    check_forbidden(content, str(path))
    check_precision(half, str(path))
    return backbone_fields(half, str(path))


def check_no_adapter(name: str | os.PathLike, revision: str | None, where: dict):
    """Refuse a base model with a PEFT adapter, which transformers would load from wherever its file says.

    Raises:
        ValueError: where PEFT is installed and the model has an adapter_config.json.
    """
    if is_peft_available() and find_file(name, ADAPTER_CONFIG_NAME, revision, where) is not None:
        raise ValueError(
            f"{str(name)!r} holds {ADAPTER_CONFIG_NAME}, and PEFT adapters are never read: the file may name another "
            "model in the place of this one. Give a base model without one."
        )


def check_model_type(content: dict, source: str, families: Collection[str]):
    """Refuse a base model of a family that is not supported, before its config is built.

    Raises:
        ValueError: listing those that are.
    """
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in families:
        code = "auto_map names code of its own, which is never run for a base model (trust_remote_code=False). "
        raise ValueError(
            f"{source}: model_type = {shown(model_type)} is not supported. {code if 'auto_map' in content else ''}"
            f"Supported backbones: {', '.join(families)}."
        )


def check_base_weights(
    name: str | os.PathLike,
    revision: str | None,
    where: dict,
    config: PreTrainedConfig,
    build: Callable[[], nn.Module],
):
    """Check that a base model has safetensors, and that its config asks for no more than they hold.

    Raises:
        ValueError: naming the config's field.
        OSError: when there are no safetensors.
    """
    paths = find_weights(name, revision, where)
    if not paths:
        pickle = find_pickle(name, revision, where)
        advice = (
            f"It has {pickle}, a pickle, which can run code when it is read. Convert it to safetensors, or, if you "
            "trust its author, load it with use_safetensors=False."
            if pickle
            else "Give a base model that has one."
        )
        raise OSError(f"{str(name)!r} holds no model.safetensors. {advice}")
    header = read_headers(paths)
    check_depth(config.num_hidden_layers, len(header), paths[0], "num_hidden_layers")
    check_memory(header, build_on_meta(build, f"config.json of {str(name)!r} ({sizes_of(config)})"), paths[0])
