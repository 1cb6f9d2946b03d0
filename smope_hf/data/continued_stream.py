"""Tasks that a checkpoint has learned, followed by new ones: what a model goes on with."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..settings.class_names import check_alike, one_form, warn_of_case
from .manifest import build_manifest, describe_split, describe_task, earlier_runs, skipped_images
from .split import Task, TaskSplit
from .tasks import TaskStream


class ContinuedStream(Sequence[Task]):
    """The learned tasks of a checkpoint, without training images, and behind them the tasks of a stream.

    New tasks and class ids count on where the learned ones end. The manifest is the one that a single run over all
    tasks would have had: where the images are the same, so is the protocol hash.

    Args:
        learned: manifest of the learned tasks, as the checkpoint holds it.
        stream: the new tasks; their class ids count from 0.
        old_tests: for each learned task test images whose labels are the checkpoint's class ids, or None where there
            are none. Default: none for any.

    Raises:
        ValueError: when a class of the stream is known already or looks like one that is, or there is not one entry
            for each learned task.
    """

    def __init__(
        self, learned: dict[str, Any], stream: TaskStream, old_tests: Sequence[TaskSplit | None] | None = None
    ):
        self.learned, self.stream = learned, stream
        old = learned["tasks"]
        tests = [None] * len(old) if old_tests is None else list(old_tests)
        if len(tests) != len(old):
            raise ValueError(f"old_tests has {len(tests)} entries, but the checkpoint has learned {len(old)} tasks")
        self._check_new(stream)
        self._tasks = [_learned_task(entry, test) for entry, test in zip(old, tests, strict=True)]
        first_id = learned["num_classes"]
        self._tasks += [_moved(task, len(old), first_id) for task in stream]
        self._manifest: dict[str, Any] | None = None

    def _check_new(self, stream: TaskStream):
        where = {one_form(name): task["index"] + 1 for task in self.learned["tasks"] for name in task["class_names"]}
        known = [f"{name!r} (task {where[name]})" for name in stream.class_names if name in where]
        if known:
            name = next(name for name in stream.class_names if name in where)
            shown = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
            raise ValueError(
                f"The model knows these classes already: {shown}. {_first_row(stream, name)} Leave them out "
                "(class_lists, or --classes on the command line, names the classes to learn), or rename them if they "
                "are other classes."
            )
        others = [name for task in self.learned["tasks"] for name in task["class_names"]]
        check_alike(stream.class_names, "the model and the new classes", others)
        warn_of_case(stream.class_names, "the model and the new classes", others)

    @property
    def name(self) -> str:
        """Names of all data sets that the tasks come from."""
        return " + ".join(dict.fromkeys([*self.learned["name"].split(" + "), self.stream.name]))

    @property
    def num_classes(self) -> int:
        """Number of classes in all tasks, learned and new."""
        return self._tasks[-1].class_ids.stop

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index):
        return self._tasks[index]

    def with_splits(self, change: Callable[[Task, str], TaskSplit]) -> "ContinuedStream":
        """As `TaskStream.with_splits`, of the new tasks and of the learned ones' test images."""
        tests = [task.with_splits(change).test for task in self._tasks[: len(self.learned["tasks"])]]
        return ContinuedStream(self.learned, self.stream.with_splits(change), tests)

    def manifest(self) -> dict[str, Any]:
        """As `TaskStream.manifest`, over learned and new tasks.

        Of the runs that taught the learned ones `information.continues` tells of the last, `information.earlier` of
        those before it, the oldest first: however many there are, the manifest does not nest deeper.
        """
        if self._manifest is None:
            count = len(self.learned["tasks"])
            tasks = [_with_test(entry, task) for entry, task in zip(self.learned["tasks"], self._tasks)]
            tasks += [describe_task(task) for task in self._tasks[count:]]
            manifest = build_manifest(self.stream, tasks)
            before = {key: value for key, value in self.learned.items() if key != "tasks"}
            skipped = self.learned["information"].get("skipped_images", [])
            skipped = skipped + [image for image in skipped_images(self) if image not in skipped]
            *earlier, last = earlier_runs({"continues": {"num_tasks": count, **before}})
            information = {**manifest["information"], "skipped_images": skipped, "continues": last}
            if earlier:
                information["earlier"] = earlier
            self._manifest = {**manifest, "name": self.name, "information": information}
        return copy.deepcopy(self._manifest)


def _first_row(stream: TaskStream, class_name: str) -> str:
    """Where the first training image of a class is."""
    task = next(task for task in stream if class_name in task.class_names)
    class_id = task.class_ids[task.class_names.index(class_name)]
    row = task.train.source_rows[task.train.labels == class_id][0]
    return f"Row {row} of split {task.train.source_split!r}, column {stream.label_column!r}, is {class_name!r}."


def _learned_task(entry: dict[str, Any], test: TaskSplit | None) -> Task:
    ids = entry["class_ids"]
    return Task(entry["index"], tuple(entry["class_names"]), range(ids[0], ids[-1] + 1), None, None, test)


def _moved(task: Task, tasks_before: int, first_id: int) -> Task:
    """The task with its index and class ids counted on."""
    splits = {
        name: None if split is None else replace(split, labels=split.labels + first_id)
        for name, split in (("train", task.train), ("validation", task.validation), ("test", task.test))
    }
    class_ids = range(task.class_ids.start + first_id, task.class_ids.stop + first_id)
    return replace(task, index=task.index + tasks_before, class_ids=class_ids, **splits)


def _with_test(entry: dict[str, Any], task: Task) -> dict[str, Any]:
    """The entry of a learned task, with the test images that are at hand now."""
    return entry if task.test is None else {**entry, "test": describe_split(task.test)}
