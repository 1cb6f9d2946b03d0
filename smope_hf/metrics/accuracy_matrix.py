"""The accuracy matrix of a run: its checks, its growth task by task, its CSV file.

Entry a[t][j] is the accuracy, after learning task t, on the test images of task j. Tasks count from 0, accuracies are
fractions in [0, 1]. The lower triangle (j <= t) is known, but for a model that was taught more classes where nobody
had test images of the old ones: such entries are NaN, and so are the metrics that need them. An entry above the
diagonal is the accuracy on a task not yet learned: NaN unless somebody measured it.
"""

import csv
import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..storage.field_checks import MAX_TASKS
from ..storage.files import atomic_path
from ..storage.foreign_files import read_table
from ..storage.safe_json import clipped

MAX_BYTES = 32 * 2**20  # 1000 tasks are 11 MB


def is_fraction(values: np.ndarray) -> np.ndarray:
    """Tell which entries are finite and in [0, 1]."""
    return np.isfinite(values) & (values >= 0) & (values <= 1)


def _check_entries(accuracies: np.ndarray, first_task: int = 0, partial: bool = False) -> None:
    """Refuse rows (R, C) whose entries are not fractions; row r is the one after task first_task + r."""
    after = first_task + np.arange(accuracies.shape[0])[:, None]  # (R, 1)
    may_lack = partial | (np.arange(accuracies.shape[1])[None, :] > after)  # (R, C)
    wrong = np.argwhere(~is_fraction(accuracies) & ~(np.isnan(accuracies) & may_lack))
    if len(wrong) == 0:
        return
    row, j = (int(index) for index in wrong[0])
    t = first_task + row
    value = float(accuracies[row, j])
    found = "missing" if math.isnan(value) else repr(value)
    advice = "; divide percent by 100" if 1 < value <= 100 else ""
    raise ValueError(
        f"accuracy a[{t}][{j}] (after task {t + 1}, on task {j + 1}) is {found}: "
        f"it must be a fraction in [0, 1]{advice}"
    )


def as_accuracy_matrix(matrix: "ArrayLike | AccuracyMatrix", partial: bool = False) -> np.ndarray:
    """Check an accuracy matrix and give it as a square array.

    Args:
        matrix: T rows; row t has t + 1 to T fractions in [0, 1]. Entries above the diagonal may be NaN, None or
            left out.
        partial: accept tasks learned that were not measured (NaN or None). Default: refuse them.

    Returns:
        Array (T, T) of float64, NaN where an entry above the diagonal is unknown.

    Raises:
        ValueError: no row, a row longer than T, or an entry that is missing or outside [0, 1] (named in the message).
    """
    if isinstance(matrix, AccuracyMatrix):
        square = matrix.as_array()
        _check_entries(square, partial=partial)
        return square
    rows = [np.asarray(row, dtype=np.float64) for row in matrix]
    if not rows:
        raise ValueError("the accuracy matrix is empty: it needs one row for each task learned")
    square = np.full((len(rows), len(rows)), np.nan)
    for t, row in enumerate(rows):
        if row.ndim != 1 or len(row) > len(rows):
            raise ValueError(
                f"row {t} of the accuracy matrix has shape {row.shape}, but there are {len(rows)} rows: "
                f"the matrix must be square, one row and one column for each task"
            )
        square[t, : len(row)] = row
    _check_entries(square, partial=partial)
    return square


