"""Which pictures there are of a run or of several runs, each with what a reader must know, to be drawn when needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..routing.patterns import balance, task_overlap
from ..routing.record import balance_over_tasks, overlap_of_tasks, survival_over_tasks
from ..routing.training_record import balance_in_training
from .plots import (
    plot_accuracy_matrix,
    plot_average_accuracy,
    plot_balance,
    plot_expert_usage,
    plot_forgetting,
    plot_survival,
    plot_task_confusion,
    plot_task_overlap,
    plot_training_balance,
)
from .run_folder import RunFolder
from .run_groups import RunGroup


@dataclass(frozen=True)
class Picture:
    """A picture not drawn yet.

    Args:
        name: of its file, without a suffix.
        text: what it shows, in one sentence.
        draw: draws it, called with the path, and `theme=` and `dpi=` where they are not the default.
    """

    name: str
    text: str
    draw: Callable


def accuracy_pictures(run: RunFolder) -> list[Picture]:
    """Pictures of what a run reached: average accuracy, forgetting, accuracy matrix, confusion between tasks."""
    found = []
    if run.matrix.is_complete:
        found += curve_pictures({run.method: run.matrix.as_array(), **_arrays(run.yardsticks)})
    if any(value is not None for row in run.matrix.to_json() for value in row):
        text = "Accuracy on each task after each task."
        draw = partial(plot_accuracy_matrix, run.matrix.as_array(), partial=True)
        found.append(Picture("accuracy_matrix", text, draw))
    if run.confusion is not None:
        text = "Of which task the classes are that each task's test images are taken for, after the last task."
        found.append(Picture("task_confusion", text, partial(plot_task_confusion, run.confusion)))
    return found


def curve_pictures(curves: Mapping) -> list[Picture]:
    """Average accuracy and, from two tasks on, forgetting; `curves` as `plot_average_accuracy` takes them."""
    text = "Average accuracy over the tasks learned so far."
    found = [Picture("average_accuracy", text, partial(plot_average_accuracy, curves))]
    if max(_num_tasks(runs) for runs in curves.values()) > 1:
        text = "Forgetting: how far old tasks have fallen from their best, on average."
        found.append(Picture("forgetting", text, partial(plot_forgetting, curves)))
    return found


def group_pictures(groups: Sequence[RunGroup]) -> list[Picture]:
    """Average accuracy and forgetting of groups of runs, with bands over their seeds.

    Raises:
        ValueError: when a run was not measured everywhere; the message names it.
    """
    gaps = [name for group in groups for name, run in group.runs.items() if not run.matrix.is_complete]
    if gaps:
        raise ValueError(f"{', '.join(gaps)}: not every task was tested after every task, so there is no average")
    return curve_pictures({group.label: [run.matrix.as_array() for run in group.runs.values()] for group in groups})


def usage_picture(run: RunFolder, task: int, name: str = "expert_usage") -> Picture:
    """Which experts one task's images switch on, with those outlined that were marked while it was learned."""
    options = {
        "frequently_used": run.marks(task),
        "layers": [layer["layer"] for layer in run.routing["layers"]],
        "title": f"Experts that the images of task {task + 1} switch on",
    }
    text = f"How often the training images of task {task + 1} select each expert, in every layer and head."
    return Picture(name, text, partial(plot_expert_usage, list(run.usage[task]), **options))


def routing_pictures(run: RunFolder, every_task: bool = False) -> list[Picture]:
    """Pictures of how a run's experts are used; none for a model without experts.

    Args:
        run: the run.
        every_task: draw each task's usage. Default: that of the last one.
    """
    if run.usage is None or not len(run.usage):
        return []
    last = len(run.usage) - 1
    if every_task:
        found = [usage_picture(run, task, f"expert_usage-task-{task + 1:02d}") for task in range(last + 1)]
    else:
        found = [usage_picture(run, last)]
    found += _balance_picture(run) + training_pictures(run.training_routing) + _overlap_picture(run)
    return found + survival_pictures(run.patterns)


def _balance_picture(run: RunFolder) -> list[Picture]:
    if run.patterns is not None:
        layers, (entropy, dead) = run.patterns["layers"], balance_over_tasks(run.patterns)
    else:
        layers = [layer["layer"] for layer in run.routing["layers"]]
        together = balance(run.usage.cumsum(axis=0))
        entropy, dead = together.entropy.mean(axis=2), together.dead_share.mean(axis=2)  # (T, L)
    text = "How evenly the experts are used after each task, and the share of them that was never selected."
    return [Picture("routing_balance", text, partial(plot_balance, entropy, dead, layers=layers))]


def training_pictures(record: dict | None) -> list[Picture]:
    """How a run's steps of training select the experts, of what `load_training_record` gives; none without it."""
    if record is None:
        return []
    found = balance_in_training(record)
    options = {"task_starts": [entry["first_step"] for entry in record["tasks"]], "layers": record["layers"]}
    text = "How evenly the steps of training select the experts, and the share of them that is not selected at all."
    draw = partial(plot_training_balance, found.steps, found.entropy, found.dead_share, **options)
    return [Picture("routing_training", text, draw)]


def _overlap_picture(run: RunFolder) -> list[Picture]:
    if len(run.usage) < 2:
        return []
    recorded = run.patterns is not None and len(run.patterns["tasks"]) == len(run.usage)
    overlap = overlap_of_tasks(run.patterns) if recorded else task_overlap(run.usage).usage
    text = "Which tasks share experts: the share of two tasks' selections that is the same."
    return [Picture("routing_overlap", text, partial(plot_task_overlap, overlap))]


def survival_pictures(patterns: dict | None) -> list[Picture]:
    """What is left of old tasks' routing, of what `load_patterns` gives; none where it was not measured."""
    if patterns is None:
        return []
    survival = survival_over_tasks(patterns)
    if not any(value == value for value in survival.flat):  # not NaN
        return []
    text = "How much of each task's routing is left after each later task."
    draw = partial(plot_survival, survival, chance=patterns["chance_survival"])
    return [Picture("routing_survival", text, draw)]


def _num_tasks(runs) -> int:
    return max(len(one) for one in runs) if isinstance(runs, list) else len(runs)


def _arrays(matrices: Mapping) -> dict:
    return {name: matrix.as_array() for name, matrix in matrices.items()}
