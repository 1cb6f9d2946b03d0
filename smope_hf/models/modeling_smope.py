"""SMoPE for image classification: a frozen ViT whose attention layers share sparse prefix experts."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..storage.checkpoint_guard import check_adapter, check_depth
from . import prefix_experts
from .backbones import head_shape
from .configuration_smope import SMoPEConfig
from .modeling_incremental import IncrementalClassifier
from .modeling_outputs import SMoPEImageClassifierOutput
from .prefix_experts import PrefixExperts, RoutedPass
from .random_routing import RandomExperts


class RoutingMode(threading.local):
    """How the passes that a thread begins route the images; None for what the experts say themselves."""

    def __init__(self):
        self.dense: bool | None = None
        self.routing: str | None = None

    def __reduce__(self):
        return RoutingMode, ()  # a copy is of the model, not of what a thread is about


class SMoPEForImageClassification(IncrementalClassifier):
    """A frozen ViT that learns classes task after task through prefix experts and a growing linear head.

    Args:
        config: a [`SMoPEConfig`]; the backbone gets random weights. For pre-trained ones see `from_backbone`.
        backbone: a ready backbone that fits `config.backbone_config`; used as it is, and frozen.
    """

    config_class = SMoPEConfig
    config: SMoPEConfig
    ATTENTION = {"sdpa": prefix_experts.FUSED, "eager": prefix_experts.PLAIN}
    BINDING = prefix_experts.BINDING
    OUTPUT = SMoPEImageClassifierOutput
    records_usage = True
    losses = ("loss", "cross_entropy", "router_loss", "prototype_loss")

    def __init__(self, config: SMoPEConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config, backbone)
        self.mode = RoutingMode()
        heads, head_dim = head_shape(config.backbone_config)
        shape = (heads, head_dim, config.num_experts, config.top_k, config.noise_epsilon, config.routing)
        at_random = config.routing == "random"
        self.prefix_experts = nn.ModuleList(
            RandomExperts(layer, *shape) if at_random else PrefixExperts(*shape) for layer in config.prompt_layers
        )
        for layer, experts in zip(config.prompt_layers, self.prefix_experts, strict=True):
            self.bind(layer, experts)
        self.complete()

    @classmethod
    def check_own_weights(cls, header: dict, config: SMoPEConfig, file):
        check_depth(len(config.prompt_layers), len(header), file, "the number of prompt_layers")
        check_adapter(header, config, head_shape(config.backbone_config), file)

    def _init_weights(self, module: nn.Module):
        if isinstance(module, PrefixExperts):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def warm_up(self) -> contextlib.AbstractContextManager:
        """The first task's dense epochs: step 4."""
        return self.dense_routing()

    @contextlib.contextmanager
    def dense_routing(self) -> Iterator[None]:
        """Step 4: every expert is on for every image, and there is no router loss.

        For the passes that this thread begins.
        """
        yield from self._in_mode(dense=True)

    @contextlib.contextmanager
    def raw_routing(self) -> Iterator[None]:
        """Evaluation by the raw scores alone, for the pass that counts usage.

        On the images it runs over this equals what masked routing gives once they have been counted: whatever is
        among an image's top K then has a count above 0 and no penalty, and penalties only push others down.
        For the passes that this thread begins.
        """
        yield from self._in_mode(routing="unmasked")

    def _in_mode(self, **settings) -> Iterator[None]:
        before = {name: getattr(self.mode, name) for name in settings}
        vars(self.mode).update(settings)
        try:
            yield
        finally:
            vars(self.mode).update(before)

    @torch.no_grad()
    def update_usage(self, router_scores: Sequence[Tensor]):
        """Step 5: add one batch to the usage counts.

        Args:
            router_scores: L tensors (B, H, E) of raw scores, from a pass in evaluation mode.
        """
        for experts, scores in zip(self.prefix_experts, router_scores, strict=True):
            experts.update_usage(scores)

    def before_task(self, index: int):
        """Step 6: from the second task on, mark experts and remember their keys.

        Raises:
            RuntimeError: when the usage of the task before was never counted.
        """
        if index == 0:
            return
        if not all(bool(experts.usage_counts.any()) for experts in self.prefix_experts):
            raise RuntimeError(
                "begin_task needs the expert usage of the task before, and none was counted. Run the training "
                "images of that task through the model in eval mode and give the router scores to update_usage()."
            )
        for experts in self.prefix_experts:
            experts.begin_task()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_router_scores: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> SMoPEImageClassifierOutput | tuple[Tensor, ...]:
        """As [`ForwardPass.forward`]; the losses are those of docs/method.md, steps 7 to 9.

        Args:
            output_router_scores: also return the scores and selected experts; default from the config.
        """
        return self._forward(
            pixel_values,
            labels,
            output_hidden_states,
            output_attentions,
            interpolate_pos_encoding,
            return_dict,
            output_noted=self._asked(output_router_scores, "output_router_scores"),
        )

    def prepare_parts(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None) -> RoutedPass:
        return RoutedPass(self.mode.dense, self.mode.routing)

    def collect_parts(self, running: RoutedPass) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Each layer's scores and selected experts."""
        scores, selected = zip(*running.collect(self.prefix_experts), strict=True)
        return scores, selected

    def own_outputs(self, noted) -> dict:
        scores, selected = noted
        return {"router_scores": scores, "selected_experts": None if selected[0] is None else selected}

    def add_losses(self, cross_entropy: Tensor, pooled: Tensor, labels: Tensor, noted) -> dict[str, Tensor]:
        scores, selected = noted
        zero = cross_entropy.new_zeros(())
        routed = [(e, s, k) for e, s, k in zip(self.prefix_experts, scores, selected, strict=True) if k is not None]
        router_loss = sum((experts.router_loss(s, k) for experts, s, k in routed), zero)
        prototype_loss = zero
        if len(self.config.tasks) > 1:
            prototype_loss = sum((experts.prototype_loss() for experts in self.prefix_experts), zero)
        config = self.config
        loss = cross_entropy + config.router_loss_coef * router_loss + config.prototype_loss_coef * prototype_loss
        return dict(loss=loss, cross_entropy=cross_entropy, router_loss=router_loss, prototype_loss=prototype_loss)
