"""Plots of forgetting, of confusion between tasks, of methods against their costs."""

import numpy as np
import pytest
from pictures import TASKS, check_labels, check_png, matrix

from smope_hf.metrics.summary import forgetting
from smope_hf.reports.plots import DARK, LIGHT, plot_costs, plot_forgetting, plot_task_confusion, read_costs


@pytest.mark.parametrize("num_tasks", TASKS[1:])
def test_forgetting_plot(num_tasks, tmp_path):
    seeds = [matrix(num_tasks, seed) for seed in range(3)]
    figure = plot_forgetting(
        {"SMoPE": seeds, "LDA": matrix(num_tasks, 7), "one task": [[0.5]]}, tmp_path / "a.png", dpi=100
    )
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    first, second = figure.axes[0].lines
    expected = [np.mean([forgetting(a[: t + 1, : t + 1]) for a in seeds]) for t in range(1, num_tasks)]
    np.testing.assert_allclose(first.get_ydata(), 100 * np.array(expected))
    np.testing.assert_array_equal(second.get_xdata(), range(2, num_tasks + 1))
    assert len(figure.axes[0].collections) == 1  # the seeds' range, also where there is one point
    assert 2 in figure.axes[0].get_xticks() and num_tasks in figure.axes[0].get_xticks()


def test_there_is_no_forgetting_of_one_task(tmp_path):
    with pytest.raises(ValueError, match="no forgetting to plot"):
        plot_forgetting({"SMoPE": [[0.5]]}, tmp_path / "a.png")


@pytest.mark.parametrize("num_tasks", TASKS[1:])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_confusion_plot(num_tasks, theme, tmp_path):
    counts = np.random.default_rng(0).integers(0, 9, (num_tasks, num_tasks)) + 200 * np.eye(num_tasks, dtype=int)
    figure = plot_task_confusion(counts, tmp_path / "a.png", title="Confusion", dpi=100, theme=theme)
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    percent = 100 * counts / counts.sum(axis=1, keepdims=True)
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.mask.diagonal().all()  # what is right would hide the mistakes
    np.testing.assert_allclose(drawn[~drawn.mask], percent[~np.eye(num_tasks, dtype=bool)])
    numbers = [text.get_text() for text in figure.axes[0].texts]
    decimals = 1 if num_tasks <= 10 else 0
    assert numbers == ([f"{value:.{decimals}f}" for value in percent.flat] if num_tasks <= 20 else [])
    if num_tasks == 2:
        right = figure.axes[0].texts[0]
        assert right.get_color() == ("#000000" if theme is LIGHT else "#ffffff")


def test_a_task_without_test_images_is_a_blank_row(tmp_path):
    figure = plot_task_confusion([[0, 0], [1, 3]], tmp_path / "a.png", dpi=100)
    assert [text.get_text() for text in figure.axes[0].texts] == ["25.0", "75.0"]
    for wrong, message in (
        ([[1]], "at least two tasks"), ([[1, 2]], r"shape \(1, 2\)"), ([[1, -1], [0, 1]], "from 0 on"),
        ([[0, 0], [0, 0]], "at least one image"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            plot_task_confusion(wrong, tmp_path / "b.png")


def costs(count: int) -> list[dict]:
    names = ["smope", "coda-prompt:alignment=gaussian,learning_rate=0.001", "a $name$", "l2p", "joint"]
    numbers = {"FAA std": None, "GFLOPs train": 33.7, "GFLOPs test": 67.4}
    return [
        {"method": names[i] if i < 5 else f"m{i}", "FAA": 50.0 + i, "parameters": 10.0 ** (4 + i % 4), **numbers}
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_costs_plot(count, tmp_path):
    rows = costs(count)
    rows[0]["FAA std"] = 1.5
    figure = plot_costs(rows, tmp_path / "a.png", title="Methods on Split CIFAR-100", dpi=100)
    check_png(tmp_path / "a.png", width=600)
    check_labels(figure)
    left, right = figure.axes
    looks = set()
    for row, by_parameters in zip(rows, [line for line in left.lines if line.get_marker() not in ("None", "_")]):
        assert (by_parameters.get_xdata()[0], by_parameters.get_ydata()[0]) == (row["parameters"], row["FAA"])
        looks.add((by_parameters.get_color(), by_parameters.get_marker()))
    assert len(looks) == count
    assert {x for line in right.lines if line.get_marker() != "None" for x in line.get_xdata()} == {33.7, 67.4}
    bar = left.collections[0].get_segments()[0]
    assert bar[:, 1].tolist() == [48.5, 51.5]


def test_costs_are_read_from_the_table_of_a_benchmark(tmp_path):
    table = tmp_path / "results.csv"
    header = "method,seeds,FAA,FAA std,parameters,GFLOPs train,GFLOPs test,training s/task\n"
    table.write_text(header + "smope,2,60.5,1.25,383000,33.7,33.7,9\nlda,1,58.5,,7700,33.7,67.4,1\n")
    smope, lda = read_costs(table)
    assert smope == {"method": "smope", "FAA": 60.5, "FAA std": 1.25, "parameters": 383000.0, "GFLOPs train": 33.7,
                     "GFLOPs test": 33.7}  # fmt: skip
    assert lda["FAA std"] is None
    for text, message in (
        (header, "holds no method"),
        ("method,FAA\nlda,1\n", "has no column 'FAA std'"),
        (header + "lda,1,,,1,1,1,1\n", "FAA of method 'lda' is ''"),
        (header + "lda,1,nan,,1,1,1,1\n", "FAA of method 'lda' is 'nan'"),
        (header + "lda,1,3\n", "'lda' is None"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_costs(table)
    with pytest.raises(ValueError, match="no method to plot"):
        plot_costs([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="parameters of method 'smope' is 0"):
        plot_costs([{**smope, "parameters": 0.0}], tmp_path / "a.png")


def test_the_same_plot_is_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        plot_forgetting({"SMoPE": matrix(4)}, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
