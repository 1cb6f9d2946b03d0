"""Where the weights of a model are: the safetensors files of a folder or Hub repository, and nothing else."""

import os
from pathlib import Path

from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from .checkpoint_guard import Header, inside, read_header, shard_names
from .checksums import CHECKSUMS_FILE
from .safe_json import shown

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def find_file(name: str | os.PathLike, file: str, revision: str | None, where: dict) -> Path | None:
    """A file of a folder or Hub repository, or None.

    Raises:
        ValueError: when the file of a folder leads out of it.
    """
    found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False, **where)
    if found is None:
        return None
    return inside(name, found) if os.path.isdir(name) else Path(found)


def find_checksums(name: str | os.PathLike, revision: str | None, where: dict) -> Path | None:
    """The `checksums.json` of a model, or None: older checkpoints have none, nor has a cache that was filled then."""
    return find_file(name, CHECKSUMS_FILE, revision, {"_raise_exceptions_for_connection_errors": False, **where})


def find_weights(name: str | os.PathLike, revision: str | None, where: dict) -> list[Path]:
    """The safetensors files of a model: its one file, or those that its index lists; none where it has neither.

    Raises:
        ValueError: for an index that names anything but files beside it.
        OSError: when a file of the index is missing.
    """
    single = find_file(name, SAFE_WEIGHTS_NAME, revision, where)
    if single is not None:
        return [single]
    index = find_file(name, SAFE_WEIGHTS_INDEX_NAME, revision, where)
    if index is None:
        return []
    found = {shard: find_file(name, shard, revision, where) for shard in shard_names(index)}
    missing = [shard for shard, path in found.items() if path is None]
    if missing:
        raise OSError(f"{index} lists {shown(missing[0])}, which is not there. Download the checkpoint again.")
    return list(found.values())


def keep_one_layout(folder: str | os.PathLike):
    """Remove what a save in shards leaves of one in a single file, which would be read instead, or the reverse."""
    shards = any(Path(folder).glob("model-*-of-*.safetensors"))
    (Path(folder) / (SAFE_WEIGHTS_NAME if shards else SAFE_WEIGHTS_INDEX_NAME)).unlink(missing_ok=True)


def find_pickle(name: str | os.PathLike, revision: str | None, where: dict) -> str | None:
    """The name of a pickle with weights, or None."""
    if os.path.isdir(name):
        folder = Path(name) / (where.get("subfolder") or "")
        return next((path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))), None)
    names = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    exists = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        **where,
    }
    return next((file for file in names if cached_file(name, file, revision=revision, **exists)), None)


def read_headers(paths: list[Path]) -> Header:
    """The headers of all files of a model as one.

    Raises:
        ValueError: when two files hold the same tensor, or one is broken.
    """
    together = {}
    for path in paths:
        header = read_header(path)
        twice = sorted(header.keys() & together.keys())
        if twice:
            raise ValueError(f"{path} holds {shown(twice[0])}, and so does another file of the same index.")
        together.update(header)
    return together
