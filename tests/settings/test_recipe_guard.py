"""What a checkpoint's recipe may choose where somebody goes on from it: how the model learns, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
from hub_client import PREPARE, Client
from runs import assert_same_tensors, read, save_backbone, tiny_stream, tiny_trainer

from smope_hf import ContinualTrainer, ContinualTrainingArguments
from smope_hf.cli.add_classes import SETTINGS
from smope_hf.data.continued_stream import ContinuedStream
from smope_hf.settings.recipe_guard import MOST, NOT_CONTINUED, arguments_to_go_on
from smope_hf.settings.training_args import LEARNING, OWN, ROUNDING
from smope_hf.sharing.checkpoint import load_state
from smope_hf.storage.checksums import CHECKSUMS_FILE, write_checksums
from smope_hf.storage.files import write_json

TESTS = Path(__file__).parents[1]
HOSTILE = {  # for every setting that is the user's, what a stranger would like it to be
    "output_dir": "runs/of/a/stranger", "image_cache_dir": "caches/of/a/stranger", "image_cache_gib": 1e6,
    "dataloader_num_workers": 1024, "save_checkpoints": False, "checkpoint_every": 1, "resume": True,
    "on_bad_image": "skip", "on_duplicate": "error", "report_to": "tensorboard", "logging_steps": 1, "report": False,
    "disable_progress": True,
    "push_to_hub": True, "hub_model_id": "alice/stolen", "hub_private_repo": False, "hub_license": "mit",
    "hub_include_backbone": True, "hub_remote_code": True,
}  # fmt: skip
AT_ONCE = {**HOSTILE, "save_checkpoints": True, "checkpoint_every": 0}  # pushing needs what is saved
LEARNED = {  # for every setting that a checkpoint chooses, another value than the default
    "seed": 7, "epochs": 3, "dense_epochs": 2, "batch_size": 8, "gradient_accumulation_steps": 2,
    "learning_rate": 0.01, "prefix_lr_multiplier": 2.0, "backbone_lr_multiplier": 0.1, "min_learning_rate": 1e-5,
    "freeze_epochs": 1, "lr_schedule": "constant", "weight_decay": 0.1, "max_grad_norm": 1.0,
    "crop_scale": [0.5, 1.0], "crop_ratio": [1.0, 1.0], "flip_probability": 0.0, "normalization": "reference",
    "statistics": "train", "drift_compensation": "none", "drift_shrinkage": 1.0, "alignment": "ncm",
    "alignment_epochs": 2, "alignment_batch_ratio": 2.0, "alignment_learning_rate": 1e-4,
    "alignment_weight_decay": 0.0, "alignment_shrinkage": 0.1, "mixed_precision": "bf16",
    "gradient_checkpointing": True, "torch_compile": True, "eval_batch_size": 8,
}  # fmt: skip


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr("smope_hf.settings.recipe_guard.logger.warning", lines.append)
    return lines


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one task."""
    backbone = save_backbone(tmp_path_factory.mktemp("backbone"))
    stream = tiny_stream(num_tasks=None, class_lists=[["a", "b"]])
    trainer = tiny_trainer(backbone, tmp_path_factory.mktemp("run"), stream, eval_batch_size=6)
    trainer.train()
    return Path(trainer.args.output_dir)


@pytest.fixture
def changed(run, tmp_path):
    """A function that copies the checkpoint with other settings in its recipe, and hashes made anew."""

    def change(**recipe):
        folder = shutil.copytree(run / "task-01", tmp_path / "evil" / "task-01")
        state = read(folder, "trainer_state.json")
        write_json(folder / "trainer_state.json", {**state, "recipe": {**state["recipe"], **recipe}})
        hash_anew(folder)
        return folder

    return change


def hash_anew(folder: Path):
    """As somebody does who changes a file with intent."""
    write_checksums(folder, [path for path in folder.iterdir() if path.name != CHECKSUMS_FILE])


def saved(recipe: dict, **state) -> dict:
    return {"recipe": {**ContinualTrainingArguments().recipe(), **recipe}, **state}


def new_classes():
    return tiny_stream(num_tasks=None, class_lists=[["c", "d"]])


