"""Every file of a checkpoint that decides something is listed with its hash, and is checked when it is read."""

import json
import shutil

import pytest
import torch
from conftest import tiny_images
from edits import EDITS, edit_tensors, load_model
from runs import read, save_backbone, tiny_stream, tiny_trainer
from transformers import AutoModelForImageClassification

import smope_hf.storage.checksums
from smope_hf import ContinualTrainer
from smope_hf.reports.run_folder import RunFolder
from smope_hf.storage.checksums import CHECKSUMS_FILE, listed, sha256

WITH_PICTURES = True  # of the runs in this file

FREE = {"README.md", "accuracy_matrix.png", CHECKSUMS_FILE}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_trainer(save_backbone(folder / "backbone"), folder / "run").train()
    return folder / "run"


@pytest.fixture
def task(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run") / "task-03"


def test_every_file_is_listed_but_those_for_people(run):
    for folder in sorted(run.glob("task-*")):
        hashes = listed(folder / CHECKSUMS_FILE)
        assert hashes.keys() == {path.name for path in folder.iterdir()} - FREE == EDITS.keys()
        assert all(sha256(folder / name) == value for name, value in hashes.items())


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_is_refused_where_it_is_read(task, name):
    edit, load = EDITS[name]
    load(task)
    expected = listed(task / CHECKSUMS_FILE)[name]
    edit(task)
    with pytest.raises(ValueError) as error:
        load(task)
    text = str(error.value)
    assert f"{task / name} is not the file that was saved" in text and expected in text
    assert f"take '{name}' out of {task / CHECKSUMS_FILE}" in text


@pytest.mark.parametrize("name", sorted(EDITS.keys() - {"preprocessor_config.json"}))  # all tasks have the same
def test_a_file_of_another_task_is_refused(task, name):
    """Some are refused for more than their hash."""
    shutil.copy(task.with_name("task-02") / name, task / name)
    with pytest.raises(ValueError):
        EDITS[name][1](task)


def test_all_that_reads_a_checkpoint_checks_it(task, tmp_path):
    edit_tensors("class_statistics.safetensors", "usage_by_task")(task)
    with pytest.raises(ValueError, match="class_statistics.safetensors is not the file"):
        _ = RunFolder(task).usage
    with pytest.raises(ValueError, match="class_statistics.safetensors is not the file"):
        ContinualTrainer.from_checkpoint(task, tiny_stream(), output_dir=tmp_path / "more")
    EDITS["model.safetensors"][0](task)
    with pytest.raises(ValueError, match="model.safetensors is not the file"):
        AutoModelForImageClassification.from_pretrained(task)


def test_the_way_out_that_the_message_names_works(task):
    EDITS["config.json"][0](task)
    with pytest.raises(ValueError, match="take 'config.json' out of"):
        load_model(task)
    content = read(task, CHECKSUMS_FILE)
    del content["sha256"]["config.json"]
    (task / CHECKSUMS_FILE).write_text(json.dumps(content))
    assert load_model(task).config.noise_epsilon == 0.41


def test_a_checkpoint_of_an_older_version_has_no_hashes_and_loads(task):
    (task / CHECKSUMS_FILE).unlink()
    for _, load in EDITS.values():
        load(task)


def test_people_may_edit_card_and_pictures(task):
    (task / "README.md").write_text("mine")
    (task / "accuracy_matrix.png").unlink()
    (task / "notes.txt").write_text("mine")
    for _, load in EDITS.values():
        load(task)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": 2, "sha256": {}}', '{"format_version": 1}'])
def test_a_list_that_cannot_be_read_is_no_list_to_pass_over(task, content):
    (task / CHECKSUMS_FILE).write_text(content)
    with pytest.raises(ValueError, match=CHECKSUMS_FILE):
        load_model(task)


@pytest.mark.parametrize("include_backbone", [False, True])
def test_a_model_saved_alone_is_listed_and_saved_anew_is_listed_anew(task, tmp_path, include_backbone):
    model = load_model(task)
    folder = tmp_path / "alone"
    for shard in ("5GB", "40kB", "5GB"):
        with torch.no_grad():
            model.prefix_experts[0].values.add_(1)
        model.save_pretrained(folder, include_backbone=include_backbone, max_shard_size=shard)
        assert listed(folder / CHECKSUMS_FILE).keys() == {path.name for path in folder.iterdir()} - FREE
        with torch.no_grad():
            assert torch.equal(load_model(folder)(tiny_images()).logits, model(tiny_images()).logits)


def test_saving_over_a_tasks_model_keeps_what_is_listed_of_the_rest(task):
    before = listed(task / CHECKSUMS_FILE)
    model = load_model(task)
    model.classifier.bias.data.add_(1)
    model.save_pretrained(task)
    after = listed(task / CHECKSUMS_FILE)
    assert after["model.safetensors"] != before["model.safetensors"]
    rest = EDITS.keys() - {"model.safetensors", "config.json"}
    assert all(after[name] == before[name] for name in rest)
    for _, load in EDITS.values():
        load(task)


def test_weights_are_hashed_once_when_a_model_is_loaded_or_saved(task, monkeypatch, tmp_path):
    hashed = []
    monkeypatch.setattr(smope_hf.storage.checksums, "sha256", lambda file: hashed.append(str(file)) or sha256(file))
    model = load_model(task)
    assert sum(file.endswith("model.safetensors") for file in hashed) == 1
    hashed.clear()
    model.save_pretrained(tmp_path / "alone", include_backbone=True)
    assert sum(file.endswith("model.safetensors") for file in hashed) == 1
