"""Two and four processes on one machine learn what one process learns."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from processes import launch
from runs import NUM_TASKS, read, save_backbone, tensors

from smope_hf.data.embedded import digits

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from runs import tiny_trainer
# the closed-form head of so few images would magnify the rounding of sums that are taken in another order
settings = dict(batch_size=7, eval_batch_size=5, alignment="gaussian", alignment_epochs=5)
trainer = tiny_trainer(sys.argv[2], Path(sys.argv[3]), **settings)
assert trainer.accelerator.num_processes == int(sys.argv[4]), trainer.accelerator.num_processes
torch.nn.parallel.DistributedDataParallel._sync_buffers = lambda self: sys.exit("a step sends buffers")
content = trainer.train()
if trainer.accelerator.num_processes > 1:
    accuracies = trainer.evaluate()["accuracies"]  # the processes are still connected
    if trainer.accelerator.is_main_process:
        assert accuracies == content["accuracy_matrix"][-1]
"""


@pytest.fixture(scope="module")
def run_by(tmp_path_factory):
    """The same run by any number of processes; 18 images in batches of 7 divide by none of 2 and 4."""
    folder = tmp_path_factory.mktemp("processes")
    backbone = save_backbone(folder / "backbone")
    script = folder / "run.py"
    script.write_text(SCRIPT)

    @cache
    def run(processes: int) -> Path:
        launch(processes, script, backbone, str(folder / str(processes)))
        return folder / str(processes)

    return run


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def pair(run_by, request):
    return run_by(1), run_by(request.param)


def test_the_same_experts_are_used_and_marked(pair):
    one, two = (tensors(folder / f"task-0{NUM_TASKS}") for folder in pair)
    for name in one:
        if "usage" in name or "frequently_used" in name or name.endswith("/count"):
            assert torch.equal(one[name], two[name]), name


def test_the_same_weights_and_statistics_up_to_rounding(pair):
    one, two = (tensors(folder / f"task-0{NUM_TASKS}") for folder in pair)
    for name in one:
        if one[name].is_floating_point():
            torch.testing.assert_close(one[name], two[name], rtol=2e-2, atol=2e-3, msg=lambda text: f"{name}: {text}")


def test_the_same_accuracies(pair):
    one, many = (read(folder, "metrics.json") for folder in pair)
    assert one["accuracy_matrix"] == many["accuracy_matrix"]
    assert one["recall_by_class"] == many["recall_by_class"]
    assert (one["num_processes"], str(many["num_processes"])) == (1, pair[1].name)


UNUSED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from runs import tiny_args, tiny_stream
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessorPil
from smope_hf import ContinualTrainer
from smope_hf.models.modeling_prompted import PromptedForImageClassification
torch.manual_seed(0)
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
model = PromptedForImageClassification.from_backbone(Dinov2Model(Dinov2Config(**sizes)), method="finetune")
processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
ContinualTrainer(model, tiny_args(Path(sys.argv[2])), tiny_stream(num_tasks=2), processor).train()
"""


@pytest.mark.slow
def test_weights_that_reach_no_loss_do_not_stop_fine_tuning(tmp_path):
    """As DINOv2's mask token: gradients are exchanged all the same."""
    script = tmp_path / "run.py"
    script.write_text(UNUSED)
    launch(2, script, str(tmp_path / "run"))
    assert len(read(tmp_path / "run", "metrics.json")["accuracy_matrix"]) == 2


EVALUATE = """
import sys
import torch
torch.set_num_threads(1)
from smope_hf.cli import main
sys.argv = ["smope", "evaluate", sys.argv[2], "--data", sys.argv[3], "--json"]
main()
"""


@pytest.mark.slow
def test_one_of_several_processes_prints_an_evaluation(tmp_path):
    backbone, data = save_backbone(tmp_path / "backbone"), str(tmp_path / "data")
    few = {split: rows.select(range(60)) for split, rows in digits().items()}
    DatasetDict(few).save_to_disk(data)
    train = [sys.executable, "-m", "smope_hf", "train", "--dataset", data, "--backbone", backbone, "--num-tasks", "2"]
    train += ["--epochs", "1", "--no-report", "--num-threads", "1", "--output-dir", str(tmp_path / "run")]
    done = subprocess.run(train, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = tmp_path / "evaluate.py"
    script.write_text(EVALUATE)
    output = launch(2, script, str(tmp_path / "run"), data)
    assert json.loads(output)["tasks"][0]["images"] > 0
