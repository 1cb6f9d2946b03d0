"""The command line `smope`: its commands, and the options before them."""

import typer

from .cli_add_classes import add_classes
from .cli_errors import DEBUG, CommandGroup
from .cli_evaluate import evaluate
from .cli_export import export
from .cli_info import info
from .cli_options import CONTEXT, Command
from .cli_plot import plot
from .cli_predict import predict
from .cli_push import push
from .cli_report import report
from .cli_train import train
from .printing import say, say_lines

app = typer.Typer(
    name="smope", cls=CommandGroup, add_completion=False, rich_markup_mode=None, context_settings=CONTEXT
)
for command in (train, evaluate, add_classes, predict, info, plot, report, export, push):
    app.command(command.__name__.replace("_", "-"), cls=Command)(command)


def _print_version(wanted: bool):
    if wanted:
        from .version import __version__

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
