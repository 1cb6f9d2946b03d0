"""Plots over the tasks learned, several methods in one picture with bands over seeds: average accuracy, forgetting."""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..metrics.accuracy_matrix import AccuracyMatrix
from ..metrics.summary import average_accuracies, forgetting_over_tasks
from .plot_parts import (
    MARKERS,
    label_line_ends,
    line_figure,
    line_look,
    name_axes,
    percent_axis,
    percent_range,
    task_ticks,
)
from .plot_style import LIGHT, save

_DASHES = ("-", "--", ":", "-.")


def _over_seeds(name: str, runs, measure: Callable[[ArrayLike], np.ndarray]) -> np.ndarray:
    """A measure over the tasks in percent (seeds, T), of one matrix or of a list of matrices."""
    if len(runs) == 0:
        raise ValueError(f"method {name!r} has no accuracy matrix")
    if isinstance(runs, AccuracyMatrix) or (not isinstance(runs[0], AccuracyMatrix) and np.ndim(runs[0][0]) == 0):
        runs = [runs]
    curves = [measure(matrix) for matrix in runs]
    lengths = [len(curve) for curve in curves]
    if len(set(lengths)) > 1:
        raise ValueError(f"method {name!r}: its seeds have {lengths} tasks; give runs of equally many tasks")
    return 100 * np.stack(curves)


def plot_average_accuracy(
    curves: Mapping[str, ArrayLike | Sequence[ArrayLike]],
    path: str | os.PathLike,
    *,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw the average accuracy over the tasks learned so far: one line for each method, a band over its seeds.

    Args:
        curves: for each method's name its accuracy matrix (T, T), fractions, or a list of them, one for each seed. The
            line is the mean over seeds, the band reaches from the smallest to the largest.
        path: file to write, .png or .svg; it appears whole or not at all.
        title: line above the axes. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: no method, a matrix that is not valid, seeds with unequal numbers of tasks, or another suffix.
    """
    if not curves:
        raise ValueError("no curve to plot: give at least one method and its accuracy matrix")
    averages = {name: _over_seeds(name, runs, average_accuracies) for name, runs in curves.items()}
    figure = _draw_curves(averages, 1, "Average accuracy", title, theme)
    save(figure, path, dpi)
    return figure


def plot_forgetting(
    curves: Mapping[str, ArrayLike | Sequence[ArrayLike]],
    path: str | os.PathLike,
    *,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw the forgetting over the tasks learned so far: one line for each method, a band over its seeds.

    Args:
        curves: as for [`plot_average_accuracy`]. With one task there is nothing to forget: a method of one task has no
            line.
        path: file to write, .png or .svg; it appears whole or not at all.
        title: line above the axes. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: no method with two tasks, a matrix that is not valid, seeds with unequal numbers of tasks, or
            another suffix.

    Source: [`smope_hf.metrics.summary.forgetting`].
    """
    values = {name: _over_seeds(name, runs, forgetting_over_tasks)[:, 1:] for name, runs in curves.items()}
    values = {name: over_tasks for name, over_tasks in values.items() if over_tasks.shape[1]}
    if not values:
        raise ValueError("no forgetting to plot: give at least one accuracy matrix of two tasks or more")
    figure = _draw_curves(values, 2, "Forgetting", title, theme)
    save(figure, path, dpi)
    return figure


def _draw_curves(curves: Mapping[str, np.ndarray], first: int, what: str, title: str | None, theme: Mapping) -> Figure:
    """Lines and bands of values in percent (seeds, tasks), from the task with this number on."""
    last = max(values.shape[1] for values in curves.values()) + first - 1
    figure, axes = line_figure(len(curves), theme)
    ends = []
    for index, (name, values) in enumerate(curves.items()):
        colour, place, turn = line_look(index, theme)
        tasks, mean = np.arange(values.shape[1]) + first, values.mean(axis=0)
        marker = MARKERS[place % len(MARKERS)] if last <= 20 else ""
        axes.plot(tasks, mean, color=colour, marker=marker, markersize=4, linewidth=1.6, linestyle=_DASHES[turn % 4])
        if len(values) > 1 and len(tasks) == 1:  # a band has no width there
            axes.vlines(tasks, values.min(), values.max(), color=colour, alpha=0.5, linewidth=4)
        elif len(values) > 1:
            axes.fill_between(tasks, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        ends.append((name, float(tasks[-1]), float(mean[-1]), colour))
    low, high = (bound([bound(values) for values in curves.values()]) for bound in (np.min, np.max))
    percent_range(axes, low, high, half_marker=True)
    axes.set_xlim(first - 0.03 * last, 1.03 * last)
    axes.set_xticks([tick for tick in task_ticks(last, most=12) if tick > first] + [first])
    percent_axis(axes, theme)
    band = any(len(values) > 1 for values in curves.values())
    name_axes(axes, theme, title, "Tasks learned" + (" (band: range over seeds)" if band else ""), what)
    label_line_ends(axes, ends, theme)
    return figure
