"""Metrics on matrices worked by hand, the accuracy matrix's promises, the `evaluate` module, the terminal tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from smope_hf.metrics import accuracy_matrix as accuracy_matrix_module
from smope_hf.metrics.summary import (
    EVALUATE_MODULE,
    AccuracyMatrix,
    accuracy_matrix_from_records,
    as_accuracy_matrix,
    average_accuracies,
    backward_transfer,
    continual_metrics,
    cumulative_average_accuracy,
    final_average_accuracy,
    forgetting,
    forgetting_over_tasks,
    forward_transfer,
    weighted_final_accuracy,
)
from smope_hf.reports.terminal import accuracy_table, metrics_table

NAN = float("nan")
# Task 1 is best in the middle (0.9), task 2 best at the end (0.8): maximum over later rows and last row both matter.
HAND = [[0.8, 0.1, 0.3], [0.9, 0.6, 0.2], [0.5, 0.8, 0.7]]


def random_matrix(num_tasks: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).uniform(size=(num_tasks, num_tasks))
    a[np.triu_indices(num_tasks, 1)] = np.nan
    return a


def test_hand_worked_matrix():
    # FAA (.5 + .8 + .7) / 3; averages .8, (.9 + .6) / 2, 2 / 3; FM ((.9 - .5) + (.8 - .8)) / 2;
    # BWT ((.5 - .8) + (.8 - .6)) / 2; FWT ((.1 - .05) + (.2 - .1)) / 2; weighted (.5 * 1 + .8 * 2 + .7 * 7) / 10.
    assert final_average_accuracy(HAND) == pytest.approx(2 / 3)
    assert average_accuracies(HAND) == pytest.approx([0.8, 0.75, 2 / 3])
    assert cumulative_average_accuracy(HAND) == pytest.approx((0.8 + 0.75 + 2 / 3) / 3)
    assert forgetting(HAND) == pytest.approx(0.2)
    assert backward_transfer(HAND) == pytest.approx(-0.05)
    assert forward_transfer(HAND, baseline=[0.5, 0.05, 0.1]) == pytest.approx(0.075)
    assert weighted_final_accuracy(HAND, [1, 2, 7]) == pytest.approx(0.7)


def test_forgetting_after_each_task_by_hand():
    np.testing.assert_allclose(forgetting_over_tasks(HAND), [NAN, 0.0, 0.2])
    np.testing.assert_array_equal(forgetting_over_tasks([[0.5]]), [NAN])


def test_forgetting_never_looks_before_a_task_was_learned():
    before = [[0.8, 1.0], [0.8, 0.6]]
    assert forgetting(before) == 0.0
    later = [[0.2, 0.9, NAN], [0.2, 0.5, NAN], [0.2, 0.4, 0.1]]
    assert forgetting(later) == pytest.approx((0.0 + 0.1) / 2)


def test_a_single_task_has_nothing_to_forget_or_to_transfer():
    result = continual_metrics([[0.75]], test_counts=[4], baseline=[0.1])
    assert result == {
        "final_average_accuracy": 0.75,
        "cumulative_average_accuracy": 0.75,
        "forgetting": None,
        "backward_transfer": None,
        "forward_transfer": None,
        "weighted_final_accuracy": 0.75,
    }
    assert '"forgetting": null' in json.dumps(result)


def test_perfect_learner():
    result = continual_metrics(np.tril(np.ones((5, 5))), test_counts=[1, 2, 3, 4, 5])
    assert result["final_average_accuracy"] == result["cumulative_average_accuracy"] == 1.0
    assert result["weighted_final_accuracy"] == 1.0
    assert result["forgetting"] == result["backward_transfer"] == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_properties_of_random_matrices(seed):
    a = random_matrix(2 + seed % 6, seed)
    result = continual_metrics(a)
    assert 0 <= result["forgetting"] <= 1
    # The best row is at least the row that learned the task, so forgetting is at least the drop since then.
    assert result["forgetting"] >= -result["backward_transfer"] - 1e-12
    falling = np.tril(np.minimum.accumulate(np.where(np.isnan(a), 1, a), axis=0))
    assert forgetting(falling) == pytest.approx(-backward_transfer(falling))
    rising = np.tril(np.maximum.accumulate(np.nan_to_num(a), axis=0))
    assert forgetting(rising) == 0.0 <= backward_transfer(rising)
    counts = np.full(len(a), 7)
    assert weighted_final_accuracy(a, counts) == pytest.approx(final_average_accuracy(a))


def test_what_lies_above_the_diagonal_changes_forward_transfer_only():
    given, absent = np.array(HAND), np.array(HAND)
    absent[np.triu_indices(3, 1)] = np.nan
    with_upper, without = (continual_metrics(a, [1, 2, 7], [0.1] * 3) for a in (given, absent))
    assert with_upper.pop("forward_transfer") is not None
    assert without.pop("forward_transfer") is None
    assert with_upper == without
    assert forward_transfer(HAND) is None
    assert forward_transfer([[0.8, 0.1], [0.9, 0.6], [0.5, 0.8, 0.7]], baseline=[0.1] * 3) is None


def test_ragged_rows_none_and_accuracy_matrix_are_one_matrix():
    ragged = [[0.8], [0.9, 0.6], [0.5, 0.8, 0.7]]
    with_none = [[0.8, None, None], [0.9, 0.6, None], [0.5, 0.8, 0.7]]
    expected = np.array([[0.8, NAN, NAN], [0.9, 0.6, NAN], [0.5, 0.8, 0.7]])
    for matrix in (ragged, with_none, expected, AccuracyMatrix(ragged)):
        np.testing.assert_array_equal(as_accuracy_matrix(matrix), expected)
        assert continual_metrics(matrix) == continual_metrics(expected)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([], "empty"),
        ([[0.5, 0.5]], "row 0 .* must be square"),
        ([[0.5], [0.5]], r"a\[1\]\[1\] .*after task 2, on task 2.* is missing"),
        ([[0.5, NAN], [NAN, 0.5]], r"a\[1\]\[0\] .* is missing"),
        ([[0.5, NAN], [-0.1, 0.5]], r"a\[1\]\[0\] .* is -0\.1: .*\[0, 1\]"),
        ([[0.5, NAN], [0.1, 71.6]], r"a\[1\]\[1\] .* is 71\.6: .*divide percent by 100"),
        ([[0.5, 2.0], [0.1, 0.6]], r"a\[0\]\[1\] .*after task 1, on task 2.* is 2\.0"),
        ([[float("inf")]], r"a\[0\]\[0\] .* is inf"),
        ([0.5, 0.5], "row 0 .* must be square"),
    ],
)
def test_an_invalid_matrix_is_refused_by_name(matrix, message):
    with pytest.raises(ValueError, match=message):
        continual_metrics(matrix)


def test_invalid_vectors_are_refused_by_name():
    with pytest.raises(ValueError, match=r"test_counts has shape \(2,\).*\(3,\)"):
        weighted_final_accuracy(HAND, [1, 2])
    with pytest.raises(ValueError, match=r"test_counts\[1\] is 0"):
        weighted_final_accuracy(HAND, [1, 0, 2])
    with pytest.raises(ValueError, match=r"baseline\[2\] is 10"):
        forward_transfer(HAND, [0.1, 0.1, 10])


def test_accuracy_matrix_grows_row_by_row():
    matrix = AccuracyMatrix()
    with pytest.raises(ValueError, match="empty"):
        matrix.as_array()
    for t, row in enumerate(HAND):
        matrix.add_row(row)
        assert len(matrix) == t + 1
        assert matrix.as_array().shape == (t + 1, t + 1)
    np.testing.assert_array_equal(matrix.as_array(), HAND)


def test_a_refused_row_leaves_the_matrix_as_it_was():
    matrix = AccuracyMatrix([[0.5]])
    with pytest.raises(ValueError, match=r"a\[1\]\[1\] .*after task 2, on task 2.* is missing"):
        matrix.add_row([0.5])
    with pytest.raises(ValueError, match=r"a\[1\]\[0\] .* is 50"):
        matrix.add_row([50, 0.1])
    assert len(matrix) == 1


@pytest.mark.parametrize("rows", [[], [[0.1]], HAND, [[1 / 3], [0.1 + 0.2, 2 / 7]], [[0.5, NAN, 0.25], [1.0, 0.0]]])
def test_csv_round_trip_is_exact(rows, tmp_path):
    matrix = AccuracyMatrix(rows)
    matrix.to_csv(tmp_path / "new" / "a.csv")
    read = AccuracyMatrix.from_csv(tmp_path / "new" / "a.csv")
    assert len(read) == len(rows)
    if rows:
        np.testing.assert_array_equal(read.as_array(), matrix.as_array())
    read.to_csv(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "new" / "a.csv").read_bytes()
    read.add_row([0.5] * (len(rows) + 1))


def test_csv_is_the_table_a_person_expects(tmp_path):
    AccuracyMatrix([[0.8], [0.9, 0.6]]).to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "after,task-1,task-2\ntask-1,0.8,\ntask-2,0.9,0.6\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("task-1\n0.5\n", "first line"),
        ("after,task-1,task-2\ntask-1,0.5,\ntask-3,0.5,0.5\n", "row 2 must be task-2"),
        ("after,task-1\ntask-1,half\n", "row task-1: .*half"),
        ("after,task-1,task-2\ntask-1,0.5,\ntask-2,,0.5\n", r"row task-2: .*a\[1\]\[0\] .*missing"),
    ],
)
def test_a_broken_csv_is_refused_with_its_name(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=f"a.csv: .*{message}"):
        AccuracyMatrix.from_csv(tmp_path / "a.csv")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    AccuracyMatrix([[0.5]]).to_csv(path)
    before = path.read_bytes()

    def no_writer(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(accuracy_matrix_module.csv, "writer", no_writer)
    with pytest.raises(OSError, match="disk full"):
        AccuracyMatrix([[0.25]]).to_csv(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.csv"]


# Two tasks of 2 and 3 images. After task 1: 1 of 2 right on task 1, 0 of 3 on task 2; after task 2: 2 of 2 and 1 of 3.
RECORDS = {
    "stages": [0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
    "task_ids": [0, 0, 1, 1, 1, 0, 0, 1, 1, 1],
    "references": [0, 1, 2, 3, 2, 0, 1, 2, 3, 2],
    "predictions": [0, 0, 0, 1, 1, 0, 1, 2, 2, 3],
}


def test_records_give_the_matrix():
    matrix, counts = accuracy_matrix_from_records(**RECORDS)
    np.testing.assert_allclose(matrix, [[0.5, 0], [1, 1 / 3]])
    assert counts.tolist() == [2, 3]
    order = np.random.default_rng(0).permutation(10)
    shuffled, _ = accuracy_matrix_from_records(**{name: np.array(values)[order] for name, values in RECORDS.items()})
    np.testing.assert_array_equal(shuffled, matrix)
    learned = [i for i in range(10) if RECORDS["task_ids"][i] <= RECORDS["stages"][i]]
    lower, _ = accuracy_matrix_from_records(**{name: np.array(values)[learned] for name, values in RECORDS.items()})
    np.testing.assert_allclose(lower, [[0.5, NAN], [1, 1 / 3]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [0] * 9}, "equally long"),
        ({"task_ids": [-1] + RECORDS["task_ids"][1:]}, "task_ids must be integers from 0"),
        ({"stages": [1] + RECORDS["stages"][1:]}, "task 0 has 1 records at stage 0 but 3"),
        ({"stages": [1] * 10}, r"a\[0\]\[0\] .* is missing"),
    ],
)
def test_records_that_make_no_matrix_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        accuracy_matrix_from_records(**{**RECORDS, **change})


EVALUATE_SCRIPT = """
import json, sys
import evaluate
records, folder = json.loads(sys.argv[1]), sys.argv[2]
metric = evaluate.load(folder)
result = [metric.compute(**records, baseline=[0.25, 0.25])]
for start in (0, 5):
    metric.add_batch(**{name: values[start : start + 5] for name, values in records.items()})
