"""The room on disk that a run needs at least, as far as it is known before any work."""

from collections.abc import Sequence

from ..data.split import Task
from ..models.pretrained import without_backbone

FLOAT = 4  # bytes


def checkpoint_bytes(model, tasks: Sequence[Task], checkpoint_every: int) -> int:
    """Bytes of the weights and class statistics that the folders of tasks hold together, and of a state within a task.

    Args:
        model: before its first task.
        tasks: of the whole run, to be saved one after the other.
        checkpoint_every: as in [`ContinualTrainingArguments`].
    """
    weights = model.state_dict()
    weights = sum(value.nbytes for value in (weights if model.saves_backbone else without_backbone(weights)).values())
    size, classes, needed = model.config.hidden_size, 0, 0
    for task in tasks:
        classes += len(task.class_names)
        of_classes = classes * FLOAT * (size + 1) + classes * (2 * FLOAT * size + 8)  # head; mean, variance, count
        needed += weights + of_classes + FLOAT * size * size  # one scatter of all classes
    trained = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    return needed + (3 * trained if checkpoint_every else 0)  # weights and two moments


def most_images(tasks: Sequence[Task]) -> int:
    """The most images of a run that are decoded and kept at one time: a task's own, and all tests up to then."""
    tests = most = 0
    for task in tasks:
        most = max(most, tests + (0 if task.train is None else len(task.train)))
        tests += 0 if task.test is None else len(task.test)
    return max(most, tests)
