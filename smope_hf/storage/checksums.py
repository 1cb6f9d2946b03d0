"""SHA-256 of a checkpoint's files, in the checkpoint, so that one that was edited, swapped or damaged is noticed."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .files import write_json
from .foreign_files import open_regular
from .safe_json import read_json, shown

CHECKSUMS_FILE = "checksums.json"
FORMAT_VERSION = 1
MAX_BYTES = 2**20
HASH = re.compile("[0-9a-f]{64}")
FREE = (".md", ".png", ".py", CHECKSUMS_FILE)  # for people to edit, or read by other programs


def sha256(file: str | os.PathLike) -> str:
    """The hash of a regular file."""
    with open_regular(file) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_checksums(folder: str | os.PathLike, files: Iterable[str | os.PathLike]):
    """Write `checksums.json`: the hash of every file that decides what a checkpoint is or how it goes on.

    Args:
        folder: of the checkpoint.
        files: those whose hashes are to be listed; model card, pictures and code among them are left out.
    """
    files = sorted(map(Path, files))
    hashes = {file.name: sha256(file) for file in files if file.is_file() and not file.name.endswith(FREE)}
    write_json(Path(folder) / CHECKSUMS_FILE, {"format_version": FORMAT_VERSION, "sha256": hashes})


def update_checksums(folder: str | os.PathLike, changed: Iterable[str] | None = None):
    """Take files that were written anew into `checksums.json`; what it says of the others stays.

    Args:
        folder: of the checkpoint.
        changed: patterns of the names. Default: of all files that are not listed yet, as `write_checksums` picks them.
    """
    folder = Path(folder)
    there = folder / CHECKSUMS_FILE
    before = listed(there) if there.is_file() else {}
    if changed is None:
        changed = [path.name for path in folder.iterdir() if path.is_file() and not path.name.endswith(FREE)]
        changed = [name for name in changed if name not in before]
    new = {path.name: sha256(path) for pattern in changed for path in sorted(folder.glob(pattern))}
    kept = {name: value for name, value in before.items() if not any(Path(name).match(each) for each in changed)}
    write_json(there, {"format_version": FORMAT_VERSION, "sha256": dict(sorted({**kept, **new}.items()))})


def listed(checksums: str | os.PathLike) -> dict[str, str]:
    """The hashes in a `checksums.json`, by name.

    Raises:
        ValueError: when it is none, or was written by a newer version of the package.
    """
    content = read_json(checksums, MAX_BYTES)
    version, hashes = content.get("format_version"), content.get("sha256")
    if version != FORMAT_VERSION or not isinstance(hashes, dict):
        raise ValueError(
            f"{checksums} has format_version {shown(version)} and sha256 = {shown(hashes)}; this version of smope_hf "
            f"reads format_version {FORMAT_VERSION} with an object of hashes. Install a newer smope_hf, or remove the "
            "file if nothing needs to be checked."
        )
    for name, value in hashes.items():
        if not isinstance(value, str) or not HASH.fullmatch(value):
            raise ValueError(
                f"{checksums}: sha256[{shown(name)}] is {shown(value)}. Allowed: 64 digits of 0 to f. Copy or "
                "download the checkpoint again."
            )
    return hashes


def check_file(file: str | os.PathLike, checksums: str | os.PathLike | None = None):
    """Compare a file with its hash; checkpoints of older versions have none, and pass.

    Args:
        file: of the checkpoint.
        checksums: the `checksums.json`. Default: the one beside the file.

    Raises:
        ValueError: naming the file, what was expected and what to do.
    """
    file = Path(file)
    there = file.parent / CHECKSUMS_FILE if checksums is None else Path(checksums)
    if not there.is_file():
        return
    expected = listed(there).get(file.name)
    found = None if expected is None else sha256(file)
    if found != expected:
        raise ValueError(
            f"{file} is not the file that was saved: {CHECKSUMS_FILE} expects the SHA-256 {str(expected)[:64]}, and "
            f"it is {found}. It was edited, damaged or put there from another checkpoint. Copy or download the "
            f"checkpoint again; if the change is meant, take {file.name!r} out of {there}."
        )
