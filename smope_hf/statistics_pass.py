"""Passes over a task's training images: what its statistics are taken from, before and after its training."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .alignment import ClassStatistics, StatisticsAccumulator
from .batches import GlobalBatches, gather_rows
from .drift import FeatureDrift
from .image_store import DecodedImages
from .seeding import derive_generator
from .tasks import Task


@torch.no_grad()
def take_statistics(trainer, task: Task, images: DecodedImages, keep_features: bool = False):
    """Count usage and take class statistics in one pass at the end of a task (docs/method.md, steps 5 and 11).

    Args:
        trainer: the [`ContinualTrainer`], whose model counts the usage.
        task: the task, just trained.
        images: its training images.
        keep_features: also return the features.

    Returns:
        The [`ClassStatistics`] of the task's classes, and the features (N, D) on the CPU or None.
    """
    model, device = trainer.model.eval(), trainer.accelerator.device
    accumulator = StatisticsAccumulator(len(task.class_names), model.config.hidden_size, device)
    kept = []
    with model.raw_routing():
        for features, labels, scores in _passed(trainer, task, images, "statistics"):
            accumulator.update(features, labels - task.class_ids.start)
            if scores:
                model.update_usage(scores)
            if keep_features:
                kept.append(features.cpu())
    return accumulator.result(), torch.cat(kept) if keep_features else None


@torch.no_grad()
def features_before(trainer, task: Task, images: DecodedImages) -> Tensor:
    """Features of a task's training images before its training, (N, D) on the CPU, in the order of the images."""
    trainer.model.eval()
    with trainer.model.raw_routing():  # as after the training: what moves is then the prompts' doing alone
        return torch.cat([features.cpu() for features, _, _ in _passed(trainer, task, images, "drift")])


def _passed(trainer, task: Task, images: DecodedImages, name: str) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """Features (B, D), class ids (B,) and router scores of each global batch, under the statistics' transform."""
    args, model, accelerator = trainer.args, trainer.model, trainer.accelerator
    crops = None
    if args.statistics == "train":
        crops = trainer.augment.draw(len(images), derive_generator(args.seed, "statistics", task.index))
    wanted = {"output_router_scores": True} if model.records_usage else {}
    batches = GlobalBatches(images, args.eval_batch_size, accelerator, args.dataloader_num_workers)
    for pixels, labels, rows, batch_size in trainer.with_bar(batches(), len(batches), task, name):
        pixels = pixels.to(accelerator.device)
        pixels = trainer.normalize(pixels if crops is None else trainer.augment(pixels, crops[rows]))
        with accelerator.autocast():
            output = model(pixels, **wanted)
        scores = output.router_scores if model.records_usage else ()
        together = [output.pooled_output.float(), labels.to(accelerator.device), *scores]
        features, labels, *scores = (gather_rows(accelerator, rows, batch_size) for rows in together)
        yield features, labels, scores


def usage_counts(model) -> Tensor:
    """Usage of every expert so far, (L, H, E), on the CPU."""
    return torch.stack([experts.usage_counts.cpu() for experts in model.prefix_experts])


def carried_along(
    known: ClassStatistics, new: ClassStatistics, before: Tensor | None, after: Tensor | None, args
) -> ClassStatistics:
    """Statistics of old classes as a task has moved their features, followed by those of its own classes.

    Args:
        known: of the classes before the task.
        new: of the task's classes.
        before: features (N, D) of the task's training images before its training; None for no drift compensation.
        after: of the same images after it.
        args: [`ContinualTrainingArguments`], whose `drift_*` are used.
    """
    if before is not None and args.drift_compensation != "none":
        known = FeatureDrift.between(before, after, args.drift_compensation, args.drift_shrinkage).applied(known)
    return known.joined(new)


class StatisticsStage:
    """A task's class statistics, and what its training has done to those of the tasks before it.

    Args:
        trainer: the [`ContinualTrainer`].
        task: the task, about to begin: the model does not know it yet.
        images: its training images.
    """

    def __init__(self, trainer, task: Task, images: DecodedImages):
        self.trainer, self.task, self.images = trainer, task, images
        drifts = task.index > 0 and trainer.args.drift_compensation != "none" and trainer.model.prompt_parameters()
        self.before = features_before(trainer, task, images) if drifts else None

    def finish(self) -> ClassStatistics:
        """After the training: bring the trainer's statistics and usage up to date.

        Returns:
            The statistics of the task's own classes.
        """
        trainer, state = self.trainer, self.trainer.state
        usage = usage_counts(trainer.model) if trainer.model.records_usage else None
        new, after = take_statistics(trainer, self.task, self.images, keep_features=self.before is not None)
        state.statistics = carried_along(state.statistics, new, self.before, after, trainer.args)
        if usage is not None:
            state.usage_history.append(usage_counts(trainer.model) - usage)
        return new
