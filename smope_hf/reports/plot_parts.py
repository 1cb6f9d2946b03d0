"""The parts that several plots are made of: panels, axes of percent, scales, legends, line ends, maps of tasks."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..base.printable import printable
from .plot_style import FONT, new_figure, style_axes

MARKERS = "osD^vPX"
LONGEST_NAME = 200  # characters of a name or a title
_STEPS = [1, 2, 5, 10]  # a scale's ticks are these times a power of ten


# ---------------------------------------------------------------------- figures


def line_figure(count: int, theme: Mapping) -> tuple[Figure, Axes]:
    """A figure for this number of lines, high enough for a name at the end of each."""
    return new_figure(max(3.6, 1 + 0.18 * count), theme)


def panels(height: float, theme: Mapping, rows: int, columns: int, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of axes, row by row; `share_y` gives all of them the upright axis of the first."""
    figure, first = new_figure(height, theme)
    grid = figure.add_gridspec(rows, columns)
    first.set_subplotspec(grid[0])
    all_axes = [first]
    for place in range(1, rows * columns):
        axes = figure.add_subplot(grid[place], sharey=first if share_y else None, facecolor=theme["background"])
        style_axes(axes, theme)
        all_axes.append(axes)
    return figure, all_axes


def legend_below(figure: Figure, keys: Sequence[Artist], columns: int, theme: Mapping) -> None:
    """Explain the keys under the axes; names in it are shown as they are."""
    legend = figure.legend(handles=keys, loc="outside lower center", ncols=columns, fontsize=FONT, frameon=False)
    for text in legend.get_texts():
        text.set(color=theme["text"], parse_math=False)


# ---------------------------------------------------------------------- names and axes


def drawable(text: str) -> str:
    """A name as a figure can show it: in one line, with letters that no font of matplotlib's settings has escaped."""
    text = printable(text, LONGEST_NAME)
    if text.isascii():
        return text
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in FontProperties().get_family()]
    known = {letter for letter in set(text) if any(font.get_char_index(ord(letter)) for font in fonts)}
    return "".join(c if c in known else c.encode("unicode_escape").decode("ascii") for c in text)


def name_axes(axes: Axes, theme: Mapping, title: str | None, x: str, y: str) -> None:
    """Name the axes, and write a title where there is one."""
    axes.set_xlabel(x, fontsize=FONT, color=theme["text"])
    axes.set_ylabel(y, fontsize=FONT, color=theme["text"])
    if title:
        wrapped = textwrap.fill(drawable(title), 64)
        axes.set_title(wrapped, fontsize=FONT + 1, color=theme["text"], loc="left", parse_math=False)


def round_ticks(most: int, integer: bool = False) -> MaxNLocator:
    """Ticks at round numbers, at most this many steps of them."""
    return MaxNLocator(nbins=most, steps=_STEPS, integer=integer)


def _in_percent() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{value:g}%")


def percent_axis(axes: Axes, theme: Mapping, most: int = 7, grid: str = "y") -> None:
    """Make the upright axis one of percent, with pale lines and no frame above and on the right.

    Args:
        axes: the axes.
        theme: colours.
        most: steps between its ticks. Default: 7.
        grid: "y" for lines across, "both" also for upright ones. Default: "y".
    """
    axes.yaxis.set_major_locator(round_ticks(most))
    axes.yaxis.set_major_formatter(_in_percent())
    axes.grid(axis=grid, color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def percent_range(
    axes: Axes,
    low: float,
    high: float,
    *,
    share: float = 0.06,
    least: float = 2.5,
    beyond: float = 1,
    half_marker: bool = False,
) -> None:
    """Let the upright axis reach a little further than the values, and hardly past 0 and 100%.

    Args:
        axes: the axes.
        low: smallest value, in percent.
        high: largest value.
        share: margin as a share of the values' range. Default: 0.06.
        least: smallest margin, in percent. Default: 2.5.
        beyond: how far the axis may reach below 0 and above 100. Default: 1.
        half_marker: leave only as much below 0 as half a marker needs. Default: up to `beyond`.
    """
    margin = max(share * (high - low), least)
    floor = max(-0.04 * (high + margin), -beyond) if half_marker else -beyond
    axes.set_ylim(max(low - margin, floor), min(high + margin, 100 + beyond))


def round_step(count: int, most: float) -> int:
    """The smallest round step that leaves at most `most` ticks of `count`; `count` itself where none does."""
    return next((step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= most), count)


def task_ticks(num_tasks: int, most: int) -> list[int]:
    """Task numbers to write on an axis: the first, the last and round ones between, about `most` of them."""
    step = round_step(num_tasks, most)
    between = [tick for tick in range(step, num_tasks, step) if min(tick - 1, num_tasks - tick) >= 0.7 * step]
    return sorted({1, *between, num_tasks})


def name_rows(axes: Axes, places: Sequence[float], names: Sequence[int], most: int) -> None:
    """Write names at rows of a map, from the first on; of more than `most` only every second, third, ..."""
    step = -(-len(places) // most)
    axes.set_yticks(places[::step], [str(name) for name in names[::step]])


# ---------------------------------------------------------------------- colour bars


def add_colorbar(axes: Axes, image: ScalarMappable, theme: Mapping, text: str) -> None:
    """Put the scale of an image's colours, in percent, beside it."""
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.035, 1)))
    bar.locator, bar.formatter = round_ticks(6), _in_percent()
    bar.update_ticks()
    _style_colorbar(bar, theme, text)


