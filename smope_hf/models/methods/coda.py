"""CODA-Prompt (Smith et al., CVPR 2023, arXiv 2211.13218): every image's prompt is a weighted sum of components.

A component's weight is the cosine between the image's query, seen through the component's attention vector, and its
key. Each task adds components, orthogonal at the start to all there are; those of earlier tasks are frozen.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .base import PromptMethod

KINDS = ("attention", "keys", "prompts")


class CodaPrompt(PromptMethod):
    """`components_per_task` new components for each task and layer; a prompt has `length` / 2 keys and values."""

    defaults = {"components_per_task": 10, "length": 8, "ortho_coef": 0.0}
    needs_query = True

    @classmethod
    def checks(cls, settings):
        return [("length", settings["length"] % 2 == 0, "an even number: half of it are keys, half values")]

    def __init__(self, config, head_shape):
        super().__init__(config, head_shape)
        groups = range(self.num_tasks)
        self.attention = nn.ParameterList(torch.empty(self.shape("attention")) for _ in groups)
        self.keys = nn.ParameterList(torch.empty(self.shape("keys")) for _ in groups)
        self.prompts = nn.ParameterList(torch.empty(self.shape("prompts")) for _ in groups)

    def shape(self, kind: str) -> tuple[int, ...]:
        """Of one task's components: (L, C, D) for attention and keys, (L, C, length * D) for prompts."""
        width = self.heads * self.head_dim * (self.settings["length"] if kind == "prompts" else 1)
        return len(self.prompt_layers), self.settings["components_per_task"], width

    def reset_parameters(self):
        for kind in KINDS:
            for group in getattr(self, kind):
                init.copy_(group, orthogonal_to([], self.shape(kind)))

    def begin_task(self, index: int):
        """Add components, orthogonal to those there are, which are trained no more."""
        super().begin_task(index)
        for kind in KINDS:
            groups = getattr(self, kind)
            for old in groups:
                old.requires_grad_(False)
            new = orthogonal_to([*groups], self.shape(kind))
            groups.append(nn.Parameter(new.to(groups[0]) if len(groups) else new))

    def prefixes(self, position: int, query: Tensor):
        attention, keys, prompts = (
            torch.cat([group[position] for group in getattr(self, kind)]) for kind in KINDS
        )  # (C, D), (C, D), (C, length * D)
        # cosine of query * attention and key, without a (B, C, D) tensor
        seen = query.square() @ attention.square().T  # (B, C), squared norms
        weights = query @ (attention * F.normalize(keys, dim=-1)).T / seen.sqrt().clamp(min=1e-12)  # (B, C)
        prompt = (weights @ prompts).unflatten(-1, (2, self.settings["length"] // 2, -1))  # (B, 2, P, D)
        keys, values = self.split_heads(prompt).unbind(dim=1)
        return keys, values

    def loss(self, features: Tensor, labels: Tensor, head: nn.Linear, first: int, chosen=None) -> Tensor:
        """Keep the components apart, where `ortho_coef` is above 0."""
        if self.settings["ortho_coef"] == 0:
            return features.new_zeros(())
        penalty = features.new_zeros(())
        for kind in KINDS:
            components = torch.cat(list(getattr(self, kind)), dim=1)  # (L, C, ...)
            gram = components @ components.mT
            penalty = penalty + (gram - torch.eye(gram.shape[-1], device=gram.device)).square().mean()
        return self.settings["ortho_coef"] * penalty


@torch.no_grad()
def orthogonal_to(groups: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """New unit rows (L, C, W), orthogonal to each other and to those of earlier groups as far as W allows."""
    new = torch.randn(shape)
    there = [group.detach().float().cpu() for group in groups]
    rows = torch.cat([*there, new], dim=1)  # (L, all, W)
    count = rows.shape[1] - shape[1]
    if rows.shape[1] <= shape[-1]:
        q, _ = torch.linalg.qr(rows.mT)
        return q.mT[:, count:].contiguous()
    return F.normalize(new, dim=-1)
