"""Checkpoints with broken or hostile content are refused at once, by name, and without running or writing anything."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_images
from good_checkpoints import (
    CONFIG,
    DEEP,
    HUGE,
    NAN,
    ROUTING,
    STATE,
    WEIGHTS,
    assert_refused,
    load,
    set_field,
    write_good,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTModel

from smope_hf import SMoPEConfig, SMoPEForImageClassification
from smope_hf.heads.alignment import StatisticsAccumulator
from smope_hf.models.backbones import weights_fingerprint
from smope_hf.sharing.checkpoint import STATE_FILE, STATISTICS_FILE, load_state, load_statistics
from smope_hf.sharing.statistics_file import ROUTING_FILE, load_routing

# ---------------------------------------------------------------------- good checkpoints


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_good(tmp_path_factory.mktemp("good"))


@pytest.fixture
def copy(good, tmp_path) -> Path:
    """A copy of the good checkpoints to break; the adapter's base stays where it is."""
    shutil.copytree(good, tmp_path / "copy")
    return tmp_path / "copy"


def load_everything(root: Path):
    load_state(root / "adapter")
    load_statistics(root / "adapter")
    load_routing(root / "adapter")
    return [SMoPEForImageClassification.from_pretrained(root / kind) for kind in ("adapter", "standalone", "shards")]


def test_good_checkpoints_load_equal(copy):
    adapter, standalone, shards = load_everything(copy)
    state = adapter.state_dict()
    for other in (standalone, shards):
        assert other.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
        with torch.no_grad():
            assert torch.equal(other(tiny_images(size=16)).logits, adapter(tiny_images(size=16)).logits)
    weights = load_file(copy / "adapter" / WEIGHTS)
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert load_state(copy / "adapter") == STATE and load_routing(copy / "adapter") == ROUTING
    statistics, usage = load_statistics(copy / "adapter")
    saved = load_file(copy / "adapter" / STATISTICS_FILE)
    assert all(torch.equal(saved[name], tensor) for name, tensor in statistics.to_tensors().items())
    assert len(usage) == 1 and torch.equal(usage[0], saved["usage_by_task"][0])


def test_fields_of_the_config_can_be_set_while_loading(copy):
    for kind in ("adapter", "standalone"):
        assert (
            SMoPEForImageClassification.from_pretrained(copy / kind, routing="unmasked").config.routing == "unmasked"
        )


def test_what_was_checked_does_not_change_with_the_file(copy):
    file = copy / "adapter" / WEIGHTS
    model = SMoPEForImageClassification.from_pretrained(copy / "adapter")
    expected = model.prefix_experts[1].values.detach().clone()
    with file.open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"\xff" * (file.stat().st_size - 1000))
    assert torch.equal(model.prefix_experts[1].values, expected)


def test_a_backbone_given_with_its_pooler_loads_again(copy):
    """SMoPE builds backbones without pooler, and a loaded model that was handed in may have one."""
    backbone = ViTModel.from_pretrained(copy / "base", add_pooling_layer=True)
    model = SMoPEForImageClassification.from_backbone(backbone, num_experts=6, top_k=2)
    model.begin_task(["ant"])
    ways = ((True, None), (False, backbone), (False, None), (False, copy / "base"))
    for number, (include, again) in enumerate(ways):
        folder = copy / f"pooler-{number}"
        model.save_pretrained(folder, include_backbone=include)
        loaded = SMoPEForImageClassification.from_pretrained(folder, backbone=again)
        with torch.no_grad():
            assert torch.equal(loaded(tiny_images()).logits, model.eval()(tiny_images()).logits)


def test_an_early_checkpoint_counted_the_pooler_too(copy):
    backbone = ViTModel.from_pretrained(copy / "base", add_pooling_layer=True)
    model = SMoPEForImageClassification.from_backbone(backbone, num_experts=6, top_k=2)
    model.config.base_model_fingerprint = weights_fingerprint(backbone, with_pooler=True)
    assert model.config.base_model_fingerprint != weights_fingerprint(backbone)
    model.begin_task(["ant"])
    model.save_pretrained(copy / "early")
    SMoPEForImageClassification.from_pretrained(copy / "early", backbone=backbone)
    with pytest.raises(ValueError, match="are not those that"):
        SMoPEForImageClassification.from_pretrained(copy / "early")


def test_statistics_of_one_image_per_class_load(copy):
    """Then the scatter is 0 but for rounding, on both sides."""
    tensors = load_file(copy / "adapter" / STATISTICS_FILE)
    accumulator = StatisticsAccumulator(2, 32)
    accumulator.update(50 + torch.randn(2, 32), torch.arange(2))
    tensors.update(accumulator.result().to_tensors())
    tensors["scatter"][0, 0] = -1e-6
    save_file(tensors, copy / "adapter" / STATISTICS_FILE)
    assert load_statistics(copy / "adapter")[0].count.tolist() == [1, 1]


