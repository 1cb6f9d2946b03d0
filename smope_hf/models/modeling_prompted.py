"""A frozen ViT with a prompt method from the literature, beside which SMoPE is measured."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..storage.checkpoint_guard import FLOATING, check_shapes
from . import prefix_attention
from .backbones import head_shape
from .configuration_prompted import PromptedConfig
from .methods.base import PromptMethod
from .methods.rivals import PROMPT_METHODS
from .modeling_incremental import IncrementalClassifier
from .prefix_attention import PromptedPass
from .prefix_experts import at_least_float32, without_autocast


@dataclass
class PromptedOutput(ModelOutput):
    """What a forward pass gives. B images, C classes seen, D feature size.

    Args:
        loss: cross-entropy and the method's own loss; with labels only.
        logits: (B, C).
        cross_entropy: over the current task's classes only; with labels only.
        method_loss: what the method adds; with labels only.
        pooled_output: (B, D), the feature that the head classifies.
        hidden_states: on request, as the backbone gives them.
        attentions: on request; a prompt layer's has the prefix's columns before those of the N tokens.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cross_entropy: Tensor | None = None
    method_loss: Tensor | None = None
    pooled_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class PromptedForImageClassification(IncrementalClassifier):
    """A ViT that learns classes task after task through a prompt method and a growing linear head.

    Args:
        config: a [`PromptedConfig`]; the backbone gets random weights. For pre-trained ones see `from_backbone`.
        backbone: a ready backbone that fits `config.backbone_config`; used as it is.
    """

    config_class = PromptedConfig
    config: PromptedConfig
    ATTENTION = {"sdpa": prefix_attention.FUSED, "eager": prefix_attention.PLAIN}
    BINDING = prefix_attention.BINDING
    OUTPUT = PromptedOutput
    losses = ("loss", "cross_entropy", "method_loss")

    def __init__(self, config: PromptedConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config, backbone)
        self.prompts = PROMPT_METHODS[config.method](config, head_shape(config.backbone_config))
        for position, layer in enumerate(config.prompt_layers):
            self.bind(layer, position)
        self.complete()

    @classmethod
    def check_own_weights(cls, header: dict, config: PromptedConfig, file):
        with torch.device("meta"):
            prompts = PROMPT_METHODS[config.method](config, head_shape(config.backbone_config))
        features = ("backbone_config.hidden_size", config.hidden_size)
        classes = ("the number of classes", config.num_labels)
        expected = {
            f"prompts.{name}": (FLOATING, tuple(("settings", size) for size in value.shape))
            for name, value in prompts.state_dict().items()
        }
        expected["classifier.weight"] = (FLOATING, (classes, features))
        expected["classifier.bias"] = (FLOATING, (classes,))
        check_shapes(header, expected, file, f"method = {config.method!r} with {len(config.tasks)} tasks")

    def freeze_backbone(self):
        """Make everything but the backbone trainable; for a method that trains it, everything."""
        self.backbone.requires_grad_(self.prompts.trains_backbone)

    def _init_weights(self, module: nn.Module):
        if isinstance(module, (PromptMethod, nn.ParameterList)):  # a module without tensors of its own is not asked
            self.prompts.reset_parameters()
        else:
            super()._init_weights(module)

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone is trained too, and has to be saved."""
        return self.prompts.trains_backbone

    @property
    def closed_form(self) -> str | None:
        """How the head is set from class statistics alone, for a method that trains nothing."""
        return self.prompts.closed_form

    def before_task(self, index: int):
        self.prompts.begin_task(index)

    def prepare_parts(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None) -> PromptedPass:
        query = None
        if self.prompts.needs_query:
            query = at_least_float32(self.backbone_features(pixel_values, interpolate_pos_encoding))
        positions = range(len(self.config.prompt_layers))
        # Rounding must not choose an image's prompts. With none, the region would be empty, which no export takes.
        with without_autocast(pixel_values) if positions else contextlib.nullcontext():
            chosen = self.prompts.choose(query)
            prefixes = [self.prompts.prefixes(position, chosen) for position in positions]
        return PromptedPass(chosen, prefixes)

    def collect_parts(self, running: PromptedPass):
        """What the method has chosen for the images."""
        running.check_used()
        return running.chosen

    def add_losses(self, cross_entropy: Tensor, pooled: Tensor, labels: Tensor, noted) -> dict[str, Tensor]:
        first = self.config.tasks[-1][0]
        with without_autocast(pooled):
            extra = self.prompts.loss(at_least_float32(pooled), labels, self.classifier, first, noted)
        return {"loss": cross_entropy + extra, "cross_entropy": cross_entropy, "method_loss": extra}
