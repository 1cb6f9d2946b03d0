"""Text that somebody else wrote, made fit to be shown: what is invisible, or moves or hides other text, is escaped.

Names as they are stored, compared and hashed never go through here: it is for eyes alone.
"""

import unicodedata
from collections.abc import Iterator

LEAST_LIMIT = 64  # characters: room for the note on what was left out
MARKS_IN_A_ROW = 4  # accents on one letter; Unicode's security report (UTS 39, 5.4) takes more for an attack

_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))  # categories, as Python's own repr() escapes them
_NUMBER_SIGNS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00016fe4\U0001d159")  # letters without ink
_MONGOLIAN = "\u180b\u180c\u180d\u180f"  # variation selectors of one script
_JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner
_KEYCAP = "\u20e3"
_VIRAMA = 9  # combining class


def printable(text: object, limit: int | None = None) -> str:
    """One line that a terminal, a page or a card can show, with nothing in it that is not seen.

    Control characters and escape sequences, line breaks, marks of direction, invisible characters, tags, lone
    surrogates, letters without ink and more than four accents in a row are written as Python writes them in text:
    `\\x1b`, `\\n`, `\\u202e`. Everything else stays as it is, all scripts and emoji among it. A joiner of zero width
    stays between the letters and emoji that it is made for (Persian, the scripts of India, families of emoji), and a
    variation selector behind the one character that it varies; anywhere else they are invisible, and are escaped.
    Flags of parts of countries are spelled with tags, and show their escapes. Doing it twice changes nothing.

    Args:
        text: any text; another object by its `str()`, such as a path.
        limit: most characters of the answer, at least 64. What is too long is cut in its middle, since the end of a
            path or a message tells as much as its beginning, and the number of characters left out is said there.
            Default: no limit.

    Returns:
        The text in one line. Only as much is read as is shown.

    Raises:
        ValueError: for a limit below 64.
    """
    text = str(text)
    if limit is None:
        return text if text.isascii() and text.isprintable() else "".join(_shown(text))
    if limit < LEAST_LIMIT:
        raise ValueError(f"limit = {limit} is not allowed. Allowed: {LEAST_LIMIT} or more characters.")
    whole, read = _as_much_as_fits(text, limit)
    if read == len(text):
        return whole
    room = limit - len(_note(len(text)))
    head, read = _as_much_as_fits(text, room - room // 3)
    kept = head.rstrip(_JOINERS)  # a joiner joins what follows, which is not there
    tail, unread = _end_that_fits(text, room // 3)
    return kept + _note(len(text) - read - unread + len(head) - len(kept)) + tail


def printable_lines(text: str, limit: int | None = None) -> str:
    """Several lines, each as `printable` gives it: for text of our own that has names of others in it."""
    return "\n".join(printable(line, limit) for line in text.split("\n"))


def printable_json(text: str) -> str:
    """JSON with the same values in which nothing is invisible: what `printable` escapes is `\\uXXXX` in it.

    Args:
        text: JSON as `json.dumps` gives it, where the only control character is the line break between values.
    """
    if text.isascii():  # json.dumps has escaped all others, but for the last of them
        return text.replace("\x7f", "\\u007f")
    return "".join(c if shown or c == "\n" else _as_json(c) for c, shown in _looked_at(text))


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: it is empty, or all spaces, control and invisible characters."""
    return not any(
        not character.isspace() if shown else unicodedata.category(character) in ("Co", "Cn", "Cs")
        for character, shown in _looked_at(text)
    )


def without_hidden(text: str) -> str:
    """The text without what `printable` would escape."""
    return "".join(character for character, shown in _looked_at(text) if shown)


def _looked_at(text: str) -> Iterator[tuple[str, bool]]:
    """Each character, and whether it can be shown as it is."""
    before = base = ""  # the character before, and the last one that is no mark; none behind an escape
    marks = 0
    for place, character in enumerate(text):
        after = text[place + 1 : place + 2]
        if character in _JOINERS:
            shown = _joins(before, base, character, after)
        elif _is_selector(character):
            shown, marks = _takes_selector(before, base, after), marks + 1
        elif character in _BLANK:
            shown = False
        elif unicodedata.category(character) in ("Mn", "Me"):
            marks += 1
            shown = base not in ("", " ") and marks <= MARKS_IN_A_ROW
        else:
            shown, marks, base = _is_seen(character), 0, character
        yield character, shown
        before = character if shown else ""
        base = base if shown else ""


def _is_seen(character: str) -> bool:
    return character in _NUMBER_SIGNS or unicodedata.category(character) not in _HIDDEN


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef" or character in _MONGOLIAN


def _takes_selector(before: str, base: str, after: str) -> bool:
    """Emoji, symbols, and letters of scripts without case have variants; digits as keycaps alone."""
    if not before or before != base:
        return False
    if before.isascii():
        return after == _KEYCAP
    return unicodedata.category(before) in ("So", "Sm", "Po", "Pd", "Lo") or before == "\u2139"


def _joins(before: str, base: str, joiner: str, after: str) -> bool:
    """Behind a virama, between letters that are written joined, and between emoji (RFC 5892, appendix A)."""
    if not before or not base or before in _JOINERS:
        return False
    if unicodedata.combining(before) == _VIRAMA:
        return True
    if unicodedata.bidirectional(base) == unicodedata.bidirectional(after or " ") == "AL":
        return True
    emoji = unicodedata.category(base) in ("So", "Sk") and unicodedata.category(after or " ") == "So"
    return joiner == "\u200d" and emoji and after not in _BLANK


def _shown(text: str) -> Iterator[str]:
    return (character if shown else _escape(character) for character, shown in _looked_at(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _as_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))


def _as_much_as_fits(text: str, room: int) -> tuple[str, int]:
    """The beginning as it is shown, in at most so many characters, and how much of the text that is."""
    parts, length = [], 0
    for part in _shown(text):
        length += len(part)
        if length > room:
            break
        parts.append(part)
    return "".join(parts), len(parts)


def _end_that_fits(text: str, room: int) -> tuple[str, int]:
    """The same of the end."""
    parts, length = list(_shown(text[-room:])), 0
    for count, part in enumerate(reversed(parts)):
        length += len(part)
        if length > room:
            return "".join(parts[len(parts) - count :]), count
    return "".join(parts), len(parts)


def _note(count: int) -> str:
    return f"... ({count:,} characters left out) ..."