# ---------------------------------------------------------------------- config.json


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


WRONG_FIELDS = [
    ("num_experts", str(10**9)), ("num_experts", str(HUGE)), ("num_experts", "9" * 5000), ("num_experts", "-1"),
    ("num_experts", "NaN"), ("num_experts", '"6"'), ("num_experts", "6.5"), ("num_experts", "null"),
    ("num_experts", "[6]"), ("num_experts", "true"), ("num_experts", "5"), ("top_k", str(HUGE)), ("top_k", "0"),
    ("top_k", "NaN"), ("top_k", "{}"), ("noise_epsilon", "NaN"), ("noise_epsilon", "Infinity"),
    ("noise_epsilon", "1e999"), ("noise_epsilon", "-1"), ("noise_epsilon", '"a"'), ("router_loss_coef", "-Infinity"),
    ("router_loss_coef", "[]"), ("prototype_loss_coef", "-1"), ("prototype_loss_coef", "NaN"), ("routing", '"soft"'),
    ("routing", "3"), ("pooling", '"max"'), ("pooling", "{}"), ("prompt_layers", "[0, 99]"), ("prompt_layers", "[0]"),
    ("prompt_layers", "[0, 1, 2]"), ("prompt_layers", "[-1]"), ("prompt_layers", "[0, 0]"), ("prompt_layers", "{}"),
    ("prompt_layers", '["a"]'), ("prompt_layers", "[NaN]"), ("tasks", "[[0], [0]]"), ("tasks", '"abc"'),
    ("tasks", "[[1e3]]"), ("tasks", "[0, 1]"), ("tasks", f"[[0, {HUGE}]]"), ("id2label", "[]"),
    ("id2label", '{"x": "ant"}'), ("id2label", '{"0": 5}'), ("id2label", '{"0": "\\ud800"}'),
    ("id2label", '{"0": "a", "1": "a"}'), ("id2label", "7"), ("label2id", '{"ant": "0"}'), ("label2id", "[1]"),
    ("label2id", '{"ant": 5, "bee": 0}'), ("num_labels", str(HUGE)), ("num_labels", '"many"'), ("num_labels", "-1"),
    ("base_model_name_or_path", "5"), ("base_model_revision", "[]"), ("base_model_fingerprint", "7"),
    ("output_router_scores", '"yes"'), ("transformers_weights", '"../other.safetensors"'),
    ("quantization_config", '{"quant_method": "bitsandbytes"}'), ("dtype", '"load"'), ("dtype", "5"),
    ("backbone_config", "5"), ("backbone_config", "[]"), ("backbone_config.model_type", '"bert"'),
    ("backbone_config.model_type", "{}"), ("backbone_config.hidden_size", str(HUGE)),
    ("backbone_config.hidden_size", "64"), ("backbone_config.hidden_size", "0"),
    ("backbone_config.hidden_size", '"32"'), ("backbone_config.hidden_size", "NaN"),
    ("backbone_config.num_hidden_layers", str(10**9)), ("backbone_config.num_hidden_layers", "1000"),
    ("backbone_config.num_hidden_layers", "-4"), ("backbone_config.num_hidden_layers", "5"),
    ("backbone_config.num_attention_heads", "0"), ("backbone_config.num_attention_heads", "4"),
    ("backbone_config.num_attention_heads", str(10**9)), ("backbone_config.intermediate_size", "260000"),
    ("backbone_config.intermediate_size", str(10**12)), ("backbone_config.image_size", "200000"),
    ("backbone_config.image_size", "[]"), ("backbone_config.patch_size", "0"), ("backbone_config.patch_size", "4"),
    ("backbone_config.num_labels", str(HUGE)),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["adapter", "standalone"])
@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS, ids=lambda text: text[:30])
def test_wrong_fields_of_the_config_are_refused_by_name(copy, kind, field, value):
    if kind == "standalone" and field.startswith("base_model"):
        kind = "adapter"
    file = copy / kind / CONFIG
    file.write_text(set_field(file.read_text(), field, value))
    names = {"num_attention_heads": "num_attention_heads|hidden_size", "label2id": "label2id|id2label"}
    last = field.split(".")[-1]
    assert_refused(load(copy / kind), names.get(last, last), copy)


@pytest.mark.parametrize("field", ["num_experts", "prompt_layers", "tasks", "id2label", "backbone_config", "unknown"])
@pytest.mark.parametrize("depth", [70, DEEP])
def test_deep_nesting_is_refused_by_the_name_of_the_field(copy, field, depth):
    file = copy / "adapter" / CONFIG
    file.write_text(set_field(file.read_text(), field, nested(depth)))
    assert_refused(load(copy / "adapter"), f"{field}.*deeper than 64", copy)


