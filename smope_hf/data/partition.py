"""Which classes make up a task, and which rows train, validate and test it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .imbalance import check_factor, long_tailed
from .reading import Classes


def class_groups(
    classes: Classes,
    *,
    num_tasks: int | None,
    classes_per_task: int | None,
    class_lists: Sequence[Sequence[str | int]] | None,
    shuffle_classes: bool,
    seed: int,
) -> list[list[int]]:
    """Divide the classes among tasks.

    Args:
        classes: The classes of the data set.
        num_tasks: Number of tasks of equal size.
        classes_per_task: Classes in each task.
        class_lists: The classes of each task, by name or value; exactly one of these three is given.
        shuffle_classes: Shuffle the order with `random.Random(seed)`; published class orders depend on this call.
        seed: Seed of the order.

    Returns:
        For each task, the positions of its classes in `classes.names`.

    Raises:
        ValueError: If not exactly one choice is given, or it does not go with the classes.
    """
    choices = {"num_tasks": num_tasks, "classes_per_task": classes_per_task, "class_lists": class_lists}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of {list(choices)} is needed; given: {given or 'none'}")
    if class_lists is not None:
        return _listed_groups(classes, class_lists)
    option, value = given[0], choices[given[0]]
    count = len(classes.names)
    _check_count(option, value)
    if count % value:
        divisors = [number for number in range(1, count + 1) if count % number == 0]
        raise ValueError(
            f"{option}={value} does not divide the {count} classes of the data set; possible are {divisors}, or "
            "class_lists for tasks of unequal size"
        )
    order = list(range(count))
    if shuffle_classes:
        random.Random(seed).shuffle(order)
    size = count // num_tasks if num_tasks is not None else classes_per_task
    return [order[start : start + size] for start in range(0, count, size)]


def check_max_tasks(value: object, tasks: int) -> None:
    """Refuse a `max_tasks` that is neither None nor a number of tasks that there are."""
    if value is not None:
        _check_count("max_tasks", value)
        if value > tasks:
            raise ValueError(f"max_tasks={value}: there are {tasks} tasks; give at most that, or leave it out for all")


def _listed_groups(classes: Classes, class_lists: Sequence[Sequence[str | int]]) -> list[list[int]]:
    lists = isinstance(class_lists, Sequence) and not isinstance(class_lists, str)
    if not lists or any(isinstance(group, str) or not isinstance(group, Sequence) for group in class_lists):
        raise ValueError(f"class_lists={class_lists!r}: one list of classes per task is needed")
    groups = [[classes.position(value) for value in group] for group in class_lists]
    if not groups or not all(groups):
        raise ValueError("class_lists: at least one task, and at least one class in every task, is needed")
    task_of: dict[int, int] = {}
    for task, group in enumerate(groups):
        for position in group:
            if position in task_of:
                name = classes.names[position]
                raise ValueError(
                    f"class_lists names class {name!r} twice, in tasks {task_of[position]} and {task} (counted from "
                    "0); every class belongs to one task at most"
                )
            task_of[position] = task
    return groups


def _check_count(option: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{option}={value!r}: a whole number above 0 is needed")


@dataclass(frozen=True)
class RowSampler:
    """Choice of each class's rows; see `TaskStream` for the arguments.

    Every choice has its own random numbers, from the seed, its purpose and the class's name.
    """

    seed: int
    validation_fraction: float
    test_fraction: float
    max_train_samples_per_class: int | None
    max_test_samples_per_class: int | None
    imbalance_factor: float = 1.0

    def __post_init__(self):
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed={self.seed!r}: a whole number is needed")
        for option in ("validation_fraction", "test_fraction"):
            value = getattr(self, option)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ValueError(f"{option}={value!r}: a number from 0 to below 1 is needed")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} leave nothing "
                "to train on: their sum must be below 1"
            )
        for option in ("max_train_samples_per_class", "max_test_samples_per_class"):
            if getattr(self, option) is not None:
                _check_count(option, getattr(self, option))
        check_factor(self.imbalance_factor)

    def divide(
        self, class_name: str, train_rows: np.ndarray, test_rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of one class for training, validation and testing.

        Args:
            class_name: Name of the class.
            train_rows: Its rows in the training split.
            test_rows: Its rows in the test split; None to take `test_fraction` of the training rows.

        Returns:
            Three arrays of rows, each ascending; the last belongs to the training split where `test_rows` is None.
        """
        remaining = train_rows
        if test_rows is None:
            test_rows = self._share(remaining, self.test_fraction, "test", class_name)
            remaining = np.setdiff1d(remaining, test_rows)
        validation_rows = self._share(remaining, self.validation_fraction, "validation", class_name)
        kept = np.setdiff1d(remaining, validation_rows)
        training = self._limited(train_rows, kept, self.max_train_samples_per_class, class_name)
        testing = self._shuffled(test_rows, "test limit", class_name)[: self.max_test_samples_per_class]
        return training, validation_rows, np.sort(testing)

    def thin_out(
        self, train_rows: Mapping[str, np.ndarray], training: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Rows that are left for training under `imbalance_factor`.

        Args:
            train_rows: all rows of each class in the training split, by class name.
            training: those of them that `divide` chose for training.

        Returns:
            The rows of each class, ascending. A larger factor selects some of the rows that a smaller one does.
        """
        sizes = {name: len(rows) for name, rows in training.items()}
        limits = long_tailed(sizes, self.imbalance_factor, self.seed)
        return {name: self._limited(train_rows[name], rows, limits[name], name) for name, rows in training.items()}

    def _limited(self, train_rows: np.ndarray, kept: np.ndarray, limit: int | None, class_name: str) -> np.ndarray:
        # Shuffling all rows first keeps this choice as it is, as far as possible, when a share changes.
        order = self._shuffled(train_rows, "train limit", class_name)
        return np.sort(order[np.isin(order, kept)][:limit])

    def _share(self, rows: np.ndarray, fraction: float, purpose: str, class_name: str) -> np.ndarray:
        if fraction == 0 or len(rows) < 2:
            return rows[:0]
        count = min(max(int(fraction * len(rows) + 0.5), 1), len(rows) - 1)
        return np.sort(self._shuffled(rows, purpose, class_name)[:count])

    def _shuffled(self, rows: np.ndarray, purpose: str, class_name: str) -> np.ndarray:
        order = list(range(len(rows)))
        random.Random(f"{self.seed}/{purpose}/{class_name}").shuffle(order)
        return rows[np.array(order, dtype=np.int64)]
