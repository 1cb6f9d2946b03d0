"""How recipes are read: YAML 1.2 as far as settings need it, within limits that hold before anything is built."""

import os
import re

import yaml

from ..storage.foreign_files import read_bytes
from ..storage.safe_json import shown

MAX_BYTES = 64 * 2**10
MAX_DEPTH = 4  # a file's settings, and lists in them
LEFT_OUT = (":bool", ":float", ":timestamp", ":merge")  # of what YAML 1.1 makes of words
ALLOWED = "one line `name: value` for each setting, such as `epochs: 5`"


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.2's numbers and switches: 1e-5 is a number, and `mixed_precision: no` a text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(LEFT_OUT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+.0123456789"),
)


def load_recipe(path: str | os.PathLike):
    """The content of a recipe's file.

    Args:
        path: a YAML file of at most 64 KiB, 4 levels, without aliases and without a key twice.

    Returns:
        What YAML makes of it; a recipe is a dict.

    Raises:
        OSError: when the file cannot be read.
        ValueError: for anything else; the message names the file, the line and, where there is one, the key.
    """
    text = _text(path)
    try:
        _check_events(text, path)
        return yaml.load(text, Loader=RecipeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not a YAML file: {_short(str(error))}") from error


def _text(path: str | os.PathLike) -> str:
    raw = read_bytes(path, MAX_BYTES)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error


def _check_events(text: str, path: str | os.PathLike):
    """Go through the text's parts, of which none is kept, and refuse what would take time or memory to build.

    A key twice is refused too: a reader sees one of its values, and the run would have the other.
    """
    keys: list[set[str] | None] = []  # of each collection around; None for a list
    awaiting = []  # whether the next part in that collection is a key
    name = ""
    for event in yaml.parse(text, Loader=RecipeLoader):
        where = f"{path}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"{where}: {shown(event.anchor)} is an anchor or alias (& or *). Write the value out.")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{where}: {shown(event.tag)} is a tag (!). Leave it out: settings need none.")
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            keys.pop()
            awaiting.pop()
        if not isinstance(event, (yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            continue
        if keys and keys[-1] is not None:
            if awaiting[-1]:
                name = event.value if isinstance(event, yaml.ScalarEvent) else "a list or an object"
                if name in keys[-1]:
                    raise ValueError(f"{where}: {shown(name)} is given twice. Keep one of the two lines.")
                keys[-1].add(name)
            awaiting[-1] = not awaiting[-1]
        if isinstance(event, yaml.ScalarEvent):
            _check_digits(event, where, name)
            continue
        keys.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
        awaiting.append(True)
        if len(keys) > MAX_DEPTH:
            raise ValueError(
                f"{where}: {shown(name)} nests deeper than {MAX_DEPTH} levels, the most that is read. Allowed: "
                f"{ALLOWED}."
            )


def _check_digits(event: yaml.ScalarEvent, where: str, name: str):
    """Refuse a number of hundreds of digits: Python does not convert thousands, and says so without a name."""
    if event.implicit[0] and len(event.value) > 300 and re.fullmatch(r"[-+]?[0-9][0-9a-fA-FxXoObB_:.]*", event.value):
        raise ValueError(f"{where}: {shown(name)} is a number of {len(event.value)} digits, which no setting takes.")


def _short(text: str) -> str:
    return text if len(text) <= 500 else text[:500] + "..."
