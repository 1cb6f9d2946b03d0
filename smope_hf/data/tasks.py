"""Class-incremental tasks over any `datasets` data set, as selections on Arrow: no image is copied or decoded."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..base.home import expanded
from ..base.named_settings import some_names
from ..settings.class_names import check_alike, check_class_names, warn_of_case
from ..storage.output_check import check_text
from .manifest import build_manifest
from .partition import RowSampler, check_max_tasks, class_groups
from .reading import Classes, find_image_column, find_label_column, find_test_split, load_dataset_dict, read_classes
from .split import Task, TaskSplit

_NAME_IT = (
    "Name the class: rename its folder, or in Python use dataset.cast_column(label_column, "
    "datasets.ClassLabel(names=[...])). Or leave it out with class_lists."
)


class TaskStream(Sequence[Task]):
    """Split a data set into tasks by class.

    Exactly one of `num_tasks`, `classes_per_task` and `class_lists` is needed. The class order is
    `random.Random(seed).shuffle(list(range(number of classes)))`, in the data set's own numbering. Every other choice
    at random depends on the seed, its purpose and the class alone, so that no option reshuffles another.

    Args:
        dataset: The splits by name.
        num_tasks: Number of tasks of equal size; must divide the number of classes.
        classes_per_task: Classes in each task; must divide the number of classes.
        class_lists: The classes of each task, by name or by value in the label column. Sizes may differ and classes
            may be left out; none may be repeated. Sets the order, so `shuffle_classes` has no effect.
        max_tasks: Only the first so many of these tasks, each as it is in the whole stream. Default: all.
        shuffle_classes: Shuffle the class order. Default True.
        seed: Seed of all choices at random. Default 0.
        image_column: Default: the only column of type `Image`.
        label_column: `ClassLabel`, string or integer column. Default: the only column of type `ClassLabel`.
        train_split: Default "train".
        test_split: Default "test", else "validation", "valid" or "val".
        validation_fraction: Share of each class's training images set aside, rounded to whole images, at least one
            where that leaves one for training. 0 (default, none) to below 1.
        evaluate_on: "test" (default), or "validation": each task's validation images become its `test`, so that
            settings can be chosen without a look at the test images, which are then not used at all.
        test_fraction: Where there is no split to test on, share of each class's training images set aside for it,
            rounded, at least one. 0 (default) to below 1.
        max_train_samples_per_class: Use at most so many training images of each class, after the shares are set
            aside; a smaller number selects some of the images that a larger one does. Default: all.
        max_test_samples_per_class: The same for test images. Default: all.
        imbalance_factor: Long-tailed training images: their number falls exponentially over the classes, in an order
            drawn from the seed, from that of the largest class to 1 / `imbalance_factor` of it; see
            `smope_hf.data.imbalance.long_tailed`. Test images stay as they are. Default 1: no imbalance.
        allow_no_test: Accept a data set with no split to test on and `test_fraction=0`: each task's `test` is None.
            A whole run needs test images; adding classes to a model does not. Default False.
        name: Name of the data set in reports. Default "dataset"; `load` takes it from the source.

    Raises:
        ValueError: If an option is wrong, an image has no label, a class has no name that can be seen and told from
            the others', or no image to train or to test on.
    """

    def __init__(
        self,
        dataset: datasets.DatasetDict,
        *,
        num_tasks: int | None = None,
        classes_per_task: int | None = None,
        class_lists: Sequence[Sequence[str | int]] | None = None,
        max_tasks: int | None = None,
        shuffle_classes: bool = True,
        seed: int = 0,
        image_column: str | None = None,
        label_column: str | None = None,
        train_split: str = "train",
        test_split: str | None = None,
        validation_fraction: float = 0.0,
        evaluate_on: str = "test",
        test_fraction: float = 0.0,
        max_train_samples_per_class: int | None = None,
        max_test_samples_per_class: int | None = None,
        imbalance_factor: float = 1.0,
        allow_no_test: bool = False,
        name: str | None = None,
    ):
        if not isinstance(dataset, datasets.DatasetDict):
            raise TypeError(
                f"a datasets.DatasetDict is needed, not {type(dataset).__name__}; one split alone can be given as "
                'datasets.DatasetDict({"train": dataset}), a streamed data set must be downloaded first'
            )
        for option, value in (("shuffle_classes", shuffle_classes), ("allow_no_test", allow_no_test)):
            if not isinstance(value, bool):
                raise ValueError(f"{option}={value!r}: True or False is needed")
        limits = (max_train_samples_per_class, max_test_samples_per_class)
        sampler = RowSampler(seed, validation_fraction, test_fraction, *limits, imbalance_factor)
        if evaluate_on not in ("test", "validation") or (evaluate_on == "validation" and validation_fraction == 0):
            raise ValueError(
                f"evaluate_on={evaluate_on!r} with validation_fraction={validation_fraction!r} is not allowed. "
                'Allowed: "test", or "validation" with a validation_fraction above 0.'
            )
        self.name = name or "dataset"
        self.source: dict[str, Any] | None = None
        self.train_split = train_split
        self.test_split = find_test_split(dataset, train_split, test_split, test_fraction, allow_no_test)
        splits = [train_split] if self.test_split is None else [train_split, self.test_split]
        self.image_column = find_image_column(dataset[train_split].features, image_column)
        self.label_column = find_label_column(dataset[train_split].features, label_column)
        for split in splits:
            find_image_column(dataset[split].features, self.image_column)
        self.fingerprints = {split: dataset[split]._fingerprint for split in splits}
        classes = read_classes(dataset, splits, self.label_column)
        sizes = {"num_tasks": num_tasks, "classes_per_task": classes_per_task}
        groups = class_groups(
            classes, **sizes, class_lists=class_lists, shuffle_classes=shuffle_classes, seed=sampler.seed
        )
        check_max_tasks(max_tasks, len(groups))
        names = [[classes.names[position] for position in group] for group in groups]
        self.class_names: list[str] = [name for group in names[:max_tasks] for name in group]
        chosen = {position: classes.names[position] for group in groups for position in group}
        where = f"label_column={self.label_column!r}"
        check_class_names(chosen, where, _NAME_IT)
        check_alike(chosen.values(), where)
        warn_of_case(chosen.values(), where)
        self.options: dict[str, Any] = {
            **sizes,
            "class_lists": None if class_lists is None else names,
            "max_tasks": max_tasks,
            "shuffle_classes": shuffle_classes,
            "train_split": train_split,
            "test_split": self.test_split,
            "evaluate_on": evaluate_on,
            **vars(sampler),
        }
        self._tasks = self._make_tasks(dataset, classes, groups, sampler)
        self._manifest: dict[str, Any] | None = None

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        config_name: str | None = None,
        revision: str | None = None,
        data_files: Any = None,
        **options: Any,
    ) -> "TaskStream":
        """Load a data set and split it into tasks.

        Args:
            name_or_path: Data set id on the Hub, a folder of images (one folder per class), a folder of parquet
                files, a folder made by `save_to_disk`, or "parquet" and the like together with `data_files`.
            config_name: Configuration of a data set on the Hub.
            revision: Branch, tag or commit of a data set on the Hub.
            data_files: Passed to `datasets.load_dataset`.
            options: Keyword arguments of `TaskStream`. `name` defaults to the id or the folder's name.

        Returns:
            The tasks.

        Raises:
            FileNotFoundError: If the folder does not exist.
            ValueError: As for `TaskStream`, or a folder of images has images outside a class folder, or class folders
                without an image.
        """
        check_text(str(name_or_path), "dataset")  # manifests tell it
        dataset = load_dataset_dict(name_or_path, config_name=config_name, revision=revision, data_files=data_files)
        folder = expanded(Path(name_or_path))
        # the manifest travels with checkpoints: a folder's place on this machine is nobody's business there
        source = folder.resolve().name if folder.is_dir() else str(name_or_path)
        if options.get("name") is None:
            options["name"] = source
        stream = cls(dataset, **options)
        stream.source = {
            "name_or_path": source,
            "local": folder.is_dir(),
            "config_name": config_name,
            "revision": revision,
        }
        return stream

    @property
    def num_classes(self) -> int:
        """Number of classes in all tasks."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index):
        return self._tasks[index]

    def __repr__(self) -> str:
        train, test = (sum(len(getattr(task, split) or ()) for task in self) for split in ("train", "test"))
        return (
            f"TaskStream({self.name!r}: {len(self)} tasks, {self.num_classes} classes, {train} training images, "
            f"{test} test images)"
        )

    def manifest(self) -> dict[str, Any]:
        """Describe the tasks as JSON, with a hash of every image.

        Two results are comparable if and only if the `protocol_hash` of their manifests is equal: the same classes in
        the same order, and the same images, labels and order of rows in every split. It depends on the content alone,
        not on where the data set is stored or how the tasks were asked for. `manifest_differences` says what differs.

        Returns:
            A dictionary of JSON values. Computed once: every encoded image is read, a few at a time, none decoded.

        Raises:
            ValueError: If an image file cannot be read.
        """
        if self._manifest is None:
            self._manifest = build_manifest(self)
        return copy.deepcopy(self._manifest)

    def with_splits(self, change: Callable[[Task, str], TaskSplit]) -> "TaskStream":
        """The same tasks with each split replaced: `change(task, name)` gives what stands in its place."""
        other = copy.copy(self)
        other._tasks = tuple(task.with_splits(change) for task in self)
        other._manifest = None
        return other

    def _make_tasks(
        self, dataset: datasets.DatasetDict, classes: Classes, groups: list[list[int]], sampler: RowSampler
    ) -> tuple[Task, ...]:
        sources = (self.train_split, self.train_split, self.test_split or self.train_split)
        train_rows = _rows_by_class(classes, self.train_split)
        test_rows = [None] * len(classes.names)
        if self.test_split is not None:
            test_rows = _rows_by_class(classes, self.test_split)
        places = {classes.names[position]: position for group in groups for position in group}
        divided = {name: sampler.divide(name, train_rows[p], test_rows[p]) for name, p in places.items()}
        if sampler.imbalance_factor > 1:
            everything = {name: train_rows[position] for name, position in places.items()}
            thinned = sampler.thin_out(everything, {name: rows[0] for name, rows in divided.items()})
            divided = {name: (thinned[name], *rows[1:]) for name, rows in divided.items()}
        tasks: list[Task] = []
        first_id = 0
        for index, group in enumerate(groups[: self.options["max_tasks"]]):
            names = tuple(classes.names[position] for position in group)
            rows = [divided[name] for name in names]
            self._check_rows(index, names, rows, sampler)
            train, validation, test = (
                _select(dataset[source], source, purpose, first_id, self.image_column)
                for source, purpose in zip(sources, zip(*rows))
            )
            class_ids = range(first_id, first_id + len(group))
            splits = (train, validation if len(validation) else None, test if len(test) else None)
            if self.options["evaluate_on"] == "validation":
                splits = (train, None, splits[1])
            tasks.append(Task(index, names, class_ids, *splits))
            first_id = class_ids.stop
        return tuple(tasks)

    def _check_rows(
        self, index: int, names: Sequence[str], rows: Sequence[tuple[np.ndarray, ...]], sampler: RowSampler
    ) -> None:
        without_train, without_test = (
            [name for name, row in zip(names, rows) if len(row[purpose]) == 0] for purpose in (0, 2)
        )
        problem = ""
        if without_train:
            problem = f"split {self.train_split!r} has no training image of class {some_names(without_train)}"
        elif without_test and self.test_split is not None:
            problem = f"split {self.test_split!r} has no test image of class {some_names(without_test)}"
        elif without_test and sampler.test_fraction > 0:
            problem = (
                f"split {self.train_split!r} has only one image of class {some_names(without_test)}, but one to train "
                "and one to test on is needed"
            )
        if problem:
            raise ValueError(f"task {index}: {problem}: add images, or leave the class out with class_lists")
        if sampler.validation_fraction > 0 and not any(len(row[1]) for row in rows):
            raise ValueError(
                f"task {index}: validation_fraction={sampler.validation_fraction}, but each class has only one image "
                "to train on: add images or set validation_fraction=0"
            )


def _rows_by_class(classes: Classes, split: str) -> list[np.ndarray]:
    labels = classes.labels[split]
    rows = np.argsort(labels, kind="stable")
    return np.split(rows, np.cumsum(np.bincount(labels, minlength=len(classes.names)))[:-1])


def _select(
    dataset: datasets.Dataset, source_split: str, rows: Sequence[np.ndarray], first_id: int, image_column: str
) -> TaskSplit:
    """Select the given rows of consecutive classes, in the order of the data set."""
    labels = np.repeat(np.arange(first_id, first_id + len(rows)), [len(of_class) for of_class in rows])
    merged = np.concatenate(rows)
    order = np.argsort(merged)
    return TaskSplit(dataset.select(merged[order]), labels[order], image_column, source_split, merged[order])
