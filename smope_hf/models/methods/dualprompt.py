"""DualPrompt (Wang et al., ECCV 2022, arXiv 2204.04799): one general prompt, and an expert prompt for each task.

The first two prompt layers share the general prompt over all tasks. The others have one prompt for each task, with a
key; in training the current task's is used, in evaluation that of the task whose key is nearest to the image's query.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .base import PromptMethod

GENERAL_LAYERS = 2


class DualPrompt(PromptMethod):
    """General prompts of `general_length` and expert prompts of `expert_length` keys and values."""

    defaults = {"general_length": 5, "expert_length": 20, "pull_coef": 1.0}
    needs_query = True

    def __init__(self, config, head_shape):
        super().__init__(config, head_shape)
        width = self.heads * self.head_dim
        general = min(GENERAL_LAYERS, len(self.prompt_layers))
        experts = len(self.prompt_layers) - general
        self.general = nn.Parameter(torch.empty(general, 2, self.settings["general_length"], width))
        self.experts = nn.ParameterList(
            torch.empty(experts, 2, self.settings["expert_length"], width) for _ in range(self.num_tasks)
        )
        self.keys = nn.ParameterList(torch.empty(width) for _ in range(self.num_tasks))

    def reset_parameters(self):
        for parameter in self.parameters():
            init.uniform_(parameter, -1, 1)

    def begin_task(self, index: int):
        """Add an expert prompt and a key; those of earlier tasks stay as they are."""
        super().begin_task(index)
        width = self.heads * self.head_dim
        shape = (len(self.prompt_layers) - len(self.general), 2, self.settings["expert_length"], width)
        for old in (*self.experts, *self.keys):
            old.requires_grad_(False)
        self.experts.append(nn.Parameter(torch.empty(shape).uniform_(-1, 1).to(self.general)))
        self.keys.append(nn.Parameter(torch.empty(width).uniform_(-1, 1).to(self.general)))

    def choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """The task whose key is nearest, and the distance of the current task's: (B, D) -> (B,), (B,)."""
        keys = F.normalize(torch.stack(list(self.keys)), dim=-1)  # (T, D)
        similarity = F.normalize(query, dim=-1) @ keys.T  # (B, T)
        return similarity.argmax(dim=-1), 1 - similarity[:, -1]

    def prefixes(self, position: int, chosen: tuple[Tensor, Tensor]):
        if position < len(self.general):
            keys, values = self.split_heads(self.general[position]).unsqueeze(1)  # (1, H, P, d) each
        elif self.training:
            keys, values = self.split_heads(self.experts[-1][position - len(self.general)]).unsqueeze(1)
        else:
            prompts = torch.stack([expert[position - len(self.general)] for expert in self.experts])  # (T, 2, P, D)
            keys, values = self.split_heads(prompts)[chosen[0]].unbind(dim=1)  # (B, H, P, d) each
        return keys, values

    def loss(self, features: Tensor, labels: Tensor, head: nn.Linear, first: int, chosen) -> Tensor:
        """Pull the current task's key towards its images' queries."""
        return self.settings["pull_coef"] * chosen[1].mean()
