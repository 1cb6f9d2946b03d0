"""`smope plot`: the pictures of one run, or several runs in one picture."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..base.printing import say

THEMES = ("light", "dark")
FORMATS = ("png", "svg")
COSTS_FILE = "results.csv"


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or of tasks.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: plots/ in the run; needed for several.")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", metavar="NAME", help="png or svg.")] = "png",
    theme: Annotated[str, typer.Option(metavar="NAME", help="light or dark.")] = "light",
    every_task: Annotated[
        bool, typer.Option("--every-task", help="Draw the usage of experts for every task, not the last one alone.")
    ] = False,
):
    """Draw accuracies, forgetting, confusion and usage of experts.

    Of several runs, average accuracy and forgetting in one picture each; runs
    that differ in their seed alone are one line with a band.

    Where its routing was recorded (smope train --record-routing), also what is left of old tasks'
    routing, and its balance over the steps of training.

    Of the folder of examples/benchmark.py, methods against their costs.

    \b
    Examples:
      smope plot runs/cifar100 --format svg
      smope plot runs/seed-0 runs/seed-1 --output figures --theme dark
    """
    for name, value, allowed in (("format", file_format, FORMATS), ("theme", theme, THEMES)):
        if value not in allowed:
            raise ValueError(f"--{name} {value} is not allowed. Allowed: {' or '.join(allowed)}.")
    if output is None and len(runs) > 1:
        raise ValueError("several runs in one picture: give the folder to write it to with --output")

    from ..storage.output_check import try_folder

    folder = output or (runs[0] if runs[0].is_dir() else runs[0].parent) / "plots"
    if output is not None or folder.parent.is_dir():  # a run that is not there is told below
        try_folder(folder, "the folder of pictures", f"expert_usage-task-01.{file_format}")

    from ..reports.plots import DARK, LIGHT

    pictures = draw_together(runs) if len(runs) > 1 else draw_run(runs[0], every_task)
    for picture in pictures:
        path = folder / f"{picture.name}.{file_format}"
        picture.draw(path, theme={"light": LIGHT, "dark": DARK}[theme])
        say(path)


def draw_together(runs: list[Path]) -> list:
    """The pictures of several runs, those that differ in their seed alone as one line with a band."""
    from ..reports.run_folder import open_runs
    from ..reports.run_groups import by_protocol, group_runs
    from ..reports.run_pictures import group_pictures

    opened = open_runs(runs)
    parts = by_protocol(opened)
    if len(parts) > 1:
        others = "; ".join(", ".join(part) for part in parts)
        raise ValueError(
            f"these runs learned different tasks, so they share no picture: {others}. Plot each of these parts alone, "
            "or see smope report."
        )
    return group_pictures(group_runs(opened))


def draw_run(run: Path, every_task: bool) -> list:
    """The pictures of one run, or of a benchmark's table."""
    from functools import partial

    from ..reports.plots import plot_costs, read_costs
    from ..reports.run_folder import RunFolder
    from ..reports.run_pictures import Picture, accuracy_pictures, routing_pictures

    table = run / COSTS_FILE if run.is_dir() else run
    if table.name == COSTS_FILE and os.path.lexists(table) and not table.is_dir():  # reading says what else it is
        draw = partial(plot_costs, read_costs(table))
        return [Picture("costs", "Final average accuracy over parameters and over GFLOPs.", draw)]
    opened = RunFolder(run)
    if not opened.matrix.is_complete:
        say("no average accuracy: not every task was tested after every task", err=True)
    return accuracy_pictures(opened) + routing_pictures(opened, every_task)
