"""What users of transformers expect of a model class, on tiny models of several families."""

import copy
import json
import pickle

import pytest
import torch
from conftest import EXTRA, SIZES, tiny_config, tiny_images, tiny_model
from safetensors import safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
    SwinConfig,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from smope_hf import SMoPEConfig, SMoPEForImageClassification
from smope_hf.backbones import FAMILIES

LABELS = torch.tensor([4, 5, 4, 5])


def with_history(model):
    """A second task, with usage, marks and stored keys that are not all alike."""
    with torch.no_grad(), model.raw_routing():
        model.update_usage(model(tiny_images(8, seed=5), output_router_scores=True).router_scores)
    model.begin_task(["seventh", "eighth"])
    with torch.no_grad():
        for experts in model.prefix_experts:
            experts.keys.add_(0.1 * torch.randn_like(experts.keys))
    return model


def gradients(model, **kwargs):
    model.zero_grad()
    model(tiny_images(), labels=LABELS, **kwargs).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def assert_equal_states(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# ---------------------------------------------------------------------- families


@pytest.mark.parametrize("family", EXTRA)
def test_every_family_routes_and_trains(family):
    model = tiny_model(family, tasks=[[0, 1, 2, 3], [4, 5]]).train()
    output = model(tiny_images(), labels=LABELS, output_router_scores=True)
    assert output.logits.shape == (4, 6) and len(output.router_scores) == 2
    assert all(scores.shape == (4, 2, 6) for scores in output.router_scores)
    output.loss.backward()
    for experts in model.prefix_experts:
        assert experts.keys.grad.abs().sum() > 0 and experts.values.grad.abs().sum() > 0
    assert set(EXTRA) == set(FAMILIES)


@pytest.mark.parametrize("family", EXTRA)
def test_experts_change_the_features_and_only_in_prompt_layers(family):
    """Prefixes with no attention share leave the bare backbone's own features."""
    model = tiny_model(family)
    images = tiny_images()
    with torch.no_grad():
        bare = model.backbone_features(images)
        assert not torch.allclose(model(images).pooled_output, bare, atol=1e-3)
        for experts in model.prefix_experts:
            experts.forward = lambda query, experts=experts: nobody(experts, query)
        torch.testing.assert_close(model(images).pooled_output, bare, rtol=1e-5, atol=1e-5)


def nobody(experts, query):
    """Scores so low that softmax gives the experts nothing."""
    scores, selected = type(experts).forward(experts, query)
    return scores - 1e6, selected


def test_unsupported_backbone_lists_the_supported_ones():
    with pytest.raises(ValueError, match="'swin' is not supported.*vit, deit"):
        SMoPEConfig(backbone_config=SwinConfig())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_model_with_text_the_image_half_is_taken(kind, tmp_path):
    vision = {**SIZES, **EXTRA[f"{kind}_vision_model"]}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    whole = AutoModel.from_config(CONFIG_MAPPING[kind](vision_config=vision, text_config={**text, "vocab_size": 50}))
    whole.save_pretrained(tmp_path)
    model = SMoPEForImageClassification.from_backbone(str(tmp_path), num_labels=2)
    assert model.config.backbone_config.model_type == f"{kind}_vision_model"
    expected = whole.vision_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.backbone.state_dict().items())


# ---------------------------------------------------------------------- saving and loading


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


def test_autocast_leaves_the_head_exact():
    """A head with large opposite weights, as discriminant analysis gives, must not be rounded to bfloat16."""
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight.mul_(1e4)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(tiny_images())
        expected = torch.nn.functional.linear(output.pooled_output.float(), *model.classifier.parameters())
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-2)


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


# ---------------------------------------------------------------------- running


