"""What a run shows of its results to people, once they are written: plots, report.html and tables on the terminal."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..base.printing import print_rich, say
from ..metrics.accuracy_matrix import AccuracyMatrix
from ..metrics.class_recall import THIRDS
from ..sharing.model_card import PICTURE
from ..training.callbacks import ContinualCallback
from ..training.result_files import PLOTS_FOLDER
from .plots import plot_accuracy_matrix, plot_average_accuracy
from .run_folder import YARDSTICK_NAMES
from .run_report import write_report
from .terminal import accuracy_table, metrics_table


class ResultsReport(ContinualCallback):
    """Draws what a checkpoint's card shows; at the end of a run its plots, its report.html and its tables.

    Every [`ContinualTrainer`] has one, in front of the callbacks that it is given: see
    `smope_hf.training.callbacks.DEFAULT_CALLBACKS`. report.html is left out where `args.report` is off.
    """

    def on_save(self, trainer, task, folder):
        matrix = trainer.state.matrix.as_array()
        if not np.isnan(matrix).all():
            plot_accuracy_matrix(matrix, folder / PICTURE, partial=True, dpi=120)

    def on_train_end(self, trainer, content):
        accelerator, args = trainer.accelerator, trainer.args
        if accelerator.is_main_process:
            show_results(args.output_dir, trainer.state.matrix, trainer.yardsticks, content, args.report)
        accelerator.wait_for_everyone()


def show_results(
    output_dir: str | Path,
    matrix: AccuracyMatrix,
    yardsticks: Mapping[str, AccuracyMatrix],
    content: Mapping,
    report: bool = True,
):
    """Draw, report and print the results of a run whose files are written.

    Args:
        output_dir: folder of the run.
        matrix: accuracy matrix of the method.
        yardsticks: accuracy matrices of other methods on the same tasks, by name.
        content: of metrics.json.
        report: write report.html too, behind the plots.
    """
    others = {YARDSTICK_NAMES[name]: rows for name, rows in yardsticks.items()}
    draw_results(Path(output_dir) / PLOTS_FOLDER, matrix, {content["method"]: matrix, **others})
    if report:
        write_report(output_dir)
    print_results(matrix, content)


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
