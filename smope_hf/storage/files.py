"""Files that appear whole or not at all."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .file_lock import NO_LOCKS, try_lock

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
OF_SAFETENSORS = re.compile(r"\.tmp[0-9A-Za-z]{6}")  # what its `save_file` writes before it moves it into place


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`, moved onto it when the block ends and removed when the block fails.

    Args:
        path: the file to appear whole or not at all; missing parent folders are made.

    Returns:
        Context manager of the temporary path, an empty file that the block writes.

    Raises:
        OSError: when it cannot be written, or the block leaves it empty.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _in_use(temporary):
            yield temporary
            if temporary.stat().st_size == 0:
                raise OSError(f"{target} was not written: nothing came.")
            sync(temporary)
            if os.name != "nt":  # Windows moves no open file
                os.replace(temporary, target)
        if os.name == "nt":
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _in_use(temporary: Path) -> Iterator[None]:
    """Make a temporary file, and let `remove_temporary` of other processes see that it is alive."""
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        if os.name != "nt":  # there nobody can remove an open file
            _locked(handle, shared=True)
        yield
    finally:
        os.close(handle)


def _locked(handle: int, shared: bool = False) -> bool:
    """Whether a file is locked now; True also where the file system has no locks, and nobody could tell."""
    try:
        return try_lock(handle, shared)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return True


def remove_temporary(folder: Path):
    """Delete the temporary files that `atomic_path` leaves in a folder when its process is killed.

    Those of living processes stay, on file systems with locks.
    """
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink() and not _is_alive(path):
            path.unlink(missing_ok=True)


def remove_of_safetensors(folder: Path):
    """Delete what `save_file` of safetensors leaves when it is killed, in a folder that nobody else writes."""
    for path in folder.glob(".tmp*"):
        if OF_SAFETENSORS.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def _is_alive(temporary: Path) -> bool:
    """Whether a process is writing a temporary file; one that is gone by now is none to remove either."""
    try:
        handle = os.open(temporary, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        return True
    try:
        return not _locked(handle)
    finally:
        os.close(handle)


def sync(path: str | os.PathLike):
    """Have what a file or folder holds on the disk, where a loss of power does not reach it.

    Windows has that for files alone, opened to be written.
    """
    windows = os.name == "nt"
    if windows and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike, content: dict | list):
    """Write JSON that people can read and every parser takes: NaN and infinity are refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
