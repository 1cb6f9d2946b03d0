"""The one pass over a task's training images at its end: experts' usage and class statistics (steps 5 and 11)."""

import torch
from torch import Tensor

from .alignment import ClassStatistics, StatisticsAccumulator
from .batches import DecodedImages, GlobalBatches, gather_rows
from .seeding import derive_generator
from .tasks import Task


@torch.no_grad()
def take_statistics(trainer, task: Task, images: DecodedImages) -> ClassStatistics:
    """Count usage in the trainer's model, and take the statistics of the task's classes.

    Args:
        trainer: the [`ContinualTrainer`].
        task: the task, just trained.
        images: its training images.
    """
    args, model, accelerator = trainer.args, trainer.model, trainer.accelerator
    crops = None
    if args.statistics == "train":
        crops = trainer.augment.draw(len(images), derive_generator(args.seed, "statistics", task.index))
    wanted = {"output_router_scores": True} if model.records_usage else {}
    accumulator = StatisticsAccumulator(len(task.class_names), model.config.hidden_size, accelerator.device)
    batches = GlobalBatches(images, args.eval_batch_size, accelerator, args.dataloader_num_workers)
    with model.raw_routing():
        for pixels, labels, rows, batch_size in trainer.with_bar(batches(), len(batches), task, "statistics"):
            pixels = pixels.to(accelerator.device)
            pixels = trainer.normalize(pixels if crops is None else trainer.augment(pixels, crops[rows]))
            with accelerator.autocast():
                output = model(pixels, **wanted)
            scores = output.router_scores if model.records_usage else ()
            together = [output.pooled_output.float(), labels.to(accelerator.device), *scores]
            features, labels, *scores = (gather_rows(accelerator, rows, batch_size) for rows in together)
            accumulator.update(features, labels - task.class_ids.start)
            if scores:
                model.update_usage(scores)
    return accumulator.result()


def usage_counts(model) -> Tensor:
    """Usage of every expert so far, (L, H, E), on the CPU."""
    return torch.stack([experts.usage_counts.cpu() for experts in model.prefix_experts])
