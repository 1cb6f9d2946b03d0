"""A task's folder appears whole or not at all, holds no pickle, and tells a person what the routing does."""

import json
import os
import resource

import pytest
import torch
from conftest import tiny_images, tiny_model
from transformers import ViTImageProcessorPil

from smope_hf import SMoPEForImageClassification
from smope_hf.data.manifest import protocol_hash
from smope_hf.heads.alignment import ClassStatistics
from smope_hf.sharing.checkpoint import (
    STATE_FILE,
    STATISTICS_FILE,
    load_manifest,
    load_state,
    load_statistics,
    remove_partial,
    routing_report,
    save_task,
    saved_tasks,
    task_folder,
    whole_folder,
)
from smope_hf.sharing.model_card import PICTURE
from smope_hf.storage.files import write_json

# ---------------------------------------------------------------------- whole folders


def test_a_folder_appears_when_its_block_ends(tmp_path):
    target = tmp_path / "run" / "task-01"
    with whole_folder(target) as beside:
        (beside / "deep").mkdir()
        (beside / "deep" / "file").write_text("content")
        assert not target.exists() and beside.parent == target.parent
    assert (target / "deep" / "file").read_text() == "content"
    assert os.listdir(target.parent) == ["task-01"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "task-01") as beside:
        (beside / "file").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_failing_rename_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(OSError, match="disk full"), whole_folder(tmp_path / "task-01") as beside:
        (beside / "file").write_text("whole")
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "task-01").mkdir()
    (tmp_path / "task-01" / "file").write_text("old")
    with (
        pytest.raises(FileExistsError, match="task-01 exists already.*output_dir"),
        whole_folder(tmp_path / "task-01"),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "task-01" / "file").read_text() == "old" and os.listdir(tmp_path) == ["task-01"]


def make_saved(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE_FILE).write_text("{}")


def test_what_a_killed_process_left_is_ignored_and_removed(tmp_path):
    make_saved(tmp_path, "task-01", ".task-02.1a2b3c4d.partial")
    (tmp_path / "plots").mkdir()
    for name in (".metrics.json.0a1b2c3d.tmp", "plots/.a.png.0a1b2c3d.tmp", "plots/.mine.tmp"):
        (tmp_path / name).write_text("half")
    assert saved_tasks(tmp_path) == [tmp_path / "task-01"]
    remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["plots", "task-01"]
    assert os.listdir(tmp_path / "plots") == [".mine.tmp"]  # nobody but its maker knows what that is
    remove_partial(tmp_path / "nowhere")


@pytest.mark.parametrize(("index", "name"), [(0, "task-01"), (8, "task-09"), (9, "task-10"), (99, "task-100")])
def test_folder_names(tmp_path, index, name):
    assert task_folder(tmp_path, index) == tmp_path / name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_json_that_not_every_parser_takes_is_refused_and_the_old_file_stays(tmp_path, value):
    write_json(tmp_path / "deep" / "metrics.json", {"accuracy": 0.5})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "deep" / "metrics.json", {"accuracy": value})
    assert json.loads((tmp_path / "deep" / "metrics.json").read_text()) == {"accuracy": 0.5}
    assert os.listdir(tmp_path / "deep") == ["metrics.json"]


# ---------------------------------------------------------------------- the routing report


