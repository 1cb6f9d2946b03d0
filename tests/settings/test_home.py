"""In every setting and option that is a place on this machine, ~ is the home folder: no shell expands a recipe."""

import os
import re
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from cli_runs import run_with_images, smope
from runs import tiny_stream, tiny_trainer
from typer.main import get_command

from smope_hf import ContinualTrainer, SMoPEForImageClassification, TaskStream
from smope_hf.base.home import expanded, home_path
from smope_hf.cli.options import PLACES
from smope_hf.cli.program import app
from smope_hf.data.known_tasks import load_known_tests
from smope_hf.models.image_processors import load_image_processor
from smope_hf.reports.comparison_report import write_comparison
from smope_hf.reports.run_folder import RunFolder
from smope_hf.reports.run_report import write_report
from smope_hf.settings.training_args import PATHS, ContinualTrainingArguments
from smope_hf.training.run_arguments import RUN_ARGUMENTS, build_arguments, read_recipe

TELLS_A_PLACE = re.compile(r"folder|file|Hub id|where the base model", re.IGNORECASE)
"""In the help text of a setting: it may be a place."""
NO_PLACE = {  # whose help speaks of one, and that are none themselves
    "resume", "checkpoint_every", "image_cache_gib", "save_checkpoints", "test_split", "test_fraction", "report",
    "skip_bad", "as_json", "file_format", "dataset_revision", "backbone_revision", "data_config", "dataset_config",
    "hub_remote_code", "hub_include_backbone",
}  # fmt: skip


def places_of(dataclass) -> tuple[str, ...]:
    return PATHS if dataclass is ContinualTrainingArguments else dataclass.paths


SETTINGS = [(dataclass, name) for dataclass in RUN_ARGUMENTS for name in places_of(dataclass)]


def test_home_is_expanded_at_the_beginning_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, found in {"~/runs": "/home/me/runs", "~": "/home/me", "a/~/b": "a/~/b", "owner/name": "owner/name",
                         "~nobody-here/x": "~nobody-here/x", "": ""}.items():  # fmt: skip
        assert expanded(given) == found
        assert expanded(Path(given)) == home_path(given) == Path(found)
    model = object()
    assert expanded(None) is None and expanded(model) is model


def test_every_setting_that_may_be_a_place_is_listed():
    """A new one has `folder` or the like in its help text, or `dir` or `path` in its name."""
    for dataclass in RUN_ARGUMENTS:
        for setting in fields(dataclass):
            of_text = str in (typing.get_type_hints(dataclass)[setting.name], *typing.get_args(
                typing.get_type_hints(dataclass)[setting.name]))  # fmt: skip
            tells = TELLS_A_PLACE.search(setting.metadata["help"]) or re.search("dir|path|file", setting.name)
            if of_text and tells and setting.name not in NO_PLACE and "choices" not in setting.metadata:
                assert setting.name in places_of(dataclass), f"{dataclass.__name__}.{setting.name} may be a place"


def test_every_option_that_may_be_a_place_is_listed():
    listed = {*PLACES, *(name for _, name in SETTINGS)}
    found = set()
    for name, command in get_command(app).commands.items():
        for param in command.params:
            is_path = param.type_descriptor.annotation is Path
            of_text = not getattr(param, "is_flag", False)
            tells = TELLS_A_PLACE.search(param.help or "") or param.metavar in ("DIR", "FILE", "DATA", "MODEL", "RUN")
            if is_path or (of_text and tells and param.name not in NO_PLACE):
                found.add(param.name)
                assert param.name in listed, f"smope {name}: {param.name} may be a place"
    assert set(PLACES) <= found, set(PLACES) - found


