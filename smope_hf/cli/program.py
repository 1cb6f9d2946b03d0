"""The command line `smope`: its commands, and the options before them."""

import typer

from ..base.printing import say, say_lines
from .add_classes import add_classes
from .errors import DEBUG, CommandGroup
from .evaluate import evaluate
from .export import export
from .info import info
from .options import CONTEXT, Command
from .plot import plot
from .predict import predict
from .push import push
from .report import report
from .train import train

app = typer.Typer(
    name="smope", cls=CommandGroup, add_completion=False, rich_markup_mode=None, context_settings=CONTEXT
)
for command in (train, evaluate, add_classes, predict, info, plot, report, export, push):
    app.command(command.__name__.replace("_", "-"), cls=Command)(command)


def _print_version(wanted: bool):
    if wanted:
        from ..version import __version__

        say(f"smope_hf {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def smope(
    context: typer.Context,
    debug: bool = typer.Option(False, DEBUG, help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
):
    """A frozen vision transformer learns new image classes, task after task.

    \b
    Example, without any download:
      smope train --dataset embedded --backbone embedded --num-tasks 5 \\
          --epochs 2 --batch-size 32 --output-dir runs/digits
      smope info runs/digits
    """
    if context.invoked_subcommand is None:
        say_lines(context.get_help())


def main():
    """Entry point of the command line."""
    app()


if __name__ == "__main__":
    main()
