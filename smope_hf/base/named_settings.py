"""Names and limits of settings: a name that is not known is refused with the nearest that is."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields

MAX_EXPERTS = 2**14  # per head; in the six layers of a ViT-B these are 600 MB
MAX_THREADS = 1024
MAX_WHOLE = 2**31 - 1  # of epochs, steps, and images in a batch
MAX_SEED = 2**63 - 1
MAX_NUMBER = sys.float_info.max  # a bound, where there is no other, that NaN, infinity and huge whole numbers fail


def nearest_name(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A question after the known name that is most like another.

    Args:
        name: what was given.
        known: names to choose from.
        otherwise: what to say when none is like it.
    """
    close = difflib.get_close_matches(str(name).replace("-", "_"), list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else otherwise


def check_names(owner: str, given: Iterable[str], known: Iterable[str]):
    """Refuse names of settings that there are not.

    Args:
        owner: class of the settings.
        given: names to check.
        known: names that there are.

    Raises:
        TypeError: as Python does for an unknown keyword; the message has the nearest known name.
    """
    known = list(known)
    for name in given:
        if name not in known:
            advice = nearest_name(name, known, f"There are: {', '.join(sorted(known))}.")
            raise TypeError(f"{owner} has no setting {name!r}. {advice}")


class NamedSettings:
    """A dataclass that tells the nearest name where it is given an unknown keyword."""

    def __new__(cls, *values, **settings):
        check_names(cls.__name__, settings, (setting.name for setting in fields(cls)))
        return super().__new__(cls)


def some_names(names: Sequence[str], limit: int = 5) -> str:
    """The first names, quoted, and how many more there are; for messages."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
