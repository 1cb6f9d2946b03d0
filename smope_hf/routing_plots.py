"""Plots of the routing's patterns: overlap of tasks, balance over tasks, survival of old tasks' routing."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from .plot_style import (
    FONT,
    LIGHT,
    add_colorbar,
    map_of_tasks,
    name_axes,
    new_figure,
    number_cells,
    rounded_range,
    save,
    task_ticks,
)


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

    Source: [`smope_hf.routing_patterns.task_overlap`].
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

    Source: [`smope_hf.routing_patterns.routing_survival`].
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

    Source: [`smope_hf.routing_patterns.balance`].
    """
    entropy, dead_share = (np.asarray(values, dtype=np.float64) for values in (entropy, dead_share))
    if entropy.ndim != 2 or entropy.size == 0 or entropy.shape != dead_share.shape:
        raise ValueError(
            f"entropy has shape {entropy.shape} and dead_share {dead_share.shape}: give both as (tasks, layers)"
        )
    _check_fractions("entropy", entropy)
    _check_fractions("dead_share", dead_share)
    names = list(range(entropy.shape[1]) if layers is None else layers)
    if len(names) != entropy.shape[1]:
        raise ValueError(f"layers has {len(names)} numbers for {entropy.shape[1]} prompt layers")
    figure, upper = new_figure(5.2, theme)
    grid = figure.add_gridspec(2, 1)
    upper.set_subplotspec(grid[0])
    lower = figure.add_subplot(grid[1], facecolor=theme["background"])
    lower.tick_params(colors=theme["axis"], labelcolor=theme["text"], labelsize=FONT, length=3)
    lower.spines[["left", "bottom"]].set(color=theme["axis"], linewidth=0.8)
    colours = _layer_colours(len(names), theme)
    for axes, values in ((upper, 100 * entropy), (lower, 100 * dead_share)):
        _layer_lines(axes, values, colours, theme)
    upper.set_xticks(upper.get_xticks(), [""] * len(upper.get_xticks()))  # the lower axes name them
    name_axes(upper, theme, title, "", "Entropy of usage\n(even use: 100%)")
    name_axes(lower, theme, None, "Tasks learned", "Experts never selected")
    _layer_scale(figure, (upper, lower), colours, names, theme)
    save(figure, path, dpi)
    return figure


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


def _layer_colours(count: int, theme: Mapping) -> list:
    """One colour for each layer: the theme's where they suffice, or else the map's in the order of depth."""
    if count <= len(theme["lines"]):
        return list(theme["lines"][:count])
    bright = sum(to_rgb(theme["background"])) > 1.5
    ends = (0.0, 0.85) if bright else (0.3, 1.0)  # not the end that is too near the background
    return [colormaps[theme["map"]](place) for place in np.linspace(*ends, count)]


def _layer_lines(axes: Axes, percent: np.ndarray, colours: list, theme: Mapping):
    num_tasks = len(percent)
    tasks = np.arange(num_tasks) + 1
    few = len(colours) <= len(theme["lines"])
    marker, width = ("o" if few and num_tasks <= 20 else ""), (1.6 if few else 1.0)
    for values, colour in zip(percent.T, colours, strict=True):
        axes.plot(tasks, values, color=colour, linewidth=width, marker=marker, markersize=4)
    margin = max(0.08 * np.ptp(percent), 2.0)
    axes.set_ylim(max(percent.min() - margin, -3), min(percent.max() + margin, 103))
    axes.set_xlim(1 - 0.03 * num_tasks, 1.03 * num_tasks)
    axes.set_xticks(task_ticks(num_tasks, most=12))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.grid(axis="y", color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _layer_scale(figure: Figure, axes: Sequence[Axes], colours: list, names: list[int], theme: Mapping):
    """Say which colour is which layer."""
    edges = np.arange(len(names) + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(edges, len(names)), ListedColormap(colours))
    bar = figure.colorbar(scale, ax=list(axes), fraction=0.05, pad=0.02, aspect=30)
    step = -(-len(names) // 24)
    bar.set_ticks(list(range(0, len(names), step)), labels=[str(name) for name in names[::step]])
    bar.ax.minorticks_off()
    bar.ax.tick_params(colors=theme["axis"], labelcolor=theme["text"], labelsize=FONT, length=0)
    bar.set_label("Prompt layer", fontsize=FONT, color=theme["text"])
    bar.outline.set(edgecolor=theme["axis"], linewidth=0.8)
