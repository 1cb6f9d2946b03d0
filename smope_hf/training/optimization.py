"""The optimizer and learning-rate schedule of one training phase (docs/method.md, step 10)."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..models.modeling_incremental import IncrementalClassifier
from ..settings.training_args import ContinualTrainingArguments


def build_optimizer(model: IncrementalClassifier, args: ContinualTrainingArguments) -> torch.optim.AdamW:
    """A fresh AdamW: the head at `learning_rate`, everything else at a multiple of it.

    The prompts of a frozen backbone learn at `prefix_lr_multiplier` times the head's rate; a backbone that is trained
    itself would be destroyed by that, and learns at `backbone_lr_multiplier` times.
    """
    multiplier = args.backbone_lr_multiplier if model.trains_backbone else args.prefix_lr_multiplier
    return torch.optim.AdamW(
        [
            {"params": model.prompt_parameters(), "lr": args.learning_rate * multiplier, "name": "prefix"},
            {"params": list(model.classifier.parameters()), "lr": args.learning_rate, "name": "head"},
        ],
        weight_decay=args.weight_decay,
    )


def learning_rate_at(step: int, peak: float, args: ContinualTrainingArguments, epochs: int, epoch_steps: int) -> float:
    """Learning rate of one step: `min_learning_rate` while frozen, then a cosine from the peak down to it.

    Args:
        step: optimisation step of the phase, from 0.
        peak: learning rate at the start of the cosine.
        epochs: epochs of the phase.
        epoch_steps: steps of an epoch.
    """
    frozen = min(args.freeze_epochs, epochs - 1) * epoch_steps
    if step < frozen:
        return args.min_learning_rate
    if args.lr_schedule == "constant":
        return peak
    done, total = step - frozen, epochs * epoch_steps - frozen
    if args.lr_schedule == "cosine-per-epoch":
        done = done // epoch_steps * epoch_steps
    cosine = (1 + math.cos(math.pi * min(done / total, 1.0))) / 2
    return args.min_learning_rate + (peak - args.min_learning_rate) * cosine


def build_schedule(
    optimizer: torch.optim.Optimizer, args: ContinualTrainingArguments, epochs: int, epoch_steps: int, done: int = 0
) -> LambdaLR:
    """`learning_rate_at` for every parameter group, as a torch scheduler that is stepped once per step.

    Args:
        optimizer: fresh, each group at its peak.
        epochs: epochs of the phase.
        epoch_steps: steps of an epoch.
        done: steps that the phase has behind it.
    """

    def factor(peak: float):
        return lambda step: learning_rate_at(step, peak, args, epochs, epoch_steps) / peak

    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return LambdaLR(optimizer, [factor(group["lr"]) for group in optimizer.param_groups], last_epoch=done - 1)
