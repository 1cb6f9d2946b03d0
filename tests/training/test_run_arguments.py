"""Recipes and the settings of model and data: what is read, and what is refused with name and value."""

from pathlib import Path

import pytest
import yaml
from runs import AtStep, assert_same_tensors, read, save_backbone
from transformers import HfArgumentParser

from smope_hf import PromptedForImageClassification
from smope_hf.training.run_arguments import (
    RUN_ARGUMENTS,
    DataArguments,
    ModelArguments,
    build_arguments,
    load_trainer,
    parse_arguments,
    read_recipe,
    recipe_arguments,
)

RECIPES = sorted((Path(__file__).resolve().parents[2] / "examples" / "recipes").glob("*.yaml"))


def recipe(folder, text):
    (folder / "recipe.yaml").write_text(text)
    return read_recipe(folder / "recipe.yaml")


def test_numbers_and_switches_are_those_of_yaml_1_2(tmp_path):
    found = recipe(
        tmp_path,
        "learning_rate: 1e-3\nrouter_loss_coef: 1.0e-5\nweight_decay: .5\nepochs: 3\nmixed_precision: no\n"
        "yardsticks: true\nresume: False\ncrop_scale: [0.7, 1]\nseed:\nmax_grad_norm: null\ndataset: on\n",
    )
    assert found == {
        "learning_rate": 1e-3, "router_loss_coef": 1e-5, "weight_decay": 0.5, "epochs": 3, "mixed_precision": "no",
        "yardsticks": True, "resume": False, "crop_scale": [0.7, 1], "dataset": "on",
    }  # fmt: skip
    assert type(found["epochs"]) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs: 3", r"recipe.yaml: 'epohcs' is no setting. Did you mean 'epochs'\?"),
        ("output-dir: x", r"Did you mean 'output_dir'\?"),
        ("zzz: 1", "`smope train --help` lists all"),
        ("7: 1", "7 is no setting"),
        ("- epochs", "holds no settings"),
        ("", "holds no settings"),
        ("epochs: [", "is not a YAML file"),
        ("dataset: embedded\nnum_threads: two", "DataArguments.num_threads = 'two' is not allowed"),
        ("dataset: embedded\nyardsticks: yes", "yardsticks = 'yes' is not allowed. Allowed: True or False"),
        ("dataset: embedded\nepochs: 2.5", "epochs = 2.5 is not allowed"),
        ("dataset: [embedded]", "dataset = .* is not allowed. Allowed: a text"),
        ("epochs: 3", "no data set: give --dataset"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        build_arguments(recipe(tmp_path, text))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_that_come_along_mean_the_same_to_everyone(path):
    found = read_recipe(path)
    assert found == yaml.safe_load(path.read_text())
    built = build_arguments({"dataset": "embedded", **found})
    parsed = HfArgumentParser(RUN_ARGUMENTS).parse_args_into_dataclasses(
        ["--dataset", "embedded", *recipe_arguments(found)]
    )
    assert tuple(built) == tuple(parsed)


def test_an_empty_list_in_a_recipe_is_no_flag_without_a_value(tmp_path):
    found = recipe(tmp_path, "dataset: embedded\ncompare_alignments: []\nepochs: 3")
    assert recipe_arguments(found) == ["--dataset", "embedded", "--epochs", "3"]
    assert build_arguments(found)[2].compare_alignments == []
    for name in ("crop_scale", "prompt_layers"):
        with pytest.raises(ValueError, match=rf"{name} = \[\] is not allowed"):
            recipe_arguments({name: []})
        with pytest.raises(ValueError, match=rf"{name} = \[\] is not allowed"):
            build_arguments({"dataset": "embedded", name: []})


def test_settings_are_checked_where_they_are_made():
    for wrong in ({"num_experts": "25"}, {"num_experts": True}, {"prompt_layers": [0, "1"]}, {"routing": None}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"ModelArguments.{name} = "):
            ModelArguments(**wrong)
    assert ModelArguments(noise_epsilon=1).noise_epsilon == 1
    with pytest.raises(ValueError, match="num_threads = 0 is not allowed"):
        DataArguments("embedded", num_threads=0)


# ---------------------------------------------------------------------- all tasks at once


def test_the_method_joint_is_fine_tuning_on_all_tasks_at_once(tmp_path):
    given = ["--dataset", "embedded", "--epochs", "3"]
    expected = parse_arguments([*given, "--method", "finetune", "--joint", "true"])
    for options in (["--method", "joint"], ["--method=joint", "--joint"], ["--joint", "true", "--method", "joint"]):
        assert parse_arguments([*given, *options]) == expected
    assert (expected[0].method, expected[1].joint) == ("finetune", True)
    found = recipe(tmp_path, "dataset: embedded\nmethod: joint\nepochs: 3")
    assert build_arguments(found) == parse_arguments([str(tmp_path / "recipe.yaml")]) == expected
    other = parse_arguments([str(tmp_path / "recipe.yaml"), "--method", "l2p"])
    assert (other[0].method, other[1].joint) == ("l2p", False)  # the recipe's method alone asked for it


@pytest.mark.parametrize("options", [["--joint", "false"], ["--joint=no"]])
def test_the_method_joint_without_joint_is_refused(options):
    message = "joint = False is not allowed with method = 'joint'.*Leave joint out, or choose method = 'finetune'"
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--dataset", "embedded", "--method", "joint", *options])
    with pytest.raises(ValueError, match=message):
        build_arguments({"dataset": "embedded", "method": "joint", "joint": False})


def test_an_option_that_there_is_not_is_refused_by_name():
    with pytest.raises(ValueError, match="'--epohcs 3' is not allowed"):
        parse_arguments(["--dataset", "embedded", "--epohcs", "3"])
    with pytest.raises(ValueError, match="no data set: give --dataset"):
        parse_arguments(["--epochs", "3"])


class Lost(Exception):
    """Stands for whatever takes a process away."""


def test_a_joint_run_learns_all_classes_in_one_task_resumes_and_loads(tmp_path):
    options = {
        "dataset": "embedded", "backbone": save_backbone(tmp_path / "vit"), "method": "joint", "num_tasks": 5,
        "max_train_samples_per_class": 4, "max_test_samples_per_class": 3, "epochs": 2, "batch_size": 8,
        "checkpoint_every": 1, "report": "false", "disable_progress": "true",
    }  # fmt: skip

    def trainer(folder, **more):
        options_of_run = {**options, "output_dir": tmp_path / folder, **more}
        return load_trainer(*parse_arguments([f"--{name}={value}" for name, value in options_of_run.items()]))

    whole = trainer("whole")
    content = whole.train()
    assert [len(row) for row in content["accuracy_matrix"]] == [1]
    assert whole.model.config.tasks == [list(range(10))] and whole.model.trains_backbone
    assert "joint_of" in read(tmp_path / "whole", "manifest.json")["information"]
    shown = "JointStream('embedded': 5 tasks at once, 10 classes, 40 training images, 30 test images)"
    assert repr(whole.stream) == shown
    card = " ".join((tmp_path / "whole" / "task-01" / "README.md").read_text().split())
    assert "in 1 task, by Fine-tuning" in card and "Fine-tuning: cls pooling." in card and "earlier tasks" not in card

    def lose(_):
        raise Lost

    cut = trainer("cut")
    cut.callbacks.append(AtStep(0, 6, lose))  # of ten
    with pytest.raises(Lost):
        cut.train()
    assert (tmp_path / "cut" / "state").is_dir() and not (tmp_path / "cut" / "task-01").exists()
    resumed = trainer("cut", resume="true").train()
    assert resumed["accuracy_matrix"] == content["accuracy_matrix"]
    assert_same_tensors(tmp_path / "whole" / "task-01", tmp_path / "cut" / "task-01")
    loaded = PromptedForImageClassification.from_pretrained(tmp_path / "cut" / "task-01")
    assert loaded.config.method == "finetune" and loaded.config.num_labels == 10


def test_model_arguments_alone_may_name_the_method_joint(tmp_path):
    args = build_arguments({"dataset": "embedded", "output_dir": str(tmp_path)})[2]
    data = DataArguments("embedded", num_tasks=5, max_train_samples_per_class=2, max_test_samples_per_class=1)
    trainer = load_trainer(ModelArguments(method="joint", backbone="embedded"), data, args)
    assert len(trainer.stream) == 1 and trainer.model.config.method == "finetune"


# ---------------------------------------------------------------------- methods with an alignment of their own


@pytest.mark.parametrize(
    ("method", "alignment"),
    [(m, a) for m in ("ncm", "lda") for a in ("none", "gaussian", "gaussian-full", "lda", "ncm") if a != m],
)
def test_an_alignment_given_to_a_method_that_has_its_own_is_refused(method, alignment, tmp_path):
    message = f"alignment = '{alignment}' is not allowed.*Allowed: '{method}'. Leave alignment out, or choose a method"
    given = ["--dataset", "embedded", "--method", method]
    both = recipe(tmp_path, f"dataset: embedded\nmethod: {method}\nalignment: {alignment}")
    with pytest.raises(ValueError, match=message):
        parse_arguments([*given, "--alignment", alignment])
    with pytest.raises(ValueError, match=message):
        build_arguments(both)
    with pytest.raises(ValueError, match=message):
        build_arguments({}, both)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / "recipe.yaml")])


@pytest.mark.parametrize("method", ["ncm", "lda"])
def test_a_method_keeps_its_own_alignment_beside_a_recipe_for_several(method, tmp_path):
    shared = recipe(tmp_path, "dataset: embedded\nalignment: gaussian\nepochs: 3")
    default = parse_arguments(["--dataset", "embedded", "--epochs", "3", "--method", method])
    for built in (
        parse_arguments([str(tmp_path / "recipe.yaml"), "--method", method]),
        build_arguments({"method": method}, shared),
    ):
        assert built == default
    own = parse_arguments([str(tmp_path / "recipe.yaml"), "--method", method, "--alignment", method])
    assert own[2].alignment == method
    assert parse_arguments([str(tmp_path / "recipe.yaml"), "--method", "linear"])[2].alignment == "gaussian"
    assert parse_arguments([str(tmp_path / "recipe.yaml")])[2].alignment == "gaussian"
