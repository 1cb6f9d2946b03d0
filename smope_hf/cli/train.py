"""`smope train`: a whole run from a recipe, the command line, or both."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..base.printing import say_once
from ..settings.training_args import ContinualTrainingArguments
from ..training.run_arguments import (
    RUN_ARGUMENTS,
    DataArguments,
    ModelArguments,
    build_arguments,
    load_trainer,
    read_recipe,
)
from .options import given, with_options


@with_options(DataArguments, ModelArguments, ContinualTrainingArguments)
def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE.yaml", help="Settings in a file; the options override them.")
    ] = None,
    **options,
):
    """Learn image classes task after task.

    \b
    Examples:
      smope train --dataset uoft-cs/cifar100 --label-column fine_label \\
          --num-tasks 10 --output-dir runs/cifar100
      smope train recipe.yaml --dataset photos/ --seed 1

    The run leaves task-NN/ checkpoints, metrics.json, accuracy_matrix.csv, manifest.json, plots/ and report.html. For
    several devices put `accelerate launch -m smope_hf` in place of `smope`.
    """
    from_recipe = {} if recipe is None else read_recipe(recipe)
    model_args, data, args = build_arguments(given(options, *RUN_ARGUMENTS), from_recipe)

    from ..training.yardsticks import run_yardsticks
    from .common import be_quiet

    be_quiet()
    args.disable_progress = args.disable_progress or not sys.stderr.isatty()
    trainer = load_trainer(model_args, data, args)
    say_once(trainer.accelerator, f"{trainer.stream!r} on {model_args.backbone}")
    if data.yardsticks:
        trainer.yardsticks = run_yardsticks(trainer.model, trainer.stream, trainer.decoded, trainer.passes)
    trainer.train()
    say_once(trainer.accelerator, f"Checkpoints, metrics and plots: {args.output_dir}")
    trainer.accelerator.end_training()
