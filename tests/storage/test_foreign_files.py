"""What lies in the place of a file cannot hang or fill memory: pipes, devices, counts that a few bytes claim."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smope_hf.cli.program import app
from smope_hf.metrics.accuracy_matrix import AccuracyMatrix
from smope_hf.reports.cost_plots import read_costs
from smope_hf.storage.checkpoint_guard import read_header, read_tensors
from smope_hf.storage.checksums import sha256
from smope_hf.storage.config_guard import MAX_CONFIG_BYTES
from smope_hf.storage.field_checks import check_task_count, is_setting, is_settings, is_triangle
from smope_hf.storage.foreign_files import open_regular, read_bytes, read_table, read_text
from smope_hf.storage.safe_json import MAX_CONTAINERS, MAX_VALUES, clipped, read_json, shown
from smope_hf.training.run_arguments import read_recipe

READERS = {
    "JSON": read_json, "header": read_header, "tensors": lambda path: read_tensors([path]), "hash": sha256,
    "bytes": read_bytes, "text": read_text, "table": read_table, "matrix": AccuracyMatrix.from_csv,
    "costs": read_costs, "recipe": read_recipe,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting():
    """A reader that waits ends the test."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(60)
    yield
    signal.alarm(0)


def pipe(path: Path):
    os.mkfifo(path)


def listening(path: Path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name has at most 108 characters
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(here)


PLACES = {
    "a named pipe": pipe,
    "a folder": Path.mkdir,
    "a socket": listening,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(tmp_path, kind, reader):
    path = tmp_path / "file"
    PLACES[kind](path)
    with pytest.raises(OSError, match=f"{kind}, and only regular files are read: .*file"):
        READERS[reader](path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_an_image_that_is_a_pipe_is_named(tmp_path):
    from smope_hf.data.split import _content

    os.mkfifo(tmp_path / "a.png")
    found = CliRunner().invoke(app, ["predict", str(tmp_path), str(tmp_path / "a.png")])
    assert found.exit_code == 2 and "a.png cannot be read: it is a named pipe" in found.stderr
    with pytest.raises(ValueError, match="it is a named pipe"):
        _content({"bytes": None, "path": str(tmp_path / "a.png")})


def test_a_file_that_became_a_pipe_between_two_looks_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("smope_hf.storage.foreign_files.check_regular", lambda path: None)
    os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError, match="named pipe"):
        open_regular(tmp_path / "file")


def test_text_within_its_limit_is_read(tmp_path):
    (tmp_path / "file").write_text("a,b\n1,2\n")
    assert read_table(tmp_path / "file") == [["a", "b"], ["1", "2"]]
    with pytest.raises(ValueError, match="file is larger than 3 bytes"):
        read_text(tmp_path / "file", 3)
    (tmp_path / "file").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match="file is no UTF-8 text"):
        read_text(tmp_path / "file")


# ---------------------------------------------------------------------- counts

FLOODS = {  # (text, what the message tells)
    "lists": (b'{"a": [' + b"[]," * (20 * 2**20) + b"[]]}", "lists and objects"),
    "objects": (b'{"a": [' + b"{}," * MAX_CONTAINERS + b"{}]}", "lists and objects"),
    "numbers": (b'{"a": [' + b"0," * MAX_VALUES + b"0]}", "values"),
    "names": (b"{" + b",".join(b'"name %d":0' % number for number in range(900_000)) + b"}", "MB of memory"),
    "texts": (b'{"a": [' + b'"abcdefghij",' * 1_700_000 + b"0]}", "MB of memory"),
    "text of wide characters": (b'{"a": "' + b"a" * (60 * 2**20) + rb'\ud83d\ude00"}', "MB of memory"),
    "bytes": (b" " * (65 * 2**20), "larger than"),
}
MEASURE = """
import sys, time
from smope_hf.storage.safe_json import read_json
def kib(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
before, start = kib("VmRSS"), time.process_time()
try:
    read_json(sys.argv[1])
except ValueError as error:
    print(time.process_time() - start, 1024 * (kib("VmHWM") - before), error)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("case", FLOODS)
def test_counts_are_limited_before_memory_is_taken(tmp_path, case):
    text, match = FLOODS[case]
    (tmp_path / "routing.json").write_bytes(text)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "routing.json")], capture_output=True, text=True, check=True
    )
    seconds, memory, message = done.stdout.split(" ", 2)
    assert "routing.json" in message and match in message
    assert float(seconds) < 2 and int(memory) < 200e6, done.stdout


@pytest.mark.slow
def test_the_largest_files_that_are_meant_are_read(tmp_path):
    """1000 tasks: the state's matrices, the routing of a ViT-B with 25 experts; 100,000 classes: a config."""
    tasks, classes = 1000, 100_000
    rows = [[0.8333333333333334] * (task + 1) for task in range(tasks)]
    state = {"accuracy_matrix": rows, "task_confusion": [[1234] * tasks] * tasks}
    shares = [[[0.123456] * 25 for _ in range(12)] for _ in range(tasks + 1)]
    names = [f"class number {index} of many" for index in range(classes)]
    config = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "tasks": [list(range(first, first + 100)) for first in range(0, classes, 100)],
    }
    for content, limit in ((state, None), ({"layers": [{"usage": shares}] * 6}, None), (config, MAX_CONFIG_BYTES)):
        (tmp_path / "file.json").write_text(json.dumps(content, separators=(",\n" + " " * 12, ": ")))  # as indented
        assert read_json(tmp_path / "file.json", *([limit] if limit else [])) == content
    assert is_triangle(rows)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a": [1, 2, ' + "9" * 30 + "]}", r"a\[2\] is 9+\.\.\. \(30 digits\)"),
        ('{"a": [0.5, NaN]}', r"a\[1\] is NaN"),
        ('{"a": [0.5, null, 1e999]}', r"a\[2\] is inf"), ('{"a": [9223372036854775809]}', r"a\[0\] is 92233"),
        ('{"a": ["b", "\\ud800"]}', r"a\[1\] is '.ud800'"), ('{"a": {"\\ud800": 1}}', "only characters that UTF-8"),
        ('{"a": [0, 1, -9223372036854775809]}', r"a\[2\] is -9223"), ('{"a": {"b": 1, "b": 1}}', "a.b is given twice"),
        ('{"a": [true, 0.5, -Infinity]}', r"a\[2\] is -Infinity"),
    ],
)  # fmt: skip
def test_values_that_no_field_may_have_are_named(tmp_path, text, match):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=f"file.json: .*{match}"):
        read_json(tmp_path / "file.json")


