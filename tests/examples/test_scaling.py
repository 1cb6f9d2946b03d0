"""`examples/scaling.py`: the cost model beside what torch counts and keeps, and beside what a run saves."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import NUM_TASKS, save_backbone, tensors, tiny_trainer

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
import cost_model  # noqa: E402
import flops  # noqa: E402
import scaling  # noqa: E402

SMALL = cost_model.Shape(width=24, layers=3, tokens=10, patch=4, prompt_layers=2, heads=2, experts=9)
SIZE = 12


@pytest.mark.parametrize(
    "change", [{}, {"layers": 4}, {"width": 48}, {"experts": 17}, {"prompt_layers": 3}, {"prompt_layers": 1}], ids=str
)
def test_flops_are_those_that_torch_counts(change):
    """To the last one: convolution, matrices, the attention kernel, experts, and no gradient of the first layer."""
    shape = replace(SMALL, **change)
    found = scaling.check(shape, SIZE, images=3, repetitions=1)
    assert found["forward_flops"] == found["forward_flops_predicted"] > 0
    assert found["step_flops"] == found["step_flops_predicted"] > 1.5 * found["forward_flops"]


def test_the_counter_knows_the_kernel_of_the_cpu():
    query, key = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 7, 8)

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(query, key, key)

    assert flops.count_flops(attend) == 4 * 2 * 3 * 5 * 7 * 8
    grown = torch.randn(2, 3, 14, 8)
    longer = flops.count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, grown, grown))
    assert longer == 2 * flops.count_flops(attend)
    assert flops.count_flops(lambda: attend().sum().backward()) == (4 + 10) * 2 * 3 * 5 * 7 * 8


def test_kept_activations_are_those_of_autograd():
    found = scaling.check(replace(SMALL, width=96, tokens=50), 28, images=2, repetitions=1)
    assert found["kept_numbers"] == pytest.approx(found["kept_numbers_predicted"], rel=0.05)


def test_parameters_are_those_of_the_model():
    model = scaling.build(SMALL, SIZE)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert trained == SMALL.prompts + scaling.CLASSES * (SMALL.width + 1)
    matrices = [value for value in model.backbone.parameters() if value.dim() in (2, 4)]
    assert sum(value.numel() for value in matrices) == SMALL.weights


def test_checkpoints_have_the_bytes_that_are_predicted(tmp_path):
    tiny_trainer(save_backbone(tmp_path / "backbone"), tmp_path, epochs=1).train()
    found = [tensors(tmp_path / f"task-0{task + 1}") for task in range(NUM_TASKS)]
    sizes = [
        sum(
            value.nbytes
            for name, value in task.items()
            if name.endswith(("/mean", "/variance", "/count")) or "/classifier." in name
        )
        for task in found
    ]
    weights = [task["model.safetensors/classifier.weight"] for task in found]
    width, classes = weights[0].shape[1], [len(weight) for weight in weights]
    assert sizes == [4 * count * (3 * width + 3) for count in classes]


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_what_is_sent_grows_with_trained_parameters_alone(processes):
    run = cost_model.Run(10, 10, 100, 100, processes=processes)
    few, many = (run.stages(replace(SMALL, experts=experts))["training"] for experts in (9, 18))
    steps = (10 * 5 + 2) * 16
    assert many["sent"] - few["sent"] == pytest.approx(steps * 4 * SMALL.prompts * 2 * (processes - 1) / processes)
    assert run.stages(SMALL)["training"]["flops"] == few["flops"]


def test_evaluation_grows_with_the_square_of_the_tasks():
    stages = [cost_model.Run(tasks, 10, 100, 100).stages(SMALL) for tasks in (10, 100)]
    evaluation, training = (stages[1][name]["flops"] / stages[0][name]["flops"] for name in ("evaluation", "training"))
    assert evaluation > 80 and 8 < training < 12
    turn = cost_model.overtaken(scaling.THOUSAND, scaling.LARGE)
    before, after = (replace(scaling.THOUSAND, tasks=tasks).stages(scaling.LARGE) for tasks in (turn - 1, turn))
    assert before["evaluation"]["flops"] <= before["training"]["flops"]
    assert after["evaluation"]["flops"] > after["training"]["flops"]


def test_the_script_writes_what_the_docs_show(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "SIZES", {"ViT-S/14, 70": (replace(SMALL), SIZE)})
    monkeypatch.setattr(
        sys, "argv", ["scaling.py", "--output_dir", str(tmp_path), "--images", "2", "--repetitions", "1"]
    )
    threads = torch.get_num_threads()
    try:
        scaling.main()
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "scaling.json").read_text())
    assert capsys.readouterr().out.strip() == (tmp_path / "scaling.md").read_text().strip()
    shares = content["shares"].values()
    assert sum(share["measured"] for share in shares) == pytest.approx(1)
    assert sum(share["predicted"] for share in shares) == pytest.approx(1)
    assert content["hours"]["evaluation"] > content["hours"]["training"]  # what the page calls the bottleneck


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no seed-.*--records"):
        scaling.recorded_shares(tmp_path)
