"""Weights and statistics that are broken or do not fit are refused by name, before any work."""

import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from good_checkpoints import NAN, WEIGHTS, assert_refused, load, write_good
from safetensors.torch import load_file, save_file

from smope_hf.sharing.checkpoint import STATISTICS_FILE, load_statistics


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_good(tmp_path_factory.mktemp("good"))


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def change(name: str, edit):
    """An edit of one tensor."""
    return lambda tensors: {**tensors, name: edit(tensors[name]).contiguous()}


def without(name: str):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_tensor(name: str):
    return lambda tensors: {**tensors, name: torch.zeros(2)}


def filled(index, value):
    def edit(tensor):
        tensor[index] = value
        return tensor

    return edit


KEYS, COUNTS, MARKS = (f"prefix_experts.1.{name}" for name in ("keys", "usage_counts", "frequently_used"))
WRONG_WEIGHTS = {
    "keys swapped": (change(KEYS, lambda t: t.transpose(1, 2)), "num_experts = 6.*prefix_experts.1.keys"),
    "one expert less": (change(KEYS, lambda t: t[:, :5]), "num_experts = 6.*prefix_experts.1.keys"),
    "one head less": (change(KEYS, lambda t: t[:1]), "num_attention_heads = 2.*prefix_experts.1.keys"),
    "smaller heads": (change(KEYS, lambda t: t[..., :8]), "hidden_size.*prefix_experts.1.keys"),
    "flat": (change(KEYS, lambda t: t.flatten()), "prefix_experts.1.keys"),
    "one axis more": (change(KEYS, lambda t: t[None]), "prefix_experts.1.keys"),
    "scalar": (change(KEYS, lambda t: t.sum()), "prefix_experts.1.keys"),
    "another class": (change("classifier.bias", lambda t: torch.zeros(3)), "number of classes = 2.*classifier.bias"),
    "another width": (change("classifier.weight", lambda t: t[:, :31]), "hidden_size = 32.*classifier.weight"),
    "integer keys": (change(KEYS, lambda t: t.long()), "prefix_experts.1.keys has type I64"),
    "floating counts": (change(COUNTS, lambda t: t.float()), "usage_counts has type F32"),
    "integer marks": (change(MARKS, lambda t: t.long()), "frequently_used has type I64"),
    "eight-bit head": (change("classifier.weight", lambda t: t.to(torch.float8_e4m3fn)), "classifier.weight has type"),
    "NaN in keys": (change(KEYS, filled((0, 0, 0), NAN)), "prefix_experts.1.keys holds NaN"),
    "NaN in previous keys": (change("prefix_experts.0.previous_keys", filled((0, 0, 0), NAN)), "previous_keys.*NaN"),
    "infinity in values": (change("prefix_experts.0.values", filled((0, 0, 0), -torch.inf)), "values.*infinity"),
    "NaN in the head": (change("classifier.bias", filled(0, NAN)), "classifier.bias holds NaN"),
    "negative counts": (change(COUNTS, filled((0, 0), -5)), "usage_counts holds -5"),
    "no keys": (without(KEYS), "lacks 'prefix_experts.1.keys'.*prompt_layers"),
    "no head": (without("classifier.weight"), "lacks 'classifier.weight'"),
    "no marks": (without(MARKS), "frequently_used"),
    "a further layer": (with_tensor("prefix_experts.2.keys"), "prefix_experts.2.keys"),
    "a stranger": (with_tensor("../../evil"), "evil"),
    "one backbone tensor": (with_tensor("backbone.evil"), "num_hidden_layers"),
    "nothing": (lambda tensors: {}, "model.safetensors"),
}


@pytest.mark.parametrize("kind", ["adapter", "standalone"])
@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_by_name(copy, kind, case):
    if case in ("one backbone tensor", "nothing"):
        kind = "adapter"
    edit, match = WRONG_WEIGHTS[case]
    file = copy / kind / WEIGHTS
    save_file(edit(load_file(file)), file)
    assert_refused(load(copy / kind), match, copy)


EMBEDDINGS = "backbone.embeddings.cls_token"
WRONG_BACKBONES = {
    "one tensor less": (without(EMBEDDINGS), "embeddings.cls_token"),
    "one more": (with_tensor("backbone.evil"), "backbone.evil"),
    "another shape": (change(EMBEDDINGS, lambda t: t[..., :16]), "cls_token"),
    "integers": (change(EMBEDDINGS, lambda t: t.long()), "cls_token has type I64"),
}


