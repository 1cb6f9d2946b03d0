"""What a run says of itself in JSON: trainer_state.json, manifest.json and metrics.json, each read by one function."""

import os
from pathlib import Path

from ..data.manifest import check_manifest
from ..metrics.stopwatch import as_measured
from ..storage.checkpoint_guard import inside
from ..storage.checksums import check_file
from ..storage.field_checks import (
    Fields,
    are_versions,
    check_fields,
    is_confusion,
    is_count,
    is_fraction,
    is_list_of,
    is_list_per_task,
    is_number,
    is_object_of,
    is_seconds,
    is_settings,
    is_short_text,
    is_triangle,
    require,
)
from ..storage.safe_json import read_json, short_name, shown
from ..storage.unchanged_files import check_unchanged, identities
from ..storage.version_changes import are_version_changes

FORMAT_VERSION = 1
STATE_FILE = "trainer_state.json"
MANIFEST_FILE = "manifest.json"
METRICS_FILE = "metrics.json"


def _is_origin(value) -> bool:
    """Where a run went on from: a name and a commit, or nothing, and how many tasks were learned there."""
    return value is None or (
        isinstance(value, dict)
        and all(value.get(name) is None or is_short_text(value[name]) for name in ("name", "commit"))
        and is_count(value.get("num_tasks"))
        and value["num_tasks"] > 0
    )


def _are_seconds(value) -> bool:
    return is_list_per_task(value, lambda task: is_object_of(task, is_seconds) and len(task) <= 100)


def _are_metrics(value) -> bool:
    return is_object_of(value, lambda number: number is None or is_number(number)) and len(value) <= 100


def _is_other(value) -> bool:
    return isinstance(value, dict) and _are_metrics(value.get("metrics")) and is_triangle(value.get("accuracy_matrix"))


def _are_duplicates(value) -> bool:
    """Counts of images that are there more than once, and two places for each kind that there is."""
    counts = ("tested_on_training", "in_two_classes", "repeated")
    return (
        isinstance(value, dict)
        and value.keys() == {*counts, "examples"}
        and all(is_count(value[name]) for name in counts)
        and is_object_of(value["examples"], lambda two: is_list_of(two, is_short_text) and len(two) == 2)
        and value["examples"].keys() == {name for name in counts if value[name]}
    )


TRIANGLE = "for each task a row, of as many fractions in [0, 1] or null as tasks were learned by then"
STATE_FIELDS: Fields = {
    "recipe": (is_settings, "an object of settings"),
    "eval_batch_size": (lambda value: value is None or (is_count(value) and value > 0), "an integer from 1, or null"),
    "protocol_hash": (is_short_text, "text"),
    "accuracy_matrix": (is_triangle, TRIANGLE),
    "test_counts": (lambda value: is_list_per_task(value, lambda item: item is None or is_count(item)), "counts"),
    "seconds_by_task": (_are_seconds, "an object of seconds for each task"),
    "logged_steps": (is_count, "an integer from 0"),
    "follows": (lambda value: value is None or is_short_text(value), "text or null"),
    "continued_from": (_is_origin, "null, or name, commit and num_tasks"),
    "task_confusion": (is_confusion, "as many counts for each task as there are tasks, or null for it"),
    "versions": (are_versions, "an object of text"),
    "version_changes": (are_version_changes, "a list of objects with behind_task, step and differences"),
}
METRICS_FIELDS: Fields = {
    **STATE_FIELDS,
    "model": (is_settings, "an object of settings"),
    "method": (is_short_text, "text"),
    "metrics": (_are_metrics, "an object of numbers or null"),
    "warnings": (lambda value: is_list_of(value, lambda text: isinstance(text, str)), "a list of text"),
    "recall_by_class": (
        lambda value: value is None or is_list_of(value, lambda item: item is None or is_fraction(item)),
        "fractions in [0, 1] or null",
    ),
    "training_images_by_class": (lambda value: is_list_of(value, is_count), "an integer from 0 for each class"),
    "num_processes": (lambda value: is_count(value) and value > 0, "an integer from 1"),
    "duplicate_images": (_are_duplicates, "three counts, and under examples two places for each that is not 0"),
}


BY_NAME: Fields = {  # objects of metrics.json, with what is in each of their fields
    "yardsticks": (_are_metrics, "an object of numbers or null"),
    "yardstick_matrices": (is_triangle, TRIANGLE),
    "other_alignments": (_is_other, "an object of metrics and accuracy_matrix"),
}


def load_state(folder: str | os.PathLike) -> dict:
    """The run as it stood when a task's folder was written.

    Raises:
        ValueError: when it was written by a newer version of the package, or a field has a wrong type or value.
    """
    file = inside(folder, Path(folder) / STATE_FILE)
    seen = identities([file])
    state = read_json(file)
    version = state.get("format_version")
    if not is_count(version) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{file} has format_version {shown(version)}; this version of smope_hf reads 1 to "
            f"{FORMAT_VERSION}. Install a newer smope_hf."
        )
    later = dict.fromkeys(("eval_batch_size", "continued_from", "follows"))  # fields that older files lack
    later |= {"task_confusion": [], "version_changes": []}
    check_fields({**later, **state}, STATE_FIELDS, file)
    check_file(file)
    check_unchanged(seen)
    return _as_measured(state)


def load_manifest(folder: str | os.PathLike) -> dict:
    """The manifest of the tasks that a checkpoint, or a run, has learned.

    Raises:
        ValueError: when it is broken, or was changed by hand; the message names the field.
    """
    file = inside(folder, Path(folder) / MANIFEST_FILE)
    seen = identities([file])
    manifest = read_json(file)
    check_manifest(manifest, file)
    check_file(file)
    check_unchanged(seen)
    return manifest


def load_metrics(run: str | os.PathLike) -> dict:
    """The results of a run, as far as they are in its metrics.json: runs of older versions have fewer fields.

    Raises:
        ValueError: when a field has a wrong type or value.
    """
    file = inside(run, Path(run) / METRICS_FILE)
    content = read_json(file)
    check_fields(content, {name: check for name, check in METRICS_FIELDS.items() if name in content}, file)
    for name, (fits, allowed) in BY_NAME.items():
        parts = content.get(name, {})
        require(file, name, parts, isinstance(parts, dict), "an object")
        for key, part in parts.items():
            require(file, f"{name}.{short_name(key)}", part, fits(part), allowed)
    rows, counts = content.get("accuracy_matrix"), content.get("test_counts")
    if rows is not None and counts is not None:
        require(
            file, "test_counts", counts, len(counts) == len(rows), f"as many as accuracy_matrix has rows, {len(rows)}"
        )
    return _as_measured(content)


def _as_measured(content: dict) -> dict:
    if "seconds_by_task" not in content:
        return content
    return {**content, "seconds_by_task": [as_measured(task) for task in content["seconds_by_task"]]}
