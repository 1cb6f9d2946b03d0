"""What users of transformers expect of a model class, on tiny models of several families."""

import copy
import pickle

import pytest
import torch
from conftest import EXTRA, SIZES, tiny_config, tiny_images, tiny_model
from model_history import LABELS, assert_equal_states, gradients, with_history
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    PreTrainedModel,
    SwinConfig,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from smope_hf import SMoPEConfig, SMoPEForImageClassification
from smope_hf.models.backbones import FAMILIES

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


def test_autocast_leaves_the_head_exact():
    """A head with large opposite weights, as discriminant analysis gives, must not be rounded to bfloat16."""
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight.mul_(1e4)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(tiny_images())
        expected = torch.nn.functional.linear(output.pooled_output.float(), *model.classifier.parameters())
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-2)


# ---------------------------------------------------------------------- running


def test_only_experts_and_head_train(model_type, tmp_path):
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    for either in (model, SMoPEForImageClassification.from_pretrained(tmp_path)):
        trainable = {name for name, parameter in either.named_parameters() if parameter.requires_grad}
        assert trainable == {name for name, _ in either.named_parameters() if not name.startswith("backbone.")}
        # 2 layers x (keys + values) x 2 heads x 6 experts x 16 per head, and a head of 6 classes x (32 + 1)
        assert either.num_parameters(only_trainable=True) == 2 * 2 * 2 * 6 * 16 + 6 * 33


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
