"""Plots of a run as PNG or SVG files: accuracy matrix, average accuracy of several methods, usage of the experts.

Every plot is a `matplotlib.figure.Figure` of its own, without pyplot and its global state, and needs no display. Sizes
are chosen to be read at 600 pixels of width, colours to be told apart by colour-blind readers.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from .accuracy_matrix import AccuracyMatrix
from .metrics import as_accuracy_matrix, average_accuracies
from .plot_style import DARK as DARK
from .plot_style import FONT, LIGHT, add_colorbar, name_axes, new_figure, save
from .plot_style import task_ticks as _task_ticks

_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")


def _number_cells(axes: Axes, image, percent: np.ndarray, theme: Mapping) -> None:
    """Write each cell's number, with one decimal, none, or not at all, as the cell's size allows."""
    axes.figure.canvas.draw()
    cell = axes.get_window_extent().width / len(percent) * 72 / axes.figure.dpi  # points
    # A digit is about 0.64 of the font size wide, a point half of that; "100.0" has four digits and a point.
    decimals = 1 if cell / (4.5 * 0.64) >= 7 else 0
    size = min(FONT, cell / ((4.5 if decimals else 3) * 0.64))
    if size < 6:
        return
    for t, j in np.argwhere(~np.isnan(percent)):
        red, green, blue, _ = image.to_rgba(percent[t, j])
        colour = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.46 else "#000000"
        text = f"{percent[t, j]:.{decimals}f}"
        axes.text(j, t, text, ha="center", va="center", fontsize=size, color=colour, gid="cell")


def plot_accuracy_matrix(
    matrix: ArrayLike,
    path: str | os.PathLike,
    *,
    title: str | None = None,
    value_range: tuple[float, float] | None = None,
    partial: bool = False,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw the accuracy matrix as a heat map: a row after each task, a column for each task, numbers where they fit.

    Args:
        matrix: accuracy matrix (T, T), fractions.
        path: file to write, .png or .svg; it appears whole or not at all.
        title: line above the map. Default: none.
        value_range: fractions at the two ends of the colour scale; give the same to plots that are to be compared.
            Default: the values' own range, rounded out to tens of percent.
        partial: leave tasks learned that were not measured (NaN) blank. Default: refuse them.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: the matrix is not valid, see `as_accuracy_matrix`, or the suffix is another one.
    """
    percent = 100 * as_accuracy_matrix(matrix, partial)
    num_tasks = len(percent)
    if value_range is None:
        low = min(10 * np.floor(np.nanmin(percent) / 10), 80)
        high = max(10 * np.ceil(np.nanmax(percent) / 10), low + 20)
    else:
        low, high = 100 * value_range[0], 100 * value_range[1]
    figure, axes = new_figure(5.2, theme)
    axes.set_facecolor(theme["empty"])
    cells = np.ma.masked_invalid(percent)
    image = axes.imshow(cells, cmap=theme["map"], vmin=low, vmax=high, interpolation="nearest")
    ticks = _task_ticks(num_tasks, most=20 if num_tasks <= 20 else 12)
    labels = [str(tick) for tick in ticks]
    axes.set_xticks([tick - 1 for tick in ticks], labels)
    axes.set_yticks([tick - 1 for tick in ticks], labels)
    if num_tasks <= 20:
        edges = np.arange(num_tasks - 1) + 0.5
        axes.hlines(edges, -0.5, num_tasks - 0.5, colors=theme["background"], linewidth=1)
        axes.vlines(edges, -0.5, num_tasks - 0.5, colors=theme["background"], linewidth=1)
    name_axes(axes, theme, title, "Accuracy on task", "After learning task")
    add_colorbar(axes, image, theme, "Accuracy")
    _number_cells(axes, image, percent, theme)
    save(figure, path, dpi)
    return figure


