"""Reading JSON that somebody else wrote: limits on size, nesting and numbers, and errors that name the field."""

import json
import math
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
MAX_INTEGER = 2**63
MAX_DIGITS = 20  # of an integer that is worth converting: 2**63 has 19, and a sign
ADVICE = "Take the file from the checkpoint's author again."

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60


class _Refused:
    """Stands in the parsed content where the text holds something that is not allowed."""

    def __init__(self, what: str):
        self.what = what


def shown(value) -> str:
    """A value as an error message shows it: its repr in at most 80 characters, whatever its size."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_json(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> dict:
    """Read a JSON file whose top level is an object, within limits that hold before memory is taken.

    Args:
        path: the file.
        max_bytes: largest size of the file; default 64 MiB.

    Returns:
        The object. It has no key twice, at most 64 levels, no NaN or infinity, and no integer beyond 2**63.

    Raises:
        ValueError: for content outside these limits; the message names the file, the field and the value.
        OSError: when the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes, the most that is read of such a file. {ADVICE}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}. {ADVICE}") from error
    try:
        content = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_constant=lambda name: _Refused(name)
        )
    except RecursionError:
        raise ValueError(_too_deep(path, _deep_field(text))) from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. {ADVICE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {shown(content)} at its top level. Allowed: an object. {ADVICE}")
    check_values(content, path)
    return content


def check_values(content: dict, source: str | os.PathLike):
    """Refuse parsed JSON that nests too deep or holds numbers and text that no field may have.

    Args:
        content: what the JSON parser gave; values of other types are left alone.
        source: the file's name, for the message.

    Raises:
        ValueError: naming the field, such as `layers[0].usage_share[2]`.
    """
    for field, depth, value in _walk(content):
        if depth > MAX_DEPTH:
            raise ValueError(_too_deep(source, field))
        if isinstance(value, _Refused):
            problem = value.what
        elif isinstance(value, float) and not math.isfinite(value):
            problem = f"{value}, and only finite numbers are allowed"
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            problem = f"{shown(value)}, and only integers up to 2**63 are allowed"
        elif isinstance(value, str) and not _is_text(value):
            problem = f"{value[:20]!a}, and only characters that UTF-8 can write are allowed"
        else:
            continue
        raise ValueError(f"{source}: {_short_field(field)} is {problem}. {ADVICE}")


def _walk(content: dict) -> Iterator[tuple[str, int, object]]:
    """Every value with its path and depth, without recursion; keys count as text of their own field."""
    waiting = [("", 0, content)]
    while waiting:
        field, depth, value = waiting.pop()
        yield field, depth, value
        if depth > MAX_DEPTH:
            continue
        if isinstance(value, dict):
            for key, item in value.items():
                inner = f"{field}.{key}" if field else str(key)
                if isinstance(key, str) and not key.isascii():
                    yield inner, depth, key
                waiting.append((inner, depth + 1, item))
        elif isinstance(value, (list, tuple)):
            waiting.extend((f"{field}[{index}]", depth + 1, item) for index, item in enumerate(value))


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                found[key] = _Refused("given twice in one object")
            seen.add(key)
    return found


def _integer(digits: str) -> int | _Refused:
    if len(digits) > MAX_DIGITS:  # Python refuses to convert thousands of digits, without a word on the field
        return _Refused(f"{digits[:40]}... ({len(digits)} digits), and only integers up to 2**63 are allowed")
    return int(digits)


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _too_deep(source: str | os.PathLike, field: str) -> str:
    return f"{source}: {_short_field(field)} nests deeper than {MAX_DEPTH} levels, the most that is read. {ADVICE}"


def _deep_field(text: str) -> str:
    """The last name on the top level before the text nests too deep."""
    depth, field = 0, "the top level"
    for token in _TOKEN.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
        elif depth == 1:
            field = token[0].strip('"')
        if depth > MAX_DEPTH:
            break
    return field


def _short_field(field: str) -> str:
    text = field if len(field) <= 80 else f"{field[:60]}...{field[-15:]}"
    return text if text.isprintable() else ascii(text)
