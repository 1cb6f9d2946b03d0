"""Saving and loading: a checkpoint of experts and head alone, or one with the backbone in it."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import resolve_revision

from ..base.home import expanded
from ..base.printable import printable
from ..storage.checkpoint_guard import (
    build_on_meta,
    check_adapter_values,
    check_backbone_shapes,
    check_depth,
    read_tensors,
)
from ..storage.checksums import check_file, update_checksums
from ..storage.config_guard import BACKBONE_OPTION, check_base_name, check_same_backbone, read_config, sizes_of
from ..storage.unchanged_files import check_unchanged, identities
from ..storage.weight_files import find_checksums, find_file, find_pickle, find_weights, keep_one_layout, read_headers
from .backbone_probe import BackboneProbe, has_adapters
from .backbones import EMBEDDED, build_backbone, load_backbone, weights_fingerprint

logger = logging.get_logger(__name__)

BACKBONE_PREFIX = "backbone."
SHARDS = f"model-{'[0-9]' * 5}-of-{'[0-9]' * 5}.safetensors"
WEIGHTS = ("model.safetensors", SHARDS, "model.safetensors.index.json")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")


def without_backbone(state_dict: dict) -> dict:
    """The weights of a model but for those of its backbone, by name."""
    return {name: value for name, value in state_dict.items() if not name.startswith(BACKBONE_PREFIX)}


class AdapterCheckpointMixin:
    """`save_pretrained` and `from_pretrained` of a model whose backbone is frozen and lives elsewhere.

    The model has a class method `check_own_weights(header, config, file)`, which checks names, types and shapes of all
    tensors but the backbone's from the files' headers alone, and raises a ValueError that names tensor and field.

    Attributes:
        is_standalone: whether the model came from a checkpoint with the backbone in it, and is saved with it again.
    """

    is_standalone: bool = False
    backbone_probe: BackboneProbe | None = None  # of a backbone that has a name to load it by

    @property
    def saves_backbone(self) -> bool:
        """Whether `save_pretrained` puts the backbone into the checkpoint when nothing else is asked for."""
        return self.is_standalone or not self._names_backbone

    @property
    def _names_backbone(self) -> bool:
        return self.config.base_model_name_or_path is not None and not self.trains_backbone

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        include_backbone: bool | None = None,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ):
        """Save experts, routing state and head; the backbone where it is asked for, came along, or has no name.

        A backbone that is no longer the base model it was loaded as, since it was trained or adapters were merged into
        it, is saved too, with a warning. Of a model that was loaded with a `quantization_config` experts and head are
        saved as they are, for the base model as it is on the Hub.

        Args:
            save_directory: folder to write to.
            include_backbone: True for a standalone model; False for experts and head alone (about 2 MB for a
                ViT-B). Default: True when the backbone has no name to load it by, when it has changed since, or when
                the model was loaded from a standalone checkpoint (`is_standalone`), else False.
            state_dict: weights to save instead of the model's own.
            **kwargs: as in transformers.

        Raises:
            ValueError: for `include_backbone=False` on a backbone that has no name to load it by, or that has changed
                since it was loaded; for PEFT adapters that are not merged; for a quantised backbone to be saved.
        """
        save_directory = expanded(save_directory)
        include_backbone = self._includes_backbone(include_backbone)
        state_dict = self.state_dict() if state_dict is None else state_dict
        if not include_backbone:
            state_dict = without_backbone(state_dict)
        with self._as_not_quantised():
            super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        if os.path.isdir(save_directory) and kwargs.get("is_main_process", True):
            keep_one_layout(save_directory)
            update_checksums(save_directory, (CONFIG_NAME, *WEIGHTS))

    def _includes_backbone(self, asked: bool | None) -> bool:
        """Whether the backbone is saved, where that was asked for or not."""
        if has_adapters(self):
            raise ValueError(
                "The model has PEFT adapters, of which a checkpoint would hold nothing. Merge them into the weights "
                "first: with model.backbone = get_peft_model(...).merge_and_unload() the backbone is saved with them."
            )
        changed = None if self.backbone_probe is None else self.backbone_probe.change(self.backbone)
        quantised = getattr(self, "hf_quantizer", None) is not None
        include_backbone = asked
        if asked is None:
            include_backbone = self.saves_backbone or (changed is not None and not quantised)
        if quantised and include_backbone:
            raise ValueError(
                "The backbone is quantised, and a checkpoint holds none like that. Save with include_backbone=False "
                "(experts and head, for the base model that was quantised), or load the model without "
                "quantization_config and save that."
            )
        if not include_backbone and not self._names_backbone:
            raise ValueError(
                "include_backbone = False, but this backbone has no base_model_name_or_path to load it from again. "
                "Save with include_backbone=True, or make the model with from_backbone(name)."
            )
        if changed is not None and not quantised:
            name = self.config.base_model_name_or_path
            if not include_backbone:
                raise ValueError(
                    f"include_backbone = False, but {changed}: with the base model {name!r} the checkpoint would be "
                    "another model. Save with include_backbone=True."
                )
            if asked is None and not self.saves_backbone:
                told = f"{changed}: it is saved with the model, since {name!r} is no longer its base model."
                logger.warning(printable(told))
        return include_backbone

    @contextlib.contextmanager
    def _as_not_quantised(self) -> Iterator[None]:
        """What is saved of a quantised model belongs to its base model as it is: nothing in it is quantised."""
        quantizer = getattr(self, "hf_quantizer", None)
        if quantizer is None:
            yield
            return
        settings = self.config.quantization_config
        self.hf_quantizer = None
        del self.config.quantization_config
        try:
            yield
        finally:
            self.hf_quantizer, self.config.quantization_config = quantizer, settings

    def probe_backbone(self):
        """Keep what the backbone is now, so that `save_pretrained` sees whether it has changed."""
        self.backbone_probe = BackboneProbe(self.backbone) if self._names_backbone else None

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        """Of transformers' `save_pretrained(push_to_hub=True)`: hashes that stayed there would be of other files."""
        update_checksums(working_dir, (CONFIG_NAME, *WEIGHTS))
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        backbone: str | os.PathLike | PreTrainedModel | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ):
        """Load a checkpoint; an adapter-only one together with its base model, at the revision it was trained on.

        What a standalone one has in it, `save_pretrained` of the model puts into the new one too.

        Args:
            pretrained_model_name_or_path: Hub id or folder of the checkpoint; None with `state_dict`.
            config: use this instead of the checkpoint's `config.json`.
            backbone: where the base model is (Hub id or folder), or the loaded base model itself, when it is not where
                the config says; its weights must be those trained on.
            revision: branch, tag (such as "task-03") or commit of the checkpoint.
            **kwargs: as in transformers (`dtype`, `attn_implementation`, `cache_dir`, `token`, ...), and fields of the
                config; `use_safetensors=False` reads a base model's pickled weights, never the checkpoint's.

        Raises:
            ValueError: when the base model's weights are not those that the experts were trained on, or for broken or
                hostile content; the message names the file and the field (StrictDataclassError for some fields).
            OSError: when the checkpoint or its base model is not found.
        """
        name, backbone = expanded(pretrained_model_name_or_path), expanded(backbone)
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        if name is None or kwargs.get("gguf_file"):
            return super().from_pretrained(name, *model_args, config=config, revision=revision, **kwargs)
        where = {**hub, "subfolder": kwargs.get("subfolder") or ""}
        revision = resolve_revision(
            name, revision, **{key: hub[key] for key in hub if key in ("token", "local_files_only", "cache_dir")}
        )
        use_safetensors = kwargs.pop("use_safetensors", None) is not False
        if not isinstance(config, PreTrainedConfig):
            fields = {key: kwargs.pop(key) for key in list(kwargs) if key in cls.config_class.own_fields()}
            config = _read_config(cls.config_class, config or name, revision, where, fields)
        weights = _read_weights(cls, name, revision, where, config)
        standalone = any(key.startswith(BACKBONE_PREFIX) for key in weights)
        if not standalone:
            base = _load_base(config, name, backbone, use_safetensors, hub)
            weights.update({BACKBONE_PREFIX + key: value for key, value in base.state_dict().items()})
        elif backbone is not None:
            raise ValueError(f"backbone was given, but {str(name)!r} has its own backbone. Leave it out.")
        for key in (*HUB_ARGUMENTS, "subfolder", "variant"):
            kwargs.pop(key, None)
        model = super().from_pretrained(None, *model_args, config=config, state_dict=weights, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        _check_one_device(getattr(loaded, "hf_device_map", None))
        loaded.name_or_path = loaded.config.name_or_path = str(name)
        loaded.is_standalone = standalone
        loaded.freeze_backbone()
        loaded.probe_backbone()
        return model


def holds_backbone(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint's folder has the backbone in its weights.

    Raises:
        ValueError, OSError: for weights that are broken or, of an index, missing.
    """
    header = read_headers(find_weights(folder, None, {}))
    return any(key.startswith(BACKBONE_PREFIX) for key in header)


def _check_one_device(device_map: dict | None):
    places = sorted({str(place) for place in (device_map or {}).values()})
    if len(places) > 1:
        raise ValueError(
            f"device_map divides the model over {places}, which is not allowed: prompts run inside the attention of "
            "the backbone's layers and have to be where those are. Give device_map={'': PLACE}, one place for all."
        )


def _read_config(config_class, name, revision, where: dict, fields: dict):
    """The checkpoint's config, from a file whose JSON was checked, with the caller's fields in place of the file's."""
    path = name if os.path.isfile(name) else find_file(name, CONFIG_NAME, revision, where)
    if path is None:
        raise OSError(_not_found(name, CONFIG_NAME))
    seen = identities([path])
    config = read_config(config_class, path, fields)
    checksums = None if os.path.isfile(name) else find_checksums(name, revision, where)
    if checksums is not None:
        check_file(path, checksums)
    check_unchanged(seen)
    return config


def _read_weights(cls, name, revision, where: dict, config) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, once their names, types and shapes fit the config."""
    paths = find_weights(name, revision, where)
    if not paths:
        pickle = find_pickle(name, revision, where)
        raise OSError(
            _not_found(name, SAFE_WEIGHTS_NAME)
            if pickle is None
            else f"{str(name)!r} has its weights in {pickle!r}, a pickle. Pickles are never read for a SMoPE "
            f"checkpoint, as they can run code: ask its author to convert it to {SAFE_WEIGHTS_NAME}."
        )
    seen = identities(paths)
    header = read_headers(paths)
    own = {key: entry for key, entry in header.items() if not key.startswith(BACKBONE_PREFIX)}
    cls.check_own_weights(own, config, paths[0])
    if len(own) < len(header):
        backbone = {key: entry for key, entry in header.items() if key.startswith(BACKBONE_PREFIX)}
        _check_standalone(backbone, config.backbone_config, paths[0])
    tensors = read_tensors(paths)
    check_adapter_values({key: tensors[key] for key in own}, paths[0])
    checksums = find_checksums(name, revision, where)
    for path in paths if checksums is not None else ():
        check_file(path, checksums)
    check_unchanged(seen)
    return tensors


def _check_standalone(header: dict, config: PreTrainedConfig, file):
    layers = config.num_hidden_layers
    check_depth(layers, len(header), file, "backbone_config.num_hidden_layers")
    check_backbone_shapes(header, _without_memory(config), file, sizes_of(config))


def _without_memory(config: PreTrainedConfig) -> nn.Module:
    return build_on_meta(
        lambda: build_backbone(config, "sdpa"), f"backbone_config of config.json ({sizes_of(config)})"
    )


def _not_found(name, file: str) -> str:
    return (
        f"{str(name)!r} holds no {file}. A SMoPE checkpoint is a folder or Hub repository with {CONFIG_NAME} and "
        f"{SAFE_WEIGHTS_NAME}; a finished run keeps one in each of its task-NN folders."
    )


def _load_base(config, name, backbone, use_safetensors: bool, hub: dict) -> PreTrainedModel:
    """The base model of an adapter-only checkpoint, checked against what the experts were trained on."""
    expected = config.base_model_fingerprint
    if isinstance(backbone, PreTrainedModel):
        base, source = backbone, backbone.config.name_or_path
        check_same_backbone(config.backbone_config, base.config, source)
    else:
        source = backbone or config.base_model_name_or_path
        if source is None:
            raise OSError(
                f"{str(name)!r} holds experts and head only and does not say which base model they belong to. Give it "
                f"as {BACKBONE_OPTION}."
            )
        if not backbone and not os.path.isdir(name):
            check_base_name(source, str(name))
        revision = None if backbone else config.base_model_revision
        same = {"expected": config.backbone_config, "use_safetensors": use_safetensors}
        try:
            base, commit = load_backbone(os.fspath(source), revision, **same, **hub)
        except OSError as error:
            raise OSError(
                f"The base model {source!r} (revision {revision}) of {str(name)!r} could not be loaded: {error}\n"
                f"Give its present place as {BACKBONE_OPTION}."
            ) from error
    found = weights_fingerprint(base)
    if expected not in (None, found) and expected != weights_fingerprint(base, with_pooler=True):
        raise ValueError(
            f"The weights of {source!r} are not those that {str(name)!r} was trained on: expected the base model "
            f"{config.base_model_name_or_path!r} (revision {config.base_model_revision}) with fingerprint "
            f"{expected[:16]}..., found {found[:16]}.... Give the right one as {BACKBONE_OPTION}."
        )
    shapes = {key: (tuple(tensor.shape), "F32") for key, tensor in base.state_dict().items()}
    sizes = sizes_of(config.backbone_config)
    check_backbone_shapes(shapes, _without_memory(config.backbone_config), f"the base model {source!r}", sizes)
    if isinstance(backbone, (str, os.PathLike)) and expected is not None:
        _record_place(config, os.fspath(backbone), commit)
    return base


def _record_place(config, place: str, commit: str | None):
    """Remember where a base model is now, so that what is saved of the model finds it.

    A folder of some machine gives way. A base model of the Hub, which has a commit, and the embedded one stay: others
    find them there.
    """
    if config.base_model_revision is None and config.base_model_name_or_path != EMBEDDED:
        is_folder = place != EMBEDDED and os.path.isdir(place)
        config.base_model_name_or_path = os.path.abspath(place) if is_folder else place
        config.base_model_revision = commit
