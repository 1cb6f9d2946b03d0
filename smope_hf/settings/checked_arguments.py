"""Dataclasses of settings that check the kind, the choices and the limits of every field."""

import types
import typing
from dataclasses import fields
from typing import ClassVar

from ..base.home import expanded
from ..base.named_settings import MAX_NUMBER, NamedSettings

_KINDS = {
    str: ("a text that is not empty", str),
    int: ("a whole number", int),
    float: ("a finite number", (int, float)),
    bool: ("True or False", bool),
    list[int]: ("a list of at least one whole number", list),
    list[float]: ("a list of at least one number", list),
}


class CheckedArguments(NamedSettings):
    """A dataclass that refuses values of another type than its fields have, other choices, and values out of range.

    Attributes:
        limits: by name of a field, least and most of a number, or of a list's entries. Default: any finite number.
        paths: names of the fields that may be a place on this machine. In them ~ is the home folder.
    """

    limits: ClassVar[dict[str, tuple[float, float]]] = {}
    paths: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        for name in self.paths:
            setattr(self, name, expanded(getattr(self, name)))
        for setting in fields(self):
            value = getattr(self, setting.name)
            kind, optional = field_kind(type(self), setting.name)
            choices = setting.metadata.get("choices")
            bounds = self.limits.get(setting.name, (-MAX_NUMBER, MAX_NUMBER))
            if value is None and optional:
                continue
            if not (_is_kind(value, kind) and (not choices or value in choices) and _in_range(value, *bounds)):
                given = f"{type(self).__name__}.{setting.name} = {value!r}"
                raise ValueError(f"{given} is not allowed. Allowed: {_allowed(kind, choices, *bounds)}.")


def _in_range(value, least: float, most: float) -> bool:
    """Whether a text or a list is not empty, and numbers are within their limits; NaN is within none."""
    if isinstance(value, (str, list)) and not value:
        return False
    entries = value if isinstance(value, list) else [value]
    numbers = [entry for entry in entries if isinstance(entry, (int, float)) and not isinstance(entry, bool)]
    return all(least <= number <= most for number in numbers)


def _allowed(kind: type, choices: list[str] | None, least: float, most: float) -> str:
    if choices:
        return f"one of {choices}"
    bounds = [f"at least {least}"] if least > -MAX_NUMBER else []
    bounds += [f"at most {most}"] if most < MAX_NUMBER else []
    return _KINDS[kind][0] + (f", {' and '.join(bounds)}" if bounds else "")


def field_kind(arguments: type, name: str) -> tuple[type, bool]:
    """Type of a dataclass's field without None, and whether None is allowed."""
    hint = typing.get_type_hints(arguments)[name]
    if not isinstance(hint, types.UnionType):
        return hint, False
    (kind,) = (part for part in hint.__args__ if part is not types.NoneType)
    return kind, True


def _is_kind(value, kind: type) -> bool:
    if isinstance(value, list) and typing.get_origin(kind) is list:
        return all(_is_kind(entry, *typing.get_args(kind)) for entry in value)
    return isinstance(value, _KINDS[kind][1]) and (kind is bool or not isinstance(value, bool))
