"""Images of a task: decoded on demand, row by row, and named when they are broken."""

import io
import pickle

import datasets
import numpy as np
import pytest
import torch
from datasets import DatasetDict
from digit_data import NAMES, TRAIN, change, digits, make
from PIL import Image

from smope_hf.data.tasks import TaskStream


@pytest.fixture
def data() -> DatasetDict:
    return make()


def contents(split) -> list[bytes]:
    return [encoded["bytes"] for encoded in split.encoded(np.arange(len(split)))]


def test_nothing_is_decoded_or_copied_at_construction(data, tmp_path, monkeypatch):
    data.save_to_disk(str(tmp_path / "saved"))
    saved = datasets.load_from_disk(str(tmp_path / "saved"))

    def refuse(*args, **kwargs):
        raise AssertionError("an image is decoded")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    stream = TaskStream(saved, num_tasks=5, validation_fraction=0.25, max_test_samples_per_class=2)
    stream.manifest()
    for task in stream:
        for split, source in ((task.train, "train"), (task.validation, "train"), (task.test, "test")):
            blocks = [
                part.data.column("image").chunk(0).field("bytes").buffers()[2]
                for part in (split.dataset, saved[source])
            ]
            assert blocks[0].address == blocks[1].address
            assert split.dataset.cache_files == saved[source].cache_files


def test_images_are_those_of_their_rows(data):
    split = TaskStream(data, num_tasks=5)[2].train
    for indices in ([5, 0, 5], np.array([1, 2]), torch.tensor([3]), range(4), []):
        images = split.images(indices)
        assert len(images) == len(indices)
        for index, image in zip(indices, images):
            expected = Image.open(io.BytesIO(digits()["train"]["image"][split.source_rows[int(index)]]))
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))
    for wrong in ([-1], [len(split)]):
        with pytest.raises(IndexError, match=f"0 to {len(split) - 1}"):
            split.images(wrong)
    for wrong in ([True, False], [0.5], [[0]]):
        with pytest.raises(ValueError, match="sequence of integers"):
            split.images(wrong)


def test_a_users_transform_or_filter_does_not_change_images(data):
    expected = TaskStream(data, num_tasks=5)[0].train
    for disguised in (data.with_transform(lambda batch: {"nothing": batch["label"]}), data.with_format("numpy")):
        split = TaskStream(disguised, num_tasks=5)[0].train
        assert split.images([3])[0].tobytes() == expected.images([3])[0].tobytes()
    turned = DatasetDict({name: part.select(range(len(part) - 1, -1, -1)) for name, part in data.items()})
    split = TaskStream(turned, num_tasks=5)[0].train
    assert sorted(contents(split)) == sorted(contents(expected))
    last = len(data["train"]) - 1
    assert split.images([0])[0].tobytes() == expected.images([len(expected) - 1])[0].tobytes()
    assert last - split.source_rows[0] == expected.source_rows[-1]


@pytest.mark.parametrize("broken", [b"no image", None, "truncated"])
def test_a_broken_image_is_named_when_it_is_decoded(data, broken):
    row = 25
    stored = digits()["train"]["image"][row][:60] if broken == "truncated" else broken
    spoilt = change(data, "train", row, image=stored if stored is None else {"bytes": stored, "path": None})
    stream = TaskStream(spoilt, num_tasks=5)
    task = next(task for task in stream if row in task.train.source_rows)
    index = int(np.flatnonzero(task.train.source_rows == row)[0])
    other = (index + 1) % len(task.train)
    task.train.images([other])
    with pytest.raises(ValueError, match=f"row {row} of split 'train', column 'image': the image cannot be decoded"):
        task.train.images([other, index])


def test_images_come_upright_in_eight_bit_rgb(data):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned, palette, deep, real = (io.BytesIO() for _ in range(4))
    Image.fromarray(pixels).save(turned, "PNG", exif=exif)
    Image.fromarray(pixels).quantize(16).save(palette, "PNG")
    Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)).save(deep, "PNG")
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(real, "TIFF")
    for row, file in enumerate((turned, palette, deep, real)):
        data = change(data, "train", row, image={"bytes": file.getvalue(), "path": None})
    stream = TaskStream(data, class_lists=[NAMES])
    rows = stream[0].train.source_rows
    assert np.array_equal(rows, np.arange(10 * TRAIN))
    upright, from_palette, from_deep = stream[0].train.images([0, 1, 2])
    assert np.array_equal(np.asarray(upright), np.rot90(pixels, -1))
    assert from_palette.mode == "RGB" and from_palette.size == (4, 2)
    assert np.asarray(from_deep)[0, :, 0].tolist() == [0, 1, 255]
    with pytest.raises(ValueError, match="row 3 .*'F' has no fixed range"):
        stream[0].train.images([3])


def test_a_split_can_be_sent_to_a_worker_process(data):
    split = TaskStream(data, num_tasks=5)[1].train
    split.images([0])
    copy = pickle.loads(pickle.dumps(split))
    assert copy.images([4])[0].tobytes() == split.images([4])[0].tobytes()
    assert np.array_equal(copy.labels, split.labels)
