"""Every image of a run is looked at before its training begins: one that cannot be used is named, or skipped."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object, tqdm

from ..base.printing import say_once
from ..storage.files import write_json
from .image_reading import UnreadableImage, check_image
from .split import SkippedImage, Task, TaskSplit

ON_BAD_IMAGE = ("error", "skip")
SKIPPED_FILE = "skipped_images.json"
_ROWS_PER_READ = 32
_MOST_NAMED = 3


class ImageCheck:
    """Reads every image of splits once: its hash for the manifest, and whether it can be decoded.

    No pixel is kept. Each process looks at its share of the rows and is told of the others', so that all leave the
    same rows out.

    Args:
        on_bad_image: "error" to refuse the data, "skip" to leave such rows out.
        accelerator: of the run; default one process.
        num_workers: threads that decode side by side.
        disable_progress: show no progress bar.

    Raises:
        ValueError: when `on_bad_image` is neither.
    """

    def __init__(self, on_bad_image: str = "error", accelerator=None, num_workers: int = 0, disable_progress=True):
        if on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"on_bad_image = {on_bad_image!r} is not allowed. Allowed: one of {ON_BAD_IMAGE}.")
        self.skips = on_bad_image == "skip"
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.world = 1 if accelerator is None else accelerator.num_processes
        self.num_workers, self.disable_progress = num_workers, disable_progress
        self.looked_at, self.problems = 0, []

    def split(self, split: TaskSplit, class_names: Sequence[str], first_id: int, used_for: str) -> TaskSplit:
        """A split with the hashes of its images, and without those that cannot be used.

        Args:
            split: the split.
            class_names: of its task.
            first_id: id of the task's first class.
            used_for: "train", "validation" or "test".

        Raises:
            ValueError: when nothing is left of a class to train or to test on.
            ChangedImage: when a hash that the split has already is not that of its image now.
        """
        checked = self._looked_at(split)
        if split.digests is not None:  # somebody was told of it, in a manifest
            for position, (digest, reason) in enumerate(checked):
                if reason is None:
                    split.check_unchanged(position, digest)
        self.looked_at += len(split)
        bad = [position for position, (_, reason) in enumerate(checked) if reason is not None]
        names = [class_names[label - first_id] for label in split.labels[bad]]
        rows = split.source_rows[bad].tolist()
        skipped = [SkippedImage(row, name, checked[p][1]) for p, row, name in zip(bad, rows, names, strict=True)]
        self.problems += [f"{split.describe(p)}: {image.reason}" for p, image in zip(bad, skipped, strict=True)]
        digests = np.frombuffer(b"".join(digest for digest, _ in checked), dtype=np.uint8).reshape(-1, 32)
        whole = replace(split, digests=digests)
        if not bad or not self.skips:
            return whole
        left = whole.without(bad, skipped)
        lost = sorted(set(names) - {class_names[label - first_id] for label in left.labels})
        if lost and (used_for != "validation" or len(left) == 0):
            raise ValueError(
                f"no {used_for} image of class {', '.join(map(repr, lost))} can be used. {_listed(self.problems)} "
                "Replace them, or leave the class out with class_lists."
            )
        return left

    def task(self, task: Task, used_for: str) -> TaskSplit:
        """As `split`, of a task; what `with_splits` of a stream takes."""
        return self.split(task.splits[used_for], task.class_names, task.class_ids.start, used_for)

    def finish(self, advice: str = "--skip-bad leaves them out."):
        """Refuse images that cannot be used, where they are not to be skipped.

        Args:
            advice: how they can be skipped.

        Raises:
            ValueError: naming row and column of the first ones, and how many there are.
        """
        if self.problems and not self.skips:
            raise ValueError(
                f"{len(self.problems)} of {self.looked_at} images cannot be used. {_listed(self.problems)} Replace "
                f"them or remove the rows. {advice}"
            )

    def _looked_at(self, split: TaskSplit) -> list[tuple[bytes, str | None]]:
        """Hash of each image, and what is wrong with it; of all rows, on every process."""
        mine = range(self.rank, len(split), self.world)
        found = list(self._look_at(split, mine))
        if self.world == 1:
            return found
        everything: list = [None] * len(split)
        for position, result in gather_object(list(zip(mine, found, strict=True))):
            everything[position] = result
        return everything

    def _look_at(self, split: TaskSplit, positions: range) -> Iterator[tuple[bytes, str | None]]:
        mode = split.mode
        bar = tqdm(total=len(positions), desc="checking images", disable=self.disable_progress, leave=False)
        threads = ThreadPoolExecutor(self.num_workers, "smope-check") if self.num_workers else nullcontext()
        with threads as pool:
            look = map if pool is None else pool.map
            for start in range(0, len(positions), _ROWS_PER_READ):
                contents = split.contents(positions[start : start + _ROWS_PER_READ])
                yield from look(lambda content: _look_at(content, mode), contents)
                bar.update(len(contents))
        bar.close()


def _look_at(content: bytes | UnreadableImage, mode: str | None) -> tuple[bytes, str | None]:
    if isinstance(content, UnreadableImage):
        return bytes(32), str(content)
    try:
        check_image(content, mode)
    except UnreadableImage as error:
        return bytes(32), str(error)
    return hashlib.sha256(content).digest(), None


def _listed(problems: list[str]) -> str:
    more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
    return "; ".join(problems[:_MOST_NAMED]) + more + "."


def checked_stream(stream, args, accelerator):
    """A stream whose images were all looked at, as `args.on_bad_image` says; what is skipped is told on the terminal.

    Args:
        stream: a `TaskStream`, or what has its `with_splits`.
        args: [`ContinualTrainingArguments`].
        accelerator: of the run.

    Raises:
        ValueError: naming row and column of images that cannot be used, or a class of which none is left.
    """
    check = ImageCheck(args.on_bad_image, accelerator, args.dataloader_num_workers, args.disable_progress)
    stream = stream.with_splits(check.task)
    check.finish('on_bad_image="skip" (--on-bad-image skip) goes on without them.')
    if check.problems:
        say_once(
            accelerator,
            f"Skipped {len(check.problems)} of {check.looked_at} images: {_listed(check.problems)} {SKIPPED_FILE} in "
            f"{args.output_dir} lists all.",
        )
    return stream


def checked_tests(
    tests: Sequence[TaskSplit | None], class_tasks: Sequence[Sequence[str]], on_bad_image: str
) -> list[TaskSplit | None]:
    """The images of `load_known_tests`, each looked at.

    Raises:
        ValueError: as `ImageCheck`.
    """
    check, checked, first = ImageCheck(on_bad_image), [], 0
    for test, names in zip(tests, class_tasks, strict=True):
        checked.append(None if test is None else check.split(test, names, first, "test"))
        first += len(names)
    check.finish()
    return checked


def write_skipped(output_dir: str | Path, manifest: dict):
    """List what a run skips in a file of its folder; without any there is no such file."""
    images = manifest["information"]["skipped_images"]
    path = Path(output_dir) / SKIPPED_FILE
    if images:
        write_json(path, {"count": len(images), "images": images})
    else:
        path.unlink(missing_ok=True)
