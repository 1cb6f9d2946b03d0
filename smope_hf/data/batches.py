"""Global batches of decoded images, the same on one process or on several."""

import math
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from .background import in_background
from .image_store import DecodedImages
from .seeding import derive_generator


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
        num_workers: threads that decode side by side; at 0 the one that prepares the next batch decodes too.
    """

    def __init__(self, dataset: DecodedImages, batch_size: int, accelerator: Accelerator, num_workers: int = 0):
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __call__(self, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Pass over the rows in the given order (default as they are), the next batch being prepared meanwhile.

        Yields:
            This process's images, labels and rows, and the size of the whole global batch. Where the global batch is
            smaller than the number of processes, a process may get a row whose share is 0: see `share`.
        """
        order = torch.arange(len(self.dataset)) if order is None else order
        return in_background(self._prepare(order.split(self.batch_size)))

    def _prepare(self, batches: tuple[Tensor, ...]) -> Generator[tuple[Tensor, Tensor, Tensor, int], None, None]:
        pool = ThreadPoolExecutor(self.num_workers, "smope-decode") if self.num_workers else None
        with pool or nullcontext():
            for batch in batches:
                yield *self.dataset.batch(self._mine(batch), pool, max(self.num_workers, 1)), len(batch)

    def _mine(self, batch: Tensor) -> Tensor:
        mine = batch.tensor_split(self.world)[self.rank]
        return mine if len(mine) else batch[:1]

    def share(self, batch_size: int) -> int:
        """How many rows of a global batch of this size belong to this process."""
        return len(torch.arange(batch_size).tensor_split(self.world)[self.rank])


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
