"""Global batches: the same on any number of processes and threads."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from smope_hf.data.batches import GlobalBatches, gather_rows, shuffled
from smope_hf.data.image_store import DecodedImages

PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8})


class Split:
    """As `TaskSplit`, of grey images whose shade is their row."""

    def __init__(self, count):
        self.labels = np.arange(count) % 3

    def __len__(self):
        return len(self.labels)

    def images(self, rows):
        return [Image.new("RGB", (10, 12), (row, row, row)) for row in rows]


def make_images(count=13):
    return DecodedImages(Split(count), PROCESSOR, np.empty((count, 3, 8, 8), dtype=np.uint8))


def processes(world):
    return [SimpleNamespace(process_index=rank, num_processes=world) for rank in range(world)]


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


@pytest.mark.parametrize("number", [1, 3])
def test_threads_that_decode_give_the_same_batches(number):
    order = shuffled(13, 0, "test")
    alone, helped = (list(GlobalBatches(make_images(), 5, processes(1)[0], count)(order)) for count in (0, number))
    for ours, theirs in zip(helped, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True)) and ours[3] == theirs[3]


@pytest.mark.parametrize("number", [0, 2])
def test_an_image_that_cannot_be_decoded_stops_the_pass_with_its_error(number):
    images = make_images()
    decode = images.split.images

    def broken(rows):
        if 7 in rows:
            raise ValueError("row 7 cannot be decoded")
        return decode(rows)

    images.split.images = broken
    found = []
    with pytest.raises(ValueError, match="row 7 cannot be decoded"):
        for _, _, rows, _ in GlobalBatches(images, 4, processes(1)[0], number)():
            found += rows.tolist()
    assert found == [0, 1, 2, 3]


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