class AccuracyMatrix:
    """The accuracy matrix of a run, growing by one row after each task.

    Args:
        rows: rows to start from, as for `add_row`. Default: none.
    """

    def __init__(self, rows: Sequence[ArrayLike] = ()):
        self._rows: list[list[float]] = []
        for row in rows:
            self.add_row(row)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_complete(self) -> bool:
        """Whether every entry on and below the diagonal was measured."""
        return not any(math.isnan(value) for t, row in enumerate(self._rows) for value in row[: t + 1])

    def add_row(self, accuracies: ArrayLike, partial: bool = False) -> None:
        """Add the accuracies measured after the next task.

        Args:
            accuracies: fractions in [0, 1], one for each task learned, the new one included; further entries are
                tasks to come, NaN or None where not measured.
            partial: accept tasks learned that were not measured (NaN or None). Default: refuse them.

        Raises:
            ValueError: an entry is missing or outside [0, 1]; nothing is added then.
        """
        t = len(self._rows)
        given = np.asarray(accuracies, dtype=np.float64)
        if given.ndim != 1:
            raise ValueError(f"the row after task {t + 1} has shape {given.shape}: it must be a list of accuracies")
        row = np.full(max(t + 1, len(given)), np.nan)
        row[: len(given)] = given
        _check_entries(row[None, :], first_task=t, partial=partial)
        known = np.flatnonzero(~np.isnan(row[t + 1 :]))
        self._rows.append(row[: t + 1 + (known[-1] + 1 if len(known) else 0)].tolist())

    def as_array(self) -> np.ndarray:
        """Give the square matrix of the tasks learned so far.

        Returns:
            Array (T, T) of float64, NaN where unknown; T is the number of rows.

        Raises:
            ValueError: no row was added yet.
        """
        if not self._rows:
            raise ValueError("the accuracy matrix is empty: it needs one row for each task learned")
        square = np.full((len(self._rows), len(self._rows)), np.nan)
        for t, row in enumerate(self._rows):
            square[t, : len(row)] = row[: len(square)]
        return square

    def to_json(self) -> list[list[float | None]]:
        """The lower triangle, row by row, None where not measured; `from_json` reads it."""
        return [[None if math.isnan(v) else v for v in row[: t + 1]] for t, row in enumerate(self._rows)]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence[float | None]]) -> "AccuracyMatrix":
        """The matrix that `to_json` gave."""
        matrix = cls()
        for row in rows:
            matrix.add_row(row, partial=True)
        return matrix

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write the matrix with all digits: a column for each task, a row after each task, empty where unknown.

        Args:
            path: the file to write; it appears whole or not at all.
        """
        width = max((len(row) for row in self._rows), default=0)
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["after", *(f"task-{j + 1}" for j in range(width))])
            for t, row in enumerate(self._rows):
                cells = ["" if math.isnan(value) else repr(value) for value in row]
                writer.writerow([f"task-{t + 1}", *cells, *[""] * (width - len(row))])

    @classmethod
    def from_csv(cls, path: str | os.PathLike, partial: bool = False) -> "AccuracyMatrix":
        """Read a matrix that `to_csv` wrote.

        Args:
            path: the file to read.
            partial: accept tasks learned that were not measured. Default: refuse them.

        Returns:
            An equal `AccuracyMatrix`.

        Raises:
            ValueError: the file is not such a table; the message names the file and the entry.
        """
        header, *lines = read_table(path, MAX_BYTES) or [[]]
        if len(lines) > MAX_TASKS:
            raise ValueError(f"{path} has {len(lines)} rows, and at most {MAX_TASKS} tasks are read")
        if header != ["after", *(f"task-{j}" for j in range(1, len(header)))]:
            raise ValueError(
                f"{path}: the first line must be after,task-1,task-2,..., got {clipped(','.join(header), 200)!r}"
            )
        matrix = cls()
        for number, line in enumerate(lines, start=1):
            if len(line) != len(header) or line[0] != f"task-{number}":
                found = clipped(str(line), 200)
                raise ValueError(
                    f"{path}: row {number} must be task-{number} and {len(header) - 1} cells, got {found}"
                )
            try:
                matrix.add_row([float(cell) if cell else math.nan for cell in line[1:]], partial)
            except ValueError as error:
                raise ValueError(f"{path}: row task-{number}: {clipped(str(error), 200)}") from error
        return matrix
