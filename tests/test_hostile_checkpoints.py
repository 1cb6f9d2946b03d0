"""Checkpoints with broken or hostile content are refused at once, by name, and without running or writing anything."""

import json
import os
import resource
import shutil
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny_images
from huggingface_hub.errors import StrictDataclassError
from runs import save_backbone
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTModel

from smope_hf import SMoPEConfig, SMoPEForImageClassification
from smope_hf.alignment import ClassStatistics, StatisticsAccumulator
from smope_hf.backbones import weights_fingerprint
from smope_hf.checkpoint import STATE_FILE, STATISTICS_FILE, load_state, load_statistics
from smope_hf.checksums import CHECKSUMS_FILE
from smope_hf.files import write_json
from smope_hf.state_guard import ROUTING_FILE, load_routing

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


# ---------------------------------------------------------------------- good checkpoints


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


# ---------------------------------------------------------------------- how a refusal is measured


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


# ---------------------------------------------------------------------- config.json


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def set_field(text: str, field: str, value: str) -> str:
    """The JSON text with one field, such as backbone_config.hidden_size, replaced by literal text."""
    content = json.loads(text)
    place, (*path, last) = content, field.split(".")
    for name in path:
        place = place[name]
    place[last] = "@@"
    return json.dumps(content).replace('"@@"', value)


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


# ---------------------------------------------------------------------- model.safetensors


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


NAN = float("nan")
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


# ---------------------------------------------------------------------- beside the weights

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


# ---------------------------------------------------------------------- file names and links


@pytest.mark.parametrize(
    "name",
    ["../base/model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\a.safetensors", "pytorch_model.bin",
     "..safetensors", ".hidden.safetensors", "a..safetensors", "a\x00.safetensors", "C:a.safetensors", "", 5, None,
     ["model.safetensors"]],
)  # fmt: skip
def test_names_in_the_index_cannot_leave_the_folder(copy, name):
    index = json.loads((copy / "shards" / INDEX).read_text())
    index["weight_map"]["classifier.bias"] = name
    (copy / "shards" / INDEX).write_text(json.dumps(index))
    assert_refused(load(copy / "shards"), r"weight_map\['classifier.bias'\]", copy)


@pytest.mark.parametrize("weight_map", [{}, [], 5, None])
def test_an_index_without_names_is_refused(copy, weight_map):
    (copy / "shards" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_refused(load(copy / "shards"), "weight_map", copy)


def test_a_shard_that_is_missing_is_named(copy):
    next((copy / "shards").glob("model-00002-*")).unlink()
    assert_refused(load(copy / "shards"), "model-00002", copy)


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG, STATISTICS_FILE, STATE_FILE, ROUTING_FILE])
def test_links_out_of_the_folder_are_refused(copy, file):
    (copy / "adapter" / file).rename(copy / "elsewhere")
    (copy / "adapter" / file).symlink_to(copy / "elsewhere")
    readers = {
        STATISTICS_FILE: lambda: load_statistics(copy / "adapter"),
        STATE_FILE: lambda: load_state(copy / "adapter"),
        ROUTING_FILE: lambda: load_routing(copy / "adapter"),
    }
    assert_refused(readers.get(file, load(copy / "adapter")), f"{file} leads out of its folder", copy)


def test_links_within_the_hubs_cache_are_followed(copy):
    """A snapshot's files are links to the blobs beside it, and people pass the snapshot's folder by its path."""
    snapshot = copy / "models--owner--name" / "snapshots" / "0123"
    blobs = copy / "models--owner--name" / "blobs"
    snapshot.parent.mkdir(parents=True)
    shutil.move(copy / "adapter", snapshot)
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    SMoPEForImageClassification.from_pretrained(snapshot)
    load_statistics(snapshot)
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(copy / "standalone" / WEIGHTS)
    assert_refused(load(snapshot), "leads out of its folder", copy)


# ---------------------------------------------------------------------- pickles and code


class Evil:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pkl", "adapter_model.bin"])
def test_pickles_are_never_read(copy, file):
    for kind in ("adapter", "standalone"):
        (copy / kind / WEIGHTS).unlink()
        torch.save({"classifier.weight": Evil(copy / "mark")}, copy / kind / file)
        for options in ({}, {"use_safetensors": False}):
            reader = SMoPEForImageClassification.from_pretrained
            assert_refused(
                lambda kind=kind, options=options: reader(copy / kind, **options), f"{file}.*[Pp]ickle", copy
            )


def test_a_base_in_a_pickle_is_read_only_when_asked_for(copy):
    weights = load_file(copy / "base" / WEIGHTS)
    (copy / "base" / WEIGHTS).unlink()
    torch.save(weights, copy / "base" / "pytorch_model.bin")
    reader, base = SMoPEForImageClassification.from_pretrained, str(copy / "base")
    assert_refused(lambda: reader(copy / "adapter", backbone=base), "pytorch_model.bin.*use_safetensors=False", copy)
    reader(copy / "adapter", backbone=base, use_safetensors=False)
    torch.save({"cls_token": Evil(copy / "mark")}, copy / "base" / "pytorch_model.bin")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        reader(copy / "adapter", backbone=base, use_safetensors=False)
    assert not (copy / "mark").exists()


