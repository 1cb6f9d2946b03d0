"""Two and four processes on one machine learn what one process learns."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from runs import NUM_TASKS, read, save_backbone, tensors

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
trainer.train()
"""


def launch(processes: int, script: Path, *arguments: str):
    """Start processes over gloo, as docs/guides/many-processes.md says for a CPU."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*command, str(script), str(Path(__file__).parent), *arguments, str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


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
