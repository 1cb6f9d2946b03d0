"""The rivals of SMoPE: each learns, saves, loads, resumes and predicts each image for itself."""

import copy
import inspect
import json
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import tiny_images
from prompted_models import METHODS, PROMPTED, SETTINGS, tiny_prompted
from runs import assert_same_tensors, read, save_backbone, tiny_args, tiny_stream
from transformers import ViTImageProcessorPil, ViTModel

from smope_hf import ContinualTrainer, PromptedForImageClassification, SMoPEForImageClassification
from smope_hf.models.configuration_prompted import PromptedConfig
from smope_hf.models.methods.rivals import PROMPT_METHODS
from smope_hf.models.methods.table import register
from smope_hf.settings.training_args import ALIGNMENTS
from smope_hf.sharing.remote_code import code_of
from smope_hf.training import compiled_backbone
from smope_hf.training.run_arguments import ModelArguments, method_config


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


def trainer_of(method, backbone, output_dir, **settings):
    torch.manual_seed(0)
    model = PromptedForImageClassification.from_backbone(backbone, method=method, settings=SETTINGS.get(method))
    args = tiny_args(output_dir, **settings)
    return ContinualTrainer(model, args, tiny_stream(), ViTImageProcessorPil.from_pretrained(backbone))


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_the_backbones_alone(method, tmp_path):
    model = tiny_prompted(method)
    model.save_pretrained(tmp_path)
    loaded = PromptedForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        expected = model(tiny_images()).logits
        for half in (loaded, model.bfloat16()):
            kept = {**dict(half.prompts.named_parameters()), "head": half.classifier.weight}
            assert half.dtype == torch.bfloat16 and {value.dtype for value in kept.values()} == {torch.float32}
            found = half(tiny_images().bfloat16()).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * expected.abs().max().item())


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run_saves_and_resumes_bit_for_bit(method, backbone, tmp_path):
    whole = trainer_of(method, backbone, tmp_path / "whole")
    content = whole.train()
    assert 0 <= content["metrics"]["final_average_accuracy"] <= 1
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "task-01").rename(tmp_path / "cut" / "task-01")
    trainer_of(method, backbone, tmp_path / "cut", resume=True).train()
    assert_same_tensors(tmp_path / "whole" / "task-03", tmp_path / "cut" / "task-03")
    loaded = PromptedForImageClassification.from_pretrained(tmp_path / "cut" / "task-03").eval()
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images()).logits, whole.model(tiny_images()).logits)
    assert read(tmp_path / "cut" / "task-03", "config.json")["method"] == method


@pytest.mark.parametrize("method", [*PROMPTED, "one-prompt", "linear"])
def test_a_method_trains_with_every_alignment(method, backbone, tmp_path, monkeypatch):
    """One training serves all: the first task is the same to them, then each has a head of its own."""
    for place in ("plot_accuracy_matrix", "plot_average_accuracy"):
        monkeypatch.setattr(f"smope_hf.reports.results.{place}", lambda *_, **__: None)  # the slowest part by far
    settings = ",".join(f"{name}={value}" for name, value in SETTINGS.get(method, {}).items())
    model_class, chosen = method_config(ModelArguments(method=method, method_settings=settings or None, num_experts=6))
    torch.manual_seed(0)
    model = model_class.from_backbone(backbone, **chosen)
    others = [name for name in ALIGNMENTS if name not in ("lda", "ncm")]
    args = tiny_args(
        tmp_path, epochs=1, compare_alignments=others, alignment_epochs=1, alignment_learning_rate=0.05,
        alignment_shrinkage=0.1, save_checkpoints=False,
    )  # fmt: skip
    trainer = ContinualTrainer(model, args, tiny_stream(), ViTImageProcessorPil.from_pretrained(backbone))
    content = trainer.train()
    matrices = {name: found["accuracy_matrix"] for name, found in content["other_alignments"].items()}
    matrices["lda"] = content["accuracy_matrix"]
    assert set(matrices) == {"none", "gaussian", "gaussian-full", "lda"}
    plain = matrices.pop("none")
    for name, matrix in matrices.items():
        assert [len(row) for row in matrix] == [1, 2, 3], name
        assert matrix[0] == plain[0] and matrix[1:] != plain[1:], name
    assert sum(matrices["lda"][-1]) > sum(plain[-1])  # it remembers the old classes
    heads = [model.classifier, *trainer.others.heads.values()]
    assert len({tuple(head.weight.flatten().tolist()) for head in heads}) == 4


