"""A backbone that is no longer its base model is saved with the model, or the saving is refused; nothing is lost."""

import copy
import json

import pytest
import torch
from conftest import tiny_images
from runs import save_backbone
from safetensors import safe_open
from torch import nn
from transformers.quantizers import HfQuantizer
from transformers.utils import logging

from smope_hf import PromptedForImageClassification, SMoPEForImageClassification


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    base = save_backbone(tmp_path / "base")
    made = SMoPEForImageClassification.from_backbone(base, num_experts=6, top_k=2)
    made.begin_task(["a", "b"])
    return made.eval()


@pytest.fixture
def told(caplog):
    """The warnings of transformers' loggers."""
    logging.enable_propagation()
    yield lambda: [
        record.getMessage() for record in caplog.records if "no longer its base model" in record.getMessage()
    ]
    logging.disable_propagation()


def has_backbone(folder) -> bool:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return any(name.startswith("backbone.") for name in file.keys())


def train(model):
    """One step of everything, and frozen again."""
    model.backbone.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(tiny_images(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    model.freeze_backbone()


def merge(model):
    """As adapters are merged: past autograd and its counters, into the same memory."""
    weight = model.backbone.layers[2].attention.q_proj.weight
    weight.data += torch.randn(32, 1) @ torch.randn(1, 32)


def merge_safely(model):
    """As they are merged into new memory."""
    weight = model.backbone.layers[2].attention.q_proj.weight
    weight.data = weight.data + 0.1


def unfreeze(model):
    model.backbone.layers[3].requires_grad_(True)


def exchange(model):
    model.backbone.layers[1].mlp.activation_fn = nn.ReLU()


CHANGES = {"trained": train, "merged": merge, "merged anew": merge_safely, "unfrozen": unfreeze, "exchanged": exchange}


@pytest.mark.parametrize("change", ["trained", "merged", "merged anew"])
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
def test_what_was_trained_or_merged_is_saved_and_told(model, tmp_path, told, change, loaded):
    if loaded:
        model.save_pretrained(tmp_path / "before")
        model = SMoPEForImageClassification.from_pretrained(tmp_path / "before").eval()
    CHANGES[change](model)
    expected = model(tiny_images()).logits
    model.save_pretrained(tmp_path / "saved")
    assert has_backbone(tmp_path / "saved") and len(told()) == 1 and "of the backbone has other numbers" in told()[0]
    again = SMoPEForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert again.is_standalone and torch.equal(again(tiny_images()).logits, expected)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_backbone_is_not_left_out(model, tmp_path, change):
    CHANGES[change](model)
    with pytest.raises(ValueError, match="include_backbone = False, but .* of the backbone .*include_backbone=True"):
        model.save_pretrained(tmp_path / "saved", include_backbone=False)
    assert not (tmp_path / "saved").exists()
    model.save_pretrained(tmp_path / "saved")
    assert has_backbone(tmp_path / "saved")


@pytest.mark.parametrize(
    "use",
    [
        lambda model: model,
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16),
        copy.deepcopy,
        lambda model: model.train(),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: model.gradient_checkpointing_enable(),
        lambda model: model.prefix_experts.requires_grad_(False),
        lambda model: model.backbone.compile(backend="eager"),
    ],
    ids=["nothing", "half", "bfloat16", "copy", "train", "eager", "checkpointing", "frozen", "compiled"],
)
def test_what_leaves_the_backbone_as_it_is_saves_no_backbone(model, tmp_path, told, use):
    used = use(model) or model
    used = used if isinstance(used, SMoPEForImageClassification) else model
    with torch.no_grad():
        used.prefix_experts[0].keys.add_(1)
    used.save_pretrained(tmp_path / "saved")
    assert not has_backbone(tmp_path / "saved") and not told()


def test_a_rival_is_held_to_the_same(tmp_path):
    model = PromptedForImageClassification.from_backbone(save_backbone(tmp_path / "base"), method="l2p")
    model.save_pretrained(tmp_path / "as it was")
    assert not has_backbone(tmp_path / "as it was")
    merge(model)
    model.save_pretrained(tmp_path / "merged")
    assert has_backbone(tmp_path / "merged")


def test_adapters_that_are_not_merged_are_refused(model, tmp_path):
    kind = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    model.backbone.layers[0].attention.q_proj.__class__ = kind
    with pytest.raises(ValueError, match="has PEFT adapters.*Merge them into the weights first"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


class Quantizer(HfQuantizer):
    """Gives weights that no checkpoint may hold, as real ones do."""

    requires_calibration = False

    def __init__(self):
        pass

    def is_serializable(self):
        return True

    def get_state_dict_and_metadata(self, model):
        return {"backbone.packed": torch.zeros(2, dtype=torch.uint8)}, {}

    is_trainable = False


def test_of_a_quantised_model_saved_is_what_loads(model, tmp_path):
    expected = model(tiny_images()).logits
    model.hf_quantizer = quantizer = Quantizer()
    model.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(ValueError, match="The backbone is quantised.*include_backbone=False"):
        model.save_pretrained(tmp_path / "saved", include_backbone=True)
    model.save_pretrained(tmp_path / "saved")
    assert not has_backbone(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert model.hf_quantizer is quantizer and model.config.quantization_config == {"quant_method": "torchao"}
    again = SMoPEForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(tiny_images()).logits, expected)


@pytest.mark.parametrize("kind", [SMoPEForImageClassification, PromptedForImageClassification])
def test_quantizers_leave_experts_prompts_and_head_as_they_are(tmp_path, kind):
    """A closed-form head weighs small directions up, and does not survive int4."""
    fields = {"method": "l2p"} if kind is PromptedForImageClassification else {}
    model = kind.from_backbone(save_backbone(tmp_path / "base"), **fields)
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    own = {name for name, _ in model.named_children()} - {"backbone"}
    assert own and own <= set(kept)
