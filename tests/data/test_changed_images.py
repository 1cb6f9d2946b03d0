"""What is decoded is what was hashed: an image that changes during a run stops it, and is named."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, DatasetDict, Features
from digit_data import NAMES, digits, png
from runs import (  # noqa: F401 (of the fixture)
    assert_same_tensors,
    read,
    save_backbone,
    tiny_trainer,
)
from transformers import ViTImageProcessorPil

from smope_hf.cli.predict import check_images, read_image
from smope_hf.data.batches import GlobalBatches
from smope_hf.data.continued_stream import ContinuedStream
from smope_hf.data.image_check import ImageCheck, checked_tests
from smope_hf.data.image_reading import ChangedImage
from smope_hf.data.image_store import DecodedImages, ImageStore
from smope_hf.data.joint_stream import JointStream
from smope_hf.data.known_tasks import load_known_tests
from smope_hf.data.tasks import TaskStream
from smope_hf.training.callbacks import ContinualCallback

PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})
OTHER = png(np.full((8, 8), 200, dtype=np.uint8))


def in_files(folder: Path) -> DatasetDict:
    """The digits as a data set that holds the names of files."""
    features, data = Features({"image": datasets.Image(), "label": ClassLabel(names=NAMES)}), {}
    for split, rows in digits().items():
        (folder / split).mkdir(parents=True)
        paths = [folder / split / f"{row}.png" for row in range(len(rows["label"]))]
        for path, content in zip(paths, rows["image"], strict=True):
            path.write_bytes(content)
        data[split] = Dataset.from_dict({"image": list(map(str, paths)), "label": rows["label"]}, features=features)
    return DatasetDict(data)


@pytest.fixture
def data(tmp_path) -> DatasetDict:
    return in_files(tmp_path / "images")


def stream_of(data, **options) -> TaskStream:
    tasks = {} if "class_lists" in options else {"num_tasks": 5}
    return TaskStream(data, shuffle_classes=False, **tasks, **options)


def checked(stream):
    check = ImageCheck()
    stream = stream.with_splits(check.task)
    check.finish()
    return stream


def file_of(split, position: int) -> Path:
    return Path(split.encoded(np.array([position]))[0]["path"])


CHANGES = {
    "another valid image": lambda file: file.write_bytes(OTHER),
    "another one moved into its place": lambda file: os.replace(_beside(file, OTHER), file),
    "the same pixels in another file": lambda file: file.write_bytes(file.read_bytes() + b"more"),
    "one that is cut": lambda file: file.write_bytes(file.read_bytes()[:40]),
    "nothing in it": lambda file: file.write_bytes(b""),
    "no file any more": lambda file: file.unlink(),
    "a folder in its place": lambda file: (file.unlink(), file.mkdir()),
}


def _beside(file: Path, content: bytes) -> Path:
    other = file.with_suffix(".new")
    other.write_bytes(content)
    return other


def refused(split, position: int):
    """The error for one image, which names its row and its file and says what to do."""
    file, row = file_of(split, position), split.source_rows[position]
    text = f"^row {row} of split '{split.source_split}', column 'image', file {file}: .*changed since .*Put .*--resume"
    return pytest.raises(ChangedImage, match=text)


@pytest.mark.parametrize("how", CHANGES)
def test_an_image_that_changes_behind_the_check_is_never_used(data, how):
    split = checked(stream_of(data))[1].train
    CHANGES[how](file_of(split, 3))
    with refused(split, 3):
        split.images([2, 3, 4])
    assert len(split.images([0, 1, 2, 4])) == 4  # no other one is held back


@pytest.mark.parametrize("how", CHANGES)
def test_what_a_manifest_tells_of_is_what_is_decoded_behind_it(data, how):
    stream = stream_of(data)
    split, plain = stream[1].train, stream_of(data)[1].train
    before = stream.manifest()
    CHANGES[how](file_of(split, 3))
    with refused(split, 3):
        split.images([3])
    if how.startswith(("another", "the same")):
        assert stream.manifest() == before and plain.images([3])  # nobody has looked at this one before
        with pytest.raises(ValueError, match="changed since"):
            checked(stream)


WAYS = {
    "kept in memory": lambda split, folder: ImageStore(PROCESSOR, (16, 16), 2**30, folder).of(split),
    "kept in a file": lambda split, folder: ImageStore(PROCESSOR, (16, 16), 0, folder).of(split),
    "used once": lambda split, folder: DecodedImages(split, PROCESSOR),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_the_pixels_looks(data, tmp_path, way, workers):
    split = checked(stream_of(data))[1].train
    images = WAYS[way](split, tmp_path / "cache")
    first = [batch[0] for batch in GlobalBatches(images, 5, Accelerator(), workers)()]
    with ThreadPoolExecutor(2) as pool:
        assert torch.equal(images.batch(torch.arange(5), pool, 2)[0], first[0])
    CHANGES["another valid image"](file_of(split, 12))
    batches = GlobalBatches(images, 5, Accelerator(), workers)()
    if way == "used once":
        with refused(split, 12):
            list(batches)
    else:  # what was hashed is still what is used
        assert torch.equal(torch.cat([batch[0] for batch in batches]), torch.cat(first))


def test_every_kind_of_stream_carries_the_hashes(data):
    whole = stream_of(data, validation_fraction=0.25)
    first, second = (stream_of(data, class_lists=[NAMES[2 * i : 2 * i + 2]]) for i in range(2))
    continued = ContinuedStream(first.manifest(), second, [first[0].test])
    for stream in (whole, JointStream(whole), continued):
        for task in checked(stream):
            for split in task.splits.values():
                file, content = file_of(split, 1), file_of(split, 1).read_bytes()
                file.write_bytes(OTHER)
                with refused(split, 1):
                    split.images([1])
                file.write_bytes(content)


def test_tests_of_known_classes_are_held_to_their_hashes(data, monkeypatch):
    monkeypatch.setattr("smope_hf.data.known_tasks.load_dataset_dict", lambda *_, **__: data)
    tasks = [NAMES[:5], NAMES[5:]]
    tests = checked_tests(load_known_tests("digits", tasks), tasks, "error")
    file_of(tests[1], 2).write_bytes(OTHER)
    with refused(tests[1], 2):
        tests[1].images([2])


def test_rows_left_out_do_not_shift_the_hashes(data):
    split = stream_of(data)[1].train
    file_of(split, 2).write_bytes(b"no image")
    check = ImageCheck("skip")
    left = stream_of(data).with_splits(check.task)[1].train
    assert len(left) == len(split) - 1 and len(left.images(range(len(left)))) == len(left)
    file_of(left, 4).write_bytes(OTHER)
    with refused(left, 4):
        left.images(range(len(left)))


def test_an_edited_arrow_file_is_noticed(tmp_path):
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=NAMES)})
    rows = DatasetDict({name: Dataset.from_dict(rows, features=features) for name, rows in digits().items()})
    rows.save_to_disk(tmp_path / "saved")
    stream = checked(TaskStream.load(tmp_path / "saved", num_tasks=5, shuffle_classes=False))
    split, (file,) = stream[1].train, (tmp_path / "saved" / "train").glob("*.arrow")
    encoded = split.contents([3])[0]
    content = file.read_bytes()
    assert content.count(encoded) == 1
    place = content.index(encoded) + len(encoded) - 6
    with open(file, "r+b") as opened:  # in place: the data set has the file mapped
        opened.seek(place)
        opened.write(b"\0\0\0\0")
    with pytest.raises(ChangedImage, match=f"^row {split.source_rows[3]} of split 'train', column 'image': "):
        split.images([3])


def test_a_pipe_in_place_of_an_image_is_not_waited_for(data):
    split = stream_of(data)[1].train
    file = file_of(split, 3)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=f"row {split.source_rows[3]} .*the image file cannot be read: .*regular"):
        checked(stream_of(data))


# ---------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return in_files(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(backbone, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_trainer(backbone, folder, stream_of(source, max_tasks=2)).train()
    return folder


class ChangeAt(ContinualCallback):
    """Replaces one image of the second task where an event comes, and puts it back."""

    def __init__(self, event: str, used_for: str):
        self.used_for, self.kept = used_for, None
        setattr(self, event, self.change)

    def change(self, trainer, task):
        if task.index == 1:
            file = file_of(getattr(task, self.used_for), 2)
            self.kept = file, file.read_bytes()
            file.write_bytes(OTHER)

    def put_back(self):
        file, content = self.kept
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("event", "used_for", "settings"),
    [
        ("on_task_begin", "train", {}),
        pytest.param("on_task_begin", "train", {"dataloader_num_workers": 2}, marks=pytest.mark.slow),
        pytest.param("on_training_end", "test", {"checkpoint_every": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_run_stops_keeps_what_it_has_learned_and_goes_on_once_the_image_is_back(
    backbone, source, whole, tmp_path, event, used_for, settings
):
    stream, change = stream_of(source, max_tasks=2), ChangeAt(event, used_for)
    split, trainer = getattr(stream[1], used_for), tiny_trainer(backbone, tmp_path, stream, [change], **settings)
    again = {"resume": True, **settings}
    try:
        with refused(split, 2):
            trainer.train()
        assert [path.name for path in trainer.saved_tasks()] == ["task-01"]
        assert not (tmp_path / "task-02").exists() and not list(tmp_path.rglob(".*"))
        with pytest.raises(ValueError, match="the tasks are others .*protocol_hash differs"):
            tiny_trainer(backbone, tmp_path, stream_of(source, max_tasks=2), **again).train()
    finally:
        change.put_back()
    tiny_trainer(backbone, tmp_path, stream_of(source, max_tasks=2), **again).train()
    for task in ("task-01", "task-02"):
        assert_same_tensors(whole / task, tmp_path / task)
    assert read(whole, "manifest.json") == read(tmp_path, "manifest.json")


@pytest.mark.slow
def test_a_change_behind_the_last_decoding_changes_nothing(backbone, source, whole, tmp_path):
    change = ChangeAt("on_training_end", "train")
    try:
        tiny_trainer(backbone, tmp_path / "run", stream_of(source, max_tasks=2), [change]).train()
    finally:
        change.put_back()
    assert_same_tensors(whole / "task-02", tmp_path / "run" / "task-02")


def test_the_command_evaluate_stops_too(source, whole, tmp_path, monkeypatch, capsys):
    from smope_hf.cli import evaluate as cli_evaluate
    from smope_hf.cli.program import app

    folder = tmp_path / "data"
    for row, label in enumerate(digits()["test"]["label"]):
        if label < 4:
            (folder / "test" / NAMES[label]).mkdir(parents=True, exist_ok=True)
            (folder / "test" / NAMES[label] / f"{row:03d}.png").write_bytes(digits()["test"]["image"][row])
    file = next((folder / "test" / NAMES[2]).iterdir())
    measure = cli_evaluate.measure

    def late(*arguments):
        file.write_bytes(OTHER)
        return measure(*arguments)

    monkeypatch.setattr(cli_evaluate, "measure", late)
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", str(whole), "--data", str(folder)])
    assert ended.value.code == 2
    assert f"file {file}: the image has changed since" in capsys.readouterr().err
    shutil.rmtree(folder)


def test_a_file_to_predict_that_breaks_behind_the_look_is_named(tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(OTHER)
    assert check_images([file]) == ([file], [])
    file.write_bytes(OTHER[:40])
    with pytest.raises(ValueError, match=f"^{file} has changed since all images were looked at: .*predict again"):
        read_image(file)
    file.unlink()
    os.mkfifo(file)
    assert check_images([file]) == ([], [(file, "it is a named pipe, and only regular files are read")])
