"""`smope push`: a run's tasks on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ..base.printing import say


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name, or name; made where it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private when it is made.")] = False,
    include_backbone: Annotated[
        bool, typer.Option("--include-backbone", help="Push standalone models, with the backbone in them.")
    ] = False,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where the base model to include is, if not where DIR says.")
    ] = None,
    remote_code: Annotated[
        bool, typer.Option("--remote-code", help="Push the model's code too, for machines without smope_hf.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="License that the model cards state, such as apache-2.0.")
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option(metavar="COMMIT", help="A commit of somebody else on main that this push may build on."),
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
    from ..sharing.hub import push_run
    from .common import be_quiet

    be_quiet()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder of a run, which holds task-01/ and so on")
    options = {"private": private, "include_backbone": include_backbone, "backbone": backbone}
    options |= {"remote_code": remote_code, "onto": onto, "license": license}
    pushed = push_run(folder, repository, report=say, **options)
    say(f"The newest task: {pushed[-1].url}")