def add_named_colours(figure: Figure, axes: Sequence[Axes], names: Sequence[int], theme: Mapping, text: str) -> None:
    """Say beside these axes which of the theme's line colours stands for which name."""
    edges = np.arange(len(names) + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(edges, len(names)), ListedColormap(theme["lines"][: len(names)]))
    bar = figure.colorbar(scale, ax=list(axes), fraction=0.05, pad=0.02, aspect=30)
    bar.set_ticks(list(range(len(names))), labels=[str(name) for name in names])
    bar.ax.minorticks_off()
    _style_colorbar(bar, theme, text)
    bar.ax.tick_params(length=0)


def _style_colorbar(bar: Colorbar, theme: Mapping, text: str) -> None:
    bar.set_label(text, fontsize=FONT, color=theme["text"])
    bar.ax.tick_params(colors=theme["axis"], labelcolor=theme["text"], labelsize=FONT, length=3)
    bar.outline.set(edgecolor=theme["axis"], linewidth=0.8)


# ---------------------------------------------------------------------- lines


def line_look(index: int, theme: Mapping) -> tuple[str, int, int]:
    """Colour of the line with this number, its place among the colours, and how often they were used up before."""
    turn, place = divmod(index, len(theme["lines"]))
    return theme["lines"][place], place, turn


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


def label_line_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]], theme: Mapping) -> None:
    """Write each line's name and last value beside the axes, tied to its end (x, y), without overlap."""
    labels = []
    for name, x, y, colour in ends:
        name = drawable(name)
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


# ---------------------------------------------------------------------- heat maps


def heat_map(
    axes: Axes, percent: np.ndarray, theme: Mapping, low: float, high: float, aspect: str = "equal"
) -> AxesImage:
    """Draw values as cells of a colour; those that are masked have the colour of empty ones."""
    axes.set_facecolor(theme["empty"])
    return axes.imshow(percent, cmap=theme["map"], vmin=low, vmax=high, aspect=aspect, interpolation="nearest")


def rounded_range(percent: np.ndarray) -> tuple[float, float]:
    """Ends of a colour scale: the values' own range, rounded out to tens, at least 20 apart."""
    low = min(10 * np.floor(np.nanmin(percent) / 10), 80)
    return low, max(10 * np.ceil(np.nanmax(percent) / 10), low + 20)


def map_of_tasks(percent: np.ndarray, theme: Mapping, low: float, high: float) -> tuple[Figure, Axes, AxesImage]:
    """A heat map with a row and a column for each task, in percent; NaN is left blank."""
    num_tasks = len(percent)
    figure, axes = new_figure(5.2, theme)
    image = heat_map(axes, np.ma.masked_invalid(percent), theme, low, high)
    ticks = task_ticks(num_tasks, most=20 if num_tasks <= 20 else 12)
    for name_ticks in (axes.set_xticks, axes.set_yticks):
        name_ticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])
    if num_tasks <= 20:
        edges = np.arange(num_tasks - 1) + 0.5
        axes.hlines(edges, -0.5, num_tasks - 0.5, colors=theme["background"], linewidth=1)
        axes.vlines(edges, -0.5, num_tasks - 0.5, colors=theme["background"], linewidth=1)
    return figure, axes, image


def number_cells(axes: Axes, image: AxesImage, percent: np.ndarray, theme: Mapping) -> None:
    """Write each cell's number, with one decimal, none, or not at all, as the cell's size allows.

    A number whose cell is blank in the image is written on the colour of empty cells; NaN is no number.
    """
    axes.figure.canvas.draw()
    cell = axes.get_window_extent().width / len(percent) * 72 / axes.figure.dpi  # points
    # A digit is about 0.64 of the font size wide, a point half of that; "100.0" has four digits and a point.
    decimals = 1 if cell / (4.5 * 0.64) >= 7 else 0
    size = min(FONT, cell / ((4.5 if decimals else 3) * 0.64))
    if size < 6:
        return
    blank = np.ma.getmaskarray(image.get_array())
    for t, j in np.argwhere(~np.isnan(percent)):
        shown = not blank[t, j]
        red, green, blue, _ = image.to_rgba(percent[t, j]) if shown else to_rgba(theme["empty"])
        colour = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.46 else "#000000"
        text = f"{percent[t, j]:.{decimals}f}"
        axes.text(j, t, text, ha="center", va="center", fontsize=size, color=colour, gid="cell")
