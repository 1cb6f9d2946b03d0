"""A hundred tasks: what a run holds in memory and on disk grows with its classes alone, and a task takes no longer."""

import gc
import os
import resource
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from runs import save_backbone, tiny_trainer

from smope_hf import TaskStream
from smope_hf.training.callbacks import ContinualCallback

NUM_TASKS = int(os.environ.get("SMOPE_LONG_RUN_TASKS", 100))
SETTLED = 5  # tasks until caches and pools of the libraries are filled
RSS_MIB = 64  # what the allocator may keep over all later tasks


def many_classes() -> TaskStream:
    """Two classes a task, each a patch of its own colour and place in noise."""
    draw = np.random.default_rng(0)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"c{i:03d}" for i in range(2 * NUM_TASKS)])}
    )

    def rows(per_class):
        images, labels = [], np.repeat(np.arange(2 * NUM_TASKS), per_class)
        for label in labels:
            pixels = draw.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            row, column = label % 8, label // 8 % 8
            pixels[row : row + 8, column : column + 8] += np.uint8([label % 190, 90, 190 - label % 190])
            images.append(Image.fromarray(pixels))
        return datasets.Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)

    return TaskStream(datasets.DatasetDict({"train": rows(4), "test": rows(1)}), num_tasks=NUM_TASKS)


class Watch(ContinualCallback):
    """What is there at the end of each task."""

    def __init__(self):
        self.tensors, self.numbers, self.trained, self.rss = [], [], [], []

    def on_task_end(self, trainer, task):
        gc.collect()
        held = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
        self.tensors.append(len(held))
        self.numbers.append(sum(tensor.numel() for tensor in held))
        experts = trainer.model.prefix_experts
        self.trained.append(sum(parameter.numel() for parameter in experts.parameters()))
        self.rss.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def sizes(run: Path, name: str) -> np.ndarray:
    return np.array([(run / f"task-{t + 1:02d}" / name).stat().st_size for t in range(NUM_TASKS)])


@pytest.mark.slow
@pytest.mark.timeout(1200)  # seconds, for busy machines: alone on a core it takes about 90
def test_memory_time_and_checkpoints_of_many_tasks(tmp_path, capsys):
    watch = Watch()
    settings = {"epochs": 1, "dense_epochs": 1, "eval_batch_size": 64}
    trainer = tiny_trainer(save_backbone(tmp_path / "backbone"), tmp_path / "run", many_classes(), [watch], **settings)
    trainer.train()

    run = tmp_path / "run"
    weights, statistics = (sizes(run, f"{name}.safetensors") for name in ("model", "class_statistics"))
    classes = 2 * np.arange(1, NUM_TASKS + 1)
    width, layers, heads, experts = 32, 2, 2, 6
    per_class = {"model": 4 * (width + 1), "statistics": 4 * 2 * width + 8 + layers * heads * experts * 8 / 2}
    for found, slope in ((weights, per_class["model"]), (statistics, per_class["statistics"])):
        assert np.abs(found - found[0] - slope * (classes - classes[0])).max() <= 128  # a header may take more digits

    assert set(np.diff(watch.tensors[SETTLED:])) == {2}  # a usage count, and the labels of the task's test images
    assert len(set(watch.trained)) == 1
    grown = set(np.diff(watch.numbers[SETTLED:]))  # the same for every task, however many there were
    assert len(grown) == 1 and grown.pop() <= 2 * (5 * width + 4) + layers * heads * experts, watch.numbers
    rss = watch.rss[-1] - watch.rss[SETTLED - 1]
    assert rss < RSS_MIB, watch.rss
    with capsys.disabled():
        report(run, trainer.state.seconds, watch)


def report(run: Path, seconds: list[dict[str, float]], watch: Watch):
    """Print what depends on the machine and its load."""
    few = max(1, NUM_TASKS // 10)
    print(f"\n{NUM_TASKS} tasks; peak memory {watch.rss[SETTLED - 1]:.0f} to {watch.rss[-1]:.0f} MiB")
    print(f"tensors held: {watch.tensors[SETTLED]} to {watch.tensors[-1]}")
    for stage in seconds[-1]:
        early, late = (np.median([task[stage] for task in part]) for part in (seconds[SETTLED:][:few], seconds[-few:]))
        print(f"{stage}: {early:.3f} s a task, at the end {late:.3f} s")
    for file in sorted((run / f"task-{NUM_TASKS:02d}").iterdir()):
        print(f"{file.name}: {sizes(run, file.name)[[0, -1]].tolist()} bytes")