@pytest.mark.parametrize("case", WRONG_BACKBONES)
def test_a_standalone_backbone_that_does_not_fit_is_refused_by_name(copy, case):
    edit, match = WRONG_BACKBONES[case]
    save_file(edit(load_file(copy / "standalone" / WEIGHTS)), copy / "standalone" / WEIGHTS)
    assert_refused(load(copy / "standalone"), match, copy)


def header_says(length: int):
    return lambda raw: struct.pack("<Q", length) + raw[8:]


def padded_header(raw: bytes) -> bytes:
    """A valid file whose header is longer than any model needs; parsing it would take a multiple of its size."""
    end = 8 + int.from_bytes(raw[:8], "little")
    spaces = b" " * (17 * 2**20)
    return struct.pack("<Q", end - 8 + len(spaces)) + raw[8:end] + spaces + raw[end:]


BROKEN_FILES = {
    "empty": lambda raw: b"",
    "four bytes": lambda raw: raw[:4],
    "half": lambda raw: raw[: len(raw) // 2],
    "one byte short": lambda raw: raw[:-1],
    "one byte more": lambda raw: raw + b"0",
    "a huge header": header_says(2**63),
    "a header of 90 MB": header_says(90 * 10**6),
    "a short header": header_says(10),
    "a padded header": padded_header,
    "noise": lambda raw: os.urandom(len(raw)),
    "a pickle": lambda raw: b"PK\x03\x04" + raw,
    "a larger shape": lambda raw: raw.replace(b"[2,6,16]", b"[9,9,99]", 1).replace(b"[2,32]", b"[9,99]", 1),
    "offsets turned": lambda raw: raw.replace(b'data_offsets":[0,', b'data_offsets":[9,', 1),
}


@pytest.mark.parametrize("file", [WEIGHTS, STATISTICS_FILE])
@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_safetensors_are_refused_by_the_name_of_the_file(copy, file, case):
    path = copy / "adapter" / file
    broken = BROKEN_FILES[case](path.read_bytes())
    assert broken != path.read_bytes(), "the case breaks nothing in this file"
    path.write_bytes(broken)
    reader = load(copy / "adapter") if file == WEIGHTS else lambda: load_statistics(copy / "adapter")
    assert_refused(reader, f"{file}.*Copy it again.*or, of a run, take the folder of another task", copy)


WRONG_STATISTICS = {
    "a class more": (change("mean", lambda t: torch.zeros(3, 32)), "number of classes = 2.*mean"),
    "narrow": (change("mean", lambda t: t[:, :5]), "hidden_size = 32.*mean"),
    "variance swapped": (change("variance", lambda t: t.T), "number of classes = 2.*variance"),
    "scatter cut": (change("scatter", lambda t: t[:, :5]), "hidden_size = 32.*scatter"),
    "no scatter": (without("scatter"), "lacks 'scatter'"),
    "a stranger": (with_tensor("evil"), "evil"),
    "floating counts": (change("count", lambda t: t.float()), "count has type F32"),
    "integer means": (change("mean", lambda t: t.long()), "mean has type I64"),
    "NaN means": (change("mean", filled((0, 0), NAN)), "mean is.*NaN"),
    "infinite scatter": (change("scatter", filled((0, 0), torch.inf)), "scatter is.*infinity"),
    "negative variance": (change("variance", filled((0, 0), -1.0)), "variance is -1.0"),
    "negative scatter": (change("scatter", filled((3, 3), -1e4)), "scatter's diagonal is -10000"),
    "no image": (change("count", filled(0, 0)), "count is 0"),
    "another task": (change("usage_by_task", lambda t: t.repeat(2, 1, 1, 1)), "number of tasks = 1.*usage_by_task"),
    "another layer": (change("usage_by_task", lambda t: t[:, :1]), "prompt_layers = 2.*usage_by_task"),
    "another head": (change("usage_by_task", lambda t: t[:, :, :1]), "num_attention_heads = 2.*usage_by_task"),
    "another expert": (change("usage_by_task", lambda t: t[..., :1]), "num_experts = 6.*usage_by_task"),
    "negative usage": (change("usage_by_task", filled((0, 0, 0, 0), -1)), "usage_by_task is -1"),
}


@pytest.mark.parametrize("case", WRONG_STATISTICS)
def test_statistics_that_do_not_fit_are_refused_by_name(copy, case):
    edit, match = WRONG_STATISTICS[case]
    file = copy / "adapter" / STATISTICS_FILE
    save_file(edit(load_file(file)), file)
    assert_refused(lambda: load_statistics(copy / "adapter"), match, copy)
