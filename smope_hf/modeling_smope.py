"""SMoPE for image classification: a frozen ViT whose attention layers share sparse prefix experts."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import prefix_experts
from .backbones import build_backbone, family_of, head_shape, load_backbone, weights_fingerprint
from .configuration_smope import SMoPEConfig
from .incremental_head import IncrementalHead
from .modeling_outputs import SMoPEImageClassifierOutput
from .prefix_experts import BINDING, PrefixExperts, without_autocast
from .pretrained import AdapterCheckpointMixin

ATTENTION = {"sdpa": prefix_experts.FUSED, "eager": prefix_experts.PLAIN}


class SMoPEForImageClassification(AdapterCheckpointMixin, PreTrainedModel):
    """A frozen ViT that learns classes task after task through prefix experts and a growing linear head.

    Args:
        config: a [`SMoPEConfig`]; the backbone gets random weights. For pre-trained ones see `from_backbone`.
        backbone: a ready backbone that fits `config.backbone_config`; used as it is, and frozen.
    """

    config_class = SMoPEConfig
    config: SMoPEConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"classifier"}

    def __init__(self, config: SMoPEConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        attention = _attention_name(config._attn_implementation)
        self.family = family_of(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config, attention) if backbone is None else backbone
        self.backbone.config._attn_implementation_internal = attention
        config.backbone_config = self.backbone.config
        heads, head_dim = head_shape(config.backbone_config)
        self.prefix_experts = nn.ModuleList(
            PrefixExperts(heads, head_dim, config.num_experts, config.top_k, config.noise_epsilon, config.routing)
            for _ in config.prompt_layers
        )
        self.classifier = IncrementalHead(config.hidden_size, config.num_labels)
        self._bind_experts()
        self.freeze_backbone()
        self.post_init()

    def _bind_experts(self):
        """Let each prompt layer's attention find its experts without registering them in the backbone's tree."""
        attention_modules = self.family.attention_modules(self.backbone)
        for layer, experts in zip(self.config.prompt_layers, self.prefix_experts, strict=True):
            attention_modules[layer].__dict__[BINDING] = experts

    def freeze_backbone(self):
        """Make experts and head the only trainable parameters."""
        self.backbone.requires_grad_(False)

    def _init_weights(self, module: nn.Module):
        if isinstance(module, PrefixExperts):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PreTrainedModel,
        *,
        revision: str | None = None,
        attn_implementation: str | None = None,
        use_safetensors: bool = True,
        **config_fields,
    ) -> "SMoPEForImageClassification":
        """A fresh SMoPE model on a pre-trained backbone; only experts and head are new.

        Args:
            backbone: Hub id, folder, "embedded", or a loaded model (which is frozen and used as it is).
            revision: branch, tag or commit of a Hub id; the commit it stands for is recorded.
            attn_implementation: "sdpa" (default, fused) or "eager" (plain).
            use_safetensors: False also takes a base model whose only weights are pickles; default no pickle is read.
            **config_fields: fields of [`SMoPEConfig`], for example `num_experts=25`.

        Raises:
            ValueError: for a backbone family that is not supported or a wrong field.
        """
        if isinstance(backbone, str):
            name = backbone
            backbone, revision = load_backbone(name, revision, use_safetensors=use_safetensors)
        else:
            name = backbone.config.name_or_path or None
        config = cls.config_class(
            backbone_config=backbone.config,
            base_model_name_or_path=name,
            base_model_revision=revision,
            base_model_fingerprint=weights_fingerprint(backbone) if name else None,
            attn_implementation=attn_implementation,
            **config_fields,
        )
        return cls(config, backbone=backbone)

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False):
        """Choose "sdpa" (the fused form) or "eager" (the plain one); both run SMoPE.

        Raises:
            ValueError: for any other implementation, which would run the backbone without its experts.
        """
        if isinstance(attn_implementation, dict):
            if set(attn_implementation) - {"", "backbone_config"} or len(set(attn_implementation.values())) != 1:
                raise ValueError(
                    f"attn_implementation = {attn_implementation!r} is not allowed. Allowed: one of "
                    f"{tuple(ATTENTION)} for the whole model."
                )
            (attn_implementation,) = set(attn_implementation.values())
        name = _attention_name(attn_implementation)
        self.config._attn_implementation_internal = attn_implementation
        self.backbone.config._attn_implementation_internal = name

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **kwargs):
        """As in transformers, non-reentrant only: a reentrant checkpoint would lose the experts' gradients."""
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError(
                "use_reentrant = True is not allowed: the frozen backbone's inputs need no gradient, so a reentrant "
                "checkpoint would give the experts none. Allowed: use_reentrant = False (the default)."
            )
        super().activation_checkpointing_enable({"use_reentrant": False}, **kwargs)

    @contextlib.contextmanager
    def dense_routing(self) -> Iterator[None]:
        """Step 4: every expert is on for every image, and there is no router loss."""
        yield from self._with_experts(dense=True)

    @contextlib.contextmanager
    def raw_routing(self) -> Iterator[None]:
        """Evaluation by the raw scores alone, for the pass that counts usage.

        On the images it runs over this equals what masked routing gives once they have been counted: whatever is
        among an image's top K then has a count above 0 and no penalty, and penalties only push others down.
        """
        yield from self._with_experts(routing="unmasked")

    def _with_experts(self, **settings) -> Iterator[None]:
        before = [{name: getattr(experts, name) for name in settings} for experts in self.prefix_experts]
        try:
            for experts in self.prefix_experts:
                vars(experts).update(settings)
            yield
        finally:
            for experts, old in zip(self.prefix_experts, before, strict=True):
                vars(experts).update(old)

    @torch.no_grad()
    def backbone_features(self, pixel_values: Tensor) -> Tensor:
        """Pooled features of the frozen backbone alone, without experts: (B, 3, height, width) -> (B, D)."""
        bound = [module for module in self.family.attention_modules(self.backbone) if BINDING in module.__dict__]
        experts = [module.__dict__.pop(BINDING) for module in bound]
        try:
            tokens = self.backbone(pixel_values).last_hidden_state
        finally:
            for module, layer_experts in zip(bound, experts, strict=True):
                module.__dict__[BINDING] = layer_experts
        return self.family.pool(self.backbone, tokens, self.config.pooling)

    @torch.no_grad()
    def update_usage(self, router_scores: Sequence[Tensor]):
        """Step 5: add one batch to the usage counts.

        Args:
            router_scores: L tensors (B, H, E) of raw scores, from a pass in evaluation mode.
        """
        for experts, scores in zip(self.prefix_experts, router_scores, strict=True):
            experts.update_usage(scores)

    @torch.no_grad()
    def begin_task(self, class_names: Sequence[str]):
        """Step 6: make room for new classes and, from the second task on, mark experts and remember their keys.

        The head's old rows stay bit-equal; new ones are drawn from torch's generator.

        Args:
            class_names: the new classes, in the order of their ids.

        Raises:
            TypeError: when the names are not a sequence of text.
            ValueError: for no class, a class already known, or one named twice; the message names it.
            RuntimeError: when the usage of the task before was never counted.
        """
        known, names = self.config.label2id, list(class_names)
        if isinstance(class_names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"class_names = {class_names!r} is not allowed. Give a list of text, one for each class.")
        repeated = [name for index, name in enumerate(names) if name in known or name in names[:index]]
        if not names or repeated:
            raise ValueError(
                f"begin_task got {'the classes ' + repr(repeated) + ' again' if repeated else 'no class'}. Give at "
                f"least one class name, and only names the model does not know; it knows {len(known)}."
            )
        if self.config.tasks:
            if not all(bool(experts.usage_counts.any()) for experts in self.prefix_experts):
                raise RuntimeError(
                    "begin_task needs the expert usage of the task before, and none was counted. Run the training "
                    "images of that task through the model in eval mode and give the router scores to update_usage()."
                )
            for experts in self.prefix_experts:
                experts.begin_task()
        first = len(known)
        self.classifier = self.classifier.grown(len(names))
        self.config.id2label = {**self.config.id2label, **dict(enumerate(names, first))}
        self.config.label2id = {name: index for index, name in self.config.id2label.items()}
        self.config.tasks = [*self.config.tasks, list(range(first, first + len(names)))]

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
        """Classify images; with labels also the losses of design.md steps 7 to 9.

        Args:
            pixel_values: (B, 3, height, width), as the image processor gives them.
            labels: (B,) class ids of the current (last) task.
            output_router_scores: also return the scores and selected experts; default from the config.
            output_hidden_states: also return the backbone's hidden states.
            output_attentions: also return the attention weights; this pass then runs the plain form.
            interpolate_pos_encoding: accept another image size than the backbone's.
            return_dict: False for a plain tuple.

        Raises:
            ValueError: for labels outside the current task.
        """
        pick = self._pick
        output_attentions = pick(output_attentions, self.config.output_attentions)
        outputs = self._run_backbone(
            pixel_values,
            interpolate_pos_encoding,
            output_hidden_states=pick(output_hidden_states, self.config.output_hidden_states),
            output_attentions=output_attentions,
        )
        scores, selected = zip(*(experts.pop_route() for experts in self.prefix_experts), strict=True)
        pooled = self.family.pool(self.backbone, outputs.last_hidden_state, self.config.pooling)  # (B, D)
        with without_autocast(pooled):  # a closed-form head weighs small directions up: bfloat16 would drown in them
            logits = self.classifier(pooled.to(self.classifier.weight.dtype))  # (B, C)
        losses = {} if labels is None else self._losses(logits, labels, scores, selected)
        wants_scores = pick(output_router_scores, self.config.output_router_scores)
        result = SMoPEImageClassifierOutput(
            **losses,
            logits=logits,
            pooled_output=pooled,
            router_scores=scores if wants_scores else None,
            selected_experts=selected if wants_scores and selected[0] is not None else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if pick(return_dict, self.config.return_dict) else result.to_tuple()

    @staticmethod
    def _pick(value, default):
        return default if value is None else value

    def _run_backbone(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None, **outputs):
        kwargs = {name: True for name, wanted in outputs.items() if wanted}
        if self.family.resizes == "argument" and interpolate_pos_encoding:
            kwargs["interpolate_pos_encoding"] = True
        for experts in self.prefix_experts:
            experts.listening = True
        with self._plain_attention() if "output_attentions" in kwargs else contextlib.nullcontext():
            return self.backbone(pixel_values, **kwargs)

    @contextlib.contextmanager
    def _plain_attention(self) -> Iterator[None]:
        config = self.backbone.config
        before = config._attn_implementation
        config._attn_implementation_internal = prefix_experts.PLAIN
        try:
            yield
        finally:
            config._attn_implementation_internal = before

    def _losses(self, logits: Tensor, labels: Tensor, scores, selected) -> dict[str, Tensor]:
        first, last = self._current_classes()
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere it would synchronise
            outside = labels[(labels < first) | (labels > last)]
            if outside.numel():
                raise ValueError(
                    f"labels hold {int(outside[0])}, outside the current task's class ids {first} to {last}. Give "
                    "class ids of the last task only; call begin_task() before training on new classes."
                )
        cross_entropy = F.cross_entropy(logits[:, first:].float(), labels - first)
        zero = cross_entropy.new_zeros(())
        routed = [(e, s, k) for e, s, k in zip(self.prefix_experts, scores, selected, strict=True) if k is not None]
        router_loss = sum((experts.router_loss(s, k) for experts, s, k in routed), zero)
        prototype_loss = zero
        if len(self.config.tasks) > 1:
            prototype_loss = sum((experts.prototype_loss() for experts in self.prefix_experts), zero)
        config = self.config
        loss = cross_entropy + config.router_loss_coef * router_loss + config.prototype_loss_coef * prototype_loss
        return dict(loss=loss, cross_entropy=cross_entropy, router_loss=router_loss, prototype_loss=prototype_loss)

    def _current_classes(self) -> tuple[int, int]:
        if not self.config.tasks:
            raise ValueError("labels were given to a model without classes. Call begin_task(class_names) first.")
        return self.config.tasks[-1][0], self.config.tasks[-1][-1]


def _attention_name(attn_implementation: str | None) -> str:
    if attn_implementation not in ATTENTION:
        raise ValueError(
            f"attn_implementation = {attn_implementation!r} is not allowed: it would run the backbone without its "
            f"experts. Allowed: {tuple(ATTENTION)}."
        )
    return ATTENTION[attn_implementation]
