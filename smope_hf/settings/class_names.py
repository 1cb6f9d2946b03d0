"""Which names a class may have: one that people can tell from nothing, and that every file can hold."""

from collections.abc import Mapping

from ..base.printable import is_blank, printable

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


def _cannot_be_saved(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)
