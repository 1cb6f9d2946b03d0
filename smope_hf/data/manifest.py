"""The manifest of a task stream: what another machine needs to know that it has the same tasks, image by image."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import datasets
import numpy as np

from ..base.named_settings import MAX_WHOLE
from ..storage.field_checks import MAX_SETTINGS, MAX_TASKS, is_count, is_list_of, is_settings, is_short_text, is_text
from ..storage.safe_json import shown
from .split import Task, TaskSplit

FORMAT_VERSION = 1
_AGAIN = "The file was changed or is not whole: download or copy it again."


class DescribedStream(Protocol):
    """What a manifest tells of a task stream, such as [`TaskStream`], beside its tasks."""

    name: str
    source: dict[str, Any] | None
    image_column: str
    label_column: str
    fingerprints: dict[str, str]
    options: dict[str, Any]

    def __iter__(self) -> Iterator[Task]: ...


def build_manifest(stream: DescribedStream, tasks: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Describe a task stream as JSON. Reads every encoded image once, a few at a time; decodes none.

    From then on the splits give no image that is not the one described.

    Args:
        stream: The tasks.
        tasks: Their entries, where they are known. Default: made by `describe_task`.

    Returns:
        `protocol_hash` covers class names, class ids and the content, labels and order of the images of every split:
        all that makes two results comparable, however it was specified. `options`, `name` and `columns` say how the
        tasks were made; `information` holds what may differ between machines.
    """
    tasks = [describe_task(task) for task in stream] if tasks is None else tasks
    return {
        "format_version": FORMAT_VERSION,
        "name": stream.name,
        "protocol_hash": protocol_hash(tasks),
        "seed": stream.options["seed"],
        "num_classes": sum(len(task["class_ids"]) for task in tasks),
        "columns": {"image": stream.image_column, "label": stream.label_column},
        "options": dict(stream.options),
        "tasks": tasks,
        "information": {
            "fingerprints": dict(stream.fingerprints),
            "source": stream.source,
            "skipped_images": skipped_images(stream),
            "datasets_version": datasets.__version__,
        },
    }


