"""One task and its images, decoded only when asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class TaskSplit:
    """The images of one task for training, validation or testing.

    Args:
        dataset: Selection of the rows, with all columns.
        labels: Class id of each row, int64 (n,). Class ids follow the order in which the classes appear in the tasks.
        image_column: Name of the image column.
        source_split: Name of the data set's split that the rows come from.
        source_rows: Row of each image in that split, int64 (n,).
    """

    dataset: datasets.Dataset
    labels: np.ndarray
    image_column: str
    source_split: str
    source_rows: np.ndarray

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
            ValueError: If an image cannot be decoded.
        """
        indices = self._positions(indices)
        return [self._decode(int(index), encoded) for index, encoded in zip(indices, self.encoded(indices))]

    def encoded(self, indices: np.ndarray) -> list[dict[str, Any] | None]:
        """What the data set stores for some images: {"bytes": ..., "path": ...}, one of them possibly None."""
        if len(indices) == 0:
            return []
        return self._arrow[indices.tolist()][self.image_column].to_pylist()

    def describe(self, index: int) -> str:
        """Where an image comes from, for error messages."""
        return f"row {self.source_rows[index]} of split {self.source_split!r}, column {self.image_column!r}"

    @cached_property
    def _arrow(self) -> datasets.Dataset:
        return self.dataset.select_columns([self.image_column]).with_format("arrow")

    @cached_property
    def _decoder(self) -> datasets.Image:
        return datasets.Image(mode=self.dataset.features[self.image_column].mode)

    def _positions(self, indices: Sequence[int]) -> np.ndarray:
        positions = np.asarray(indices)
        if positions.size == 0:
            return np.empty(0, dtype=np.int64)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise ValueError(f"indices must be a sequence of integers, not {indices!r}")
        if positions.min() < 0 or positions.max() >= len(self):
            raise IndexError(f"indices from {positions.min()} to {positions.max()}: 0 to {len(self) - 1} are allowed")
        return positions.astype(np.int64)

    def _decode(self, index: int, encoded: dict[str, Any] | None) -> Image.Image:
        # Decoders raise many kinds of error for a broken file: OSError, ValueError, SyntaxError, struct.error, ...
        try:
            if encoded is None:
                raise ValueError("the row holds no image")
            return to_rgb(self._decoder.decode_example(encoded))
        except Exception as error:
            raise ValueError(f"{self.describe(index)}: the image cannot be decoded ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip 16-bit grey values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"PIL mode {image.mode!r} has no fixed range of values; store 8-bit or 16-bit images")
    return image.convert("RGB")


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
