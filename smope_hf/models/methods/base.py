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
    needs_query = False  # whether `choose` wants the frozen backbone's feature of each image: a second forward pass
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

    def reset_parameters(self):
        """Draw the initial values of the method's own parameters."""

    def begin_task(self, index: int):
        """Make room for task `index`, counted from 0; called before its first step."""
        self.num_tasks = index + 1

    def choose(self, query: Tensor | None):
        """What the layers of one forward pass and its loss share, in any form; the query by default.

        It is kept with the pass. A method keeps nothing of a batch itself, for several threads may ask one model.

        Args:
            query: (B, D) features of the frozen backbone, where the method needs them.
        """
        return query

    def prefixes(self, position: int, chosen: object) -> tuple[Tensor, Tensor] | None:
        """What one layer sees before its tokens.

        Args:
            position: of the layer in `config.prompt_layers`.
            chosen: what `choose` gave for the images.

        Returns:
            Keys and values, (B or 1, H, P, d) each, or None for no prefix. A row depends on its own image alone.
        """
        return None

    def loss(self, features: Tensor, labels: Tensor, head: nn.Linear, first: int, chosen: object = None) -> Tensor:
        """What is added to the cross-entropy of a training step; 0 by default.

        Args:
            features: pooled features (B, D).
            labels: class ids (B,).
            head: the classifier, over all classes.
            first: the current task's first class id.
            chosen: what `choose` gave for the images.
        """
        return features.new_zeros(())

    def split_heads(self, prompts: Tensor) -> Tensor:
        """(..., P, D) -> (..., H, P, d)."""
        return prompts.unflatten(-1, (self.heads, self.head_dim)).movedim(-2, -3)
