"""Draws the packages as floors, with the way of an image through them: light and dark, as SVG beside this file.

python docs/figures/rooms.py
"""

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from smope_hf.reports.plot_style import DARK, LIGHT, new_figure, save

FOLDER = Path(__file__).parent
FLOORS = {  # the packages from the top down, and what lives in each
    "cli": "one file for each command",
    "reports": "plots, the report of a run, tables",
    "training": "the trainer, its phases, going on",
    "sharing": "checkpoints, model cards, the Hub",
    "routing": "records of which experts fire",
    "heads": "class statistics, alignment, drift",
    "data": "images, tasks, batches, manifests",
    "models": "model classes, experts, prompt methods",
    "metrics": "accuracies, forgetting, recall",
    "settings": "what the settings of a run may be",
    "storage": "whole files, checks of foreign files",
    "base": "printable text, the terminal",
}
STEPS = ("data",) * 5 + ("models", "training", "heads", "heads", "training", "sharing", "sharing", "reports")
"""The floor of each step of docs/architecture.md, "The life of an image"."""

WIDTH, ROW, TOP = 432, 21.5, 21  # points: of the picture, of a floor, of what stands above the floors
NAMES, TEXTS, FIRST, STEP = 27, 77, 262, 13  # where the columns begin, and the distance of two steps


def place(step: int) -> tuple[float, float]:
    """The middle of a step's mark; steps count from 0."""
    row = list(FLOORS).index(STEPS[step])
    return FIRST + step * STEP, -row * ROW


def draw_floors(axes: Axes, theme):
    """Each floor with its name and what lives there, and the arrow beside them."""
    for row, (name, text) in enumerate(FLOORS.items()):
        y = -row * ROW
        style = "round,pad=0,rounding_size=2.5"
        axes.add_patch(FancyBboxPatch((20, y - 9), WIDTH - 25, 18, style, facecolor=theme["empty"], edgecolor="none"))
        axes.text(NAMES, y, name, fontsize=8.5, color=theme["text"], weight="bold", va="center_baseline")
        axes.text(TEXTS, y, text, fontsize=8, color=theme["text"], va="center_baseline")
    bottom = -(len(FLOORS) - 1) * ROW - 9
    axes.add_patch(FancyArrowPatch((13, 9), (13, bottom), arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=0,
                                   linewidth=1, color=theme["axis"]))  # fmt: skip
    axes.text(6, bottom / 2, "imports run downward only", fontsize=8, color=theme["text"], rotation=90, ha="center",
              va="center")  # fmt: skip


def draw_life(axes: Axes, theme):
    """The steps of an image's life, each on its floor, and the line that joins them."""
    places = [place(step) for step in range(len(STEPS))]
    axes.plot(*zip(*places), color=theme["lines"][0], linewidth=1.4, zorder=2)
    for number, (x, y) in enumerate(places, 1):
        axes.add_patch(Circle((x, y), 5.9, facecolor=theme["lines"][0], edgecolor=theme["empty"], zorder=3))
        axes.text(x, y, str(number), fontsize=7, color=theme["background"], weight="bold", ha="center",
                  va="center_baseline", zorder=4)  # fmt: skip
    axes.text(FIRST - 6, 17, "the life of an image, step by step", fontsize=8, color=theme["lines"][0], va="center")


def draw(theme) -> Figure:
    """The whole picture."""
    height = TOP + len(FLOORS) * ROW + 3
    figure, axes = new_figure(height / 72, theme, WIDTH / 72)
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    axes.set_axis_off()
    draw_floors(axes, theme)
    draw_life(axes, theme)
    axes.set(xlim=(0, WIDTH), ylim=(ROW / 2 + TOP - height, ROW / 2 + TOP), aspect="equal")
    return figure


def main(folder: Path = FOLDER):
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        save(draw(theme), folder / f"rooms-{name}.svg", dpi=200)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
