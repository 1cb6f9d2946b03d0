"""The data set that comes along."""

import numpy as np
from sklearn.datasets import load_digits

from smope_hf import TaskStream
from smope_hf.data.embedded import NAMES, digits


def test_every_digit_is_in_one_split_and_looks_as_it_did():
    data, source = digits(), load_digits()
    assert len(data["train"]) + len(data["test"]) == len(source.target) == 1797
    stored = sorted(np.asarray(image).tobytes() for split in data.values() for image in split["image"])
    expected = sorted((255 - np.rint(image * 255 / 16)).astype(np.uint8).tobytes() for image in source.images)
    assert stored == expected
    assert data["test"].features["label"].names == NAMES
    counts = np.bincount(data["test"]["label"])
    assert counts.min() >= 43 and counts.max() <= 46  # a quarter of each class


def test_always_the_same():
    first, second = (TaskStream.load("embedded", num_tasks=5).manifest() for _ in range(2))
    assert first["protocol_hash"] == second["protocol_hash"] and first["name"] == "embedded"
