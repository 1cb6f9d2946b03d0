"""Errors of the command line: one line on stderr and exit code 2; the traceback only with --debug."""

import sys
import traceback
from collections.abc import Sequence

from typer.core import TyperGroup
from typer.exceptions import TyperException

from ..base.printing import printable_warnings, say, say_lines

DEBUG = "--debug"


class CommandGroup(TyperGroup):
    """The commands of `smope`. `--debug` is taken before and after the command's name."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra):
        arguments = list(sys.argv[1:] if args is None else args)
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        debug = DEBUG in options
        rest = [part for part in options if part != DEBUG] + arguments[len(options) :]
        extra["standalone_mode"] = False
        try:
            with printable_warnings():
                code = super().main(rest, prog_name or "smope", **extra)
        except Exception as error:
            if debug:  # Python's own traceback shows no values of variables, a token could be among them
                say_lines(traceback.format_exc().removesuffix("\n"), err=True)
            say(f"error: {describe(error)}", err=True)
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)


def describe(error: Exception) -> str:
    """The message of an error in one line."""
    from huggingface_hub.errors import StrictDataclassError

    from ..storage.safe_json import clipped

    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        hint = f" See: {context.command_path} --help" if context is not None else ""
        nearest = getattr(error, "possibilities", None)
        message = f"{error.message}. Did you mean {nearest[0]!r}?" if nearest else error.format_message()
        return _one_line(message) + hint
    if isinstance(error, StrictDataclassError) and isinstance(error.__cause__, ValueError):
        return describe(error.__cause__)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = clipped(_one_line(str(error)))
    expected = (ValueError, OSError, StrictDataclassError, RuntimeError, ImportError)
    if text and isinstance(error, expected):
        return text
    return f"{type(error).__name__}: {text} (not expected; {DEBUG} shows where it happened)"


def _one_line(text: str) -> str:
    return " ".join(text.split())
