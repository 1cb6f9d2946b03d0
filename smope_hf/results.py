"""What a run leaves behind: metrics.json, accuracy_matrix.csv, manifest.json, plots, and tables on the terminal."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from .accuracy_matrix import AccuracyMatrix
from .files import write_json
from .metrics import continual_metrics
from .plots import plot_accuracy_matrix, plot_average_accuracy
from .terminal import accuracy_table, metrics_table


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
        details: what else belongs into metrics.json (settings, seconds, versions).
        yardsticks: accuracy matrices of other methods on the same tasks, by name.

    Returns:
        The content of metrics.json.
    """
    output_dir = Path(output_dir)
    matrices = {"smope": matrix, **(yardsticks or {})}
    metrics = {name: continual_metrics(rows.as_array(), test_counts) for name, rows in matrices.items()}
    content = {
        "metrics": metrics["smope"],
        "yardsticks": {name: values for name, values in metrics.items() if name != "smope"},
        "protocol_hash": manifest["protocol_hash"],
        **details,
    }
    write_json(output_dir / "metrics.json", content)
    write_json(output_dir / "manifest.json", manifest)
    matrix.to_csv(output_dir / "accuracy_matrix.csv")
    plot_accuracy_matrix(matrix.as_array(), output_dir / "plots" / "accuracy_matrix.png")
    curves = {name.upper() if name in ("ncm", "lda") else name: rows.as_array() for name, rows in matrices.items()}
    curves = {"SMoPE": curves.pop("smope"), **curves}
    plot_average_accuracy(curves, output_dir / "plots" / "average_accuracy.png")
    return content


def print_results(console: Console, matrix: AccuracyMatrix, content: Mapping):
    """Print the accuracy matrix and the metrics beside the yardsticks'."""
    console.print(accuracy_table(matrix.as_array()))
    names = {"ncm": "NCM on frozen features", "lda": "LDA on frozen features", "linear": "linear head, task by task"}
    others = {names.get(name, name): metrics for name, metrics in content["yardsticks"].items()}
    console.print(metrics_table({"SMoPE": content["metrics"], **others}))
