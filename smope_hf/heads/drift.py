"""Drift compensation: statistics of old classes follow the features as the prompts change, without old images.

The images of the new task are seen by the prompts before and after its training. How their features move tells how
the features of old classes have moved: a linear map, held close to a common shift by ridge regression, is fitted to
it and applied to the stored statistics.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .alignment import ClassStatistics

ROWS = 4096  # features that are brought to float64 at a time


@dataclass
class FeatureDrift:
    """The map x -> x + (x - centre) @ matrix + shift of features before a task to features after it.

    Args:
        centre: (D,) float64, mean of the features before.
        shift: (D,) float64, mean movement.
        matrix: (D, D) float64; 0 for a common shift of all features.
    """

    centre: Tensor
    shift: Tensor
    matrix: Tensor

    @classmethod
    def between(cls, before: Tensor, after: Tensor, kind: str, shrinkage: float) -> "FeatureDrift":
        """Fit the map to the features of the same images.

        Args:
            before: (N, D) under the prompts before the task.
            after: (N, D) under those after it, in the same order.
            kind: "shift" or "linear".
            shrinkage: ridge penalty over the mean variance of `before`, above 0; more holds the map closer to a
                common shift. For "linear" only.
        """
        centre = before.mean(dim=0, dtype=torch.float64)
        shift = after.mean(dim=0, dtype=torch.float64) - centre
        matrix = torch.zeros(len(centre), len(centre), dtype=torch.float64)
        if kind == "linear":
            covariance, crossed = torch.zeros_like(matrix), torch.zeros_like(matrix)
            for first, then in zip(before.split(ROWS), after.split(ROWS), strict=True):
                centred = first.double() - centre
                covariance.addmm_(centred.T, centred)
                crossed.addmm_(centred.T, then.double() - centre - shift - centred)
            variance = covariance.diagonal().mean() / len(before)
            if variance > 0:  # equal features tell nothing beyond their shift
                covariance.diagonal().add_(shrinkage * variance * len(before))
                matrix = torch.linalg.solve(covariance, crossed)
        return cls(centre, shift, matrix)

    def applied(self, statistics: ClassStatistics) -> ClassStatistics:
        """The statistics of the same images under the map.

        A class's variances are kept per dimension, so theirs are moved as if its dimensions were independent.
        """
        mean = statistics.mean.double()
        whole = torch.eye(len(self.centre), dtype=torch.float64) + self.matrix  # (D, D)
        scatter = whole.T @ statistics.scatter.double() @ whole
        return ClassStatistics(
            (mean + (mean - self.centre) @ self.matrix + self.shift).float(),
            (statistics.variance.double() @ whole.square()).float(),
            statistics.count,
            ((scatter + scatter.T) / 2).float(),
        )