def test_routing_report_of_hand_made_counts():
    """2 layers, 2 heads, 6 experts, 2 of which an image switches on; 4 images in the first task, 6 in the second."""
    model = tiny_model(prompt_layers=[0, 2], noise_epsilon=0.25, routing="unmasked")
    first = torch.tensor([
        [[4, 4, 0, 0, 0, 0], [1, 1, 1, 1, 2, 2]],
        [[0, 0, 0, 0, 3, 5], [4, 2, 2, 0, 0, 0]],
    ])  # fmt: skip
    second = torch.tensor([
        [[6, 0, 6, 0, 0, 0], [2, 2, 2, 2, 2, 2]],
        [[0, 0, 0, 0, 6, 6], [1, 5, 6, 0, 0, 0]],
    ])  # fmt: skip
    for layer, experts in enumerate(model.prefix_experts):
        experts.usage_counts.copy_(first[layer] + second[layer])
    model.prefix_experts[0].frequently_used[0, [0, 1]] = True
    model.prefix_experts[1].frequently_used[1, 4] = True
    report = json.loads(json.dumps(routing_report(model, [first, second]), allow_nan=False))
    layers = report.pop("layers")
    assert report == {
        "format_version": 1, "num_experts": 6, "top_k": 2, "noise_epsilon": 0.25, "routing": "unmasked",
        "images_by_task": [4, 6], "dead_share": round(10 / 24, 6), "frequently_used_share": round(3 / 24, 6),
    }  # fmt: skip
    assert [layer["layer"] for layer in layers] == [0, 2]
    assert layers[0]["dead_experts"] == [[3, 4, 5], []] and layers[1]["dead_experts"] == [[0, 1, 2, 3], [3, 4, 5]]
    assert layers[0]["frequently_used_experts"] == [[0, 1], []]
    assert layers[1]["frequently_used_experts"] == [[], [4]]
    assert layers[0]["usage_share"] == [[0.5, 0.2, 0.3, 0, 0, 0], [0.15, 0.15, 0.15, 0.15, 0.2, 0.2]]
    by_task = layers[1]["usage_share_by_task"]
    assert by_task[0] == [[0, 0, 0, 0, 0.375, 0.625], [0.5, 0.25, 0.25, 0, 0, 0]]
    assert by_task[1][1] == [round(1 / 12, 6), round(5 / 12, 6), 0.5, 0, 0, 0]


def test_routing_report_before_any_counting():
    report = routing_report(tiny_model(), [])
    assert report["images_by_task"] == [] and report["dead_share"] == 1 and report["frequently_used_share"] == 0
    assert report["layers"][0]["usage_share"] == [[0.0] * 6] * 2


# ---------------------------------------------------------------------- a task's folder


STATE = {
    "recipe": {"seed": 3}, "protocol_hash": "0", "accuracy_matrix": [[0.5]], "test_counts": [7],
    "seconds_by_task": [{}], "logged_steps": 5, "continued_from": None, "follows": None, "versions": {},
}  # fmt: skip
TASK = {
    "index": 0, "class_ids": list(range(6)), "class_names": [f"LABEL_{index}" for index in range(6)],
    "train": {"num_samples": 4, "sha256": "0"}, "validation": None, "test": {"num_samples": 7, "sha256": "0"},
}  # fmt: skip
MANIFEST = {
    "format_version": 1, "name": "shapes", "protocol_hash": protocol_hash([TASK]), "seed": 0, "num_classes": 6,
    "columns": {}, "options": {}, "tasks": [TASK], "information": {},
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    model = tiny_model()
    with torch.no_grad(), model.raw_routing():
        model.update_usage(model(tiny_images(), output_router_scores=True).router_scores)
    usage = torch.stack([experts.usage_counts for experts in model.prefix_experts])
    statistics = ClassStatistics(torch.randn(6, 32), torch.rand(6, 32), torch.arange(1, 7), torch.rand(32, 32).T)
    assert not statistics.scatter.is_contiguous()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    folder = tmp_path / "run" / "task-01"
    save_task(folder, model, processor, statistics, [usage], STATE, MANIFEST)
    return folder, model, statistics, usage


def test_what_is_added_while_a_task_is_saved_goes_with_it(saved):
    """Such as the picture that its card then shows."""
    folder, model, statistics, usage = saved
    assert PICTURE not in (folder / "README.md").read_text()

    def add(beside):
        assert (beside / "model.safetensors").is_file() and not (beside / "README.md").exists()
        (beside / PICTURE).write_bytes(b"picture")

    second = folder.with_name("task-02")
    save_task(second, model, ViTImageProcessorPil(), statistics, [usage], STATE, MANIFEST, add)
    assert f"({PICTURE})" in (second / "README.md").read_text()


def test_a_saved_task_is_safetensors_and_json_alone(saved):
    folder, *_ = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "checksums.json", "class_statistics.safetensors", "config.json",
        "manifest.json", "model.safetensors", "preprocessor_config.json", "routing.json", "trainer_state.json",
    ]  # fmt: skip
    for path in folder.glob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path.name}"))
    assert os.listdir(folder.parent) == ["task-01"]


