"""Code in a repository never runs, and nobody is asked whether it may: every command, the page, and the library."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hostile_repositories import PROCESSORS, configs_alone, edit, evil_code, hostile_copy, upload, write_images
from hub_client import Client
from hub_fixtures import loopback_hub
from hub_server import environment
from runs import save_backbone, tiny_stream, tiny_trainer
from typer.testing import CliRunner

from smope_hf import SMoPEForImageClassification
from smope_hf.cli.program import app

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints" / "v1"
YES = "y\n" * 1000
ASKED = ("[y/N]", "Do you wish")
CODE = "mallory/code--evil"  # code in another repository, which the attacker's files name
PREPARE = f"""
import sys
import torch
torch.set_num_threads(1)
from huggingface_hub import HfApi
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parents[2] / "examples" / "space")!r}]
from typer.testing import CliRunner
from smope_hf.cli.program import app
def smope(arguments):
    done = CliRunner().invoke(app, arguments, input={YES!r})
    return [done.exit_code, done.stdout, done.stderr]
"""


def check(mark: Path, code: int, out: str, err: str, wants_json: bool = False, refused: bool | None = None):
    """Nothing ran, nothing was asked; an error is the last line on stderr and says what is wrong."""
    ran = mark.read_text() if mark.exists() else ""
    mark.unlink(missing_ok=True)  # the next case begins without it
    assert not ran, f"code ran: {ran}"
    assert not any(word in out + err for word in ASKED), out + err
    assert code in (0, 2), out + err
    if code == 2:
        assert out == "" and err.splitlines()[-1].startswith("error: "), (out, err)
        assert "not expected" not in err
    elif wants_json:
        json.loads(out)
    if refused is not None:
        assert (code == 2) == refused, (out, err)
        assert not refused or "trust_remote_code" in err, err


# ---------------------------------------------------------------------- a folder on this machine


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint with its backbone in it, and an image."""
    folder = tmp_path_factory.mktemp("whole")
    model = SMoPEForImageClassification.from_pretrained(FIXTURES / "task-03", backbone=str(FIXTURES / "base"))
    shutil.copytree(FIXTURES / "task-03", folder / "task-03")
    model.save_pretrained(folder / "task-03", include_backbone=True)
    write_images(folder / "images", "a", 1)
    return folder


@pytest.mark.parametrize("attack", [*PROCESSORS, configs_alone], ids=lambda attack: attack.__name__)
def test_a_folder_is_used_without_running_or_asking(whole, tmp_path, attack):
    mark = tmp_path / "mark"
    folder = hostile_copy(whole / "task-03", tmp_path / "model", attack, "evil", mark)
    done = CliRunner().invoke(app, ["predict", str(folder), str(whole / "images"), "--json"], input=YES)
    check(mark, done.exit_code, done.stdout, done.stderr, True, attack in PROCESSORS)
    with torch.no_grad():  # the user's own option is for transformers' classes; ours take no code
        SMoPEForImageClassification.from_pretrained(folder, trust_remote_code=True)(torch.zeros(1, 3, 16, 16))
    assert not mark.exists()


# ---------------------------------------------------------------------- repositories, through every command


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A Hub with mallory's repositories, and somebody who tries them with `yes` on the standard input."""
    place = tmp_path_factory.mktemp("world")
    mark = place / "mark"
    with loopback_hub(place / "hub") as hub:
        (place / "code").mkdir()
        (place / "code" / "evil.py").write_text(evil_code(mark))
        upload(hub, "mallory/code", place / "code")
        base = Path(save_backbone(place / "vit"))
        commit = upload(hub, "mallory/vit", base)
        tiny_trainer(str(base), place / "run", tiny_stream(num_tasks=2), epochs=1).train()
        for task in ("task-01", "task-02"):
            edit(
                place / "run" / task, "config.json", base_model_name_or_path="mallory/vit", base_model_revision=commit
            )
        for attack in (*PROCESSORS, configs_alone):
            name = attack.__name__.replace("_", "-")
            run = place / "runs" / name
            shutil.copytree(place / "run", run, ignore=shutil.ignore_patterns("task-02"))
            hostile_copy(place / "run" / "task-02", run / "task-02", attack, CODE, mark)
            upload(hub, f"mallory/{name}", run / "task-02")
            upload(hub, f"mallory/base-{name}", hostile_copy(base, place / f"base-{name}", attack, CODE, mark))
        of_its_own = hostile_copy(base, place / "own-class", lambda folder, code: edit(
            folder, "config.json", model_type="evil", auto_map={"AutoConfig": f"{CODE}.C"}), CODE, mark)  # fmt: skip
        upload(hub, "mallory/own-class", of_its_own)
        adapter = shutil.copytree(place / "run" / "task-02", place / "on-own-class")
        edit(adapter, "config.json", base_model_name_or_path="mallory/own-class", base_model_revision=None)
        upload(hub, "mallory/on-own-class", adapter)
        (place / "script").mkdir()
        (place / "script" / "script.py").write_text(evil_code(mark))
        (place / "script" / "data.pkl").write_bytes(f"cos\nmkdir\n(S'{mark}'\ntR.".encode())
        upload(hub, "mallory/script", place / "script", "datasets")
        write_images(place / "tests" / "test", "abcdef", 2)
        write_images(place / "new" / "train", "gh", 9)
        write_images(place / "images", "a", 1)
        with Client(hub, "hf_alice", place / "home", PREPARE) as client:
            yield hub, client, place, mark


NUMBERS = itertools.count()
USING = ("predict", "evaluate", "add-classes", "export")  # commands that load a checkpoint's image processor
TINY = ["--num-tasks", "5", "--max-train-samples-per-class", "2", "--max-test-samples-per-class", "2", "--epochs", "1",
        "--no-report", "--num-experts", "6", "--top-k", "2"]  # fmt: skip


