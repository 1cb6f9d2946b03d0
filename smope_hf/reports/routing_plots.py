"""Plots of the routing's patterns: overlap of tasks, balance over tasks, survival of old tasks' routing."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .plot_parts import (
    add_colorbar,
    add_named_colours,
    map_of_tasks,
    name_axes,
    name_rows,
    number_cells,
    panels,
    percent_axis,
    percent_range,
    round_ticks,
    rounded_range,
    task_ticks,
)
from .plot_style import LIGHT, save


def plot_task_overlap(
    overlap: ArrayLike, path: str | os.PathLike, *, title: str | None = None, dpi: int = 200, theme: Mapping = LIGHT
) -> Figure:
    """Draw how much every two tasks share of the experts, as a heat map.

    Args:
        overlap: fractions (T, T), or (L, T, T) of which the mean over layers is drawn; the diagonal is left blank.
        path: file to write, .png or .svg; it appears whole or not at all.
        title: line above the map. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: fewer than two tasks, another shape, values outside [0, 1], or another suffix.

    Source: [`smope_hf.routing.patterns.task_overlap`].
    """
    overlap = np.asarray(overlap, dtype=np.float64)
    percent = 100 * _square("overlap", overlap.mean(axis=0) if overlap.ndim == 3 else overlap)
    np.fill_diagonal(percent, np.nan)
    figure, axes, image = _heat_map(percent, theme)
    name_axes(axes, theme, title, "Task", "Task")
    add_colorbar(axes, image, theme, "Usage in common, mean over layers and heads")
    number_cells(axes, image, percent, theme)
    save(figure, path, dpi)
    return figure


def plot_survival(
    survival: ArrayLike,
    path: str | os.PathLike,
    *,
    chance: float | None = None,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw how much of each task's routing is left after each later task: a row for each task, a column after each.

    Args:
        survival: fractions (T, T), task by task learned last; NaN where it was not measured, and that is left blank,
            as are the diagonal and what is below it.
        path: file to write, .png or .svg; it appears whole or not at all.
        chance: what a random choice of experts would keep, K / E; written beside the scale. Default: not written.
        title: line above the map. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: fewer than two tasks, another shape, values outside [0, 1], nothing measured, or another suffix.

    Source: [`smope_hf.routing.patterns.routing_survival`].
    """
    percent = 100 * _square("survival", np.asarray(survival, dtype=np.float64))
    percent[np.tril_indices(len(percent))] = np.nan
    figure, axes, image = _heat_map(percent, theme)
    name_axes(axes, theme, title, "After learning task", "Test images of task")
    text = "Selected experts that are still selected"
    add_colorbar(axes, image, theme, text if chance is None else f"{text}\n(random choice: {100 * chance:.3g}%)")
    number_cells(axes, image, percent, theme)
    save(figure, path, dpi)
    return figure


