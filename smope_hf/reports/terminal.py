"""Tables for the terminal, in ASCII only; those of accuracies and metrics are in percent."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from rich.box import Box
from rich.table import Table
from rich.text import Text

from ..base.printable import printable
from ..base.printing import LONGEST_LINE, print_rich
from ..metrics.summary import as_accuracy_matrix

LONGEST_CELL = 300  # characters

ASCII_RULE = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)
_METRIC_COLUMNS = {
    "FAA": "final_average_accuracy",
    "CAA": "cumulative_average_accuracy",
    "FM": "forgetting",
    "BWT": "backward_transfer",
}
_MOST_TASK_COLUMNS = 10


def _percent(fraction: float | None) -> str:
    if fraction is None:
        return "n/a"
    return "" if np.isnan(fraction) else f"{round(100 * float(fraction), 1) + 0.0:.1f}"


def _table(caption: str, padding: int = 1) -> Table:
    return Table(
        box=ASCII_RULE,
        caption=caption,
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
        padding=(0, padding),
    )


def accuracy_table(matrix: ArrayLike) -> Table:
    """Make the table of an accuracy matrix: a row after each task, a column for each task, then the row's average.

    Args:
        matrix: accuracy matrix (T, T), fractions; what was not measured (NaN) is left blank. Of more than 10 tasks,
            10 spread evenly are shown, the first and the last among them, for the table to fit 80 columns.

    Returns:
        A `rich.table.Table`, in percent.

    Raises:
        ValueError: the matrix is not valid, see `as_accuracy_matrix`.
    """
    a = as_accuracy_matrix(matrix, partial=True)
    averages = [row[: t + 1].mean() for t, row in enumerate(a)]
    shown = np.unique(np.linspace(0, len(a) - 1, min(len(a), _MOST_TASK_COLUMNS)).round().astype(int))
    left_out = "" if len(shown) == len(a) else f"; {len(shown)} of {len(a)} tasks shown, average over all"
    table = _table(f"accuracy in percent{left_out}", padding=0)
    table.add_column("after", no_wrap=True)
    for j in shown:
        header = f"task {j + 1}" if len(a) < _MOST_TASK_COLUMNS else f"{j + 1}"
        table.add_column(header, justify="right", no_wrap=True, min_width=5)
    table.add_column("average", justify="right", no_wrap=True)
    for t in shown:
        table.add_row(f"task {t + 1}", *(_percent(a[t, j]) for j in shown), _percent(averages[t]))
    return table


def metrics_table(methods: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Make the table that compares methods by FAA, CAA, FM and BWT, SMoPE first.

    Args:
        methods: for each method's name its `continual_metrics`. Names that begin with "smope", in any case, come
            first, the others in the order given.

    Returns:
        A `rich.table.Table`, in percent with one decimal, "n/a" where a metric is not defined.

    Raises:
        ValueError: a method lacks one of the four metrics.
    """
    table = _table("percent; higher is better for FAA, CAA, BWT, lower for FM")
    table.add_column("method", overflow="fold")
    for column in _METRIC_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name in sorted(methods, key=lambda name: not name.casefold().startswith("smope")):
        missing = [key for key in _METRIC_COLUMNS.values() if key not in methods[name]]
        if missing:
            raise ValueError(f"method {name!r} lacks {missing}: pass the dictionary that continual_metrics returns")
        table.add_row(
            Text(printable(name, LONGEST_CELL)), *(_percent(methods[name][key]) for key in _METRIC_COLUMNS.values())
        )
    return table


def print_table(title: str, columns: dict[str, str], rows: list[Sequence[str] | None]):
    """Print a table under a title.

    Args:
        title: line above it.
        columns: headers, with "left" or "right".
        rows: cells; None for a rule.
    """
    table = Table(box=ASCII_RULE, show_edge=False, pad_edge=False, collapse_padding=True)
    for header, side in columns.items():
        table.add_column(Text(header), justify=side, overflow="fold", no_wrap=side == "right")
    for row in rows:
        table.add_section() if row is None else table.add_row(*(Text(printable(cell, LONGEST_CELL)) for cell in row))
    print_rich(Text(printable(title, LONGEST_LINE), style="bold"), table)
