"""`smope push`: a run's tasks on the Hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name, or name; made where it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private when it is made.")] = False,
    include_backbone: Annotated[
        bool, typer.Option("--include-backbone", help="Push standalone models, with the backbone in them.")
    ] = False,
    remote_code: Annotated[
        bool, typer.Option("--remote-code", help="Push the model's code too, for machines without smope_hf.")
    ] = False,
    onto: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Commit of the repository that the first new task goes on.")
    ] = None,
):
    """Push a run to the Hub.

    Each task becomes one commit and a tag: task-01, task-02, ...

    \b
    Examples:
      smope push runs/cifar100 me/cifar100-smope --private
      smope push runs/cifar100 me/cifar100-smope --include-backbone

    Log in first, with `hf auth login` or HF_TOKEN. A push that broke off is finished by the same command.
    """
    from .cli_common import be_quiet

    be_quiet()
    push_and_report(
        folder, repository, private=private, include_backbone=include_backbone, remote_code=remote_code, onto=onto
    )


def push_and_report(folder: Path, repository: str, **options):
    """Push, and say on stdout which task is where."""
    from .hub import push_run

    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder of a run, which holds task-01/ and so on")
    pushed = push_run(folder, repository, report=lambda text: typer.echo(text, err=True), **options)
    for task in pushed:
        typer.echo(f"{task.tag}  {task.commit[:12]}  {'pushed' if task.created else 'was there'}  {task.url}")
