"""Whether files are still those that were looked at: for what libraries read a second time, by name."""

import os
from collections.abc import Iterable
from pathlib import Path

Identity = tuple[int, ...] | None


def identities(files: Iterable[str | os.PathLike]) -> dict[Path, Identity]:
    """Device, inode, size and times of the last change of each file; None where it is not there.

    A file that is edited, replaced or removed has others afterwards, and the second of the times nobody can set. Not
    told apart is a change within the same few milliseconds of the file system's clock as the change before it.
    """
    return {Path(file): _identity(file) for file in files}


def check_unchanged(seen: dict[Path, Identity]):
    """Refuse files that are others than when `identities` was asked for them.

    Raises:
        ValueError: naming the first of them, and what to do.
    """
    for file, identity in seen.items():
        if _identity(file) != identity:
            raise ValueError(
                f"{file} was changed while the checkpoint was read, so what was checked may not be what was loaded. "
                "Nothing was done with it. Wait until nothing writes there any more, and load it again."
            )


def _identity(file: str | os.PathLike) -> Identity:
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
