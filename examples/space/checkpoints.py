"""The checkpoints that the page offers, their revisions, and the models loaded from them."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from transformers import PreTrainedModel

from smope_hf.data.known_tasks import load_known_tests
from smope_hf.data.split import TaskSplit
from smope_hf.models.image_processors import load_image_processor
from smope_hf.sharing.checkpoint import saved_tasks, task_folder
from smope_hf.sharing.hub import find_checkpoint, task_tags
from smope_hf.sharing.inspection import class_tasks, read_config

KEPT = 4  # models in memory


@dataclass(frozen=True)
class Place:
    """Where one revision of a checkpoint is: what `find_checkpoint` takes."""

    name: str
    revision: str | None = None


@dataclass
class Checkpoint:
    """A checkpoint to choose, with its revisions from the oldest to the newest.

    Args:
        name: as it was given.
        revisions: places by the name that is shown.
        tests: held-out images of each task of the newest revision; None where there are none.
    """

    name: str
    revisions: dict[str, Place]
    tests: list[TaskSplit | None] | None = None


@dataclass
class Loaded:
    """A model ready to use."""

    model: PreTrainedModel
    processor: object
    folder: Path
    tasks: list[list[str]] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        return [name for task in self.tasks for name in task]


def find_revisions(name: str) -> dict[str, Place]:
    """The revisions of a run's folder (its tasks), of one checkpoint's folder, or of a Hub repository (its tags).

    Raises:
        OSError, ValueError: when there is no such checkpoint.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        tasks = saved_tasks(path)
        return {folder.name: Place(str(folder)) for folder in tasks} or {path.name: Place(str(path))}
    if name.startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(f"{name} is not a folder. Give a task's or a run's folder, or a Hub id.")
    tags = [task_folder("", index).name for index in sorted(task_tags(HfApi(), name))]
    return {tag: Place(name, tag) for tag in tags or ["main"]}


def open_checkpoints(
    names: Sequence[str], test_data: str | None, tests_per_class: int = 20, **columns: str | None
) -> dict[str, Checkpoint]:
    """Look up checkpoints before the page opens, so that mistakes show at once.

    Args:
        names: run folders, checkpoint folders or Hub ids.
        test_data: images of the classes that they know, to measure what teaching does to them; None for none.
        tests_per_class: images of each class to take of those.
        columns: `split`, `image_column` and `label_column` of the test data, as for `load_known_tests`.

    Raises:
        OSError, ValueError: when a checkpoint or the test data is not found, or they do not go together.
    """
    found = {}
    for name in names:
        revisions = find_revisions(name)
        newest = list(revisions.values())[-1]
        tasks = class_tasks(read_config(find_checkpoint(newest.name, newest.revision).folder))
        tests = None
        if test_data is not None:
            tests = load_known_tests(test_data, tasks, max_per_class=tests_per_class, ignore_unknown=True, **columns)
        found[name] = Checkpoint(name, revisions, tests)
    return found


class Models:
    """Models by their place; the last few stay in memory."""

    def __init__(self, kept: int = KEPT):
        self.kept = kept
        self._loaded: OrderedDict[Place, Loaded] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, place: Place) -> Loaded:
        """The model of a place, loaded where it is not in memory.

        Raises:
            OSError, ValueError: as `from_pretrained` does.
        """
        with self._lock:
            if place not in self._loaded:
                source = find_checkpoint(place.name, place.revision)
                processor = load_image_processor(source.folder)
                tasks = class_tasks(read_config(source.folder))
                self._loaded[place] = Loaded(source.load_model().eval(), processor, source.folder, tasks)
                while len(self._loaded) > self.kept:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(place)
            return self._loaded[place]

    def forget(self, folder: Path):
        """Drop the models that were loaded from a folder or one in it."""
        with self._lock:
            for place in [place for place in self._loaded if Path(place.name).is_relative_to(folder)]:
                del self._loaded[place]
