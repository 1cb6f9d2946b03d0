"""Visits: what each visitor has, in a folder of its own that goes when the visit ends or nobody comes back."""

import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from files import Files, folder_bytes
from limits import Limits, Refused
from teaching import Lesson

PREFIX = "visit-"


@dataclass
class Visit:
    """One visitor's open page.

    Args:
        key: of the visit.
        folder: everything made for this visit is in it.
        lessons: what was taught, in order.
        taught_seconds: of training so far.
        seen: when the page last asked for something, `time.monotonic()`.
        ended: the page is closed; a running lesson stops.
        busy: a lesson is running.
    """

    key: str
    folder: Path
    lessons: list[Lesson] = field(default_factory=list)
    taught_seconds: float = 0.0
    seen: float = 0.0
    ended: bool = False
    busy: bool = False


class Visits:
    """All open visits.

    Args:
        files: those that are taken and handed out; the visits get folders of their own beside them.
        limits: number of visits, and how long an idle one lasts.
        forget: told the folder of a visit that has ended.
        clock: seconds.
    """

    def __init__(
        self,
        files: Files,
        limits: Limits,
        forget: Callable[[Path], None] = lambda folder: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.files, self.limits, self.forget, self.clock = files, limits, forget, clock
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
                folder = self.files.folder / f"{PREFIX}{secrets.token_hex(16)}"
                folder.mkdir()
                self._visits[key] = Visit(key, folder)
            visit = self._visits[key]
            visit.seen = self.clock()
            return visit

    def take(self, visit: Visit, path: str) -> Path:
        """An uploaded file as one of a visit, to be deleted with it.

        Raises:
            Refused: for any other file of this machine, and for those of other visits.
        """
        kept = self.files.claim(path, visit.key)
        if kept is None:
            raise Refused(f"{Path(path).name} was not uploaded here. Upload it again.")
        return kept.path

    def end(self, key: str):
        """End a visit and delete what it had; a lesson that runs is stopped, and the rest goes when it has."""
        with self._lock:
            visit = self._visits.pop(key, None)
            if visit is not None:
                visit.ended = True
                self.files.remove(lambda kept: kept.visit == key)
                if not visit.busy:
                    self._delete(visit)

    def start_lesson(self, visit: Visit):
        """Keep the visit's folder while a lesson runs."""
        with self._lock:
            if visit.busy:
                raise Refused("A lesson is running already. Wait until it is done.")
            if folder_bytes(self.files.folder) > self.limits.upload_bytes:
                raise Refused("Too many files are here at the moment. Try again in some minutes.")
            visit.busy = True

    def stop_lesson(self, visit: Visit):
        """The lesson is over, well or not."""
        with self._lock:
            visit.busy, visit.seen = False, self.clock()
            if visit.ended:
                self._delete(visit)

    def sweep(self):
        """End the visits that have been idle for too long, and delete the uploads that none of them has used."""
        with self._lock:
            self.files.remove_unused()
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