# ---------------------------------------------------------------------- setting by setting


def test_every_setting_is_tried():
    assert set(HOSTILE) == set(OWN) and set(LEARNED) == {*LEARNING, *ROUNDING} - {*NOT_CONTINUED}
    defaults = ContinualTrainingArguments()
    assert all(getattr(defaults, name) != value for name, value in LEARNED.items())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_setting_of_the_users_is_never_taken_and_always_named(told, tmp_path, name):
    args = arguments_to_go_on(saved({name: HOSTILE[name]}), tmp_path, {"output_dir": "mine"})
    assert vars(args) == vars(ContinualTrainingArguments(output_dir="mine"))
    (line,) = told
    assert f"{name} = {HOSTILE[name]!r}" in line and str(tmp_path) in line and "not taken" in line


@pytest.mark.parametrize("name", HOSTILE)
def test_the_user_sets_it(told, tmp_path, name):
    needed = {"hub_model_id": "me/mine"} if name == "push_to_hub" else {}
    args = arguments_to_go_on(saved({}), tmp_path, {name: HOSTILE[name], **needed})
    assert getattr(args, name) == HOSTILE[name] and not told


@pytest.mark.parametrize("name", LEARNED)
def test_a_setting_of_how_a_model_learns_is_taken(told, tmp_path, name):
    state = saved({}, eval_batch_size=8) if name in ROUNDING else saved({name: LEARNED[name]})
    assert getattr(arguments_to_go_on(state, tmp_path, {}), name) == LEARNED[name] and not told


@pytest.mark.parametrize("name", MOST)
def test_time_and_memory_are_taken_up_to_a_limit_and_beyond_it_on_the_users_word(tmp_path, name):
    def state(value, **others):
        return saved({**others, name: value}, **({name: value} if name in ROUNDING else {}))

    others = {"batch_size": 1024} if name == "gradient_accumulation_steps" else {}
    most = MOST[name]
    assert getattr(arguments_to_go_on(state(most, **others), tmp_path, {}), name) == most
    for value in (most + 1, 10**9):
        with pytest.raises(ValueError, match=rf"{name} = {value}. Allowed: at most {most}.*Give {name} yourself"):
            arguments_to_go_on(state(value), tmp_path, {})
    given = {name: most + 1, **({"batch_size": 4096} if others else {})}
    assert getattr(arguments_to_go_on(state(10**9), tmp_path, given), name) == most + 1
    assert name in SETTINGS  # the command line can give it


@pytest.mark.parametrize("value", ["a" * 10**5, [1] * 10**5, 1e999, None, True, -1, {"a": 1}])
@pytest.mark.parametrize("name", ["epochs", "batch_size", "alignment"])
def test_a_wrong_value_is_refused_by_name_in_a_short_line(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} = ") as refused:
        arguments_to_go_on(saved({name: value}), tmp_path, {})
    assert len(str(refused.value)) < 1000


def test_what_nobody_knows_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"has the settings \['magic'\], which this version of smope_hf does not know"
    ):
        arguments_to_go_on(saved({"magic": 1}), tmp_path, {})


# ---------------------------------------------------------------------- going on


def test_a_changed_recipe_learns_what_the_true_one_would_have(run, changed, told, tmp_path, monkeypatch):
    def no_hub(*_, **__):
        raise AssertionError("the Hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("smope_hf.training.trainer_hub.open_repository", no_hub)
    evil = changed(**AT_ONCE)
    for source, output in ((run / "task-01", "true"), (evil, "out")):
        trainer = ContinualTrainer.from_checkpoint(source, new_classes(), output_dir=tmp_path / output, report=False)
        assert trainer.args.eval_batch_size == 6
        trainer.train()
    assert_same_tensors(tmp_path / "true" / "task-02", tmp_path / "out" / "task-02")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil", "out", "true"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "true").iterdir()
    }
    assert load_state(tmp_path / "out" / "task-02")["recipe"] == load_state(run / "task-01")["recipe"]
    assert len(told) == 1 and all(name in told[0] for name in HOSTILE)


