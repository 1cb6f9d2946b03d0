"""Files that appear whole or not at all."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`, moved onto it when the block ends and removed when the block fails.

    Args:
        path: the file to appear whole or not at all; missing parent folders are made.

    Returns:
        Context manager of the temporary path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path):
    """Delete the temporary files that `atomic_path` leaves in a folder when its process is killed."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


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
