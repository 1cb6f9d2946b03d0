"""Checkpoints of every version so far, as that version wrote them, load and classify as they did then."""

import shutil
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTImageProcessorPil

from smope_hf import ContinualTrainer, TaskStream
from smope_hf.data.embedded import digits
from smope_hf.sharing.checkpoint import load_manifest, load_state, load_statistics
from smope_hf.sharing.source import find_checkpoint
from smope_hf.sharing.statistics_file import load_routing

FIXTURES = Path(__file__).parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES))
from make_checkpoints import logits  # noqa: E402

VERSIONS = sorted(path.name for path in (FIXTURES / "checkpoints").iterdir())
EXPECTED = "expected_logits.safetensors"
CASES = [(version, name) for version in VERSIONS for name in load_file(FIXTURES / "checkpoints" / version / EXPECTED)]


@pytest.fixture
def place(tmp_path):
    """A function that copies a version's checkpoints away, so that nothing here can change them."""

    def copy(version):
        return shutil.copytree(FIXTURES / "checkpoints" / version, tmp_path / version)

    return copy


def load(folder: Path, name: str):
    where = {} if name == "standalone" else {"backbone": str(folder / "base")}
    return find_checkpoint(folder / name).load_model(**where)


def test_there_is_a_full_one_an_adapter_a_rival_and_a_whole_task():
    assert "v1" in VERSIONS
    for version in VERSIONS:
        assert {name for v, name in CASES if v == version} >= {"standalone", "adapter", "l2p", "task-03"}


@pytest.mark.parametrize("version, name", CASES)
def test_an_older_checkpoint_gives_the_logits_of_its_time(place, version, name):
    """Up to the rounding of another machine; a weight, buffer or setting that is lost moves them by far more."""
    folder = place(version)
    expected = load_file(folder / EXPECTED)[name]
    torch.testing.assert_close(logits(load(folder, name)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.05 and (expected[0] - expected[1:]).abs().max(dim=-1).values.min() > 1e-3


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_routing_is_in_force(place, version):
    model = load(place(version), "task-03")
    assert model.config.tasks == [[0, 1], [2, 3], [4, 5]]
    for experts in model.prefix_experts:
        assert experts.frequently_used.any() and experts.usage_counts.sum() > 0 and experts.previous_keys.any()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_task_is_read_whole_and_learns_on(place, version, tmp_path):
    folder = place(version)
    task = folder / "task-03"
    statistics, usage = load_statistics(task)
    assert len(statistics.count) == 6 and len(usage) == 3
    assert len(load_state(task)["accuracy_matrix"]) == 3
    assert len(load_manifest(task)["tasks"]) == 3
    assert load_routing(task)["num_experts"] == 6
    assert ViTImageProcessorPil.from_pretrained(task).size["height"] == 16
    trainer = ContinualTrainer.from_checkpoint(
        task,
        new_classes(),
        output_dir=tmp_path / "more",
        backbone=str(folder / "base"),
        disable_progress=True,
        epochs=1,
    )
    trainer.train()
    assert trainer.model.config.num_labels == 12 and (tmp_path / "more" / "task-04" / "model.safetensors").exists()


def new_classes() -> TaskStream:
    data = digits()
    few = {split: data[split].filter(lambda row: row["label"] < 6).select(range(60)) for split in data}
    few = {split: rows.cast_column("label", datasets.ClassLabel(names=list("ghijkl"))) for split, rows in few.items()}
    return TaskStream(datasets.DatasetDict(few), num_tasks=1)
