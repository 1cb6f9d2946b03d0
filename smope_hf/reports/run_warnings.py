"""What a run's results say went wrong, each with what to do about it."""

from collections import Counter

import numpy as np

from ..data.duplicates import Duplicates
from ..data.image_check import SKIPPED_FILE
from ..data.manifest import protocol_hash
from ..metrics.summary import metrics_where_measured
from ..sharing.checkpoint import MANIFEST_FILE, load_manifest, task_index
from ..sharing.inspection import describe_checkpoint
from ..storage.version_changes import change_warning
from ..training.health import UNALIGNED, chance_of, health_warnings
from .run_folder import METRICS_FILE, RunFolder

LARGE_FORGETTING = 0.15  # fractions: 15 points
CLEARLY_BETTER = 0.01
FEW_IMAGES = 30  # of a task: one image is more than 3 points
_MOST_NAMED = 12


def warnings_of_run(run: RunFolder) -> list[str]:
    """Everything in a run that is likely to hurt: a sentence on the trouble, then its remedy."""
    found = [
        *_progress(run),
        *_skipped(run),
        *_duplicates(run),
        *_health(run),
        *_accuracies(run),
        *_yardsticks(run),
        *_protocol(run),
    ]
    found += map(change_warning, run.content.get("version_changes", []))
    if run.tasks:
        return found + describe_checkpoint(run.tasks[-1])["warnings"]
    advice = "Train with --save-checkpoints."
    return [*found, f"No checkpoint was saved: the model cannot be used, nor its routing be seen. {advice}"]


def _progress(run: RunFolder) -> list[str]:
    found = []
    if not run.finished:
        found.append(
            f"The run is not finished: there is no {METRICS_FILE} of all its tasks. The last task learned is "
            f"{len(run.matrix)}; give the run's command again with --resume to go on."
        )
    if not run.matrix.is_complete:
        found.append(
            "Not every task was tested after every task, so averages and forgetting are not known. Give test images "
            "of the old classes too (--test-data of smope add-classes)."
        )
    return found


def _skipped(run: RunFolder) -> list[str]:
    images = run.manifest["information"].get("skipped_images", []) if run.manifest else []
    if not images:
        return []
    purposes = Counter(image["used_for"] for image in images)
    counts = ", ".join(f"{purposes[name]} to {name}" for name in ("train", "validation", "test") if purposes[name])
    first = images[0]
    where = f"row {first['row']} of split {first['split']!r}, column {first['column']!r}"
    return [
        f"{len(images)} images were left out since they cannot be used ({counts}); the first is {where}: "
        f"{first['reason']}. {SKIPPED_FILE} lists all. Replace them and run again; results with and without them "
        "cannot be compared."
    ]


def _duplicates(run: RunFolder) -> list[str]:
    found = run.content.get("duplicate_images")
    sentences = Duplicates(**found).sentences if found else []
    return [f"{one} Remove one of each (--on-duplicate error refuses them), and run again." for one in sentences]


def _health(run: RunFolder) -> list[str]:
    tasks = run.manifest["tasks"][: len(run.matrix)] if run.manifest else None
    classes = None if tasks is None else [len(task["class_names"]) for task in tasks]
    routing = run.routing or {"layers": []}
    return health_warnings(
        run.matrix,
        classes,
        run.usage,
        {**routing, "prompt_layers": [e["layer"] for e in routing["layers"]]},
        run.recipe,
    )


def _accuracies(run: RunFolder) -> list[str]:
    found = []
    last = run.matrix.as_array()[-1]
    classes = sum(len(task["class_names"]) for task in run.manifest["tasks"][: len(last)]) if run.manifest else None
    chance = chance_of(classes or 1)
    under = np.flatnonzero(last <= chance + 1e-9)  # NaN is not below
    if len(under):
        known = f"1 of {classes} classes, {100 / classes:.1f}%"
        found.append(
            f"{_tasks(under, capital=True)} ended no better than chance ({known}): their images are taken for those "
            f"of others. {_remedy(run)}"
        )
    forgotten = metrics_where_measured(run.matrix)["forgetting"]
    if forgotten is not None and forgotten > LARGE_FORGETTING:
        found.append(
            f"Old tasks have lost {100 * forgotten:.1f} points on average since their best, more than "
            f"{100 * LARGE_FORGETTING:.0f}. {_remedy(run)}"
        )
    counts = run.content.get("test_counts", [])
    few = [index for index, count in enumerate(counts) if count and count < FEW_IMAGES]
    if few:
        least = min(counts[index] for index in few)
        found.append(
            f"{_tasks(few, capital=True)} have few test images, the fewest {least}: one image more or less is "
            f"{100 / least:.1f} points. Test on more (--max-test-samples-per-class), or do not read much into them."
        )
    return found


def _remedy(run: RunFolder) -> str:
    if run.recipe.get("alignment") == "none":
        return UNALIGNED
    rate = run.recipe.get("learning_rate")
    now = f" (now {rate:g})" if isinstance(rate, (int, float)) else ""
    return (
        f"Lower --learning-rate{now} or --prefix-lr-multiplier so that prompts move less, and check that "
        "--normalization is what the backbone was trained with."
    )


def _yardsticks(run: RunFolder) -> list[str]:
    own = metrics_where_measured(run.matrix)["final_average_accuracy"]
    found = []
    for name, matrix in run.yardsticks.items():
        other = metrics_where_measured(matrix)["final_average_accuracy"]
        if own is not None and other is not None and other - own > CLEARLY_BETTER:
            found.append(
                f"{name} on the frozen features alone reaches {100 * other:.1f}%, and {run.method} {100 * own:.1f}%: "
                "training cost more than it brought. Train longer (--epochs), with another --learning-rate, or take "
                f"{name}."
            )
    return found


def _protocol(run: RunFolder) -> list[str]:
    """Results and checkpoints of one folder that do not tell of the same tasks."""
    if not run.finished or run.manifest is None:
        return []
    found = []
    if run.protocol_hash not in (None, run.manifest["protocol_hash"]):
        found.append(
            f"{METRICS_FILE} and {MANIFEST_FILE} tell of different tasks (their protocol hashes differ): these are "
            "results of another protocol. Run again in an empty folder."
        )
    others = []
    for folder in run.tasks:
        index, file = task_index(folder.name), folder / MANIFEST_FILE
        if index is not None and folder != run.path and file.is_file():
            expected = protocol_hash(run.manifest["tasks"][: index + 1])
            if load_manifest(folder)["protocol_hash"] != expected:
                others.append(index)
    if others:
        found.append(
            f"The checkpoints of {_tasks(others)} learned other tasks than those in {MANIFEST_FILE}: they are of "
            "another protocol. Move them away, or run again in an empty folder."
        )
    return found


def _tasks(indices, capital: bool = False) -> str:
    numbers = [str(int(index) + 1) for index in indices]
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    noun = "task" if len(numbers) == 1 else "tasks"
    return f"{noun.capitalize() if capital else noun} {', '.join(numbers[:_MOST_NAMED])}{more}"
