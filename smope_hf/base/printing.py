"""The only place that writes to the terminal: whatever a name in it holds, a line is a line and nothing is hidden.

Light to import: commands print before any library is loaded.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .printable import printable, printable_json, printable_lines

LONGEST_LINE = 2000  # characters of a message; the rest is counted


def say(line: object, err: bool = False):
    """Print one line of at most 2,000 characters.

    Args:
        line: what to say, with names from anywhere in it.
        err: on stderr. Default: on stdout.
    """
    _write(printable(line, LONGEST_LINE), err)


def say_lines(text: str, err: bool = False):
    """Print text of our own in several lines, such as a help page, a table or a traceback."""
    _write(printable_lines(text), err)


def say_once(accelerator, line: object):
    """As `say`, on the main process of each machine alone.

    Args:
        accelerator: of the run.
        line: what to say.
    """
    if accelerator.is_local_main_process:
        say(line)


def print_json(content: dict | list):
    """Print JSON on stdout, as every parser takes it: what cannot be seen or written there as JSON's own escape."""
    text = printable_json(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False))
    if _fitting(text, sys.stdout) != text:  # with Python's escapes in it, it would be no JSON
        text = printable_json(json.dumps(content, indent=2, allow_nan=False))
    _write(text)


def print_rich(*parts):
    """Print what rich makes lines of; strings in it are taken as they are, never as markup or names of emoji."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        with console.capture() as captured:
            console.print(part)
        _write(captured.get().removesuffix("\n"))


@contextmanager
def printable_warnings() -> Iterator[None]:
    """A block in which what libraries warn of is printed with nothing hidden in it."""
    before = warnings.formatwarning

    def shown(message, category, filename, lineno, line=None):
        return before(printable(message, LONGEST_LINE), category, filename, lineno, line)

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = before


def make_logs_printable(libraries: Sequence[str]):
    """Have what libraries log printed with nothing hidden in it, from now on.

    Args:
        libraries: their names; they are imported already.
    """
    for name in libraries:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_make_printable)


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage(), LONGEST_LINE), ()
    return True


def _write(text: str, err: bool = False):
    stream = sys.stderr if err else sys.stdout
    print(_fitting(text, stream), file=stream, flush=True)


def _fitting(text: str, stream) -> str:
    """The text with escapes for the letters that a terminal or a pipe cannot write."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
