"""Continual-learning metrics on the accuracy matrix.

Entry `a[t][j]` is the accuracy, after learning task t, on the test images of task j. It is a fraction in [0, 1], and
tasks are counted from 0; percent appears only where numbers are shown. With T tasks:

    FAA = mean_j a[T-1][j]
    CAA = mean_t mean_{j<=t} a[t][j]
    FM  = mean_{j<T-1} ( max_{j<=t<=T-1} a[t][j] - a[T-1][j] )
    BWT = mean_{j<T-1} ( a[T-1][j] - a[j][j] )
    FWT = mean_{j>=1} ( a[j-1][j] - baseline[j] )

The maximum in FM includes the last row, so FM is never negative; Chaudhry et al. (2018) leave that row out. With a
single task there is nothing to forget or to transfer: FM, BWT and FWT are then None, not 0, and become null in JSON.
"""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .accuracy_matrix import AccuracyMatrix, as_accuracy_matrix, is_fraction

__all__ = [
    "EVALUATE_MODULE",
    "AccuracyMatrix",
    "accuracy_matrix_from_records",
    "as_accuracy_matrix",
    "average_accuracies",
    "backward_transfer",
    "continual_metrics",
    "cumulative_average_accuracy",
    "final_average_accuracy",
    "forgetting",
    "forgetting_over_tasks",
    "forward_transfer",
    "metrics_where_measured",
    "weighted_final_accuracy",
]

METRICS = (
    "final_average_accuracy", "cumulative_average_accuracy", "forgetting", "backward_transfer", "forward_transfer",
    "weighted_final_accuracy",
)  # fmt: skip
EVALUATE_MODULE = str(Path(__file__).parent / "for_evaluate" / "continual_metrics")
"""Folder of the metric for the `evaluate` library: `evaluate.load(EVALUATE_MODULE)`."""


def _task_vector(values: ArrayLike, name: str, num_tasks: int) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (num_tasks,):
        raise ValueError(f"{name} has shape {vector.shape}: it must be ({num_tasks},), one entry for each task")
    return vector


def average_accuracies(matrix: ArrayLike) -> np.ndarray:
    """Average accuracy over the tasks learned so far, after each task.

    Args:
        matrix: accuracy matrix (T, T), fractions.

    Returns:
        Array (T,): entry t is the mean of `a[t][j]` over j <= t.

    Raises:
        ValueError: the matrix is not valid, see `as_accuracy_matrix`.
    """
    a = as_accuracy_matrix(matrix)
    return np.array([a[t, : t + 1].mean() for t in range(len(a))])


def final_average_accuracy(matrix: ArrayLike) -> float:
    """FAA: mean accuracy over all tasks after the last one.

    Args:
        matrix: accuracy matrix (T, T), fractions.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: the matrix is not valid, see `as_accuracy_matrix`.
    """
    return float(average_accuracies(matrix)[-1])


def cumulative_average_accuracy(matrix: ArrayLike) -> float:
    """CAA: mean over t of the average accuracy after task t.

    Args:
        matrix: accuracy matrix (T, T), fractions.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: the matrix is not valid, see `as_accuracy_matrix`.
    """
    return float(average_accuracies(matrix).mean())


def forgetting(matrix: ArrayLike) -> float | None:
    """FM: how far old tasks have fallen from their best, the last row included among the candidates for the best.

    Args:
        matrix: accuracy matrix (T, T), fractions.

    Returns:
        A fraction in [0, 1], or None with a single task.

    Raises:
        ValueError: the matrix is not valid, see `as_accuracy_matrix`.

    Source: Chaudhry et al., Riemannian Walk, ECCV 2018, whose maximum leaves the last row out.
    """
    a = as_accuracy_matrix(matrix)
    return None if len(a) == 1 else float(forgetting_over_tasks(a)[-1])


def forgetting_over_tasks(matrix: ArrayLike) -> np.ndarray:
    """FM after each task, over the tasks before it.

    Args:
        matrix: accuracy matrix (T, T), fractions.

    Returns:
        Array (T,) of fractions in [0, 1], NaN after the first task: there is nothing to forget yet.

    Raises:
        ValueError: the matrix is not valid, see `as_accuracy_matrix`.
    """
    a = as_accuracy_matrix(matrix)
    after = [np.mean([a[j : t + 1, j].max() - a[t, j] for j in range(t)]) for t in range(1, len(a))]
    return np.array([np.nan, *after])


def backward_transfer(matrix: ArrayLike) -> float | None:
    """BWT: mean change of old tasks' accuracy since each was learned; negative means forgetting.

    Args:
        matrix: accuracy matrix (T, T), fractions.

    Returns:
        A number in [-1, 1], or None with a single task.

    Raises:
        ValueError: the matrix is not valid, see `as_accuracy_matrix`.

    Source: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017.
    """
    a = as_accuracy_matrix(matrix)
    if len(a) == 1:
        return None
    return float(np.mean(a[-1, :-1] - a.diagonal()[:-1]))


def forward_transfer(matrix: ArrayLike, baseline: ArrayLike | None = None) -> float | None:
    """FWT: mean accuracy on each task just before it is learned, above a baseline such as chance.

    Args:
        matrix: accuracy matrix (T, T), fractions; `a[j-1][j]` given for every j >= 1, else FWT is not defined.
        baseline: accuracies (T,) of an untrained model or of chance, fractions; entry 0 is not used. Default: None.

    Returns:
        A number in [-1, 1], or None with a single task, without a baseline or without those entries. A classifier that
        has no output for classes it has not seen cannot be measured this way.

    Raises:
        ValueError: the matrix is not valid, or the baseline is not one fraction for each task.

    Source: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017.
    """
    a = as_accuracy_matrix(matrix)
    if baseline is None:
        return None
    reference = _task_vector(baseline, "baseline", len(a))
    wrong = np.flatnonzero(~is_fraction(reference))
    if len(wrong) > 0:
        raise ValueError(f"baseline[{wrong[0]}] is {reference[wrong[0]]}: it must be a fraction in [0, 1]")
    before = a.diagonal(offset=1)  # (T - 1,)
    if len(before) == 0 or np.isnan(before).any():
        return None
    return float(np.mean(before - reference[1:]))


