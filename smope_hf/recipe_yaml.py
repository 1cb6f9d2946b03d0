"""How recipes are read: YAML 1.2, where YAML 1.1 takes words for switches and numbers for texts; within limits."""

import os
import re

import yaml

from .foreign_files import read_text
from .safe_json import clipped, shown

MAX_BYTES, MAX_DEPTH, MAX_PARTS = 2**16, 16, 20_000


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.2's numbers and switches: 1e-5 is a number, and `mixed_precision: no` a text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
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


def load_recipe(path: str | os.PathLike) -> dict:
    """The settings in a recipe's file, before their names are looked at.

    Raises:
        OSError: when it cannot be read, or is no regular file.
        ValueError: when it is no YAML of names and values, gives one twice, nests deep, or is huge; also for
            references (`&name`, `*name`), by which a few lines can stand for more than memory holds.
    """
    text = read_text(path, MAX_BYTES)
    try:
        _check_shape(text, path)
        recipe = yaml.load(text, Loader=RecipeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {clipped(str(error), 500)}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds no settings: one line `name: value` for each is needed, such as `epochs: 5`")
    return recipe


def _check_shape(text: str, path: str | os.PathLike):
    """Look at a recipe's parts one by one, before any value is made of them."""
    depth, parts, names, is_name = 0, 0, set(), True
    for event in yaml.parse(text, Loader=RecipeLoader):
        parts += 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"{path}: line {_line(event)} has a reference (& or *). Write the value itself.")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            continue
        if depth == 1 and isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            name = event.value if is_name and isinstance(event, yaml.ScalarEvent) else None
            if name in names:
                raise ValueError(f"{path}: {shown(name)} is given twice, again in line {_line(event)}. Give it once.")
            names |= {name} - {None}
            is_name = not is_name
        depth += isinstance(event, yaml.CollectionStartEvent)
        if depth > MAX_DEPTH or parts > MAX_PARTS:
            raise ValueError(
                f"{path}: line {_line(event)} nests deeper than {MAX_DEPTH} levels, or has part {parts} of at most "
                f"{MAX_PARTS}. A recipe is one line `name: value` for each setting."
            )


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1
