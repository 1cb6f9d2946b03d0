"""What every model here has: a frozen ViT under a linear head that grows with the classes."""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ..base.home import expanded
from ..settings.class_names import check_alike, check_class_names, one_form
from ..storage.config_guard import check_class_count
from .backbones import EMBEDDED, build_backbone, family_of, load_backbone, weights_fingerprint
from .forward_pass import ForwardPass
from .incremental_head import IncrementalHead
from .pretrained import AdapterCheckpointMixin
from .running_pass import Pass, checkpoint_in_pass


class Binding:
    """What one model has put into its backbone's attention; a backbone holds that of its newest model alone."""

    def __init__(self):
        self.places: list[tuple[nn.Module, str]] = []

    def put(self, module: nn.Module, name: str, part: nn.Module | int):
        module.__dict__[name] = part  # not registered: the backbone's tree stays as it is
        self.places.append((module, name))

    def release(self):
        for module, name in self.places:
            module.__dict__.pop(name, None)


class IncrementalClassifier(ForwardPass, AdapterCheckpointMixin, PreTrainedModel):
    """A ViT and a growing linear head; a subclass puts something trainable into the attention of some layers.

    A subclass sets `ATTENTION`, the names in transformers' AttentionInterface of its fused and plain attention, calls
    `bind(layer, part)` for each attention module that has a part of its own, and `complete()` at the end. What it adds
    to the forward pass is in [`ForwardPass`].

    A backbone serves one model: a new model on it takes it over, and a model that had it before can no longer run.

    Args:
        config: with `backbone_config`, `pooling` and `tasks`; the backbone gets random weights.
        backbone: a ready backbone that fits `config.backbone_config`; used as it is, and frozen.
    """

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"classifier", "prefix_experts", "prompts"}
    _keep_in_fp32_modules = _keep_in_fp32_modules_strict  # which quantizers leave as they are

    BINDING: str  # where an attention module finds its part
    records_usage = False  # whether `update_usage` has something to count
    closed_form: str | None = None  # "ncm" or "lda": the head is set from class statistics, and nothing is trained
    trains_backbone = False
    losses = ("loss", "cross_entropy")  # of the output, for the log

    def __init__(self, config, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        attention = self._attention_name(config._attn_implementation)
        self.family = family_of(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config, attention) if backbone is None else backbone
        self.binding = self._take_over()
        self.backbone.config._attn_implementation_internal = attention
        config.backbone_config = self.backbone.config

    def complete(self):
        """The last step of a subclass's `__init__`: the head, and the initial weights of all that is new."""
        self.classifier = IncrementalHead(self.config.hidden_size, self.config.num_labels)
        self.freeze_backbone()
        self.post_init()

    def bind(self, layer: int, part: nn.Module | int):
        """Let a layer's attention find its part, without registering that in the backbone's tree.

        Args:
            layer: the backbone's number of the layer.
            part: itself, or its number among those that each pass brings along.
        """
        self.binding.put(self.family.attention_modules(self.backbone)[layer], self.BINDING, part)

    def _take_over(self) -> Binding:
        before = self.backbone.__dict__.get("smope_binding")
        if before is not None:
            before.release()
        self.backbone.smope_binding = Binding()
        return self.backbone.smope_binding

    def _check_not_taken_over(self):
        if getattr(self.backbone, "smope_binding", None) is not self.binding:
            raise RuntimeError(
                f"This {type(self).__name__} has lost its backbone: another model was made on the same backbone "
                "object later, and its attention would run here. Give each model a backbone of its own: load it once "
                "for each, or make the models with from_backbone(copy.deepcopy(backbone), ...)."
            )

    def _apply(self, fn, recurse=True):
        """As in torch, but `half()` and `to(torch.bfloat16)` reach the backbone alone, as in `from_pretrained`.

        A closed-form head weighs small directions up and keys decide a choice: neither survives such rounding.
        """
        for name, child in self.named_children() if recurse else ():
            child._apply(fn if name == self.base_model_prefix else functools.partial(_unless_halved, fn))
        return super()._apply(fn, recurse=False)

    def freeze_backbone(self):
        """Make everything but the backbone trainable."""
        self.backbone.requires_grad_(False)

    def prompt_parameters(self) -> list[nn.Parameter]:
        """What is trained at the prefixes' learning rate: all that is trained but the head."""
        named = self.named_parameters()
        return [value for name, value in named if value.requires_grad and not name.startswith("classifier.")]

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PreTrainedModel,
        *,
        revision: str | None = None,
        attn_implementation: str | None = None,
        use_safetensors: bool = True,
        **config_fields,
    ):
        """A fresh model on a pre-trained backbone; only prompts and head are new.

        Args:
            backbone: Hub id, folder, "embedded", or a loaded model (which is frozen and used as it is, by this model
                alone: one made on it before raises a RuntimeError in its next pass). Of a folder the absolute path is
                recorded, so that checkpoints load from any working directory.
            revision: branch, tag or commit of a Hub id; the commit it stands for is recorded. A loaded model does not
                tell its commit: give it here where the new model is to be pushed without its backbone.
            attn_implementation: "sdpa" (default, fused) or "eager" (plain).
            use_safetensors: False also takes a base model whose only weights are pickles; default no pickle is read.
            **config_fields: fields of the model's config, for example `num_experts=25`.

        Raises:
            ValueError: for a backbone family that is not supported or a wrong field.
        """
        if isinstance(backbone, str):
            name = expanded(backbone)
            backbone, revision = load_backbone(name, revision, use_safetensors=use_safetensors)
        else:
            name = backbone.config.name_or_path or None
        if name is not None and name != EMBEDDED and os.path.isdir(name):
            name = os.path.abspath(name)
        config = cls.config_class(
            backbone_config=backbone.config,
            base_model_name_or_path=name,
            base_model_revision=revision,
            base_model_fingerprint=weights_fingerprint(backbone) if name else None,
            attn_implementation=attn_implementation,
            **config_fields,
        )
        model = cls(config, backbone=backbone)
        model.probe_backbone()
        return model

    @classmethod
    def _attention_name(cls, attn_implementation: str | None) -> str:
        if attn_implementation not in cls.ATTENTION:
            raise ValueError(
                f"attn_implementation = {attn_implementation!r} is not allowed: it would run the backbone without its "
                f"experts. Allowed: {tuple(cls.ATTENTION)}."
            )
        return cls.ATTENTION[attn_implementation]

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False):
        """Choose "sdpa" (the fused form) or "eager" (the plain one); both run the whole model.

        Raises:
            ValueError: for any other implementation, which would run the backbone alone.
            RuntimeError: when another model has taken over the backbone.
        """
        self._check_not_taken_over()
        if isinstance(attn_implementation, dict):
            if set(attn_implementation) - {"", "backbone_config"} or len(set(attn_implementation.values())) != 1:
                raise ValueError(
                    f"attn_implementation = {attn_implementation!r} is not allowed. Allowed: one of "
                    f"{tuple(self.ATTENTION)} for the whole model."
                )
            (attn_implementation,) = set(attn_implementation.values())
        name = self._attention_name(attn_implementation)
        self.config._attn_implementation_internal = attn_implementation
        self.backbone.config._attn_implementation_internal = name

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **kwargs):
        """As in transformers, non-reentrant only: a reentrant checkpoint would lose the prompts' gradients."""
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError(
                "use_reentrant = True is not allowed: the frozen backbone's inputs need no gradient, so a reentrant "
                "checkpoint would give the experts none. Allowed: use_reentrant = False (the default)."
            )
        super().activation_checkpointing_enable({"use_reentrant": False}, **kwargs)

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, **kwargs):
        """As in transformers, where the backward pass runs in threads of its own, which know nothing of a pass."""
        checkpoint_layer = functools.partial(checkpoint_in_pass, gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, checkpoint_layer, **kwargs)

    @torch.no_grad()
    def backbone_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None) -> Tensor:
        """Pooled features of the backbone alone, without prompts: (B, 3, height, width) -> (B, D).

        In training as in evaluation: a backbone's own dropout and drop path are off.
        """
        training = [module for module in self.backbone.modules() if module.training]
        self.backbone.eval()
        try:
            tokens = self._run_backbone(Pass(bare=True), pixel_values, interpolate_pos_encoding).last_hidden_state
        finally:
            for module in training:
                module.training = True
        return self.family.pool(self.backbone, tokens, self.config.pooling)

    # ------------------------------------------------------------------ what a trainer calls

    def warm_up(self) -> contextlib.AbstractContextManager | None:
        """Context of the dense epochs of the first task; None for a method that has none."""
        return None

    @contextlib.contextmanager
    def raw_routing(self) -> Iterator[None]:
        """Context of the pass that takes statistics."""
        yield

    @torch.no_grad()
    def begin_task(self, class_names: Sequence[str]):
        """Make room for new classes.

        The head's old rows stay bit-equal; new ones are drawn from torch's generator.

        Args:
            class_names: the new classes, in the order of their ids; they are kept in one Unicode form (NFC).

        Raises:
            TypeError: when the names are not a sequence of text.
            ValueError: for no class, a class already known, or one named twice, or by nothing that can be seen; the
                message names it. Also for more than 100,000 classes in all.
        """
        known, names = self.config.label2id, list(class_names)
        check_class_count(len(known) + len(names))
        if isinstance(class_names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"class_names = {class_names!r} is not allowed. Give a list of text, one for each class.")
        names = [one_form(name) for name in names]
        forms = {one_form(name) for name in known}  # an older checkpoint may have another
        repeated = [name for name, times in Counter(names).items() if times > 1 or name in forms]
        if not names or repeated:
            raise ValueError(
                f"begin_task got {'the classes ' + repr(repeated) + ' again' if repeated else 'no class'}. Give at "
                f"least one class name, and only names the model does not know; it knows {len(known)}."
            )
        check_class_names(dict(enumerate(names)), "begin_task", "Give each class a name that can be read.")
        check_alike(names, "begin_task", known)
        self.before_task(len(self.config.tasks))
        first = len(known)
        self.classifier = self.classifier.grown(len(names))
        self.config.id2label = {**self.config.id2label, **dict(enumerate(names, first))}
        self.config.label2id = {name: index for index, name in self.config.id2label.items()}
        self.config.tasks = [*self.config.tasks, list(range(first, first + len(names)))]

    def before_task(self, index: int):
        """What changes when task `index` (from 0) begins, before the head grows."""


def _unless_halved(fn, tensor: Tensor) -> Tensor:
    """What `fn` makes of a tensor, but for a lower precision: then the tensor as it was, where `fn` puts it."""
    result = fn(tensor)
    halved = result.is_floating_point() and result.dtype.itemsize < min(4, tensor.dtype.itemsize)
    return tensor.to(result.device) if halved else result
