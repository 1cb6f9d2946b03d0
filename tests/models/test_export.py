"""A model as one file: the same logits for any number of images, in onnxruntime and in torch alone."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from cli_runs import fails, smope
from conftest import EXTRA, THOROUGH, tiny_images, tiny_model
from PIL import Image
from runs import save_backbone, tiny_stream, tiny_trainer
from transformers import ViTImageProcessorPil, pipeline

from smope_hf.models import export as exporting
from smope_hf.models.export import export_model
from smope_hf.models.methods.rivals import PROMPT_METHODS
from smope_hf.models.modeling_prompted import PromptedForImageClassification


def used(model):
    """Some experts were never used, so that masked routing differs from unmasked."""
    for experts in model.prefix_experts:
        experts.usage_counts.random_(0, 3, generator=torch.Generator().manual_seed(0))
    return model


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        *(pytest.param(name, "onnx", marks=() if name in THOROUGH else pytest.mark.slow) for name in EXTRA),
        *((name, "torch") for name in THOROUGH),
    ],
)
def test_logits_are_the_models_own_for_any_number_of_images(model_type, kind, tmp_path):
    model, path = used(tiny_model(model_type)), tmp_path / exporting.FORMATS[kind]
    assert export_model(model, (16, 16), path, kind) <= 1e-4
    run = torch.export.load(path).module() if kind == "torch" else None
    for count in (1, 5):
        images = tiny_images(count, seed=count)
        with torch.no_grad():
            expected = model(images).logits
        if kind == "onnx":
            (found,) = session(path).run(None, {"pixel_values": images.numpy()})
            found = torch.from_numpy(found)
        else:
            found = run(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_an_exported_model_is_of_no_device(tmp_path):
    """The CPU's own kernel must not get into a file that may run elsewhere."""
    export_model(tiny_model(), (16, 16), tmp_path / "model.pt2", "torch")
    program = torch.export.load(tmp_path / "model.pt2")
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "cpu" in name] and any("scaled_dot_product" in name for name in names)


@pytest.mark.parametrize("kind", exporting.FORMATS)
def test_a_method_without_prompts_is_exported(kind, tmp_path):
    model = PromptedForImageClassification.from_backbone(tiny_model().backbone, method="linear")
    model.begin_task(["a", "b"])
    assert export_model(model, (16, 16), tmp_path / exporting.FORMATS[kind], kind) <= 1e-4


@pytest.mark.parametrize("method", [name for name in PROMPT_METHODS if PROMPT_METHODS[name].layers])
@pytest.mark.slow
def test_rivals_are_exported_too(method, tmp_path):
    model = PromptedForImageClassification.from_backbone(tiny_model().backbone, method=method)
    model.begin_task(["a", "b"])
    assert export_model(model, (16, 16), tmp_path / "model.onnx", "onnx") <= 1e-4


def test_the_weights_are_inside_the_file_unless_it_would_be_too_large(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    export_model(tiny_model(), (16, 16), tmp_path / "one" / "model.onnx", "onnx")
    monkeypatch.setattr(exporting, "ONE_FILE", 100)
    export_model(tiny_model(), (16, 16), tmp_path / "two" / "model.onnx", "onnx")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.onnx"]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"model.onnx", "model.onnx.data"}


def test_a_file_that_computes_something_else_is_told_of(tmp_path, monkeypatch):
    write = exporting._write_onnx
    monkeypatch.setattr(exporting, "_write_onnx", lambda *given: lambda pixels, run=write(*given): run(pixels) + 2e-4)
    with pytest.raises(RuntimeError, match="differ from the model's by up to 0.0002"):
        export_model(tiny_model(), (16, 16), tmp_path / "model.onnx", "onnx")


def test_missing_packages_and_the_extra_are_named(monkeypatch, tmp_path):
    find = exporting.importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name)
    )
    message = fails("export", tmp_path, "--output", tmp_path / "out")
    assert "onnx, onnxscript, onnxruntime" in message and "pip install 'smope_hf[export]'" in message
    export_model(tiny_model(), (16, 16), tmp_path / "model.pt2", "torch")


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    tiny_trainer(save_backbone(folder / "vit"), folder / "run", tiny_stream()).train()
    return folder / "run"


def test_the_command_leaves_all_that_it_takes_to_classify_an_image(run, tmp_path):
    shown = smope("export", run, "--revision", "task-02", "--output", tmp_path / "out").stdout
    assert str(tmp_path / "out" / "model.onnx") in shown and shown.count("\n") == 1
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    processor = ViTImageProcessorPil.from_pretrained(tmp_path / "out")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    pixels = processor(image, return_tensors="np")["pixel_values"]
    (logits,) = session(tmp_path / "out" / "model.onnx").run(None, {"pixel_values": pixels})
    best = pipeline("image-classification", model=str(run / "task-02"))(image, top_k=len(labels))
    assert [labels[index] for index in logits[0].argsort()[::-1]] == [entry["label"] for entry in best]


def test_a_torch_program_runs_without_smope_hf(run, tmp_path):
    smope("export", run, "--format", "torch", "--output", tmp_path)
    code = f"""
import sys, torch
program = torch.export.load({str(tmp_path / "model.pt2")!r}).module()
print(tuple(program(torch.zeros(4, 3, 16, 16)).shape), "smope_hf" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "(4, 6) False False\n", done.stderr


def test_another_format_is_refused(run, tmp_path):
    assert "--format tflite is not allowed. Allowed: onnx or torch" in fails(
        "export", run, "--format", "tflite", "--output", tmp_path
    )
