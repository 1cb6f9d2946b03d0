"""The images of classes that a model already knows, task by task: what a checkpoint is evaluated on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..base.named_settings import some_names
from ..settings.class_names import one_form
from .partition import RowSampler
from .reading import (
    TEST_SPLIT_NAMES,
    Classes,
    find_image_column,
    find_label_column,
    load_dataset_dict,
    read_classes,
)
from .split import TaskSplit


def load_known_tests(
    name_or_path: str | Path,
    class_tasks: Sequence[Sequence[str]],
    *,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_per_class: int | None = None,
    seed: int = 0,
    ignore_unknown: bool = False,
) -> list[TaskSplit | None]:
    """Load the images of each task that a model has learned. Classes are matched by name.

    Args:
        name_or_path: data set id on the Hub, or a folder; as for `TaskStream.load`.
        class_tasks: names of the classes of each task, in the model's own order: the id of a class is its position
            over all tasks.
        split: split to take the images from. Default: "test", else "validation", "valid" or "val".
        config_name: configuration of a data set on the Hub.
        revision: branch, tag or commit of a data set on the Hub.
        image_column: default: the only column of type `Image`.
        label_column: `ClassLabel`, string or integer column. Default: the only column of type `ClassLabel`.
        max_per_class: use at most so many images of each class, the same ones as a `TaskStream` with this seed and
            `max_test_samples_per_class`. Default: all.
        seed: seed of that choice. Default 0.
        ignore_unknown: leave out images of classes that the model does not know. Default: refuse them.

    Returns:
        The images of each task with the model's class ids; None for a task of which there is no image.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If there is no split to test on, the model does not know a class, or knows none of them.
    """
    dataset = load_dataset_dict(name_or_path, config_name=config_name, revision=revision)
    split = _find_split(list(dataset), split)
    features = dataset[split].features
    image_column = find_image_column(features, image_column)
    label_column = find_label_column(features, label_column)
    classes = read_classes(dataset, [split], label_column)
    class_tasks = [[one_form(name) for name in task] for task in class_tasks]  # older checkpoints have other forms
    known = [name for task in class_tasks for name in task]
    _check_classes(name_or_path, split, classes, known, ignore_unknown)
    sampler = RowSampler(seed, 0.0, 0.0, None, max_per_class)
    tests: list[TaskSplit | None] = []
    first_id = 0
    for names in class_tasks:
        rows, labels = _rows_of(names, first_id, classes, split, sampler)
        first_id += len(names)
        part = TaskSplit(dataset[split].select(rows), labels, image_column, split, rows) if len(rows) else None
        tests.append(part)
    return tests


def _find_split(splits: list[str], split: str | None) -> str:
    if split is not None and split not in splits:
        raise ValueError(f"split={split!r} does not exist; the data set's splits are {splits}")
    found = split or next((name for name in TEST_SPLIT_NAMES if name in splits), None)
    if found is None:
        raise ValueError(
            f"no split to test on among {splits}: name one with split; on images that it was trained on a model looks "
            "better than it is"
        )
    return found


def _check_classes(name: str | Path, split: str, classes: Classes, known: list[str], ignore_unknown: bool):
    present = [classes.names[position] for position in np.unique(classes.labels[split])]
    unknown = sorted(set(present) - set(known))
    if len(unknown) == len(present):
        raise ValueError(
            f"the model knows none of the {len(present)} classes in split {split!r} of {name}: they are "
            f"{some_names(present)}, the model's are {some_names(known)}"
        )
    if unknown and not ignore_unknown:
        raise ValueError(
            f"the model does not know {len(unknown)} of the {len(present)} classes in split {split!r} of {name}: "
            f"{some_names(unknown)}. Set ignore_unknown to leave their images out"
        )


def _rows_of(
    names: Sequence[str], first_id: int, classes: Classes, split: str, sampler: RowSampler
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a task's images in the order of the data set, and their class ids."""
    labels = classes.labels[split]
    rows, ids = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for class_id, name in enumerate(names, start=first_id):
        if name in classes.names:
            of_class = np.flatnonzero(labels == classes.names.index(name))
            _, _, chosen = sampler.divide(name, of_class[:0], of_class)
            rows.append(chosen)
            ids.append(np.full(len(chosen), class_id))
    merged = np.concatenate(rows)
    order = np.argsort(merged)
    return merged[order], np.concatenate(ids)[order]