def _seed_averages(name: str, runs) -> np.ndarray:
    """Average accuracies in percent (seeds, T) of one matrix or of a list of matrices."""
    if len(runs) == 0:
        raise ValueError(f"method {name!r} has no accuracy matrix")
    if isinstance(runs, AccuracyMatrix) or (not isinstance(runs[0], AccuracyMatrix) and np.ndim(runs[0][0]) == 0):
        runs = [runs]
    curves = [average_accuracies(matrix) for matrix in runs]
    lengths = [len(curve) for curve in curves]
    if len(set(lengths)) > 1:
        raise ValueError(f"method {name!r}: its seeds have {lengths} tasks; give runs of equally many tasks")
    return 100 * np.stack(curves)


def _spread(targets: np.ndarray, heights: np.ndarray, low: float, high: float) -> np.ndarray:
    """Move centres as little as possible (least squares) so that boxes of these heights do not overlap."""
    order = np.argsort(targets, kind="stable")
    offsets = np.cumsum(heights[order]) - heights[order] / 2
    blocks: list[list[float]] = []  # mean and size of runs of touching boxes
    for target in targets[order] - offsets:
        blocks.append([float(target), 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1][0] = (blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size)
            blocks[-1][1] += size
    start = np.concatenate([np.full(size, mean) for mean, size in blocks])
    centres = np.empty(len(targets))
    centres[order] = np.clip(start, low, max(low, high - heights.sum())) + offsets
    return centres


def _label_line_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]], theme: Mapping) -> None:
    """Write each line's name and last value beside the axes, tied to its end (x, y), without overlap."""
    labels = []
    for name, x, y, colour in ends:
        short = textwrap.shorten(name, 28, placeholder="...") if " " in name else name[:28]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.9, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3}
        label = axes.annotate(
            f"{short} {y:.1f}",
            xy=(x, y),
            xytext=(1.04, y),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=FONT,
            color=theme["text"],
            parse_math=False,
            annotation_clip=False,
            arrowprops=line,
        )
        labels.append(label)
    axes.figure.canvas.draw()
    box = axes.get_window_extent()
    data_per_pixel = np.diff(axes.get_ylim())[0] / box.height
    heights = np.array([1.2 * Text.get_window_extent(label).height for label in labels]) * data_per_pixel
    centres = _spread(np.array([y for _, _, y, _ in ends]), heights, *axes.get_ylim())
    for label, centre in zip(labels, centres, strict=True):
        label.set_y(centre)


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
    averages = {name: _seed_averages(name, runs) for name, runs in curves.items()}
    num_tasks = max(values.shape[1] for values in averages.values())
    figure, axes = new_figure(max(3.6, 1 + 0.18 * len(averages)), theme)
    ends = []
    for index, (name, values) in enumerate(averages.items()):
        turn, place = divmod(index, len(theme["lines"]))
        colour, tasks, mean = theme["lines"][place], np.arange(values.shape[1]) + 1, values.mean(axis=0)
        marker = _MARKERS[place] if num_tasks <= 20 else ""
        axes.plot(tasks, mean, color=colour, marker=marker, markersize=4, linewidth=1.6, linestyle=_DASHES[turn % 4])
        if len(values) > 1:
            axes.fill_between(tasks, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        ends.append((name, float(tasks[-1]), float(mean[-1]), colour))
    low, high = (bound([bound(values) for values in averages.values()]) for bound in (np.min, np.max))
    margin = max(0.06 * (high - low), 2.5)
    axes.set_ylim(max(low - margin, -1), min(high + margin, 101))
    axes.set_xlim(1 - 0.03 * num_tasks, num_tasks + 0.03 * num_tasks)
    axes.set_xticks(_task_ticks(num_tasks, most=12))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.grid(axis="y", color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    band = any(len(values) > 1 for values in averages.values())
    name_axes(axes, theme, title, "Tasks learned" + (" (band: range over seeds)" if band else ""), "Average accuracy")
    _label_line_ends(axes, ends, theme)
    save(figure, path, dpi)
    return figure


def _usage_rows(usage_counts: Sequence[ArrayLike]) -> list[np.ndarray]:
    layers = [np.asarray(counts, dtype=np.float64) for counts in usage_counts]
    if not layers:
        raise ValueError("no usage counts to plot: give one array (heads, experts) for each prompt layer")
    for index, counts in enumerate(layers):
        if counts.ndim != 2 or counts.shape[1] != layers[0].shape[1]:
            raise ValueError(
                f"usage counts of prompt layer {index} have shape {counts.shape}: "
                f"every layer needs (heads, experts) with as many experts"
            )
        if not np.isfinite(counts).all() or (counts < 0).any():
            raise ValueError(f"usage counts of prompt layer {index} must be numbers from 0 on")
    return layers


def plot_expert_usage(
    usage_counts: Sequence[ArrayLike],
    path: str | os.PathLike,
    *,
    frequently_used: Sequence[ArrayLike] | None = None,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw each expert's share of its head's selections as a heat map: a row for each layer and head.

    Args:
        usage_counts: for each prompt layer how often each expert was selected (H, E), from 0 on.
        path: file to write, .png or .svg; it appears whole or not at all.
        frequently_used: for each prompt layer the marks (H, E), bool; marked experts are outlined. Default: none.
        layers: the backbone's number of each prompt layer. Default: 0, 1, 2, ...
        title: line above the map. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: arrays of unequal shapes, negative counts, or another suffix.

    Source: design.md section 2, steps 5 and 6.
    """
    counts = _usage_rows(usage_counts)
    names = range(len(counts)) if layers is None else layers
    if len(names) != len(counts):
        raise ValueError(f"layers has {len(names)} numbers for {len(counts)} prompt layers")
    rows = np.concatenate(counts)  # (layers * H, E)
    share = 100 * rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    figure, axes = new_figure(float(np.clip(1.4 + 0.07 * len(rows), 3.2, 40)), theme)  # a row can be seen in any model
    axes.set_facecolor(theme["empty"])
    used = np.ma.masked_where(share == 0, share)
    top = max(share.max(), 100 / rows.shape[1])
    image = axes.imshow(used, cmap=theme["map"], vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    keys = [Patch(facecolor=theme["empty"], edgecolor=theme["axis"], label="never selected")]
    if frequently_used is not None:
        _outline(axes, counts, frequently_used, theme)
        keys.append(Patch(facecolor="none", edgecolor=theme["marked"], label="marked as frequently used"))
    _layer_axis(axes, [len(layer) for layer in counts], names, theme)
    experts = rows.shape[1]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, experts) if experts / step <= 15)
    axes.set_xticks(range(0, experts, step))
    name_axes(axes, theme, title, "Expert", "Prompt layer, a row for each head")
    add_colorbar(axes, image, theme, f"Share of the head's selections\n(even use: {100 / experts:.3g}%)")
    figure.legend(
        handles=keys, loc="outside lower center", ncols=2, fontsize=FONT, frameon=False, labelcolor=theme["text"]
    )
    save(figure, path, dpi)
    return figure


def _outline(axes: Axes, counts: list[np.ndarray], frequently_used: Sequence[ArrayLike], theme: Mapping) -> None:
    marks = [np.asarray(layer, dtype=bool) for layer in frequently_used]
    shapes, expected = [layer.shape for layer in marks], [layer.shape for layer in counts]
    if shapes != expected:
        raise ValueError(f"frequently_used has shapes {shapes}, the usage counts have {expected}: they must be equal")
    cells = [Rectangle((e - 0.45, row - 0.42), 0.9, 0.84) for row, e in np.argwhere(np.concatenate(marks))]
    width = min(1.0, 12 * axes.figure.get_figheight() / sum(map(len, counts)))  # a sixth of a row's height
    axes.add_collection(PatchCollection(cells, facecolor="none", edgecolor=theme["marked"], linewidth=width))


def _layer_axis(axes: Axes, heads: list[int], names: Sequence[int], theme: Mapping) -> None:
    ends = np.cumsum(heads)
    axes.hlines(ends[:-1] - 0.5, *axes.get_xlim(), colors=theme["background"], linewidth=2)
    step = -(-len(heads) // 24)
    axes.set_yticks((ends - np.array(heads) / 2 - 0.5)[::step], [str(name) for name in names][::step])
