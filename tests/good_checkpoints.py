"""Checkpoints that are whole, for tests that break them, and how a refusal is measured."""

import json
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from runs import save_backbone
from safetensors.torch import save_file

from smope_hf import SMoPEForImageClassification
from smope_hf.heads.alignment import ClassStatistics
from smope_hf.sharing.checkpoint import STATE_FILE, STATISTICS_FILE
from smope_hf.sharing.statistics_file import ROUTING_FILE
from smope_hf.storage.checksums import CHECKSUMS_FILE
from smope_hf.storage.files import write_json

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
REFUSALS = (ValueError, OSError, StrictDataclassError)
HUGE, DEEP = 10**18, 100_000
STATE = {
    "format_version": 1, "recipe": {"seed": 0}, "protocol_hash": "0f", "accuracy_matrix": [[0.5], [None, 1.0]],
    "test_counts": [5, 5], "seconds_by_task": [{"training": 1.5}, {}], "logged_steps": 7, "versions": {"torch": "2"},
    "eval_batch_size": 8,
}  # fmt: skip
ROUTING = {
    "format_version": 1, "num_experts": 6, "top_k": 2, "noise_epsilon": 0.4, "routing": "masked",
    "images_by_task": [4], "dead_share": 0.5, "frequently_used_share": 0,
    "layers": [{
        "layer": 0, "dead_experts": [[5]], "frequently_used_experts": [[]], "usage_share": [[0.5, 0.5, 0, 0, 0, 0]],
        "usage_share_by_task": [[[0.5, 0.5, 0, 0, 0, 0]]],
    }],
}  # fmt: skip


def write_good(root: Path) -> Path:
    """An adapter with its base, a standalone model, one in shards, and what lies beside the weights."""
    base = save_backbone(root / "base")
    torch.manual_seed(0)
    model = SMoPEForImageClassification.from_backbone(base, num_experts=6, top_k=2, prompt_layers=[0, 1])
    model.begin_task(["ant", "bee"])
    model.save_pretrained(root / "adapter")
    model.save_pretrained(root / "standalone", include_backbone=True)
    model.save_pretrained(root / "shards", include_backbone=True, max_shard_size="40KB")
    assert len(list((root / "shards").glob("model-*.safetensors"))) > 2
    features = torch.randn(9, 32)
    statistics = ClassStatistics(
        torch.randn(2, 32), torch.rand(2, 32), torch.tensor([4, 5]), (features.T @ features).contiguous()
    )
    usage = torch.ones(1, 2, 2, 6, dtype=torch.long)
    save_file({**statistics.to_tensors(), "usage_by_task": usage}, root / "adapter" / STATISTICS_FILE)
    write_json(root / "adapter" / STATE_FILE, STATE)
    write_json(root / "adapter" / ROUTING_FILE, ROUTING)
    for checksums in root.glob(f"*/{CHECKSUMS_FILE}"):  # who edits a file with intent edits its hash too
        checksums.unlink()
    return root


def listing(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def assert_refused(load, match: str, watched: Path):
    """Refused with this name in the message, within 2 s and 200 MB, and without writing anything."""
    before, start = listing(watched), time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(REFUSALS, match=f"(?s){match}") as caught:
        load()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert time.perf_counter() - start < 2
    assert grown * (1 if sys.platform == "darwin" else 1024) < 200e6
    assert len(str(caught.value)) < 4000
    assert listing(watched) == before


def load(folder: Path):
    return lambda: SMoPEForImageClassification.from_pretrained(folder)


def set_field(text: str, field: str, value: str) -> str:
    """The JSON text with one field, such as backbone_config.hidden_size, replaced by literal text."""
    content = json.loads(text)
    place, (*path, last) = content, field.split(".")
    for name in path:
        place = place[name]
    place[last] = "@@"
    return json.dumps(content).replace('"@@"', value)


NAN = float("nan")
