"""Checks of a base model before its weights take memory."""

import os
from collections.abc import Callable

from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .checkpoint_guard import build_on_meta, check_depth, check_memory
from .config_guard import check_forbidden, check_label_counts, read_config_content, sizes_of
from .weight_files import find_file, find_pickle, find_weights, read_headers


def read_base_config(name: str | os.PathLike, revision: str | None, where: dict):
    """Check the JSON of a base model's config; whether there is one is for transformers to say.

    Raises:
        ValueError: naming the field.
    """
    path = find_file(name, CONFIG_NAME, revision, where)
    if path is not None:
        content = read_config_content(path)
        check_label_counts(content, str(path))
        check_forbidden(content, str(path))


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