BROKEN_TEXTS = {
    "empty": (b"", "no JSON"),
    "truncated": (b'{"model_type": "smo', "no JSON"),
    "binary": (os.urandom(64) + b"\xff\xfe", "no UTF-8"),
    "a list": (b"[1, 2]", "top level"),
    "a number": (b"1", "top level"),
    "a key twice": (b'{"model_type": "smope", "top_k": 1, "top_k": 2}', "top_k is given twice"),
    "an inner key twice": (b'{"a": [{"b": 1, "b": 1}]}', r"a\[0\].b is given twice"),
    "an open list": (b"[" * DEEP, "deeper than 64|no JSON"),
    "open objects": (b'{"a":' * DEEP, "a nests deeper|no JSON"),
    "beyond every limit": (b" " * (65 * 2**20), "larger than"),
    "a long number": (b'{"layers": [1, ' + b"7" * 10**6 + b"]}", r"layers\[1\].*1000000 digits"),
}


@pytest.mark.parametrize("file", [CONFIG, STATE_FILE, ROUTING_FILE])
@pytest.mark.parametrize("case", BROKEN_TEXTS)
def test_broken_json_is_refused_by_the_name_of_the_file(copy, file, case):
    content, match = BROKEN_TEXTS[case]
    (copy / "adapter" / file).write_bytes(content)
    readers = {CONFIG: load(copy / "adapter"), STATE_FILE: lambda: load_state(copy / "adapter")}
    reader = readers.get(file, lambda: load_routing(copy / "adapter"))
    assert_refused(reader, f"{file}.*({match})", copy)


def test_the_auto_class_checks_the_config_too(copy):
    file = copy / "standalone" / CONFIG
    file.write_text(set_field(file.read_text(), "num_labels", str(HUGE)))
    for auto in (AutoModelForImageClassification, SMoPEConfig):
        assert_refused(lambda auto=auto: auto.from_pretrained(copy / "standalone"), "num_labels", copy)


# ---------------------------------------------------------------------- beside the weights


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipe", "[]"), ("protocol_hash", "5"), ("accuracy_matrix", "[[1.5]]"), ("accuracy_matrix", "[0.5]"),
        ("accuracy_matrix", "[[NaN]]"), ("accuracy_matrix", '[["1"]]'), ("test_counts", "[-1]"),
        ("test_counts", f"[{10**30}]"), ("seconds_by_task", "{}"), ("seconds_by_task", '[{"a": "b"}]'),
        ("seconds_by_task", '[{"a": 1e300}]'), ("logged_steps", "-1"), ("logged_steps", "1.5"),
        ("logged_steps", "true"), ("eval_batch_size", "0"),
        ("continued_from", "5"), ("versions", '{"torch": 2}'), ("format_version", "9"), ("recipe", nested(DEEP)),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_wrong_fields_of_the_state_are_refused_by_name(copy, field, value):
    file = copy / "adapter" / STATE_FILE
    file.write_text(set_field(file.read_text(), field, value))
    assert_refused(lambda: load_state(copy / "adapter"), f"{STATE_FILE}.*{field}", copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", "5"), ("layers", "[5]"), ("layers", "[{}]"), ("num_experts", '"6"'), ("num_experts", str(10**40)),
        ("top_k", "-1"), ("routing", "[]"), ("dead_share", "7"), ("dead_share", "NaN"), ("images_by_task", "[1.5]"),
        ("noise_epsilon", "null"), ("frequently_used_share", nested(DEEP)),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_wrong_fields_of_the_routing_report_are_refused_by_name(copy, field, value):
    file = copy / "adapter" / ROUTING_FILE
    file.write_text(set_field(file.read_text(), field, value))
    assert_refused(lambda: load_routing(copy / "adapter"), f"{ROUTING_FILE}.*{field}", copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("usage_share", [[0.5, NAN]]), ("usage_share", [[2]]), ("usage_share", "x"), ("usage_share_by_task", [[[-1]]]),
        ("dead_experts", [[6]]), ("dead_experts", [["0"]]), ("frequently_used_experts", [[10**9]]), ("layer", -1),
    ],
)  # fmt: skip
def test_wrong_fields_of_a_layer_are_refused_with_their_place(copy, field, value):
    content = {**ROUTING, "layers": [ROUTING["layers"][0], {**ROUTING["layers"][0], field: value}]}
    (copy / "adapter" / ROUTING_FILE).write_text(json.dumps(content))
    assert_refused(lambda: load_routing(copy / "adapter"), rf"layers\[1\].{field}", copy)
