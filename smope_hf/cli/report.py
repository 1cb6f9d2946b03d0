"""`smope report`: the story of one run, or several runs side by side, as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from ..base.printing import say


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or of tasks.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: report.html in the run; needed for several.")
    ] = None,
):
    """Write a run's report, or compare several runs.

    The report is one HTML file without any other file or the network: open it
    in a browser, or send it. Runs that differ in their seed alone are one
    line with a band; runs on different tasks are kept apart.

    \b
    Examples:
      smope report runs/cifar100
      smope report runs/seed-0 runs/seed-1 --output comparison.html
    """
    if output is None and len(runs) > 1:
        raise ValueError("several runs in one report: give the file to write it to with --output")
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {output} is not allowed. Allowed: a file that ends in .html.")
    from ..storage.output_check import try_file

    if output is not None or runs[0].is_dir():
        try_file(output or runs[0] / "report.html", "the report")
    if len(runs) > 1:
        from ..reports.comparison_report import write_comparison

        say(write_comparison(runs, output))
    else:
        from ..reports.run_report import write_report

        say(write_report(runs[0], output))
