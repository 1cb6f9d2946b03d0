"""What a run leaves behind: metrics.json, accuracy_matrix.csv, manifest.json, plots, report.html, tables to print."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .accuracy_matrix import AccuracyMatrix
from .class_recall import THIRDS
from .files import write_json
from .metrics import metrics_where_measured
from .model_card import method_name
from .plots import plot_accuracy_matrix, plot_average_accuracy
from .printing import print_rich, say
from .run_folder import YARDSTICK_NAMES
from .run_health import health_of
from .run_report import REPORT_FILE, write_report
from .run_state import model_settings, versions
from .terminal import accuracy_table, metrics_table
from .version_changes import change_warning

RESULT_FILES = ("metrics.json", "manifest.json", "accuracy_matrix.csv", REPORT_FILE)


def write_results(
    output_dir: str | Path,
    matrix: AccuracyMatrix,
    test_counts: list[int],
    manifest: dict,
    details: dict,
    yardsticks: Mapping[str, AccuracyMatrix] | None = None,
    report: bool = True,
) -> dict:
    """Write the files of a run; those that exist are replaced.

    Args:
        output_dir: folder of the run.
        matrix: accuracy matrix of the method.
        test_counts: test images of each task.
        manifest: of the task stream.
        details: what else belongs into metrics.json: the `metrics` and the name of the `method`, recall of each
            class, settings, seconds, versions.
        yardsticks: accuracy matrices of other methods on the same tasks, by name.
        report: write report.html too, last of all.

    Returns:
        The content of metrics.json.
    """
    output_dir = Path(output_dir)
    matrices = {
        details["method"]: matrix,
        **{YARDSTICK_NAMES[name]: rows for name, rows in (yardsticks or {}).items()},
    }
    others = (yardsticks or {}).items()
    content = {
        "metrics": details["metrics"],
        "yardsticks": {name: metrics_where_measured(rows, test_counts) for name, rows in others},
        "yardstick_matrices": {name: rows.to_json() for name, rows in others},
        "protocol_hash": manifest["protocol_hash"],
        **details,
    }
    write_json(output_dir / "metrics.json", content)
    write_json(output_dir / "manifest.json", manifest)
    matrix.to_csv(output_dir / "accuracy_matrix.csv")
    draw_results(output_dir / "plots", matrix, matrices)
    if report:
        write_report(output_dir)
    return content


def run_details(trainer, test_counts: list[int]) -> dict:
    """What metrics.json tells of a run beside its metrics: method, measurements, settings, seconds, versions."""
    config, state = trainer.model.config, trainer.state
    return {
        "method": method_name(config),
        "accuracy_matrix": state.matrix.to_json(),
        "other_alignments": trainer.others.results(test_counts),
        "test_counts": test_counts,
        "task_confusion": state.task_confusion,
        "warnings": [*health_of(trainer), *map(change_warning, state.version_changes)],
        "recall_by_class": trainer.evaluation.recalls[0],
        "training_images_by_class": state.statistics.count.tolist(),
        "seconds_by_task": state.seconds,
        "continued_from": state.continued_from,
        "num_processes": trainer.accelerator.num_processes,
        "recipe": trainer.args.recipe(),
        "model": model_settings(config),
        "versions": versions(),
        "version_changes": state.version_changes,
    }


def keep_results(output_dir: str | Path, num_tasks: int):
    """Put aside what a run has written about its first tasks, before a model that went on from it writes its own.

    Of the files metrics.json goes first here and is written first by `write_results`: as long as it is in one of the
    two folders alone, what else lies in `output_dir` is old, and a call that was killed is made up for.

    Args:
        output_dir: folder of the run; nothing happens where it holds no results, or they were put aside before.
        num_tasks: tasks that they tell of.
    """
    output_dir = Path(output_dir)
    kept = output_dir / f"results-task-{num_tasks:02d}"
    first = RESULT_FILES[0]
    if (output_dir / first).is_file() == (kept / first).is_file():
        return
    kept.mkdir(exist_ok=True)
    for name in RESULT_FILES:
        if (output_dir / name).is_file() and not (kept / name).exists():
            os.replace(output_dir / name, kept / name)


def draw_results(folder: Path, matrix: AccuracyMatrix, matrices: Mapping[str, AccuracyMatrix]):
    """Draw an accuracy matrix, and the average accuracy of all methods by name, as far as they were measured."""
    if not np.isnan(matrix.as_array()).all():
        plot_accuracy_matrix(matrix.as_array(), folder / "accuracy_matrix.png", partial=True)
    if matrix.is_complete:
        curves = {name: rows.as_array() for name, rows in matrices.items()}
        plot_average_accuracy(curves, folder / "average_accuracy.png")


def print_results(matrix: AccuracyMatrix, content: Mapping):
    """Print the accuracy matrix and the metrics beside the yardsticks'."""
    print_rich(accuracy_table(matrix.as_array()))
    names = {"ncm": "NCM on frozen features", "lda": "LDA on frozen features", "linear": "linear head, task by task"}
    others = {names.get(name, name): metrics for name, metrics in content["yardsticks"].items()}
    print_rich(metrics_table({content["method"]: content["metrics"], **others}))
    thirds = [content["metrics"].get(name) for name in THIRDS]
    if None not in thirds:
        shown = ", ".join(f"{100 * value:.1f}" for value in thirds)
        say(f"recall of classes with many, medium, few training images: {shown}")