def test_a_saved_task_gives_everything_back(saved):
    folder, model, statistics, usage = saved
    found, history = load_statistics(folder)
    for name, tensor in statistics.to_tensors().items():
        assert torch.equal(found.to_tensors()[name], tensor) and found.to_tensors()[name].dtype == tensor.dtype
    assert len(history) == 1 and torch.equal(history[0], usage)
    assert load_state(folder) == {"format_version": 1, **STATE}
    assert load_manifest(folder) == MANIFEST
    assert json.loads((folder / "routing.json").read_text())["images_by_task"] == [4]
    loaded = SMoPEForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images()).logits, model(tiny_images()).logits)
    assert ViTImageProcessorPil.from_pretrained(folder).size["height"] == 16
    assert "6 classes" in (folder / "README.md").read_text()


def test_a_failure_while_saving_leaves_nothing(tmp_path):
    class BrokenProcessor:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_task(tmp_path / "task-01", tiny_model(), BrokenProcessor(), ClassStatistics.empty(32), [], {}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [1_000, 5_000, 20_000])
def test_a_disk_that_is_full_is_an_error_that_says_what_to_do(saved, limit):
    """The limit is one of the system's, on the size of each file, and stops a write as a full disk would."""
    folder, model, statistics, usage = saved
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            OSError, match="task-02 could not be saved: .* saved before is whole. Make room .*--resume"
        ):
            save_task(folder.with_name("task-02"), model, processor, statistics, [usage], STATE, MANIFEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert os.listdir(folder.parent) == ["task-01"]
    assert load_state(folder) and load_statistics(folder)


def test_a_folder_that_exists_is_not_touched(saved):
    folder, model, statistics, usage = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="exists already. Give another output_dir"):
        save_task(folder, model, ViTImageProcessorPil(), statistics, [usage], STATE, MANIFEST)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_right_to_write_is_an_error_that_says_what_to_do(saved, monkeypatch):
    folder, model, statistics, usage = saved

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")  # no folder's mode keeps root out, who may run this

    monkeypatch.setattr("os.rename", refused)
    with pytest.raises(OSError, match="could not be saved: .*Permission denied.* give the right to write there"):
        save_task(folder.with_name("task-02"), model, ViTImageProcessorPil(), statistics, [usage], STATE, MANIFEST)
    assert os.listdir(folder.parent) == ["task-01"]


@pytest.mark.parametrize("version", [2, 0, "1", None, 1.5])
def test_a_newer_or_unknown_format_is_refused(saved, version):
    folder, *_ = saved
    (folder / STATE_FILE).write_text(json.dumps({"format_version": version}))
    with pytest.raises(ValueError, match=rf"(?s){STATE_FILE} has format_version {version!r}.*Install a newer"):
        load_state(folder)


@pytest.mark.parametrize(
    "field, value",
    [("num_classes", 7), ("protocol_hash", "1"), ("tasks", []), ("tasks", [{**TASK, "class_ids": [1]}]), ("name", 3)],
)
def test_a_manifest_that_no_run_wrote_is_refused_by_field(saved, field, value):
    folder, *_ = saved
    write_json(folder / "manifest.json", {**MANIFEST, field: value})
    with pytest.raises(ValueError, match=rf"manifest.json: {field}.*is not allowed"):
        load_manifest(folder)


def test_a_run_that_went_on_elsewhere_need_not_begin_with_task_01(tmp_path):
    for name in ("task-03", "task-04", "task-x"):
        write_json(tmp_path / name / STATE_FILE, {})
    assert [path.name for path in saved_tasks(tmp_path)] == ["task-03", "task-04"]
    assert [path.name for path in saved_tasks(tmp_path, 3)] == ["task-04"]
    assert saved_tasks(tmp_path / "nowhere") == []


def test_a_gap_in_a_run_is_never_passed_over(tmp_path):
    for name in ("task-01", "task-03"):
        write_json(tmp_path / name / STATE_FILE, {})
    for first in (None, 0, 1):
        with pytest.raises(ValueError, match="holds task-03, but not task-02 before it"):
            saved_tasks(tmp_path, first)


def test_pickles_are_not_read(saved):
    """A file that only torch.load could read is an error, not something to run."""
    folder, _, statistics, _ = saved
    torch.save(statistics.to_tensors(), folder / STATISTICS_FILE)
    with pytest.raises(Exception, match="(?i)header"):
        load_statistics(folder)