@pytest.mark.parametrize("method", PROMPTED)
def test_an_image_is_predicted_for_itself(method, model_type):
    """Alone, in any batch and any order; the published L2P lets the batch vote."""
    model, images = tiny_prompted(method, model_type), tiny_images(6)
    with torch.no_grad():
        together = model(images).logits
        alone = torch.cat([model(image[None]).logits for image in images])
        reversed_ = model(images.flip(0)).logits.flip(0)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(reversed_, together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", PROMPTED)
def test_fused_equals_plain(method, model_type):
    model, images = tiny_prompted(method, model_type).double(), tiny_images().double()
    fused = model(images).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(images).logits, fused, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", PROMPTED)
def test_under_autocast_prompts_are_chosen_in_float32(method, monkeypatch):
    """Keys so close together that half precision cannot tell them apart choose what they choose in float32."""
    model = tiny_prompted(method, num_tasks=6)
    for name, parameter in model.prompts.named_parameters():
        if method != "ovor" and name.startswith("keys"):
            with torch.no_grad():
                parameter.copy_(1 + 1e-4 * torch.randn(parameter.shape))
    calls, prefixes, choices, choose = [], model.prompts.prefixes, [], model.prompts.choose
    monkeypatch.setattr(
        model.prompts, "prefixes", lambda *given: calls.append((given, prefixes(*given))) or calls[-1][1]
    )
    monkeypatch.setattr(
        model.prompts, "choose", lambda query: choices.append((query, choose(query))) or choices[-1][1]
    )
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(tiny_images(8), labels=torch.full((8,), 15))
    ((query, chosen),) = choices
    if query is not None:
        for part, expected in zip(chosen, choose(query), strict=True):
            assert torch.equal(part, expected)
    assert len(calls) == len(model.config.prompt_layers) and output.method_loss.dtype == torch.float32
    for given, found in calls:
        for part, expected in zip(found, prefixes(*given), strict=True):
            assert part.dtype == torch.float32 and torch.equal(part, expected)


@pytest.mark.parametrize("method", PROMPTED)
def test_the_prompt_changes_the_result_and_gets_a_gradient(method):
    model, images = tiny_prompted(method).train(), tiny_images()
    output = model(images, labels=torch.tensor([3, 4, 5, 3]))
    output.loss.backward()
    trained = model.prompt_parameters()
    assert trained and all(p.grad is not None and bool(p.grad.any()) for p in trained)
    assert all(p.grad is None for p in model.backbone.parameters())
    with torch.no_grad():
        plain = model.classifier(model.backbone_features(images))
    assert not torch.allclose(plain, output.logits, atol=1e-4)


@pytest.mark.parametrize("method", ["dualprompt", "coda-prompt"])
def test_what_earlier_tasks_learned_is_frozen(method):
    model = tiny_prompted(method, num_tasks=1)
    before = {name: value.clone() for name, value in model.prompts.state_dict().items() if name.endswith(".0")}
    model.begin_task(["another"])
    model.train()(tiny_images(), labels=torch.full((4,), 3)).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    assert before and all(torch.equal(model.prompts.state_dict()[name], value) for name, value in before.items())


def pickled(module):
    """As a worker process or a cluster gets it."""
    return pickle.loads(pickle.dumps(module))


def model_on(backbone, method, **fields):
    """A model of some method, SMoPE or a rival, with one task and always the same weights."""
    torch.manual_seed(3)
    if method == "smope":
        model = SMoPEForImageClassification.from_backbone(backbone, num_experts=6, top_k=2, **fields)
    else:
        model = PromptedForImageClassification.from_backbone(backbone, method=method, settings=SETTINGS.get(method))
    model.begin_task(["a", "b", "c"])
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("second", ["ovor", "dualprompt", "linear", "smope"])
@pytest.mark.parametrize("first", ["ovor", "linear", "smope"])
def test_a_backbone_serves_its_newest_model_alone(first, second):
    """The newest runs as on a backbone of its own; the one before says what has become of its backbone."""
    backbone, images = tiny_prompted("linear").backbone, tiny_images()
    expected = model_on(copy.deepcopy(backbone), second)(images).logits
    before = model_on(backbone, first, **({"prompt_layers": [0, 1, 2, 3]} if first == "smope" else {}))
    before(images)
    model = model_on(backbone, second)
    for use in (before, before.backbone_features, lambda _: before.set_attn_implementation("eager")):
        with pytest.raises(RuntimeError, match="has lost its backbone.*copy.deepcopy"):
            use(images)
    assert torch.equal(model(images).logits, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("method", [*PROMPTED, "smope"])
def test_copies_of_a_backbone_and_of_a_model_are_their_own(method, copied):
    """Also behind a training step, whose graph no copy can take along."""
    model, images = model_on(tiny_prompted("linear").backbone, method).train(), tiny_images()
    model(images, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    other = model_on(copied(model.backbone), "ovor")
    twin = copied(model)
    with torch.no_grad():
        expected = model.eval()(images).logits
        other(images)
        assert torch.equal(twin.eval()(images).logits, expected)
        model_on(twin.backbone, "smope")
        with pytest.raises(RuntimeError, match="has lost its backbone"):
            twin(images)
        assert torch.equal(model(images).logits, expected)


@pytest.mark.parametrize("method", PROMPTED)
def test_switching_the_backbone_behind_the_models_back_is_noticed(method):
    model, images = tiny_prompted(method), tiny_images()
    expected = model(images).logits
    model.backbone.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="without its prompts"):
        model(images)
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(images).logits, expected)


@pytest.mark.parametrize("method", ["l2p", "ovor"])
def test_a_compiled_step_and_one_with_checkpoints_are_the_same(method, monkeypatch):
    monkeypatch.setattr(compiled_backbone, "BACKEND", "aot_eager")
    model, images, labels = tiny_prompted(method).train(), tiny_images(), torch.tensor([3, 4, 5, 3])

    def gradients():
        return torch.autograd.grad(model(images, labels=labels).loss, model.prompt_parameters())

    plain = gradients()
    torch._dynamo.reset()
    with compiled_backbone.CompiledBackbone().active(model):
        compiled = gradients()
    torch._dynamo.reset()
    model.activation_checkpointing_enable()
    for expected, *found in zip(plain, compiled, gradients(), strict=True):
        for value in found:
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_the_query_is_that_of_evaluation_in_training_too():
    """Dropout and drop path of the backbone's own must not move what prompts are chosen by."""
    model, images = tiny_prompted("l2p", "beit"), tiny_images()
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    expected = model.backbone_features(images)
    model.train()
    model.backbone.layernorm_of_a_user = torch.nn.Dropout().eval()  # a part whose mode differs keeps it
    torch.testing.assert_close(model.backbone_features(images), expected, rtol=0, atol=0)
    modes = {name: module.training for name, module in model.backbone.named_modules()}
    assert not modes.pop("layernorm_of_a_user") and all(modes.values())
    with torch.no_grad():
        assert not torch.equal(model(images).logits, model(images).logits)  # the dropout is at work elsewhere


def test_statistics_of_the_first_task_are_taken_in_evaluation_mode(backbone, tmp_path):
    """A backbone that comes from its own training would drop some of its features."""
    found = []
    for mode in (True, False):
        loaded = ViTModel.from_pretrained(backbone, hidden_dropout_prob=0.5).train(mode)
        model = PromptedForImageClassification.from_backbone(loaded, method="ncm")
        processor = ViTImageProcessorPil.from_pretrained(backbone)
        trainer = ContinualTrainer(model, tiny_args(tmp_path / str(mode)), tiny_stream(), processor)
        trainer.train()
        found.append(trainer.state.statistics.mean)
    assert torch.equal(*found)


def test_a_layer_may_have_no_prefix(monkeypatch):
    model, images = tiny_prompted("ovor"), tiny_images()
    whole, prefixes = model(images).logits, type(model.prompts).prefixes
    monkeypatch.setattr(
        type(model.prompts), "prefixes", lambda self, at, chosen: None if at == 0 else prefixes(self, at, chosen)
    )
    without_first = model(images).logits
    assert not torch.equal(without_first, whole)
    monkeypatch.setattr(type(model.prompts), "prefixes", lambda self, at, chosen: None)
    with torch.no_grad():
        bare = model.classifier(model.backbone_features(images))
    torch.testing.assert_close(model(images).logits, bare)
    assert not torch.allclose(without_first, bare, atol=1e-4)


@pytest.mark.parametrize(
    "fields, message",
    [({"method": "smope"}, "method = 'smope'"), ({"settings": {"pool": 3}}, r"settings\['pool'\]"),
     ({"settings": {"top_k": 0}}, r"settings\['top_k'\] = 0"), ({"settings": {"length": 2.5}}, "whole number")],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(fields, message):
    with pytest.raises(Exception, match=message):
        PromptedConfig(**{"method": "l2p", **fields})


def test_every_method_can_be_chosen_by_name():
    choices = next(setting for setting in fields(ModelArguments) if setting.name == "method").metadata["choices"]
    assert set(choices) == {"smope", "one-prompt", *PROMPT_METHODS, "joint"} and len(set(choices)) == len(choices)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'l2p' is the name of a method already. Taken are: smope, one-prompt, ncm"):
        register("l2p", "Another")


def test_one_registration_makes_a_method_known_everywhere():
    """As the guide on adding a method has it: the choices, the classes, and the title on cards."""
    code = """
import json, sys
from smope_hf.models.methods.table import register

@register("my-l2p", "My L2P")
def _():
    from smope_hf.models.methods.l2p import DeepL2P
    return DeepL2P

from smope_hf.training.run_arguments import build_arguments, method_config
assert "torch" not in sys.modules
model_args, _, _ = build_arguments({"dataset": "embedded", "method": "my-l2p", "backbone": "embedded"})
model_class, chosen = method_config(model_args)
model = model_class.from_backbone("embedded", **chosen)
from smope_hf.sharing.model_card import method_name
print(json.dumps([type(model.prompts).__name__, model.config.method, method_name(model.config)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["DeepL2P", "my-l2p", "My L2P"]


def test_a_model_pushed_with_its_code_takes_every_methods_file_along():
    sources = {Path(inspect.getfile(method)).name for method in PROMPT_METHODS.values()}
    assert {"l2p.py", "coda.py"} < sources
    assert {*sources, "table.py"} <= code_of(PromptedForImageClassification).keys()
