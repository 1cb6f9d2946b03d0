"""Final average accuracy over the training images of a class: how much a method needs."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .plot_parts import MARKERS, label_line_ends, line_figure, line_look, name_axes, percent_axis, percent_range
from .plot_style import LIGHT, save


def plot_sample_efficiency(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float | None]]],
    path: str | os.PathLike,
    *,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw one line for each method over the training images of a class, on a logarithmic scale.

    Args:
        curves: for each method's name the numbers of images, from 1 up, the accuracies in percent, and their standard
            deviations (None where it is not known), which become bars.
        path: file to write, .png or .svg; it appears whole or not at all.
        title: line above the axes. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: no method, a method without a point, lists of unequal length, or another suffix.
    """
    if not curves:
        raise ValueError("no curve to plot: give at least one method and its accuracies")
    for name, parts in curves.items():
        if len({len(part) for part in parts}) != 1 or not parts[0]:
            raise ValueError(f"method {name!r} has {[len(part) for part in parts]} numbers: give equally many, from 1")
    figure, axes = line_figure(len(curves), theme)
    axes.set_xscale("log")
    ends, heights = [], []
    for index, (name, (samples, accuracies, spreads)) in enumerate(curves.items()):
        colour, _, _ = line_look(index, theme)
        marker = MARKERS[index % len(MARKERS)]
        bars = [spread or 0.0 for spread in spreads]
        axes.plot(samples, accuracies, color=colour, marker=marker, markersize=4, linewidth=1.6)
        if any(bars):
            axes.errorbar(samples, accuracies, yerr=bars, fmt="none", ecolor=colour, capsize=2.5)
        ends.append((name, float(samples[-1]), float(accuracies[-1]), colour))
        heights += [accuracy + side * bar for accuracy, bar in zip(accuracies, bars) for side in (-1, 1)]
    percent_range(axes, min(heights), max(heights))
    ticks = sorted({count for samples, _, _ in curves.values() for count in samples})
    axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    percent_axis(axes, theme)
    name_axes(axes, theme, title, "Training images of each class", "Final average accuracy")
    label_line_ends(axes, ends, theme)
    save(figure, path, dpi)
    return figure
