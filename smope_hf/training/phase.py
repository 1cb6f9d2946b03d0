"""One phase of a task's training: a fresh optimizer and schedule over some epochs (docs/method.md, step 10)."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ..data.batches import DecodedImages, GlobalBatches, shuffled
from ..data.seeding import derive_generator, derive_seed
from ..data.tasks import Task
from .compiled_backbone import CompiledBackbone
from .interruption import StopSignals, TrainingInterrupted
from .mid_task import MidTask
from .optimization import build_optimizer, build_schedule
from .passes import ImagePasses
from .run_state import RunState


class TrainingDivergedError(RuntimeError):
    """A training loss, or a weight that training changes, is not finite."""


class TrainingPhase:
    """Trains experts and head on one task for some epochs.

    Args:
        model: of the run; it knows the task's classes.
        task: the task.
        name: "dense" or "sparse"; part of the seeds, so that phases differ.
        epochs: passes over the task's training images.
        passes: how the run looks at images, and its settings and devices.
        state: what the run has reached; the steps that are logged are counted there.
        mid_task: where the phase is saved, and taken up again.
        signals: that end it between two steps.
        notify: told "on_forward" and "on_log", with what [`ContinualCallback`] says.
        compiled: what runs the backbone compiled; None for as it is.
        with_routing: have the model output the selected experts, for `notify`.
        saved_tasks: gives the folders of the tasks that were saved, for a message.
    """

    def __init__(
        self,
        model,
        task: Task,
        name: str,
        epochs: int,
        *,
        passes: ImagePasses,
        state: RunState,
        mid_task: MidTask,
        signals: StopSignals,
        notify: Callable[..., None] = lambda event, *what: None,
        compiled: CompiledBackbone | None = None,
        with_routing: bool = False,
        saved_tasks: Callable[[], list[Path]] = list,
    ):
        self.model, self.task, self.name, self.epochs = model, task, name, epochs
        self.passes, self.state, self.mid_task, self.signals = passes, state, mid_task, signals
        self.args, self.accelerator, self.names = passes.args, passes.accelerator, model.losses
        self.notify, self.compiled, self.saved_tasks = notify, compiled, saved_tasks
        self.wanted = {"output_router_scores": True} if with_routing else {}
        self.read, self.steps_per_epoch = 0, 1  # read: steps whose losses were read

    def run(self, images: DecodedImages):
        """Train.

        Returns:
            The model, in evaluation mode.

        Raises:
            TrainingDivergedError: when a loss or weight is not finite; the message names its step and what to do.
            TrainingInterrupted: when a signal asks for it, behind a step, with the state saved.
        """
        args = self.args
        # what a method draws in its steps depends on the phase alone, not on what was computed before it
        torch.manual_seed(derive_seed(args.seed, "steps", self.task.index, self.name, self.accelerator.process_index))
        batches = GlobalBatches(images, args.batch_size, self.accelerator, args.dataloader_num_workers)
        self.steps_per_epoch = len(batches)
        if args.gradient_checkpointing:
            self.model.activation_checkpointing_enable()
        self.model.train()
        model, optimizer = self.accelerator.prepare(self.model, build_optimizer(self.model, args))
        history = torch.zeros(self.epochs * len(batches), len(self.names), device=self.accelerator.device)
        done, self.read = self.mid_task.restore(self.model, self.state, self.name, optimizer, history)
        schedule = build_schedule(optimizer, args, self.epochs, len(batches), done)
        compiled = nullcontext() if self.compiled is None else self.compiled.active(self.model)
        bars, task = self.passes.bars, self.task.index
        with self.signals.wait_for_steps(self.accelerator), compiled, bars.bar(len(history), task, self.name) as bar:
            bar.update(done)
            for epoch in range(done // len(batches), self.epochs):
                purpose = (task, self.name, epoch)
                generator = derive_generator(args.seed, "augmentation", *purpose)
                crops = self.passes.augment.draw(len(images), generator)
                order = shuffled(len(images), args.seed, *purpose)[done % len(batches) * args.batch_size :]
                for batch in batches(order):
                    history[done] = self._step(model, optimizer, batch, batches.share(batch[-1]), crops)
                    schedule.step()
                    bar.update()
                    done += 1
                    self._look_up(optimizer, history, done, bar)
        return self._released(model).eval()

    def _step(self, model, optimizer, batch, share: int, crops: Tensor) -> Tensor:
        """One optimisation step over this process's share of a global batch; gives the losses without waiting."""
        images, labels, rows, batch_size = batch
        passes, device = self.passes, self.accelerator.device
        parts = min(self.args.gradient_accumulation_steps, len(rows))
        losses = torch.zeros(len(self.names), device=device)
        for index, part in enumerate(torch.arange(len(rows)).tensor_split(parts)):
            # the mean over the global batch, also where processes or parts have unequal shares of it
            weight = share * len(part) / len(rows) * self.accelerator.num_processes / batch_size
            with nullcontext() if index + 1 == parts else self.accelerator.no_sync(model):
                pixels = images[part].to(device, non_blocking=True)
                pixels = passes.normalize(passes.augment(pixels, crops[rows[part]]))
                with self.accelerator.autocast():
                    output = model(pixels, labels=labels[part].to(device, non_blocking=True), **self.wanted)
                self.accelerator.backward(output.loss * weight)
            self.notify("on_forward", self.task, output, share > 0)
            losses += weight * torch.stack([output[name].detach().float() for name in self.names])
        if self.args.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return losses

    def _look_up(self, optimizer, history: Tensor, done: int, bar):
        """Between two steps: read losses, save and stop where it is time to."""
        args, last = self.args, done == len(history)
        reads = last or done % args.logging_steps == 0
        if reads:
            self._read_losses(history, done, bar)
        stop = self.signals.agreed(self.accelerator, together=reads)
        due = args.checkpoint_every and (last or done % args.checkpoint_every == 0)
        saves = due or (stop and args.save_checkpoints)
        if last or saves:  # a run must never go on from weights that are broken
            self._check_losses(self._together(history, done), done)
            self._check_weights(done)
        if saves:
            place = {"task": self.task.index, "phase": self.name, "done": done, "read": self.read}
            self.mid_task.save(self.model, self.state, optimizer, history, **place)
        if stop:
            raise TrainingInterrupted(stop)

    def _read_losses(self, history: Tensor, done: int, bar):
        """Read the losses since the last reading. Training waits for the device here and when it saves, only."""
        recent = self._together(history, done)
        self._check_losses(recent, done)
        self.read = done
        means = dict(zip(self.names, recent.mean(dim=0).tolist(), strict=True))
        bar.set_postfix(loss=f"{means['loss']:.3f}")
        self.state.logged_steps += len(recent)
        if self.args.report_to != "none":
            values = {f"train/{name}": value for name, value in means.items()}
            self.accelerator.log(values, step=self.state.logged_steps)
        self.notify("on_log", self.task, means)

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
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        finite = torch.stack([value.detach().isfinite().all() for value in trained.values()])
        if not bool(finite.all()):
            name = list(trained)[int((~finite).nonzero()[0])]
            raise self._diverged(f"The weight {name}", done - 1)

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        args, steps, saved = self.args, self.steps_per_epoch, self.saved_tasks()
        precision = "" if args.mixed_precision == "no" else f", or leave mixed_precision {args.mixed_precision} out"
        last = f"The last good checkpoint is {saved[-1]}" if saved else "No task has been saved yet"
        return TrainingDivergedError(
            f"{what} of task {self.task.index + 1} is not finite at step {step % steps + 1} of {steps} in epoch "
            f"{step // steps + 1} of {self.epochs} of its {self.name} phase. {last}; nothing broken was saved. Lower "
            f"learning_rate (now {args.learning_rate:g}) or set max_grad_norm (now {args.max_grad_norm}){precision}, "
            "and train into another output_dir."
        )

    def _released(self, model):
        """The model without what `prepare` put around it, so that its head can grow and it can be copied and saved."""
        bare = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        for patch in ("forward", "_original_forward"):
            bare.__dict__.pop(patch, None)
        self.accelerator.free_memory()
        return bare
