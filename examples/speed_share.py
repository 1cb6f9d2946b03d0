"""Where the time of a whole run goes: how much of it is not forward and backward of the model.

    python examples/speed_share.py examples/recipes/cifar100-short.yaml --dataset DATA --backbone BACKBONE \
        --output_dir runs/share --num_threads 1 --yardsticks false

Trains as `examples/train.py` does, with the same options, from the data set's loading to the report, and leaves
share.json beside the run's other files. A whole run in one process: it is not resumed, and has no yardsticks. On CUDA
it waits for the device on both sides of every pass, which takes the overlap away.
"""

import json
import sys
import time
from pathlib import Path

import torch

from smope_hf import ContinualTrainer
from smope_hf.storage.files import write_json
from smope_hf.training.run_arguments import load_trainer, parse_arguments


class ModelTime:
    """Seconds within forward and backward passes of a trainer's model, and the images that went through it.

    Args:
        trainer: a [`ContinualTrainer`] that has not begun.
    """

    def __init__(self, trainer: ContinualTrainer):
        self.seconds, self.images, self.device, self.began = 0.0, 0, trainer.accelerator.device, 0.0
        trainer.model.register_forward_pre_hook(lambda module, inputs: self.begin())
        trainer.model.register_forward_hook(self.count)
        self.backward, trainer.accelerator.backward = trainer.accelerator.backward, self.timed_backward

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def begin(self):
        self.began = self.now()

    def count(self, module, inputs, output):
        self.seconds += self.now() - self.began
        self.images += len(output.logits)

    def timed_backward(self, loss, **options):
        self.begin()
        self.backward(loss, **options)
        self.seconds += self.now() - self.began


def main(argv: list[str]) -> dict:
    model_args, data, args = parse_arguments(argv)
    if args.resume or data.yardsticks:
        sys.exit(
            "error: a run that is resumed or has yardsticks is not measured. Give --resume false --yardsticks false."
        )
    began = time.perf_counter()
    trainer = load_trainer(model_args, data, args)
    inside = ModelTime(trainer)
    trainer.train()
    total = time.perf_counter() - began
    stages: dict[str, float] = {}
    for task in trainer.state.seconds:
        for stage, seconds in task.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    found = {
        "seconds": total,
        "inside_the_model": inside.seconds,
        "share_outside": 1 - inside.seconds / total,
        "seconds_by_stage": stages | {"outside every stage": total - sum(stages.values())},
        "images_through_the_model": inside.images,
    }
    write_json(Path(args.output_dir) / "share.json", found)
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
