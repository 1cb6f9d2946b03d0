"""Plots of accuracies, task by task: the accuracy matrix, and which task's classes images are taken for."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..metrics.summary import as_accuracy_matrix
from .plot_parts import add_colorbar, map_of_tasks, name_axes, number_cells, rounded_range
from .plot_style import LIGHT, save


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
    low, high = rounded_range(percent) if value_range is None else (100 * value_range[0], 100 * value_range[1])
    figure, axes, image = map_of_tasks(percent, theme, low, high)
    name_axes(axes, theme, title, "Accuracy on task", "After learning task")
    add_colorbar(axes, image, theme, "Accuracy")
    number_cells(axes, image, percent, theme)
    save(figure, path, dpi)
    return figure


def plot_task_confusion(
    counts: ArrayLike,
    path: str | os.PathLike,
    *,
    title: str | None = None,
    dpi: int = 200,
    theme: Mapping = LIGHT,
) -> Figure:
    """Draw of which task the classes are that each task's images are taken for: a heat map, a row for each task.

    Args:
        counts: test images of task i that were given a class of task j, (T, T), from 0 on. A row of zeros is a task
            without test images, and is left blank. Colours show the shares off the diagonal, where the mistakes are;
            the share that stays within its task stands on the diagonal in grey.
        path: file to write, .png or .svg; it appears whole or not at all.
        title: line above the map. Default: none.
        dpi: pixels per inch of a figure 6 inches wide. Default: 200, 1200 pixels.
        theme: colours. Default: `LIGHT`.

    Returns:
        The figure, for a notebook.

    Raises:
        ValueError: fewer than two tasks, another shape, counts below 0, no image at all, or another suffix.

    Source: [`smope_hf.metrics.task_confusion.confusion_row`].
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or len(counts) < 2:
        raise ValueError(f"counts has shape {counts.shape}. Allowed: (tasks, tasks) with at least two tasks.")
    if not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
        raise ValueError("counts must be numbers of images from 0 on, with at least one image")
    images = counts.sum(axis=1, keepdims=True)
    percent = np.where(images > 0, 100 * counts / np.maximum(images, 1), np.nan)
    mistakes = percent.copy()
    np.fill_diagonal(mistakes, np.nan)
    most = np.nanmax(mistakes)
    top = next((bound for bound in (2, 5, 10, 20, 50) if most <= bound), 100)
    figure, axes, image = map_of_tasks(mistakes, theme, 0, top)
    name_axes(axes, theme, title, "Given a class of task", "Test images of task")
    add_colorbar(axes, image, theme, "Share of the task's images\n(grey: a class of their own task)")
    number_cells(axes, image, percent, theme)
    save(figure, path, dpi)
    return figure
