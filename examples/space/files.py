"""The files that the page takes and hands out: those that visitors sent, those made for them, and its own."""

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from limits import Limits
from routes import NotTaken

NAME_LENGTH = 80  # characters of a file's name that are kept


@dataclass
class Kept:
    """A file.

    Args:
        path: where it is.
        media: its type, as a browser is told.
        address: who sent it; empty for the page's own.
        size: bytes.
        since: when it came, `clock()`.
        visit: key of the visit that it belongs to; None while none has used it, and for the page's own.
    """

    path: Path
    media: str
    address: str = ""
    size: int = 0
    since: float = field(default=0.0)
    visit: str | None = None


class Files:
    """All files by their path. What is not in here is neither taken nor handed out, whatever lies on the disk.

    Args:
        folder: that all of them are in, each in a folder whose name nobody can guess.
        limits: of their size.
        clock: seconds.
    """

    def __init__(self, folder: Path, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.folder, self.limits, self.clock = folder.resolve(), limits, clock
        self.folder.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, Kept] = {}
        self._expected: dict[object, tuple[str, int]] = {}  # uploads that are coming: address and bytes
        self._lock = threading.Lock()

    def find(self, path: str) -> Kept | None:
        """The file of exactly this path."""
        return self._kept.get(path)

    def add_own(self, paths: Sequence[Path], media: str = "image/png") -> list[Path]:
        """Copy files of the page's own, such as examples, to where all visits can use them."""
        return [self._add(shutil.copy(path, self.place(path.name)), media) for path in paths]

    def add_made(self, path: Path, media: str, visit: str):
        """A file that was made for a visit, in a folder of it."""
        self._add(path, media, visit=visit)

    def add_sent(self, path: Path, media: str, address: str):
        """A file that was uploaded."""
        self._add(path, media, address=address, size=path.stat().st_size)

    def claim(self, path: str, visit: str) -> Kept | None:
        """A file as one of a visit; None where there is none, or it is another visit's."""
        with self._lock:
            kept = self._kept.get(path)
            if kept is None or kept.visit not in (None, visit):
                return None
            if kept.address:
                kept.visit = visit
            return kept

    def remove(self, chosen: Callable[[Kept], bool]):
        """Delete files, each with the folder that was made for it."""
        with self._lock:
            gone = [name for name, kept in self._kept.items() if chosen(kept)]
            removed = [self._kept.pop(name) for name in gone]
        for kept in removed:
            kept.path.unlink(missing_ok=True)
            if kept.address:
                shutil.rmtree(kept.path.parent, ignore_errors=True)

    def remove_unused(self):
        """Delete the uploads that no visit has used for as long as an idle visit lasts."""
        now = self.clock()
        self.remove(lambda kept: kept.address and not kept.visit and now - kept.since > self.limits.idle_seconds)

    @contextmanager
    def room_for(self, address: str, size: int):
        """Keep room for an upload while it comes.

        Raises:
            NotTaken: when this address (413) or all of them (503) have sent as much as is kept.
        """
        with self._lock:
            coming = [count for who, count in self._expected.values() if who == address]
            sent = [kept.size for kept in self._kept.values() if kept.address == address]
            if sum(coming) + sum(sent) + size > self.limits.address_bytes:
                most = self.limits.address_bytes // 2**20
                raise NotTaken(413, f"Files of yours that are here take {most} MB, which is the most. Close the page.")
            everything = sum(count for _, count in self._expected.values())
            if folder_bytes(self.folder) + everything + size > self.limits.upload_bytes:
                raise NotTaken(503, "Too many files are here at the moment. Try again in some minutes.", 60)
            token = object()
            self._expected[token] = address, size
        try:
            yield
        finally:
            with self._lock:
                del self._expected[token]

    def place(self, name: str) -> Path:
        """A path for a new file, in a folder of its own."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        return folder / kept_name(name)

    def _add(self, path: Path, media: str, **what) -> Path:
        path = Path(path)
        with self._lock:
            self._kept[str(path)] = Kept(path, media, since=self.clock(), **what)
        return path


def kept_name(name: str) -> str:
    """A file's name as it is kept: its last part, without characters that mean something to shells, URLs or eyes."""
    last = name.replace("\\", "/").split("/")[-1]
    plain = "".join(c if c.isascii() and c.isalnum() or c in "._-" else "_" for c in last[-NAME_LENGTH:])
    return plain.lstrip(".") or "file"


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder; those that vanish meanwhile count nothing."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike rglob it does not mind folders that vanish
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except FileNotFoundError:
                continue
    return total
