"""A model is saved and loaded bit for bit, with its base model or without, in any precision, and its config."""

import copy
import json

import pytest
import torch
from conftest import tiny_config, tiny_images, tiny_model
from model_history import assert_equal_states, with_history
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, ViTModel

from smope_hf import SMoPEConfig, SMoPEForImageClassification


@pytest.mark.parametrize("include_backbone", [True, None])
def test_round_trip_is_bit_equal(model_type, tmp_path, include_backbone):
    model = with_history(tiny_model(model_type))
    model.save_pretrained(tmp_path, include_backbone=include_backbone)
    loaded = SMoPEForImageClassification.from_pretrained(tmp_path)
    assert_equal_states(model, loaded)
    assert loaded.prefix_experts[0].usage_counts.any() and loaded.prefix_experts[0].frequently_used.any()
    assert loaded.config.to_dict()["tasks"] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert loaded.config.id2label == model.config.id2label
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images()).logits, model(tiny_images()).logits)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is SMoPEForImageClassification
    assert type(AutoConfig.from_pretrained(tmp_path)) is SMoPEConfig


@pytest.fixture
def base(tmp_path, model_type):
    """A pre-trained backbone in a folder of its own."""
    folder = tmp_path / "base"
    tiny_model(model_type).backbone.save_pretrained(folder)
    return folder


def test_adapter_checkpoint_holds_no_backbone_and_finds_its_base(base, tmp_path):
    model = SMoPEForImageClassification.from_backbone(str(base), num_experts=6, top_k=2)
    model.begin_task(["a", "b"])
    model.eval().save_pretrained(tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "model.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if key.startswith("backbone.")]
    loaded = SMoPEForImageClassification.from_pretrained(tmp_path / "adapter")
    assert_equal_states(model, loaded)
    by_hand = SMoPEForImageClassification.from_pretrained(tmp_path / "adapter", backbone=model.backbone)
    assert_equal_states(model, by_hand)
    model.save_pretrained(tmp_path / "standalone", include_backbone=True)
    base.rename(tmp_path / "elsewhere")
    assert_equal_states(model, SMoPEForImageClassification.from_pretrained(tmp_path / "standalone"))
    with pytest.raises(OSError, match="base model.*could not be loaded"):
        SMoPEForImageClassification.from_pretrained(tmp_path / "adapter")
    moved = SMoPEForImageClassification.from_pretrained(tmp_path / "adapter", backbone=str(tmp_path / "elsewhere"))
    assert_equal_states(model, moved)
    moved.save_pretrained(tmp_path / "again")  # knows the new place
    assert_equal_states(model, SMoPEForImageClassification.from_pretrained(tmp_path / "again"))


def test_a_standalone_checkpoint_is_saved_standalone_again(base, tmp_path):
    """A base model that was not needed to load it need not be there for what is saved of it either."""
    model = SMoPEForImageClassification.from_backbone(str(base), num_labels=2)
    assert not model.is_standalone
    model.save_pretrained(tmp_path / "first", include_backbone=True)
    loaded = SMoPEForImageClassification.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "standalone")
    loaded.save_pretrained(tmp_path / "adapter", include_backbone=False)
    adapter = SMoPEForImageClassification.from_pretrained(tmp_path / "adapter")
    adapter.save_pretrained(tmp_path / "adapter again")
    base.rename(tmp_path / "elsewhere")
    again = SMoPEForImageClassification.from_pretrained(tmp_path / "standalone")
    assert_equal_states(model, again)
    assert again.is_standalone and loaded.is_standalone and not adapter.is_standalone
    for name in ("adapter", "adapter again"):
        with pytest.raises(OSError, match="base model.*could not be loaded"):
            SMoPEForImageClassification.from_pretrained(tmp_path / name)


@pytest.mark.parametrize(("name", "commit"), [("me/vit", "a" * 40), ("embedded", None)])
def test_a_copy_of_a_base_model_does_not_take_its_name(base, name, commit, tmp_path):
    model = SMoPEForImageClassification.from_backbone(str(base), num_labels=2)
    model.config.base_model_name_or_path, model.config.base_model_revision = name, commit
    model.save_pretrained(tmp_path / "adapter")
    loaded = SMoPEForImageClassification.from_pretrained(tmp_path / "adapter", backbone=str(base))
    assert (loaded.config.base_model_name_or_path, loaded.config.base_model_revision) == (name, commit)


