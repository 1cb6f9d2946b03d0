"""The same image more than once: among training and test images, in two classes, or twice in one."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from ..base.printing import say_once
from .split import Task, TaskSplit

ON_DUPLICATE = ("warn", "error")
_PURPOSES = ("train", "validation", "test")


@dataclass(frozen=True)
class Duplicates:
    """Counts of images whose files hold the very same bytes; a copy that was saved anew is another image.

    Args:
        tested_on_training: validation and test images that are training images too, whatever their class.
        in_two_classes: different images of which each stands in more than one class.
        repeated: images beyond the first of its kind, within one class and one of training, validation and test.
        examples: for each of these that there is, where one such image stands: two places.
    """

    tested_on_training: int
    in_two_classes: int
    repeated: int
    examples: dict[str, list[str]]

    def to_json(self) -> dict:
        return asdict(self)

    @property
    def sentences(self) -> list[str]:
        """What is wrong with each, in words; none where every image is there once."""
        told = {
            "tested_on_training": (
                "1 validation or test image is a training image too, so accuracies are too high",
                "{} validation or test images are training images too, so accuracies are too high",
            ),
            "in_two_classes": (
                "1 image stands in more than one class, so one of them is wrong",
                "{} images stand in more than one class each, so one of them is wrong",
            ),
            "repeated": (
                "1 image stands in its class a second time, and counts twice",
                "{} images stand in their class a second time, and count twice",
            ),
        }
        counts = {name: getattr(self, name) for name in told if getattr(self, name)}
        return [
            f"{told[name][count > 1].format(count)} (such as {' and '.join(self.examples[name])})."
            for name, count in counts.items()
        ]


def find_duplicates(tasks: Iterable[Task]) -> Duplicates:
    """Compare the images of all tasks by the hashes of their files. No image is read again.

    Args:
        tasks: of which every split has its hashes; see `ImageCheck`.
    """
    parts = [(split, _PURPOSES.index(name)) for task in tasks for name, split in task.splits.items()]
    parts = [(split, purpose) for split, purpose in parts if len(split)]
    if not parts:
        return Duplicates(0, 0, 0, {})
    digests = np.concatenate([split.hashes() for split, _ in parts])
    labels = np.concatenate([split.labels for split, _ in parts])
    purposes = np.repeat([purpose for _, purpose in parts], [len(split) for split, _ in parts])
    _, image = np.unique(np.ascontiguousarray(digests).view("V32").ravel(), return_inverse=True)
    in_training = np.zeros(image.max() + 1, dtype=bool)
    in_training[image[purposes == 0]] = True
    leaked = (purposes > 0) & in_training[image]
    classes = np.unique(np.stack([image, labels]), axis=1)[0]  # an image, as often as it has classes
    several, count = np.unique(classes, return_counts=True)
    torn = several[count > 1]
    keys = np.stack([image, labels, purposes])
    _, first = np.unique(keys, axis=1, return_index=True)
    again = np.ones(len(image), dtype=bool)
    again[first] = False

    def pair(position: int, same: np.ndarray) -> list[str]:
        other = np.flatnonzero(same)[0]
        return [_describe(parts, int(where)) for where in sorted((position, other))]

    examples = {}
    if leaked.any():
        position = int(np.flatnonzero(leaked)[0])
        examples["tested_on_training"] = pair(position, (image == image[position]) & (purposes == 0))
    if len(torn):
        position = int(np.flatnonzero(image == torn[0])[0])
        examples["in_two_classes"] = pair(position, (image == torn[0]) & (labels != labels[position]))
    if again.any():
        position = int(np.flatnonzero(again)[0])
        same = (keys == keys[:, position : position + 1]).all(axis=0)
        same[position] = False
        examples["repeated"] = pair(position, same)
    return Duplicates(int(leaked.sum()), len(torn), int(again.sum()), examples)


def _describe(parts: list[tuple[TaskSplit, int]], position: int) -> str:
    for split, _ in parts:
        if position < len(split):
            return split.describe(position)
        position -= len(split)
    raise IndexError(position)


def check_duplicates(tasks: Iterable[Task], on_duplicate: str, accelerator=None) -> Duplicates:
    """Say what images are there more than once, or refuse them.

    Args:
        tasks: of which every split has its hashes.
        on_duplicate: "warn" to say it, "error" to refuse them.
        accelerator: of the run; only its main process says it.

    Raises:
        ValueError: with "error", naming two places.
    """
    found = find_duplicates(tasks)
    if found.sentences and on_duplicate == "error":
        raise ValueError(
            f'{" ".join(found.sentences)} Remove one of each, or go on with on_duplicate="warn" (--on-duplicate warn).'
        )
    for sentence in found.sentences:
        say_once(accelerator, f"Warning: {sentence}")
    return found
