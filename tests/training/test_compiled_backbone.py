"""Training through torch.compile: one graph, the same steps, and no new graph for new classes."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import EXTRA, tiny_images, tiny_model
from runs import assert_same_tensors, save_backbone, tensors, tiny_stream, tiny_trainer
from torch._dynamo.testing import CompileCounter

from smope_hf.training import compiled_backbone
from smope_hf.training.compiled_backbone import CompiledBackbone


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


def learner(model_type: str = "vit"):
    """A model without classes yet."""
    return tiny_model(model_type, num_labels=None)


def begin_task(model, number: int):
    if number:
        with torch.no_grad():
            model.eval().update_usage(model(tiny_images(4), output_router_scores=True).router_scores)
    model.begin_task([f"{number} {name}" for name in "abc"])
    model.train()


def step(model, size: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and gradients of a batch of the last task."""
    model.zero_grad()
    output = model(tiny_images(size, seed=size), labels=torch.arange(size) % 3 + model.config.tasks[-1][0])
    output.loss.backward()
    return output.loss.detach(), [value.grad.clone() for value in model.parameters() if value.requires_grad]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("model_type", EXTRA)
def test_a_training_step_is_one_graph(model_type, dense):
    model = learner(model_type)
    for number in range(2):
        begin_task(model, number)
    with model.dense_routing() if dense else contextlib.nullcontext():
        found = torch._dynamo.explain(model)(tiny_images(4), labels=torch.tensor([3, 4, 5, 5]))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_new_classes_need_no_new_graph_and_steps_are_the_same(monkeypatch, model_type):
    """One graph, and another once a batch is of another size: however many tasks there are."""
    counter = CompileCounter()
    monkeypatch.setattr(compiled_backbone, "BACKEND", counter)
    model, compiled = learner(model_type), CompiledBackbone()
    for number in range(12):
        begin_task(model, number)
        for size in (4, 3, 4, 2):
            loss, gradients = step(model, size)
            with compiled.active(model):
                compiled_loss, compiled_gradients = step(model, size)
            torch.testing.assert_close(compiled_loss, loss)
            for ours, theirs in zip(compiled_gradients, gradients, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert counter.frame_count == 2 and counter.op_count > 0


def test_dense_and_sparse_steps_have_graphs_of_their_own(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(compiled_backbone, "BACKEND", counter)
    model, compiled = learner(), CompiledBackbone()
    begin_task(model, 0)
    for frames, routing in ((1, model.dense_routing()), (2, contextlib.nullcontext()), (2, model.dense_routing())):
        with routing:
            loss, _ = step(model, 4)
            with compiled.active(model):
                torch.testing.assert_close(step(model, 4)[0], loss)
        assert counter.frame_count == frames


def test_outside_of_training_nothing_is_compiled(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(compiled_backbone, "BACKEND", counter)
    model = tiny_model()
    with pytest.raises(RuntimeError, match="on purpose"), CompiledBackbone().active(model):
        raise RuntimeError("on purpose")
    model(tiny_images())
    assert counter.frame_count == 0 and "forward" not in model.backbone.__dict__


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(backbone, tmp_path, monkeypatch):
    """Traced and differentiated as for the real backend, and run by torch's own kernels: so to the bit."""
    monkeypatch.setattr(compiled_backbone, "BACKEND", "aot_eager")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for name, switch in (("plain", False), ("compiled", True)):
        tiny_trainer(backbone, tmp_path / name, stream=tiny_stream(num_tasks=2), torch_compile=switch).train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert_same_tensors(tmp_path / "plain" / "task-02", tmp_path / "compiled" / "task-02")


WITHOUT_COMPILER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from runs import tiny_trainer
from smope_hf.training import trainer
trainer.checked_stream = lambda *_: sys.exit("images were read")
try:
    tiny_trainer(sys.argv[2], Path(sys.argv[3]), torch_compile=True)
except ValueError as error:
    print(error)
"""


def test_a_machine_that_cannot_compile_says_so_before_an_image_is_read(backbone, tmp_path):
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(tests).parent)
    command = [sys.executable, "-c", WITHOUT_COMPILER, tests, backbone, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "torch_compile = True is not allowed here" in done.stdout and "no-compiler" in done.stdout
    assert "Install a C++ compiler" in done.stdout and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default backend needs a C++ compiler")
def test_the_real_backend_takes_the_same_step():
    model, compiled = learner(), CompiledBackbone()
    begin_task(model, 0)
    loss, gradients = step(model, 4)
    with compiled.active(model):
        compiled_loss, compiled_gradients = step(model, 4)
    torch.testing.assert_close(compiled_loss, loss)
    for ours, theirs in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_learns_the_same(backbone, tmp_path):
    for name, switch in (("plain", False), ("checkpoints", True)):
        settings = {"stream": tiny_stream(num_tasks=2), "gradient_checkpointing": switch}
        tiny_trainer(backbone, tmp_path / name, **settings).train()
    plain, checkpoints = (tensors(tmp_path / name / "task-02") for name in ("plain", "checkpoints"))
    for name, value in plain.items():
        torch.testing.assert_close(checkpoints[name], value, rtol=1e-4, atol=1e-5)
