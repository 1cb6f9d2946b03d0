"""The data set that comes along: scikit-learn's handwritten digits."""

import datasets
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

EMBEDDED = "embedded"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEST_FRACTION, SPLIT_SEED = 0.25, 0


def digits() -> datasets.DatasetDict:
    """1,797 handwritten digits as 8 x 8 grey images, dark ink on light paper, a quarter of each class held out.

    scikit-learn stores the strokes light on dark. The embedded backbone has seen light letters on dark only, and reads
    such digits almost without error before it learns anything; ink on paper leaves it something to adapt to.

    Returns:
        Splits "train" and "test" with the columns `image` and `label`, always the same ones.
    """
    source = load_digits()
    pixels = 255 - np.rint(source.images * 255 / 16).astype(np.uint8)  # 17 levels of grey, (n, 8, 8)
    rows = dict(
        zip(
            ("train", "test"),
            train_test_split(
                np.arange(len(pixels)), test_size=TEST_FRACTION, random_state=SPLIT_SEED, stratify=source.target
            ),
        )
    )
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": list(pixels[chosen]), "label": source.target[chosen].tolist()}, features=features
            )
            for split, chosen in rows.items()
        }
    )
