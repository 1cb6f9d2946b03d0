"""A data set from the Hub cannot have this machine open files or addresses that it names as its images."""

import os

import datasets
import pytest
from PIL import Image

from smope_hf import TaskStream
from smope_hf.data.reading import load_dataset_dict

CACHE = str(datasets.config.HF_DATASETS_CACHE)


def data_set(*paths: str | None) -> datasets.DatasetDict:
    """Rows whose images are at these paths; None for one that the row holds itself."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [Image.new("RGB", (4, 4)) if path is None else {"path": path, "bytes": None} for path in paths]
    labels = [index % 2 for index in range(len(paths))]
    whole = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    return datasets.DatasetDict({"train": whole, "test": whole})


@pytest.fixture
def hub(monkeypatch):
    """Has the Hub hold one data set."""

    def hold(found: datasets.DatasetDict):
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: found)

    return hold


@pytest.mark.parametrize(
    "place",
    ["/etc/passwd", "/dev/zero", "private.png", "./x.png", "../x.png", "~/x.png", "file:///etc/passwd", "C:\\x.png",
     "http://127.0.0.1:1/x.png", "https://example.org/x.png", "s3://bucket/x.png", "zip://a.png::http://h/x.zip",
     "zip://hf://a.png::/etc/x.zip", "memory://x", "x::hf://a/b", f"{CACHE}/../../x.png", f"{CACHE}-more/x.png",
     "hf://datasets/a/b/../../../x.png"],
)  # fmt: skip
def test_a_file_elsewhere_is_refused_by_row_and_place(hub, place):
    hub(data_set(None, None, place, None))
    with pytest.raises(ValueError, match="row 2 of split 'train' of 'owner/data': column 'image' names ") as caught:
        TaskStream.load("owner/data", num_tasks=1)
    assert len(str(caught.value)) < 600


def test_rows_are_counted_over_all_parts_of_a_table(hub):
    parts = [data_set(None, None)["train"], data_set(None, "/etc/passwd")["train"]]
    hub(datasets.DatasetDict({"train": datasets.concatenate_datasets(parts)}))
    with pytest.raises(ValueError, match="row 3 of split 'train'"):
        load_dataset_dict("owner/data")


@pytest.mark.parametrize(
    "place",
    [f"{CACHE}/downloads/extracted/0a/x.png", "hf://datasets/a/b@main/x.png", "zip://x.png::hf://datasets/a/b.zip"],
)
def test_its_own_files_are_taken(hub, place):
    hub(data_set(place, None))
    assert load_dataset_dict("owner/data")["train"].num_rows == 2


def test_a_folder_of_the_user_may_name_files_anywhere(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    data_set(str(tmp_path / "x.png"), None).save_to_disk(tmp_path / "data")
    assert len(TaskStream.load(tmp_path / "data", num_tasks=1)) == 1
    assert os.path.exists(tmp_path / "x.png")
