"""L2P++ (Wang et al., CVPR 2022, arXiv 2112.08654, in the deep prefix form that CODA-Prompt compares with).

A pool of prompts with one key each; an image takes the prompts whose keys are nearest to its query. Each image selects
for itself: the published code lets the whole batch vote, which makes a prediction depend on its neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .base import PromptMethod


class DeepL2P(PromptMethod):
    """A pool of `pool_size` prompts of `length` keys and values in every prompt layer; `top_k` are used."""

    defaults = {"pool_size": 30, "length": 20, "top_k": 5, "pull_coef": 0.1}
    needs_query = True

    @classmethod
    def checks(cls, settings):
        size = settings["pool_size"]
        return [("top_k", settings["top_k"] <= size, f"at most pool_size = {size}")]

    def __init__(self, config, head_shape):
        super().__init__(config, head_shape)
        size, length = self.settings["pool_size"], self.settings["length"]
        width = self.heads * self.head_dim
        self.keys = nn.Parameter(torch.empty(size, width))  # (S, D), one set for all layers
        self.prompts = nn.Parameter(torch.empty(len(self.prompt_layers), size, 2, length, width))

    def reset_parameters(self):
        init.uniform_(self.keys, -1, 1)
        init.uniform_(self.prompts, -1, 1)

    def choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """The prompts whose keys are nearest, and their distances: (B, D) -> (B, K), (B, K)."""
        similarity = F.normalize(query, dim=-1) @ F.normalize(self.keys, dim=-1).T  # (B, S)
        nearest = similarity.topk(self.settings["top_k"], dim=-1)
        return nearest.indices, 1 - nearest.values

    def prefixes(self, position: int, chosen: tuple[Tensor, Tensor]):
        prompts = self.split_heads(self.prompts[position])[chosen[0]]  # (B, K, 2, H, length, d)
        keys, values = prompts.permute(2, 0, 3, 1, 4, 5).flatten(3, 4)  # (B, H, K * length, d) each
        return keys, values

    def loss(self, features: Tensor, labels: Tensor, head: nn.Linear, first: int, chosen) -> Tensor:
        """Pull the selected keys towards the queries that selected them."""
        return self.settings["pull_coef"] * chosen[1].sum(dim=-1).mean()
