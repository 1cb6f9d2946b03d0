"""Decoded images and global batches: each image once, the same batches on any number of processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from smope_hf.batches import DecodedImages, GlobalBatches, gather_rows, shuffled

PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8})


class Split:
    """As `TaskSplit`, of grey images whose shade is their row; remembers what was decoded."""

    def __init__(self, count):
        self.labels = np.arange(count) % 3
        self.decoded = []

    def __len__(self):
        return len(self.labels)

    def images(self, rows):
        self.decoded += rows
        return [Image.new("RGB", (10, 12), (row, row, row)) for row in rows]


def make_images(count=13, cache_bytes=1e6):
    return DecodedImages(Split(count), PROCESSOR, (8, 8), cache_bytes)


def processes(world):
    return [SimpleNamespace(process_index=rank, num_processes=world) for rank in range(world)]


# ---------------------------------------------------------------------- decoded images


def test_cached_and_uncached_images_are_the_same_and_in_the_order_asked_for():
    cached, uncached = make_images(), make_images(cache_bytes=0)
    assert cached.cache is not None and uncached.cache is None
    for rows in ([4, 0, 12], [0, 1, 2, 4], [7], list(range(13))):
        (pixels, labels, found), expected = cached.__getitems__(rows), uncached.__getitems__(rows)
        assert pixels.shape == (len(rows), 3, 8, 8) and pixels.dtype == torch.uint8
        for ours, theirs in zip((pixels, labels, found), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert pixels[:, 0, 0, 0].tolist() == rows == found.tolist()
        assert labels.tolist() == [row % 3 for row in rows]


def test_cached_images_are_decoded_once():
    images = make_images()
    for rows in ([4, 0], [0, 4, 5], [5, 5, 6], list(range(13)), list(range(13))):
        images.__getitems__(rows)
    assert sorted(images.split.decoded) == list(range(13))


def test_the_cache_respects_its_limit_to_the_byte():
    size = 13 * 3 * 8 * 8
    assert make_images(cache_bytes=size).cache.nbytes == size
    assert make_images(cache_bytes=size - 1).cache is None


def test_images_decoded_by_workers_are_kept_for_the_next_pass():
    """Decoding is the slow part: with workers too it must happen once, not once an epoch."""
    images = make_images()
    for _ in GlobalBatches(images, 5, processes(1)[0], num_workers=1)():
        pass
    assert images.decoded.all()


# ---------------------------------------------------------------------- global batches


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [4, 5, 13, 100])
def test_processes_share_every_batch_without_overlap_and_in_order(world, batch_size):
    order = shuffled(13, 7, "test")
    batches = [GlobalBatches(make_images(), batch_size, process) for process in processes(world)]
    passes = [list(each(order)) for each in batches]
    expected = order.split(batch_size)
    assert {len(steps) for steps in passes} == {len(expected)} == {len(each) for each in batches}
    for step, batch in enumerate(expected):
        together = []
        for each, steps in zip(batches, passes, strict=True):
            pixels, labels, rows, size = steps[step]
            assert size == len(batch) and len(rows) > 0
            assert pixels[:, 0, 0, 0].tolist() == rows.tolist() and labels.tolist() == (rows % 3).tolist()
            share = each.share(size)
            assert len(rows) == max(share, 1)
            together.append(rows[:share])
        assert max(map(len, together)) - min(map(len, together)) <= 1
        assert torch.equal(torch.cat(together), batch)


def test_without_an_order_rows_come_as_they_are():
    rows = torch.cat([rows for _, _, rows, _ in GlobalBatches(make_images(), 4, processes(1)[0])()])
    assert rows.tolist() == list(range(13))


def test_workers_give_the_same_batches():
    order = shuffled(13, 0, "test")
    alone, helped = (list(GlobalBatches(make_images(), 5, processes(1)[0], number)(order)) for number in (0, 1))
    for ours, theirs in zip(helped, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True)) and ours[3] == theirs[3]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_gathering_puts_the_global_batch_together_again(world):
    """`gather` hands every process everybody's rows; here the parts of all processes are played in turn."""
    for batch_size in (1, 3, 4, 7):
        batch = torch.arange(10, 10 + batch_size)
        parts = [part if len(part) else batch[:1] for part in batch.tensor_split(world)]
        sent = []
        for process, part in zip(processes(world), parts, strict=True):
            process.gather = lambda tensor: (sent.append(tensor), torch.cat([tensor] * world))[1]
            gather_rows(process, part.unsqueeze(1), batch_size)
        for process, part in zip(processes(world), parts, strict=True):
            process.gather = lambda tensor: torch.cat(sent)
            assert torch.equal(gather_rows(process, part.unsqueeze(1), batch_size), batch.unsqueeze(1))


def test_shuffles_are_permutations_that_depend_on_seed_and_purpose_alone():
    torch.manual_seed(0)
    first = shuffled(50, 1, 0, "sparse", 3)
    torch.manual_seed(1)
    assert torch.equal(first, shuffled(50, 1, 0, "sparse", 3)) and first.sort().values.tolist() == list(range(50))
    others = [shuffled(50, 2, 0, "sparse", 3), shuffled(50, 1, 1, "sparse", 3), shuffled(50, 1, 0, "dense", 3)]
    assert not any(torch.equal(first, other) for other in [*others, shuffled(50, 1, 0, "sparse", 4)])
