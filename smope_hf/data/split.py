"""One task and its images, decoded only when asked for."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import datasets
import fsspec
import numpy as np
from PIL import Image

from ..storage.foreign_files import read_bytes
from .image_reading import ChangedImage, UnreadableImage, decode_image, reason_of

_ROWS_PER_READ = 32
_ADVICE = (
    "Nothing that was learned before is lost. Put the image back as it was and go on (a run with --resume, in Python "
    "resume=True), or begin anew with the images as they are (a run in another output_dir)."
)


@dataclass(frozen=True)
class SkippedImage:
    """A row that is left out since its image cannot be used.

    Args:
        row: of the data set's split.
        class_name: of its class.
        reason: what is wrong with it.
    """

    row: int
    class_name: str
    reason: str


@dataclass(frozen=True, eq=False)
class TaskSplit:
    """The images of one task for training, validation or testing.

    Args:
        dataset: Selection of the rows, with all columns.
        labels: Class id of each row, int64 (n,). Class ids follow the order in which the classes appear in the tasks.
        image_column: Name of the image column.
        source_split: Name of the data set's split that the rows come from.
        source_rows: Row of each image in that split, int64 (n,).
        digests: SHA-256 of each encoded image, uint8 (n, 32), where they are known already: `images` then takes no
            other content. Default: not known.
        skipped: Rows that would be here as well, had their images been fit to use. Default: none.
    """

    dataset: datasets.Dataset
    labels: np.ndarray
    image_column: str
    source_split: str
    source_rows: np.ndarray
    digests: np.ndarray | None = None
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Sequence[int]) -> list[Image.Image]:
        """Decode some images. A format or transform set on the data set is not applied.

        Args:
            indices: Positions in this split, 0 to len - 1, in any order; a list, an integer array or a tensor.

        Returns:
            The images in RGB, upright according to their EXIF orientation.

        Raises:
            IndexError: If a position is outside the split.
            ChangedImage: If an image is not the one any more whose hash is known.
            ValueError: If an image cannot be decoded.
        """
        indices = self._positions(indices)
        return [self._decode(int(index), encoded) for index, encoded in zip(indices, self.encoded(indices))]

    def encoded(self, indices: np.ndarray) -> list[dict[str, Any] | None]:
        """What the data set stores for some images: {"bytes": ..., "path": ...}, one of them possibly None."""
        if len(indices) == 0:
            return []
        return self._arrow[indices.tolist()][self.image_column].to_pylist()

    def contents(self, indices: Sequence[int]) -> list[bytes | UnreadableImage]:
        """The encoded images at some positions, read from their files where the data set names files.

        Returns:
            The files' contents; in place of one that cannot be read, the error that says why.
        """
        return [_content_or_error(encoded) for encoded in self.encoded(np.asarray(indices))]

    def hashes(self) -> np.ndarray:
        """SHA-256 of each encoded image, uint8 (n, 32); where they are not known yet, all are read once, and kept.

        Raises:
            ValueError: If an image file cannot be read.
        """
        if self.digests is None:
            found = b"".join(map(self._hash, range(len(self)), self._all_contents()))
            object.__setattr__(self, "digests", np.frombuffer(found, dtype=np.uint8).reshape(-1, 32))
        return self.digests

    def check_unchanged(self, index: int, found: bytes, problem: str | None = None):
        """Refuse an image that is not the one whose hash is known.

        Args:
            index: Position in this split.
            found: SHA-256 of what is read of it now; empty where it cannot be read.
            problem: Why it cannot be read.

        Raises:
            ChangedImage: naming row and file, and what to do.
        """
        expected = self.digests[index].tobytes()
        if found == expected:
            return
        encoded = self.encoded(np.array([index]))[0]
        file = f", file {encoded['path']}" if encoded and encoded["bytes"] is None and encoded["path"] else ""
        now = problem or f"its SHA-256 was {expected.hex()[:16]}... and is {found.hex()[:16]}..."
        raise ChangedImage(
            f"{self.describe(index)}{file}: the image has changed since all images were looked at ({now}), and the "
            f"manifest tells of the one before. {_ADVICE}"
        )

    def without(self, positions: Sequence[int], skipped: Sequence[SkippedImage]) -> "TaskSplit":
        """The split without some of its rows, and the reasons why."""
        kept = np.delete(np.arange(len(self)), positions)
        return replace(
            self,
            dataset=self.dataset.select(kept),
            labels=self.labels[kept],
            source_rows=self.source_rows[kept],
            digests=None if self.digests is None else self.digests[kept],
            skipped=(*self.skipped, *skipped),
        )

    def describe(self, index: int) -> str:
        """Where an image comes from, for error messages."""
        return f"row {self.source_rows[index]} of split {self.source_split!r}, column {self.image_column!r}"

    @cached_property
    def _arrow(self) -> datasets.Dataset:
        return self.dataset.select_columns([self.image_column]).with_format("arrow")

    @property
    def mode(self) -> str | None:
        """Pillow's mode that the image column asks for; None where it takes images as they are."""
        return self.dataset.features[self.image_column].mode

    def _positions(self, indices: Sequence[int]) -> np.ndarray:
        positions = np.asarray(indices)
        if positions.size == 0:
            return np.empty(0, dtype=np.int64)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise ValueError(f"indices must be a sequence of integers, not {indices!r}")
        if positions.min() < 0 or positions.max() >= len(self):
            raise IndexError(f"indices from {positions.min()} to {positions.max()}: 0 to {len(self) - 1} are allowed")
        return positions.astype(np.int64)

    def _all_contents(self) -> Iterator[bytes | UnreadableImage]:
        for start in range(0, len(self), _ROWS_PER_READ):
            yield from self.contents(range(start, min(start + _ROWS_PER_READ, len(self))))

    def _hash(self, index: int, content: bytes | UnreadableImage) -> bytes:
        if isinstance(content, UnreadableImage):
            raise ValueError(f"{self.describe(index)}: {content}") from content
        return hashlib.sha256(content).digest()

    def _decode(self, index: int, encoded: dict[str, Any] | None) -> Image.Image:
        try:
            content = _content(encoded)
            if self.digests is not None:  # of the very bytes that are decoded
                self.check_unchanged(index, hashlib.sha256(content).digest())
            return decode_image(content, self.mode)
        except UnreadableImage as error:
            if self.digests is not None:
                self.check_unchanged(index, b"", str(error))
            raise ValueError(f"{self.describe(index)}: the image cannot be decoded ({error})") from error


