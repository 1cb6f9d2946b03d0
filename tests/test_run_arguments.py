"""Recipes and the settings of model and data: what is read, and what is refused with name and value."""

from pathlib import Path

import pytest
import yaml
from transformers import HfArgumentParser

from smope_hf.run_arguments import (
    RUN_ARGUMENTS,
    DataArguments,
    ModelArguments,
    build_arguments,
    read_recipe,
    recipe_arguments,
)

RECIPES = sorted((Path(__file__).resolve().parents[1] / "examples" / "recipes").glob("*.yaml"))


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
