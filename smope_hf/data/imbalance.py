"""Long-tailed training images: how many each class keeps."""

import math
import random
from collections.abc import Mapping


def check_factor(factor: object) -> None:
    """Refuse what is no imbalance factor.

    Raises:
        ValueError: for anything but a finite number from 1.
    """
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not number or not math.isfinite(factor) or factor < 1:
        raise ValueError(f"imbalance_factor={factor!r}: a finite number from 1 (no imbalance) is needed")


def long_tailed(sizes: Mapping[str, int], factor: float, seed: int) -> dict[str, int]:
    """How many training images each class keeps for an exponential profile.

    The class of rank i of C keeps n_max * factor^(-i / (C - 1)) images, rounded, at least one, and never more than
    it has; n_max is the number of the largest class. Ranks are drawn by seed and class name alone, so that they
    depend neither on the order in which classes are learned nor on which others there are: the tasks have frequent
    and rare classes alike.

    Args:
        sizes: training images of each class, by name.
        factor: n_max over the images of the rarest class, from 1.
        seed: seed of the ranks.

    Returns:
        Images to keep, by name, in the order given.

    Source: the profile of long-tailed CIFAR in Cui et al., Class-Balanced Loss, CVPR 2019.
    """
    ranked = sorted(sizes, key=lambda name: (random.Random(f"{seed}/imbalance/{name}").random(), name))
    largest, last = max(sizes.values()), max(len(sizes) - 1, 1)
    profile = {name: int(largest * factor ** (-rank / last) + 0.5) for rank, name in enumerate(ranked)}
    return {name: min(size, max(profile[name], 1)) for name, size in sizes.items()}
