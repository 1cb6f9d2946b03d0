"""The supported ViT families: where the attention modules are, and what the pooled feature is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils.hub import resolve_revision

from ..storage.config_guard import check_backbone_sizes, check_same_backbone
from ..storage.safe_json import clipped
from .base_guard import check_base_weights, check_no_adapter, read_base_config

if TYPE_CHECKING:  # loading the code of models takes seconds, and a config needs none of it
    from transformers import PreTrainedModel

EMBEDDED = "embedded"  # the name of the small ViT that comes with the package
EMBEDDED_FOLDER = Path(__file__).parent / "embedded" / "letters-vit"


# Named functions where a lambda would do: a model refers to its family, and only what has a name can be pickled.


def _no_token(config: PreTrainedConfig) -> int:
    return 0


def _cls_alone(config: PreTrainedConfig) -> int:
    return 1


def _cls_and_distillation(config: PreTrainedConfig) -> int:
    return 2


def _cls_and_registers(config: PreTrainedConfig) -> int:
    return 1 + config.num_register_tokens


def _as_it_is(backbone: PreTrainedModel, tokens: Tensor) -> Tensor:
    return tokens


def _post_layernorm(backbone: PreTrainedModel, tokens: Tensor) -> Tensor:
    return backbone.post_layernorm(tokens)


@dataclass(frozen=True)
class BackboneFamily:
    """What SMoPE needs to know of one family of vision transformers.

    Args:
        layers: dotted path from the model to its list of transformer layers.
        attention: name of the attention module in a layer.
        prefix_tokens: number of tokens before the patches, from the config; 0 where there is no CLS token.
        init_kwargs: what to build the model with, to leave out heads that SMoPE does not use.
        resizes: "argument" when other image sizes need `interpolate_pos_encoding=True`, "always" when they just work.
        normalize: the final layer norm, where the model leaves `last_hidden_state` without it.
    """

    layers: str
    attention: str = "attention"
    prefix_tokens: Callable[[PreTrainedConfig], int] = _cls_alone
    init_kwargs: dict = field(default_factory=dict)
    resizes: str = "argument"
    normalize: Callable[[PreTrainedModel, Tensor], Tensor] = _as_it_is

    def attention_modules(self, backbone: PreTrainedModel) -> list[nn.Module]:
        return [getattr(layer, self.attention) for layer in backbone.get_submodule(self.layers)]

    def poolings(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """The poolings that this backbone offers, the default first."""
        return ("cls", "mean") if self.prefix_tokens(config) else ("mean",)

    def pool(self, backbone: PreTrainedModel, tokens: Tensor, pooling: str) -> Tensor:
        """The feature of an image: its CLS token or the mean of its patch tokens, (B, N, D) -> (B, D)."""
        if pooling == "cls":
            return self.normalize(backbone, tokens[:, 0])
        return self.normalize(backbone, tokens[:, self.prefix_tokens(backbone.config) :]).mean(dim=1)


class BeitFamily(BackboneFamily):
    """BEiT puts its final layer norm behind the mean over the patches when its config says so."""

    def poolings(self, config):
        return ("mean",) if config.use_mean_pooling else ("cls", "mean")

    def pool(self, backbone, tokens, pooling):
        return backbone.pooler(tokens) if backbone.config.use_mean_pooling else super().pool(backbone, tokens, pooling)


NO_POOLER = {"add_pooling_layer": False}
FAMILIES: dict[str, BackboneFamily] = {
    "vit": BackboneFamily("layers", init_kwargs=NO_POOLER),
    "deit": BackboneFamily("layers", init_kwargs=NO_POOLER, prefix_tokens=_cls_and_distillation),
    "vit_msn": BackboneFamily("layers"),
    "beit": BeitFamily("layers"),
    "dinov2": BackboneFamily("encoder.layer", resizes="always"),
    "dinov2_with_registers": BackboneFamily("encoder.layer", prefix_tokens=_cls_and_registers, resizes="always"),
    "dinov3_vit": BackboneFamily("model.layer", prefix_tokens=_cls_and_registers, resizes="always"),
    "clip_vision_model": BackboneFamily("encoder.layers", "self_attn", normalize=_post_layernorm),
    "siglip_vision_model": BackboneFamily("encoder.layers", "self_attn", prefix_tokens=_no_token),
    "ijepa": BackboneFamily("layers", init_kwargs=NO_POOLER, prefix_tokens=_no_token),
}


def family_of(config: PreTrainedConfig) -> BackboneFamily:
    """The row of the table for a backbone's config.

    Raises:
        ValueError: when the model type is not in the table; the message lists those that are.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"backbone_config.model_type = {config.model_type!r} is not supported. Supported backbones: "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[config.model_type]


