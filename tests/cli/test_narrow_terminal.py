"""Where the terminal or the pipe cannot write a letter, every command shows its escape and ends as ever."""

import io
import json
import shutil
import sys

import datasets
import pytest
from runs import save_backbone, tiny_trainer

from smope_hf import TaskStream
from smope_hf.base.printing import print_json
from smope_hf.cli.program import app
from smope_hf.data.embedded import digits

NAMES = ("猫", "café", "Łódź", "🐱", "d", "e")
ENCODINGS = ("ascii", "cp1252", "shift_jis")
COMMANDS = ("train", "evaluate", "evaluate --json", "add-classes", "predict", "predict --json", "info", "info --json",
            "plot", "report", "export", "push")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on classes of these names, in a folder with such a name."""
    folder = tmp_path_factory.mktemp("narrow") / "照片 €"
    backbone = save_backbone(folder / "vit")
    pictures = digits()["test"]
    for name, first, names in (("data", 0, NAMES), ("new", 6, ("新", "ñ"))):
        rows = [row for row in pictures.select(range(120)) if first <= row["label"] < first + len(names)]
        columns = {"image": [row["image"] for row in rows], "label": [row["label"] - first for row in rows]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
        part = datasets.Dataset.from_dict(columns, features=features)
        datasets.DatasetDict({"train": part, "test": part}).save_to_disk(folder / name)
    stream = TaskStream.load(folder / "data", num_tasks=3, max_train_samples_per_class=3, max_test_samples_per_class=2)
    tiny_trainer(backbone, folder / "run", stream, epochs=1).train()
    for index in range(2):
        stream[index].test.images([0])[0].save(folder / f"图 {index}.png")
    return folder


def arguments(command: str, place, output) -> list:
    run, new = place / "run", ["--epochs", "1", "--batch-size", "8"]
    backbone = ["--backbone", place / "vit", "--num-experts", "6", "--top-k", "2", "--no-report"]
    return {
        "train": ["train", "--dataset", place / "data", "--num-tasks", "2", "--output-dir", output, *new, *backbone],
        "evaluate": ["evaluate", run, "--data", place / "data"],
        "add-classes": ["add-classes", run, "--data", place / "new", "--output", output, *new],
        "predict": ["predict", run, *place.glob("*.png")],
        "info": ["info", run],
        "plot": ["plot", run, "--output", output],
        "report": ["report", run, "--output", output / "r.html"],
        "export": ["export", run, "--output", output, "--format", "torch"],
        "push": ["push", place / "沒有", "me/model"],
    }[command.removesuffix(" --json")] + (["--json"] if command.endswith("--json") else [])


def written(monkeypatch, encoding: str, write) -> tuple[str, str, object]:
    """What goes to a stdout and a stderr that take nothing but their own letters, and how the command ended."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    code = None
    with monkeypatch.context() as patched:
        for name, stream in zip(("stdout", "stderr"), streams):
            patched.setattr(sys, name, stream)
        try:
            write()
        except SystemExit as end:
            code = end.code
    for stream in streams:
        stream.flush()
    return *(stream.buffer.getvalue().decode(encoding) for stream in streams), code


@pytest.mark.parametrize(
    ("command", "encoding"),  # an export takes long, and one encoding is enough
    [
        (command, encoding)
        for command in COMMANDS
        for encoding in ENCODINGS
        if command != "export" or encoding == "ascii"
    ],
)
def test_every_command_ends_as_ever(place, tmp_path, monkeypatch, command, encoding):
    output = tmp_path / "出力 €"
    out, err, code = written(
        monkeypatch, encoding, lambda: app([str(part) for part in arguments(command, place, output)])
    )
    assert code == (2 if command == "push" else 0), err
    assert "codec" not in err and "Traceback" not in err
    if command.endswith("--json"):
        content = json.loads(out)
        told = content["tasks"] if isinstance(content, dict) else content[0]["predictions"]
        names = {name for row in told for name in row.get("classes", row.get("class_names", [row.get("label")]))}
        assert set(NAMES) & names, names
    elif command == "push":
        assert err.startswith("error: ") and len(err.splitlines()) == 1
    shutil.rmtree(output, ignore_errors=True)


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-8"])
def test_json_is_json_whatever_the_terminal_can_write(monkeypatch, encoding):
    content = [{"name": "é € 猫 🐱 \u200b", "value": 1.5}]
    out, _, _ = written(monkeypatch, encoding, lambda: print_json(content))
    assert json.loads(out) == content
    assert ("猫" in out) == (encoding in ("utf-8",))
