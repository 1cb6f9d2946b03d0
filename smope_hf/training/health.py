"""Signs that a run with finite numbers has gone wrong: tasks under chance, a router that no longer chooses."""

import numpy as np
from numpy.typing import ArrayLike

from ..metrics.accuracy_matrix import AccuracyMatrix
from .run_state import RunState

UNALIGNED = "The head is not aligned after each task: take --alignment lda, not none."


def chance_of(classes: int) -> float:
    """Accuracy of guessing among so many classes; -1 for one class, which cannot be mistaken."""
    return 1 / classes if classes > 1 else -1.0


def never_learned(matrix: AccuracyMatrix, classes_by_task: list[int]) -> list[int]:
    """Indices of the tasks that were no better than chance right after they were learned.

    Args:
        matrix: accuracies; tasks without test images are left out.
        classes_by_task: new classes of each task; chance is one in all classes seen by then.
    """
    seen = np.cumsum(classes_by_task)
    own = matrix.as_array().diagonal()
    return [t for t, accuracy in enumerate(own) if accuracy <= chance_of(int(seen[t])) + 1e-9]  # NaN is not below


def collapsed_layers(usage_by_task: ArrayLike, top_k: int) -> list[int]:
    """Positions of the prompt layers where every image of every task selected the same K experts in each head.

    Experts that were never used are no such sign: most are not, with keys that start as published. Only where no two
    images were ever told apart does a layer work as one fixed prefix.

    Args:
        usage_by_task: how often each task's images selected each expert, (T, L, H, E).
        top_k: experts K that an image selects.
    """
    counts = np.asarray(usage_by_task).sum(axis=0)  # (L, H, E)
    images = counts.sum(axis=-1) // top_k  # (L, H)
    same = (counts > 0).sum(axis=-1) == top_k  # (L, H)
    return np.flatnonzero((same & (images > 1)).all(axis=-1) & (top_k < counts.shape[-1])).tolist()


def collapse_warning(layers: list[int], top_k: int, num_experts: int) -> str:
    """A sentence on collapsed layers, and what to do.

    Args:
        layers: the backbone's numbers of the layers.
        top_k: experts K that an image selects.
        num_experts: experts E of a head.
    """
    names = ", ".join(map(str, layers))
    return (
        f"Collapsed routing: in layer{'s' if len(layers) > 1 else ''} {names} every image of every task selected the "
        f"same {top_k} of {num_experts} experts in each head, so the router tells no images apart there: "
        "a fixed prompt, for which fewer experts (--num-experts) do. With --noise-epsilon 1 later tasks choose "
        "others. Check that --normalization is what the backbone was trained with."
    )


def chance_warning(tasks: list[int], known: list[int], remedy: str) -> str:
    """A sentence on tasks that were not learned, and what to do.

    Args:
        tasks: their indices.
        known: classes seen when each was learned.
        remedy: what to do.
    """
    parts = [f"task {t + 1} (1 of {n} classes, {100 / n:.1f}%)" for t, n in zip(tasks, known, strict=True)]
    more = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
    return f"Not learned: right after its training no better than chance was {', '.join(parts[:6])}{more}. {remedy}"


def learning_remedy(recipe: dict, tasks: list[int]) -> str:
    """What to do where tasks, by index, were not learned, under these settings."""
    advice = alignment_remedy(recipe) if tasks[-1] > 0 else None  # the head is not aligned after the first task
    if advice is not None and tasks[0] > 0:
        return f"{advice} Check labels, test images and --normalization too."
    training = (
        f"Train longer (--epochs) or with another --learning-rate{_now(recipe, 'learning_rate')}, and check labels, "
        "test images and --normalization."
    )
    return training if advice is None else f"{advice} {training}"


def alignment_remedy(recipe: dict) -> str | None:
    """What to do about an alignment that may leave new classes without a chance; None for one that does not."""
    alignment = recipe.get("alignment")
    if alignment == "none":
        return UNALIGNED
    if alignment in ("gaussian", "gaussian-full"):
        name = "alignment_learning_rate"
        return f"Raise --alignment-learning-rate{_now(recipe, name)}, or take --alignment lda, not {alignment}."
    return None


def _now(recipe: dict, name: str) -> str:
    rate = recipe.get(name)
    return f" (now {rate:g})" if isinstance(rate, (int, float)) else ""


def health_warnings(
    matrix: AccuracyMatrix,
    classes_by_task: list[int] | None,
    usage_by_task: ArrayLike | None,
    config: dict,
    recipe: dict,
    newest: bool = False,
) -> list[str]:
    """Everything wrong in what a run has learned so far, a sentence each.

    Args:
        matrix: accuracies so far.
        classes_by_task: new classes of each task; None where they are not known.
        usage_by_task: (T, L, H, E); None for a model without experts.
        config: of the model: `prompt_layers`, `top_k` and `num_experts`.
        recipe: the settings of the training.
        newest: only what the last task has brought: whether it was learned, and behind the first one the routing.
    """
    found = []
    tasks = [] if classes_by_task is None else never_learned(matrix, classes_by_task)
    if newest:
        tasks = [task for task in tasks if task == len(classes_by_task) - 1]
        usage_by_task = usage_by_task if len(classes_by_task) == 1 else None
    if tasks:
        known = np.cumsum(classes_by_task)
        found.append(chance_warning(tasks, [int(known[t]) for t in tasks], learning_remedy(recipe, tasks)))
    layers = [] if usage_by_task is None else collapsed_layers(usage_by_task, config["top_k"])
    if layers:
        names = [config["prompt_layers"][index] for index in layers]
        found.append(collapse_warning(names, config["top_k"], config["num_experts"]))
    return found


def health_of(model, state: RunState, recipe: dict, newest: bool = False) -> list[str]:
    """The warnings of a run as it stands, the same on every process.

    Args:
        model: of the run.
        state: what the run has reached.
        recipe: its settings.
        newest: only what the last task has brought, as in `health_warnings`.
    """
    classes = [len(task) for task in model.config.tasks]
    usage = np.stack([counts.numpy() for counts in state.usage_history]) if model.records_usage else None
    fields = ("prompt_layers", "top_k", "num_experts")
    config = {name: getattr(model.config, name) for name in fields} if model.records_usage else {}
    return health_warnings(state.matrix, classes, usage, config, recipe, newest)
