"""Which names a class may have: one that people can tell from nothing and from others, and any file can hold."""

import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping

from ..base.printable import is_blank, printable, without_hidden

LONGEST_SHOWN = 80  # characters
_MOST_NAMED = 5


def check_class_names(names: Mapping[int, str], where: str, advice: str):
    """Refuse names of classes that cannot be seen, or not be saved.

    Args:
        names: of the classes, by their place among all.
        where: what has these names, for the message.
        advice: how to name them.

    Raises:
        ValueError: naming the first ones by their place and as far as they can be shown.
    """
    for problem, wrong in (
        ("a name that nobody can see", is_blank),
        ("a name that UTF-8 cannot write", _cannot_be_saved),
    ):
        found = [f"class {place} is {name!a}"[:LONGEST_SHOWN] for place, name in names.items() if wrong(name)]
        if found:
            more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            raise ValueError(
                f"{printable(where, 500)}: {', '.join(found[:_MOST_NAMED])}{more} (counted from 0), which is "
                f"{problem}. {advice}"
            )


def one_form(name: str) -> str:
    """The name in Unicode's composed form (NFC), in which names are kept and compared: é may be one letter or two."""
    return unicodedata.normalize("NFC", name)


def as_seen(name: str) -> str:
    """What people see of a name: in one form, without invisible characters, any blanks as one space."""
    if name.isascii() and name.isprintable():  # of the most, in a fraction of the time
        return " ".join(name.split())
    spaced = "".join(" " if character.isspace() else character for character in one_form(name))
    return " ".join(without_hidden(spaced).split())


def check_alike(names: Iterable[str], where: str, known: Iterable[str] = ()):
    """Refuse new names that differ from others by blanks or invisible characters alone.

    Args:
        names: of new classes.
        where: what has these names, for the message.
        known: names that a model has. Among each other they may be as alike as they are.

    Raises:
        ValueError: naming the first two, with what tells them apart escaped.
    """
    seen = {as_seen(name): name for name in known}
    for name in names:
        other = seen.setdefault(as_seen(name), name)
        if one_form(other) != one_form(name):
            raise ValueError(
                f"{printable(where, 500)}: the classes {told_apart(other)} and {told_apart(name)} differ by blanks or "
                "invisible characters alone. Give both the same name if they are one class, or names that people can "
                "tell apart."
            )


def warn_of_case(names: Iterable[str], where: str, known: Iterable[str] = ()):
    """Warn of new names that differ from others by small and capital letters alone; arguments as of `check_alike`."""
    seen = {as_seen(name).lower(): name for name in known}
    pairs = [(other, name) for name in names if (other := seen.setdefault(as_seen(name).lower(), name)) != name]
    pairs = [f"{other!r} and {name!r}" for other, name in pairs if as_seen(other) != as_seen(name)]
    if pairs:
        more = f" and {len(pairs) - _MOST_NAMED} more" if len(pairs) > _MOST_NAMED else ""
        shown = (
            f"{where}: classes that differ by small and capital letters alone: {', '.join(pairs[:_MOST_NAMED])}{more}"
        )
        warnings.warn(printable(f"{shown}. They are learned as different classes.", 1500), stacklevel=3)


def told_apart(name: str) -> str:
    """The name in quotes, in which every blank that is easily overlooked is escaped, too."""
    overlooked = re.sub("^ +| +$| {2,}", lambda found: r"\x20" * len(found[0]), name)
    return printable(repr(overlooked).replace(r"\\x20", r"\x20"), 200)


def _cannot_be_saved(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)
