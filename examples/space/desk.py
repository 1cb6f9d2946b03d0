"""What happens behind the page when a visitor does something; knows nothing of how the page looks."""

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from checkpoints import Checkpoint, Models, Place
from limits import Limits, Refused
from looking import Look, look_at
from teaching import Lesson, teach
from visits import Visit, Visits

from smope_hf.base.printing import say_lines

BROKEN = (
    "Something went wrong on this side, and nothing was changed. Try again; if it stays so, tell the owner of this "
    "page, whose log says what it was."
)


class Desk:
    """Serves all visits.

    Args:
        checkpoints: those on offer, by name.
        visits: the open visits.
        models: loaded models.
        limits: of what a visitor may ask for.
    """

    def __init__(self, checkpoints: dict[str, Checkpoint], visits: Visits, models: Models, limits: Limits):
        self.checkpoints, self.visits, self.models, self.limits = checkpoints, visits, models, limits
        self._teaching = threading.Lock()

    def revisions(self, key: str, checkpoint: str) -> dict[str, Place]:
        """The revisions of a checkpoint by what is shown, oldest first, with what this visit has taught it."""
        found = dict(self._checkpoint(checkpoint).revisions)
        lessons = [lesson for lesson in self.visits.of(key).lessons if lesson.checkpoint == checkpoint]
        for lesson in lessons:
            found[f"yours: {Path(lesson.place.name).name} with {lesson.class_name}"] = lesson.place
        return found

    def look(self, key: str, checkpoint: str, revision: str, image: str) -> Look:
        """What one revision says of an uploaded image.

        Raises:
            Refused: when there is no such revision, or the image cannot be taken.
        """
        visit = self.visits.of(key)
        with _unless_ended(visit):
            path = self.visits.take(visit, image)
            place = self._place(key, checkpoint, revision)
            return look_at(self.models.get(place), self.limits.read_image(path))

    def learn(
        self,
        key: str,
        checkpoint: str,
        revision: str,
        images: Sequence[str],
        name: str | None,
        progress: Callable[[float, str], None],
    ) -> Lesson:
        """Teach a copy of a revision a new class, and keep it for this visit.

        Raises:
            Refused: when images, name or what is left of the visit's share do not do.
        """
        visit = self.visits.of(key)
        self.limits.check_teaching(len(visit.lessons), visit.taught_seconds)
        with _unless_ended(visit):
            place = self._place(key, checkpoint, revision)
            name = self.limits.check_name(name, self.models.get(place).class_names)
            self.limits.check_number(len(images))
            paths = [self.visits.take(visit, path) for path in images]
            pictures = [self.limits.read_image(path) for path in paths]
        with self._lesson(visit):
            lesson = teach(
                place,
                pictures,
                name,
                visit.folder / f"lesson-{len(list(visit.folder.iterdir())) + 1}",
                checkpoint=checkpoint,
                tests=self._tests(visit, checkpoint, place),
                limits=self.limits,
                progress=progress,
                stopped=lambda: visit.ended,
            )
            self.visits.files.add_made(lesson.archive, "application/zip", key)
            visit.lessons.append(lesson)
            return lesson

    @contextmanager
    def _lesson(self, visit: Visit) -> Iterator[None]:
        """One lesson at a time, however it was asked for."""
        if not self._teaching.acquire(blocking=False):
            raise Refused("Somebody else's lesson is running. Try again in a minute.")
        try:
            self.visits.start_lesson(visit)
            started = self.visits.clock()
            try:
                yield
            finally:
                visit.taught_seconds += self.visits.clock() - started
                self.visits.stop_lesson(visit)
        finally:
            self._teaching.release()

    def _checkpoint(self, name: str) -> Checkpoint:
        if name not in self.checkpoints:
            raise Refused("This checkpoint is not on offer. Choose one from the list.")
        return self.checkpoints[name]

    def _place(self, key: str, checkpoint: str, revision: str) -> Place:
        found = self.revisions(key, checkpoint)
        if revision not in found:
            raise Refused(f"There is no revision {revision!r} any more: visits end after a while. Choose another one.")
        return found[revision]

    def _tests(self, visit: Visit, checkpoint: str, place: Place):
        """Held-out images of the tasks that a revision knows."""
        for lesson in visit.lessons:
            if lesson.place == place:
                return lesson.tests
        tests = self.checkpoints[checkpoint].tests
        return None if tests is None else tests[: len(self.models.get(place).tasks)]


@contextmanager
def _unless_ended(visit: Visit) -> Iterator[None]:
    """Take what fails because the visitor has left, and files were deleted under the reader, for no fault."""
    try:
        yield
    except Exception as error:
        if visit.ended:
            raise Refused("This visit has ended, and what was sent in it is deleted. Start again.") from error
        raise


def explain(error: Exception) -> str:
    """What a visitor is told of an error; one that nobody foresaw goes to the log with its traceback."""
    if isinstance(error, Refused):
        return str(error)
    say_lines("".join(traceback.format_exception(error)), err=True)
    return BROKEN
