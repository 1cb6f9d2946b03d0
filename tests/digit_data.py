"""Handwritten digits as a `datasets` data set in every form that the task tests need."""

import functools
import io
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image
from sklearn.datasets import load_digits

from smope_hf.data.tasks import TaskStream

NAMES = [f"digit {number}" for number in range(10)]
TRAIN, TEST = 12, 4  # images per class


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@functools.cache
def digits() -> dict[str, dict[str, list]]:
    """Encoded images and labels of two splits; no image occurs twice."""
    source = load_digits()
    pixels = (source.images * 15).astype(np.uint8)
    splits = {"train": {"image": [], "label": []}, "test": {"image": [], "label": []}}
    seen = dict.fromkeys(range(10), 0)
    for image, label in zip(pixels, source.target.tolist()):
        split = "train" if seen[label] < TRAIN else "test"
        if seen[label] < TRAIN + TEST:
            splits[split]["image"].append(png(image))
            splits[split]["label"].append(label)
        seen[label] += 1
    images = splits["train"]["image"] + splits["test"]["image"]
    assert len(set(images)) == len(images) == 10 * (TRAIN + TEST)
    return splits


def make(label=None, convert=lambda value: value) -> DatasetDict:
    """The digits with labels of a given feature type; `convert` maps the digit to the label stored."""
    features = Features({"image": datasets.Image(), "label": label or ClassLabel(names=NAMES)})
    return DatasetDict(
        {
            split: Dataset.from_dict({**rows, "label": [convert(v) for v in rows["label"]]}, features=features)
            for split, rows in digits().items()
        }
    )


def change(data: DatasetDict, split: str, row: int, **values) -> DatasetDict:
    """The same data set with some values of one row replaced."""
    rows = data[split].cast_column("image", datasets.Image(decode=False)).to_list()
    rows[row] |= values
    return DatasetDict({**data, split: Dataset.from_list(rows, features=data[split].features)})


def write_folders(root: Path, order=("train", "test")) -> Path:
    """The digits as image files, one folder per class."""
    for split in order:
        count: dict[int, int] = {}
        for image, label in zip(digits()[split]["image"], digits()[split]["label"]):
            folder = root / split / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            count[label] = count.get(label, 0) + 1
            (folder / f"{count[label]:03d}.png").write_bytes(image)
    return root


def protocol(data: DatasetDict, **options) -> str:
    return TaskStream(data, **{"num_tasks": 5, **options}).manifest()["protocol_hash"]
