"""Where the images of a data set from the Hub may lie: in the set itself, or in the Hub's cache on this machine."""

import os

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import constants

from ..storage.safe_json import shown

ADDRESS = r"^([a-z]+://[^:]*::)*hf://"  # a file of a repository, or one in an archive of it


def check_image_places(splits: datasets.DatasetDict, source: str):
    """Refuse a data set of somebody else that names files of this machine, or addresses, as its images.

    They would be opened when the images are read. No image is read here.

    Args:
        splits: as `datasets` has loaded it.
        source: its id on the Hub, for the message.

    Raises:
        ValueError: naming the first row, its column and the place.
    """
    for split, dataset in splits.items():
        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.Image):
                _check_column(dataset, split, column, source)


def _check_column(dataset: datasets.Dataset, split: str, column: str, source: str):
    start = 0
    for chunk in dataset.data.column(column).chunks:
        held, paths = chunk.field("bytes"), chunk.field("path").cast(pa.string())
        elsewhere = pc.and_(pc.and_(pc.is_null(held), pc.is_valid(paths)), pc.invert(_is_in_cache(paths)))
        rows = pc.indices_nonzero(pc.fill_null(elsewhere, False))
        if len(rows):
            row = rows[0].as_py()
            place = shown(paths[row].as_py())
            raise ValueError(
                f"row {start + row} of split {split!r} of {source!r}: column {column!r} names {place} as its image. A "
                "data set from the Hub holds its images or names files of its own repository; nothing else is opened "
                "for it. Download the data set and give its folder, if you trust it with your files."
            )
        start += len(chunk)


def _is_in_cache(paths: pa.StringArray) -> pa.BooleanArray:
    """Whether each is a file that the Hub's client has put there, or one of a repository."""
    inside = pc.match_substring_regex(paths, ADDRESS)
    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    for cache in {os.path.join(os.path.abspath(os.path.expanduser(str(place))), "") for place in caches}:
        inside = pc.or_(inside, pc.starts_with(paths, cache))
    return pc.and_(inside, pc.invert(pc.match_substring_regex(paths, r"(^|[/\\])\.\.([/\\]|$)")))
