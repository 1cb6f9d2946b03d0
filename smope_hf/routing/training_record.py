"""Reading routing_training.json, and its numbers as arrays over the steps of training."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..storage.field_checks import is_count, is_list_of, is_short_text
from .record import Checker, fractions, open_record

TRAINING_FILE = "routing_training.json"
FORMAT_VERSION = 1
MEASURES = ("entropy", "gini", "dead_share")


class TrainingBalance(NamedTuple):
    """How evenly R readings of training selected the experts of L layers, means over heads."""

    steps: np.ndarray  # (R,), counted over all tasks
    tasks: np.ndarray  # (R,), numbers from 1
    entropy: np.ndarray  # (R, L)
    gini: np.ndarray  # (R, L)
    dead_share: np.ndarray  # (R, L)


def load_training_record(run: Path) -> dict:
    """What a [`TrainingRoutingRecorder`] wrote in a run's folder, checked.

    Raises:
        ValueError: naming the field that is missing or has another type, range or length than a record has.
        OSError: when there is no record.
    """
    content, check = open_record(Path(run) / TRAINING_FILE, FORMAT_VERSION)
    before = {"task": 0, "step": 0}
    for index, entry in enumerate(content["tasks"]):
        check_entry(check, f"tasks[{index}]", entry, before, len(content["layers"]))
        value = entry.get("keys_sha256")
        check(f"tasks[{index}].keys_sha256", value, is_short_text(value), "text")
    return content


def check_entry(check: Checker, where: str, entry: dict, before: dict[str, int], layers: int):
    """Check what is recorded of one task, but for the hash that it gets when the task's training ends.

    Args:
        check: of the file.
        where: the entry's place in it.
        entry: the task's.
        before: `task` and `step` that come before it; set to its last ones.
        layers: number L of prompt layers.

    Raises:
        ValueError: naming the field.
    """
    for name, least in (("task", before["task"] + 1), ("first_step", before["step"])):
        value = entry.get(name)
        check(f"{where}.{name}", value, is_count(value) and value >= least, f"an integer from {least}")
    before.update(task=entry["task"], step=entry["first_step"])
    readings = entry.get("readings")
    check(f"{where}.readings", readings, is_list_of(readings, lambda part: isinstance(part, dict)), "objects")
    for number, reading in enumerate(readings):
        _check_reading(check, f"{where}.readings[{number}]", reading, before["step"] + 1, layers)
        before["step"] = reading["step"]


def _check_reading(check: Checker, where: str, reading: dict, least: int, layers: int):
    for name, low in (("step", least), ("images", 1)):
        value = reading.get(name)
        check(f"{where}.{name}", value, is_count(value) and value >= low, f"an integer from {low}")
    for name in MEASURES:
        rows = reading.get(name)
        fits = is_list_of(rows, lambda row: fractions(row, None)) and len(rows) == layers
        check(f"{where}.{name}", rows, fits, f"numbers in [0, 1] for each of {layers} layers")


def balance_in_training(record: dict) -> TrainingBalance:
    """The readings of all tasks, one after the other."""
    readings = [(entry["task"], reading) for entry in record["tasks"] for reading in entry["readings"]]
    steps = np.array([reading["step"] for _, reading in readings], dtype=np.int64)
    tasks = np.array([task for task, _ in readings], dtype=np.int64)
    shape = (len(readings), len(record["layers"]))
    parts = [[[np.mean(head) for head in reading[name]] for _, reading in readings] for name in MEASURES]
    return TrainingBalance(steps, tasks, *(np.array(values, dtype=np.float64).reshape(shape) for values in parts))