@pytest.mark.parametrize(("dataclass", "name"), SETTINGS, ids=lambda part: getattr(part, "__name__", part))
def test_home_is_expanded_in_a_setting_and_a_recipe(tmp_path, monkeypatch, dataclass, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    needed = {"dataset": "photos"} if name != "dataset" and dataclass.__name__ == "DataArguments" else {}
    assert getattr(dataclass(**needed, **{name: "~/a"}), name) == f"{tmp_path}/a"
    (tmp_path / "r.yaml").write_text(
        "\n".join(f"{key}: {value}" for key, value in {"dataset": "x", name: "~/b"}.items())
    )
    if name == "dataset":
        (tmp_path / "r.yaml").write_text("dataset: ~/b\n")
    built = {type(part): part for part in build_arguments({}, read_recipe("~/r.yaml"))}
    assert getattr(built[dataclass], name) == f"{tmp_path}/b"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return run_with_images(tmp_path_factory.mktemp("home"))


@pytest.fixture
def home(place, tmp_path, monkeypatch):
    """The home folder has the run and its images, and the working folder is another, empty one."""
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(tmp_path)
    yield place
    assert os.listdir(tmp_path) == []


NEW = ["--epochs", "1", "--batch-size", "8", "--max-train-samples-per-class", "4", "--max-test-samples-per-class", "2",
       "--num-experts", "6", "--top-k", "2", "--num-tasks", "5", "--no-report"]  # fmt: skip
LINES = {
    "train": ["~/r.yaml", "--dataset", "embedded", "--backbone=~/vit", "--output-dir=~/new",
              "--image-cache-dir=~/cache", *NEW],
    "evaluate": ["~/run", "--data", "~/data", "--backbone=~/vit"],
    "add-classes": ["~/run", "--data", "embedded", "--classes", "seven", "--output=~/more", "--test-data=~/data",
                    "--epochs", "1", "--backbone=~/vit"],
    "predict": ["~/run", "~/images", "~/images/*.png", "--backbone=~/vit"],
    "info": ["~/run"],
    "plot": ["~/run", "--output=~/figures"],
    "report": ["~/run", "--output=~/r.html"],
    "export": ["~/run", "--output=~/exported", "--format", "torch", "--backbone=~/vit"],
}  # fmt: skip


@pytest.mark.parametrize("command", LINES)
def test_every_command_expands_home(home, command):
    (home / "r.yaml").write_text("image_cache_gib: 1\n")
    smope(command, *LINES[command])


def test_push_expands_home(home):
    assert f"{home}/nothing is no folder" in smope("push", "~/nothing", "me/model", code=2).stderr


def test_python_expands_home(home):
    model = SMoPEForImageClassification.from_backbone("~/vit", num_experts=6, top_k=2)
    assert model.config.base_model_name_or_path == f"{home}/vit" and load_image_processor("~/vit") is not None
    SMoPEForImageClassification.from_pretrained("~/run/task-01", backbone="~/vit").save_pretrained("~/copied")
    assert (home / "copied" / "config.json").is_file()
    assert sum(map(len, load_known_tests("~/data", [list("abcdef")]))) == 30
    assert (
        TaskStream.load("~/data", train_split="test", num_tasks=1, allow_no_test=True).source["name_or_path"] == "data"
    )
    stream = tiny_stream(num_tasks=None, class_lists=[["a"]])
    assert stream.num_classes == 1
    assert RunFolder("~/run").path == home / "run"
    assert write_report("~/run", "~/p.html") == home / "p.html"
    tiny_trainer(str(home / "vit"), "~/again", seed=1).train()
    assert (home / "again" / "task-03").is_dir()
    assert write_comparison(["~/run", "~/again"], "~/c.html") == home / "c.html"


def test_a_trainer_that_goes_on_expands_home(home):
    from smope_hf.data.embedded import digits

    stream = TaskStream(digits(), class_lists=[["seven"]], max_train_samples_per_class=4, max_test_samples_per_class=2)
    options = {"output_dir": "~/further", "image_cache_dir": "~/cache", "epochs": 1, "disable_progress": True}
    trainer = ContinualTrainer.from_checkpoint("~/run", stream, backbone="~/vit", **options)
    assert trainer.args.output_dir == f"{home}/further"
    trainer.train()
    assert (home / "further" / "task-04").is_dir()
