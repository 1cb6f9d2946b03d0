"""The ablation without a learned router: fixed random directions choose the experts, whatever the keys learn."""

import numpy as np
import torch
from torch import Tensor
from transformers import initialization as init

from .prefix_experts import PrefixExperts, at_least_float32, without_autocast

SEED = 2509_24483  # of the directions of every model: a checkpoint need not hold them


class RandomExperts(PrefixExperts):
    """Prefix experts of which an image's K are chosen by the scores mean query . R, with R fixed and random.

    The choice is a function of the image alone, the same in training and in evaluation, without a penalty. The chosen
    experts take part in the attention with their own scores, as in SMoPE, and in dense mode all do. The scores handed
    over are those of R, so that the usage counted is what was selected. Both losses of the routing are 0: they teach
    keys to select, and no key selects here.

    Args:
        layer: the backbone's number of the layer; each has an R of its own.
        *shape: as for [`PrefixExperts`]: heads, size of one head, experts, K, noise and routing.
    """

    def __init__(self, layer: int, *shape: int | float | str):
        super().__init__(*shape)
        self.layer = layer
        # signs in int8 are the same numbers in every precision that the model is loaded in or cast to
        self.register_buffer("directions", torch.empty(self.keys.shape, dtype=torch.int8), persistent=False)

    def reset_parameters(self):
        """As for [`PrefixExperts`], and R: each entry -1 or 1, (H, E, d), from the layer's number alone."""
        super().reset_parameters()
        # numpy promises that this generator never changes, so a checkpoint means the same under any version
        signs = np.random.RandomState(SEED + self.layer).choice(np.array([-1, 1], np.int8), self.directions.shape)
        init.copy_(self.directions, torch.from_numpy(signs))

    @torch.no_grad()
    def random_score(self, query: Tensor) -> Tensor:
        """The scores that select, in float32: (B, H, N, d) -> (B, H, E)."""
        with without_autocast(query):
            mean_query = at_least_float32(query).mean(dim=2)  # (B, H, d)
            return torch.einsum("bhd,hed->bhe", mean_query, self.directions.to(mean_query.dtype))

    def penalty(self) -> None:
        """None in training and in evaluation: neither marks nor usage weigh on the choice."""
        return None

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """Score by the keys and select by R: (B, H, N, d) -> scores, selected."""
        random_scores = self.random_score(query)
        selected = None if self.in_pass("dense") else self.select(random_scores)
        self.note(random_scores, selected)
        return self.score(query), selected

    def router_loss(self, scores: Tensor, selected: Tensor) -> Tensor:
        return scores.new_zeros(())

    def prototype_loss(self) -> Tensor:
        return self.keys.new_zeros((), dtype=torch.float32)