def arguments_of(command: str, repository: str, run: Path, place: Path) -> list[str]:
    """A command line that uses a hostile repository, or a hostile run's folder where the command takes folders."""
    output = str(place / f"out-{next(NUMBERS)}")
    return {
        "predict": ["predict", repository, str(place / "images"), "--json"],
        "evaluate": ["evaluate", repository, "--data", str(place / "tests"), "--json"],
        "info": ["info", repository, "--json"],
        "add-classes": ["add-classes", repository, "--data", str(place / "new"), "--output", output, "--epochs", "1"],
        "export": ["export", repository, "--output", output, "--format", "torch"],
        "plot": ["plot", str(run), "--output", output],
        "report": ["report", str(run), "--output", f"{output}.html"],
        "push": ["push", str(run), f"alice/pushed-{next(NUMBERS)}"],
        "push --onto": ["push", str(run), f"alice/onto-{next(NUMBERS)}"],
        "push --include-backbone": ["push", str(run), f"alice/pushed-{next(NUMBERS)}", "--include-backbone"],
    }[command]


COMMANDS = ("predict", "evaluate", "info", "add-classes", "export", "plot", "report", "push", "push --onto",
            "push --include-backbone")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("attack", [*PROCESSORS, configs_alone], ids=lambda attack: attack.__name__)
def test_a_checkpoint_of_the_hub_runs_and_asks_nothing(world, attack, command):
    hub, client, place, mark = world
    name = attack.__name__.replace("_", "-")
    arguments = arguments_of(command, f"mallory/{name}", place / "runs" / name, place)
    if command == "push --onto":
        onto = client("HfApi().create_repo(given['name']).repo_id", name=arguments[-1])
        arguments += ["--onto", hub.foreign_commit(onto, "somebody's", {"evil.py": evil_code(mark)})]
    code, out, err = client("smope(given['arguments'])", arguments=arguments)
    refused = (command in USING or command.startswith("push")) and attack in PROCESSORS
    check(mark, code, out, err, "--json" in arguments, refused)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*USING, "push --include-backbone"])
def test_a_base_model_with_a_class_of_its_own_runs_and_asks_nothing(world, command):
    _, client, place, mark = world
    run = place / "on-own-class-run"
    if not run.exists():
        shutil.copytree(place / "on-own-class", run / "task-01")
    code, out, err = client("smope(given['a'])", a=arguments_of(command, "mallory/on-own-class", run, place))
    check(mark, code, out, err, refused=True if command in USING else None)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [*PROCESSORS, configs_alone], ids=lambda attack: attack.__name__)
def test_training_on_a_base_model_runs_and_asks_nothing(world, attack):
    _, client, place, mark = world
    backbone = f"mallory/base-{attack.__name__.replace('_', '-')}"
    output = str(place / f"out-{next(NUMBERS)}")
    arguments = ["train", "--dataset", "embedded", "--backbone", backbone, "--output-dir", output, *TINY]
    check(mark, *client("smope(given['arguments'])", arguments=arguments), refused=attack in PROCESSORS)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--dataset", "--data", "--test-data", "--backbone"])
def test_a_data_set_with_a_script_and_a_model_with_a_class_of_its_own_run_nothing(world, option):
    _, client, place, mark = world
    output = str(place / f"out-{next(NUMBERS)}")
    arguments = {
        "--dataset": ["train", "--dataset", "mallory/script", "--backbone", "embedded", "--output-dir", output, *TINY],
        "--data": ["evaluate", str(place / "run"), "--data", "mallory/script", "--json"],
        "--test-data": ["add-classes", str(place / "run"), "--data", str(place / "new"), "--output", output,
                        "--test-data", "mallory/script"],
        "--backbone": ["train", "--dataset", "embedded", "--backbone", "mallory/own-class", "--output-dir", output,
                       *TINY],
    }[option]  # fmt: skip
    code, out, err = client("smope(given['arguments'])", arguments=arguments)
    check(mark, code, out, err)
    assert code == 2 and ("script" in err or "trust_remote_code" in err), err


PAGE = f"""
import io, sys
from checkpoints import Models, find_revisions, open_checkpoints
def page():
    before, sys.stdin = sys.stdin, io.StringIO({YES!r})
    try:
        open_checkpoints([given["name"]], None)
        place = list(find_revisions(given["name"]).values())[-1]
        return [0, type(Models().get(place).processor).__name__]
    except (OSError, ValueError) as error:
        return [2, str(error)]
    finally:
        sys.stdin = before
page()
"""


@pytest.mark.slow
@pytest.mark.parametrize("attack", [*PROCESSORS, configs_alone], ids=lambda attack: attack.__name__)
def test_the_page_runs_and_asks_nothing(world, attack):
    _, client, _, mark = world
    code, said = client(PAGE, name=f"mallory/{attack.__name__.replace('_', '-')}")
    assert not any(word in client.output for word in ASKED)
    check(mark, code, "", f"error: {said}" if code else "", refused=attack in PROCESSORS)


@pytest.mark.slow
def test_yes_in_a_shell_is_no_yes(world):
    """A process of its own, with `yes` before the pipe, as somebody would try to get past all questions."""
    hub, _, place, mark = world
    command = "yes | " + " ".join([sys.executable, "-m", "smope_hf", "predict", "mallory/processor-without-type",
                                   str(place / "images"), "--json"])  # fmt: skip
    done = subprocess.run(["bash", "-c", command], env=environment(hub, None, place / "other"), capture_output=True,
                          text=True, timeout=200)  # fmt: skip
    check(mark, done.returncode, done.stdout, done.stderr, True, refused=True)
