"""Configuration of a SMoPE model."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .backbones import family_of
from .config_guard import check_config


@strict
class SMoPEConfig(PreTrainedConfig):
    r"""Configuration of [`SMoPEForImageClassification`]: a frozen ViT and the experts in its attention layers.

    Args:
        backbone_config: config of the backbone, of any family in `smope_hf.backbones.FAMILIES`; default a ViT-B/16.
        base_model_name_or_path: Hub id, folder, or "embedded": where the backbone's weights come from.
        base_model_revision: the commit of the base model that the experts were trained on.
        base_model_fingerprint: SHA-256 of the base model's weights; loading refuses any other base.
        prompt_layers: indices of the layers with experts, without repetition; default the first half of the layers.
        num_experts: prefix experts per head, at least 1.
        top_k: experts that an image switches on per head, 1 to `num_experts` (also named `num_experts_per_tok`).
        noise_epsilon: share of the score range that frequently used experts lose in training, 0 to 1.
        router_loss_coef: weight of the router loss, at least 0.
        prototype_loss_coef: weight of the prototype loss, at least 0.
        routing: "masked" keeps experts that were never used out of evaluation, "unmasked" does not (as published).
        pooling: "cls" or "mean" over the patches; default what the backbone offers first.
        tasks: class ids of each task in the order learned; ids count up from 0 over all tasks.
        output_router_scores: return the scores of every prompt layer from every forward pass.

    Raises:
        ValueError: for a value outside what is allowed; the message names the field, the value and what is allowed.
    """

    model_type = "smope"
    attribute_map = {"num_experts_per_tok": "top_k"}
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}
    keys_to_ignore_at_inference = [
        "cross_entropy",
        "router_loss",
        "prototype_loss",
        "pooled_output",
        "router_scores",
        "selected_experts",
        "hidden_states",
        "attentions",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_model_fingerprint: str | None = None
    prompt_layers: list[int] | tuple[int, ...] | None = None
    num_experts: int = 25
    top_k: int = 5
    noise_epsilon: float | int = 0.4
    router_loss_coef: float | int = 1e-5
    prototype_loss_coef: float | int = 1e-5
    routing: Literal["masked", "unmasked"] = "masked"
    pooling: Literal["cls", "mean"] | None = None
    tasks: list[list[int]] | None = None
    output_router_scores: bool = False

    def __post_init__(self, **kwargs):
        if kwargs.get("num_labels") is None:
            kwargs["num_labels"] = len(self.id2label or [index for task in self.tasks or [] for index in task])
        super().__post_init__(**kwargs)
        if self.tasks is None:
            self.tasks = [list(range(self.num_labels))] if self.num_labels else []
        if self.label2id is None or len(self.label2id) != len(self.id2label):
            self.label2id = {name: index for index, name in self.id2label.items()}
        family = family_of(self.backbone_config)
        if self.prompt_layers is None:
            self.prompt_layers = list(range(max(1, self.backbone_config.num_hidden_layers // 2)))
        self.prompt_layers = list(self.prompt_layers)
        if self.pooling is None:
            self.pooling = family.poolings(self.backbone_config)[0]

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "SMoPEConfig":
        """As in transformers, once the content has no number or text that would take memory or fail without a name.

        Raises:
            ValueError: naming the field, the value and what is allowed.
        """
        check_config(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict:
        """As in transformers, without the folder that the backbone was loaded from: a checkpoint may be shared."""
        content = super().to_dict()
        content["backbone_config"].pop("_name_or_path", None)
        return content

    @property
    def hidden_size(self) -> int:
        """Size D of the pooled feature."""
        return self.backbone_config.hidden_size

    def validate_experts(self):
        """Check the experts' number, selection and noise."""
        _check("num_experts", self.num_experts, self.num_experts >= 1, "at least 1")
        _check(
            "top_k",
            self.top_k,
            1 <= self.top_k <= self.num_experts,
            f"between 1 and num_experts = {self.num_experts}",
        )
        _check("noise_epsilon", self.noise_epsilon, 0 <= self.noise_epsilon <= 1, "between 0 and 1")

    def validate_losses(self):
        """Check the weights of the routing losses."""
        for name in ("router_loss_coef", "prototype_loss_coef"):
            value = getattr(self, name)
            _check(name, value, math.isfinite(value) and value >= 0, "finite and at least 0")

    def validate_prompt_layers(self):
        """Check that every prompt layer exists once."""
        layers, depth = self.prompt_layers, self.backbone_config.num_hidden_layers
        _check("prompt_layers", layers, len(layers) > 0, "at least one layer")
        _check("prompt_layers", layers, len(set(layers)) == len(layers), "each layer once")
        _check(
            "prompt_layers",
            layers,
            all(0 <= layer < depth for layer in layers),
            f"layers 0 to {depth - 1}: the backbone has {depth}",
        )

    def validate_pooling(self):
        """Check that the backbone offers the pooling."""
        allowed = family_of(self.backbone_config).poolings(self.backbone_config)
        _check("pooling", self.pooling, self.pooling in allowed, f"one of {allowed} for this backbone")

    def validate_class_names(self):
        """Check that every class has a name of its own."""
        names = list(self.id2label.values())
        fits = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        _check("id2label", self.id2label, fits, "text, different for each class")
        back = {name: index for index, name in self.id2label.items()}
        _check("label2id", self.label2id, self.label2id == back, "the reverse of id2label")

    def validate_tasks(self):
        """Check that the tasks list every class id once, in the order of the ids."""
        ids = [index for task in self.tasks for index in task]
        _check("tasks", self.tasks, all(self.tasks), "at least one class in every task")
        _check(
            "tasks",
            self.tasks,
            ids == list(range(len(self.id2label))) == sorted(self.id2label),
            f"the ids 0 to {len(self.id2label) - 1} of id2label, each once and in order",
        )


def _check(name: str, value, allowed: bool, what_is_allowed: str):
    if not allowed:
        raise ValueError(f"SMoPEConfig.{name} = {value!r} is not allowed. Allowed: {what_is_allowed}.")