def skipped_images(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Every row of some tasks that was left out since its image cannot be used, as JSON."""
    return [
        {
            "task_index": task.index,
            "used_for": purpose,
            "split": split.source_split,
            "row": image.row,
            "column": split.image_column,
            "class": image.class_name,
            "reason": image.reason,
        }
        for task in tasks
        for purpose, split in task.splits.items()
        for image in split.skipped
    ]


def manifest_differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What keeps the results of two runs from being compared.

    Args:
        first: A manifest.
        second: Another one.

    Returns:
        One sentence per difference in the tasks; empty if and only if the protocol hashes are equal.
    """
    if first["format_version"] != second["format_version"]:
        return [f"manifest formats {first['format_version']} and {second['format_version']} cannot be compared"]
    if first["protocol_hash"] == second["protocol_hash"]:
        return []
    if len(first["tasks"]) != len(second["tasks"]):
        return [f"{len(first['tasks'])} tasks against {len(second['tasks'])}"]
    differences = []
    for one, other in zip(first["tasks"], second["tasks"]):
        where = f"task {one['index']}"
        if one["class_names"] != other["class_names"]:
            differences.append(f"{where}: classes {one['class_names']} against {other['class_names']}")
            continue
        for split in ("train", "validation", "test"):
            sizes = [0 if task[split] is None else task[split]["num_samples"] for task in (one, other)]
            if sizes[0] != sizes[1]:
                differences.append(f"{where}, {split}: {sizes[0]} images against {sizes[1]}")
            elif one[split] != other[split]:
                differences.append(f"{where}, {split}: {sizes[0]} images each, but other images, labels or order")
    return differences or ["the protocol hashes differ, but no task does: a manifest was edited"]


def check_manifest(manifest: dict[str, Any], file: Any):
    """Refuse a manifest that no run can have written.

    Args:
        manifest: content of a manifest.json.
        file: where it was read, for the message.

    Raises:
        ValueError: naming the field, what it holds, and what is allowed.
    """

    def check(name: str, value: Any, fits: bool, allowed: str):
        if not fits:
            raise ValueError(f"{file}: {name} = {shown(value)} is not allowed; allowed: {allowed}. {_AGAIN}")

    version, tasks = manifest.get("format_version"), manifest.get("tasks")
    check("format_version", version, version == FORMAT_VERSION, f"{FORMAT_VERSION}, or install a newer smope_hf")
    for name, (fits, allowed) in _FIELDS.items():
        check(name, manifest.get(name), fits(manifest.get(name)), allowed)
    fits = isinstance(tasks, list) and 0 < len(tasks) <= MAX_TASKS
    check("tasks", tasks, fits, f"a list of 1 to {MAX_TASKS} tasks")
    first = 0
    for index, task in enumerate(tasks):
        where = f"tasks[{index}]"
        check(where, task, isinstance(task, dict), "an object")
        check(f"{where}.index", task.get("index"), is_count(task.get("index")) and task["index"] == index, str(index))
        names, ids = task.get("class_names"), task.get("class_ids")
        check(f"{where}.class_names", names, is_list_of(names, is_text) and len(names) > 0, "a list of text")
        ids_fit = is_list_of(ids, is_count) and ids == list(range(first, first + len(names)))
        check(f"{where}.class_ids", ids, ids_fit, f"{len(names)} whole numbers from {first} up")
        first += len(names)
        for split in ("train", "validation", "test"):
            entry = task.get(split)
            fits = (entry is None and split != "train") or (
                isinstance(entry, dict)
                and is_count(entry.get("num_samples"))
                and 0 < entry["num_samples"] <= MAX_WHOLE
                and is_short_text(entry.get("sha256"))
            )
            check(f"{where}.{split}", entry, fits, "num_samples and sha256")
    check("num_classes", manifest.get("num_classes"), manifest.get("num_classes") == first, str(first))
    _check_information(manifest["information"], check, "information")
    expected = protocol_hash(tasks)
    check("protocol_hash", manifest.get("protocol_hash"), manifest.get("protocol_hash") == expected, expected)


def _check_information(information: dict[str, Any], check, where: str):
    """What is read of where the images came from, of the tasks before too where a run went on from another's."""
    source, images = information.get("source"), information.get("skipped_images", [])
    check(f"{where}.source", source, source is None or is_settings(source), "an object of text, or null")
    name = (source or {}).get("name_or_path")
    check(f"{where}.source.name_or_path", name, name is None or is_short_text(name), "text")
    check(f"{where}.skipped_images", images, is_list_of(images, _is_skipped), f"objects of {', '.join(_OF_SKIPPED)}")
    joint = information.get("joint_of", "")
    check(f"{where}.joint_of", joint, is_short_text(joint), "text")
    earlier = information.get("earlier", [])
    fits = isinstance(earlier, list) and len(earlier) <= MAX_TASKS
    check(f"{where}.earlier", earlier, fits, f"a list of at most {MAX_TASKS} objects")
    runs = {f"{where}.earlier[{index}]": run for index, run in enumerate(earlier)}
    if information.get("continues") is not None:
        runs[f"{where}.continues"] = information["continues"]
    for name, run in runs.items():
        inner = run.get("information", {}) if isinstance(run, dict) else None
        check(name, run, isinstance(inner, dict), "an object with an object `information`")
        _check_information(inner, check, f"{name}.information")


def earlier_runs(information: dict[str, Any]) -> list[dict[str, Any]]:
    """What a manifest tells of the runs that were gone on from, without their tasks, the oldest first.

    Manifests of earlier versions hold each run within the next one, which JSON is read to a certain depth of.

    Args:
        information: of a manifest.
    """
    last = information.get("continues")
    if last is None:
        return []
    inner = last.get("information", {})
    own = {name: value for name, value in inner.items() if name not in ("continues", "earlier", "skipped_images")}
    return [*earlier_runs(inner), *information.get("earlier", []), {**last, "information": own}]


def _is_skipped(image: Any) -> bool:
    return isinstance(image, dict) and all(fits(image.get(name)) for name, fits in _OF_SKIPPED.items())


_OF_SKIPPED = {
    "used_for": lambda value: isinstance(value, str) and value in ("train", "validation", "test"),
    "split": is_short_text,
    "row": is_count,
    "column": is_short_text,
    "reason": is_short_text,
}
_FIELDS = {
    "name": (is_short_text, "text"),
    "columns": (
        lambda value: (
            isinstance(value, dict)
            and len(value) <= 20
            and all(part is None or is_short_text(part) for part in value.values())
        ),
        "an object of names",
    ),
    "options": (lambda value: isinstance(value, dict) and len(value) <= MAX_SETTINGS, "an object"),
    "information": (lambda value: isinstance(value, dict), "an object"),
}


def describe_task(task: Task) -> dict[str, Any]:
    """A task's entry in the manifest: its classes, and number and hash of the images of each of its splits."""
    return {
        "index": task.index,
        "class_ids": list(task.class_ids),
        "class_names": list(task.class_names),
        **{split: describe_split(getattr(task, split)) for split in ("train", "validation", "test")},
    }


def first_tasks(manifest: dict[str, Any], count: int) -> dict[str, Any]:
    """The manifest of the first tasks alone: what a checkpoint has learned by then."""
    tasks = manifest["tasks"][:count]
    num_classes = sum(len(task["class_ids"]) for task in tasks)
    return {**manifest, "tasks": tasks, "num_classes": num_classes, "protocol_hash": protocol_hash(tasks)}


def protocol_hash(tasks: list[dict[str, Any]]) -> str:
    """SHA-256 over the entries of the tasks."""
    text = json.dumps([FORMAT_VERSION, tasks], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe_split(split: TaskSplit | None) -> dict[str, Any] | None:
    """Number and hash of a split's images; None where there is no split."""
    if split is None:
        return None
    return {"num_samples": len(split), "sha256": _content_hash(split)}


def _content_hash(split: TaskSplit) -> str:
    """SHA-256 over, row by row, the SHA-256 of the encoded image and the class id (int64, little endian)."""
    content = hashlib.sha256()
    for label, digest in zip(split.labels, split.hashes(), strict=True):
        content.update(digest.tobytes())
        content.update(np.int64(label).astype("<i8").tobytes())
    return content.hexdigest()