def test_only_experts_and_head_train(model_type, tmp_path):
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    for either in (model, SMoPEForImageClassification.from_pretrained(tmp_path)):
        trainable = {name for name, parameter in either.named_parameters() if parameter.requires_grad}
        assert trainable == {name for name, _ in either.named_parameters() if not name.startswith("backbone.")}
        # 2 layers x (keys + values) x 2 heads x 6 experts x 16 per head, and a head of 6 classes x (32 + 1)
        assert either.num_parameters(only_trainable=True) == 2 * 2 * 2 * 6 * 16 + 6 * 33


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


def test_gradient_checkpointing_gives_the_same_gradients(model_type):
    model = with_history(tiny_model(model_type))
    model.config.tasks = [[0, 1, 2, 3], [4, 5, 6, 7]]
    model.train()
    plain = gradients(model)
    with pytest.warns(FutureWarning):  # transformers' own, of the name that users still know
        model.gradient_checkpointing_enable()
    assert model.is_activation_checkpointing
    for with_checkpoints, without in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(with_checkpoints, without, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="use_reentrant"), pytest.warns(FutureWarning):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def check_compiled(model, training, backend):
    torch._dynamo.reset()
    model = with_history(model).train(training)
    labels = torch.tensor([6, 7, 7, 6])
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.set_grad_enabled(training):
        eager, fast = model(tiny_images(), labels=labels), compiled(tiny_images(), labels=labels)
    torch.testing.assert_close(fast.logits, eager.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.loss, eager.loss, rtol=1e-4, atol=1e-6)
    if training:
        of_eager = torch.autograd.grad(eager.loss, model.prefix_experts[0].keys)
        of_fast = torch.autograd.grad(fast.loss, model.prefix_experts[0].keys)
        torch.testing.assert_close(of_fast, of_eager, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_compile_without_graph_breaks_equals_eager(model_type, training):
    check_compiled(tiny_model(model_type), training, backend="aot_eager")


def test_compile_to_machine_code_equals_eager():
    check_compiled(tiny_model("vit"), training=True, backend="inductor")


def test_hidden_states_and_attentions(model_type):
    model = tiny_model(model_type)
    with torch.no_grad():
        output = model(tiny_images(), output_hidden_states=True, output_attentions=True)
        fused = model(tiny_images())
    tokens = output.hidden_states[0].shape[1]
    assert len(output.hidden_states) == 5 and output.hidden_states[0].shape == (4, tokens, 32)
    widths = [attention.shape[-1] for attention in output.attentions]
    assert widths == [tokens + 2, tokens + 2, tokens, tokens]
    for attention in output.attentions:
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(4, 2, tokens))
    torch.testing.assert_close(output.logits, fused.logits, rtol=1e-4, atol=1e-5)
    assert fused.attentions is None and fused.hidden_states is None


@pytest.mark.parametrize("through", ["deepcopy", "pickle"])
def test_a_copy_is_independent(model_type, through):
    model = with_history(tiny_model(model_type))
    twin = copy.deepcopy(model) if through == "deepcopy" else pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        expected = model(tiny_images()).logits
        for experts in twin.prefix_experts:
            experts.values.add_(1)
        assert torch.equal(model(tiny_images()).logits, expected)
        assert not torch.allclose(twin(tiny_images()).logits, expected, atol=1e-3)


def test_images_of_another_size(model_type):
    model = tiny_model(model_type)
    with torch.no_grad():
        logits = model(tiny_images(size=24), interpolate_pos_encoding=True).logits
    assert logits.shape == (4, 6) and logits.isfinite().all()


def test_an_image_has_the_same_result_in_any_company(model_type):
    model = with_history(tiny_model(model_type))
    images = tiny_images(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = model(images).logits
        alone = torch.cat([model(image[None]).logits for image in images])
        shuffled = model(images[order]).logits
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=2e-6)


def test_meta_device(model_type):
    with torch.device("meta"):
        model = SMoPEForImageClassification(tiny_config(model_type))
        output = model(torch.randn(2, 3, 16, 16))
    assert output.logits.shape == (2, 6) and output.logits.is_meta
    assert model.num_parameters() > 0


