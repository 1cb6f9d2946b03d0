"""The manifest: equal wherever the same data set is stored, different when anything that matters changes."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict
from digit_data import NAMES, change, digits, make, png, protocol, write_folders
from PIL import Image

from smope_hf.data.manifest import manifest_differences
from smope_hf.data.tasks import TaskStream


@pytest.fixture
def data() -> DatasetDict:
    return make()


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_every_way_of_storing_gives_the_same_manifest(tmp_path):
    """A folder of images, a copy of it elsewhere, parquet files, save_to_disk: all but `information` is equal."""
    first = write_folders(tmp_path / "one" / "digits")
    second = write_folders(tmp_path / "two" / "digits", order=("test", "train"))
    options = {"num_tasks": 5, "validation_fraction": 0.25, "max_train_samples_per_class": 6, "name": "digits"}
    reference = TaskStream.load(first, **options)
    saved, parquet = tmp_path / "saved", tmp_path / "parquet"
    loaded = datasets.load_dataset("imagefolder", data_dir=str(first))
    loaded.save_to_disk(str(saved))
    parquet.mkdir()
    for split, part in datasets.load_from_disk(str(saved)).items():
        part.to_parquet(str(parquet / f"{split}.parquet"))
    files = {split: str(parquet / f"{split}.parquet") for split in ("train", "test")}
    manifests = [
        stream.manifest()
        for stream in (
            reference,
            TaskStream.load(str(second), **options),
            TaskStream.load(saved, **options),
            TaskStream.load(parquet, **options),
            TaskStream.load("parquet", data_files=files, **options),
        )
    ]
    assert manifests[0]["information"] != manifests[1]["information"]
    for manifest in manifests:
        manifest.pop("information")
        assert manifest == manifests[0]
        assert manifest_differences(manifest, manifests[0]) == []
    assert reference.manifest()["information"]["source"]["name_or_path"] == "digits"
    assert str(tmp_path) not in json.dumps(manifests)  # it travels with checkpoints


def test_load_names_the_data_set_after_its_folder_and_refuses_what_does_not_apply(data, tmp_path):
    folder = write_folders(tmp_path / "flowers")
    assert TaskStream.load(folder, num_tasks=5).name == "flowers"
    assert TaskStream.load(folder, num_tasks=5, name="mine").name == "mine"
    with pytest.raises(FileNotFoundError, match="absent is not a folder"):
        TaskStream.load(tmp_path / "absent", num_tasks=5)
    data.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="save_to_disk: .*revision"):
        TaskStream.load(tmp_path / "saved", revision="main", num_tasks=5)
    assert len(TaskStream.load(folder / "train", num_tasks=5, test_fraction=0.25)[0].test) == 6
    data["train"].save_to_disk(str(tmp_path / "one_split"))
    assert len(TaskStream.load(tmp_path / "one_split", num_tasks=5, test_fraction=0.25)) == 5


def test_the_manifest_is_json_and_computed_once(data, monkeypatch):
    stream = TaskStream(data, num_tasks=5, seed=3)
    manifest = stream.manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["seed"] == 3 and [task["class_names"] for task in manifest["tasks"]] == [
        list(t.class_names) for t in stream
    ]
    manifest["tasks"].clear()
    monkeypatch.setattr("smope_hf.data.manifest._content_hash", lambda split: pytest.fail("computed again"))
    assert len(stream.manifest()["tasks"]) == 5


def test_the_protocol_hash_changes_with_everything_that_matters(data):
    pixels = np.array(Image.open(io.BytesIO(digits()["train"]["image"][17])))
    pixels[0, 0] ^= 1
    label = digits()["train"]["label"][17]
    same_class = [row for row, value in enumerate(digits()["train"]["label"]) if value == label][:2]
    swapped = list(range(120))
    swapped[same_class[0]], swapped[same_class[1]] = same_class[::-1]
    variants = {
        "reference": protocol(data),
        "pixel": protocol(change(data, "train", 17, image={"bytes": png(pixels), "path": None})),
        "label": protocol(change(data, "train", 17, label=(label + 1) % 10)),
        "test label": protocol(change(data, "test", 17, label=(digits()["test"]["label"][17] + 1) % 10)),
        "order of rows": protocol(DatasetDict({**data, "train": data["train"].select(swapped)})),
        "seed": protocol(data, seed=1),
        "class order": protocol(data, shuffle_classes=False),
        "tasks": protocol(data, num_tasks=2),
        "train limit": protocol(data, max_train_samples_per_class=5),
        "test limit": protocol(data, max_test_samples_per_class=3),
        "validation": protocol(data, validation_fraction=0.25),
        "class name": protocol(
            DatasetDict({k: v.cast_column("label", ClassLabel(names=["zero", *NAMES[1:]])) for k, v in data.items()})
        ),
    }
    assert len(set(variants.values())) == len(variants)


def test_the_protocol_hash_ignores_how_the_same_tasks_were_made(data):
    names = [list(task.class_names) for task in TaskStream(data, num_tasks=5)]
    extra = DatasetDict({name: part.add_column("note", list(range(len(part)))) for name, part in data.items()})
    renamed = data.rename_column("image", "img")
    same = {
        protocol(data),
        protocol(data, num_tasks=None, class_lists=names),
        protocol(data, num_tasks=None, classes_per_task=2),
        protocol(data, max_train_samples_per_class=1000, name="other"),
        protocol(extra),
        protocol(renamed),
    }
    assert len(same) == 1


def test_an_image_by_path_counts_by_its_content(tmp_path):
    folder = write_folders(tmp_path / "digits")
    before = TaskStream.load(folder, num_tasks=5).manifest()["protocol_hash"]
    elsewhere = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert TaskStream.load(elsewhere, num_tasks=5).manifest()["protocol_hash"] == before
    file = elsewhere / "train" / NAMES[0] / "001.png"
    file.write_bytes(png(np.zeros((8, 8), dtype=np.uint8)))
    changed = TaskStream.load(elsewhere, num_tasks=5)
    assert changed.manifest()["protocol_hash"] != before
    stream = TaskStream.load(elsewhere, num_tasks=5)
    os.remove(file)
    with pytest.raises(ValueError, match="row 0 of split 'train', column 'image': the image file cannot be read"):
        stream.manifest()


def test_an_image_inside_an_archive_is_read(data, tmp_path):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", digits()["train"]["image"][0])
    inside = change(data, "train", 0, image={"bytes": None, "path": f"zip://a.png::{archive}"})
    assert protocol(inside) == protocol(data)
    split = next(task for task in TaskStream(inside, num_tasks=5) if 0 in task.train.source_rows).train
    assert split.images([0])[0].size == (8, 8)


def test_differences_between_manifests_are_told(data):
    def manifest(data=data, **options):
        return TaskStream(data, **{"num_tasks": 5, "shuffle_classes": False, **options}).manifest()

    reference = manifest()
    assert manifest_differences(reference, manifest(name="another name")) == []
    assert manifest_differences(reference, manifest(num_tasks=2)) == ["5 tasks against 2"]
    assert "task 0: classes ['digit 0'" in manifest_differences(reference, manifest(shuffle_classes=True))[0]
    limited = manifest_differences(reference, manifest(max_train_samples_per_class=5))
    assert limited == [f"task {index}, train: 24 images against 10" for index in range(5)]
    other = change(data, "test", 0, image={"bytes": png(np.zeros((8, 8), dtype=np.uint8)), "path": None})
    task = digits()["test"]["label"][0] // 2
    assert manifest_differences(reference, manifest(other)) == [
        f"task {task}, test: 8 images each, but other images, labels or order"
    ]
