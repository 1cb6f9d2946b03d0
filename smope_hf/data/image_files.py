"""Which files of a folder are images: one list of endings and one rule for hidden files, for all that look at one.

Training, evaluation and prediction ask here, and see what `datasets` sees of a folder of images.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

IMAGE_ENDINGS = frozenset(ImageFolder.EXTENSIONS) - {".mpg", ".mpeg"}  # films: `datasets` lists and leaves them
"""Endings in small letters of files that are read as images."""
UNREAD_ENDINGS = frozenset((
    ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl", ".jxr", ".mpo", ".qoi", ".svg", ".exr",
    ".hdr", ".pfm", ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw",
    ".rw2", ".srw", ".x3f",
))  # fmt: skip
"""Endings of pictures that `datasets` passes over: cameras and telephones write them, and converters."""


def list_folder(folder: Path) -> tuple[set[str], set[str]]:
    """All folders and files of a folder, but what is hidden or in folders like __MACOSX, which is never read.

    Args:
        folder: to be listed, with all folders in it; links to folders are named, and not followed.

    Returns:
        Folders, "" for the folder itself, and files, both by their path below it with "/".
    """
    folders, files = set(), set()
    for place, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if not name.startswith((".", "__"))]
        here = os.path.relpath(place, folder).replace(os.sep, "/") + "/"
        here = "" if here == "./" else here
        folders |= {here.rstrip("/"), *(here + name for name in inside)}
        files |= {here + name for name in names if not name.startswith(".")}  # ._x.jpg of macOS is no image
    return folders, files


def is_image(path: str) -> bool:
    """Whether a file is an image by its ending."""
    return _ending(path) in IMAGE_ENDINGS


def is_unread_image(path: str) -> bool:
    """Whether a file is a picture by its ending, of a kind that is not read."""
    return _ending(path) in UNREAD_ENDINGS


def count_endings(paths: Iterable[str]) -> str:
    """How many files there are of each ending, the most frequent first: `10 .heic, 2 .avif`."""
    counts = Counter(map(_ending, sorted(paths)))
    return ", ".join(f"{count} {ending}" for ending, count in counts.most_common())


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()
