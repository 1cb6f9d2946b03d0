"""OVOR (Huang et al., ICLR 2024, arXiv 2402.04129): one prompt for all tasks, and a head held back off the data.

Virtual outliers are drawn around the features at the rim of the current task's classes. The head is to give real
features a large score and outliers a small one, so that a class's score falls off where its images end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .base import PromptMethod

GENERAL_LAYERS = 2


class OnePromptWithOutliers(PromptMethod):
    """Prompts of `general_length` in the first two layers and `expert_length` in the others, shared by all tasks."""

    defaults = {
        "general_length": 5, "expert_length": 20, "outlier_coef": 0.1, "outlier_share": 0.25, "outlier_noise": 0.5,
        "margin": 1.0,
    }  # fmt: skip

    @classmethod
    def checks(cls, settings):
        return [("outlier_share", settings["outlier_share"] <= 1, "a share, at most 1")]

    def __init__(self, config, head_shape):
        super().__init__(config, head_shape)
        width = self.heads * self.head_dim
        lengths = [
            self.settings["general_length" if position < GENERAL_LAYERS else "expert_length"]
            for position in range(len(self.prompt_layers))
        ]
        self.prompts = nn.ParameterList(torch.empty(2, length, width) for length in lengths)

    def reset_parameters(self):
        for prompt in self.prompts:
            init.uniform_(prompt, -1, 1)

    def prefixes(self, position: int, chosen):
        keys, values = self.split_heads(self.prompts[position]).unsqueeze(1)  # (1, H, P, d) each
        return keys, values

    def loss(self, features: Tensor, labels: Tensor, head: nn.Linear, first: int, chosen=None) -> Tensor:
        """Hold the head's best score above a margin on the data, and below its negative on the outliers."""
        features = features.detach().to(head.weight.dtype)
        outliers, apart = self.outliers(features, labels)
        real, virtual = (
            F.linear(x, head.weight[first:], head.bias[first:]).amax(dim=-1) for x in (features, outliers)
        )
        margin = self.settings["margin"]
        of_virtual = (F.relu(margin + virtual).square() * apart).sum() / apart.sum().clamp(min=1)
        return self.settings["outlier_coef"] * (F.relu(margin - real).square().mean() + of_virtual)

    def outliers(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Noise around the features that are farthest from their class's mean in the batch.

        Args:
            features: (B, D).
            labels: (B,).

        Returns:
            Outliers (R, D), and (R,) 1 for each but 0 where the feature is the only one of its class in the batch:
            nothing says there which way is out, and the outlier would be the feature itself.
        """
        same = (labels.unsqueeze(1) == labels).to(features.dtype)  # (B, B)
        deviation = features - same @ features / same.sum(dim=1, keepdim=True)
        rim = deviation.norm(dim=-1).topk(max(1, round(self.settings["outlier_share"] * len(features)))).indices
        spread = deviation.square().mean(dim=0).sqrt()  # (D,)
        away = deviation[rim] + self.settings["outlier_noise"] * spread * torch.randn_like(features[rim])
        return features[rim] + away, (same.sum(dim=1)[rim] > 1).to(features.dtype)
