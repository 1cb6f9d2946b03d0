"""Equality with the published implementation, from its exact outputs on small random ViTs (tests/fixtures)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import ViTConfig

from smope_hf import SMoPEConfig, SMoPEForImageClassification

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILES = ("first_task", "later_task")
FORMS = ("sdpa", "eager")


def load(name):
    with safe_open(FIXTURES / f"{name}.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}


def build(settings, tensors, form):
    """The model as it stood when the published code ran: usage, marks and stored keys reached by our own steps."""
    seen_before, seen = settings["classes_seen_before"], settings["classes_seen"]
    backbone_config = ViTConfig(
        **{
            key: settings[key]
            for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size")
        },
        intermediate_size=tensors["backbone.layers.0.mlp.fc1.weight"].shape[0],
        layer_norm_eps=settings["layer_norm_eps"],
    )
    names = ("num_experts", "top_k", "prompt_layers", "noise_epsilon", "router_loss_coef", "prototype_loss_coef")
    config = SMoPEConfig(
        backbone_config=backbone_config, attn_implementation=form, **{key: settings[key] for key in names}
    )
    model = SMoPEForImageClassification(config)
    backbone = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    model.backbone.load_state_dict(backbone, strict=True)
    if seen_before:
        model.begin_task([f"class {index}" for index in range(seen_before)])
        set_experts(model, tensors["previous_prefix_keys"], tensors["previous_prefix_values"])
        model.eval()
        with torch.no_grad(), model.raw_routing():
            model.update_usage(model(tensors["previous_pixel_values"], output_router_scores=True).router_scores)
    model.begin_task([f"class {index}" for index in range(seen_before, seen)])
    set_experts(model, tensors["prefix_keys"], tensors["prefix_values"])
    with torch.no_grad():
        model.classifier.weight.copy_(tensors["classifier.weight"][:seen])
        model.classifier.bias.copy_(tensors["classifier.bias"][:seen])
    return model


@torch.no_grad()
def set_experts(model, keys, values):
    for experts, layer_keys, layer_values in zip(model.prefix_experts, keys, values, strict=True):
        experts.keys.copy_(layer_keys)
        experts.values.copy_(layer_values)


@pytest.fixture(params=[(file, form) for file in FILES for form in FORMS], ids=lambda param: "-".join(param))
def published(request):
    file, form = request.param
    settings, tensors = load(file)
    return settings, tensors, build(settings, tensors, form)


def assert_same_sets(ours, theirs):
    assert torch.equal(torch.stack(ours).sort(dim=-1).values, theirs.sort(dim=-1).values)


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_usage_counts_and_marks(published):
    _, tensors, model = published
    assert torch.equal(torch.stack([e.usage_counts for e in model.prefix_experts]), tensors["usage_counts"].long())
    assert torch.equal(
        torch.stack([e.frequently_used for e in model.prefix_experts]), tensors["frequently_used"].bool()
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_scores_selection_and_logits(published, mode):
    settings, tensors, model = published
    model.train(mode == "train")
    output = model(tensors["pixel_values"], output_router_scores=True)
    torch.testing.assert_close(torch.stack(output.router_scores), tensors[f"{mode}_scores"], rtol=2e-5, atol=2e-5)
    assert_same_sets(output.selected_experts, tensors[f"{mode}_selected"].long())
    expected = tensors[f"{mode}_logits"][:, : settings["classes_seen"]]
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=2e-5)


def test_dense_logits(published):
    settings, tensors, model = published
    with torch.no_grad(), model.dense_routing():
        logits = model(tensors["pixel_values"]).logits
    torch.testing.assert_close(logits, tensors["dense_logits"][:, : settings["classes_seen"]], rtol=0, atol=2e-5)


def test_losses_and_gradients(published):
    settings, tensors, model = published
    output = model.train()(tensors["pixel_values"], labels=tensors["labels"])
    for ours, theirs in {
        "router_loss": "router_loss",
        "prototype_loss": "prototype_loss",
        "cross_entropy": "cross_entropy",
        "loss": "total_loss",
    }.items():
        torch.testing.assert_close(output[ours], tensors[theirs][0], rtol=1e-4, atol=0)
    output.loss.backward()
    keys = torch.stack([experts.keys.grad for experts in model.prefix_experts])
    values = torch.stack([experts.values.grad for experts in model.prefix_experts])
    assert relative(keys, tensors["grad.prefix_keys"]) < 1e-4
    assert relative(values, tensors["grad.prefix_values"]) < 1e-4
    head = tensors["grad.classifier.weight"]
    assert relative(model.classifier.weight.grad, head[: settings["classes_seen"]]) < 1e-4
    assert (
        not head[settings["classes_seen"] :].any()
        and not model.classifier.weight.grad[: settings["classes_seen_before"]].any()
    )
