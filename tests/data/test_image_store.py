"""Each image of a run is decoded once, in memory or in files, and the results are the same."""

import collections
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_same_tensors, save_backbone, tiny_stream, tiny_trainer
from transformers import ViTImageProcessorPil

from smope_hf.data.image_store import DecodedImages, ImageStore
from smope_hf.data.split import TaskSplit
from smope_hf.training.routing_recorder import RoutingRecorder
from smope_hf.training.run_lock import LOCK_FILE
from smope_hf.training.yardsticks import run_yardsticks

PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8})
BYTES = 3 * 8 * 8  # of one decoded image


class Split:
    """As `TaskSplit`, of grey images whose shade is their row; remembers what was decoded."""

    def __init__(self, count):
        self.labels = np.arange(count) % 3
        self.decoded = []

    def __len__(self):
        return len(self.labels)

    def images(self, rows):
        self.decoded += list(rows)
        return [Image.new("RGB", (10, 12), (int(row),) * 3) for row in rows]


def make_store(folder, budget):
    return ImageStore(PROCESSOR, (8, 8), budget, folder)


def in_file(images: DecodedImages) -> bool:
    return isinstance(images.pixels, np.memmap)


# ---------------------------------------------------------------------- one split


def test_images_in_memory_in_a_file_and_in_neither_are_the_same_and_in_the_order_asked_for(tmp_path):
    memory, disk = (make_store(tmp_path, budget).of(Split(13)) for budget in (13 * BYTES, 0))
    assert not in_file(memory) and in_file(disk)
    for rows in ([4, 0, 12], [0, 1, 2, 4], [7], [5, 5, 6], list(range(13))):
        expected = DecodedImages(Split(13), PROCESSOR).batch(torch.tensor(rows))
        for images in (memory, disk):
            pixels, labels, found = images.batch(torch.tensor(rows))
            assert pixels.shape == (len(rows), 3, 8, 8) and pixels.dtype == torch.uint8
            assert pixels[:, 0, 0, 0].tolist() == rows == found.tolist()
            assert labels.tolist() == [row % 3 for row in rows]
            assert torch.equal(pixels, expected[0])


@pytest.mark.parametrize("budget", [0, 1e6])
def test_an_image_is_decoded_once(budget, tmp_path):
    split = Split(13)
    images = make_store(tmp_path, budget).of(split)
    for rows in ([4, 0], [0, 4, 5], [5, 5, 6], list(range(13)), list(range(13))):
        images.batch(torch.tensor(rows))
    assert sorted(split.decoded) == list(range(13))


def test_a_batch_does_not_change_with_what_is_kept(tmp_path):
    images = make_store(tmp_path, 0).of(Split(3))
    pixels = images.batch(torch.arange(3))[0]
    pixels.zero_()
    assert images.batch(torch.arange(3))[0][:, 0, 0, 0].tolist() == [0, 1, 2]


# ---------------------------------------------------------------------- the store of a run


def test_the_budget_holds_for_all_splits_together_and_to_the_byte(tmp_path):
    store = make_store(tmp_path, 20 * BYTES)
    splits = [Split(count) for count in (12, 9, 8, 1)]
    assert [in_file(store.of(split)) for split in splits] == [False, True, False, True]
    assert store.memory_in_use() == 20 * BYTES
    store.release(splits[0])
    assert store.memory_in_use() == 8 * BYTES
    assert not in_file(store.of(Split(12))) and in_file(store.of(Split(1)))


def test_a_split_has_the_same_images_until_it_is_released(tmp_path):
    store, split = make_store(tmp_path, 1e6), Split(4)
    first = store.of(split)
    assert store.of(split) is first
    store.release(split)
    assert store.of(split) is not first


def test_files_have_no_name_and_their_space_comes_back(tmp_path):
    """So a killed run leaves nothing behind, and two runs in one folder cannot meet in a file."""
    folder = tmp_path / "made" / "here"
    stores = [make_store(folder, 0) for _ in range(2)]
    splits = [Split(5), Split(5)]
    shades = [np.full((5, 3, 8, 8), value, dtype=np.uint8) for value in (10, 200)]
    for store, split, shade in zip(stores, splits, shades):
        store.of(split).pixels[:] = shade
    assert list(folder.iterdir()) == []
    for store, split, shade in zip(stores, splits, shades):
        assert np.array_equal(store.of(split).pixels, shade)
    if Path("/proc/self/maps").exists():
        assert str(folder) in Path("/proc/self/maps").read_text()
        for store in stores:
            store.clear()
        assert str(folder) not in Path("/proc/self/maps").read_text()


