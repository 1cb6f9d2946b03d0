"""What every picture needs: themes, figures without pyplot's global state, whole files.

Every plot is a `matplotlib.figure.Figure` of its own and needs no display. Sizes are chosen to be read at 600 pixels
of width, colours to be told apart by colour-blind readers.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..base.home import expanded
from ..storage.files import atomic_path

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


def new_figure(height: float, theme: Mapping, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of its own, of this height and width in inches, and its axes."""
    figure = Figure(figsize=(width, height), facecolor=theme["background"], layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    axes = figure.add_subplot(facecolor=theme["background"])
    style_axes(axes, theme)
    return figure, axes


def style_axes(axes: Axes, theme: Mapping, which: str = "major") -> None:
    """Give ticks, their labels and the frame the theme's colours; `which` ticks, as in matplotlib."""
    axes.tick_params(which=which, colors=theme["axis"], labelcolor=theme["text"], labelsize=FONT, length=3)
    axes.spines[:].set(color=theme["axis"], linewidth=0.8)


def save(figure: Figure, path: str | os.PathLike, dpi: int) -> None:
    """Write a figure as .png or .svg; the file appears whole or not at all."""
    path = expanded(Path(path))
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(f"cannot write the plot {str(path)!r}: the file name must end in .png or .svg")
    undated = {"metadata": {"Date": None}} if suffix == ".svg" else {}  # the same plot is the same file
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "smope_hf"}):
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, facecolor=figure.get_facecolor(), **undated)
