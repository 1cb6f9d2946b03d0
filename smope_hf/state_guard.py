"""Checks of what lies beside a checkpoint's weights: class statistics, the run's state, the routing report."""

import os
from collections.abc import Callable
from pathlib import Path
from types import NoneType

from torch import Tensor

from .checkpoint_guard import FLOATING, INTEGER, check_shapes, inside, read_header, read_tensors
from .checksums import check_file
from .safe_json import ADVICE, read_json, shown
from .version_changes import are_version_changes

ROUTING_FILE = "routing.json"
MAX_SECONDS = 10**10  # of a stage: three hundred years


# ---------------------------------------------------------------------- class statistics


def read_statistics(folder: Path, name: str, config, heads: int) -> dict[str, Tensor]:
    """The tensors of a checkpoint's class statistics, checked against its config.

    Args:
        folder: of the checkpoint.
        name: of the file in it.
        config: the checkpoint's [`SMoPEConfig`].
        heads: attention heads of its backbone.

    Raises:
        ValueError: naming the tensor, and the config's field where it does not fit.
    """
    file = inside(folder, folder / name)
    header = read_header(file)
    classes, features = ("the number of classes", config.num_labels), ("hidden_size", config.hidden_size)
    expected = {
        "mean": (FLOATING, (classes, features)),
        "variance": (FLOATING, (classes, features)),
        "count": (INTEGER, (classes,)),
        "scatter": (FLOATING, (features, features)),
    }
    lowest = {"variance": 0, "count": 1}
    if config.model_type == "smope":
        layers, experts = (
            ("the number of prompt_layers", len(config.prompt_layers)),
            ("num_experts", config.num_experts),
        )
        usage = (("the number of tasks", len(config.tasks)), layers, ("num_attention_heads", heads), experts)
        expected["usage_by_task"], lowest["usage_by_task"] = (INTEGER, usage), 0
    check_shapes(header, expected, file)
    tensors = read_tensors([file])
    for tensor in ("mean", "variance", "scatter"):
        _require(file, tensor, "NaN or infinity", bool(tensors[tensor].isfinite().all()), "finite numbers")
    for tensor, least in lowest.items():
        smallest = tensors[tensor].min().item() if tensors[tensor].numel() else least
        _require(file, tensor, smallest, smallest >= least, f"at least {least}")
    _check_diagonal(tensors, file)
    return tensors


def _check_diagonal(tensors: dict[str, Tensor], file: Path):
    """A scatter's diagonal holds sums of squares; taken as a difference of sums, it may be below 0 by rounding."""
    diagonal = tensors["scatter"].diagonal().double()
    sums = (tensors["count"].unsqueeze(1) * tensors["mean"].double().square()).sum(dim=0)  # (D,)
    wrong = diagonal < -1e-4 * sums
    smallest = diagonal[wrong].min().item() if bool(wrong.any()) else 0
    _require(file, "scatter's diagonal", smallest, smallest >= 0, "at least 0")


# ---------------------------------------------------------------------- trainer_state.json and routing.json


def is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_fraction(value) -> bool:
    return is_number(value) and 0 <= value <= 1