def test_a_learned_class_is_saved_and_every_image_needed_whatever_the_recipe_says(changed, told, tmp_path):
    evil = changed(save_checkpoints=False, on_bad_image="skip")
    args = ContinualTrainer.from_checkpoint(evil, new_classes(), output_dir=tmp_path / "out").args
    assert args.save_checkpoints and args.on_bad_image == "error" and len(told) == 1


def test_no_manifest_chooses_data_or_options(run):
    """It tells of the learned tasks; the new ones' data, columns and options are those of the user's stream."""
    learned = read(run / "task-01", "manifest.json")
    source = {"name_or_path": "evil/data", "revision": "main", "config": "x", "local": False}
    hostile = {**learned, "columns": {"image": "x", "label": "y"}, "options": {"imbalance_factor": 100.0}}
    hostile["information"] = {**learned["information"], "source": source}
    stream = new_classes()
    manifest = ContinuedStream(hostile, stream).manifest()
    for name in ("options", "columns", "seed"):
        assert manifest[name] == stream.manifest()[name]
    assert manifest["information"]["source"] == stream.manifest()["information"]["source"]


ORIGINS = [5, {}, {"num_tasks": "1"}, {"num_tasks": 0}, {"num_tasks": 1, "name": 5}, {"num_tasks": 1, "commit": []}]


@pytest.mark.parametrize("origin", ORIGINS, ids=str)
def test_what_a_run_went_on_from_is_checked(run, tmp_path, origin):
    folder = shutil.copytree(run / "task-01", tmp_path / "task-01")
    write_json(folder / "trainer_state.json", {**read(folder, "trainer_state.json"), "continued_from": origin})
    hash_anew(folder)
    with pytest.raises(ValueError, match="trainer_state.json: continued_from is .*Allowed: null, or"):
        load_state(folder)


# ---------------------------------------------------------------------- against a Hub

ATTACK = """
from typer.testing import CliRunner
from smope_hf.cli.program import app
from runs import tiny_stream
trainer = ContinualTrainer.from_checkpoint(given['evil'], tiny_stream(num_tasks=None, class_lists=[['c', 'd']]),
                                           output_dir=given['out'] + '/python', disable_progress=True)
trainer.train()
done = CliRunner().invoke(app, ['add-classes', given['evil'], '--data', given['data'], '--output',
                                given['out'] + '/command'])
assert done.exit_code == 0, done.output
answer = done.output
answer
"""
ATTACK_BY_THE_PAGE = """
import space
from pathlib import Path
from PIL import Image
from checkpoints import Place
from limits import Limits
from teaching import teach
images = [Image.new('RGB', (16, 16), (40 * index, 0, 0)) for index in range(5)]
lesson = teach(Place(given['evil']), images, 'red', Path(given['out']) / 'page', checkpoint='x', tests=None,
               limits=Limits())
lesson.place.name
"""


@pytest.mark.slow
def test_nothing_is_published_that_the_user_did_not_ask_for(changed, fresh_hub, tmp_path):
    """The attack as it was found: a recipe that says where to push, under the token of whoever goes on from it."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    data = new_classes()
    for index, label in enumerate(data[0].train.labels):
        folder = tmp_path / "data" / "cd"[label]
        folder.mkdir(parents=True, exist_ok=True)
        data[0].train.images([index])[0].save(folder / f"{index}.png")
    evil = changed(**AT_ONCE)
    places = {"evil": str(evil), "out": str(tmp_path / "out"), "data": str(tmp_path / "data")}
    start = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{PREPARE}"
    with Client(fresh_hub, "hf_alice", tmp_path / "home", start) as client:
        client(ATTACK, **places)
        assert "hub_model_id = 'alice/stolen'" in client.output
        client(ATTACK_BY_THE_PAGE, **places)
    asked = [(entry["method"], entry["path"]) for entry in fresh_hub.log()]
    assert all(method in ("GET", "HEAD") for method, _ in asked), asked
    assert "stolen" not in json.dumps(asked) and not list((tmp_path / "hub").rglob("*stolen*"))
    for way in ("python", "command", "page"):
        assert (tmp_path / "out" / way / "task-02" / "model.safetensors").is_file()
    assert not list(tmp_path.rglob("events.out.tfevents*")) and not (tmp_path / "caches").exists()
