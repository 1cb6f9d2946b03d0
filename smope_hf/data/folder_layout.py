"""A folder of images held against what `datasets` reads of it: neither an image nor a class goes astray unseen.

`imagefolder` names the class of an image after the folder that it lies in, at any depth, and leaves out what it cannot
read. A class that is too many cannot be removed from a model that has learned it. No image is opened here.
"""

import functools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import datasets
import pyarrow.compute as pc
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..base.named_settings import some_names
from ..storage.foreign_files import open_regular
from .image_files import count_endings, is_image, is_unread_image, list_folder

_MOST_OF_A_CARD = 2**20  # its settings stand at its beginning
_WORDS = "|".join(word for words in SPLIT_KEYWORDS.values() for word in words)
SPLIT_FOLDER = re.compile(rf"(.*[{NON_WORDS_CHARS}])?({_WORDS})([{NON_WORDS_CHARS}].*)?")


def images_by_split(folder: Path, loaded: datasets.DatasetDict) -> dict[str, list[str]] | None:
    """The image files of each split, where their folders are their classes.

    Args:
        folder: What was loaded.
        loaded: The splits that `datasets.load_dataset` made of it.

    Returns:
        Paths below the folder, with "/"; None for other files than images, images in archives, and images whose
        columns a metadata file gives.
    """
    start = folder.resolve().as_posix().rstrip("/") + "/"
    images = {}
    for name, split in loaded.items():
        columns = {column: type(feature) for column, feature in split.features.items()}
        from_folders = columns in ({"image": datasets.Image}, {"image": datasets.Image, "label": datasets.ClassLabel})
        if split.info.builder_name != "imagefolder" or not from_folders:
            return None
        paths = pc.struct_field(split.data.column("image"), "path").to_pylist()
        if not all(str(path).startswith(start) for path in paths):
            return None
        images[name] = [path[len(start) :] for path in paths]
    return images


def has_own_configuration(folder: Path) -> bool:
    """Whether the folder itself says which of its files are data, in its README.md or .huggingface.yaml."""
    card = folder / datasets.config.REPOCARD_FILENAME
    if (folder / datasets.config.REPOYAML_FILENAME).exists():
        return True
    text = ""
    if card.is_file():
        with open_regular(card) as file:
            text = file.read(_MOST_OF_A_CARD).decode(errors="replace")
    return re.match(r"---\s*\n((?!---).*\n)*?configs:", text) is not None


def check_class_folders(folder: Path, images: dict[str, list[str]]):
    """Refuse a folder of which an image or a class folder would become another class than meant, or none.

    Class folders lie in the folder itself or in its split folders, all at the same depth. A folder with a metadata
    file is not looked at: the classes are in that file.

    Args:
        folder: The folder as it was given.
        images: The files of each split, from `images_by_split`.

    Raises:
        ValueError: naming images outside a class folder, folders of images inside one, class folders of one name,
            class folders and split folders of which no image is read, images that are left out or of a kind that is
            not read, and images that are in two splits.
    """
    read = Counter(path for paths in images.values() for path in set(paths))
    folders, files = list_folder(folder)
    if any(os.path.basename(path) in ImageFolder.METADATA_FILENAMES for path in files):
        return
    if not any(_place(os.path.dirname(path))[1] for path in read):
        raise ValueError(_heap(folder, min(read)))
    found = [f"{kind}: {_some(folder, names)}" for kind, names in _problems(read, folders, files).items() if names]
    if found:
        raise ValueError(
            f"{folder} must have one folder of images for each class, and has {'; '.join(found)}. {_allowed(folder)} "
            "Move, rename or remove what is named."
        )


def _problems(read: Counter[str], folders: set[str], files: set[str]) -> dict[str, Collection[str]]:
    """What is wrong, and where: of the images that are read, with the number of splits, and all folders and files."""
    depths = {os.path.dirname(path): _place(os.path.dirname(path))[1] for path in read}
    depth = min(filter(None, depths.values()))
    if any(_place(name)[0] for name in depths):  # then what lies beside split folders is no data
        folders = {name for name in folders if _place(name)[0]}
    left_out = {path for path in files - set(read) if is_image(path) and os.path.dirname(path) in folders}
    of_images = {above for path in {*read, *left_out} for above in _folders_above(path)}
    unread = {name for name in folders - of_images if _place(name)[1] <= depth}
    strange = {path for path in files if is_unread_image(path) and os.path.dirname(path) in folders - unread}
    return {
        "images outside a class folder": [path for path in read if depths[os.path.dirname(path)] < depth],
        "folders of images inside a class folder": [name for name in depths if depths[name] > depth],
        "class folders of the same name, which would be one class": _of_one_name(depths),
        "folders of which no image can be read (empty, a link, or no .jpg, .png or the like)": [
            name for name in unread if os.path.dirname(name) not in unread
        ],
        f"images of a kind that is not read ({count_endings(strange)}; convert them to .jpg or .png)": strange,
        "images that are left out (part of a name is taken for a split, or an ending like .Png)": left_out,
        "images in two splits (part of a name is taken for a split)": [path for path in read if read[path] > 1],
    }


@functools.cache
def _place(name: str) -> tuple[str, int]:
    """The split folder that a folder is in, or "", and how deep below it the folder is."""
    parts = name.split("/") if name else []
    for position, part in enumerate(parts):
        if SPLIT_FOLDER.fullmatch(part):
            return "/".join(parts[: position + 1]), len(parts) - position - 1
    return "", len(parts)


def _folders_above(path: str) -> list[str]:
    above = [""]
    while path := os.path.dirname(path):
        above.append(path)
    return above


def _of_one_name(folders: Iterable[str]) -> list[str]:
    """Class folders that share their name with another in the same split folder."""
    places = {name: (_place(name)[0], os.path.basename(name)) for name in folders}
    count = Counter(places.values())
    return [name for name, place in places.items() if count[place] > 1]


def _some(folder: Path, names: Iterable[str]) -> str:
    return some_names([str(folder / name) for name in sorted(names)])


def _heap(folder: Path, first: str) -> str:
    split = _place(os.path.dirname(first))[0]
    taken = f" ({str(folder / split)!r} is taken for a split folder, for a word in its name)" if split else ""
    return (
        f"{folder} has images but no class folder for them, the first is {str(folder / first)!r}{taken}. "
        f"{_allowed(folder)} Put the images of each class into a folder with its name."
    )


def _allowed(folder: Path) -> str:
    words = ", ".join(str(split) for split in SPLIT_KEYWORDS)
    with_splits = folder / "train" / "CLASS" / "IMAGE"
    return f"Allowed: {folder / 'CLASS' / 'IMAGE'}, or with split folders ({words}) {with_splits}."


def check_any_image(folder: Path):
    """Refuse a folder of which no file is read, and whose pictures are of kinds that are not.

    Raises:
        ValueError: counting them by their endings; nothing for a folder without pictures.
    """
    strange = [path for path in list_folder(folder)[1] if is_unread_image(path)]
    if strange:
        raise ValueError(
            f"{folder} has no image that can be read, and {len(strange)} of kinds that are not read "
            f"({count_endings(strange)}): convert them to .jpg or .png. {_allowed(folder)}"
        )
