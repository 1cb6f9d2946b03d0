"""Plots: the files are whole, the pictures show the numbers, and no label is cut or covers another."""

import os

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pictures import TASKS, check_labels, check_png, matrix, visible_texts
from PIL import Image

from smope_hf.metrics.summary import AccuracyMatrix, average_accuracies
from smope_hf.reports.plot_parts import _spread, task_ticks
from smope_hf.reports.plots import (
    DARK,
    LIGHT,
    plot_accuracy_matrix,
    plot_average_accuracy,
    plot_expert_usage,
    plot_image_experts,
)


def usage(num_layers: int, heads: int, experts: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 50, (heads, experts)) * (rng.random((heads, experts)) > 0.2) for _ in range(num_layers)]


@pytest.mark.parametrize("num_tasks", [*TASKS, 40])
def test_accuracy_matrix_plot(num_tasks, tmp_path):
    a = matrix(num_tasks)
    figure = plot_accuracy_matrix(a, tmp_path / "a.png", title="SMoPE on $Split$ CIFAR_100", dpi=100)
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array().filled(np.nan), 100 * a)
    numbers = [text.get_text() for text in figure.axes[0].texts]
    decimals = 1 if num_tasks <= 10 else 0
    expected = [f"{100 * value:.{decimals}f}" for value in a[np.tril_indices(num_tasks)]]
    assert numbers == (expected if num_tasks <= 20 else [])


@pytest.mark.parametrize("num_tasks", TASKS)
def test_average_accuracy_plot(num_tasks, tmp_path):
    seeds = [matrix(num_tasks, seed, first=0.8 + seed / 20) for seed in range(3)]
    single = matrix(num_tasks, 7)
    names = [
        "L2P++",
        "DualPrompt",
        "CODA_Prompt",
        "OVOR",
        "HiDe$Prompt$",
        "NoRGa",
        "VQ-Prompt",
        "a name " * 20,
        "n" * 99,
    ]
    curves = {"SMoPE": seeds, **dict.fromkeys(names, single)}
    figure = plot_average_accuracy(curves, tmp_path / "a.png", title="Average accuracy " * 8, dpi=100)
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    axes = figure.axes[0]
    assert len(axes.lines) == len(curves)
    averages = 100 * np.stack([average_accuracies(a) for a in seeds])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), averages.mean(axis=0))
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 100 * average_accuracies(single))
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(averages.min()) and heights.max() == pytest.approx(averages.max())
    assert axes.texts[0].get_text() == f"SMoPE {averages.mean(axis=0)[-1]:.1f}"


def test_lines_of_one_plot_can_be_told_apart(tmp_path):
    curves = {f"method {i}": matrix(3, i) for i in range(20)}
    figure = plot_average_accuracy(curves, tmp_path / "a.png", dpi=100)
    check_labels(figure)
    for label in figure.axes[0].texts:
        left = matplotlib.text.Text.get_window_extent(label).x0
        assert label.arrow_patch.get_window_extent().x1 <= left + 2
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 20


def test_runs_of_unequal_length_share_a_plot_but_seeds_do_not(tmp_path):
    figure = plot_average_accuracy(
        {"done": AccuracyMatrix(np.eye(4)), "running": [AccuracyMatrix([[0.5]])]}, tmp_path / "a.png", dpi=100
    )
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [4, 1]
    check_labels(figure)
    with pytest.raises(ValueError, match=r"method 'SMoPE': its seeds have \[2, 3\] tasks"):
        plot_average_accuracy({"SMoPE": [matrix(2), matrix(3)]}, tmp_path / "b.png")
    with pytest.raises(ValueError, match="method 'SMoPE' has no accuracy matrix"):
        plot_average_accuracy({"SMoPE": []}, tmp_path / "b.png")
    with pytest.raises(ValueError, match="no curve"):
        plot_average_accuracy({}, tmp_path / "b.png")


@pytest.mark.parametrize(("num_layers", "heads", "experts"), [(1, 1, 1), (1, 3, 5), (6, 12, 25), (24, 16, 50)])
def test_expert_usage_plot(num_layers, heads, experts, tmp_path):
    counts = usage(num_layers, heads, experts)
    marks = [layer > 30 for layer in counts]
    layers = range(3, 3 + num_layers)
    figure = plot_expert_usage(
        counts, tmp_path / "a.png", frequently_used=marks, layers=layers, title="Usage after task 3", dpi=100
    )
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    axes = figure.axes[0]
    rows = np.concatenate(counts)
    share = 100 * rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(axes.images[0].get_array().filled(0), share)
    outlines = next(c for c in axes.collections if to_hex(c.get_edgecolor()[0]) == LIGHT["marked"])
    centres = {tuple(np.round(path.vertices[:4].mean(axis=0)).astype(int)) for path in outlines.get_paths()}
    assert centres == {(e, row) for row, e in np.argwhere(np.concatenate(marks))}
    assert axes.get_yticklabels()[0].get_text() == "3"
    assert axes.get_window_extent().height / len(rows) >= 5  # pixels: a head of any model can be seen


def test_usage_of_a_fresh_model_is_a_plot_of_never_selected_experts(tmp_path):
    figure = plot_expert_usage([np.zeros((2, 4), dtype=int)] * 2, tmp_path / "a.png", dpi=100)
    check_labels(figure)
    assert figure.axes[0].images[0].get_array().mask.all()


