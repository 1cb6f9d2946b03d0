"""Trying a place before the work whose results go there: a probe is made, synced, renamed and removed again."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import sync

PROBE = "task-probe"  # what a kill leaves of one looks like a half written task, and is removed as such
LONGEST_FILE = "class_statistics.safetensors"
_BLOCK = bytes(4096)  # a disk without a byte left takes an empty file
_REASONS = {
    errno.EACCES: "this user has no right to write there. Give the right, or name another place",
    errno.EPERM: "writing there is not permitted. Give the right, or name another place",
    errno.EROFS: "the file system there can only be read. Name a place on another one",
    errno.ENAMETOOLONG: "the path, with the names that go below it, is too long. Name a shorter one",
    errno.ELOOP: "its links lead in a circle. Name the place itself",
    errno.ENOSPC: "the disk is full. Make room, or name a place on another one",
    errno.EDQUOT: "the quota there is used up. Make room, or name another place",
    errno.ENOTDIR: "a part of the path is no folder. Name another place",
}


def check_text(path: str | os.PathLike, what: str):
    """Refuse a path that UTF-8 cannot write: neither JSON nor a model card could name it, and no terminal print it.

    Args:
        path: as it was given.
        what: it is for; begins the message.

    Raises:
        ValueError: naming the path.
    """
    text = os.fspath(path)
    try:
        fits = "\0" not in text
        text.encode("utf-8")
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{what} = {text!a} is not allowed. Allowed: a path of characters that UTF-8 can write. Rename the folder "
            "or file, or name another place."
        )


def try_folder(folder: str | os.PathLike, what: str = "the output folder", longest: str = LONGEST_FILE):
    """Find out whether files and folders can be written in a folder, which need not be there yet. Nothing is left.

    Args:
        folder: to be tried.
        what: it is, for the message.
        longest: the longest name of a file that is to be written there.

    Raises:
        ValueError: for a path that UTF-8 cannot write.
        OSError: naming the folder, what is wrong, and what to do.
    """
    check_text(folder, what)
    with named_errors(folder, what), made_folder(Path(folder)):
        _probe(Path(folder), longest)


def try_file(file: str | os.PathLike, what: str = "the output file"):
    """Find out whether a file can be written, or replaced where it is there already. Nothing is left.

    Raises:
        ValueError: for a path that UTF-8 cannot write.
        OSError: naming the file, what is wrong, and what to do.
    """
    file = Path(file)
    check_text(file, what)
    with named_errors(file, what):
        check_replaceable(file, what)
        with made_folder(file.parent):
            _probe(file.parent, file.name)


def check_replaceable(file: Path, what: str):
    """Refuse what no file can take the place of: a folder, a pipe, a device.

    Raises:
        OSError: naming it.
    """
    if os.path.lexists(file) and not file.is_symlink() and not file.is_file():
        kind = "a folder" if file.is_dir() else "no file but a pipe, a device or the like"
        raise FileExistsError(f"{what} cannot be written: {file} is {kind}. Move it away, or name another place.")


def check_room(folder: str | os.PathLike, needed: int, what: str):
    """Refuse a disk on which something of known size has no room.

    Args:
        folder: on that disk; it need not be there yet.
        needed: bytes.
        what: it is, for the message.

    Raises:
        OSError: with the bytes needed and those free.
    """
    there = _existing(Path(os.path.abspath(folder)))
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"{what} needs {needed:,} bytes, and the disk of {folder} has {free:,} free. Make room there, or name a "
            "folder on a larger disk."
        )


@contextmanager
def named_errors(path: str | os.PathLike, what: str) -> Iterator[None]:
    """A block whose system errors name the place, what is wrong with it, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one of our own
            raise
        reason = _REASONS.get(error.errno, f"{error.strerror}. Name another place")
        raise type(error)(f"{path} cannot be {what}: {reason}.") from error


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """A folder that is there for a block; what had to be made goes afterwards, as far as it is empty."""
    made = make_folder(folder)
    try:
        yield
    finally:
        remove_empty(made)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder with the folders above it.

    Returns:
        Those that were not there, the deepest first.

    Raises:
        OSError: when something else is in its place, or it cannot be made; then none of them stays.
    """
    missing = []
    place = Path(os.path.abspath(folder))
    while not os.path.isdir(place):
        if os.path.lexists(place):
            raise NotADirectoryError(f"{folder} cannot be a folder: {place} is {_kind(place)}. Name another place.")
        missing.append(place)
        place = place.parent
    made: list[Path] = []
    try:
        for place in reversed(missing):
            try:
                place.mkdir()
                made.insert(0, place)
            except FileExistsError:  # somebody else has made it meanwhile
                if not os.path.lexists(place):
                    raise FileNotFoundError(errno.ENOENT, "it comes and goes", str(place)) from None
                if not place.is_dir():
                    raise
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: list[Path]):
    """Remove folders, the deepest first, up to one that is not empty or was removed by somebody else."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # something was put into it, and it is to stay
            return


def _existing(place: Path) -> Path:
    while not place.is_dir():
        place = place.parent
    return place


def _kind(place: Path) -> str:
    mode = place.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"a link to {os.readlink(place)}, where no folder is"
    return "a file" if stat.S_ISREG(mode) else "a pipe, a device or the like"


def _probe(folder: Path, longest: str):
    """Do in small what saving does: a folder, a file in it, both synced and moved to where they are seen."""
    token = secrets.token_hex(4)
    beside = folder / f".{PROBE}.{token}.partial"
    try:
        beside.mkdir()
        temporary = beside / f".{longest}.{token}.tmp"
        with open(temporary, "xb", buffering=0) as file:
            file.write(_BLOCK)
        sync(temporary)
        os.replace(temporary, beside / longest)
        sync(beside)
        moved = folder / f".{PROBE}.{secrets.token_hex(4)}.partial"
        os.rename(beside, moved)
        beside = moved
        sync(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