def test_every_message_is_bounded():
    assert len(shown("a" * 10**6)) <= 80 and len(shown([["a" * 100] * 100] * 100)) <= 80
    assert len(clipped("a" * 10**6)) < 1600 and clipped("short") == "short"


def test_tasks_beyond_what_is_read_back_are_refused():
    check_task_count(1000)
    with pytest.raises(ValueError, match="1001 tasks are not allowed.*at most 1000"):
        check_task_count(1001)


def test_settings_are_short_and_flat():
    assert is_settings({"a": [1, 2], "b": None, "c": "x", "d": {"e": 1}}) and is_setting(True)
    for value in ({"a": [[1]]}, {"a": "x" * 5001}, {"a" * 101: 1}, {"a": [0] * 201}, [], "x", {"a": {"b": {}}}):
        assert not is_settings(value)


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("epochs: 1\nseed: 2\nepochs: 3\n", "line 3: 'epochs' is given twice"),
        ("epochs: " + "[" * 500 + "]" * 500, "nests deeper than 4 levels"),
        ("a: &x [1]\nb: *x\n", "line 1: .* is an anchor or alias"), ("a: 1\n" * 20_000, "larger than 65536 bytes"),
        ("- 1\n- 2\n", "holds no settings"), ("a: [", "not a YAML file"), ("", "holds no settings"),
        ("? [epochs]\n: 1\n", "not a YAML file"),
        ("epochs: {a: 1, b: " + "x" * 2000 + "}\nepoch: 1", "'epoch' is no setting"),
        ("a" * 100 + ": 1\n", "is no setting"), ("a" * 5000 + ": 1\n", "not a YAML file"),
    ],
)  # fmt: skip
def test_recipes_have_limits_too(tmp_path, text, match):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        read_recipe(tmp_path / "recipe.yaml")
    assert "recipe.yaml" in str(caught.value) and len(str(caught.value)) < 1000


# ---------------------------------------------------------------------- folders of checkpoints

FIXTURE = Path(__file__).parents[1] / "fixtures" / "checkpoints" / "v1" / "task-03"


@pytest.mark.parametrize("name", ["accuracy_matrix.png", "README.md", "class_statistics.safetensors"])
def test_a_push_takes_nothing_from_outside_the_folder(tmp_path, name):
    """A link in a downloaded checkpoint could name a file that is nobody's business."""
    from smope_hf.sharing.hub_files import stage

    shutil.copytree(FIXTURE, tmp_path / "task-03")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "task-03" / name).unlink(missing_ok=True)
    (tmp_path / "task-03" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=f"{name} leads out of its folder"):
        stage(tmp_path / "task-03", "owner/name", tmp_path / "staged", False, False)


def test_files_of_one_checkpoint_that_tell_of_other_tasks_are_named(tmp_path):
    from smope_hf.sharing.model_card import card_of

    shutil.copytree(FIXTURE, tmp_path / "task-03")
    (tmp_path / "task-03" / "checksums.json").unlink()
    state = json.loads((FIXTURE / "trainer_state.json").read_text())
    state["accuracy_matrix"] = state["accuracy_matrix"][:1]
    (tmp_path / "task-03" / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="accuracy_matrix of trainer_state.json: 1, tasks of manifest.json: 3"):
        card_of(tmp_path / "task-03")