def test_usage_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="no usage counts"):
        plot_expert_usage([], path)
    with pytest.raises(ValueError, match=r"layer 1 have shape \(2, 5\)"):
        plot_expert_usage([np.ones((2, 4)), np.ones((2, 5))], path)
    with pytest.raises(ValueError, match="layer 0 must be numbers from 0"):
        plot_expert_usage([-np.ones((2, 4))], path)
    with pytest.raises(ValueError, match=r"frequently_used has shapes \[\(1, 4\)\]"):
        plot_expert_usage([np.ones((2, 4))], path, frequently_used=[np.ones((1, 4))])
    with pytest.raises(ValueError, match="layers has 2 numbers for 1"):
        plot_expert_usage([np.ones((2, 4))], path, layers=[0, 1])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("num_layers", "heads", "theme"), [(6, 3, LIGHT), (6, 12, DARK), (1, 1, LIGHT)])
def test_experts_of_an_image_are_outlined_on_the_usage(tmp_path, num_layers, heads, theme):
    counts, rng = usage(num_layers, heads, experts=25), np.random.default_rng(2)
    selected = [np.argsort(rng.random((heads, 25)))[:, :5] for _ in range(num_layers)]
    figure = plot_image_experts(counts, selected, tmp_path / "a.png", theme=theme, dpi=100)
    check_png(tmp_path / "a.png", width=340)
    check_labels(figure)
    axes = figure.axes[0]
    outlines = next(c for c in axes.collections if to_hex(c.get_edgecolor()[0]) == theme["marked"])
    centres = {tuple(np.round(path.vertices[:4].mean(axis=0)).astype(int)) for path in outlines.get_paths()}
    assert centres == {(e, row) for row, experts in enumerate(np.concatenate(selected)) for e in experts}


def test_experts_of_an_image_that_do_not_fit_are_refused(tmp_path):
    counts, path = [np.ones((2, 4))], tmp_path / "a.png"
    for selected in ([np.array([[0], [4]])], [np.array([[0], [-1]])], [np.array([[0.0], [1.0]])]):
        with pytest.raises(ValueError, match="numbers of experts, 0 to 3"):
            plot_image_experts(counts, selected, path)
    for selected in ([], [np.array([[0]])], [np.array([0, 1])]):
        with pytest.raises(ValueError, match=r"selected has shapes .*layers of \[2\] heads"):
            plot_image_experts(counts, selected, path)
    with pytest.raises(ValueError, match="width = 2: at least 3.2"):
        plot_image_experts(counts, [np.array([[0], [1]])], path, width=2)
    assert os.listdir(tmp_path) == []


def test_default_size_svg_and_suffixes(tmp_path):
    plot_accuracy_matrix(matrix(3), tmp_path / "png" / "a.PNG")
    check_png(tmp_path / "png" / "a.PNG", width=1200)
    plot_accuracy_matrix(matrix(3), tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    with pytest.raises(ValueError, match=r"a\.jpg.*\.png or \.svg"):
        plot_accuracy_matrix(matrix(3), tmp_path / "a.jpg")


def test_plots_to_compare_share_their_colour_scale(tmp_path):
    for a in (matrix(2), [[0.1], [0.2, 0.3]]):
        figure = plot_accuracy_matrix(a, tmp_path / "a.png", value_range=(0.0, 1.0), dpi=50)
        assert figure.axes[0].images[0].get_clim() == (0, 100)


def test_colours_come_from_the_theme(tmp_path):
    dark = {**LIGHT, "background": "#101010", "text": "#eeeeee", "lines": ("#abcdef",)}
    figure = plot_average_accuracy({"SMoPE": matrix(3)}, tmp_path / "a.png", theme=dark, dpi=50)
    with Image.open(tmp_path / "a.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (0x10, 0x10, 0x10)
    assert {text.get_color() for text in visible_texts(figure)} == {"#eeeeee"}
    assert figure.axes[0].lines[0].get_color() == "#abcdef"


def test_a_failed_write_leaves_the_old_plot_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    plot_accuracy_matrix(matrix(2), path, dpi=50)
    before = path.read_bytes()

    def half_written(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        plot_accuracy_matrix(matrix(3), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_plots_leave_no_global_state(tmp_path):
    settings, open_figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    plot_accuracy_matrix(matrix(2), tmp_path / "a.png", dpi=50)
    plot_average_accuracy({"SMoPE": matrix(2)}, tmp_path / "b.png", dpi=50)
    plot_expert_usage(usage(1, 2, 3), tmp_path / "c.png", dpi=50)
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == open_figures


def test_labels_move_only_as_far_as_they_must():
    heights = np.ones(3)
    np.testing.assert_allclose(_spread(np.array([5.0, 1.0, 3.0]), heights, 0, 10), [5, 1, 3])
    np.testing.assert_allclose(_spread(np.array([5.0, 5.0, 8.0]), heights, 0, 10), [4.5, 5.5, 8])
    np.testing.assert_allclose(_spread(np.array([10.0, 9.9, 9.8]), heights, 0, 10), [9.5, 8.5, 7.5])


def testtask_ticks_name_the_first_and_the_last_task():
    for num_tasks in (*range(1, 130), 500, 5000):
        ticks = task_ticks(num_tasks, most=12)
        assert ticks[0] == 1 and ticks[-1] == num_tasks, num_tasks
        assert len(ticks) <= 14, num_tasks
        gaps = np.diff(ticks)
        assert len(gaps) < 2 or gaps.min() >= 0.4 * gaps.max() > 0, num_tasks
