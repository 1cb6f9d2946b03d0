"""The decoded images of a run: each decoded once, in memory up to a budget and in files beyond it."""

import math
import os
import shutil
import tempfile
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..storage.output_check import check_room
from .augmentation import to_uint8
from .split import TaskSplit


class DecodedImages:
    """The images of one split in the image processor's geometry.

    Args:
        split: images and labels.
        image_processor: resizes (and crops) to the backbone's size.
        pixels: uint8 (n, 3, h, w) to keep decoded images in, of any content; default none, for images used once.
    """

    def __init__(self, split: TaskSplit, image_processor, pixels: np.ndarray | None = None):
        self.split, self.image_processor, self.pixels = split, image_processor, pixels
        self.labels = torch.from_numpy(np.asarray(split.labels, dtype=np.int64))
        self.decoded = np.zeros(len(split), dtype=bool)

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, rows: Tensor, pool: Executor | None = None, workers: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, h, w) uint8, class ids (B,), and the rows (B,) asked for.

        Args:
            rows: positions in the split.
            pool: decodes parts of the batch side by side.
            workers: number of parts.
        """
        wanted = rows.numpy()
        if self.pixels is None:
            images = self._decode(wanted, pool, workers)
        else:
            missing = np.unique(wanted[~self.decoded[wanted]])
            if len(missing):
                self.pixels[missing] = self._decode(missing, pool, workers)
                self.decoded[missing] = True
            images = self.pixels[wanted]
        return torch.from_numpy(images), self.labels[rows], rows

    def _decode(self, rows: np.ndarray, pool: Executor | None, workers: int) -> np.ndarray:
        parts = [part for part in np.array_split(rows, workers) if len(part)]
        decode = map if pool is None else pool.map
        return np.concatenate(list(decode(self._decode_part, parts)))

    def _decode_part(self, rows: np.ndarray) -> np.ndarray:
        return to_uint8(self.image_processor, self.split.images(rows)).numpy()


class ImageStore:
    """Decoded images of the splits of a run.

    Files have no name: the system takes them back when the process ends in whatever way, and no other process can
    write over them. Their whole size is taken from the disk at once, as a full disk could not be told of later.

    Args:
        image_processor: resizes (and crops) to the backbone's size.
        size: (height, width) that it gives.
        budget: bytes of memory for all splits together; a split that does not fit goes to a file.
        folder: for those files; made where it is missing.
    """

    def __init__(self, image_processor, size: tuple[int, int], budget: float, folder: str | os.PathLike):
        self.image_processor, self.size, self.budget, self.folder = image_processor, size, budget, Path(folder)
        self._images: dict[TaskSplit, DecodedImages] = {}

    def of(self, split: TaskSplit) -> DecodedImages:
        """The images of a split, the same object each time until it is released.

        Raises:
            OSError: when neither memory nor disk has room; the message says what to set.
        """
        if split not in self._images:
            shape = (len(split), 3, *self.size)
            fits = self.memory_in_use() + math.prod(shape) <= self.budget
            pixels = np.empty(shape, dtype=np.uint8) if fits else self._file(shape)
            self._images[split] = DecodedImages(split, self.image_processor, pixels)
        return self._images[split]

    def check_room(self, images: int):
        """Find out before any is decoded whether memory and disk have room for so many images at one time.

        Raises:
            OSError: where they do not; the message says what to set.
        """
        beyond = images * math.prod((3, *self.size)) - self.budget
        if beyond > 0:
            check_room(
                self.folder, int(beyond), f"What image_cache_gib = {self.budget / 2**30:g} leaves of {images} images"
            )

    def memory_in_use(self) -> int:
        """Bytes of the splits that are kept in memory."""
        kept = (images.pixels for images in self._images.values())
        return sum(pixels.nbytes for pixels in kept if not isinstance(pixels, np.memmap))

    def release(self, split: TaskSplit):
        """Forget the images of a split, and take back their memory or their file."""
        self._images.pop(split, None)

    def clear(self):
        """Forget all images."""
        self._images.clear()

    def _file(self, shape: tuple[int, ...]) -> np.memmap:
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = math.prod(shape), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"{needed / 2**30:.2f} GiB of decoded images fit neither into image_cache_gib = "
                f"{self.budget / 2**30:g} of memory nor onto the disk of {self.folder}, which has {free / 2**30:.2f} "
                "GiB free. Set image_cache_dir to a folder on a larger disk, or image_cache_gib higher."
            )
        with tempfile.TemporaryFile(dir=self.folder) as file:  # the mapping keeps it
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
