"""What all reports share: one HTML file from a template, its pictures inside, text from a run always escaped."""

import base64
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..base.printable import printable
from ..storage.files import atomic_path
from ..version import __version__
from .plots import DARK, LIGHT
from .run_pictures import Picture

LONGEST_TEXT = 2000  # characters of a warning or a setting
NUMBER, TEXT, BAR = "number", "text", "bar"  # kinds of columns, as the style sheet names them
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*[a-z])")


def write_html(path: str | os.PathLike, template: str, context: dict):
    """Fill a template and write the file whole or not at all.

    Args:
        path: the file.
        template: name of a file in templates/. Every value is escaped as it goes in, and made printable; a
            name that is missing is an error.
        context: values by name.
    """
    environment = Environment(
        loader=PackageLoader("smope_hf.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters["with_options"] = with_options
    text = environment.get_template(template).render(version=__version__, **context)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _printable(value):
    """What stands in the page for a value; markup is our own, and its parts were here before."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def embedded(pictures: Sequence[Picture]) -> list[dict]:
    """Draw pictures as SVG, once for light and once for dark pages, as URLs that hold them."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for picture in pictures:
            urls = {}
            for name, theme in (("light", LIGHT), ("dark", DARK)):
                file = Path(folder) / f"{name}.svg"
                picture.draw(file, theme=theme)
                urls[name] = "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
            found.append({"name": picture.name, "text": picture.text, **urls})
    return found


def table(columns: Mapping[str, str] | Sequence[tuple[str, str]], rows: list[list]) -> dict:
    """A table for the templates: columns with their kinds ("" for short text), and rows of cells."""
    return {"columns": list(columns.items() if isinstance(columns, Mapping) else columns), "rows": rows}


def percent(fraction: float | None, spread: float | None = None) -> str:
    """A fraction in percent, and the spread over seeds where there is one."""
    if fraction is None or fraction != fraction:
        return "n/a"
    text = f"{100 * fraction + 0.0:.1f}"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 59.5:
        return f"{seconds:.{2 if seconds < 0.95 else 1 if seconds < 9.95 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def shown_value(value) -> str:
    """A setting's value as people write it."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown_value, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return printable(text, LONGEST_TEXT)


def with_options(text: str) -> Markup:
    """Text with its command line options as code that no line break divides; everything is escaped."""
    parts = _OPTION.split(printable(text, LONGEST_TEXT))  # text and options in turn
    return Markup("").join(
        Markup('<code class="option">{}</code>').format(part) if index % 2 else part
        for index, part in enumerate(parts)
    )


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
