"""Saving and loading: a checkpoint of experts and head alone, or one with the backbone in it."""

import os

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import resolve_revision

from .backbones import load_backbone, weights_fingerprint

BACKBONE_PREFIX = "backbone."
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")


class AdapterCheckpointMixin:
    """`save_pretrained` and `from_pretrained` of a model whose backbone is frozen and lives elsewhere."""

    def save_pretrained(self, save_directory, include_backbone: bool | None = None, state_dict=None, **kwargs):
        """Save experts, routing state and head; the backbone only where it is asked for or cannot be found again.

        Args:
            save_directory: folder to write to.
            include_backbone: True for a standalone model; False for experts and head alone (about 2 MB for a
                ViT-B); default False when the backbone has a name to load it by, else True.
            state_dict: weights to save instead of the model's own.
            **kwargs: as in transformers.

        Raises:
            ValueError: for `include_backbone=False` on a backbone that has no name to load it by.
        """
        named = self.config.base_model_name_or_path is not None
        if include_backbone is None:
            include_backbone = not named
        if not include_backbone and not named:
            raise ValueError(
                "include_backbone = False, but this backbone has no base_model_name_or_path to load it from again. "
                "Save with include_backbone=True, or make the model with from_backbone(name)."
            )
        state_dict = self.state_dict() if state_dict is None else state_dict
        if not include_backbone:
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith(BACKBONE_PREFIX)}
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, backbone=None, revision=None, **kwargs
    ):
        """Load a checkpoint; an adapter-only one together with its base model, at the revision it was trained on.

        Args:
            pretrained_model_name_or_path: Hub id or folder of the checkpoint; None with `state_dict`.
            config: use this instead of the checkpoint's `config.json`.
            backbone: where the base model is (Hub id or folder), or the loaded base model itself, when it is not where
                the config says; its weights must be those trained on.
            revision: branch, tag (such as "task-03") or commit of the checkpoint.
            **kwargs: as in transformers (`dtype`, `attn_implementation`, `cache_dir`, `token`, ...).

        Raises:
            ValueError: when the base model's weights are not those that the experts were trained on.
            OSError: when the checkpoint or its base model is not found.
        """
        name = pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        if name is None or kwargs.get("gguf_file"):
            return super().from_pretrained(name, *model_args, config=config, revision=revision, **kwargs)
        where = {**hub, "subfolder": kwargs.get("subfolder", "")}
        revision = resolve_revision(
            name, revision, **{key: hub[key] for key in hub if key in ("token", "local_files_only", "cache_dir")}
        )
        weights = _read_adapter(name, revision, where)
        if weights is None:  # the backbone is in the checkpoint
            if backbone is not None:
                raise ValueError(f"backbone was given, but {str(name)!r} has its own backbone. Leave it out.")
            model = super().from_pretrained(name, *model_args, config=config, revision=revision, **kwargs)
        else:
            if not isinstance(config, PreTrainedConfig):
                config = cls.config_class.from_pretrained(config or name, revision=revision, **where)
            base = _load_base(config, name, backbone, hub)
            weights.update({BACKBONE_PREFIX + key: value for key, value in base.state_dict().items()})
            for key in (*HUB_ARGUMENTS, "subfolder"):
                kwargs.pop(key, None)
            model = super().from_pretrained(None, *model_args, config=config, state_dict=weights, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        loaded.name_or_path = loaded.config.name_or_path = str(name)
        loaded.freeze_backbone()
        return model


def _read_adapter(name, revision, where: dict) -> dict[str, torch.Tensor] | None:
    """The weights of an adapter-only checkpoint, or None for one with its backbone."""
    path = cached_file(
        name, SAFE_WEIGHTS_NAME, revision=revision, _raise_exceptions_for_missing_entries=False, **where
    )
    if path is None:
        index = cached_file(
            name, SAFE_WEIGHTS_INDEX_NAME, revision=revision, _raise_exceptions_for_missing_entries=False, **where
        )
        if index is None:
            raise OSError(
                f"{str(name)!r} holds no {SAFE_WEIGHTS_NAME}. A SMoPE checkpoint is a folder or Hub repository with "
                f"config.json and {SAFE_WEIGHTS_NAME}; a finished run keeps one in each of its task-NN folders."
            )
        return None
    with safe_open(path, framework="pt") as file:
        if any(key.startswith(BACKBONE_PREFIX) for key in file.keys()):
            return None
        return {key: file.get_tensor(key) for key in file.keys()}


def _load_base(config, name, backbone, hub: dict) -> PreTrainedModel:
    """The base model of an adapter-only checkpoint, checked against what the experts were trained on."""
    expected = config.base_model_fingerprint
    if isinstance(backbone, PreTrainedModel):
        base, source = backbone, backbone.config.name_or_path
    else:
        source = backbone or config.base_model_name_or_path
        if source is None:
            raise OSError(
                f"{str(name)!r} holds experts and head only and does not say which base model they belong to. Give it "
                "as from_pretrained(..., backbone=name_or_path)."
            )
        revision = None if backbone else config.base_model_revision
        try:
            base, _ = load_backbone(os.fspath(source), revision, **hub)
        except OSError as error:
            raise OSError(
                f"The base model {source!r} (revision {revision}) of {str(name)!r} could not be loaded: {error}\n"
                "Give its present place as from_pretrained(..., backbone=name_or_path)."
            ) from error
    found = weights_fingerprint(base)
    if expected is not None and found != expected:
        raise ValueError(
            f"The weights of {source!r} are not those that {str(name)!r} was trained on: expected the base model "
            f"{config.base_model_name_or_path!r} (revision {config.base_model_revision}) with fingerprint "
            f"{expected[:16]}..., found {found[:16]}.... Give the right one as from_pretrained(..., backbone=...)."
        )
    return base
