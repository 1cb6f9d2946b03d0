"""Of which task the classes are that images are taken for."""

from collections.abc import Sequence

import torch
from torch import Tensor


def confusion_row(predicted: Tensor, tasks: Sequence[Sequence[int]]) -> list[int]:
    """Count the predictions that fall on each task's classes.

    Args:
        predicted: class id of each image of one task, (n,).
        tasks: class ids of each task learned, as in `config.tasks`.

    Returns:
        A count for each task; their sum is n.

    Raises:
        ValueError: a prediction is of no task.
    """
    owner = torch.full((max((max(task) for task in tasks), default=-1) + 1,), -1, dtype=torch.long)
    for index, task in enumerate(tasks):
        owner[list(task)] = index
    known = (predicted >= 0) & (predicted < len(owner))
    known[known.clone()] = owner[predicted[known]] >= 0
    if not bool(known.all()):
        raise ValueError(f"class {int(predicted[~known][0])} was predicted, which is of none of {len(tasks)} tasks")
    return torch.bincount(owner[predicted], minlength=len(tasks)).tolist()
