"""Paths that users give, in which ~ is their home folder: no shell has expanded it in a recipe or in Python."""

import os
from pathlib import Path


def expanded(path):
    """A path with the home folder in place of `~` or `~user` at its beginning.

    Args:
        path: text or a `Path`; anything else, such as None or a loaded model, is given back as it is.

    Returns:
        The same kind. A Hub id, and a user that there is not, stay as they are.
    """
    if isinstance(path, Path):
        return type(path)(os.path.expanduser(path))
    return os.path.expanduser(path) if isinstance(path, str) else path


def home_path(text: str) -> Path:
    """A path from a command line, as `type=home_path` of an argument."""
    return expanded(Path(text))
