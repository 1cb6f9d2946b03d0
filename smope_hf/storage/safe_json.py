"""Reading JSON that somebody else wrote: limits on size, counts, nesting, numbers; errors that name the field."""

import json
import math
import os
import re
import reprlib
from pathlib import Path

from ..base.printable import printable
from .foreign_files import read_bytes

MAX_BYTES = 64 * 2**20
MAX_MEMORY = 170 * 10**6  # bytes that text and values may take together, by the counts below
MAX_CONTAINERS = 3 * 10**5
MAX_VALUES = 2 * 10**6  # what is parsed and looked at in about a second
# Bytes of an empty list in a list, of a number in one, of a name with its place in an object, of a short text.
CONTAINER, VALUE, NAME, STRING = 96, 40, 110, 60
MAX_DEPTH = 64
MAX_INTEGER = 2**63
MAX_DIGITS = 20  # of an integer that is worth converting: 2**63 has 19, and a sign
LONGEST_MESSAGE = 1500  # characters of another library's message, or of a value, in one of ours
ADVICE = "Take the file from the checkpoint's author again."

_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOTHING = type(None)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60


class _Refused:
    """Stands in the parsed content where the text holds something that is not allowed."""

    def __init__(self, what: str):
        self.what = what


def shown(value) -> str:
    """A value as an error message shows it: its repr in at most 80 characters, whatever its size, nothing hidden."""
    text = printable(_SHORT.repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def clipped(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """Text as a message can hold it: what is longer loses its middle."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} [...] {text[-limit // 4 :]}"


def read_json(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> dict:
    """Read a JSON file whose top level is an object, within limits that hold before memory is taken.

    Args:
        path: the file.
        max_bytes: largest size of the file; default 64 MiB.

    Returns:
        The object. It has no key twice, at most 64 levels, no NaN or infinity, and no integer beyond 2**63.

    Raises:
        ValueError: for content outside these limits; the message names the file, the field and the value.
        OSError: when the file cannot be read, or is no regular file.
    """
    path = Path(path)
    try:
        raw = read_bytes(path, max_bytes)
    except ValueError as error:
        raise ValueError(f"{error} {ADVICE}") from None
    _check_counts(raw, path)
    has_long_number = b"0" * (MAX_DIGITS + 1) in raw.translate(_DIGITS)  # else no integer needs a look of its own
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}. {ADVICE}") from error
    del raw
    parsers = {"object_pairs_hook": _object, "parse_constant": _Refused}
    if has_long_number:
        parsers["parse_int"] = _integer
    try:
        content = json.loads(text, **parsers)
    except RecursionError:
        raise ValueError(_too_deep(path, _deep_field(text))) from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. {ADVICE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {shown(content)} at its top level. Allowed: an object. {ADVICE}")
    check_values(content, path)
    return content


def _check_counts(raw: bytes, path: Path):
    """Refuse JSON that would take much more memory than its text, or seconds, before it is parsed.

    What stands in text between quotes counts too, so that the true numbers are lower.
    """
    containers, commas, names = raw.count(b"[") + raw.count(b"{"), raw.count(b","), raw.count(b":")
    values = commas + names
    plain = raw.isascii() and b"\\u" not in raw  # else each character of a text can take four bytes
    strings = len(raw) - sum(map(raw.count, (b" ", b"\n"))) if plain else 4 * len(raw)
    text = len(raw) if raw.isascii() else 4 * len(raw)
    quoted = raw.count(b'"') // 2
    parsed = containers * CONTAINER + commas * VALUE + names * NAME + quoted * STRING + (strings if quoted else 0)
    if containers > MAX_CONTAINERS or values > MAX_VALUES:
        raise ValueError(
            f"{path} holds about {containers} lists and objects and {values} values, and at most {MAX_CONTAINERS} and "
            f"{MAX_VALUES} are read of such a file. {ADVICE}"
        )
    needed = text + max(len(raw), parsed)
    if needed > MAX_MEMORY:
        raise ValueError(
            f"{path} would take about {needed // 10**6} MB of memory ({containers} lists and objects, {values} "
            f"values, {len(raw)} bytes), and at most {MAX_MEMORY // 10**6} MB are taken for such a file. {ADVICE}"
        )


def check_values(content: dict, source: str | os.PathLike):
    """Refuse parsed JSON that nests too deep or holds numbers and text that no field may have.

    Args:
        content: what the JSON parser gave; values of other types are left alone.
        source: the file's name, for the message.

    Raises:
        ValueError: naming the field, such as `layers[0].usage_share[2]`.
    """
    waiting = [(content, 0)]
    while waiting:
        holder, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(_too_deep(source, _field_of(content, holder)))
        if isinstance(holder, list) and _are_fine(holder):
            continue
        parts = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for name, value in parts:
            if isinstance(value, (dict, list, tuple)):
                waiting.append((value, depth + 1))
                continue
            problem = _problem_of(value) or (_problem_of(name) if isinstance(name, str) else None)
            if problem:
                where = _joined(_field_of(content, holder), name)
                raise ValueError(f"{source}: {short_name(where)} is {problem}. {ADVICE}")


def _are_fine(values: list) -> bool:
    """Whether a list holds numbers or plain text alone, all of them allowed: found out without a step for each."""
    kinds = set(map(type, values))
    if kinds == {str}:
        return all(map(str.isascii, values))
    if kinds == {int}:
        return -MAX_INTEGER <= min(values) and max(values) <= MAX_INTEGER
    if kinds == {float, _NOTHING}:
        values = [value for value in values if value is not None]
        kinds = {float}
    return kinds == {float} and all(map(math.isfinite, values))


def _problem_of(value) -> str | None:
    """What is wrong with a number, a text or a name; None where nothing is."""
    kind = type(value)
    if kind is str:
        if value.isascii() or not _SURROGATE.search(value):
            return None
        return f"{value[:20]!a}, and only characters that UTF-8 can write are allowed"
    if kind is float:
        return None if math.isfinite(value) else f"{value}, and only finite numbers are allowed"
    if kind is int:
        fits = -MAX_INTEGER <= value <= MAX_INTEGER
        return None if fits else f"{shown(value)}, and only integers up to 2**63 are allowed"
    return value.what if kind is _Refused else None


def _field_of(content: dict, wanted) -> str:
    """Where a list or object is in the content: looked for when there is something to say of it alone."""
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        field, value = waiting.pop()
        if value is wanted:
            return field
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [(_joined(field, name), part) for name, part in parts if isinstance(part, (dict, list, tuple))]
    raise LookupError("what was found a moment ago is in the content")


def _joined(field: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{field}[{name}]"
    return short_name(f"{field}.{name}" if field else str(name))


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


def _too_deep(source: str | os.PathLike, field: str) -> str:
    return f"{source}: {short_name(field)} nests deeper than {MAX_DEPTH} levels, the most that is read. {ADVICE}"


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


def short_name(field: str) -> str:
    """The name of a field or tensor as a message has it: printable, in at most 80 characters."""
    text = field if len(field) <= 80 else f"{field[:60]}...{field[-15:]}"
    return text if text.isprintable() else ascii(text)
