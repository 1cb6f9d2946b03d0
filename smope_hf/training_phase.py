"""One phase of a task's training: a fresh optimizer and schedule over some epochs (docs/method.md, step 10)."""

from contextlib import nullcontext

import torch
from torch import Tensor

from .batches import DecodedImages, GlobalBatches, shuffled
from .interruption import TrainingInterrupted
from .optimization import build_optimizer, build_schedule
from .seeding import derive_generator, derive_seed
from .tasks import Task


class TrainingDivergedError(RuntimeError):
    """A training loss, or a weight that training changes, is not finite."""


class TrainingPhase:
    """Trains experts and head on one task for some epochs.

    Args:
        trainer: the [`ContinualTrainer`] whose model, settings and devices are used.
        task: the task.
        name: "dense" or "sparse"; part of the seeds, so that phases differ.
        epochs: passes over the task's training images.
    """

    def __init__(self, trainer, task: Task, name: str, epochs: int):
        self.trainer, self.task, self.name, self.epochs = trainer, task, name, epochs
        self.args, self.accelerator, self.names = trainer.args, trainer.accelerator, trainer.model.losses
        routed = any(callback.wants_routing for callback in trainer.callbacks)
        self.wanted = {"output_router_scores": True} if routed else {}
        self.read, self.steps_per_epoch = 0, 1  # read: steps whose losses were read

    def run(self, images: DecodedImages):
        """Train, and leave the trainer's model in evaluation mode.

        Raises:
            TrainingDivergedError: when a loss or weight is not finite; the message names its step and what to do.
            TrainingInterrupted: when a signal asks for it, behind a step, with the state saved.
        """
        args, trainer = self.args, self.trainer
        # what a method draws in its steps depends on the phase alone, not on what was computed before it
        torch.manual_seed(derive_seed(args.seed, "steps", self.task.index, self.name, self.accelerator.process_index))
        batches = GlobalBatches(images, args.batch_size, self.accelerator, args.dataloader_num_workers)
        self.steps_per_epoch = len(batches)
        if args.gradient_checkpointing:
            trainer.model.activation_checkpointing_enable()
        trainer.model.train()
        model, optimizer = self.accelerator.prepare(trainer.model, build_optimizer(trainer.model, args))
        history = torch.zeros(self.epochs * len(batches), len(self.names), device=self.accelerator.device)
        done, self.read = trainer.mid_task.restore(self.name, optimizer, history)
        schedule = build_schedule(optimizer, args, self.epochs, len(batches), done)
        title = f"task {self.task.index + 1}/{len(trainer.stream)} {self.name}"
        compiled = trainer.compiled.active(trainer.model) if args.torch_compile else nullcontext()
        with trainer.signals.wait_for_steps(self.accelerator), compiled, trainer.bar(len(history), title) as bar:
            bar.update(done)
            for epoch in range(done // len(batches), self.epochs):
                purpose = (self.task.index, self.name, epoch)
                crops = trainer.augment.draw(len(images), derive_generator(args.seed, "augmentation", *purpose))
                order = shuffled(len(images), args.seed, *purpose)[done % len(batches) * args.batch_size :]
                for batch in batches(order):
                    history[done] = self._step(model, optimizer, batch, batches.share(batch[-1]), crops)
                    schedule.step()
                    bar.update()
                    done += 1
                    self._look_up(optimizer, history, done, bar)
        self._release(model)
        trainer.model.eval()

    def _step(self, model, optimizer, batch, share: int, crops: Tensor) -> Tensor:
        """One optimisation step over this process's share of a global batch; gives the losses without waiting."""
        images, labels, rows, batch_size = batch
        trainer, device = self.trainer, self.accelerator.device
        parts = min(self.args.gradient_accumulation_steps, len(rows))
        losses = torch.zeros(len(self.names), device=device)
        for index, part in enumerate(torch.arange(len(rows)).tensor_split(parts)):
            # the mean over the global batch, also where processes or parts have unequal shares of it
            weight = share * len(part) / len(rows) * self.accelerator.num_processes / batch_size
            with nullcontext() if index + 1 == parts else self.accelerator.no_sync(model):
                pixels = images[part].to(device, non_blocking=True)
                pixels = trainer.normalize(trainer.augment(pixels, crops[rows[part]]))
                with self.accelerator.autocast():
                    output = model(pixels, labels=labels[part].to(device, non_blocking=True), **self.wanted)
                self.accelerator.backward(output.loss * weight)
            trainer.notify("on_forward", self.task, output, share > 0)
            losses += weight * torch.stack([output[name].detach().float() for name in self.names])
        if self.args.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return losses

    def _look_up(self, optimizer, history: Tensor, done: int, bar):
        """Between two steps: read losses, save and stop where it is time to."""
        args, trainer, last = self.args, self.trainer, done == len(history)
        reads = last or done % args.logging_steps == 0
        if reads:
            self._read_losses(history, done, bar)
        stop = trainer.signals.agreed(self.accelerator, together=reads)
        due = args.checkpoint_every and (last or done % args.checkpoint_every == 0)
        saves = due or (stop and args.save_checkpoints)
        if last or saves:  # a run must never go on from weights that are broken
            self._check_losses(self._together(history, done), done)
            self._check_weights(done)
        if saves:
            trainer.mid_task.save(self, optimizer, history, done, self.read)
        if stop:
            raise TrainingInterrupted(stop)

    def _read_losses(self, history: Tensor, done: int, bar):
        """Read the losses since the last reading. Training waits for the device here and when it saves, only."""
        recent = self._together(history, done)
        self._check_losses(recent, done)
        self.read = done
        means = dict(zip(self.names, recent.mean(dim=0).tolist(), strict=True))
        bar.set_postfix(loss=f"{means['loss']:.3f}")
        self.trainer.logged_steps += len(recent)
        if self.args.report_to != "none":
            values = {f"train/{name}": value for name, value in means.items()}
            self.accelerator.log(values, step=self.trainer.logged_steps)
        self.trainer.notify("on_log", self.task, means)

    def _together(self, history: Tensor, done: int) -> Tensor:
        """The losses of the steps that were not read yet, of all processes."""
        recent = history[self.read : done]
        return self.accelerator.reduce(recent, reduction="mean").cpu() if len(recent) else recent.cpu()

    def _check_losses(self, recent: Tensor, done: int):
        broken = (~recent.isfinite().all(dim=1)).nonzero().flatten()
        if len(broken):
            step = done - len(recent) + int(broken[0])
            names = [name for name, value in zip(self.names, recent[broken[0]], strict=True) if not value.isfinite()]
            raise self._diverged(f"The loss ({', '.join(names)})", step)

    def _check_weights(self, done: int):
        """The last step may break the weights behind a loss that was finite."""
        trained = {name: value for name, value in self.trainer.model.named_parameters() if value.requires_grad}
        finite = torch.stack([value.detach().isfinite().all() for value in trained.values()])
        if not bool(finite.all()):
            name = list(trained)[int((~finite).nonzero()[0])]
            raise self._diverged(f"The weight {name}", done - 1)

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        args, steps, saved = self.args, self.steps_per_epoch, self.trainer.saved_tasks()
        precision = "" if args.mixed_precision == "no" else f", or leave mixed_precision {args.mixed_precision} out"
        last = f"The last good checkpoint is {saved[-1]}" if saved else "No task has been saved yet"
        return TrainingDivergedError(
            f"{what} of task {self.task.index + 1} is not finite at step {step % steps + 1} of {steps} in epoch "
            f"{step // steps + 1} of {self.epochs} of its {self.name} phase. {last}; nothing broken was saved. Lower "
            f"learning_rate (now {args.learning_rate:g}) or set max_grad_norm (now {args.max_grad_norm}){precision}, "
            "and train into another output_dir."
        )

    def _release(self, model):
        """Take off what `prepare` put around the model, so that its head can grow and it can be copied and saved."""
        bare = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        for patch in ("forward", "_original_forward"):
            bare.__dict__.pop(patch, None)
        self.accelerator.free_memory()
        self.trainer.model = bare
