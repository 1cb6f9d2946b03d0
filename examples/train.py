"""Learn image classes task after task with SMoPE, on any backbone and data set of the Hub or of this machine.

    python examples/train.py --dataset uoft-cs/cifar100 --label_column fine_label --num_tasks 10 \
        --backbone google/vit-base-patch16-224-in21k --output_dir runs/cifar100

    accelerate launch examples/train.py ...    # the same on several processes or devices

A recipe in a YAML file may come first; what follows on the command line has the last word:

    python examples/train.py examples/recipes/cifar100-short.yaml --dataset DATA --backbone BACKBONE --seed 1

The run leaves task-NN/ checkpoints, metrics.json, accuracy_matrix.csv, manifest.json, plots/ and report.html in
--output_dir.
"""

import sys

from huggingface_hub.errors import StrictDataclassError

from smope_hf.training.phase import TrainingDivergedError
from smope_hf.training.run_arguments import load_trainer, parse_arguments
from smope_hf.training.yardsticks import run_yardsticks


def main(argv: list[str]) -> dict:
    model_args, data, args = parse_arguments(argv)
    trainer = load_trainer(model_args, data, args)
    if data.yardsticks:
        trainer.yardsticks = run_yardsticks(trainer.model, trainer.stream, trainer.decoded, trainer.passes)
    results = trainer.train()
    trainer.accelerator.end_training()
    return results


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, StrictDataclassError, TrainingDivergedError) as error:
        sys.exit(f"error: {error}")
