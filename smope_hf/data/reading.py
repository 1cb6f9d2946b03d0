"""Reading a `datasets` data set: where it is, which columns and splits to use, and the class of every row.

Only label columns are read here; image columns are never touched.
"""

import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import datasets
import numpy as np
import pyarrow as pa

from ..base.home import expanded
from ..base.printable import is_blank, printable
from ..settings.class_names import one_form
from .embedded import EMBEDDED, digits
from .folder_layout import check_any_image, check_class_folders, has_own_configuration, images_by_split
from .image_places import check_image_places

TEST_SPLIT_NAMES = ("test", "validation", "valid", "val")


def load_dataset_dict(
    name_or_path: str | Path,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    data_files: Any = None,
) -> datasets.DatasetDict:
    """Load all splits of a data set from the Hub or from a folder.

    Args:
        name_or_path: Data set id on the Hub, a folder of images (one folder per class), a folder of parquet files, a
            folder made by `save_to_disk`, a loader's name such as "parquet" together with `data_files`, or "embedded"
            for the handwritten digits that come along.
        config_name: Configuration of a data set on the Hub.
        revision: Branch, tag or commit of a data set on the Hub.
        data_files: Passed to `datasets.load_dataset`.

    Returns:
        The splits by name.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If there is neither such a folder nor such a data set, or the Hub cannot be reached.
        ValueError: If an option does not go with a folder made by `save_to_disk`, a folder of images has images
            outside a class folder or class folders without an image (see `check_class_folders`), or a data set of the
            Hub names files as its images that are not its own.
    """
    if name_or_path == EMBEDDED:
        return digits()
    folder = expanded(Path(name_or_path))
    if folder.is_dir() and ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
        given = {"config_name": config_name, "revision": revision, "data_files": data_files}
        if any(value is not None for value in given.values()):
            raise ValueError(f"{folder} was made by save_to_disk: config_name, revision and data_files do not apply")
        loaded = datasets.load_from_disk(str(folder))
        return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict({"train": loaded})
    if not folder.is_dir() and str(name_or_path).startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(f"{name_or_path} is not a folder")
    if folder.is_dir():
        return _load_folder(folder, config_name, revision, data_files)
    try:
        loaded = _load(name_or_path, config_name, revision=revision, data_files=data_files)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = printable(str(error).strip().splitlines()[0], 500).rstrip(".")
        raise OSError(
            f"{str(name_or_path)!r} is no folder here and could not be had from the Hub ({reason}). Check the name; a "
            "private data set needs `hf auth login` or HF_TOKEN."
        ) from error
    if data_files is None:  # else the user has named the files
        check_image_places(loaded, str(name_or_path))
    return loaded


def _load_folder(folder: Path, config_name: str | None, revision: str | None, data_files: Any) -> datasets.DatasetDict:
    try:
        loaded = _load(folder, config_name, revision=revision, data_files=data_files)
    except datasets.exceptions.DataFilesNotFoundError:
        check_any_image(folder)
        raise
    images = images_by_split(folder, loaded)
    if images is None:
        return loaded
    if config_name is None and data_files is None and not has_own_configuration(folder):
        check_class_folders(folder, images)
    if any("label" not in split.features or split.data.column("label").null_count for split in loaded.values()):
        # left to itself, imagefolder gives no label to a class that is alone in all or in the first of the splits
        return _load(folder, config_name, data_files=data_files, drop_labels=False)
    return loaded