def is_list_of(value, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(fits(item) for item in value)


def is_object_of(value, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(fits(item) for item in value.values())


def is_text(value) -> bool:
    return isinstance(value, str)


def _confusion(value) -> bool:
    return is_list_of(value, lambda row: row is None or (is_list_of(row, is_count) and len(row) == len(value)))


def _is_origin(value) -> bool:
    """Whether it tells of the checkpoint that a run went on from: its tasks choose which folder is followed."""
    if not isinstance(value, dict):
        return False
    texts = all(isinstance(value.get(name), (str, NoneType)) for name in ("name", "commit"))
    return texts and is_count(value.get("num_tasks")) and value["num_tasks"] > 0


def _is_seconds(value) -> bool:
    """Of a task's stage. Earlier versions have written less than 0 where a clock went back; see `as_measured`."""
    return is_number(value) and abs(value) <= MAX_SECONDS


def _triangle(value) -> bool:
    return is_list_of(value, lambda row: is_list_of(row, lambda cell: cell is None or is_fraction(cell)))


STATE_FIELDS = {
    "recipe": (lambda value: isinstance(value, dict), "an object"),
    "eval_batch_size": (lambda value: value is None or (is_count(value) and value > 0), "an integer from 1, or null"),
    "protocol_hash": (is_text, "text"),
    "accuracy_matrix": (_triangle, "rows of fractions in [0, 1] or null"),
    "test_counts": (lambda value: is_list_of(value, lambda item: item is None or is_count(item)), "counts"),
    "seconds_by_task": (
        lambda value: is_list_of(value, lambda task: is_object_of(task, _is_seconds)),
        "an object of seconds for each task",
    ),
    "logged_steps": (is_count, "an integer from 0"),
    "follows": (lambda value: value is None or is_text(value), "text or null"),
    "continued_from": (lambda value: value is None or _is_origin(value), "null, or name, commit and num_tasks"),
    "task_confusion": (_confusion, "as many counts for each task as there are tasks, or null for it"),
    "versions": (lambda value: is_object_of(value, is_text), "an object of text"),
    "version_changes": (are_version_changes, "a list of objects with behind_task, step and differences"),
}
ROUTING_FIELDS = {
    "num_experts": (is_count, "an integer from 0"),
    "top_k": (is_count, "an integer from 0"),
    "noise_epsilon": (is_fraction, "a number in [0, 1]"),
    "routing": (lambda value: value in ("masked", "unmasked", "random"), "masked, unmasked or random"),
    "images_by_task": (lambda value: is_list_of(value, is_count), "an integer from 0 for each task"),
    "dead_share": (is_fraction, "a number in [0, 1]"),
    "frequently_used_share": (is_fraction, "a number in [0, 1]"),
    "layers": (lambda value: is_list_of(value, lambda item: isinstance(item, dict)), "an object for each layer"),
}
LAYER_FIELDS = {
    "layer": (is_count, "an integer from 0"),
    "dead_experts": (lambda value: _per_head(value, is_count), "expert ids for each head"),
    "frequently_used_experts": (lambda value: _per_head(value, is_count), "expert ids for each head"),
    "usage_share": (lambda value: _per_head(value, is_fraction), "numbers in [0, 1] for each head"),
    "usage_share_by_task": (
        lambda value: is_list_of(value, lambda task: _per_head(task, is_fraction)),
        "numbers in [0, 1] for each task and head",
    ),
}


def _per_head(value, fits: Callable[[object], bool]) -> bool:
    return is_list_of(value, lambda head: is_list_of(head, fits))


def check_state(state: dict, file: str | os.PathLike):
    """Check the run's state.

    Raises:
        ValueError: naming the field that is missing or has another type or range.
    """
    later = dict.fromkeys(("eval_batch_size", "continued_from", "follows"))  # fields that older files lack
    later |= {"task_confusion": [], "version_changes": []}
    _check_fields({**later, **state}, STATE_FIELDS, Path(file), "")


def check_present(content: dict, file: str | os.PathLike):
    """Check those fields of the run's state that are in a file at all, such as its metrics.json.

    Raises:
        ValueError: naming the field that has another type or range.
    """
    present = {name: check for name, check in STATE_FIELDS.items() if name in content}
    _check_fields(content, present, Path(file), "")
    for name in ("model", "metrics", "yardstick_matrices", "yardsticks"):
        value = content.get(name, {})
        _require(file, name, value, isinstance(value, dict), "an object")
    for name, rows in content.get("yardstick_matrices", {}).items():
        _require(file, f"yardstick_matrices.{name}", rows, _triangle(rows), STATE_FIELDS["accuracy_matrix"][1])
    for name in ("method", "protocol_hash"):
        value = content.get(name, "")
        _require(file, name, value, is_text(value), "text")


def load_routing(folder: str | os.PathLike) -> dict:
    """The routing report of a checkpoint's folder (`routing_report` says what is in it).

    Raises:
        ValueError: naming the field that is missing or has another type or range than a report has.
        OSError: when there is no report.
    """
    file = inside(folder, Path(folder) / ROUTING_FILE)
    report = read_json(file)
    _check_fields(report, ROUTING_FIELDS, file, "")
    for index, layer in enumerate(report["layers"]):
        _check_fields(layer, LAYER_FIELDS, file, f"layers[{index}].")
        for name in ("dead_experts", "frequently_used_experts"):
            top = max((expert for head in layer[name] for expert in head), default=-1)
            allowed = f"ids below num_experts = {report['num_experts']}"
            _require(file, f"layers[{index}].{name}", top, top < report["num_experts"], allowed)
    check_file(file)
    return report


def _check_fields(content: dict, fields: dict, file: Path, where: str):
    for name, (fits, allowed) in fields.items():
        if name not in content:
            raise ValueError(f"{file}: {where}{name} is missing. Expected: {allowed}. {ADVICE}")
        _require(file, where + name, content[name], fits(content[name]), allowed)


def _require(file: str | os.PathLike, name: str, value, fits: bool, allowed: str):
    if not fits:
        raise ValueError(f"{file}: {name} is {shown(value)}. Allowed: {allowed}. {ADVICE}")