def _content(encoded: dict[str, Any] | None) -> bytes:
    if encoded is not None and encoded["bytes"] is not None:
        return encoded["bytes"]
    if encoded is None or encoded["path"] is None:
        raise UnreadableImage("the row holds no image")
    try:
        # Archives on the Hub stay where they are ("zip://a.png::hf://..."); everything else is a local file.
        if "://" not in encoded["path"]:
            return read_bytes(encoded["path"])
        with fsspec.open(encoded["path"], "rb") as file:
            return file.read()
    except OSError as error:
        raise UnreadableImage(f"the image file cannot be read: {reason_of(error)}") from error


def _content_or_error(encoded: dict[str, Any] | None) -> bytes | UnreadableImage:
    try:
        return _content(encoded)
    except UnreadableImage as error:
        return error


@dataclass(frozen=True, eq=False)
class Task:
    """One task: some classes and their images.

    Args:
        index: Position in the stream, from 0.
        class_names: Names of its classes, in the order of their ids.
        class_ids: Ids of its classes: consecutive, after those of the task before.
        train: Training images, at least one per class; None for a task that a checkpoint learned in an earlier run.
        validation: Validation images, or None where none are set aside.
        test: Test images, at least one per class; None where there are none, for classes added to a model.
    """

    index: int
    class_names: tuple[str, ...]
    class_ids: range
    train: TaskSplit | None
    validation: TaskSplit | None
    test: TaskSplit | None

    @property
    def splits(self) -> dict[str, TaskSplit]:
        """Those of "train", "validation" and "test" that there are."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def with_splits(self, change: Callable[["Task", str], TaskSplit]) -> "Task":
        """The same task with each of its splits replaced: `change(task, name)` gives what stands in its place."""
        return replace(self, **{name: change(self, name) for name in self.splits})


def check_tests(stream: Sequence):
    """Refuse tasks without test images, for a run that measures itself from its first task on.

    Args:
        stream: the [`Task`]s.

    Raises:
        ValueError: naming the first task that has none.
    """
    lacking = [task.index + 1 for task in stream if task.test is None or len(task.test) == 0]
    if lacking:
        raise ValueError(
            f"Task {lacking[0]} has no test images, and a run from the first task on measures its accuracy on every "
            "task. Give the data a split to test on, or set test_fraction (for example 0.2). allow_no_test is for new "
            "classes of a model that has learned others: ContinualTrainer.from_checkpoint."
        )
