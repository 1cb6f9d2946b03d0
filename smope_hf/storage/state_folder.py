"""A folder that holds one state, replaced as a whole: tensors and JSON that a hash ties together.

Whenever a process is killed, the folder holds the state before or the state after: the JSON is moved into place last,
and names the file of its tensors.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from .checkpoint_guard import read_header
from .checksums import sha256
from .field_checks import (
    MAX_TASKS,
    Fields,
    are_versions,
    check_fields,
    is_count,
    is_object_of,
    is_seconds,
    is_settings,
    is_short_text,
)
from .files import atomic_path, sync, write_json
from .foreign_files import read_bytes
from .safe_json import read_json, shown
from .version_changes import are_version_changes

FORMAT_VERSION = 1
STATE_FOLDER = "state"
INDEX_FILE = "state.json"
TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
PHASES = ("dense", "sparse")
COUNT, OBJECT = "an integer from 0", "an object of settings"
FIELDS: Fields = {
    "task": (lambda value: is_count(value) and value < MAX_TASKS, f"an integer from 0 to {MAX_TASKS - 1}"),
    "phase": (lambda value: isinstance(value, str) and value in PHASES, "dense or sparse"),
    **dict.fromkeys(("step", "steps", "read", "logged_steps"), (is_count, COUNT)),
    "optimizer_steps": (lambda value: is_object_of(value, is_count), "an integer from 0 for each parameter"),
    "scaler": (lambda value: value is None or is_settings(value), "an object of numbers, or null"),
    "seconds": (lambda value: is_object_of(value, is_seconds), "an object of seconds"),
    "num_processes": (lambda value: is_count(value) and value > 0, "an integer from 1"),
    "recipe": (is_settings, OBJECT),
    "model": (is_settings, OBJECT),
    "protocol_hash": (is_short_text, "text"),
    "follows": (lambda value: value is None or is_short_text(value), "text, or null"),
    "callbacks": (
        lambda value: is_object_of(value, lambda part: part is None or isinstance(part, dict)),
        "an object, or null, for each callback",
    ),
    "versions": (are_versions, "an object of text"),
    "version_changes": (are_version_changes, "a list of objects with behind_task, step and differences"),
    "tensors": (
        lambda value: (
            isinstance(value, dict)
            and isinstance(value.get("file"), str)
            and TENSORS.fullmatch(value["file"]) is not None
            and is_short_text(value.get("sha256"))
        ),
        "the name of a file beside it and its sha256",
    ),
}


def has_state(output_dir: str | os.PathLike) -> bool:
    """Whether a run was stopped within a task and left what it needs to go on."""
    return (Path(output_dir) / STATE_FOLDER / INDEX_FILE).is_file()


def write_state(folder: Path, content: dict, tensors: dict[str, Tensor]):
    """Put a state in the place of the one before, which stays until this one is whole.

    Args:
        folder: made where it is missing.
        content: what is JSON of it.
        tensors: on any device.

    Raises:
        OSError: when it cannot be written; the message says what to do.
    """
    name = f"tensors-{secrets.token_hex(8)}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / name) as temporary:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary)
        index = {
            "format_version": FORMAT_VERSION,
            **content,
            "tensors": {"file": name, "sha256": sha256(folder / name)},
        }
        write_json(folder / INDEX_FILE, {**index, "sha256": _digest(index)})
        sync(folder)
        for path in folder.iterdir():  # the state before, and what a kill left
            if path.name not in (INDEX_FILE, name):
                path.unlink()
    except (OSError, SafetensorError) as error:
        kept = "the one before is whole" if (folder / INDEX_FILE).is_file() else "none has been saved of this task"
        raise OSError(
            f"A state could not be saved in {folder} ({error}); {kept}. Make room or give the right to write there, "
            "and go on with the same command and --resume."
        ) from error


def read_content(folder: Path) -> dict | None:
    """The JSON of a folder's state, None without one.

    Raises:
        ValueError: when it is broken, or was written by a newer version of the package.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        return None
    try:
        index = read_json(file)
    except (ValueError, OSError) as error:
        raise _broken(folder, str(error)) from error
    version = index.get("format_version")
    if is_count(version) and version > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format_version {shown(version)}; this version of smope_hf reads 1 to {FORMAT_VERSION}. "
            "Install the version that wrote it."
        )
    digest = index.pop("sha256", None)
    if digest != _digest(index):
        raise _broken(folder, f"{INDEX_FILE} does not fit its own hash")
    try:
        check_fields({"versions": {}, "version_changes": [], **index}, FIELDS, file)  # states of older versions
    except ValueError as error:
        raise _broken(folder, str(error)) from error
    if not index["read"] <= index["step"] <= index["steps"]:
        numbers = ", ".join(f"{name} = {index[name]}" for name in ("read", "step", "steps"))
        raise _broken(folder, f"in {INDEX_FILE} {numbers}, which have to rise")
    return index


def read_tensors(folder: Path, content: dict) -> dict[str, Tensor]:
    """The tensors that belong to the JSON of a folder's state.

    Raises:
        ValueError: when their file is missing, cannot be read, or is not the one that was written.
    """
    file = folder / content["tensors"]["file"]
    if not file.is_file():
        raise _broken(folder, f"{file.name} is missing")
    found = read_bytes(file) if file.resolve().parent == folder.resolve() else b""
    if hashlib.sha256(found).hexdigest() != content["tensors"]["sha256"]:
        raise _broken(folder, f"{file.name} is not the file that was written with {INDEX_FILE}")
    try:
        read_header(file)
        return load(found)  # the very bytes that were hashed
    except (ValueError, SafetensorError) as error:
        raise _broken(folder, str(error)) from error


def remove_state(folder: Path):
    """Remove a state, so that a kill leaves either the state or none."""
    (folder / INDEX_FILE).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)


def advice(folder: Path) -> str:
    """What to do about a state that cannot be used."""
    return f"Remove {folder} to go on behind the last whole task; what was learned of the task since is then repeated."


def _broken(folder: Path, what: str) -> ValueError:
    return ValueError(f"The state in {folder} is broken: {what}. {advice(folder)}")


def _digest(index: dict) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
