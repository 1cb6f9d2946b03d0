"""What the fields of a JSON file may hold: predicates, and refusing by the name of file and field."""

import os
from collections.abc import Callable

from ..base.named_settings import MAX_EXPERTS
from .safe_json import ADVICE, shown

MAX_TASKS = 1000  # of one model: the matrices over two tasks each grow with its square
MAX_COUNT = 2**40  # of images or steps: sums over all experts, heads and tasks stay within 64 bits
MAX_SECONDS = 10**10  # 300 years
MAX_NAME, MAX_SETTINGS, MAX_TEXT = 100, 200, 5000  # the longest path has 4096 characters
Fields = dict[str, tuple[Callable[[object], bool], str]]


def is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_fraction(value) -> bool:
    return is_number(value) and 0 <= value <= 1


def is_list_of(value, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(fits(item) for item in value)


def is_object_of(value, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(fits(item) for item in value.values())


def is_text(value) -> bool:
    return isinstance(value, str)


def is_short_text(value) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def are_versions(value) -> bool:
    return is_object_of(value, is_short_text) and len(value) <= 100


def is_number_of_experts(value) -> bool:
    return is_count(value) and 1 <= value <= MAX_EXPERTS


def is_seconds(value) -> bool:
    """Earlier versions have written less than 0 where a clock went back; see `stopwatch.as_measured`."""
    return is_number(value) and abs(value) <= MAX_SECONDS


def is_setting(value) -> bool:
    """A switch, a number, a text, nothing, or a short list or object of these."""
    if isinstance(value, (list, dict)):
        parts = value if isinstance(value, list) else value.values()
        return len(value) <= MAX_SETTINGS and all(
            not isinstance(part, (list, dict)) and is_setting(part) for part in parts
        )
    return value is None or is_number(value) or isinstance(value, bool) or is_short_text(value)


def is_settings(value) -> bool:
    """Settings by name, as a recipe has them."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_SETTINGS
        and all(len(name) <= MAX_NAME and is_setting(part) for name, part in value.items())
    )


def is_list_per_task(value, fits: Callable[[object], bool]) -> bool:
    return is_list_of(value, fits) and len(value) <= MAX_TASKS


def is_triangle(value) -> bool:
    """Row t has t + 1 fractions, or null where nothing was measured."""
    return is_list_per_task(
        value, lambda row: is_list_of(row, lambda cell: cell is None or is_fraction(cell))
    ) and all(len(row) == index + 1 for index, row in enumerate(value))


def is_confusion(value) -> bool:
    """Row t has a count for each task; null where the task has no test images."""
    return is_list_per_task(value, lambda row: row is None or (is_list_of(row, is_count) and len(row) == len(value)))


def check_task_count(count: int):
    """Refuse more tasks than are read back, before anything is learned.

    Raises:
        ValueError: with the number and what is allowed.
    """
    if count > MAX_TASKS:
        raise ValueError(
            f"{count} tasks are not allowed in one model. Allowed: at most {MAX_TASKS}, as no checkpoint with more is "
            "read back. Make tasks of more classes each."
        )


def check_fields(content: dict, fields: Fields, file: str | os.PathLike, where: str = ""):
    """Check that an object of a file has all of some fields, and that each holds what it may.

    Raises:
        ValueError: naming the file, the field and what is allowed.
    """
    for name, (fits, allowed) in fields.items():
        if name not in content:
            raise ValueError(f"{file}: {where}{name} is missing. Expected: {allowed}. {ADVICE}")
        require(file, where + name, content[name], fits(content[name]), allowed)


def require(file: str | os.PathLike, name: str, value, fits: bool, allowed: str):
    """Refuse a value of a file.

    Raises:
        ValueError: naming the file, the field and what is allowed.
    """
    if not fits:
        raise ValueError(f"{file}: {name} is {shown(value)}. Allowed: {allowed}. {ADVICE}")
