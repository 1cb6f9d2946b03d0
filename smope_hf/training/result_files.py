"""What a run writes of its results for others to read: metrics.json, accuracy_matrix.csv and manifest.json."""

import os
from collections.abc import Mapping
from pathlib import Path

from ..data.duplicates import Duplicates
from ..metrics.accuracy_matrix import AccuracyMatrix
from ..metrics.summary import metrics_where_measured
from ..settings.training_args import ContinualTrainingArguments
from ..sharing.model_card import method_name
from ..sharing.run_files import MANIFEST_FILE, METRICS_FILE
from ..storage.files import write_json
from ..storage.version_changes import change_warning
from .evaluation import Evaluation
from .health import health_of
from .other_alignments import OtherAlignments
from .run_state import RunState, model_settings, versions

MATRIX_FILE = "accuracy_matrix.csv"
REPORT_FILE = "report.html"
PLOTS_FOLDER = "plots"
RESULT_FILES = (METRICS_FILE, MANIFEST_FILE, MATRIX_FILE, REPORT_FILE)
"""What tells of a run in its folder, in the order in which it is written; the last is the reports' to write."""


def write_results(
    output_dir: str | Path,
    matrix: AccuracyMatrix,
    test_counts: list[int],
    manifest: dict,
    details: dict,
    yardsticks: Mapping[str, AccuracyMatrix] | None = None,
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

    Returns:
        The content of metrics.json.
    """
    output_dir = Path(output_dir)
    others = (yardsticks or {}).items()
    content = {
        "metrics": details["metrics"],
        "yardsticks": {name: metrics_where_measured(rows, test_counts) for name, rows in others},
        "yardstick_matrices": {name: rows.to_json() for name, rows in others},
        "protocol_hash": manifest["protocol_hash"],
        **details,
    }
    write_json(output_dir / METRICS_FILE, content)
    write_json(output_dir / MANIFEST_FILE, manifest)
    matrix.to_csv(output_dir / MATRIX_FILE)
    return content


def run_details(
    model,
    state: RunState,
    args: ContinualTrainingArguments,
    others: OtherAlignments,
    evaluation: Evaluation,
    test_counts: list[int],
    num_processes: int = 1,
    duplicates: Duplicates | None = None,
) -> dict:
    """What metrics.json tells of a run beside its metrics: method, measurements, settings, seconds, versions.

    Args:
        model: of the run.
        state: what the run has reached.
        args: its settings.
        others: the alignments measured beside its own.
        evaluation: of the model as it is.
        test_counts: test images of each task.
        num_processes: that the run was on.
        duplicates: images that are there more than once. Default: not known.
    """
    config = model.config
    warnings = [*health_of(model, state, args.recipe()), *map(change_warning, state.version_changes)]
    return {
        "method": method_name(config),
        "accuracy_matrix": state.matrix.to_json(),
        "other_alignments": others.results(test_counts),
        "test_counts": test_counts,
        "task_confusion": state.task_confusion,
        "warnings": warnings if duplicates is None else [*duplicates.sentences, *warnings],
        **({} if duplicates is None else {"duplicate_images": duplicates.to_json()}),
        "recall_by_class": evaluation.recalls[0],
        "training_images_by_class": state.statistics.count.tolist(),
        "seconds_by_task": state.seconds,
        "continued_from": state.continued_from,
        "num_processes": num_processes,
        "recipe": args.recipe(),
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
