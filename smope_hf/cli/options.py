"""Options of commands made from dataclasses, and help pages of two aligned columns."""

import inspect
import re
import typing
from collections.abc import Callable, Container
from dataclasses import MISSING, Field, fields
from typing import Annotated

import typer
from typer.core import TyperCommand

from ..base.home import expanded
from ..settings.checked_arguments import field_kind

CONTEXT = {
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --output_dir is --output-dir
    "help_option_names": ["-h", "--help"],
    "max_content_width": 120,
}
_PLACEHOLDERS = {
    str: "TEXT", int: "INT", float: "NUM",
    list[int]: "INT,INT,...", list[float]: "NUM,NUM", list[str]: "NAME,NAME,...",
}  # fmt: skip
PLACES = ("recipe", "model", "runs", "folder", "images", "data", "test_data", "backbone", "output")
"""Parameters of commands that may be a place on this machine. In them ~ is the home folder, whatever the shell did.

Those that are settings of a dataclass are in its own list.
"""
_LEFT_COLUMN = 34  # characters: "--max-train-samples-per-class INT" fits

Revision = Annotated[
    str | None, typer.Option(metavar="NAME", help="A run's task-02, or a tag, branch or commit on the Hub.")
]
Backbone = Annotated[
    str | None, typer.Option(metavar="NAME", help="Where the base model is, if not where MODEL says.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
ImageColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Default: the only Image column.")]
LabelColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Default: the only ClassLabel column.")]


class Command(TyperCommand):
    """A command whose help page has its options in panels of two columns."""

    def invoke(self, ctx):
        for name in PLACES:
            value = ctx.params.get(name)
            if value is not None:
                several = isinstance(value, (list, tuple))
                ctx.params[name] = type(value)(map(expanded, value)) if several else expanded(value)
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx):
        """Arguments without the braces that typer puts around a metavar."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx, formatter):
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if not param.hidden:
                argument = param.param_type_name == "argument"
                panel = param.rich_help_panel or ("Arguments" if argument else "Options")
                panels.setdefault(panel, []).append((_left(param), _right(param)))
        width = min(_LEFT_COLUMN, max(len(left) for rows in panels.values() for left, _ in rows))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl([(left.ljust(width), right) for left, right in rows], col_max=width)


def _left(param) -> str:
    if param.param_type_name == "argument":
        return (param.metavar or param.name.upper()) + ("..." if param.nargs == -1 else "")
    if param.secondary_opts:
        return "--[no-]" + param.opts[0].removeprefix("--")
    names = ", ".join(sorted(param.opts, key=len))
    kind = param.type_descriptor.annotation
    return names if param.is_flag else f"{names} {param.metavar or _PLACEHOLDERS.get(kind, 'TEXT')}"


def _right(param) -> str:
    text = param.help or ""
    if param.required:
        return f"{text}  [required]"
    return f"{text}  [{param.default}]" if param.default else text


def with_options(*arguments: type, only: Container[str] | None = None, defaults: bool = True) -> Callable:
    """Decorator: give a command the fields of dataclasses as options, in place of its `**options`.

    An option that is not given comes as None, so that the command can tell what was.

    Args:
        arguments: dataclasses whose fields have a `help` in their metadata.
        only: names of the fields to take. Default: all.
        defaults: tell the fields' defaults in the help page.
    """

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [
            _option(dataclass, setting, defaults)
            for dataclass in arguments
            for setting in fields(dataclass)
            if only is None or setting.name in only
        ]
        command.__signature__ = inspect.Signature(sorted([*own, *made], key=lambda p: p.kind))
        return command

    return decorate


def _option(dataclass: type, setting: Field, with_default: bool) -> inspect.Parameter:
    kind, _ = field_kind(dataclass, setting.name)
    flag = setting.name.replace("_", "-")
    choices = setting.metadata.get("choices")
    text = re.sub(r"`(\w+)`", lambda found: f"--{found[1].replace('_', '-')}", setting.metadata["help"])
    if choices:
        text = f"{text} One of: {', '.join(choices)}."
    default = setting.default_factory() if setting.default_factory is not MISSING else setting.default
    if with_default and not any(default is nothing for nothing in (None, False, MISSING)) and default != []:
        shown = ",".join(f"{entry:.4g}" for entry in default) if isinstance(default, list) else str(default)
        text += f"  [{'on' if default is True else shown}]"
    option = typer.Option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
        help=text,
        metavar=None if kind is bool else "NAME" if choices else _PLACEHOLDERS[kind],
        rich_help_panel=_panel(dataclass, setting.name),
    )
    annotation = Annotated[(bool if kind is bool else str) | None, option]  # numbers: see `given`
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _panel(dataclass: type, name: str) -> str:
    if name.startswith(("hub_", "push_")):
        return "Hub"
    return dataclass.__name__.removesuffix("Arguments").removeprefix("Continual")


def given(options: dict, *arguments: type) -> dict:
    """The options that were given, as their fields take them.

    What is no number stays a text, for the dataclass to refuse with its own message.
    """
    values = {name: value for name, value in options.items() if value is not None}
    kinds = {setting.name: field_kind(kind, setting.name)[0] for kind in arguments for setting in fields(kind)}
    return {name: _converted(value, kinds[name]) for name, value in values.items()}


def _converted(value, kind: type):
    if kind in (bool, str):
        return value
    try:
        if typing.get_origin(kind) is list:
            (entry,) = typing.get_args(kind)
            return [entry(part) for part in value.split(",")]
        return kind(value)
    except ValueError:
        return value
