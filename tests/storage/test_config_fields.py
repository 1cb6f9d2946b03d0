"""What a config.json may choose: what the model is, and not how, where or by whose code it runs."""

import json
import shutil

import pytest
import torch
from conftest import tiny_images
from PIL import Image
from runs import save_backbone
from transformers import AutoConfig, AutoModelForImageClassification, ViTModel, pipeline
from typer.testing import CliRunner

from smope_hf import SMoPEConfig, SMoPEForImageClassification
from smope_hf.cli.program import app
from smope_hf.models.backbones import load_backbone
from smope_hf.storage import config_fields as listed
from smope_hf.storage.config_guard import PRECISIONS, read_config
from smope_hf.storage.files import write_json

CONFIG = "config.json"
KERNEL = "org/kernel"  # what transformers takes for the repository of an attention kernel: it would be fetched and run


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An adapter, a standalone model, and their base."""
    root = tmp_path_factory.mktemp("fields")
    base = save_backbone(root / "base")
    torch.manual_seed(0)
    model = SMoPEForImageClassification.from_backbone(base, num_experts=6, top_k=2)
    model.begin_task(["ant", "bee"])
    for name in ("adapter", "standalone"):
        model.save_pretrained(root / name, include_backbone=name == "standalone")
        (root / name / "checksums.json").unlink()  # who edits a file with intent edits its hash too
    shutil.copy(root / "base" / "preprocessor_config.json", root / "standalone")
    return root


@pytest.fixture
def edited(good, tmp_path):
    """A function that copies a folder with fields set in its config.json, or in an object of it."""

    def edit(name, inside=None, **extra):
        folder = shutil.copytree(good / name, tmp_path / name)
        content = json.loads((folder / CONFIG).read_text())
        (content if inside is None else content[inside]).update(extra)
        write_json(folder / CONFIG, content)
        return folder

    return edit


@pytest.fixture
def fetched(monkeypatch):
    """Names of the kernels that transformers set out to fetch."""
    names = []
    monkeypatch.setattr(
        "transformers.modeling_utils.lazy_import_flash_attention", lambda name, **_: names.append(name)
    )
    return names


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr("smope_hf.storage.config_fields.logger.warning", lines.append)
    type(listed.logger).warning_once.cache_clear()
    return lines


WAYS_TO_A_KERNEL = {
    "public": {"attn_implementation": KERNEL},
    "private": {"_attn_implementation": KERNEL},
    "internal": {"_attn_implementation_internal": KERNEL},
    "by another name": {"attribute_map": {"seed_of_it": "_attn_implementation_internal"}, "seed_of_it": KERNEL},
    "of the parts": {"attn_implementation": {"": KERNEL, "backbone_config": KERNEL}},
    "experts": {"experts_implementation": KERNEL, "_experts_implementation": KERNEL},
}


@pytest.mark.parametrize("way", WAYS_TO_A_KERNEL)
@pytest.mark.parametrize("inside", [None, "backbone_config"])
def test_no_config_names_the_attention(edited, fetched, told, way, inside):
    folder = edited("standalone", inside, **WAYS_TO_A_KERNEL[way])
    config = AutoConfig.from_pretrained(folder)
    assert KERNEL not in json.dumps(config.to_dict()) and config.backbone_config._attn_implementation is None
    assert SMoPEConfig.from_json_file(str(folder / CONFIG))._attn_implementation is None
    model = AutoModelForImageClassification.from_pretrained(folder)  # which calls SMoPE's own from_pretrained
    assert model.config._attn_implementation == "sdpa" and model.config._experts_implementation != KERNEL
    assert model.backbone.config._attn_implementation == SMoPEForImageClassification.ATTENTION["sdpa"] and not fetched
    with torch.no_grad():
        assert model(tiny_images()).logits.isfinite().all()
    assert told and KERNEL in told[0] and CONFIG in told[0] and "not taken from a file" in told[0]


@pytest.mark.parametrize("way", WAYS_TO_A_KERNEL)
def test_no_config_of_a_base_model_names_it_either(edited, good, fetched, told, way):
    base = edited("base", **WAYS_TO_A_KERNEL[way])
    backbone, _ = load_backbone(str(base))
    assert backbone.config._attn_implementation == "sdpa" and not fetched
    assert KERNEL not in json.dumps(backbone.config.to_dict())
    model = SMoPEForImageClassification.from_pretrained(good / "adapter", backbone=str(base))
    assert model.backbone.config._attn_implementation == SMoPEForImageClassification.ATTENTION["sdpa"] and not fetched
    assert told and KERNEL in told[0]


def test_who_loads_a_model_still_chooses_the_attention(edited):
    folder = edited("standalone", attn_implementation=KERNEL)
    for model_class in (SMoPEForImageClassification, AutoModelForImageClassification):
        model = model_class.from_pretrained(folder, attn_implementation="eager")
        assert model.config._attn_implementation == "eager"
        assert model.backbone.config._attn_implementation == SMoPEForImageClassification.ATTENTION["eager"]


def test_no_command_and_no_pipeline_reaches_a_kernel(edited, fetched, tmp_path):
    folder = edited("standalone", "backbone_config", _attn_implementation=KERNEL, attn_implementation=KERNEL)
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    classify = pipeline("image-classification", model=str(folder))
    assert {entry["label"] for entry in classify(str(tmp_path / "image.png"))} == {"ant", "bee"}
    for command in (["info", folder], ["predict", folder, tmp_path / "image.png"]):
        done = CliRunner().invoke(app, list(map(str, command)))
        assert done.exit_code == 0, done.output + repr(done.exception)
    assert not fetched


CHOICES = {  # what else a config.json might set, and what is there instead
    "gradient_checkpointing": (True, None), "distributed_config": ({"tp_size": 2}, None),
    "fusion_config": (True, None),
    "configuration_files": (["other.json"], None), "per_layer_config": ({"0": {"hidden_size": 8}}, "kept"),
    "custom_pipelines": ({"image-classification": {"impl": "evil.C"}}, None), "return_dict": (False, True),
    "output_attentions": (True, False), "output_hidden_states": (True, False), "to_dict": (5, "kept"),
    "_name_or_path": ("evil/model", "kept"), "forward": ("x", "kept"), "use_backbone": (True, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("inside", [None, "backbone_config"])
def test_nothing_else_is_set_by_a_config(edited, told, name, inside):
    value, instead = CHOICES[name]
    folder = edited("standalone", inside, **{name: value})
    config = read_config(SMoPEConfig, folder / CONFIG)
    found = getattr(config if inside is None else config.backbone_config, name, None)
    assert found == instead if instead != "kept" else found != value
    assert (name == "_name_or_path") != any(name in line for line in told)


def test_what_older_files_of_transformers_say_is_left_out_without_a_word(edited, told):
    words = {"_name_or_path": "x", "torchscript": False, "pruned_heads": {}, "max_length": 20, "problem_type": None}
    base = edited("base", **words, vocab_size_of_text=None, out_indices=[1], return_dict=True)
    load_backbone(str(base))
    assert told == []


def test_code_of_others_is_not_passed_on(edited, told):
    evil = {"AutoConfig": "evil/repository--evil.C", "AutoModelForImageClassification": "evil.C"}
    folder = edited("standalone", auto_map=evil)
    model = SMoPEForImageClassification.from_pretrained(folder)
    model.save_pretrained(folder.parent / "again")
    for place in (folder, folder.parent / "again"):
        shared = listed.shareable(json.loads((place / CONFIG).read_text()), "smope")
        assert "evil" not in json.dumps(shared)
    assert "auto_map" not in json.loads((folder.parent / "again" / CONFIG).read_text())
    assert any("evil/repository" in line for line in told)


def test_our_own_code_is(edited, told):
    folder = edited("standalone", auto_map=listed.CODE["smope"])
    assert SMoPEForImageClassification.from_pretrained(folder).config.auto_map == listed.CODE["smope"] and not told


@pytest.mark.parametrize("name", ["int8", "bool", "complex64", "float8_e4m3fn", "quint8", "load", "__dict__"])
@pytest.mark.parametrize("inside", [None, "backbone_config"])
def test_a_config_chooses_a_precision_that_models_run_in(edited, name, inside):
    folder = edited("standalone", inside, dtype=name)
    with pytest.raises(ValueError, match=rf"dtype = '{name}' is not allowed. Allowed: one of {', '.join(PRECISIONS)}"):
        SMoPEForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("name", ["../../x", "refs/../../x", "/etc", "a\nb", "", "-x", "a" * 300])
def test_the_revision_of_the_base_is_one(edited, name):
    with pytest.raises(ValueError, match="base_model_revision = .* is not allowed"):
        read_config(SMoPEConfig, edited("adapter", base_model_revision=name) / CONFIG)


@pytest.mark.parametrize("kind", ["list", "text model", "huge text model"])
def test_a_base_of_another_kind_is_refused_before_its_config_is_built(edited, kind):
    extra = {
        "list": {"model_type": ["vit"]},
        "text model": {"model_type": "llama"},
        "huge text model": {"model_type": "llama", "num_hidden_layers": 10**9},
    }[kind]
    with pytest.raises(ValueError, match="model_type = .* is not"):
        load_backbone(str(edited("base", **extra)))


def test_the_image_half_of_a_model_of_two_is_taken_from_any_of_its_forms(good):
    half = {"hidden_size": 32, "attn_implementation": KERNEL}
    assert listed.image_half({"model_type": "clip", "vision_config": half}) == {
        **half,
        "model_type": "clip_vision_model",
    }
    both = {"model_type": "clip", "vision_config": half, "vision_config_dict": {"hidden_size": 64}}
    assert listed.image_half(both)["hidden_size"] == 64
    assert listed.image_half({"model_type": "siglip"}) == {"model_type": "siglip_vision_model"}
    inner = {"model_type": "siglip_vision_model", "hidden_size": 32}
    assert listed.image_half({"model_type": "other", "vision_config": inner}) == inner
    assert listed.image_half({"model_type": "vit", "vision_config": inner})["model_type"] == "vit"


def test_a_peft_adapter_in_a_base_model_is_refused_where_peft_would_load_it(edited, monkeypatch):
    base = edited("base")
    write_json(base / "adapter_config.json", {"base_model_name_or_path": "evil/model"})
    load_backbone(str(base))  # without PEFT nobody reads it
    monkeypatch.setattr("smope_hf.models.base_guard.is_peft_available", lambda: True)
    with pytest.raises(ValueError, match="adapter_config.json, and PEFT adapters are never read"):
        load_backbone(str(base))


def test_a_loaded_model_names_its_base_as_before(good):
    """What the user hands in was never read from a file by us."""
    backbone = ViTModel.from_pretrained(good / "base", add_pooling_layer=False, attn_implementation="eager")
    model = SMoPEForImageClassification.from_backbone(backbone, num_experts=6, top_k=2)
    assert model.config.base_model_name_or_path == str(good / "base")
