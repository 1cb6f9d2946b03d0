"""The checkpoint that is shown where none is given: eight handwritten digits, learned in four tasks on this machine.

Training it takes about half a minute and needs no Hub. Eight and nine are left for the visitor to teach.
"""

import os
import secrets
import shutil
from pathlib import Path

import torch
from PIL.Image import Resampling

from smope_hf import ContinualTrainer, ContinualTrainingArguments, SMoPEForImageClassification, TaskStream
from smope_hf.base.printing import say
from smope_hf.data.embedded import NAMES, digits
from smope_hf.models.backbones import EMBEDDED
from smope_hf.models.image_processors import load_image_processor

RUN = "digits-1"  # the number changes with what is below, so that a cache holds no run of another making
TASKS = [NAMES[first : first + 2] for first in (0, 2, 4, 6)]
NEW_CLASS, EXAMPLES = "eight", 20
TRAIN_PER_CLASS, TEST_PER_CLASS = 60, 20


def first_checkpoint(cache: Path, epochs: int = 6) -> Path:
    """The folder of the run, trained first where the cache does not hold it.

    Args:
        cache: folder to keep it in; it appears there whole or not at all.
        epochs: of each task.
    """
    run = cache / RUN
    if not run.is_dir():
        say(f"Learning digits for the demo, once; they are kept in {run}")
        beside = cache / f".{RUN}.{secrets.token_hex(4)}"
        try:
            _train(beside, epochs)
            _put_in_place(beside, run)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return run


def example_images(cache: Path) -> tuple[list[Path], list[Path]]:
    """Image files to look at, of three known digits and of the new class, and others to teach the new class with."""
    data = digits()
    wanted = [("test", name, 1) for name in ("zero", "four", "seven", NEW_CLASS)] + [("train", NEW_CLASS, EXAMPLES)]
    found = {"test": [], "train": []}
    for split, name, count in wanted:
        labels = data[split]["label"]
        for row in [row for row, label in enumerate(labels) if label == NAMES.index(name)][:count]:
            path = cache / "images" / split / f"{name}-{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            data[split][row]["image"].resize((96, 96), Resampling.BILINEAR).save(path)
            found[split].append(path)
    return found["test"], found["train"]


def _train(folder: Path, epochs: int):
    limits = {"max_train_samples_per_class": TRAIN_PER_CLASS, "max_test_samples_per_class": TEST_PER_CLASS}
    stream = TaskStream.load(EMBEDDED, class_lists=TASKS, **limits)
    torch.manual_seed(0)
    model = SMoPEForImageClassification.from_backbone(EMBEDDED)
    processor = load_image_processor(EMBEDDED)
    args = ContinualTrainingArguments(
        output_dir=str(folder), epochs=epochs, batch_size=32, learning_rate=0.0005, crop_scale=[0.8, 1.0],
        flip_probability=0.0, report=False,
    )  # fmt: skip
    ContinualTrainer(model, args, stream, processor).train()


def _put_in_place(beside: Path, run: Path):
    try:
        os.rename(beside, run)
    except OSError:  # another process was faster, and its run is as good
        if not run.is_dir():
            raise