def test_a_disk_without_room_is_told_of_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5 * BYTES - 1))
    with pytest.raises(OSError, match=r"image_cache_gib = 0 .*Set image_cache_dir"):
        make_store(tmp_path, 0).of(Split(5))


# ---------------------------------------------------------------------- a whole run

GIB = 2**30
LITTLE = 30 * 3 * 16 * 16 / GIB  # memory for 30 images: some splits fit, others do not


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def plenty(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plenty")
    tiny_trainer(backbone, folder).train()
    return folder


@pytest.mark.parametrize(
    "settings",
    [{"image_cache_gib": 0}, {"image_cache_gib": LITTLE}, {"image_cache_gib": LITTLE, "dataloader_num_workers": 3}],
    ids=["all in files", "some in files", "threads"],
)
def test_every_image_is_decoded_once_in_a_run_and_nothing_else_changes(
    settings, backbone, plenty, tmp_path, monkeypatch
):
    """Yardsticks, epochs, statistics, evaluations after each task and the record of routing share what is decoded."""
    counts = collections.Counter()
    decode = TaskSplit._decode

    def counted(split, index, encoded):
        counts[split.source_split, int(split.source_rows[index])] += 1
        return decode(split, index, encoded)

    monkeypatch.setattr(TaskSplit, "_decode", counted)
    stream = tiny_stream()
    trainer = tiny_trainer(backbone, tmp_path / "run", stream, callbacks=[RoutingRecorder()], **settings)
    trainer.yardsticks = run_yardsticks(trainer.model, trainer.stream, trainer.decoded, trainer.passes)
    trainer.train()
    images = sum(len(part) for task in stream for part in (task.train, task.test))
    assert len(counts) == images and set(counts.values()) == {1}
    for task in ("task-01", "task-03"):
        assert_same_tensors(tmp_path / "run" / task, plenty / task)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith((".", "tmp"))]


def test_files_go_where_they_are_told_to(backbone, tmp_path):
    trainer = tiny_trainer(backbone, tmp_path / "run", image_cache_gib=0, image_cache_dir=str(tmp_path / "elsewhere"))
    assert in_file(trainer.decoded(trainer.stream[0].train))
    assert (tmp_path / "elsewhere").is_dir() and [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


# ---------------------------------------------------------------------- more images than memory

LARGER = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from types import SimpleNamespace
from transformers import ViTImageProcessorPil
from smope_hf.data.batches import GlobalBatches, shuffled
from smope_hf.data.image_store import ImageStore

SIZE, COUNT = 128, 4000  # 187 MiB decoded

class Split:
    labels = np.arange(COUNT)
    def __len__(self):
        return COUNT
    def images(self, rows):
        return [Image.new("RGB", (SIZE, SIZE), (int(row) % 251, 0, 0)) for row in rows]

torch.set_num_threads(1)
store = ImageStore(ViTImageProcessorPil(do_resize=False), (SIZE, SIZE), float(sys.argv[2]), sys.argv[1])
in_use = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
limit = in_use * 1024 + 64 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
batches = GlobalBatches(store.of(Split()), 16, SimpleNamespace(process_index=0, num_processes=1))
for epoch in range(2):
    order = shuffled(COUNT, 0, epoch)
    seen = []
    for pixels, labels, rows, _ in batches(order):
        assert pixels[:, 0, 5, 5].tolist() == (rows % 251).tolist()
        seen.append(rows)
    assert torch.equal(torch.cat(seen), order)
print("all seen twice")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on memory is one of Linux")
@pytest.mark.slow
def test_a_data_set_larger_than_memory_works(tmp_path):
    """64 MiB for 187 MiB of images: with the default budget there is no room for them, in files there is."""
    script = tmp_path / "larger.py"
    script.write_text(LARGER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}

    def run(budget):
        command = [sys.executable, str(script), str(tmp_path), str(budget)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)

    done = run(0)
    assert done.returncode == 0 and done.stdout == "all seen twice\n", done.stderr
    refused = run(4 * GIB)
    assert refused.returncode != 0 and "MemoryError" in refused.stderr
