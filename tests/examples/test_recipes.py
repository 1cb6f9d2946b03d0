"""The recipes on tiny data with their data sets' columns, the ablations, and the method that docs/ shows."""

import ast
import importlib.util
import inspect
import json
import random
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from runs import read
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from smope_hf.models.methods.l2p import DeepL2P
from smope_hf.settings.training_args import ContinualTrainingArguments
from smope_hf.training.run_arguments import ModelArguments, build_arguments, load_model, load_stream, read_recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = EXAMPLES / "recipes"
ABLATIONS = {
    "no-noise": {"noise_epsilon": (0.4, 0.0)},
    "no-prototype-loss": {"prototype_loss_coef": (1e-5, 0.0)},
    "no-router-loss": {"router_loss_coef": (1e-5, 0.0)},
    "no-sparsity": {"method": (None, "one-prompt")},
    "no-alignment": {"alignment": (None, "none")},
    "unmasked-routing": {"routing": (None, "unmasked")},
    "random-routing": {"routing": (None, "random")},
}
# as published: tasks, epsilon, weights of router and prototype loss, learning rate, batch, schedule
PUBLISHED = {
    "cifar100": (10, 0.4, 1e-5, 1e-5, 0.005, 128, "cosine"),
    "imagenet-r-5": (5, 0.7, 1e-4, 1e-5, 0.0025, 64, "cosine"),
    "imagenet-r-10": (10, 0.5, 5e-5, 1e-4, 0.0025, 64, "cosine"),
    "imagenet-r-20": (20, 0.3, 1e-4, 5e-5, 0.0025, 64, "cosine"),
    "cub-200": (10, 0.4, 1e-5, 5e-5, 0.005, 128, "cosine-per-epoch"),
}
# classes, the data set's id on the Hub, and what is published of the final average accuracy
HEADERS = {
    "cifar100": (100, "uoft-cs/cifar100", "final average accuracy 89.23"),
    "imagenet-r-5": (200, "axiong/imagenet-r", "not repeated here for 5 tasks; for 10 tasks 79.32"),
    "imagenet-r-10": (200, "axiong/imagenet-r", "final average accuracy 79.32"),
    "imagenet-r-20": (200, "axiong/imagenet-r", "not repeated here for 20 tasks; for 10 tasks 79.32"),
    "cub-200": (200, "Donghyun99/CUB-200-2011", "final average accuracy 87.43"),
}
# of the data below: 2 classes per task, in the recipe's order; ImageNet-R's test images are drawn
PROTOCOLS = {
    "cifar100": "a717f8d41e62515176fecf1558f0d674dea3b4e760247b053b9020b80e4cd539",
    "imagenet-r-10": "99f929f3aa83097c1a30597d4c85d2e9dbd28c1edb4fbda3de01d5bb9afcd1b2",
    "cub-200": "6fd86494a0d8cc24e5f089504e33142000cdec4008f96c34e0136ab4b11bb71e",
}
SLOW = ("imagenet-r-10", "imagenet-r-20", "cub-200")  # whose runs take longest
TINY = {"epochs": 1, "dense_epochs": 0, "alignment_epochs": 1}  # what a tiny run does otherwise than its recipe


def example(name):
    """An example's module, as `python examples/NAME.py` would run it."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image(row):
    """Small images of several sizes, some of them grey, as photographs and renditions are; in bytes that stay.

    A PNG's would depend on the library that compresses it, and so would the hash of a protocol.
    """
    kind, channels, width, height = ("P5", 1, 20, 16 + row % 3) if row % 4 == 0 else ("P6", 3, 16 + row % 5, 18)
    pixels = random.Random(row).randbytes(width * height * channels)
    return {"bytes": f"{kind} {width} {height} 255\n".encode() + pixels, "path": None}


def split(columns, num_classes, per_class):
    """Rows for each class, with each column's value of a class; `image` or `img` is the image."""
    rows = [index % num_classes for index in range(num_classes * per_class)]
    features = Features({name: kind for name, (kind, _) in columns.items()})
    data = {name: [value(row, label) for row, label in enumerate(rows)] for name, (_, value) in columns.items()}
    return Dataset.from_dict(data, features=features)


