"""Reads what `benchmark.py` is given: entries of methods with settings of their own, and training seeds."""

from dataclasses import fields

from smope_hf.training.run_arguments import RUN_ARGUMENTS

SETTINGS = {setting.name for kind in RUN_ARGUMENTS for setting in fields(kind)}


def parse_entry(entry: str) -> tuple[str, dict[str, str]]:
    """A method and its settings from `name:setting=value,setting=value`.

    Raises:
        ValueError: for a part that is no setting, or one given twice.
    """
    method, _, given = entry.partition(":")
    settings: dict[str, str] = {}
    for part in filter(None, given.split(",")):
        name, equals, value = part.partition("=")
        if name not in SETTINGS or not equals or name in settings:
            raise ValueError(
                f"--methods {entry!r} is not allowed, because of {part!r}. Allowed: name=value with settings as "
                "recipes name them, each once."
            )
        settings[name] = value
    return method, settings


def read_seeds(text: str) -> list[int]:
    """Training seeds from a list separated by commas.

    Raises:
        ValueError: for a part that is no whole number, or one given twice.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise ValueError(f"--seeds {text!r} is not allowed. Allowed: whole numbers from 0, each once, as in 0,1,2.")
    return [int(part) for part in parts]