result.append(metric.compute())
print(json.dumps(result))
"""


def test_evaluate_module_offline_equals_the_plain_functions(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(root)}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    run = subprocess.run(
        [sys.executable, "-c", EVALUATE_SCRIPT, json.dumps(RECORDS), EVALUATE_MODULE],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    at_once, in_batches = json.loads(run.stdout.splitlines()[-1])
    matrix, counts = accuracy_matrix_from_records(**RECORDS)
    for result, baseline in ((at_once, [0.25, 0.25]), (in_batches, None)):
        assert result.pop("accuracy_matrix") == matrix.tolist()
        assert result == continual_metrics(matrix, counts, baseline)
    assert at_once["weighted_final_accuracy"] == 0.6
    assert at_once["forward_transfer"] == -0.25


def printed(table) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("num_tasks", [1, 2, 10, 20, 100])
def test_accuracy_table_fits_a_plain_terminal(num_tasks):
    ones = np.tril(np.ones((num_tasks, num_tasks)))
    ones[np.triu_indices(num_tasks, 1)] = np.nan
    text = printed(accuracy_table(ones))
    assert text.isascii()
    shown = min(num_tasks, 10)
    lines = [line.split() for line in text.splitlines() if " task " in line[:6]]
    assert [line[2:] for line in lines] == [["100.0"] * (row + 2) for row in range(shown)]
    assert lines[0][1] == "1" and lines[-1][1] == str(num_tasks)
    assert ("10 of" in text) == (num_tasks > 10)


def test_metrics_table_compares_methods_smope_first():
    methods = {"L2P[b]++": continual_metrics(HAND), "SMoPE": continual_metrics([[0.9], [0.8999, 0.5]])}
    text = printed(metrics_table({**methods, "one task": continual_metrics([[0.5]])}))
    assert text.isascii()
    rows = [line.strip() for line in text.splitlines() if "." in line]
    assert [row.split() for row in rows] == [
        ["SMoPE", "70.0", "80.0", "0.0", "0.0"],
        ["L2P[b]++", "66.7", "73.9", "20.0", "-5.0"],
        ["one", "task", "50.0", "50.0", "n/a", "n/a"],
    ]
    with pytest.raises(ValueError, match="'OVOR' lacks .*forgetting"):
        metrics_table({"OVOR": {"final_average_accuracy": 0.5, "cumulative_average_accuracy": 0.5}})