def test_a_checkpoint_on_a_relative_folder_loads_from_anywhere(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = SMoPEForImageClassification.from_backbone("base", num_labels=2)
    assert model.config.base_model_name_or_path == str(base)
    assert SMoPEForImageClassification.from_backbone(model.backbone).config.base_model_name_or_path == str(base)
    model.save_pretrained("adapter")
    model.config.base_model_name_or_path = "base"  # as older versions recorded it
    model.save_pretrained("older")
    assert_equal_states(model, SMoPEForImageClassification.from_pretrained("older"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_equal_states(model, SMoPEForImageClassification.from_pretrained("../adapter"))
    with pytest.raises(OSError, match="on a command line --backbone"):
        SMoPEForImageClassification.from_pretrained("../older")
    found = SMoPEForImageClassification.from_pretrained("../older", backbone="../base")
    assert_equal_states(model, found)
    assert found.config.base_model_name_or_path == str(base)


def test_another_base_is_refused(base, tmp_path, model_type):
    model = SMoPEForImageClassification.from_backbone(str(base), num_labels=2)
    model.save_pretrained(tmp_path / "adapter")
    other = tiny_model(model_type).backbone
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    other.save_pretrained(base)
    with pytest.raises(ValueError, match="not those that.*was trained on: expected"):
        SMoPEForImageClassification.from_pretrained(tmp_path / "adapter")


def test_adapter_only_needs_a_base_with_a_name(tmp_path):
    with pytest.raises(ValueError, match="no base_model_name_or_path"):
        tiny_model().save_pretrained(tmp_path, include_backbone=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_pretrained_in_a_precision(model_type, tmp_path, dtype):
    model = with_history(tiny_model(model_type))
    model.save_pretrained(tmp_path)
    loaded = SMoPEForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    for name, tensor in loaded.state_dict().items():  # an aligned head would not survive, nor would a close choice
        if tensor.is_floating_point():
            assert tensor.dtype == (dtype if name.startswith("backbone.") else torch.float32), name
    assert torch.equal(loaded.prefix_experts[0].usage_counts, model.prefix_experts[0].usage_counts)
    with torch.no_grad():
        expected, found = model(tiny_images()), loaded(tiny_images().to(dtype))
    assert found.logits.dtype == torch.float32 and found.pooled_output.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 0.1 * expected.logits.abs().max().item()
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=tolerance)


def test_a_model_is_not_divided_over_devices(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    divided = {"backbone": "cpu", "classifier": "cpu", "prefix_experts": "disk"}
    with pytest.raises(ValueError, match=r"device_map divides the model over \['cpu', 'disk'\]"):
        SMoPEForImageClassification.from_pretrained(tmp_path, device_map=divided, offload_folder=tmp_path / "disk")
    one = SMoPEForImageClassification.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.isfinite(one(tiny_images()).logits).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_that_is_made_half_precision_keeps_head_and_experts(dtype):
    model = with_history(tiny_model())
    with torch.no_grad():
        model.classifier.weight.mul_(1e3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    for cast in (model.half() if dtype == torch.float16 else model.bfloat16(), model.to(dtype)):
        after = cast.state_dict()
        assert cast.dtype == dtype and after["classifier.weight"].dtype == torch.float32
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with torch.no_grad():
        output = model(tiny_images().to(dtype))
        expected = torch.nn.functional.linear(output.pooled_output.float(), *model.classifier.parameters())
    assert torch.equal(output.logits, expected)
    assert model.double().classifier.weight.dtype == torch.float64
    assert model.to("meta").prefix_experts[0].keys.is_meta


def test_a_base_in_half_precision_does_not_round_what_was_trained_on_it(tmp_path):
    tiny_model().backbone.bfloat16().save_pretrained(tmp_path / "base")
    backbone = ViTModel.from_pretrained(tmp_path / "base", add_pooling_layer=False, dtype=torch.bfloat16)
    model = SMoPEForImageClassification.from_backbone(backbone, num_experts=6, top_k=2)
    model.begin_task(["ant", "bee"])
    model.save_pretrained(tmp_path / "model")
    assert_equal_states(SMoPEForImageClassification.from_pretrained(tmp_path / "model"), model)


def test_config_round_trip_keeps_every_field(tmp_path):
    config = tiny_config(prompt_layers=[0, 3], noise_epsilon=0.25, routing="unmasked", tasks=[[0, 1], [2, 3, 4, 5]])
    config.save_pretrained(tmp_path)
    loaded = SMoPEConfig.from_pretrained(tmp_path)
    for name in ("prompt_layers", "num_experts", "top_k", "noise_epsilon", "routing", "pooling", "tasks", "id2label"):
        assert getattr(loaded, name) == getattr(config, name), name
    assert loaded.num_experts_per_tok == 2
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "smope"


def test_a_config_without_classes_survives(tmp_path):
    tiny_config(num_labels=None).save_pretrained(tmp_path)
    loaded = SMoPEConfig.from_pretrained(tmp_path)
    assert loaded.num_labels == 0 and loaded.tasks == []


def test_two_classes_survive(tmp_path):
    """transformers leaves out the default labels of a two-class config; the tasks must still fit."""
    config = tiny_config(num_labels=2)
    config.save_pretrained(tmp_path)
    assert SMoPEConfig.from_pretrained(tmp_path).num_labels == 2


def test_experts_of_a_loaded_backbone_start_uniform_and_leave_it_unchanged(base):
    backbone = AutoModel.from_pretrained(base)
    before = copy.deepcopy(backbone.state_dict())
    model = SMoPEForImageClassification.from_backbone(backbone, num_experts=200, top_k=3)
    for experts in model.prefix_experts:
        for tensor in (experts.keys, experts.values):
            assert 0 <= tensor.min() < 0.01 and 0.99 < tensor.max() < 1 and abs(tensor.mean() - 0.5) < 0.02
        assert not experts.usage_counts.any() and not experts.frequently_used.any()
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_from_pretrained_takes_an_implementation(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    plain = SMoPEForImageClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert plain.backbone.config._attn_implementation == "smope_eager"
    with torch.no_grad():
        assert plain(tiny_images(), output_router_scores=True).router_scores
    with pytest.raises((ValueError, ImportError)):
        SMoPEForImageClassification.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
