"""Batches of decoded images, the same on one process or on several."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .augmentation import to_uint8
from .seeding import derive_generator
from .task_split import TaskSplit


class DecodedImages(Dataset):
    """The images of one split in the image processor's geometry, each decoded once while memory allows.

    Args:
        split: images and labels.
        image_processor: resizes (and crops) to the backbone's size.
        size: (height, width) that it gives.
        cache_bytes: memory to keep decoded images in; a split that does not fit is decoded again each time.
    """

    def __init__(self, split: TaskSplit, image_processor, size: tuple[int, int], cache_bytes: float):
        self.split, self.image_processor = split, image_processor
        self.labels = torch.from_numpy(np.asarray(split.labels, dtype=np.int64))
        shape = (len(split), 3, *size)
        self.cache = torch.empty(shape, dtype=torch.uint8) if math.prod(shape) <= cache_bytes else None
        self.decoded = torch.zeros(len(split), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.split)

    def share_memory(self):
        """Let worker processes fill the same cache; without it each would decode into a copy that is lost."""
        if self.cache is not None:
            self.cache.share_memory_()
            self.decoded.share_memory_()

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, h, w) uint8, class ids (B,), rows (B,)."""
        rows = torch.as_tensor(rows)
        if self.cache is None:
            images = self._decode(rows)
        else:
            missing = rows[~self.decoded[rows]]
            if len(missing):
                self.cache[missing] = self._decode(missing)
                self.decoded[missing] = True
            images = self.cache[rows]
        return images, self.labels[rows], rows

    def _decode(self, rows: Tensor) -> Tensor:
        return to_uint8(self.image_processor, self.split.images(rows.tolist()))


def shuffled(num_rows: int, seed: int, *purpose: str | int) -> Tensor:
    """A permutation of the rows that depends on the seed and the purpose alone."""
    return torch.randperm(num_rows, generator=derive_generator(seed, "shuffle", *purpose))


class GlobalBatches:
    """Cuts rows into global batches and gives each process its share of every one.

    The global batches do not depend on the number of processes. A process without a share of a small last batch gets
    one row of it with weight 0, so that all processes take the same number of steps.

    Args:
        dataset: the images.
        batch_size: rows of a global batch.
        accelerator: tells the process its rank and the number of processes.
        num_workers: processes that decode.
    """

    def __init__(self, dataset: DecodedImages, batch_size: int, accelerator: Accelerator, num_workers: int = 0):
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        if num_workers:
            dataset.share_memory()

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __call__(self, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Pass over the rows in the given order (default as they are).

        Yields:
            This process's images, labels and rows, and the size of the whole global batch. Where the global batch is
            smaller than the number of processes, a process may get a row whose share is 0: see `share`.
        """
        order = torch.arange(len(self.dataset)) if order is None else order
        batches = order.split(self.batch_size)
        loader = DataLoader(
            self.dataset,
            batch_sampler=[self._mine(batch).tolist() for batch in batches],
            num_workers=self.num_workers,
            collate_fn=_identity,
        )
        for batch, (images, labels, rows) in zip(batches, loader, strict=True):
            yield images, labels, rows, len(batch)

    def _mine(self, batch: Tensor) -> Tensor:
        mine = batch.tensor_split(self.world)[self.rank]
        return mine if len(mine) else batch[:1]

    def share(self, batch_size: int) -> int:
        """How many rows of a global batch of this size belong to this process."""
        return len(torch.arange(batch_size).tensor_split(self.world)[self.rank])


def _identity(batch):
    return batch


def gather_rows(accelerator: Accelerator, tensor: Tensor, batch_size: int) -> Tensor:
    """Put a global batch together again from every process's rows: (B / processes, ...) -> (B, ...), in order."""
    world = accelerator.num_processes
    if world == 1:
        return tensor
    sizes = [len(part) for part in torch.arange(batch_size).tensor_split(world)]
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: sizes[accelerator.process_index]] = tensor[: sizes[accelerator.process_index]]
    parts = accelerator.gather(padded.contiguous()).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
