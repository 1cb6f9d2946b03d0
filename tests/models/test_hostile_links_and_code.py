"""Names and links that lead out of a checkpoint, pickles, code, and base models that do not fit."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_images
from good_checkpoints import CONFIG, HUGE, INDEX, WEIGHTS, assert_refused, load, set_field, write_good
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from smope_hf import SMoPEForImageClassification
from smope_hf.sharing.checkpoint import STATE_FILE, STATISTICS_FILE, load_state, load_statistics
from smope_hf.sharing.statistics_file import ROUTING_FILE, load_routing
from smope_hf.storage.files import write_json


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_good(tmp_path_factory.mktemp("good"))


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


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
