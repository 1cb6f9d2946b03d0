"""What other alignments would have reached, measured beside a run's own from one and the same training.

A task's training sees the rows of its own classes alone (docs/method.md, step 9), so how the head was aligned before
does not reach the prompts: every alignment follows from one training, its statistics and the rows as trained.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.seeding import derive_generator
from ..data.split import Task
from ..heads.alignment import ClassStatistics, align_classifier
from ..metrics.accuracy_matrix import AccuracyMatrix
from ..metrics.summary import metrics_where_measured
from ..models.incremental_head import IncrementalHead
from ..settings.training_args import UNCOMPENSATED, ContinualTrainingArguments
from ..storage.checkpoint_guard import FLOATING, INTEGER, read_exactly
from ..storage.files import atomic_path, remove_of_safetensors

FOLDER = "other_alignments"


class OtherAlignments:
    """A head and an accuracy matrix for each alignment in `args.compare_alignments`.

    Args:
        args: settings of the run; the heads are aligned with its own but for `alignment`.
        model: of the run, before its training.

    Raises:
        ValueError: when there is something to compare and the model has learned tasks, or trains no head.
    """

    def __init__(self, args: ContinualTrainingArguments, model):
        self.args, self.hidden_size = args, model.config.hidden_size
        self.names = tuple(name for name in args.compare_alignments if name != args.alignment)
        if self.names and (model.config.tasks or model.closed_form is not None):
            raise ValueError(
                f"compare_alignments = {args.compare_alignments!r} is not allowed here: it needs a run from the first "
                "task, with a method that trains its head. Leave it out."
            )
        self.heads = {name: IncrementalHead(self.hidden_size, 0) for name in self.names}
        self.matrices = {name: AccuracyMatrix() for name in self.names}
        self.uncompensated = ClassStatistics.empty(self.hidden_size)  # as they were taken, each at the end of its task

    def align(self, trained: IncrementalHead, statistics: ClassStatistics, new: ClassStatistics, task: Task):
        """Give every head the new classes.

        Args:
            trained: the run's head as training left it, before its alignment.
            statistics: of every class seen.
            new: of the task's classes alone.
            task: the task; after the first, heads are left as trained.
        """
        first, self.uncompensated = task.class_ids.start, self.uncompensated.joined(new)
        for name in self.names:
            head = self.heads[name].to(trained.weight).grown(trained.out_features - first)
            with torch.no_grad():
                head.weight[first:], head.bias[first:] = trained.weight[first:], trained.bias[first:]
            if task.index > 0:
                generator = derive_generator(self.args.seed, "alignment", task.index)
                args = replace(self.args, alignment=name.removesuffix(UNCOMPENSATED))
                known = self.uncompensated if name.endswith(UNCOMPENSATED) else statistics
                try:
                    align_classifier(head, known, first, args, generator)
                except ValueError as error:
                    raise ValueError(f"compare_alignments, {name}: {error} Or compare without it.") from error
            self.heads[name] = head

    def add_rows(self, rows: Sequence[Sequence[float | None]]):
        """Add a row to each accuracy matrix, in the order of `names`."""
        for name, row in zip(self.names, rows, strict=True):
            self.matrices[name].add_row(row)

    def results(self, test_counts: list[int]) -> dict[str, dict]:
        """Metrics and accuracy matrix of each alignment, for metrics.json."""
        return {
            name: {"metrics": metrics_where_measured(rows, test_counts), "accuracy_matrix": rows.to_json()}
            for name, rows in self.matrices.items()
        }

    def save(self, output_dir: str | Path, index: int):
        """Keep heads and matrices for a run that is resumed behind the task with this index."""
        if not self.names:
            return
        tensors = {f"{UNCOMPENSATED}.{name}": value for name, value in self.uncompensated.to_tensors().items()}
        for name, head in self.heads.items():
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = head.weight.detach().cpu(), head.bias.detach().cpu()
            tensors[f"{name}.accuracies"] = torch.from_numpy(self.matrices[name].as_array())
        with atomic_path(_file(output_dir, index)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        remove_of_safetensors(Path(output_dir) / FOLDER)  # of a process that was killed
        if index > 1:  # the one before serves while this task's folder is being written
            _file(output_dir, index - 2).unlink(missing_ok=True)

    def load(self, output_dir: str | Path, index: int, trained: IncrementalHead):
        """Go on behind the task with this index.

        Args:
            trained: the run's head behind that task; the others come to its device.

        Raises:
            ValueError: when what was kept is missing or does not fit; the message says what to do.
        """
        if not self.names:
            return
        file, num_classes = _file(output_dir, index), trained.out_features
        parts = {"weight": (num_classes, self.hidden_size), "bias": (num_classes,), "accuracies": (index + 1,) * 2}
        expected = {f"{name}.{part}": (FLOATING, shape) for name in self.names for part, shape in parts.items()}
        empty = self.uncompensated.to_tensors()
        for part, value in empty.items():
            shape = tuple(size or num_classes for size in value.shape)
            expected[f"{UNCOMPENSATED}.{part}"] = (FLOATING if value.is_floating_point() else INTEGER, shape)
        try:
            tensors = read_exactly(file, expected, f"a run with compare_alignments = {self.names}")
            _check_values(tensors, file)
            matrices = {name: _matrix(tensors, name, file) for name in self.names}
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read: {error} {_ADVICE}") from error
        self.uncompensated = ClassStatistics(**{part: tensors[f"{UNCOMPENSATED}.{part}"] for part in empty})
        for name in self.names:
            self.heads[name] = _head(tensors[f"{name}.weight"], tensors[f"{name}.bias"]).to(trained.weight)
            self.matrices[name] = matrices[name]


_ADVICE = "Start the run anew in another output_dir, or leave compare_alignments out of both runs."


def _file(output_dir: str | Path, index: int) -> Path:
    return Path(output_dir) / FOLDER / f"task-{index + 1:02d}.safetensors"


def _check_values(tensors: dict[str, Tensor], file: Path):
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not name.endswith(".accuracies") and not bool(tensor.isfinite().all()):
            raise ValueError(f"{file}: {name} holds NaN or infinity. Allowed: finite numbers.")


def _matrix(tensors: dict[str, Tensor], name: str, file: Path) -> AccuracyMatrix:
    rows = tensors[f"{name}.accuracies"].tolist()
    try:
        return AccuracyMatrix([row[: task + 1] for task, row in enumerate(rows)])
    except ValueError as error:
        raise ValueError(f"{file}: {name}.accuracies: {error}.") from error


def _head(weight: Tensor, bias: Tensor) -> IncrementalHead:
    head = IncrementalHead(weight.shape[1], 0).grown(weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head
