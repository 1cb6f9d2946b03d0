"""The interface that a prompt method fills in; one file per method, registered in `methods`."""

from torch import Tensor, nn
from transformers import PreTrainedConfig


class PromptMethod(nn.Module):
    """A way of prompting a frozen ViT. Its parameters are trained at the prefixes' learning rate.

    A method is built from a config that says how many tasks have begun: what it holds for them has that size.

    Args:
        config: a [`PromptedConfig`]; `config.settings` holds this method's own, with `defaults` for those not given.
        head_shape: attention heads H and head size d of the backbone.
    """

    defaults: dict[str, float | int] = {}  # settings, and what they are when not given
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)  # layers with prompts by default
    needs_query = False  # whether `prefixes` wants the frozen backbone's feature of each image: a second forward pass
    trains_backbone = False
    closed_form: str | None = None  # "ncm" or "lda": the head is set from class statistics, and nothing is trained

    def __init__(self, config: PreTrainedConfig, head_shape: tuple[int, int]):
        super().__init__()
        self.heads, self.head_dim = head_shape
        self.num_tasks = len(config.tasks)
        self.prompt_layers = list(config.prompt_layers)
        self.settings = {**self.defaults, **(config.settings or {})}

    @classmethod
    def checks(cls, settings: dict[str, float | int]) -> list[tuple[str, bool, str]]:
        """What settings must be beside their kind: for each, its name, whether it is so, and what is allowed."""
        return []

    def __getstate__(self) -> dict:
        """What a copy or a pickle holds: nothing of the last batch, whose graph cannot go along."""
        return {
            name: None if isinstance(value, Tensor) and value.grad_fn is not None else value
            for name, value in self.__dict__.items()
        }

    def reset_parameters(self):
        """Draw the initial values of the method's own parameters."""

    def begin_task(self, index: int):
        """Make room for task `index`, counted from 0; called before its first step."""
        self.num_tasks = index + 1

    def prefixes(self, position: int, query: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What one layer sees before its tokens.

        Args:
            position: of the layer in `config.prompt_layers`.
            query: (B, D) features of the frozen backbone, where the method needs them.

        Returns:
            Keys and values, (B or 1, H, P, d) each, or None for no prefix. A row depends on its own image alone.
        """
        return None

    def loss(self, features: Tensor, labels: Tensor, head: nn.Linear, first: int) -> Tensor:
        """What is added to the cross-entropy of a training step; 0 by default.

        Args:
            features: pooled features (B, D).
            labels: class ids (B,).
            head: the classifier, over all classes.
            first: the current task's first class id.
        """
        return features.new_zeros(())

    def split_heads(self, prompts: Tensor) -> Tensor:
        """(..., P, D) -> (..., H, P, d)."""
        return prompts.unflatten(-1, (self.heads, self.head_dim)).movedim(-2, -3)
