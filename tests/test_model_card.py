"""The README.md of a checkpoint: what the Hub reads of it, and what a person does."""

import json
import re

import pytest
from conftest import tiny_config
from huggingface_hub import ModelCard

from smope_hf import ContinualTrainingArguments
from smope_hf.accuracy_matrix import AccuracyMatrix
from smope_hf.model_card import build_card
from smope_hf.task_split import Task

HASH = "0123abcd"


class Stream(list):
    """As `TaskStream`: tasks and the data set's name."""

    name = "digits"


def make_stream(names=(("zero", "one"), ("two|2", "three"), ("four", "five"))):
    stream, first = Stream(), 0
    for index, classes in enumerate(names):
        stream.append(Task(index, tuple(classes), range(first, first + len(classes)), None, None, None))
        first += len(classes)
    return stream


def make_card(rows=((0.9,), (0.8, 0.625)), stream=None, settings=None, **fields):
    tasks = len(rows)
    config = tiny_config(num_labels=2 * tasks, tasks=[[2 * t, 2 * t + 1] for t in range(tasks)], **fields)
    recipe = json.dumps((settings or ContinualTrainingArguments()).recipe(), indent=2)
    return build_card(config, stream or make_stream(), AccuracyMatrix(rows), recipe, HASH)


def test_the_hub_reads_its_metadata():
    card = ModelCard(make_card(base_model_name_or_path="google/vit-base-patch16-224-in21k"))
    data = card.data
    assert data.library_name == "smope_hf" and data.license == "apache-2.0"
    assert data.pipeline_tag == "image-classification" and "continual-learning" in data.tags
    assert data.base_model == "google/vit-base-patch16-224-in21k"
    assert data.to_dict()["base_model_relation"] == "adapter"
    results = {result.metric_type: result for result in data.eval_results}
    assert results["final_average_accuracy"].metric_value == pytest.approx((0.8 + 0.625) / 2)
    assert results["cumulative_average_accuracy"].metric_value == pytest.approx((0.9 + 0.7125) / 2)
    assert results["forgetting"].metric_value == pytest.approx(0.1)
    assert {(result.task_type, result.dataset_name) for result in results.values()} == {
        ("image-classification", "digits")
    }
    assert data.model_name  # evaluation results are dropped by the Hub without one
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_after_one_task_there_is_nothing_to_forget():
    card = ModelCard(make_card(rows=((0.9,),)))
    assert {result.metric_type for result in card.data.eval_results} == {
        "final_average_accuracy", "cumulative_average_accuracy",
    }  # fmt: skip
    assert "| 90.00 | 90.00 | n/a |" in card.text


def test_a_person_reads_the_tasks_learned_and_the_recipe():
    settings = ContinualTrainingArguments(seed=7)
    text = ModelCard(make_card(settings=settings)).text
    assert "after task 2: 4 classes" in text and "`digits`" in text and f"`{HASH}`" in text
    assert "| 1 | zero, one | 80.00 |\n| 2 | two/2, three | 62.50 |" in text
    assert "four" not in text  # a class not learned yet
    recipe = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)[1]
    assert json.loads(recipe) == settings.recipe()


def test_the_body_names_the_base_model_and_its_revision():
    text = ModelCard(make_card(base_model_name_or_path="google/vit", base_model_revision="abc123")).text
    assert "`google/vit`, revision `abc123`" in text


@pytest.mark.parametrize("base", ["embedded", None, "/data/private/vit", "./vit", "../vit", "~/vit", "runs/my/vit"])
def test_a_base_that_is_not_on_the_hub_is_no_base_of_the_card(base):
    """The Hub links `base_model`; a folder of this machine is nobody's business there."""
    content = make_card(base_model_name_or_path=base)
    assert ModelCard(content).data.base_model is None
    assert "private" not in content and "``)" not in content  # and the sentence about it has no hole


def test_a_local_folder_that_looks_like_a_hub_id_is_no_base_of_the_card(tmp_path, monkeypatch):
    (tmp_path / "models" / "vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ModelCard(make_card(base_model_name_or_path="models/vit")).data.base_model is None


def test_nothing_of_this_machine_is_in_the_card(tmp_path):
    settings = ContinualTrainingArguments(output_dir=str(tmp_path / "run"))
    content = make_card(settings=settings, base_model_name_or_path=str(tmp_path / "backbone"))
    assert str(tmp_path) not in content and "pytest" not in content
    assert not re.search(r"(?<![\w.`/:])/(home|tmp|root|work|data|Users)/", content)


@pytest.mark.parametrize("name", ["owner/name", 'a "quoted": name', "# hash", "- dash", "{{ braces }}"])
def test_any_name_of_a_data_set_keeps_the_metadata_whole(name):
    stream = make_stream()
    stream.name = name
    card = ModelCard(make_card(stream=stream))
    assert {result.dataset_name for result in card.data.eval_results} == {name} and f"`{name}`" in card.text
