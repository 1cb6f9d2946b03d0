"""Predictions of a model on the images of a split, and what they come to for each task and class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.augmentation import Normalization
from ..data.batches import GlobalBatches, gather_rows
from ..data.image_store import DecodedImages
from ..data.split import Task, TaskSplit
from ..metrics.class_recall import recall_of_classes
from ..metrics.task_confusion import confusion_row
from .passes import ImagePasses


@torch.no_grad()
def predict(
    model,
    images: DecodedImages,
    normalize: Normalization,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
    heads: Sequence[nn.Linear] = (),
) -> Tensor:
    """Predicted class id of every image among all classes that the model knows, on every process.

    Args:
        model: a [`SMoPEForImageClassification`] on the accelerator's device; left in evaluation mode.
        images: the images.
        normalize: from 8-bit pixels to what the backbone takes.
        batch_size: images per step over all processes.
        num_workers: threads that decode images.
        heads: heads to predict with beside the model's own, from the same features.

    Returns:
        (n,), or with `heads` (1 + heads, n), the model's own first.
    """
    model.eval()
    predicted = []
    for pixels, _, _, size in GlobalBatches(images, batch_size, accelerator, num_workers)():
        with accelerator.autocast():
            output = model(normalize(pixels.to(accelerator.device)))
        logits = [output.logits, *(head(output.pooled_output.to(head.weight.dtype)) for head in heads)]
        classes = torch.stack([of_head.argmax(dim=-1) for of_head in logits], dim=1)  # (B, 1 + heads)
        predicted.append(gather_rows(accelerator, classes, size))
    classes = torch.cat(predicted).T.cpu()
    return classes if heads else classes[0]


@dataclass
class Evaluation:
    """What the test images of every task seen say of a model.

    Args:
        accuracies: for the model, then for each other head, the accuracy on each task; None where it has no images.
        confusion: for each task how many of its images are taken for each task's classes; None without images.
        recalls: for the model, then for each other head, the recall of each class; None without images.
    """

    accuracies: list[list[float | None]]
    confusion: list[list[int] | None]
    recalls: list[list[float | None]]


def evaluate_tasks(
    model,
    stream: Sequence[Task],
    decoded: Callable[[TaskSplit], DecodedImages],
    passes: ImagePasses,
    heads: Sequence[nn.Linear] = (),
) -> Evaluation:
    """Evaluate a model in one pass over the test images of every task it has seen; on every process.

    Args:
        model: a [`SMoPEForImageClassification`] on the accelerator's device; left in evaluation mode.
        stream: the tasks, the first of which the model has seen.
        decoded: the images of a split.
        passes: how the run looks at them.
        heads: heads to measure beside the model's own, on the same features.
    """
    args, tasks = passes.args, model.config.tasks
    seen = stream[: len(tasks)]
    columns, confusion, recalls = [], [], [[] for _ in range(1 + len(heads))]
    for task in passes.bars.over(seen, len(seen), seen[-1].index, "evaluation"):
        if task.test is None:
            columns.append([None] * (1 + len(heads)))
            confusion.append(None)
            for recall in recalls:
                recall += [None] * len(task.class_ids)
            continue
        images = decoded(task.test)
        predicted = predict(
            model, images, passes.normalize, passes.accelerator, args.eval_batch_size, args.dataloader_num_workers,
            heads=heads,
        ).view(1 + len(heads), len(images))  # fmt: skip
        columns.append((predicted == images.labels).double().mean(dim=1).tolist())
        confusion.append(confusion_row(predicted[0], tasks))
        for recall, of_head in zip(recalls, predicted, strict=True):
            recall += recall_of_classes(of_head, images.labels, task.class_ids)
    return Evaluation([list(row) for row in zip(*columns, strict=True)], confusion, recalls)


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
