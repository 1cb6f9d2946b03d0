"""What a SMoPE model gives back."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class SMoPEImageClassifierOutput(ModelOutput):
    """What a forward pass gives. L prompt layers, B images, H heads, E experts, K selected, C classes seen.

    Args:
        loss: total loss of docs/method.md, step 9; with labels only.
        logits: (B, C).
        cross_entropy: over the current task's classes only; with labels only.
        router_loss: unweighted; with labels only, 0 in dense mode.
        prototype_loss: unweighted; with labels only, 0 while no expert is marked.
        pooled_output: (B, D), the feature that the head classifies.
        router_scores: L tensors (B, H, E), raw scores; on request.
        selected_experts: L tensors (B, H, K); with the router scores, except in dense mode.
        hidden_states: on request, as the backbone gives them.
        attentions: on request; a prompt layer's has the K selected experts' columns before those of the N tokens.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cross_entropy: Tensor | None = None
    router_loss: Tensor | None = None
    prototype_loss: Tensor | None = None
    pooled_output: Tensor | None = None
    router_scores: tuple[Tensor, ...] | None = None
    selected_experts: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
