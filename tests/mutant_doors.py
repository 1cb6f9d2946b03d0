"""The doors through which a mutant is read: the library, commands, the page, a push's staging, a resumed run."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub.errors import StrictDataclassError
from mutant_world import RIVALS, new_classes, stop, stopped_trainer
from runs import AtStep
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from smope_hf import ContinualTrainer, SMoPEForImageClassification
from smope_hf.cli.program import app
from smope_hf.reports.run_folder import RunFolder
from smope_hf.sharing.checkpoint import load_manifest, load_state, load_statistics
from smope_hf.sharing.hub import find_checkpoint
from smope_hf.sharing.hub_files import stage
from smope_hf.sharing.model_card import card_of
from smope_hf.sharing.statistics_file import load_routing
from smope_hf.training.run_arguments import read_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "space"))
import checkpoints as page  # noqa: E402  # the page's own loading

REFUSALS = (ValueError, OSError, StrictDataclassError)
LONG_DOORS = ("auto", "predict", "evaluate", "push", "page's model", "add-classes", "report", "plot", "comparison")


class Refused(Exception):
    """A command's error line."""


def command(*arguments) -> Callable[[], None]:
    def run():
        done = CliRunner().invoke(app, [str(part) for part in arguments], env={"COLUMNS": "100"})
        lines = done.stderr.splitlines()
        if done.exit_code == 0:
            return
        if done.exit_code != 2 or len(lines) == 0 or not lines[-1].startswith("error: "):
            raise AssertionError(f"exit code {done.exit_code}: {done.output[-2000:]!r} {done.exception!r}")
        raise Refused(lines[-1])

    return run


def staged(folder: Path, include_backbone: bool) -> Callable[[], None]:
    def run():
        with TemporaryDirectory() as scratch:
            place = Path(scratch) / "staged"
            task = stage(folder, "owner/name", place, include_backbone, remote_code=True)
            assert task.mark

    return run


def taught(root: Path, folder: Path) -> Callable[[], None]:
    """Up to the point where training would begin."""

    def run():
        with TemporaryDirectory() as scratch:
            trainer = ContinualTrainer.from_checkpoint(folder, STREAM[root], output_dir=Path(scratch) / "new")
            assert len(trainer.stream) == 3

    return run


STREAM: dict = {}


def read_run(folder: Path) -> Callable[[], None]:
    def run():
        found = RunFolder(folder)
        for name in ("matrix", "yardsticks", "config", "method", "model", "recipe", "manifest", "protocol_hash"):
            getattr(found, name)
        for name in ("usage", "routing", "patterns", "training_routing", "confusion"):
            getattr(found, name)
        found.marks(0)

    return run


def resumed(root: Path) -> Callable[[], None]:
    def run():
        stopped_trainer(root, [AtStep(1, 0, stop), AtStep(2, 0, stop)])

    return run


def doors(root: Path, file: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The doors that read a file of the world, by name; the cheapest first."""
    run, _, inner = file.partition("/")
    name, scratch = Path(file).name, root / "scratch"
    if run == "recipe.yaml":
        yield "library", lambda: read_recipe(root / file)
        return
    if run == "costs":
        yield "plot", command("plot", root / "costs", "--output", scratch)
        return
    if run == "images":
        yield "predict", command("predict", root / "smope", root / "images")
        return
    if run == "base":
        yield "from_backbone", lambda: SMoPEForImageClassification.from_backbone(str(root / "base"))
        yield "load", lambda: find_checkpoint(root / "smope").load_model()
        yield "predict", command("predict", root / "smope", root / "images" / "a.png")
        return
    if run == "stopped":
        yield "library", read_run(root / run)
        yield "resume", resumed(root)
        return
    of_task = (root / file).parent if "/" not in inner or inner.startswith("task-") else None
    if of_task is not None and (of_task / "model.safetensors").exists() or run == "shards" or "config.json" in name:
        yield from checkpoint_doors(root, of_task or root / run, run)
        return
    yield "library", read_run(root / run)
    yield "info", command("info", root / run, "--json")
    yield "report", command("report", root / run, "--output", scratch / "report.html")
    yield "plot", command("plot", root / run, "--output", scratch / "plots")
    yield "comparison", command("report", root / run, root / "one-prompt", "--output", scratch / "report.html")


def checkpoint_doors(root: Path, folder: Path, run: str) -> Iterator[tuple[str, Callable[[], None]]]:
    scratch = root / "scratch"
    yield "load", lambda: find_checkpoint(folder).load_model()
    yield "state", lambda: load_state(folder)
    yield "manifest", lambda: load_manifest(folder)
    yield "statistics", lambda: load_statistics(folder)
    if run not in RIVALS or run == "one-prompt":
        yield "routing", lambda: load_routing(folder)
    yield "auto", lambda: AutoModelForImageClassification.from_pretrained(folder)
    yield "card", lambda: card_of(folder)
    yield "info", command("info", folder.parent if run in ("smope", *RIVALS) else folder)
    yield "predict", command("predict", folder, root / "images" / "a.png")
    yield "evaluate", command("evaluate", folder, "--data", root / "data", "--split", "test")
    if "task" in folder.name:
        yield "push", staged(folder, include_backbone=run == "smope")
        yield "page", lambda: page.open_checkpoints([str(folder.parent)], None)
    yield "page's model", lambda: page.Models().get(page.Place(str(folder)))
    yield "add-classes", taught(root, folder)
    yield "report", command("report", folder, "--output", scratch / "report.html")
    yield "plot", command("plot", folder, "--output", scratch / "plots")


def prepare(root: Path):
    """What the doors share, so that no trial makes it anew; and each door once, so that all code is loaded."""
    STREAM[root] = new_classes(root)
    (root / "scratch").mkdir(exist_ok=True)
    for file in ("smope/task-02/config.json", "l2p/task-02/config.json", "smope/metrics.json"):
        for name, door in doors(root, file):
            try:
                door()
            except (*REFUSALS, Refused) as error:
                raise AssertionError(f"{name} refuses the good {file}: {error}") from error
    shutil.rmtree(root / "scratch")
    (root / "scratch").mkdir()
