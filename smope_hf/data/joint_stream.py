"""All classes in one task: what a method reaches that need not learn them one after the other."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np

from .manifest import build_manifest, describe_task
from .split import Task, TaskSplit
from .tasks import TaskStream


class JointStream(Sequence[Task]):
    """The tasks of a stream as a single one, for the upper bound of a comparison.

    Its manifest names the protocol hash of the stream in `information.joint_of`: same images, same class ids.

    Args:
        stream: the tasks.
    """

    def __init__(self, stream: TaskStream):
        self.stream, self.name, self.num_classes = stream, stream.name, stream.num_classes
        splits = {part: _joined([getattr(task, part) for task in stream]) for part in ("train", "validation", "test")}
        self._task = Task(0, tuple(stream.class_names), range(stream.num_classes), **splits)
        self._manifest: dict[str, Any] | None = None

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index):
        return [self._task][index]

    def __repr__(self) -> str:
        train, test = (len(split or ()) for split in (self._task.train, self._task.test))
        return (
            f"JointStream({self.name!r}: {len(self.stream)} tasks at once, {self.num_classes} classes, {train} "
            f"training images, {test} test images)"
        )

    def with_splits(self, change: Callable[[Task, str], TaskSplit]) -> "JointStream":
        """As `TaskStream.with_splits`, of the tasks that are joined."""
        return JointStream(self.stream.with_splits(change))

    def manifest(self) -> dict[str, Any]:
        """As `TaskStream.manifest`, of the one task."""
        if self._manifest is None:
            manifest = build_manifest(self.stream, [describe_task(self._task)])
            information = {**manifest["information"], "joint_of": self.stream.manifest()["protocol_hash"]}
            self._manifest = {**manifest, "information": information}
        return copy.deepcopy(self._manifest)


def _joined(splits: list[TaskSplit | None]) -> TaskSplit | None:
    """Several splits behind each other, without a copy of their images."""
    there = [split for split in splits if split is not None]
    if not there:
        return None
    return TaskSplit(
        datasets.concatenate_datasets([split.dataset for split in there]),
        np.concatenate([split.labels for split in there]),
        there[0].image_column,
        there[0].source_split,
        np.concatenate([split.source_rows for split in there]),
        None if any(split.digests is None for split in there) else np.concatenate([split.digests for split in there]),
        tuple(image for split in there for image in split.skipped),
    )
