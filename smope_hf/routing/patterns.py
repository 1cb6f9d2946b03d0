"""How a model's experts are used, as numbers: balance of their usage, overlap of tasks, survival of old routing.

Shapes: T tasks, L prompt layers, H heads, E experts, K selected experts, B images.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


class Balance(NamedTuple):
    """How evenly a head's experts are used; every array has the shape of the counts without their last axis."""

    entropy: np.ndarray
    gini: np.ndarray
    dead_share: np.ndarray


class TaskOverlap(NamedTuple):
    """How much two tasks share of the experts, each (L, T, T), symmetric, in [0, 1], 1 on the diagonal."""

    usage: np.ndarray
    experts: np.ndarray


def balance(counts: ArrayLike) -> Balance:
    """How evenly the experts of each head are used.

    With p the shares of the E counts of one head:
    `entropy` is -sum p log p / log E, 1 for even use and 0 for one expert alone;
    `gini` is the mean of |p_i - p_j| over all pairs (i, j), over twice the mean of p: 0 for even use, 1 - 1/E for one
    expert alone;
    `dead_share` is the share of the experts whose count is 0.
    A head whose counts are all 0 uses its experts evenly: entropy 1, Gini 0, dead share 1. So does a single expert.

    Args:
        counts: usage counts or shares (..., E), from 0 on; the leading axes are for example layers and heads.

    Returns:
        A [`Balance`] of float64 arrays (...).

    Raises:
        ValueError: when there is no expert, or a count is negative, NaN or infinite.
    """
    counts = _counts(counts)
    experts = counts.shape[-1]
    total = counts.sum(axis=-1, keepdims=True)
    shares = np.where(total > 0, counts / np.where(total > 0, total, 1), 1 / experts)
    surprise = -np.log(np.where(shares > 0, shares, 1))
    entropy = (shares * surprise).sum(axis=-1) / np.log(experts) if experts > 1 else np.ones(counts.shape[:-1])
    places = 2 * np.arange(1, experts + 1) - experts - 1
    gini = (np.sort(shares, axis=-1) * places).sum(axis=-1) / experts
    return Balance(entropy + 0.0, gini + 0.0, (counts == 0).mean(axis=-1))


def task_overlap(usage_by_task: ArrayLike) -> TaskOverlap:
    """How much two tasks share of the experts, layer by layer, as means over heads.

    `usage` is 1 - total variation distance of the two tasks' usage shares, sum over experts of min(p, q): the share of
    either task's selections that the other makes too. `experts` is the Jaccard overlap of the sets of experts that the
    two tasks selected at least once: the size of what they share over the size of what they use together.

    Args:
        usage_by_task: how often each task's images selected each expert, (T, L, H, E), from 0 on.

    Returns:
        A [`TaskOverlap`].

    Raises:
        ValueError: for another number of axes, counts that are no counts, or a task that selected nothing in a head.
    """
    counts = _counts(usage_by_task)
    if counts.ndim != 4:
        raise ValueError(f"usage_by_task has shape {counts.shape}. Allowed: (tasks, layers, heads, experts).")
    total = counts.sum(axis=-1, keepdims=True)
    if (total == 0).any():
        task, layer, head, _ = np.argwhere(total == 0)[0]
        raise ValueError(
            f"usage_by_task[{task}, {layer}, {head}] holds zeros only: that task has no usage to compare. Leave out "
            "tasks whose usage was not counted."
        )
    shares, used = counts / total, counts > 0
    usage = [np.minimum(shares, own).sum(axis=-1).mean(axis=-1) for own in shares]  # T of (T, L)
    experts = [((used & own).sum(axis=-1) / (used | own).sum(axis=-1)).mean(axis=-1) for own in used]
    return TaskOverlap(*(np.stack(rows).transpose(2, 0, 1) for rows in (usage, experts)))


def routing_survival(old_selected: ArrayLike, new_selected: ArrayLike) -> np.ndarray:
    """The share of an image's K experts per head that are still selected; their order does not matter.

    Args:
        old_selected: expert ids (..., K), each at most once in its K; for example (B, H, K) of one layer.
        new_selected: those of the same images under another checkpoint, in the same shape.

    Returns:
        Shares in [0, 1], (...). K experts drawn at random from E keep K / E on average.

    Raises:
        ValueError: when the shapes differ.
    """
    old, new = np.asarray(old_selected), np.asarray(new_selected)
    if old.shape != new.shape:
        raise ValueError(
            f"old_selected has shape {old.shape} and new_selected {new.shape}: give the same images, in the same "
            "order, under two checkpoints of one model."
        )
    return (old[..., :, None] == new[..., None, :]).any(axis=-1).mean(axis=-1)


@torch.no_grad()
def select_experts(model, pixel_values: Tensor) -> Tensor:
    """Selected experts of every layer for one batch in evaluation mode: (B, 3, height, width) -> (B, L, H, K)."""
    was_training = model.training
    model.eval()
    try:
        selected = model(pixel_values, output_router_scores=True).selected_experts
    finally:
        model.train(was_training)
    return torch.stack(selected, dim=1)


def selections(model, pixel_batches: Iterable[Tensor]) -> list[np.ndarray]:
    """Which experts a model selects in evaluation mode, with its own routing (masked or not).

    Args:
        model: a [`SMoPEForImageClassification`]; its mode is put back.
        pixel_batches: batches (B, 3, height, width) as the image processor gives them, on the model's device.

    Returns:
        For each prompt layer the ids (all images, H, K).

    Raises:
        ValueError: when there is no batch.
    """
    batches = [select_experts(model, pixels).cpu() for pixels in pixel_batches]
    if not batches:
        raise ValueError("pixel_batches is empty: give at least one batch of images")
    return list(torch.cat(batches).transpose(0, 1).numpy())


def survival_of_tasks(
    model_now,
    selections_then: Mapping[int, Sequence[np.ndarray]],
    images_of_tasks: Mapping[int, Iterable[Tensor]],
) -> dict[int, np.ndarray]:
    """How much of the routing of earlier tasks' images a later model keeps.

    Args:
        model_now: the later model.
        selections_then: for each task's number what [`selections`] gave under an earlier model, for example the one
            right after the task was learned.
        images_of_tasks: for each of these tasks the same images, in the same order. Test images: those of training
            are not kept.

    Returns:
        For each task the mean over its images of [`routing_survival`], (L, H).

    Raises:
        ValueError: when a task has no images, or others than those of its selections.
    """
    missing = sorted(set(selections_then) - set(images_of_tasks))
    if missing:
        raise ValueError(f"images_of_tasks has no images of tasks {missing}, but selections_then has their experts")
    return {
        task: routing_survival(np.stack(then), np.stack(selections(model_now, images_of_tasks[task]))).mean(axis=1)
        for task, then in selections_then.items()
    }


def _counts(counts: ArrayLike) -> np.ndarray:
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim == 0 or counts.shape[-1] == 0:
        raise ValueError(f"usage counts have shape {counts.shape}. Allowed: (..., experts) with at least one expert.")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("usage counts must be finite numbers from 0 on")
    return counts
