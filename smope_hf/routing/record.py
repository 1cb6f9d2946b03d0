"""Reading routing_patterns.json, and its numbers as arrays over tasks."""

from pathlib import Path

import numpy as np

from ..base.named_settings import MAX_EXPERTS
from ..storage.field_checks import (
    MAX_TASKS,
    is_count,
    is_fraction,
    is_list_of,
    is_number_of_experts,
    is_short_text,
    require,
)
from ..storage.safe_json import read_json

PATTERNS_FILE = "routing_patterns.json"
FORMAT_VERSION = 1
COUNT = "an integer from 0"
_MEASURES = {"balance": ("entropy", "gini", "dead_share"), "overlap": ("usage", "experts")}


def load_patterns(run: Path) -> dict:
    """What a [`RoutingRecorder`] wrote in a run's folder, checked.

    Raises:
        ValueError: naming the field that is missing or has another type, range or length than a record has.
        OSError: when there is no record.
    """
    content, check = open_record(Path(run) / PATTERNS_FILE, FORMAT_VERSION)
    images = content.get("images_per_task")
    check("images_per_task", images, is_count(images) and images > 0, "an integer from 1")
    check("chance_survival", content.get("chance_survival"), is_fraction(content.get("chance_survival")), "0 to 1")
    for index, entry in enumerate(content["tasks"]):
        _check_task(check, entry, index, len(content["layers"]))
    return content


def open_record(file: Path, format_version: int) -> tuple[dict, "Checker"]:
    """A record of routing with what all of them hold checked: its version, layers, experts and list of tasks.

    Args:
        file: the record.
        format_version: the newest that can be read.

    Returns:
        Its content, and what checks the rest of it.
    """
    content, check = read_json(file), Checker(file)
    version, layers, tasks = (content.get(name) for name in ("format_version", "layers", "tasks"))
    check("format_version", version, is_count(version) and 1 <= version <= format_version, f"1 to {format_version}")
    check("layers", layers, is_list_of(layers, is_count) and 0 < len(layers) <= 1024, "numbers of layers")
    for name in ("num_experts", "top_k"):
        value = content.get(name)
        check(name, value, is_number_of_experts(value), f"an integer from 1 to {MAX_EXPERTS}")
    fits = is_list_of(tasks, lambda task: isinstance(task, dict)) and 0 < len(tasks) <= MAX_TASKS
    check("tasks", tasks, fits, f"an object for each of 1 to {MAX_TASKS} tasks")
    return content, check


class Checker:
    """Refuses a value of a record, naming the file, the field and what is allowed."""

    def __init__(self, file: Path):
        self.file = file

    def __call__(self, name: str, value, fits, allowed: str):
        require(self.file, name, value, bool(fits), allowed)


def _check_task(check: Checker, entry: dict, index: int, layers: int):
    where = f"tasks[{index}]"
    check(f"{where}.task", entry.get("task"), is_count(entry.get("task")) and entry["task"] == index + 1, index + 1)
    check(f"{where}.usage_sha256", entry.get("usage_sha256"), is_short_text(entry.get("usage_sha256")), "text")
    check(f"{where}.test_images", entry.get("test_images"), is_count(entry.get("test_images")), "an integer from 0")
    for part, names in _MEASURES.items():
        values = entry.get(part)
        check(f"{where}.{part}", values, isinstance(values, dict), "an object")
        for name in names:
            rows = values.get(name)
            length = index if part == "overlap" else None
            fits = is_list_of(rows, lambda row: fractions(row, length)) and len(rows) == layers
            check(f"{where}.{part}.{name}", rows, fits, f"numbers in [0, 1] for each of {layers} layers")
    marked = entry.get("frequently_used_share", 0)
    fits = marked is None or (is_list_of(marked, lambda row: fractions(row, None)) and len(marked) == layers)
    check(f"{where}.frequently_used_share", marked, fits, f"numbers in [0, 1] for each of {layers} layers; or null")
    survival = entry.get("survival", 0)
    fits = survival is None or (
        is_list_of(survival, lambda row: row is None or fractions(row, layers)) and len(survival) == index
    )
    check(f"{where}.survival", survival, fits, "numbers in [0, 1] for each layer, for each task before; or null")


def fractions(row, length: int | None) -> bool:
    """Whether this is a list of so many fractions, or of some."""
    return is_list_of(row, is_fraction) and (len(row) == length if length is not None else len(row) > 0)


def balance_over_tasks(record: dict) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and dead share after each task, means over heads, (T, L) each."""
    parts = [task["balance"] for task in record["tasks"]]
    entropy, dead = ([[np.mean(head) for head in part[name]] for part in parts] for name in ("entropy", "dead_share"))
    return np.array(entropy), np.array(dead)


def overlap_of_tasks(record: dict, measure: str = "usage") -> np.ndarray:
    """Overlap of every two tasks, mean over layers, (T, T), NaN on the diagonal; `measure` is "usage" or "experts"."""
    count = len(record["tasks"])
    matrix = np.full((count, count), np.nan)
    for index, task in enumerate(record["tasks"]):
        matrix[index, :index] = matrix[:index, index] = np.mean(task["overlap"][measure], axis=0)
    return matrix


def survival_over_tasks(record: dict) -> np.ndarray:
    """Survival of each task's routing (row) after each later one (column), mean over layers, (T, T), NaN elsewhere."""
    count = len(record["tasks"])
    matrix = np.full((count, count), np.nan)
    for after, task in enumerate(record["tasks"]):
        for number, layers in enumerate(task["survival"] or ()):
            if layers is not None:
                matrix[number, after] = np.mean(layers)
    return matrix