def save_cifar100(folder, num_classes):
    fine, coarse = (ClassLabel(names=[f"{kind} {label}" for label in range(num_classes)]) for kind in "fc")
    columns = {
        "img": (Image(), lambda row, _: image(row)),
        "fine_label": (fine, lambda _, label: label),
        "coarse_label": (coarse, lambda _, label: label // 2),
    }
    DatasetDict({"train": split(columns, num_classes, 3), "test": split(columns, num_classes, 1)}).save_to_disk(folder)


def save_imagenet_r(folder, num_classes):
    columns = {
        "image": (Image(), lambda row, _: image(row)),
        "wnid": (Value("string"), lambda _, label: f"n{label:08d}"),
        "class_name": (Value("string"), lambda _, label: f"rendition_{label}"),
    }
    DatasetDict({"test": split(columns, num_classes, 5)}).save_to_disk(folder)  # all images in one split of that name


def save_cub(folder, num_classes):
    names = ClassLabel(names=[f"{label + 1:03d}.Bird" for label in range(num_classes)])
    columns = {"image": (Image(), lambda row, _: image(row)), "label": (names, lambda _, label: label)}
    DatasetDict({"train": split(columns, num_classes, 3), "test": split(columns, num_classes, 1)}).save_to_disk(folder)


SAVE = {"cifar100": save_cifar100, "cub-200": save_cub}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A random ViT with the six layers that the recipes name, and its image processor."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    ViTModel(ViTConfig(num_hidden_layers=6, **sizes), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_of_the_paper_holds_the_published_settings(name):
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    tasks, epsilon, router, prototype, learning_rate, batch, schedule = PUBLISHED[name]
    expected = {
        "num_tasks": tasks, "noise_epsilon": epsilon, "router_loss_coef": router, "prototype_loss_coef": prototype,
        "learning_rate": learning_rate, "batch_size": batch, "lr_schedule": schedule, "epochs": 20, "num_experts": 25,
        "top_k": 5, "prefix_lr_multiplier": 5, "weight_decay": 0, "min_learning_rate": 1e-6, "dense_epochs": 10,
        "prompt_layers": [0, 1, 2, 3, 4, 5], "routing": "unmasked", "normalization": "reference",
        "statistics": "train", "drift_compensation": "none", "alignment": "gaussian", "alignment_epochs": 50,
        "alignment_learning_rate": 1e-5, "alignment_weight_decay": 5e-4,
        "backbone": "google/vit-base-patch16-224-in21k",
    }  # fmt: skip
    assert {key: recipe.get(key) for key in expected} == expected
    page = (EXAMPLES.parent / "docs" / "differences.md").read_text()
    (line,) = re.findall(r"^`(--routing [^`]*)` is the published way", page, re.MULTILINE)
    words = line.split()
    options = {option[2:].replace("-", "_"): value for option, value in zip(words[::2], words[1::2], strict=True)}
    assert options and {key: recipe[key] for key in options} == options


def header_of(path):
    """The first line of a recipe's header, and its entries by name, each in one line."""
    title, *lines = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    entries = re.findall(r"^([A-Z][a-z]+(?: [a-z]+)?) {2,}(.*(?:\n {11,}.*)*)", "\n".join(lines), re.MULTILINE)
    return title, {name: " ".join(text.split()) for name, text in entries}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_of_a_recipe_of_the_paper_says_what_it_is_and_needs(name):
    path, (num_classes, dataset, published) = RECIPES / f"{name}.yaml", HEADERS[name]
    (title, header), recipe = header_of(path), read_recipe(path)
    tasks = recipe["num_tasks"]
    assert f", {tasks} tasks of {num_classes // tasks} classes, all images" in title
    assert header["Method"].startswith("SMoPE (ICLR 2026, arXiv 2509.24483), with the published settings")
    assert header["Command"] == f"python examples/train.py examples/recipes/{name}.yaml --output_dir runs/{name}"
    assert recipe["dataset"] == dataset and header["Data"].startswith(f"{dataset} on the Hub: ")
    used = recipe["label_column"], recipe.get("train_split", "train")
    assert all(re.search(rf"\b{name}\b", header["Data"]) for name in used)
    assert header["Published"] == published
    assert re.match(r"an estimate, not measured: one GPU with \d+ GB or more, .*\bhours?\b", header["Hardware"])
    choices = ["the class order (seed 0", "the samples per alignment step", "the freeze before the cosine"]
    choices += ["where the plain cosine per epoch ends (1e-6"] if recipe["lr_schedule"] == "cosine-per-epoch" else []
    assert all(choice in header["Not given"] for choice in choices)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PUBLISHED]
)
def test_a_recipe_of_the_paper_runs_on_data_with_its_columns(name, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "smope_hf.reports.results.plot_accuracy_matrix", lambda *_, **__: None
    )  # the slowest part by far
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    num_classes = recipe["num_tasks"] * 2
    SAVE.get(name, save_imagenet_r)(tmp_path / "data", num_classes)
    given = {**TINY, "dataset": tmp_path / "data", "backbone": backbone, "output_dir": tmp_path / "run"}
    options = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
    content = example("train").main([str(RECIPES / f"{name}.yaml"), *options, "--disable_progress", "true"])

    training = {setting.name for setting in fields(ContinualTrainingArguments)} & set(recipe)
    assert {key: content["recipe"][key] for key in training} == {key: {**recipe, **TINY}[key] for key in training}
    config = read(tmp_path / "run" / f"task-{recipe['num_tasks']:02d}", "config.json")
    of_model = {setting.name for setting in fields(ModelArguments)} & set(recipe) - {"backbone"}
    assert {key: config[key] for key in of_model} == {key: recipe[key] for key in of_model}
    manifest = read(tmp_path / "run", "manifest.json")
    assert manifest["columns"]["label"] == recipe["label_column"] and manifest["seed"] == recipe["class_order_seed"]
    assert manifest["options"]["num_tasks"] == recipe["num_tasks"] == len(content["accuracy_matrix"])
    assert manifest["information"]["source"]["name_or_path"] == "data"  # the command line's, not the recipe's
    assert manifest["num_classes"] == num_classes and manifest["options"]["test_split"] in (None, "test")
    assert 0 <= content["metrics"]["final_average_accuracy"] <= 1


