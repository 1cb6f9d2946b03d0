"""Configuration of a SMoPE model."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ..base.named_settings import MAX_EXPERTS, MAX_NUMBER
from .configuration_incremental import IncrementalConfig


@strict
class SMoPEConfig(IncrementalConfig):
    r"""Configuration of [`SMoPEForImageClassification`]: a frozen ViT and the experts in its attention layers.

    Args:
        backbone_config: config of a family in `smope_hf.models.backbones.FAMILIES`. Default: a ViT-B/16.
        base_model_name_or_path: Hub id, folder, or "embedded": where the backbone's weights come from.
        base_model_revision: the commit of the base model that the experts were trained on.
        base_model_fingerprint: SHA-256 of the base model's weights; loading refuses any other base.
        prompt_layers: indices of the layers with experts, without repetition; default the first half of the layers.
        num_experts: prefix experts per head, 1 to 16384.
        top_k: experts that an image switches on per head, 1 to `num_experts` (also named `num_experts_per_tok`).
        noise_epsilon: share of the score range that frequently used experts lose in training, 0 to 1.
        router_loss_coef: weight of the router loss, at least 0.
        prototype_loss_coef: weight of the prototype loss, at least 0.
        routing: "masked" keeps experts that were never used out of evaluation, "unmasked" does not (as published);
            "random" is the ablation that never selects by the keys: `smope_hf.models.random_routing.RandomExperts`.
        pooling: "cls" or "mean" over the patches; default what the backbone offers first.
        tasks: class ids of each task in the order learned; ids count up from 0 over all tasks.
        output_router_scores: return the scores of every prompt layer from every forward pass.

    Raises:
        ValueError: for a value outside what is allowed; the message names the field, the value and what is allowed.
    """

    model_type = "smope"
    attribute_map = {"num_experts_per_tok": "top_k"}
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

    num_experts: int = 25
    top_k: int = 5
    noise_epsilon: float | int = 0.4
    router_loss_coef: float | int = 1e-5
    prototype_loss_coef: float | int = 1e-5
    routing: Literal["masked", "unmasked", "random"] = "masked"
    output_router_scores: bool = False

    def validate_experts(self):
        """Check the experts' number, selection and noise."""
        self.check("num_experts", self.num_experts, 1 <= self.num_experts <= MAX_EXPERTS, f"1 to {MAX_EXPERTS}")
        self.check(
            "top_k",
            self.top_k,
            1 <= self.top_k <= self.num_experts,
            f"between 1 and num_experts = {self.num_experts}",
        )
        self.check("noise_epsilon", self.noise_epsilon, 0 <= self.noise_epsilon <= 1, "between 0 and 1")

    def validate_losses(self):
        """Check the weights of the routing losses."""
        for name in ("router_loss_coef", "prototype_loss_coef"):
            value = getattr(self, name)
            self.check(name, value, 0 <= value <= MAX_NUMBER, "finite and at least 0")
