"""Predictions of a model on the images of a split, and what they come to for each task and class."""

import torch
from accelerate import Accelerator
from torch import Tensor

from .augmentation import Normalization
from .batches import DecodedImages, GlobalBatches, gather_rows
from .class_recall import recall_of_classes


@torch.no_grad()
def predict(
    model,
    images: DecodedImages,
    normalize: Normalization,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
) -> Tensor:
    """Predicted class id of every image, (n,), among all classes that the model knows; on every process.

    Args:
        model: a [`SMoPEForImageClassification`] on the accelerator's device; left in evaluation mode.
        images: the images.
        normalize: from 8-bit pixels to what the backbone takes.
        batch_size: images per step over all processes.
        num_workers: processes that decode images.
    """
    model.eval()
    predicted = []
    for pixels, _, _, size in GlobalBatches(images, batch_size, accelerator, num_workers)():
        with accelerator.autocast():
            logits = model(normalize(pixels.to(accelerator.device))).logits
        predicted.append(gather_rows(accelerator, logits.argmax(dim=-1), size))
    return torch.cat(predicted).cpu()


def evaluate_tasks(trainer, kept: dict[int, DecodedImages]) -> tuple[list[float | None], list[float | None]]:
    """Evaluate a trainer's model on the test images of every task that it has seen; the same on every process.

    Args:
        trainer: a [`ContinualTrainer`].
        kept: decoded test images by the task's index; those that are missing are added.

    Returns:
        The accuracy on each task, and the recall of each class, None where there are no test images.
    """
    seen = trainer.stream[: len(trainer.model.config.tasks)]
    accuracies: list[float | None] = []
    recall: list[float | None] = []
    for task in trainer.with_bar(seen, len(seen), seen[-1], "evaluation"):
        if task.test is None:
            accuracies.append(None)
            recall += [None] * len(task.class_ids)
            continue
        if task.index not in kept:
            kept[task.index] = trainer.decoded(task.test)
        predicted, labels = trainer.predict(kept[task.index]), kept[task.index].labels
        accuracies.append((predicted == labels).double().mean().item())
        recall += recall_of_classes(predicted, labels, task.class_ids)
    return accuracies, recall


def overall_accuracy(accuracies: list[float | None], counts: list[int]) -> dict[str, float | None]:
    """Mean over the tasks that were measured, and mean over their images.

    Args:
        accuracies: accuracy on each task, None where it has no test images.
        counts: test images of each task.

    Returns:
        `average_accuracy` and `weighted_accuracy`, None where no task was measured.
    """
    measured = [(accuracy, count) for accuracy, count in zip(accuracies, counts, strict=True) if accuracy is not None]
    if not measured:
        return {"average_accuracy": None, "weighted_accuracy": None}
    return {
        "average_accuracy": sum(accuracy for accuracy, _ in measured) / len(measured),
        "weighted_accuracy": sum(accuracy * count for accuracy, count in measured)
        / sum(count for _, count in measured),
    }
