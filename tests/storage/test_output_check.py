"""Where results go is tried before any work: named, with what is wrong and what to do, and left as it was."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import save_backbone, tiny_args, tiny_stream, tiny_trainer

import smope_hf.training.continuation
import smope_hf.training.run_arguments
from smope_hf import ContinualTrainer, ContinualTrainingArguments
from smope_hf.training.run_arguments import DataArguments, ModelArguments, load_trainer
from smope_hf.training.run_place import check_names

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STATE = "trainer_state.json"


class TooLate(Exception):
    """Images were read or a base model was loaded."""


@pytest.fixture
def no_work(monkeypatch):
    """Whatever reads images or loads a model fails."""

    def work(*_, **__):
        raise TooLate

    for name in ("load_stream", "load_model"):
        monkeypatch.setattr(smope_hf.training.run_arguments, name, work)
    monkeypatch.setattr(smope_hf.training.continuation, "find_checkpoint", work)
    monkeypatch.setattr("smope_hf.data.tasks.load_dataset_dict", work)


def begin(output_dir, **settings):
    """As `smope train` and examples/train.py begin."""
    args = ContinualTrainingArguments(output_dir=str(output_dir), **settings)
    load_trainer(ModelArguments(), DataArguments(dataset="no/such"), args)


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def put(name, content="foreign"):
    """Something of that name in the folder of the run."""

    def make(out):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text(content)

    return make


def folder(name):
    return lambda out: (out / name).mkdir(parents=True)


def pipe(name):
    def make(out):
        out.mkdir(exist_ok=True)
        os.mkfifo(out / name)

    return make


def loop(out):
    out.symlink_to(out.with_name("other"))
    out.with_name("other").symlink_to(out)


# what is there, and what the message says
IN_THE_WAY = {
    "a file": (lambda out: out.write_text("x"), "out is a file"),
    "a pipe": (lambda out: os.mkfifo(out), "out is a pipe"),
    "a link to nowhere": (lambda out: out.symlink_to("nowhere"), "a link to nowhere"),
    "a circle of links": (loop, "a link to .*other"),
    "an empty task-01": (folder("task-01"), f"task-01 holds no {STATE}.*Move it away"),
    "a file task-01": (put("task-01"), "task-01 is no folder.*Move it away"),
    "a link task-02": (lambda out: (out.mkdir(), (out / "task-02").symlink_to("x")), "task-02 is no folder"),
    "a file state": (put("state"), "state is no folder"),
    "a name too long for a temporary file in state": (put("state/.tmp5kIPb9x"), "5kIPb9x is none of a run's files"),
    "notes in state": (put("state/notes.txt"), "notes.txt is none of a run's files.*empties"),
    "a folder in state": (folder("state/mine"), "mine is none of a run's files"),
    "a file plots": (put("plots"), "plots is no folder"),
    "a file other_alignments": (put("other_alignments"), "other_alignments is no folder"),
    "a file routing_selections": (put("routing_selections"), "routing_selections is no folder"),
    "a folder metrics.json": (folder("metrics.json"), "metrics.json is a folder"),
    "a pipe metrics.json": (pipe("metrics.json"), "metrics.json is no file but a pipe"),
    "a folder manifest.json": (folder("manifest.json"), "manifest.json is a folder"),
    "a folder accuracy_matrix.csv": (folder("accuracy_matrix.csv"), "accuracy_matrix.csv is a folder"),
    "a folder report.html": (folder("report.html"), "report.html is a folder"),
    "a folder skipped_images.json": (folder("skipped_images.json"), "skipped_images.json is a folder"),
    "a folder routing_patterns.json": (folder("routing_patterns.json"), "routing_patterns.json is a folder"),
    "a folder routing_training.json": (folder("routing_training.json"), "routing_training.json is a folder"),
    "a run without --resume": (put(f"task-01/{STATE}", "{}"), "already holds learned tasks, up to task-01.*--resume"),
    "a state without --resume": (put("state/state.json", "{}"), "already holds a task in training.*--resume"),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_is_named_before_any_image_is_read(tmp_path, no_work, kind):
    make, told = IN_THE_WAY[kind]
    make(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(OSError, match=told):
        begin(tmp_path / "out")
    assert tree(tmp_path) == before


def test_what_a_killed_process_left_is_not_in_the_way(tmp_path):
    """A temporary file of ours, and one that `save_file` of safetensors was writing."""
    (tmp_path / "state").mkdir()
    for name in (".tensors-0123456789abcdef.safetensors.0a1b2c3d.tmp", ".tmp5kIPb9"):
        (tmp_path / "state" / name).write_bytes(b"half")
    check_names(tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\udcffb", "characters that UTF-8 can write"),
        ("n" * 256, "too long"),
        ("/".join(["n" * 200] * 20), "too long"),
        (None, "too long"),  # it could be made, and nothing of a run in it
    ],
    ids=["not UTF-8", "a name too long", "a path too long", "a path too long with what goes below"],
)
@pytest.mark.parametrize("setting", ["output_dir", "image_cache_dir"])
def test_paths_that_cannot_be(tmp_path, no_work, name, told, setting):
    if name is None:
        left = os.pathconf(tmp_path, "PC_PATH_MAX") - 50 - len(str(tmp_path))
        name = "/".join(["n" * 99] * (left // 100)) + "n" * (left % 100)
    places = {"output_dir": tmp_path / "out", setting: str(tmp_path / name)}
    with pytest.raises((OSError, ValueError), match=told):
        begin(**places)
    assert tree(tmp_path) == []


def test_names_of_data_and_base_model_that_no_json_could_hold(tmp_path, no_work):
    args = ContinualTrainingArguments(output_dir=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="^backbone = .*characters that UTF-8 can write"):
        load_trainer(ModelArguments(backbone="/a\udcff"), DataArguments(dataset="embedded"), args)
    with pytest.raises(ValueError, match="^dataset = .*characters that UTF-8 can write"):
        smope_hf.TaskStream.load("/a\udcff", num_tasks=1)
    assert tree(tmp_path) == []


def test_other_places_of_a_run_are_tried_too(tmp_path, no_work):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="image_cache_dir|file is a file"):
        begin(tmp_path / "out", image_cache_dir=str(tmp_path / "file" / "cache"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "smope").write_text("x")  # where tensorboard writes
    with pytest.raises(OSError, match="smope is no folder"):
        begin(tmp_path / "out", report_to="tensorboard")
    with pytest.raises(TooLate):
        begin(tmp_path / "out")
    assert tree(tmp_path) == ["file", "out", "out/smope"]


@pytest.mark.parametrize("what", ["from_checkpoint", "add-classes"])
def test_going_on_from_a_checkpoint_tries_its_folder_first(tmp_path, no_work, what):
    (tmp_path / "out" / "task-01").mkdir(parents=True)
    with pytest.raises(OSError, match="task-01 holds no"):
        if what == "from_checkpoint":
            ContinualTrainer.from_checkpoint("no/such", tiny_stream(), output_dir=str(tmp_path / "out"))
        else:
            from smope_hf.cli.add_classes import add_classes

            add_classes("no/such", data="no/data", output=tmp_path / "out")
    assert tree(tmp_path) == ["out", "out/task-01"]


def as_nobody(act) -> str:
    """What it is refused with when another user does it."""
    told, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            act()
            os.write(say, b"nothing")
        except BaseException as error:
            os.write(say, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(say)
    os.waitpid(pid, 0)
    with open(told) as file:
        return file.read()


def test_no_right_to_write(tmp_path, no_work):
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    told = as_nobody(lambda: begin(tmp_path / "deep" / "out"))
    assert told.startswith("PermissionError: ") and "no right to write there. Give the right, or name" in told
    assert tree(tmp_path) == []


@pytest.fixture
def mounted(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_file_system_that_can_only_be_read(mounted, no_work):
    (mounted / "old").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    for place in (mounted / "new", mounted / "old"):
        with pytest.raises(OSError, match="can only be read. Name a place on another one"):
            begin(place)
    assert tree(mounted) == ["old"]


def test_a_full_disk(mounted, no_work):
    with open(mounted / "other", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"0" * 4096)
    with pytest.raises(OSError, match="disk is full. Make room"):
        begin(mounted / "out")
    assert tree(mounted) == ["other"]


@pytest.mark.parametrize("missing", ["os.rename", "os.replace", "os.fsync"])
def test_a_file_system_that_lacks_what_saving_needs(tmp_path, no_work, monkeypatch, missing):
    def lacks(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(missing, lacks)
    with pytest.raises(OSError, match="out cannot be output_dir: Invalid argument. Name another place"):
        begin(tmp_path / "out")
    assert tree(tmp_path) == []


# ---------------------------------------------------------------------- room


def test_too_little_room_is_told_before_images_are_decoded(tmp_path, monkeypatch):
    """The need is what is known: never more than a run saves, and most of it."""
    backbone = save_backbone(tmp_path / "backbone")
    whole = tiny_trainer(backbone, tmp_path / "whole", report=False)
    whole.train()
    saved = sum(file.stat().st_size for file in (tmp_path / "whole").glob("task-*/*.safetensors"))
    from smope_hf.training.run_room import checkpoint_bytes

    needed = checkpoint_bytes(tiny_trainer(backbone, tmp_path / "x").model, whole.stream, 0)
    assert 0.8 * saved < needed < saved
    free = shutil.disk_usage(tmp_path)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    with pytest.raises(OSError, match=rf"Saving 3 tasks needs {needed:,} bytes.*has {needed - 1:,} free. Make room"):
        tiny_trainer(backbone, tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free._replace(free=10))
    with pytest.raises(OSError, match=r"What image_cache_gib = 0 leaves of \d+ images needs"):
        tiny_trainer(backbone, tmp_path / "run", image_cache_gib=0)
    assert not (tmp_path / "run").exists()


def test_a_trainer_that_is_refused_leaves_nothing(tmp_path):
    """Also when its error is still at hand, as in a notebook."""
    with pytest.raises(ValueError, match="image") as error:
        ContinualTrainer(None or _NoModel(), tiny_args(tmp_path / "run"), tiny_stream(), None)
    assert error and tree(tmp_path) == []


class _NoModel:
    """As far as a trainer looks before it takes its folder."""

    closed_form, trains_backbone = None, False

    class config:
        tasks = ()

    def to(self, device):
        raise ValueError("no image processor")


# ---------------------------------------------------------------------- other commands


def command(name, output):
    from smope_hf.cli import export as cli_export
    from smope_hf.cli import plot as cli_plot
    from smope_hf.cli import report as cli_report

    if name == "plot":
        cli_plot.plot(
            [Path("no-run"), Path("none")], output=output, file_format="png", theme="light", every_task=False
        )
    elif name == "report":
        cli_report.report([Path("no-run"), Path("none")], output=output)
    else:
        cli_export.export("no/such", output=output, file_format="torch", revision=None, backbone=None)


@pytest.mark.parametrize("name", ["plot", "report", "export"])
def test_commands_try_their_output_first(tmp_path, monkeypatch, name):
    def work(*_, **__):
        raise TooLate

    for place in ("smope_hf.reports.run_folder.RunFolder.__init__", "smope_hf.sharing.hub.find_checkpoint"):
        monkeypatch.setattr(place, work)
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file" / "out.html", tmp_path / "a\udcff.html", tmp_path / f"{'n' * 256}.html"):
        with pytest.raises((OSError, ValueError), match="is a file|UTF-8|too long"):
            command(name, output)
    (tmp_path / "new.html" / "labels.json").mkdir(parents=True)
    if name != "plot":
        with pytest.raises(OSError, match="is a folder"):
            command(name, tmp_path / "new.html")
    assert tree(tmp_path) == ["file", "new.html", "new.html/labels.json"]
    with pytest.raises(TooLate):
        command(name, tmp_path / "good" / "out.html")
    assert not (tmp_path / "good").exists()


SCRIPTS = {
    "benchmark.py": ["--methods", "smope", "--dataset", "no/such", "--output_dir", "{}"],
    "tune.py": ["--methods", "smope", "--grid", "epochs=1", "--output_dir", "{}"],
    "sample_efficiency.py": ["--methods", "smope", "--output_dir", "{}"],
    "demo.py": ["--output_dir", "{}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_try_their_output_first(tmp_path, script):
    (tmp_path / "file").write_text("x")
    arguments = [part.format(tmp_path / "file") for part in SCRIPTS[script]]
    done = subprocess.run([sys.executable, EXAMPLES / script, *arguments], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.startswith("error: ") and "is a file" in done.stderr
    assert tree(tmp_path) == ["file"]
