"""Draws the method in one picture, light and dark, as SVG and PNG beside this file.

    python docs/figures/method.py

What is chosen and marked in the picture is not drawn by hand: a small layer of experts (E = 8, K = 3) computes it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from smope_hf.data.embedded import digits
from smope_hf.reports.plot_style import DARK, LIGHT, new_figure, save
from smope_hf.models.prefix_experts import PrefixExperts, score_range

FOLDER = Path(__file__).parent
E, K, N, D = 8, 3, 5, 4  # experts, selected, tokens, head size
SIZE = 8.0  # points, of the small print
EPSILON = 0.4
SCORES = [0.30, 0.92, 0.55, 0.86, 0.12, 0.66, 0.74, 0.22]
USAGE = [9, 61, 14, 70, 0, 22, 18, 4]  # selections by the images of old tasks


def picture() -> np.ndarray:
    """A handwritten digit of those that come along, (8, 8)."""
    return np.asarray(digits()["test"][2]["image"])


def small_layer() -> tuple[PrefixExperts, torch.Tensor]:
    """One head of experts with some usage behind it, in training, and the scores of one image, (1, 1, E)."""
    experts = PrefixExperts(num_heads=1, head_dim=D, num_experts=E, top_k=K, noise_epsilon=EPSILON)
    experts.reset_parameters()
    experts.usage_counts.copy_(torch.tensor([USAGE]))
    experts.begin_task()  # marks
    return experts.train(), torch.tensor([[SCORES]])


class Canvas:
    """The axes of the picture, 100 wide, and the few shapes that it is made of."""

    def __init__(self, axes: Axes, theme):
        self.axes, self.theme = axes, theme
        self.old, self.new = theme["lines"][1], theme["lines"][0]

    def text(self, x, y, text, size=SIZE, colour=None, **how):
        how = {"ha": "center", "va": "center", **how}
        return self.axes.text(x, y, text, fontsize=size, color=colour or self.theme["text"], **how)

    def box(self, x, y, width, height, face=None, edge=None, line=0.8, **how):
        edge = edge or self.theme["axis"]
        self.axes.add_patch(
            Rectangle((x, y), width, height, facecolor=face or "none", edgecolor=edge, linewidth=line, **how)
        )

    def card(self, x, y, width, height, face=None, edge=None):
        style = "round,pad=0,rounding_size=1.2"
        face, edge = face or "none", edge or self.theme["grid"]
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, style, facecolor=face, edgecolor=edge, linewidth=0.9)
        )

    def arrow(self, start, end, colour=None, bend=0.0, line=1.0, dashed=False):
        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=7, shrinkA=0, shrinkB=0, linewidth=line,
                color=colour or self.theme["axis"], connectionstyle=f"arc3,rad={bend}",
                linestyle=(0, (3, 2)) if dashed else "-",
            )
        )  # fmt: skip


def draw_model(canvas: Canvas, y: float):
    """The upper row: image, frozen layers with prompts in the first half, feature, head and class statistics."""
    theme, height = canvas.theme, 13
    canvas.axes.imshow(picture(), cmap="gray", extent=(2, 12, y + 1.5, y + 11.5), aspect="auto")
    canvas.box(2, y + 1.5, 10, 10)
    canvas.text(7, y - 2.2, "image")
    canvas.arrow((12.6, y + 6.5), (16.4, y + 6.5))
    for layer in range(12):
        x = 17 + layer * 3.5
        canvas.box(x, y, 2.7, height, face=theme["empty"])
        if layer < 6:
            canvas.box(x, y, 2.7, 3.4, face=canvas.new, edge=canvas.new)
    canvas.text(37.4, y - 2.2, "frozen ViT; the first half has prompts")
    canvas.arrow((58.8, y + 6.5), (61.6, y + 6.5))
    canvas.text(66.4, y + 6.5, "feature")
    canvas.arrow((71, y + 6.5), (73.8, y + 6.5))
    canvas.card(74.6, y + 2.8, 7, 7.4, edge=canvas.new)
    canvas.text(78.1, y + 6.5, "head", colour=canvas.new)
    canvas.card(87.8, y + 1.4, 11, 10.2, face=theme["empty"])
    canvas.text(93.3, y + 6.5, "class\nstatistics", linespacing=1.25)
    canvas.arrow((87, y + 6.5), (82.4, y + 6.5), dashed=True)
    canvas.text(99, y - 2.2, "head: set anew after each task", ha="right")


def draw_scores(canvas: Canvas, y: float):
    """The middle row, left: mean query, keys, scores with the penalty, and which experts are on."""
    experts, scores = small_layer()
    theme, values = canvas.theme, scores[0, 0].numpy()
    lost = (experts.penalty() * score_range(scores)[0])[0].numpy()
    chosen = set(experts.select(scores)[0, 0].tolist())
    marked = experts.frequently_used[0].numpy()
    for row in range(N):
        canvas.box(2.5, y + 4.6 + row * 3.5, 6.5, 2.7, face=theme["empty"])
    canvas.text(2.2, y + 24, "queries of N tokens", ha="left")
    canvas.arrow((9.6, y + 12.6), (13, y + 12.6))
    canvas.box(13.6, y + 11.2, 6.5, 2.7, face=theme["empty"])
    canvas.text(16.9, y + 16, "mean")
    canvas.arrow((20.7, y + 12.6), (24.6, y + 12.6))
    for expert in range(E):
        x, tall = 25.6 + expert * 4.2, 15 * values[expert]
        left = 15 * (values[expert] - lost[expert])
        colour = canvas.new if expert in chosen else theme["grid"]
        canvas.box(x, y + 5, 3, left, face=colour, edge=colour)
        if lost[expert] > 0:
            canvas.box(x, y + 5 + left, 3, tall - left, edge=canvas.old, hatch="////", line=0.8)
        canvas.box(x, y + 1.2, 3, 2.6, face=colour, edge=canvas.old if marked[expert] else colour, line=1.5)
    canvas.text(42, y + 24, "E prefix keys: the K best are on")
    penalty = "used often by old tasks: lose $\\epsilon$ of\nthe score range, in training only"
    canvas.text(42, y - 0.6, penalty, colour=canvas.old, va="top", linespacing=1.2)
    canvas.text(24.8, y + 2.5, "keys", ha="right")
    canvas.text(24.8, y + 7.5, "scores", ha="right")
    return values, sorted(chosen)


def draw_attention(canvas: Canvas, y: float, values: np.ndarray, chosen: list[int]):
    """The middle row, right: K prefix columns, the same for all queries, beside the N tokens, under one softmax."""
    theme, left, cell = canvas.theme, 66, 3.5
    logits = np.random.default_rng(0).normal(0.5, 0.5, (N, N))
    joined = np.hstack([np.tile(values[chosen] / D**0.5, (N, 1)), logits])
    weights = np.exp(joined) / np.exp(joined).sum(axis=1, keepdims=True)
    for row in range(N):
        for column in range(K + N):
            x = left + column * cell + (0.8 if column >= K else 0)
            colour = canvas.new if column < K else theme["text"]
            share = 0.12 + 0.88 * weights[row, column] / weights.max()
            canvas.box(x, y + 4.6 + (N - 1 - row) * cell, cell - 0.4, cell - 0.4, face=colour, alpha=share, line=0)
    canvas.arrow((59.6, y + 12.6), (65, y + 12.6), colour=canvas.new)
    canvas.text(left + K * cell / 2, y + 2.6, "K experts", colour=canvas.new)
    canvas.text(left + 0.8 + (K + N / 2) * cell, y + 2.6, "N tokens")
    canvas.text(left + (K + N) * cell / 2, y + 24, "N queries: one softmax each")
    canvas.text(left + (K + N) * cell / 2, y - 0.6, "over K experts and N tokens;\nmixes their values",
                va="top", linespacing=1.2)  # fmt: skip
    canvas.arrow((left + (K + N) * cell + 0.8, y + 12.6), (99, y + 12.6))


def draw_usage(canvas: Canvas, y: float):
    """The lower row: what is counted and marked between two tasks."""
    experts, _ = small_layer()
    theme, marked = canvas.theme, experts.frequently_used[0].numpy()
    used = [count for count in USAGE if count]
    level = 10 * (sum(USAGE) / len(used)) / max(USAGE)
    for expert, count in enumerate(USAGE):
        x = 25.6 + expert * 4.2
        colour = canvas.old if marked[expert] else theme["axis"]
        canvas.box(x, y, 3, 10 * count / max(USAGE), face=colour, edge=colour, alpha=0.85)
    canvas.axes.plot([25, 58.6], [y + level, y + level], color=theme["text"], linewidth=0.9, linestyle=(0, (3, 2)))
    canvas.text(2.2, y + 5, "after each task:\nhow often its images\nchose each expert", ha="left", linespacing=1.25)
    canvas.text(61, y + 8, "at least the mean of those used:", ha="left")
    canvas.text(61, y + 4.8, "marked, for good", ha="left", colour=canvas.old)
    canvas.text(61, y + 1.2, "never used: off in evaluation", ha="left")


def draw(theme) -> Figure:
    figure, axes = new_figure(4.9, theme)
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    axes.set_axis_off()
    canvas = Canvas(axes, theme)
    draw_model(canvas, 66)
    canvas.card(0.5, 20.3, 99, 39, edge=theme["axis"])
    canvas.text(2.2, 56.6, "One image, in one head of a layer with prompts", size=SIZE + 0.6, ha="left", weight="bold")
    canvas.text(97.8, 56.6, "here E = 8, K = 3", ha="right", colour=theme["axis"])
    values, chosen = draw_scores(canvas, 28.5)
    draw_attention(canvas, 28.5, values, chosen)
    draw_usage(canvas, 4.5)
    axes.set(xlim=(0, 100), ylim=(0, 81))
    return figure


def main(folder: Path = FOLDER):
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        for suffix in ("svg", "png"):
            save(draw(theme), folder / f"method-{name}.{suffix}", dpi=200)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