def test_size_of_a_vit_b_with_200_classes():
    """The paper's table says 0.38 million trained parameters; the README says about 2 MB for a checkpoint."""
    with torch.device("meta"):
        model = SMoPEForImageClassification(SMoPEConfig(num_labels=200))
    assert model.num_parameters(only_trainable=True) == 6 * 2 * 12 * 25 * 64 + 200 * (768 + 1)
    saved = [tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")]
    assert 1.9e6 < sum(tensor.numel() * tensor.element_size() for tensor in saved) < 2.1e6


def test_tuple_output(model_type):
    model = tiny_model(model_type)
    with torch.no_grad():
        logits, pooled = model(tiny_images(), return_dict=False)
    assert logits.shape == (4, 6) and pooled.shape == (4, 32)


# ---------------------------------------------------------------------- SMoPE cannot be switched off


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "nonsense", None, {"backbone_config": "x"}])
def test_other_attention_implementations_are_refused(name):
    model = tiny_model()
    with pytest.raises(ValueError, match="Allowed"):
        model.set_attn_implementation(name)
    with torch.no_grad():
        model(tiny_images())


@pytest.mark.parametrize("name", ["sdpa", "eager", {"": "eager", "backbone_config": "eager"}])
def test_both_own_implementations_run_smope(model_type, name):
    model = tiny_model(model_type)
    with torch.no_grad():
        expected = model(tiny_images()).logits
        model.set_attn_implementation(name)
        torch.testing.assert_close(model(tiny_images()).logits, expected, rtol=1e-4, atol=1e-5)


def test_switching_the_backbone_behind_the_models_back_is_noticed(model_type):
    model = tiny_model(model_type)
    model.backbone.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="without its prefix experts"):
        model(tiny_images())


def test_a_pass_that_broke_off_does_not_hide_a_switched_backbone():
    model = tiny_model()
    hook = model.backbone.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)  # behind all prompt layers
    with pytest.raises(ZeroDivisionError):
        model(tiny_images())
    hook.remove()
    model.backbone.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="without its prefix experts"):
        model(tiny_images())


def test_from_pretrained_takes_an_implementation(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    plain = SMoPEForImageClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert plain.backbone.config._attn_implementation == "smope_eager"
    with torch.no_grad():
        assert plain(tiny_images(), output_router_scores=True).router_scores
    with pytest.raises((ValueError, ImportError)):
        SMoPEForImageClassification.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


# ---------------------------------------------------------------------- the ecosystem


def test_trainer_of_transformers(tmp_path, model_type):
    model = tiny_model(model_type)
    data = [{"pixel_values": image, "labels": index % 6} for index, image in enumerate(tiny_images(12))]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        learning_rate=0.01, save_steps=3, eval_strategy="steps", eval_steps=3, disable_tqdm=True, seed=0,
    )  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    metrics = {}
    trainer = Trainer(
        model, args, train_dataset=data, eval_dataset=data, compute_metrics=lambda p: metrics.update(p=p) or {}
    )
    trainer.train()
    assert metrics["p"].predictions.shape == (12, 6)  # logits alone: routing outputs are left out
    loaded = SMoPEForImageClassification.from_pretrained(tmp_path / "checkpoint-3")
    assert_equal_states(loaded, model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and not [name for name in changed if name.startswith("backbone.")]


def test_pipeline_by_path(tmp_path, model_type):
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    from PIL import Image

    image = Image.effect_noise((40, 30), 80).convert("RGB")
    (first, *_) = pipeline("image-classification", model=str(tmp_path))(image)
    pixels = ViTImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model(pixels).logits.softmax(dim=-1).max()
    assert first["label"] in model.config.label2id and abs(first["score"] - expected.item()) < 1e-5


def test_embedded_modules_are_not_registered_twice():
    model = tiny_model()
    assert len([m for m in model.modules() if type(m).__name__ == "PrefixExperts"]) == 2
    assert isinstance(model.prefix_experts, nn.ModuleList) and isinstance(model.backbone, PreTrainedModel)
    assert isinstance(model.backbone, ViTModel)
