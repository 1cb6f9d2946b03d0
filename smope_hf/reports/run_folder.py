"""What lies in a run's folder, read back: of a finished run, one that was cut, or a single task's folder."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..base.home import expanded
from ..metrics.accuracy_matrix import AccuracyMatrix
from ..models.registry import config_of
from ..routing.record import PATTERNS_FILE, load_patterns
from ..routing.training_record import TRAINING_FILE, load_training_record
from ..routing.usage import ROUTING_FILE, load_routing
from ..sharing.checkpoint import STATISTICS_FILE, load_statistics, saved_tasks, task_index
from ..sharing.model_card import method_name
from ..sharing.run_files import MANIFEST_FILE, METRICS_FILE, STATE_FILE, load_manifest, load_metrics, load_state
from ..storage.state_folder import STATE_FOLDER, read_content
from ..training.run_state import model_settings

YARDSTICK_NAMES = {"ncm": "NCM", "lda": "LDA", "linear": "linear"}


class RunFolder:
    """A run's results and checkpoints, as far as they are there.

    Args:
        path: folder of a run, or of one task of it.

    Attributes:
        tasks: the folders of the tasks saved in it, in order; the folder itself where it is a task's.
        finished: whether the run wrote the results of all its tasks; a run that was cut, or is going on, has not, nor
            has one that began to learn more tasks in its own folder since.

    Raises:
        FileNotFoundError: when there are neither results nor a saved task.
        ValueError: when a file is broken; the message names it and the field.
    """

    def __init__(self, path: str | Path):
        self.path = expanded(Path(path))
        self.tasks = [self.path] if (self.path / STATE_FILE).is_file() else saved_tasks(self.path)
        results = self._results()
        self.finished = results is not None
        if results is not None:
            self.content = results
        elif self.tasks:
            self.content = load_state(self.tasks[-1])
        else:
            raise FileNotFoundError(f"{path} holds no run: there is neither {METRICS_FILE} nor a task-NN folder in it")

    def _results(self) -> dict | None:
        """What the run wrote of all its tasks at its end; None where it did not, or has begun more since."""
        if not (self.path / METRICS_FILE).is_file():
            return None
        content = load_metrics(self.path)
        begun = [task_index(self.tasks[-1].name)] if self.tasks else []
        if state := read_content(self.path / STATE_FOLDER):
            begun.append(state["task"])
        last = max(begun, default=-1)
        stale = len(content.get("accuracy_matrix", range(last + 1))) <= last
        return None if stale else content

    @cached_property
    def matrix(self) -> AccuracyMatrix:
        """The accuracy matrix, with gaps where nothing was measured."""
        if "accuracy_matrix" not in self.content:
            raise ValueError(f"{self.path / METRICS_FILE}: accuracy_matrix is missing. Run smope train again.")
        return AccuracyMatrix.from_json(self.content["accuracy_matrix"])

    @property
    def yardsticks(self) -> dict[str, AccuracyMatrix]:
        """Accuracy matrices of what was measured beside the method, by name."""
        found = self.content.get("yardstick_matrices", {})
        return {YARDSTICK_NAMES.get(name, name): AccuracyMatrix.from_json(rows) for name, rows in found.items()}

    @cached_property
    def config(self):
        """The config of the last task's model; None where no task was saved."""
        return config_of(self.tasks[-1]) if self.tasks else None

    @property
    def method(self) -> str:
        """Name of the method."""
        if "method" in self.content or self.config is None:
            return self.content.get("method", "SMoPE")
        return method_name(self.config)

    @property
    def model(self) -> dict:
        """Settings of the model, by name."""
        if "model" in self.content or self.config is None:
            return self.content.get("model", {})
        return model_settings(self.config)

    @property
    def recipe(self) -> dict:
        """Settings of the training, by name."""
        return self.content.get("recipe", {})

    @cached_property
    def manifest(self) -> dict | None:
        """Of the run's tasks, or where the run was cut, of the tasks learned; None where there is none."""
        places = [self.path, *self.tasks[-1:]] if self.finished else [*self.tasks[-1:], self.path]
        folder = next((folder for folder in places if (folder / MANIFEST_FILE).is_file()), None)
        if folder is None:
            return None
        manifest, learned = load_manifest(folder), len(self.content.get("accuracy_matrix", ()))
        if len(manifest["tasks"]) < learned:
            raise ValueError(
                f"{folder / MANIFEST_FILE}: tasks has {len(manifest['tasks'])} entries, but accuracy_matrix of "
                f"{self.path} has {learned} rows. They are of different runs: run smope train again."
            )
        return manifest

    @property
    def protocol_hash(self) -> str | None:
        """Of the tasks that the run learns: runs with another one cannot be compared with it."""
        return self.content.get("protocol_hash")

    @cached_property
    def usage(self) -> np.ndarray | None:
        """How often each task's images selected each expert, (T, L, H, E); None where there are no counts.

        Raises:
            ValueError: when the routing report is of another model than the counts.
        """
        folder = self.tasks[-1] if self.tasks else None
        if folder is None or not (folder / STATISTICS_FILE).is_file() or self.routing is None:
            return None
        history = load_statistics(folder)[1]
        if not history:
            return None
        usage, layers = torch.stack(history).numpy(), self.routing["layers"]
        reported = (len(layers), len(layers[0]["usage_share"]) if layers else 0, self.routing["num_experts"])
        if usage.shape[1:] != reported:
            raise ValueError(
                f"{folder / ROUTING_FILE}: layers, heads and num_experts are {reported}, but usage_by_task in "
                f"{STATISTICS_FILE} has {usage.shape[1:]}. They are of different models: copy the checkpoint again."
            )
        return usage

    @cached_property
    def routing(self) -> dict | None:
        """The routing report of the last task; None for a model without experts, or without checkpoints."""
        there = self.tasks and (self.tasks[-1] / ROUTING_FILE).is_file()
        return load_routing(self.tasks[-1]) if there else None

    def marks(self, task: int) -> list[np.ndarray] | None:
        """Marks (H, E) of every layer while the task of this index was learned; None where its folder is not there.

        Marks are never taken away: those of a later task would be too many.
        """
        folder = next((folder for folder in self.tasks if self._index(folder) == task), None)
        if folder is None or not (folder / ROUTING_FILE).is_file():
            return None
        routing = load_routing(folder)
        marks = []
        for layer in routing["layers"]:
            heads = layer["frequently_used_experts"]
            marks.append(np.zeros((len(heads), routing["num_experts"]), dtype=bool))
            for head, experts in enumerate(heads):
                marks[-1][head, experts] = True
        return marks

    def _index(self, folder: Path) -> int | None:
        return len(self.matrix) - 1 if folder == self.path else task_index(folder.name)

    @cached_property
    def patterns(self) -> dict | None:
        """What a `RoutingRecorder` wrote; None where there was none."""
        return load_patterns(self.path) if (self.path / PATTERNS_FILE).is_file() else None

    @cached_property
    def training_routing(self) -> dict | None:
        """What a `TrainingRoutingRecorder` wrote; None where there was none."""
        return load_training_record(self.path) if (self.path / TRAINING_FILE).is_file() else None

    @property
    def confusion(self) -> np.ndarray | None:
        """Test images of each task (row) by the task of the class given (column), zeros where a task has none."""
        rows = self.content.get("task_confusion") or []
        if len(rows) < 2 or not any(map(bool, rows)):
            return None
        return np.array([[0] * len(rows) if row is None else row for row in rows])


def open_runs(paths: Sequence[str | Path]) -> dict[str, RunFolder]:
    """Runs by the last part of their path, or by as much of it as tells them apart.

    Raises:
        ValueError: when one is given twice.
        FileNotFoundError: when a folder holds no run.
    """
    parts = [expanded(Path(path)).resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(paths):
            return {name: RunFolder(path) for name, path in zip(names, paths, strict=True)}
    raise ValueError("the same run was given twice")