def _load(name: str | Path, config_name: str | None, **options: Any) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(str(name), config_name, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        features = datasets.load_dataset_builder(str(name), config_name, **options).info.features or {}
        kinds = ", ".join(f"{column!r} {_kind_of(feature)}" for column, feature in features.items())
        declared = (
            f" Its columns are declared as {kinds}: correct that (dataset_info in its README.md)," if kinds else ""
        )
        raise ValueError(
            f"the data of {str(name)!r} cannot be read ({type(reason).__name__}: {printable(reason, 500)})."
            f"{declared or ' Correct its files,'} or take the data set again from where it came."
        ) from error


def load_class_names(name_or_path: str | Path, label_column: str | None = None) -> list[str]:
    """Names of the classes of a data set's split "train", if any; arguments and errors as for `load_dataset_dict`."""
    dataset = load_dataset_dict(name_or_path)
    if "train" not in dataset:
        return []
    return read_classes(dataset, ["train"], find_label_column(dataset["train"].features, label_column)).names


def find_image_column(features: Mapping[str, Any], image_column: str | None = None) -> str:
    """Name of the image column.

    Args:
        features: The data set's features.
        image_column: The user's choice; default: the only column of type `Image`.

    Raises:
        ValueError: If the choice is not an image column, or there is none, or more than one.
    """
    candidates = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if image_column is not None:
        if image_column in candidates:
            return image_column
        advice = (
            f'if it holds paths or encoded images, use dataset.cast_column("{image_column}", datasets.Image())'
            if image_column in features
            else f"the data set's columns are {list(features)}"
        )
        raise ValueError(f"image_column={image_column!r} is not an image column; there are {candidates}; {advice}")
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ValueError(
            f"no column of type Image among {list(features)}; if one holds paths or encoded images, "
            "use dataset.cast_column(name, datasets.Image())"
        )
    raise ValueError(f"several image columns, {candidates}: set image_column to one of them")


def find_label_column(features: Mapping[str, Any], label_column: str | None = None) -> str:
    """Name of the label column.

    Args:
        features: The data set's features.
        label_column: The user's choice, of type `ClassLabel`, string or integer; default: the only `ClassLabel`.

    Raises:
        ValueError: If the choice is of another type, or there is no `ClassLabel`, or more than one.
    """
    usable = [name for name, feature in features.items() if _label_kind(feature) is not None]
    if label_column is not None:
        if label_column in usable:
            return label_column
        raise ValueError(_no_classes(features, label_column, usable))
    candidates = [name for name in usable if isinstance(features[name], datasets.ClassLabel)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(f"several label columns, {candidates}: set label_column to one of them")
    raise ValueError(f"no column of type ClassLabel; set label_column to a string or integer column, of {usable}")


def _no_classes(features: Mapping[str, Any], name: str, usable: list[str]) -> str:
    """Why a column cannot tell the classes, and what to do."""
    what = f"label_column={name!r} is not a ClassLabel, string or integer column"
    if name not in features:
        return f"{what}: there is no column of that name. Set label_column to one of {usable}"
    kind = _kind_of(features[name])
    advice = f"Set label_column to one of {usable}" if usable else "There is no such column"
    if kind == "bool" or kind.startswith("float"):
        to = "int64" if kind == "bool" else "string"
        advice += f', or make it one: dataset.cast_column("{name}", datasets.Value("{to}"))'
    return f"{what}: its type is {kind}. {advice}"


def _kind_of(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _label_kind(feature: Any) -> str | None:
    if isinstance(feature, datasets.ClassLabel):
        return "ClassLabel"
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
    if dtype in ("string", "large_string", "string_view"):
        return "string"
    return "integer" if dtype.startswith(("int", "uint")) else None


def find_test_split(
    dataset: datasets.DatasetDict,
    train_split: str,
    test_split: str | None,
    test_fraction: float,
    allow_no_test: bool = False,
) -> str | None:
    """Name of the split to test on, or None where a share of the training split is to be taken.

    Args:
        dataset: The splits by name.
        train_split: Name of the split to train on.
        test_split: The user's choice; default: "test", else "validation", "valid" or "val".
        test_fraction: Share of the training images to test on, where there is no such split.
        allow_no_test: Accept a data set without either.

    Raises:
        ValueError: If a split does not exist, or is used twice, or both or none of split and share are there.
    """
    splits = list(dataset)
    if train_split not in splits:
        raise ValueError(f"train_split={train_split!r} does not exist; the data set's splits are {splits}")
    if test_split is not None and test_split not in splits:
        raise ValueError(f"test_split={test_split!r} does not exist; the data set's splits are {splits}")
    if test_split == train_split:
        raise ValueError(f"test_split={test_split!r} is the training split; choose another or set test_fraction")
    if test_split is None:
        found = (name for name in TEST_SPLIT_NAMES if name in splits and name != train_split)
        test_split = next(found, None)
    if test_split is None and test_fraction == 0 and not allow_no_test:
        raise ValueError(
            f"no split to test on among {splits}: set test_split to one of them, or test_fraction (for example 0.2) "
            f"to set a share of {train_split!r} aside"
        )
    if test_split is not None and test_fraction > 0:
        raise ValueError(
            f"test_fraction={test_fraction} but the data set has the split {test_split!r} to test on: leave "
            f"test_fraction at 0, or remove that split (dataset.pop({test_split!r}))"
        )
    return test_split


@dataclass(frozen=True)
class Classes:
    """The classes of a data set in its own order, and the class of every row.

    Args:
        names: Names of the classes.
        kind: "ClassLabel", "string" or "integer".
        labels: Per split, the position of each row's class in `names`; int64 (rows,).
        numbered: The name behind each value of a `ClassLabel`, where two of them may be one class. Default: `names`.
    """

    names: list[str]
    kind: str
    labels: dict[str, np.ndarray]
    numbered: list[str] | None = None

    def position(self, value: Any) -> int:
        """Position of a class given by its name or by its value in the label column."""
        name = one_form(value) if isinstance(value, str) else value
        if not isinstance(value, str | bool) and isinstance(value, SupportsIndex) and self.kind != "string":
            index = operator.index(value)
            if self.kind == "integer":
                name = str(index)
            elif 0 <= index < len(numbered := self.numbered or self.names):
                name = numbered[index]
        if name not in self.names:
            close = difflib.get_close_matches(str(value), self.names) or self.names[:5]
            raise ValueError(
                f"class_lists names {value!r}, which is none of the {len(self.names)} classes of the data set, "
                f"such as {close}"
            )
        return self.names.index(name)


def read_classes(dataset: datasets.DatasetDict, splits: Sequence[str], label_column: str) -> Classes:
    """Read the label column of some splits. Splits may number their classes differently: names decide.

    Args:
        dataset: The splits by name.
        splits: Splits to read.
        label_column: A `ClassLabel`, string or integer column.

    Returns:
        The classes: `ClassLabel` names in their own order, or the distinct values of all splits, sorted. Names are in
        one Unicode form; those that differ by their form alone are one class.

    Raises:
        ValueError: If a row has no label, or the column is missing in a split, or has another type there.
    """
    kinds = {split: _label_kind(dataset[split].features.get(label_column)) for split in splits}
    if None in kinds.values() or len(set(kinds.values())) > 1:
        raise ValueError(f"label_column={label_column!r} must have the same type in all splits; found {kinds}")
    kind = kinds[splits[0]]
    columns = {split: _distinct_labels(dataset[split], split, label_column) for split in splits}
    numbered = list(dict.fromkeys(value for distinct, _ in columns.values() for value in distinct))
    form = {value: one_form(value) if isinstance(value, str) else value for value in numbered}
    values = list(dict.fromkeys(form.values()))
    if kind != "ClassLabel":
        values.sort()
    positions = {value: position for position, value in enumerate(values)}
    labels = {
        split: np.array([positions[form[value]] for value in distinct], dtype=np.int64)[codes]
        for split, (distinct, codes) in columns.items()
    }
    return Classes([str(value) for value in values], kind, labels, [str(form[value]) for value in numbered])


def _distinct_labels(dataset: datasets.Dataset, split: str, label_column: str) -> tuple[list[Any], np.ndarray]:
    """Distinct label values and, for each row, the position of its value among them."""
    if len(dataset) == 0:
        raise ValueError(f"split {split!r} is empty")
    # Formatting one column as Arrow reads it without decoding anything.
    column = dataset.select_columns([label_column]).with_format("arrow")[:][label_column]
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise _no_label(split, row, label_column, None)
    feature = dataset.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        codes = column.to_numpy().astype(np.int64)
        outside = (codes < 0) | (codes >= len(feature.names))
        if outside.any():
            row = int(np.argmax(outside))
            allowed = f"{len(feature.names)} classes, 0 to {len(feature.names) - 1}"
            raise _no_label(split, row, label_column, int(codes[row]), allowed)
        return list(feature.names), codes
    encoded = pa.chunked_array([column.combine_chunks()]).dictionary_encode().combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    values, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    for code, value in enumerate(values):
        if isinstance(value, str) and is_blank(value):
            raise _no_label(split, int(np.argmax(codes == code)), label_column, value)
    return values, codes


def _no_label(split: str, row: int, label_column: str, value: int | str | None, allowed: str = "") -> ValueError:
    one_of = f", and there are {allowed}" if allowed else ""
    return ValueError(
        f"row {row} of split {split!r} has no label (column {label_column!r} holds {value!r}{one_of}): remove such "
        "rows, or choose another split with train_split or test_split"
    )
