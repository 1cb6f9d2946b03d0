"""Methods against what they cost: final average accuracy over parameters and over GFLOPs."""

import math
import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..storage.foreign_files import read_table
from ..storage.safe_json import shown
from .plot_parts import MARKERS, drawable, legend_below, line_look, name_axes, panels, percent_axis, round_ticks
from .plot_style import LIGHT, save, style_axes

_NUMBERS = ("FAA", "FAA std", "parameters", "GFLOPs train", "GFLOPs test")
_OPTIONAL = "FAA std"
_MOST_METHODS, _LARGEST = 100, 1e18


def read_costs(path: str | os.PathLike) -> list[dict]:
    """Read what [`plot_costs`] draws from a benchmark's results.csv: each method at its best alignment.

    Args:
        path: the file.

    Returns:
        For each method a dictionary of `method` and the numbers `FAA`, `FAA std` (None for a single seed),
        `parameters`, `GFLOPs train` and `GFLOPs test`.

    Raises:
        ValueError: a column or a number is missing, or is no number; the message names file, method and column.
        OSError: the file cannot be read.
    """
    header, *rows = [row for row in read_table(path) if row] or [[]]
    if not rows:
        raise ValueError(f"{path} holds no method: a header and one line for each method are needed")
    if len(rows) > _MOST_METHODS:
        raise ValueError(f"{path} holds {len(rows)} methods, and at most {_MOST_METHODS} are read")
    missing = [name for name in ("method", *_NUMBERS) if name not in header]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}: take the results.csv of examples/benchmark.py")
    lines = [dict(zip_longest(header, row[: len(header)])) for row in rows]
    rows = [{"method": line["method"], **{name: _number(line, name, path) for name in _NUMBERS}} for line in lines]
    best: dict[str, dict] = {}
    for row in rows:
        if row["method"] not in best or row["FAA"] > best[row["method"]]["FAA"]:
            best[row["method"]] = row
    return list(best.values())


def _number(line: Mapping[str, str], name: str, path: str | os.PathLike) -> float | None:
    text = line[name]
    if not text and name == _OPTIONAL:
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= _LARGEST:
        raise ValueError(
            f"{path}: {name} of method {shown(line['method'])} is {shown(text)}. Allowed: a number from 0 to "
            f"{_LARGEST:g}."
        )
    return value


def plot_costs(
    methods: Sequence[Mapping],
    path: str | os.PathLike,
    *,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw each method's final average accuracy over its trained parameters, and over its GFLOPs per image.

    Args:
        methods: for each method `method`, `FAA` in percent, `FAA std` (None where it is not known), `parameters`,
            `GFLOPs train` and `GFLOPs test`, as [`read_costs`] gives them. Bars are one standard deviation up and
            down. GFLOPs of training are drawn hollow, those of testing filled.
        path: file to write, .png or .svg; it appears whole or not at all.
        title: line above the axes. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: no method, a method without parameters or GFLOPs, or another suffix.
    """
    if not methods:
        raise ValueError("no method to plot: give at least one, with its FAA, parameters and GFLOPs")
    for row in methods:
        for name in ("parameters", "GFLOPs train", "GFLOPs test"):
            if not row[name] > 0:
                raise ValueError(f"{name} of method {row['method']!r} is {row[name]}. Allowed: a number above 0.")
    columns = 2 if max(len(row["method"]) for row in methods) > 22 else 3
    height = 3.3 + 0.2 * math.ceil((len(methods) + 2) / columns)
    figure, (left, right) = panels(height, theme, rows=1, columns=2, share_y=True)
    keys = []
    for index, row in enumerate(methods):
        colour, place, turn = line_look(index, theme)
        look = {"color": colour, "marker": MARKERS[(place + turn) % len(MARKERS)], "markersize": 6}
        _points(left, row, ("parameters",), look, theme)
        _points(right, row, ("GFLOPs train", "GFLOPs test"), look, theme)
        keys.append(Line2D([], [], linestyle="", label=_short(row["method"]), **look))
    for axes in (left, right):
        _cost_axis(axes, theme)
    name_axes(left, theme, title, "Trained parameters", "Final average accuracy")
    name_axes(right, theme, None, "GFLOPs per image", "")
    right.tick_params(labelleft=False)
    hollow = {"linestyle": "", "marker": "o", "markersize": 6, "color": theme["axis"]}
    keys += [Line2D([], [], label="testing", **hollow)]
    keys += [Line2D([], [], label="training", markerfacecolor=theme["background"], **hollow)]
    legend_below(figure, keys, columns, theme)
    save(figure, path, dpi)
    return figure


def _short(name: str) -> str:
    name = drawable(name)
    return name if len(name) <= 36 else name[:33] + "..."


def _points(axes: Axes, row: Mapping, costs: Sequence[str], look: Mapping, theme: Mapping) -> None:
    places = [row[cost] for cost in costs]
    accuracy, colour = row["FAA"], look["color"]
    axes.plot(places, [accuracy] * len(places), color=colour, linewidth=1)
    for place, cost in zip(places, costs, strict=True):
        face = theme["background"] if cost == "GFLOPs train" else colour
        if row["FAA std"]:
            axes.errorbar(place, accuracy, yerr=row["FAA std"], ecolor=colour, elinewidth=1, capsize=2, fmt="none")
        axes.plot([place], [accuracy], linestyle="", markerfacecolor=face, zorder=3, **look)


def _cost_axis(axes: Axes, theme: Mapping) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high / low < 12:  # a scale of powers of ten would name one place or none
        axes.set_xscale("linear")
        axes.set_xlim(0, 1.08 * high)
        axes.xaxis.set_major_locator(round_ticks(4))
    else:
        axes.set_xlim(low / 1.3, high * 1.3)
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
    style_axes(axes, theme, which="both")  # a scale of powers of ten has small ticks between them
    percent_axis(axes, theme, most=6, grid="both")


def _short_number(value: float, _=None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