@pytest.mark.parametrize("kind", ["adapter", "standalone"])
def test_code_in_a_checkpoint_never_runs(copy, kind):
    folder = copy / kind
    code = f"import os\nos.mkdir({str(copy / 'mark')!r})\nclass C: pass\n"
    names = {"AutoConfig": "evil.C", "AutoModel": "evil.C", "AutoModelForImageClassification": "evil.C"}
    for place in (folder, copy / "base"):
        (place / "evil.py").write_text(code)
        content = json.loads((place / CONFIG).read_text())
        content["auto_map"] = names
        if "backbone_config" in content:
            content["backbone_config"]["auto_map"] = names
        (place / CONFIG).write_text(json.dumps(content))
    with torch.no_grad():
        SMoPEForImageClassification.from_pretrained(folder)(tiny_images())
        loaded = AutoModelForImageClassification.from_pretrained(folder)
        if kind == "adapter":
            SMoPEForImageClassification.from_pretrained(folder, backbone=str(copy / "base"))
    assert type(loaded) is SMoPEForImageClassification and not (copy / "mark").exists()


def test_a_base_of_a_class_of_its_own_is_refused(copy):
    write_json(copy / "base" / CONFIG, {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}})
    (copy / "base" / "evil.py").write_text(f"import os\nos.mkdir({str(copy / 'mark')!r})\n")
    reader = SMoPEForImageClassification.from_pretrained
    assert_refused(lambda: reader(copy / "adapter", backbone=str(copy / "base")), "trust_remote_code", copy)


def test_a_peft_config_in_the_folder_changes_nothing(copy):
    write_json(copy / "standalone" / "adapter_config.json", {"base_model_name_or_path": "/etc"})
    SMoPEForImageClassification.from_pretrained(copy / "standalone")


# ---------------------------------------------------------------------- the base model


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 1000), ("num_hidden_layers", HUGE), ("hidden_size", 64), ("num_attention_heads", 4),
     ("intermediate_size", 250_000), ("image_size", 4096), ("patch_size", 4), ("num_labels", HUGE),
     ("num_channels", 1000), ("transformers_weights", "../a.safetensors"), ("model_type", "deit")],
)  # fmt: skip
def test_a_base_with_another_config_is_refused_by_the_name_of_the_field(copy, field, value):
    content = {**json.loads((copy / "base" / CONFIG).read_text()), field: value}
    (copy / "base" / CONFIG).write_text(json.dumps(content))
    reader, base = SMoPEForImageClassification.from_pretrained, str(copy / "base")
    assert_refused(lambda: reader(copy / "adapter", backbone=base), field, copy)


@pytest.mark.parametrize(
    ("field", "value"), [("num_hidden_layers", 1000), ("intermediate_size", 250_000), ("image_size", 100_000)]
)
def test_sizes_that_the_bases_own_weights_lack_are_refused(copy, field, value):
    content = {**json.loads((copy / "base" / CONFIG).read_text()), field: value}
    (copy / "base" / CONFIG).write_text(json.dumps(content))
    assert_refused(lambda: SMoPEForImageClassification.from_backbone(str(copy / "base")), field, copy)


def test_a_base_whose_weights_have_another_shape_is_refused(copy):
    weights = load_file(copy / "base" / WEIGHTS)
    weights["layernorm.weight"] = torch.zeros(7)
    save_file(weights, copy / "base" / WEIGHTS, {"format": "pt"})
    base = str(copy / "base")
    assert_refused(lambda: SMoPEForImageClassification.from_backbone(base), "base' do not fit its config.json", copy)


@pytest.mark.parametrize("base", ["/etc", "./base", "../base", "~/base", "a/../b", "a/b/c", "C:\\base", "a/b\n", ""])
def test_a_checkpoint_from_the_hub_reads_no_local_base(copy, base):
    """A repository's name goes through the Hub's cache; here the cache holds it, so nothing is fetched."""
    repository = copy / "cache" / "models--owner--name"
    commit = "0123456789012345678901234567890123456789"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    file = copy / "adapter" / CONFIG
    file.write_text(set_field(file.read_text(), "base_model_name_or_path", json.dumps(base)))
    shutil.copytree(copy / "adapter", repository / "snapshots" / commit)
    where = {"cache_dir": copy / "cache", "local_files_only": True}
    reader = SMoPEForImageClassification.from_pretrained
    assert_refused(lambda: reader("owner/name", **where), "base_model_name_or_path.*backbone=", copy)
    reader("owner/name", backbone=str(copy / "base"), **where)
