"""Visits: what each visitor has, in a folder of its own that goes when the visit ends or nobody comes back."""

import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from limits import Limits, Refused
from teaching import Lesson

PREFIX = "visit-"


@dataclass
class Visit:
    """One visitor's open page.

    Args:
        folder: everything made for this visit is in it.
        lessons: what was taught, in order.
        taught_seconds: of training so far.
        uploads: files that this visitor has sent.
        seen: when the page last asked for something, `time.monotonic()`.
        ended: the page is closed; a running lesson stops.
        busy: a lesson is running.
    """

    folder: Path
    lessons: list[Lesson] = field(default_factory=list)
    taught_seconds: float = 0.0
    uploads: set[Path] = field(default_factory=set)
    seen: float = 0.0
    ended: bool = False
    busy: bool = False


class Visits:
    """All open visits.

    Args:
        uploads: folder that uploaded files are in, and that the visits get folders of their own in, whose names nobody
            can guess: the page hands out any file in it to those who know its name.
        limits: number of visits, and how long an idle one lasts.
        forget: told the folder of a visit that has ended.
        clock: seconds.
    """

    def __init__(
        self,
        uploads: Path,
        limits: Limits,
        forget: Callable[[Path], None] = lambda folder: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.uploads, self.limits, self.forget, self.clock = uploads.resolve(), limits, forget, clock
        self.uploads.mkdir(parents=True, exist_ok=True)
        self.own_files: set[Path] = set()  # of the page, such as examples; a visitor may send the same
        self._visits: dict[str, Visit] = {}
        self._closed = False
        self._lock = threading.RLock()

    def of(self, key: str) -> Visit:
        """The visit of a page, made where it is new.

        Raises:
            Refused: when there are too many, or the page is being closed.
        """
        with self._lock:
            if self._closed:
                raise Refused("The page is being closed.")
            self.sweep()
            if key not in self._visits:
                if len(self._visits) >= self.limits.visits:
                    raise Refused("Too many people are here at the moment. Try again in some minutes.")
                folder = self.uploads / f"{PREFIX}{secrets.token_hex(16)}"
                folder.mkdir()
                self._visits[key] = Visit(folder)
            visit = self._visits[key]
            visit.seen = self.clock()
            return visit

    def take(self, visit: Visit, path: str) -> Path:
        """An uploaded file as one of a visit, to be deleted with it.

        Raises:
            Refused: for any other file of this machine.
        """
        found = Path(path).resolve()
        if found.parent.parent != self.uploads or found.parent.name.startswith(PREFIX):
            raise Refused(f"{found.name} was not uploaded here. Upload it again.")
        with self._lock:
            visit.uploads.add(found)
        return found

    def end(self, key: str):
        """End a visit and delete what it had; a lesson that runs is stopped, and the rest goes when it has."""
        with self._lock:
            visit = self._visits.pop(key, None)
            if visit is not None:
                visit.ended = True
                self._delete_uploads(visit)
                if not visit.busy:
                    self._delete(visit)

    def start_lesson(self, visit: Visit):
        """Keep the visit's folder while a lesson runs."""
        with self._lock:
            if visit.busy:
                raise Refused("A lesson is running already. Wait until it is done.")
            visit.busy = True

    def stop_lesson(self, visit: Visit):
        """The lesson is over, well or not."""
        with self._lock:
            visit.busy, visit.seen = False, self.clock()
            if visit.ended:
                self._delete(visit)

    def sweep(self):
        """End the visits that have been idle for too long."""
        with self._lock:
            for key, visit in list(self._visits.items()):
                if not visit.busy and self.clock() - visit.seen > self.limits.idle_seconds:
                    self.end(key)

    def close(self):
        """End all visits, and let none begin: what a late request made would outlive the program."""
        with self._lock:
            self._closed = True
            for key in list(self._visits):
                self.end(key)

    def sweep_regularly(self, seconds: float = 30.0):
        """Sweep from a thread that ends with the process."""

        def forever():
            while True:
                time.sleep(seconds)
                self.sweep()

        threading.Thread(target=forever, name="sweep", daemon=True).start()

    def _delete(self, visit: Visit):
        shutil.rmtree(visit.folder, ignore_errors=True)
        self.forget(visit.folder)

    def _delete_uploads(self, visit: Visit):
        # gradio names files by their content: another visit may have sent the same
        kept = self.own_files.union(*(other.uploads for other in self._visits.values()))
        for path in visit.uploads - kept:
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()


def remove_for_good(folder: Path, patience: float = 10.0):
    """Remove a folder also where a lesson that is being stopped still writes to it.

    Args:
        folder: need not be there.
        patience: seconds for which to try.

    Raises:
        OSError: when it is still there.
    """
    until = time.monotonic() + patience
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=time.monotonic() < until)
        time.sleep(0.1)