def test_the_split_of_imagenet_r_is_80_to_20_in_every_class_and_pinned(tmp_path, monkeypatch):
    """By the data set's id on the Hub as well as from a folder with its images."""
    save_imagenet_r(tmp_path / "data", 10)
    recipe = read_recipe(RECIPES / "imagenet-r-5.yaml")
    _, data, _ = build_arguments({**recipe, "dataset": str(tmp_path / "data")})
    stream = load_stream(data)
    for task in stream:
        assert np.bincount(task.train.labels - task.class_ids.start).tolist() == [4, 4]
        assert np.bincount(task.test.labels - task.class_ids.start).tolist() == [1, 1]
    on_the_hub = {recipe["dataset"]: load_from_disk(tmp_path / "data")}
    monkeypatch.setattr("datasets.load_dataset", lambda name, *_, **__: on_the_hub[name])
    again = load_stream(build_arguments(recipe)[1])
    assert again.manifest()["protocol_hash"] == stream.manifest()["protocol_hash"]
    assert again.manifest()["information"]["source"]["name_or_path"] == "axiong/imagenet-r"
    data.class_order_seed += 1
    assert load_stream(data).manifest()["protocol_hash"] != stream.manifest()["protocol_hash"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_draw_and_the_order_of_classes_stay_as_they_are(name, tmp_path):
    """Results of years ago and of today are comparable: a seed gives the same tasks for ever."""
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    SAVE.get(name, save_imagenet_r)(tmp_path / "data", recipe["num_tasks"] * 2)
    _, data, _ = build_arguments({**recipe, "dataset": str(tmp_path / "data")})
    assert load_stream(data).manifest()["protocol_hash"] == PROTOCOLS[name]


def test_the_short_recipe_takes_as_long_as_its_records_say():
    minutes = []
    for path in (EXAMPLES / "records" / "cifar100-short").glob("smope/seed-*/record.json"):
        minutes.append(sum(sum(task.values()) for task in json.loads(path.read_text())["seconds_by_task"]) / 60)
    _, header = header_of(RECIPES / "cifar100-short.yaml")
    assert header["Time"].startswith(f"{min(minutes):.0f} to {max(minutes):.0f} minutes")


def test_every_ablation_is_listed():
    assert {path.stem for path in (RECIPES / "ablations").glob("*.yaml")} == set(ABLATIONS)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_in_what_it_names_alone(name, backbone):
    short, ablation = read_recipe(RECIPES / "cifar100-short.yaml"), read_recipe(RECIPES / "ablations" / f"{name}.yaml")
    changed = {key for key in short.keys() | ablation.keys() if short.get(key) != ablation.get(key)}
    assert {key: (short.get(key), ablation.get(key)) for key in changed} == ABLATIONS[name]
    (key,) = changed
    header = (RECIPES / "ablations" / f"{name}.yaml").read_text().partition("\nlabel_column")[0]
    assert "Ablation of ../cifar100-short.yaml" in header and f"# Changed    {key}: " in header
    assert f"examples/train.py examples/recipes/ablations/{name}.yaml " in header
    built = [build_arguments({"dataset": "embedded", **recipe}) for recipe in (short, ablation)]
    assert built[0] != built[1]  # a setting to its default would be no ablation


def test_no_sparsity_has_every_expert_on_and_no_loss_of_the_routing(backbone):
    recipe = read_recipe(RECIPES / "ablations" / "no-sparsity.yaml")
    model_args, _, _ = build_arguments({"dataset": "embedded", **recipe, "backbone": backbone})
    config = load_model(model_args)[0].config
    assert config.top_k == config.num_experts == 25
    assert config.router_loss_coef == config.prototype_loss_coef == 0


def test_the_method_shown_in_the_documentation_is_the_one_that_runs():
    page = EXAMPLES.parent / "docs" / "guides" / "adding-a-method.md"
    shown = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[0]
    shown = shown.replace("from smope_hf.models.methods.", "from .")  # as it has to be outside of the package
    assert len(shown.splitlines()) <= 45
    trees = [ast.parse(text) for text in (shown, inspect.getsource(inspect.getmodule(DeepL2P)))]
    for node in ast.walk(trees[1]):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body.pop(0)
    assert ast.unparse(trees[0]) == ast.unparse(trees[1])
