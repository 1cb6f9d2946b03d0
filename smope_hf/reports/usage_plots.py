"""Plots of one usage of the experts: each one's share of its head's selections, layer by layer and head by head."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from .plot_parts import add_colorbar, heat_map, legend_below, name_axes, name_rows, round_step
from .plot_style import LIGHT, WIDTH, new_figure, save


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

    Source: docs/method.md, steps 5 and 6.
    """
    outlined = {} if frequently_used is None else {"marked as frequently used": frequently_used}
    figure = _usage_map(usage_counts, outlined, layers, title, theme, WIDTH)
    save(figure, path, dpi)
    return figure


def plot_image_experts(
    usage_counts: Sequence[ArrayLike],
    selected: Sequence[ArrayLike],
    path: str | os.PathLike,
    *,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    width: float = 3.4,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw which experts one image switches on, outlined on the map of how often training selected each.

    Args:
        usage_counts: for each prompt layer how often training images selected each expert (H, E), from 0 on.
        selected: for each prompt layer the experts that the image switches on (H, K), 0 to E - 1.
        path: file to write, .png or .svg; it appears whole or not at all.
        layers: the backbone's number of each prompt layer. Default: 0, 1, 2, ...
        title: line above the map. Default: none.
        width: inches, at least 3.2; text stays of one size, so that a narrow figure suits a phone. Default: 3.4.
        dpi: pixels per inch. Default: 200.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: arrays that do not fit each other, an expert that there is not, negative counts, a figure too
            narrow, or another suffix.
    """
    if not width >= 3.2:
        raise ValueError(f"width = {width}: at least 3.2 inches are needed to hold the map and its scale")
    counts = _usage_rows(usage_counts)
    chosen = [np.asarray(layer) for layer in selected]
    heads, experts = [len(layer) for layer in counts], counts[0].shape[1]
    if [len(layer) for layer in chosen] != heads or any(layer.ndim != 2 for layer in chosen):
        shapes = [layer.shape for layer in chosen]
        raise ValueError(f"selected has shapes {shapes}: give (heads, selected) for layers of {heads} heads")
    marks = [np.zeros(layer.shape, dtype=bool) for layer in counts]
    for mark, layer in zip(marks, chosen, strict=True):
        if layer.dtype.kind not in "iu" or (layer < 0).any() or (layer >= experts).any():
            raise ValueError(f"selected must hold numbers of experts, 0 to {experts - 1}")
        np.put_along_axis(mark, layer, True, axis=1)
    figure = _usage_map(counts, {"switched on by this image": marks}, layers, title, theme, width)
    save(figure, path, dpi)
    return figure


def _usage_map(
    usage_counts: Sequence[ArrayLike],
    outlined: Mapping[str, Sequence[ArrayLike]],
    layers: Sequence[int] | None,
    title: str | None,
    theme: Mapping,
    width: float,
) -> Figure:
    """The shares of a usage as a heat map; `outlined` has cells, (H, E) of each layer, by what they mean."""
    counts = _usage_rows(usage_counts)
    names = range(len(counts)) if layers is None else layers
    if len(names) != len(counts):
        raise ValueError(f"layers has {len(names)} numbers for {len(counts)} prompt layers")
    rows = np.concatenate(counts)  # (layers * H, E)
    share = 100 * rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    height = float(np.clip(1.4 + 0.07 * len(rows), 3.2, 40))  # a row can be seen in any model
    figure, axes = new_figure(height, theme, width)
    top = max(share.max(), 100 / rows.shape[1])
    image = heat_map(axes, np.ma.masked_where(share == 0, share), theme, 0, top, aspect="auto")
    keys = [Patch(facecolor=theme["empty"], edgecolor=theme["axis"], label="never selected")]
    for meaning, marks in outlined.items():
        _outline(axes, counts, marks, theme)
        keys.append(Patch(facecolor="none", edgecolor=theme["marked"], label=meaning))
    _layer_axis(axes, [len(layer) for layer in counts], names, theme)
    experts = rows.shape[1]
    axes.set_xticks(range(0, experts, round_step(experts, most=15 * width / WIDTH)))
    name_axes(axes, theme, title, "Expert", "Prompt layer, a row for each head")
    add_colorbar(axes, image, theme, f"Share of the head's selections\n(even use: {100 / experts:.3g}%)")
    legend_below(figure, keys, 2 if width >= 4.2 else 1, theme)
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
    name_rows(axes, ends - np.array(heads) / 2 - 0.5, names, most=24)
