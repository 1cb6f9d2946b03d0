"""Teaching a copy of a model one new class from a visitor's images, with the library's own trainer."""

import io
import math
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from checkpoints import Place
from limits import Limits, Refused
from PIL import Image

from smope_hf import ContinualTrainer, TaskStream
from smope_hf.data.split import TaskSplit
from smope_hf.models.registry import config_of
from smope_hf.sharing.hub_files import check_can_be_shared, stage
from smope_hf.training.callbacks import ContinualCallback
from smope_hf.training.evaluation import overall_accuracy

REPOSITORY = "taught-model"  # folder in the archive, and the name by which its card loads it


@dataclass(frozen=True)
class Lesson:
    """What came of a lesson.

    Args:
        class_name: what was taught.
        checkpoint: name of the checkpoint that the visit began from.
        place: the new model.
        archive: the same as a zip file.
        tests: held-out images of every task of the new model; None for tasks that there are none of.
        old_before: accuracy on the old classes' held-out images before the lesson; None without such images.
        old_after: the same after it.
        old_images: their number.
        new_accuracy: accuracy on the held-out images of the new class.
        new_images: their number.
        taught_with: images that the class was taught with.
        seconds: of the lesson.
    """

    class_name: str
    checkpoint: str
    place: Place
    archive: Path
    tests: list[TaskSplit | None]
    old_before: float | None
    old_after: float | None
    old_images: int
    new_accuracy: float
    new_images: int
    taught_with: int
    seconds: float


def teach(
    place: Place,
    images: Sequence[Image.Image],
    class_name: str,
    folder: Path,
    *,
    checkpoint: str,
    tests: Sequence[TaskSplit | None] | None,
    limits: Limits,
    progress: Callable[[float, str], None] = lambda share, text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Lesson:
    """Teach a copy of a model one more class. The model itself stays as it is.

    Args:
        place: the model to go on from.
        images: of the new class, RGB.
        class_name: its name.
        folder: for the new model; nothing is written elsewhere.
        checkpoint: name of the checkpoint, kept in the result.
        tests: held-out images of each task that the model knows; None where there are none.
        limits: share of images to hold out, and seconds of training.
        progress: told the share that is done, 0 to 1, and what is being done.
        stopped: asked after every step whether to give up.

    Raises:
        Refused: when it took too long or was stopped.
        ValueError, OSError: as `ContinualTrainer.from_checkpoint`.
    """
    start = time.monotonic()
    progress(0.0, "Preparing")
    watch = _Watch(limits, progress, stopped)
    stream = _stream(images, class_name, limits)
    trainer = ContinualTrainer.from_checkpoint(
        place.name, stream, revision=place.revision, output_dir=str(folder), old_tests=tests, callbacks=[watch],
        report=False, disable_progress=True, checkpoint_every=0, torch_compile=False,
    )  # fmt: skip
    progress(0.05, "Measuring the old classes")
    before = trainer.evaluate()["weighted_accuracy"]
    trainer.train()
    progress(0.95, "Packing the new checkpoint")
    *old, new = trainer.evaluation.accuracies[0]
    kept = [task.test for task in trainer.stream]
    counts = [0 if test is None else len(test) for test in kept]
    saved = trainer.saved_tasks()[-1]
    return Lesson(
        class_name=class_name,
        checkpoint=checkpoint,
        place=Place(str(saved)),
        archive=pack(saved, folder / f"{REPOSITORY}.zip"),
        tests=kept,
        old_before=before,
        old_after=overall_accuracy(old, counts[:-1])["weighted_accuracy"],
        old_images=sum(counts[:-1]),
        new_accuracy=new,
        new_images=counts[-1],
        taught_with=len(trainer.stream[-1].train),
        seconds=time.monotonic() - start,
    )


def pack(saved: Path, archive: Path) -> Path:
    """Pack a task's folder as a zip file of one folder that loads on any machine with smope_hf.

    Where the base model is a folder of this machine, it goes along.
    """
    try:
        check_can_be_shared(config_of(saved), include_backbone=False, remote_code=False)
        include_backbone = False
    except ValueError:  # nobody else could find the base model
        include_backbone = True
    files = stage(saved, REPOSITORY, archive.parent / "packing", include_backbone, remote_code=False).files
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, file in sorted(files.items()):
            packed.write(file, f"{REPOSITORY}/{name}")
    return archive


def _stream(images: Sequence[Image.Image], class_name: str, limits: Limits) -> TaskStream:
    """The images as a data set in memory: a loader of files would keep a copy in its cache."""
    rows = {"image": [{"bytes": _png(image), "path": None} for image in images], "label": [0] * len(images)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[class_name])})
    data = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    return TaskStream(data, num_tasks=1, test_fraction=limits.held_out, name="a visitor's images")


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class _Watch(ContinualCallback):
    """Tells how far training is, and gives up when it takes too long or nobody waits for it."""

    def __init__(self, limits: Limits, progress: Callable[[float, str], None], stopped: Callable[[], bool]):
        self.limits, self.progress, self.stopped = limits, progress, stopped
        self.steps = self.done = 0
        self.end = 0.0

    def on_task_begin(self, trainer, task):
        args = trainer.args
        self.end = time.monotonic() + self.limits.lesson_seconds
        self.steps = args.epochs * math.ceil(len(task.train) / args.batch_size) * args.gradient_accumulation_steps

    def on_forward(self, trainer, task, output, counts):
        self._check()
        self.done += 1
        share = min(self.done / self.steps, 1.0)
        self.progress(0.1 + 0.75 * share, f"Learning: step {self.done} of {self.steps}")

    def on_training_end(self, trainer, task):
        self._check()
        self.progress(0.87, "Aligning the classes and measuring")

    def _check(self):
        if self.stopped():
            raise Refused("The lesson was stopped. Nothing was changed.")
        if time.monotonic() > self.end:
            raise Refused(
                f"The lesson took longer than {self.limits.lesson_seconds:.0f} seconds and was given up; the model is "
                "as it was. Try fewer images, or a smaller model."
            )