def weighted_final_accuracy(matrix: ArrayLike, test_counts: ArrayLike) -> float:
    """Accuracy over all test images after the last task: tasks weigh as many images as they have.

    Args:
        matrix: accuracy matrix (T, T), fractions.
        test_counts: number of test images of each task (T,), each above 0.

    Returns:
        A fraction in [0, 1]; equal to FAA where all tasks have as many images.

    Raises:
        ValueError: the matrix is not valid, or the counts are not one positive number for each task.
    """
    a = as_accuracy_matrix(matrix)
    counts = _task_vector(test_counts, "test_counts", len(a))
    wrong = np.flatnonzero(~(np.isfinite(counts) & (counts > 0)))
    if len(wrong) > 0:
        raise ValueError(f"test_counts[{wrong[0]}] is {counts[wrong[0]]}: it must be a number of images above 0")
    return float((a[-1] * counts).sum() / counts.sum())


def continual_metrics(
    matrix: ArrayLike, test_counts: ArrayLike | None = None, baseline: ArrayLike | None = None
) -> dict[str, float | None]:
    """All metrics of one accuracy matrix, ready for JSON.

    Args:
        matrix: accuracy matrix (T, T), fractions.
        test_counts: number of test images of each task (T,). Default: None, no weighted accuracy.
        baseline: accuracies (T,) of an untrained model or of chance, for FWT. Default: None, no FWT.

    Returns:
        `final_average_accuracy`, `cumulative_average_accuracy`, `forgetting`, `backward_transfer`, `forward_transfer`
        and `weighted_final_accuracy`: a float each, None where it is not defined.

    Raises:
        ValueError: an argument is not valid; the message names the entry.
    """
    a = as_accuracy_matrix(matrix)
    return {
        "final_average_accuracy": final_average_accuracy(a),
        "cumulative_average_accuracy": cumulative_average_accuracy(a),
        "forgetting": forgetting(a),
        "backward_transfer": backward_transfer(a),
        "forward_transfer": forward_transfer(a, baseline),
        "weighted_final_accuracy": None if test_counts is None else weighted_final_accuracy(a, test_counts),
    }


def metrics_where_measured(matrix: AccuracyMatrix, test_counts: ArrayLike | None = None) -> dict[str, float | None]:
    """`continual_metrics` of a matrix that may have gaps: None for each metric that a gap leaves undefined.

    Args:
        matrix: the matrix.
        test_counts: number of test images of each task (T,), 0 where there are none.
    """
    if matrix.is_complete:
        return continual_metrics(matrix, test_counts)
    metrics = dict.fromkeys(METRICS)
    last = matrix.as_array()[-1]
    if not np.isnan(last).any():
        metrics["final_average_accuracy"] = float(last.mean())
        if test_counts is not None:
            counts = _task_vector(test_counts, "test_counts", len(last))
            metrics["weighted_final_accuracy"] = float((last * counts).sum() / counts.sum())
    return metrics


def accuracy_matrix_from_records(
    predictions: ArrayLike, references: ArrayLike, task_ids: ArrayLike, stages: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Count an accuracy matrix from one record for each test image and stage.

    Args:
        predictions: predicted class ids (N,).
        references: true class ids (N,).
        task_ids: task j in 0..T-1 that the image belongs to (N,).
        stages: task t in 0..T-1 after which the image was classified (N,).

    Returns:
        The accuracy matrix (T, T), NaN above the diagonal where nothing was recorded, and the test counts (T,).

    Raises:
        ValueError: lengths differ, an id is negative, or a task has another number of images at some stage.
    """
    columns = {"predictions": predictions, "references": references, "task_ids": task_ids, "stages": stages}
    columns = {name: np.asarray(values) for name, values in columns.items()}
    lengths = {name: values.shape for name, values in columns.items()}
    if len(set(lengths.values())) != 1 or columns["stages"].ndim != 1 or columns["stages"].size == 0:
        raise ValueError(f"predictions, references, task_ids and stages must be equally long lists, got {lengths}")
    t, j = columns["stages"], columns["task_ids"]
    for name in ("task_ids", "stages"):
        if columns[name].dtype.kind not in "iu" or columns[name].min() < 0:
            raise ValueError(f"{name} must be integers from 0 on, got a smallest value of {columns[name].min()}")
    num_tasks = int(max(t.max(), j.max())) + 1
    counts = np.zeros((num_tasks, num_tasks), dtype=np.int64)
    hits = np.zeros_like(counts)
    np.add.at(counts, (t, j), 1)
    np.add.at(hits, (t, j), columns["predictions"] == columns["references"])
    uneven = np.argwhere((counts > 0) & (counts != counts[-1]))
    if len(uneven) > 0:
        stage, task = uneven[0]
        raise ValueError(
            f"task {task} has {counts[stage, task]} records at stage {stage} but {counts[-1, task]} at the last one: "
            f"every stage must classify the same test images"
        )
    matrix = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
    return as_accuracy_matrix(matrix), counts[-1]
