"""`examples/sample_efficiency.py`, and its picture."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_benchmark import TINY

from smope_hf.reports.plots import plot_sample_efficiency

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "sample_efficiency.py"


def run(folder, *options):
    given = [option for option in TINY if option not in ("--max_train_samples_per_class", "4")]
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), *given, *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_a_row_for_each_number_of_images_and_nothing_trained_twice(tmp_path):
    options = ("--methods", "lda,linear", "--samples", "6,3", "--alignments", "none", "--alignment_shrinkage", "0.1")
    first = run(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    with open(tmp_path / "sample_efficiency.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["samples"], row["method"]) for row in rows] == [
        ("3", "lda"), ("3", "linear"), ("6", "lda"), ("6", "linear"),
    ]  # fmt: skip
    for row in rows:  # the best alignment of each
        with open(tmp_path / f"000{row['samples']}-per-class" / "results.csv", newline="", encoding="utf-8") as file:
            found = [float(line["FAA"]) for line in csv.DictReader(file) if line["method"] == row["method"]]
        assert float(row["FAA"]) == max(found) and len(found) == {"lda": 1, "linear": 2}[row["method"]]
    assert (tmp_path / "sample_efficiency.png").stat().st_size > 1000
    assert "| images per class | lda | linear |" in (tmp_path / "sample_efficiency.md").read_text()
    records = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert len(records) == 4
    assert run(tmp_path, *options).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")} == records


def test_a_number_that_is_none_is_refused_before_anything_is_trained(tmp_path):
    refused = run(tmp_path / "new", "--methods", "lda", "--samples", "10,many")
    assert refused.returncode == 1 and "--samples '10,many' is not allowed" in refused.stderr
    assert not (tmp_path / "new").exists()


def test_the_picture_shows_every_point_and_its_spread(tmp_path):
    curves = {
        "smope": ([10, 100, 500], [40.0, 60.0, 70.0], [1.0, 0.5, None]),
        "lda": ([10, 100], [35.0, 58.0], [None] * 2),
    }
    figure = plot_sample_efficiency(curves, tmp_path / "curve.svg")
    axes = figure.axes[0]
    lines = axes.lines
    np.testing.assert_allclose(lines[0].get_ydata(), [40, 60, 70])
    np.testing.assert_allclose(
        next(line for line in lines if len(line.get_xdata()) == 2 and line.get_marker() == "s").get_xdata(), [10, 100]
    )
    low, high = axes.get_ylim()
    assert axes.get_xscale() == "log" and low < 35 and high > 70
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "100", "500"]
    assert {"smope 70.0", "lda 58.0"} == {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("curves", [{}, {"smope": ([], [], [])}, {"smope": ([1], [2.0, 3.0], [None])}])
def test_curves_without_points_are_refused(curves, tmp_path):
    with pytest.raises(ValueError, match="at least one method|equally many"):
        plot_sample_efficiency(curves, tmp_path / "curve.png")
