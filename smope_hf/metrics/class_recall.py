"""Recall of each class, and its mean over classes with many, a medium number of, and few training images."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

THIRDS = ("recall_many", "recall_medium", "recall_few")


def recall_of_classes(predicted: Tensor, labels: Tensor, class_ids: Sequence[int]) -> list[float | None]:
    """Share of each class's test images that are recognised.

    Args:
        predicted: predicted class ids (n,).
        labels: true class ids (n,).
        class_ids: the classes to report, in this order.

    Returns:
        A fraction for each class, None where it has no test image.
    """
    right = predicted == labels
    own = [right[labels == class_id] for class_id in class_ids]
    return [hits.double().mean().item() if len(hits) else None for hits in own]


def recall_by_frequency(recall: Sequence[float | None], training_images: Sequence[int]) -> dict[str, float | None]:
    """Mean recall over the head, middle and tail third of the classes by their training images.

    The classes are ordered by falling number of training images, those with equal numbers by class id, and cut into
    three parts whose sizes differ by at most one, larger parts first.

    Args:
        recall: recall of each class, in the order of the class ids; None where it was not measured.
        training_images: of each class, in the same order.

    Returns:
        `recall_many`, `recall_medium` and `recall_few`, None where a class of that third was not measured, or it has
        no class.

    Raises:
        ValueError: when the two are not equally long.
    """
    if len(recall) != len(training_images):
        raise ValueError(
            f"recall has {len(recall)} classes and training_images {len(training_images)}: give both of all"
        )
    parts = np.array_split(np.argsort(-np.asarray(training_images), kind="stable"), len(THIRDS))
    of_parts = [[recall[class_id] for class_id in part] for part in parts]
    return {
        name: float(np.mean(values)) if values and None not in values else None
        for name, values in zip(THIRDS, of_parts, strict=True)
    }