def plot_balance(
    entropy: ArrayLike,
    dead_share: ArrayLike,
    path: str | os.PathLike,
    *,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw over the tasks learned how even each layer's usage is, and the share of experts never selected.

    A line for each layer; of more layers than the theme has colours for, a row for each in a heat map.

    Args:
        entropy: normalised entropy of the usage counts after each task, (T, L), in [0, 1]; 1 for even use.
        dead_share: share of the layer's experts never selected up to then, (T, L), in [0, 1].
        path: file to write, .png or .svg; it appears whole or not at all.
        layers: the backbone's number of each prompt layer. Default: 0, 1, 2, ...
        title: line above the axes. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: unequal or empty shapes, values outside [0, 1], another number of layers, or another suffix.

    Source: [`smope_hf.routing.patterns.balance`].
    """
    entropy, dead_share, names = _check_balance(entropy, dead_share, layers, "tasks")
    tasks = np.arange(len(entropy)) + 1
    figure, upper, lower = _balance_panels(tasks, entropy, dead_share, names, theme, "Experts never selected")
    if len(names) <= len(theme["lines"]):
        lower.set_xlim(1 - 0.03 * len(tasks), 1.03 * len(tasks))
    lower.set_xticks(task_ticks(len(tasks), most=12))
    _finish_balance(figure, upper, lower, theme, title, "Tasks learned")
    save(figure, path, dpi)
    return figure


def plot_training_balance(
    steps: ArrayLike,
    entropy: ArrayLike,
    dead_share: ArrayLike,
    path: str | os.PathLike,
    *,
    task_starts: Sequence[int] = (),
    layers: Sequence[int] | None = None,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw over the steps of training how evenly each layer selects, and the share of experts that it does not select.

    Args:
        steps: step of each reading, (R,), rising.
        entropy: normalised entropy of the selections since the reading before, (R, L), in [0, 1]; 1 for even use.
        dead_share: share of the layer's experts not selected since then, (R, L), in [0, 1].
        path: file to write, .png or .svg; it appears whole or not at all.
        task_starts: last step before each task, rising; a line marks where a task begins. Default: none.
        layers: the backbone's number of each prompt layer. Default: 0, 1, 2, ...
        title: line above the axes. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: unequal or empty shapes, steps that do not rise, values outside [0, 1], another number of layers,
            or another suffix.

    Source: [`smope_hf.training.training_recorder.TrainingRoutingRecorder`].
    """
    entropy, dead_share, names = _check_balance(entropy, dead_share, layers, "readings")
    steps, starts = np.asarray(steps, dtype=np.float64), np.asarray(task_starts, dtype=np.float64)
    if steps.shape != (len(entropy),) or (np.diff(steps) <= 0).any() or (np.diff(starts) <= 0).any():
        raise ValueError(
            f"steps has shape {steps.shape} for {len(entropy)} readings, and task_starts {starts.shape}. Allowed: one "
            "rising step for each reading, and rising starts."
        )
    breaks = np.flatnonzero(np.diff(np.searchsorted(starts, steps))) + 1  # readings that are a task's first
    figure, upper, lower = _balance_panels(steps, entropy, dead_share, names, theme, "Experts not selected", breaks)
    for axes in (upper, lower):
        for start in starts[starts > 0]:
            axes.axvline(start, color=theme["marked" if axes.collections else "text"], linewidth=0.8, linestyle="--")
    low, high = min([*starts, steps[0]]), steps[-1]
    lower.set_xlim(low - 0.02 * (high - low), high + max(0.02 * (high - low), 0.5))
    lower.xaxis.set_major_locator(round_ticks(7, integer=True))
    text = "Training step (dashed: a task begins)" if (starts > 0).any() else "Training step"
    _finish_balance(figure, upper, lower, theme, title, text)
    save(figure, path, dpi)
    return figure


def _check_balance(
    entropy: ArrayLike, dead_share: ArrayLike, layers: Sequence[int] | None, rows: str
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The two as arrays, and the numbers of the layers."""
    entropy, dead_share = (np.asarray(values, dtype=np.float64) for values in (entropy, dead_share))
    if entropy.ndim != 2 or entropy.size == 0 or entropy.shape != dead_share.shape:
        raise ValueError(
            f"entropy has shape {entropy.shape} and dead_share {dead_share.shape}: give both as ({rows}, layers)"
        )
    _check_fractions("entropy", entropy)
    _check_fractions("dead_share", dead_share)
    names = list(range(entropy.shape[1]) if layers is None else layers)
    if len(names) != entropy.shape[1]:
        raise ValueError(f"layers has {len(names)} numbers for {entropy.shape[1]} prompt layers")
    return entropy, dead_share, names


def _square(name: str, values: np.ndarray) -> np.ndarray:
    """A copy of a (T, T) array of fractions, NaN allowed."""
    if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) < 2:
        raise ValueError(f"{name} has shape {values.shape}. Allowed: (tasks, tasks) with at least two tasks.")
    _check_fractions(name, values[~np.isnan(values)])
    return values.copy()


def _check_fractions(name: str, values: np.ndarray):
    wrong = values[~((values >= 0) & (values <= 1))]
    if len(wrong):
        raise ValueError(f"{name} holds {wrong[0]:g}. Allowed: fractions in [0, 1].")


def _heat_map(percent: np.ndarray, theme: Mapping) -> tuple[Figure, Axes, object]:
    measured = percent[~np.isnan(percent)]
    if len(measured) == 0:
        raise ValueError("there is nothing to draw: every value of two different tasks is NaN")
    return map_of_tasks(percent, theme, *rounded_range(measured))


def _balance_panels(
    x: np.ndarray,
    entropy: np.ndarray,
    dead_share: np.ndarray,
    names: list[int],
    theme: Mapping,
    unused: str,
    breaks: Sequence[int] = (),
) -> tuple[Figure, Axes, Axes]:
    """Two panels over one x axis: a line for each layer, or, where lines would be too many, a row of a heat map.

    `breaks` are the readings that are not joined to the one before.
    """
    lines = len(names) <= len(theme["lines"])
    figure, (upper, lower) = panels(5.2 if lines else 6.4, theme, rows=2, columns=1)
    texts = ("Entropy of usage\n(even use: 100%)", unused)
    for axes, values, text in zip((upper, lower), (100 * entropy, 100 * dead_share), texts, strict=True):
        if lines:
            _layer_lines(axes, x, values, theme, breaks)
            name_axes(axes, theme, None, "", text)
        else:
            image = _layer_rows(axes, x, values, names, theme, breaks)
            name_axes(axes, theme, None, "", "Prompt layer")
            add_colorbar(axes, image, theme, text)
    if lines:
        add_named_colours(figure, (upper, lower), names, theme, "Prompt layer")
    return figure, upper, lower


def _finish_balance(figure: Figure, upper: Axes, lower: Axes, theme: Mapping, title: str | None, x: str):
    upper.set_xticks(lower.get_xticks(), [""] * len(lower.get_xticks()))  # the lower axes name them
    upper.set_xlim(lower.get_xlim())  # ticks beyond it have widened it
    name_axes(upper, theme, title, "", upper.get_ylabel())
    name_axes(lower, theme, None, x, lower.get_ylabel())


def _layer_lines(axes: Axes, x: np.ndarray, percent: np.ndarray, theme: Mapping, breaks: Sequence[int]):
    place, height = np.insert(x.astype(np.float64), breaks, np.nan), np.insert(percent, breaks, np.nan, axis=0)
    marker = "o" if len(x) <= 20 else ""
    for values, colour in zip(height.T, theme["lines"]):
        axes.plot(place, values, color=colour, linewidth=1.6, marker=marker, markersize=4)
    percent_range(axes, percent.min(), percent.max(), share=0.08, least=2, beyond=3)
    percent_axis(axes, theme, most=5)


def _layer_rows(
    axes: Axes, x: np.ndarray, percent: np.ndarray, names: list[int], theme: Mapping, breaks: Sequence[int]
):
    """A heat map with the first layer on top; a column's place is x, its width the usual distance."""
    whole = np.issubdtype(x.dtype, np.integer)
    width = float(np.median(np.diff(x))) if len(x) > 1 else 1.0
    right = x + 0.5 if whole else x  # a task is around its number, a reading ends at its step
    left = np.maximum(right - width, np.concatenate([[-np.inf], right[:-1]]))
    joined = np.ones(len(x), dtype=bool)
    joined[list(breaks)] = False
    left[1:] = np.where(joined[1:], right[:-1], left[1:])
    edges, columns = [left[0]], []
    for start, end, values in zip(left, right, percent, strict=True):
        if start > edges[-1]:  # nothing was read in between
            edges.append(start)
            columns.append(np.full(len(names), np.nan))
        edges.append(end)
        columns.append(values)
    axes.set_facecolor(theme["empty"])
    cells = np.ma.masked_invalid(np.transpose(columns))
    rows = np.arange(len(names) + 1) - 0.5
    top = max(percent.max(), percent.min() + 1)
    image = axes.pcolormesh(edges, rows, cells, cmap=theme["map"], vmin=percent.min(), vmax=top)
    axes.set_ylim(len(names) - 0.5, -0.5)
    name_rows(axes, range(len(names)), names, most=12)
    return image