def head_shape(config: PreTrainedConfig) -> tuple[int, int]:
    """Number of attention heads H and size d of each."""
    heads = config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def build_backbone(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
    """A backbone with random weights."""
    from transformers import AutoModel

    return AutoModel.from_config(config, attn_implementation=attn_implementation, **family_of(config).init_kwargs)


def local_name(name_or_path: str) -> str:
    """Where transformers finds a backbone: its folder for "embedded", else the name itself."""
    return str(EMBEDDED_FOLDER) if name_or_path == EMBEDDED else name_or_path


def _build_config(content: dict | None, name_or_path: str, revision: str | None, cached: dict) -> PreTrainedConfig:
    """The config of fields that were checked; where there is no config.json, transformers says so."""
    try:
        if content is None:
            return AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False, **cached)
        return CONFIG_MAPPING[content["model_type"]].from_dict(content)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the family's own config class, which may fail in any way on wrong types
        reason = clipped(" ".join(str(error).split()), 500)
        raise ValueError(f"config.json of {str(name_or_path)!r} makes no config: {reason}") from error


def load_backbone(
    name_or_path: str,
    revision: str | None = None,
    *,
    expected: PreTrainedConfig | None = None,
    use_safetensors: bool = True,
    **hub_kwargs,
) -> tuple[PreTrainedModel, str | None]:
    """Load a pre-trained backbone in float32, from the Hub, a folder, or the package ("embedded").

    Of a model with an image and a text half (CLIP, SigLIP) the image half is loaded.

    Args:
        name_or_path: Hub id, folder, or "embedded".
        revision: branch, tag or commit on the Hub.
        expected: the config that the backbone must have, compared before its weights are loaded. Default: any.
        use_safetensors: False reads pickled weights, as in transformers. Default: safetensors only.

    Returns:
        The model and the commit that the revision stands for (None for folders).

    Raises:
        ValueError: when config and weights do not fit each other, or not the config expected; the field is named.
        OSError: when the backbone or its weights are not found.
    """
    from transformers import AutoModel

    name_or_path = local_name(name_or_path)
    cached = {key: value for key, value in hub_kwargs.items() if key != "force_download"}  # once is enough
    revision = resolve_revision(name_or_path, revision, **cached)
    content = read_base_config(name_or_path, revision, hub_kwargs, FAMILIES)
    config = _build_config(content, name_or_path, revision, cached)
    family = family_of(config)
    if expected is not None:
        check_same_backbone(expected, config, str(name_or_path))
    check_backbone_sizes(config.to_dict(), f"config.json of {str(name_or_path)!r}")
    check_no_adapter(name_or_path, revision, hub_kwargs)
    if use_safetensors:
        check_base_weights(name_or_path, revision, hub_kwargs, config, lambda: build_backbone(config, "sdpa"))
    fetch = cached if use_safetensors else hub_kwargs
    try:
        backbone = AutoModel._model_mapping[type(config)].from_pretrained(
            name_or_path, config=config, revision=revision, dtype=torch.float32, use_safetensors=use_safetensors,
            trust_remote_code=False, **family.init_kwargs, **fetch,
        )  # fmt: skip
    except RuntimeError as error:  # transformers' word for tensors of other shapes than the config's
        raise ValueError(f"The weights of {str(name_or_path)!r} do not fit its config.json: {error}") from error
    return backbone, getattr(revision, "resolved", revision)


def weights_fingerprint(backbone: PreTrainedModel, with_pooler: bool = False) -> str:
    """SHA-256 over names, shapes and float32 values of a backbone's weights, in the order of their names.

    Args:
        backbone: of a supported family.
        with_pooler: count the weights of a pooler that the family has no use for, as early checkpoints do whose
            backbone was handed in with one. `load_backbone` loads none.
    """
    digest = hashlib.sha256()
    unused = "pooler." if family_of(backbone.config).init_kwargs == NO_POOLER and not with_pooler else None
    for name, tensor in sorted(backbone.state_dict().items()):
        if unused and name.startswith(unused):
            continue
        tensor = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.view(-1).numpy()).cast("B"))
    return digest.hexdigest()
