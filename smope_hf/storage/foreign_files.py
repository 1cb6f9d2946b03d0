"""Opening files that somebody else put there: regular files alone, without waiting, up to a number of bytes."""

import csv
import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
TEXT_BYTES = 2**20  # of recipes and tables


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file to be read, whatever lies in its place: a named pipe, a device or a socket would wait for ever.

    Args:
        path: the file; links are followed.

    Raises:
        OSError: when it cannot be opened, or is no regular file; the message names the path and what is there.
    """
    check_regular(path)  # before, as opening a device can already do something
    waits_not = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(path, os.O_RDONLY | waits_not)
    try:
        _check_mode(os.fstat(handle).st_mode, path)  # and after, as another file may have taken its place
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: str | os.PathLike):
    """Refuse what is no regular file, for libraries that open a path by themselves.

    Raises:
        OSError: naming the path and what is there.
    """
    _check_mode(os.stat(path).st_mode, path)


def read_bytes(path: str | os.PathLike, max_bytes: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        max_bytes: most bytes that it may have. Default: any number.

    Raises:
        ValueError: for a larger file.
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        raw = file.read() if max_bytes is None else file.read(max_bytes + 1)
    if max_bytes is not None and len(raw) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes, the most that is read of such a file.")
    return raw


def read_text(path: str | os.PathLike, max_bytes: int = TEXT_BYTES) -> str:
    """The text of a regular file.

    Raises:
        ValueError: for a larger file, or one that is no UTF-8.
        OSError: as `open_regular`.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}.") from error


def read_table(path: str | os.PathLike, max_bytes: int = TEXT_BYTES) -> list[list[str]]:
    """The rows of a CSV file.

    Raises:
        ValueError: for a larger file, or one that is no CSV.
        OSError: as `open_regular`.
    """
    try:
        return list(csv.reader(io.StringIO(read_text(path, max_bytes), newline="")))
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}.") from error


def _check_mode(mode: int, path: str | os.PathLike):
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, and only regular files are read", str(Path(path)))
