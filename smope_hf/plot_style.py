"""What all plots share: themes, figures without pyplot's global state, axes, maps of tasks, whole files.

Every plot is a `matplotlib.figure.Figure` of its own and needs no display. Sizes are chosen to be read at 600 pixels
of width, colours to be told apart by colour-blind readers.
"""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .files import atomic_path
from .printable import printable

LIGHT = {
    "background": "#ffffff",
    "text": "#222222",
    "axis": "#8a8a8a",
    "grid": "#e4e4e4",
    "empty": "#e6e6e6",
    "marked": "#d55e00",
    "map": "cividis",
    # Okabe and Ito's colours without yellow, which is too pale on white.
    "lines": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
}
"""Colours for light pages; a dictionary with the same keys is another theme."""

DARK = {
    "background": "#0d1117",
    "text": "#e6edf3",
    "axis": "#7d8590",
    "grid": "#262c36",
    "empty": "#1f252e",
    "marked": "#ff8c42",
    "map": "cividis",
    # Okabe and Ito's colours, the dark ones lightened to stand out on black.
    "lines": ("#56b4e9", "#ff8c42", "#2fc89a", "#e39fc6", "#e69f00", "#f0e442", "#e6edf3"),
}
"""Colours for dark pages."""

WIDTH = 6.0  # inches: at 100 dots per inch the 600 pixels a README shows
FONT = 9.0  # points
LONGEST_NAME = 200  # characters of a name or a title


def new_figure(height: float, theme: Mapping, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of its own, of this height and width in inches, and its axes."""
    figure = Figure(figsize=(width, height), facecolor=theme["background"], layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    axes = figure.add_subplot(facecolor=theme["background"])
    axes.tick_params(colors=theme["axis"], labelcolor=theme["text"], labelsize=FONT, length=3)
    for spine in axes.spines.values():
        spine.set(color=theme["axis"], linewidth=0.8)
    return figure, axes


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


def percent_axis(axes: Axes, theme: Mapping) -> None:
    """Make the upright axis one of percent, with pale lines across and no frame around."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.grid(axis="y", color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: str | os.PathLike, dpi: int) -> None:
    """Write a figure as .png or .svg; the file appears whole or not at all."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(f"cannot write the plot {str(path)!r}: the file name must end in .png or .svg")
    undated = {"metadata": {"Date": None}} if suffix == ".svg" else {}  # the same plot is the same file
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "smope_hf"}):
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, facecolor=figure.get_facecolor(), **undated)


def task_ticks(num_tasks: int, most: int) -> list[int]:
    """Task numbers to write on an axis: the first, the last and round ones between, about `most` of them."""
    step = next((step for step in (1, 2, 5, 10, 20, 50, 100) if num_tasks / step <= most), num_tasks)
    between = [tick for tick in range(step, num_tasks, step) if min(tick - 1, num_tasks - tick) >= 0.7 * step]
    return sorted({1, *between, num_tasks})


def add_colorbar(axes: Axes, image, theme: Mapping, text: str) -> None:
    """Put the scale of an image's colours, in percent, beside it."""
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.035, 1)))
    bar.set_label(text, fontsize=FONT, color=theme["text"])
    bar.ax.tick_params(colors=theme["axis"], labelcolor=theme["text"], labelsize=FONT, length=3)
    bar.locator = MaxNLocator(nbins=6, steps=[1, 2, 5, 10])
    bar.formatter = FuncFormatter(lambda value, _: f"{value:g}%")
    bar.update_ticks()
    bar.outline.set(edgecolor=theme["axis"], linewidth=0.8)


def rounded_range(percent: np.ndarray) -> tuple[float, float]:
    """Ends of a colour scale: the values' own range, rounded out to tens, at least 20 apart."""
    low = min(10 * np.floor(np.nanmin(percent) / 10), 80)
    return low, max(10 * np.ceil(np.nanmax(percent) / 10), low + 20)


def map_of_tasks(percent: np.ndarray, theme: Mapping, low: float, high: float) -> tuple[Figure, Axes, AxesImage]:
    """A heat map with a row and a column for each task, in percent; NaN is left blank."""
    num_tasks = len(percent)
    figure, axes = new_figure(5.2, theme)
    axes.set_facecolor(theme["empty"])
    cells = np.ma.masked_invalid(percent)
    image = axes.imshow(cells, cmap=theme["map"], vmin=low, vmax=high, interpolation="nearest")
    ticks = task_ticks(num_tasks, most=20 if num_tasks <= 20 else 12)
    axes.set_xticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])
    axes.set_yticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])
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
