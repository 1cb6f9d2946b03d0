"""Runs that are stopped within a task, go on, or were never stopped."""

import pytest
import torch
from runs import AtStep, tiny_args, tiny_stream, tiny_trainer
from transformers import ViTImageProcessorPil

from smope_hf import ContinualTrainer
from smope_hf.models.modeling_prompted import PromptedForImageClassification

RUN = {"checkpoint_every": 2, "logging_steps": 4}


class Lost(BaseException):
    """Stands for whatever takes a process away."""


class StopAt(AtStep):
    """Calls `what` in front of a step of a task; notes the losses it hears."""

    def __init__(self, task=None, step=None, what=None):
        super().__init__(task, step, lambda trainer: what())
        self.losses = []

    def on_log(self, trainer, task, losses):
        self.losses.append((task.index, losses))


def lose():
    raise Lost


def make(backbone, folder, method="smope", callback=None, **settings):
    settings = {**RUN, **settings}
    callbacks = [] if callback is None else [callback]
    if method == "smope":
        return tiny_trainer(backbone, folder, callbacks=callbacks, **settings)
    torch.manual_seed(0)
    model = PromptedForImageClassification.from_backbone(backbone, method=method)
    processor = ViTImageProcessorPil.from_pretrained(backbone)
    return ContinualTrainer(model, tiny_args(folder, **settings), tiny_stream(), processor, callbacks)


def stopped(backbone, folder, task, step, what=lose, error=Lost, **settings):
    callback = StopAt(task, step, what)
    with pytest.raises(error) as caught:
        make(backbone, folder, callback=callback, **settings).train()
    return callback, caught.value


def resumed(backbone, folder, **settings):
    callback = StopAt()
    torch.rand(5)  # the global generator stands elsewhere in another process
    return make(backbone, folder, callback=callback, resume=True, **settings).train(), callback


def whole_runs(backbone, tmp_path_factory):
    """Uninterrupted runs by their settings, each made once."""
    made = {}

    def run(**settings):
        key = str(sorted(settings.items()))
        if key not in made:
            folder, callback = tmp_path_factory.mktemp("whole"), StopAt()
            made[key] = folder, make(backbone, folder, callback=callback, **settings).train(), callback
        return made[key]

    return run
