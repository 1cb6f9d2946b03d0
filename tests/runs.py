"""A tiny run that takes a few seconds: a random ViT learns six digits in three tasks."""

import json
import signal
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from smope_hf import ContinualTrainer, ContinualTrainingArguments, SMoPEForImageClassification, TaskStream
from smope_hf.data.embedded import digits
from smope_hf.training.callbacks import ContinualCallback

NUM_TASKS, TRAIN_PER_CLASS, TEST_PER_CLASS = 3, 9, 5


def tiny_stream(**options) -> TaskStream:
    data = digits()
    few = {split: data[split].select(np.flatnonzero(np.asarray(data[split]["label"]) < 6)) for split in data}
    few = {split: rows.cast_column("label", datasets.ClassLabel(names=list("abcdef"))) for split, rows in few.items()}
    settings = {
        "num_tasks": NUM_TASKS,
        "max_train_samples_per_class": TRAIN_PER_CLASS,
        "max_test_samples_per_class": TEST_PER_CLASS,
        **options,
    }
    return TaskStream(datasets.DatasetDict(few), **settings)


def save_backbone(folder: str | Path, seed: int = 0, **sizes) -> str:
    """A random ViT and its image processor, as a pre-trained one would lie on disk."""
    torch.manual_seed(seed)
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=16, patch_size=8, **{**small, **sizes})
    backbone = ViTModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    backbone.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def tiny_args(output_dir: Path, **settings) -> ContinualTrainingArguments:
    settings = {
        "epochs": 2,
        "batch_size": 8,
        "eval_batch_size": 8,
        "flip_probability": 0.0,
        "report": False,
        **settings,
    }
    return ContinualTrainingArguments(output_dir=str(output_dir), disable_progress=True, **settings)


def tiny_trainer(backbone: str, output_dir: Path, stream=None, callbacks=(), model_fields=None, **settings):
    fields = {"num_experts": 6, "top_k": 2, **(model_fields or {})}
    torch.manual_seed(settings.get("seed", 0))
    model = SMoPEForImageClassification.from_backbone(backbone, **fields)
    args = tiny_args(output_dir, **settings)
    processor = ViTImageProcessorPil.from_pretrained(backbone)
    return ContinualTrainer(model, args, stream or tiny_stream(), processor, callbacks)


class AtStep(ContinualCallback):
    """Calls `act(trainer)` in front of a training step of one task, counted over the task's phases from 0."""

    def __init__(self, task, step, act):
        self.task, self.step, self.act, self.hook = task, step, act, None

    def on_task_begin(self, trainer, task):
        if task.index == self.task:
            steps = iter(range(10_000))

            def before(module, arguments, options):
                if "labels" in options and next(steps) == self.step:
                    self.act(trainer)

            self.hook = trainer.model.register_forward_pre_hook(before, with_kwargs=True)

    def on_training_end(self, trainer, task):
        if self.hook is not None:
            self.hook.remove()
            self.hook = None


def drop_signal(number: int):
    """Raise a signal where Python drops what its handler raises."""

    class Falls:
        def __del__(self):
            signal.raise_signal(number)

    Falls()


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything numeric in a task's folder."""
    from safetensors.torch import load_file

    files = ("model.safetensors", "class_statistics.safetensors")
    return {f"{file}/{name}": tensor for file in files for name, tensor in load_file(folder / file).items()}


def assert_same_tensors(first: Path, second: Path):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def assert_same_run(expected: Path, found: Path):
    """Weights, usage, statistics, routing and metrics of two runs, to the bit; nothing is left of an interruption."""

    def without_seconds(*place):
        return {name: value for name, value in read(*place).items() if name != "seconds_by_task"}

    for index in range(NUM_TASKS):
        name = f"task-{index + 1:02d}"
        assert_same_tensors(expected / name, found / name)
        for file in ("routing.json", "trainer_state.json"):
            if (expected / name / file).exists():
                assert without_seconds(expected / name, file) == without_seconds(found / name, file), f"{name}/{file}"
    assert without_seconds(expected, "metrics.json") == without_seconds(found, "metrics.json")
    assert not (found / "state").exists() and not list(found.rglob(".*"))
