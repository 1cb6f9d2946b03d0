"""One run holds its folder: a second one is told who has it, and a process that is killed holds nothing.

The lock is the system's, on a file in the folder. The file tells who holds it, and goes when the run lets go; one that
a killed process has left is locked by nobody, and in nobody's way.
"""

import json
import os
import platform
import shlex
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..base.printable import printable
from ..storage.file_lock import NO_LOCKS, try_lock
from ..storage.output_check import make_folder, remove_empty
from ..storage.safe_json import read_json

LOCK_FILE = ".smope-run.lock"
_MOST_BYTES = 2**16  # of what a lock file tells
_MOST_SHOWN = 300  # characters of a command
_TRIES = 100
_PATIENCE = 1.0  # seconds in which a holder has told who it is


class FolderHeldError(OSError):
    """Another run holds the folder; nothing in it was touched."""


class _Lock:
    """The lock of this process on one folder, shared by the trainers that are made for it one after the other."""

    def __init__(self, folder: Path, handle: int, made: list[Path]):
        self.folder, self.handle, self.made = folder, handle, made
        self.holds, self.in_use = 0, False


class FolderHold:
    """A hold on a folder, until it is released; several of one process share its lock while none of them is in use.

    Args:
        lock: of the process.
    """

    def __init__(self, lock: _Lock):
        self._lock: _Lock | None = lock

    @property
    def is_held(self) -> bool:
        """Whether it has not been released, and is not one of the process that this one is a fork of."""
        return self._lock in _LOCKS

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A block that writes into the folder; others of this process are kept out of it too."""
        lock = self._lock
        with _GUARD:
            _check_idle(lock)
            lock.in_use = True
        try:
            yield
        finally:
            lock.in_use = False

    def release(self):
        """Let go; the last hold of the process removes the lock's file, and folders that it made and left empty."""
        with _GUARD:
            lock, self._lock = self._lock, None
            if lock is None or lock not in _LOCKS:  # released before, or the lock of the process this one is a fork of
                return
            lock.holds -= 1
            if lock.holds == 0:
                _LOCKS.remove(lock)
                _let_go(lock)


_GUARD = threading.RLock()
_LOCKS: list[_Lock] = []


def hold_folder(folder: str | os.PathLike) -> FolderHold:
    """Take a folder for a run of this process.

    Args:
        folder: made where it is missing.

    Returns:
        The hold, to be released. Child processes do not have it.

    Raises:
        FolderHeldError: when another process holds it, or a training of this one; the message says who.
        OSError: when no lock can be made there.
    """
    folder = Path(os.path.abspath(folder))
    with _GUARD:
        lock = next((lock for lock in _LOCKS if _is_same(lock, folder)), None)
        if lock is None:
            lock = _lock(folder)
            _LOCKS.append(lock)
        _check_idle(lock)
        lock.holds += 1
    return FolderHold(lock)


def _is_same(lock: _Lock, folder: Path) -> bool:
    """Whether a folder is the one of a lock, by whatever path, and the lock's file is still in it."""
    try:
        return os.path.samestat(os.fstat(lock.handle), os.lstat(folder / LOCK_FILE))
    except OSError:  # one of them is gone
        return False


def _check_idle(lock: _Lock):
    if lock.in_use:
        raise FolderHeldError(
            f"{lock.folder} is held by another training of this very program. Nothing was changed. Wait until it has "
            "ended, or give another output_dir."
        )


def _lock(folder: Path) -> _Lock:
    made: list[Path] = []
    for _ in range(_TRIES):  # who let go just now may have removed file and folder after they were looked at
        try:
            made = sorted({*made, *make_folder(folder)}, key=lambda place: -len(place.parts))
            handle, writable = _open(folder / LOCK_FILE)
        except FileNotFoundError as error:
            gone = error
            continue
        except BaseException:
            remove_empty(made)
            raise
        lock = _Lock(folder, handle, made)
        try:
            taken = _take(handle, folder)
        except BaseException:
            _let_go(lock)
            raise
        if not taken:
            os.close(handle)
            remove_empty(made)
            raise FolderHeldError(
                f"{folder} is held by another run: {_holder(folder / LOCK_FILE)}. Nothing was changed. Wait until it "
                "has ended or stop it, or give another output_dir."
            )
        if not _is_same(lock, folder):
            os.close(handle)
        elif not writable:  # what another user's killed process has left
            (folder / LOCK_FILE).unlink()
            os.close(handle)
        else:
            return _introduced(lock)
        gone = FileNotFoundError(f"{folder} was removed while it was taken, again and again. Give another output_dir.")
    raise gone


def _open(file: Path) -> tuple[int, bool]:
    """The lock's file, made where it is missing, and whether it can be written: to see who has it, reading will do."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    writable = True
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except FileNotFoundError:  # the folder went, and may be there again
        raise
    except PermissionError:
        if not file.is_file():
            raise
        handle, writable = os.open(file, os.O_RDONLY | flags), False
    except OSError as error:
        if not os.path.lexists(file):
            raise
        raise FileExistsError(f"{file} is no lock of a run ({error.strerror}). Move it away.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileExistsError(f"{file} is no lock of a run, but something else than a file. Move it away.")
    return handle, writable


def _take(handle: int, folder: Path) -> bool:
    try:
        return try_lock(handle)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        risk = (
            f"The file system of {folder} has no locks ({error.strerror}): a second run in this folder would not be "
            "stopped, and the two would damage each other's files. Start none."
        )
        warnings.warn(printable(risk), stacklevel=2)
        return True


def _introduced(lock: _Lock) -> _Lock:
    """Write down who holds the folder, for others to read."""
    holder = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join(sys.argv).encode("utf-8", "backslashreplace").decode()[:_MOST_SHOWN],
    }
    try:
        os.ftruncate(lock.handle, 0)
        os.lseek(lock.handle, 0, os.SEEK_SET)
        os.write(lock.handle, json.dumps(holder).encode())
    except BaseException:
        _let_go(lock)
        raise
    return lock


def _holder(file: Path) -> str:
    """Who holds the folder, as told by the lock's file; it may take a moment until that is written."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            told = read_json(file, _MOST_BYTES)
            pid, host, since, command = (told[name] for name in ("pid", "host", "since", "command"))
        except (OSError, ValueError, KeyError):
            told = None
        if told is not None and (host != platform.node() or _is_alive(pid)):
            pid, host, since, command = (printable(part, _MOST_SHOWN) for part in (pid, host, since, command))
            return f"process {pid} on {host}, since {since} ({command})"
        if time.monotonic() > end:
            return "a process that does not say who it is"
        time.sleep(0.02)


def _is_alive(pid) -> bool:
    """Whether a process of this machine lives: what a killed one has written may stand there for a moment."""
    if os.name == "nt" or not isinstance(pid, int) or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _let_go(lock: _Lock):
    file = lock.folder / LOCK_FILE
    if os.name == "nt":  # where no open file can be removed, and one that somebody else has opened by now stays
        os.close(lock.handle)
        try:
            file.unlink(missing_ok=True)
        except PermissionError:
            return
    else:  # removed while it is locked: who has opened it meanwhile sees that it is gone, and begins again
        if _is_same(lock, lock.folder):
            file.unlink()
        os.close(lock.handle)
    remove_empty(lock.made)


def _forget():
    """A forked child does not hold what its parent holds, and does not keep it when the parent is gone."""
    global _GUARD
    _GUARD = threading.RLock()
    for lock in _LOCKS:
        os.close(lock.handle)
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
