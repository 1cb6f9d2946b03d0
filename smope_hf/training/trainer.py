"""The continual training loop: learn a task, take statistics, align the head, evaluate, save."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from transformers import BaseImageProcessor

from ..base.home import expanded
from ..base.printing import say_once
from ..data.augmentation import BatchAugmentation, Normalization, as_trained, processed_size
from ..data.continued_stream import ContinuedStream
from ..data.duplicates import check_duplicates
from ..data.image_check import checked_stream
from ..data.image_store import DecodedImages, ImageStore
from ..data.seeding import derive_generator, derive_seed
from ..data.split import TaskSplit, check_tests
from ..data.tasks import Task, TaskStream
from ..heads.alignment import ClassStatistics, align_classifier, check_images_suffice
from ..metrics.accuracy_matrix import AccuracyMatrix
from ..metrics.class_recall import recall_by_frequency
from ..metrics.stopwatch import seconds_since
from ..metrics.summary import metrics_where_measured
from ..models.modeling_incremental import IncrementalClassifier
from ..settings.training_args import ContinualTrainingArguments, check_alignment
from ..storage.config_guard import check_class_count
from ..storage.field_checks import check_task_count
from .callbacks import ContinualCallback, TellsCallbacks
from .compiled_backbone import CompiledBackbone, check_compiler
from .evaluation import Evaluation, evaluate_tasks, overall_accuracy, predict
from .health import health_of
from .interruption import StopSignals, finish_trackers, interruptible
from .mid_task import MidTask
from .other_alignments import OtherAlignments
from .passes import ImagePasses, ProgressBars
from .phase import TrainingPhase
from .process_group import end_group_at_exit
from .result_files import keep_results, run_details, write_results
from .run_place import folder_taken
from .run_room import most_images
from .run_state import RunState
from .statistics_pass import StatisticsStage
from .trainer_folder import KeepsRunFolder, lets_go_when_refused
from .trainer_hub import PushesToHub


class ContinualTrainer(KeepsRunFolder, PushesToHub, TellsCallbacks):
    """Learns the tasks of a stream one after the other.

    Args:
        model: a fresh model (`SMoPEForImageClassification.from_backbone`); the trainer adds the classes.
        args: settings.
        stream: the tasks.
        image_processor: the backbone's own; saved with every checkpoint.
        callbacks: told what happens, in the order given, each time behind those that every trainer has
            (`smope_hf.training.callbacks.DEFAULT_CALLBACKS`): the one of them writes plots and report.html at the end.
        state: what an earlier run reached, for a model that knows classes; `from_checkpoint` gives it.

    Raises:
        ValueError: when the model knows classes and no state comes with it, images are missing, broken or too few, or
            `args.alignment` is none that the method can have.
        FileExistsError: when the output folder holds a run and `args.resume` is off, or another run than the one that
            the model's classes are from.
        FolderHeldError: when another run has the output folder; the message says which.
        OSError: when the output folder cannot be written, before any image is read.
    """

    @lets_go_when_refused
    def __init__(
        self,
        model: IncrementalClassifier,
        args: ContinualTrainingArguments,
        stream: TaskStream | ContinuedStream,
        image_processor: BaseImageProcessor,
        callbacks: Sequence[ContinualCallback] = (),
        state: RunState | None = None,
    ):
        if model.config.tasks and state is None:
            raise ValueError(
                f"The model already knows {model.config.num_labels} classes. Give a fresh one from from_backbone(); "
                "to go on with an interrupted run, set resume=True; to teach a model more classes, use "
                "ContinualTrainer.from_checkpoint()."
            )
        check_class_count(stream.num_classes)
        check_task_count(len(stream))
        if state is None and args.alignment != ContinualTrainingArguments.alignment:  # the default is no choice
            check_alignment(args.alignment, model.closed_form)
        self.num_known = len(model.config.tasks)
        self.args = args
        self.signals = StopSignals()
        self._take_folder()
        self._check_output_dir(state)
        if not self.num_known:
            check_tests(stream)
        self.image_processor = as_trained(image_processor, args.normalization)
        self._take_callbacks(callbacks)
        trackers = None if args.report_to == "none" else args.report_to
        AcceleratorState._reset_state()  # or a second trainer of a notebook could not have another precision
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=trackers,
            project_dir=args.output_dir,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False,  # no step writes a buffer, so none need be sent
                    find_unused_parameters=model.trains_backbone,  # mask tokens and poolers reach no loss
                )
            ],
        )
        if self.accelerator.num_processes > 1:
            end_group_at_exit()
        if args.torch_compile:
            check_compiler(self.accelerator.device)
        states = (self._callback_states, self._restore_callbacks)
        self.mid_task = MidTask(args, self.accelerator, self.num_known, *states)
        self.stream = checked_stream(stream, args, self.accelerator)
        self.duplicates = check_duplicates(self.stream, args.on_duplicate, self.accelerator)
        self.model = model.to(self.accelerator.device)
        size = processed_size(image_processor)
        self.augment = BatchAugmentation(size, args.crop_scale, args.crop_ratio, args.flip_probability)
        self.normalize = Normalization.from_processor(self.image_processor)
        self.state = state or RunState(ClassStatistics.empty(model.config.hidden_size))
        self.others = OtherAlignments(args, model)
        own = model.closed_form or args.alignment
        check_images_suffice(
            [own, *self.others.names], args.alignment_shrinkage, self.stream, self.state.statistics,
            closed_form=model.closed_form is not None,
        )  # fmt: skip
        self.yardsticks: dict[str, AccuracyMatrix] = {}
        where = args.image_cache_dir or args.output_dir
        self._images = ImageStore(self.image_processor, size, args.image_cache_gib * 2**30, where)
        self._images.check_room(most_images(self.stream))
        self._check_room_for_tasks()
        self.compiled = CompiledBackbone()
        self.evaluation: Evaluation | None = None  # the last one

    @classmethod
    def from_checkpoint(cls, checkpoint: str, stream: TaskStream, *, output_dir: str, **options) -> "ContinualTrainer":
        """A trainer that teaches a saved model new classes; see `smope_hf.training.continuation.continue_from`."""
        from .continuation import continue_from

        output_dir, cache = expanded(output_dir), expanded(options.get("image_cache_dir"))
        with folder_taken(str(output_dir), cache if isinstance(cache, str) else None):  # before anything is loaded
            return continue_from(cls, checkpoint, stream, output_dir=output_dir, **options)

    # ------------------------------------------------------------------ the run

    def train(self) -> dict:
        """Learn every task that is not learned yet.

        Returns:
            The content of metrics.json; of several processes the main one, the others only its `metrics`.

        Raises:
            ValueError: when the run to resume had other settings, tasks or another model.
            RuntimeError: when an earlier call was left in the middle of its first task; nothing is removed.
            TrainingDivergedError: when the loss is not finite; the message names the step and the last checkpoint.
            TrainingInterrupted: when SIGTERM or Ctrl-C stops it; what to do to go on is printed.
        """
        stoppable = interruptible(self.signals, self.accelerator, self.args.output_dir, self.num_known)
        with stoppable, self._in_own_folder():
            return self._learn_all()

    def _learn_all(self) -> dict:
        manifest = self.stream.manifest()
        self._prepare_output(manifest)
        if self.args.report_to != "none":
            self.accelerator.init_trackers("smope", config=self.args.flat_recipe())
        for task in self.stream[len(self.model.config.tasks) :]:
            self._learn(task, manifest)
        self.signals.stop_if_told(self.accelerator)
        content = self._finish(manifest)
        self._images.clear()
        self.signals.stop_if_told(self.accelerator)
        self.finish_trackers()
        self.raise_push_failure()
        return content

    def _learn(self, task: Task, manifest: dict):
        self.notify("on_task_begin", task)
        seconds = self.state.begin_task()
        images = self.decoded(task.train)
        with self._timed(seconds, "statistics"):  # under the prompts of old tasks alone: the new ones come next
            statistics = StatisticsStage(self.model, task, images, self.passes)
        torch.manual_seed(derive_seed(self.args.seed, "new head rows", task.index))
        self.model.begin_task(task.class_names)
        self.model.to(self.accelerator.device)
        with self._timed(seconds, "training"):
            self._train_on(task, images)
        self.notify("on_training_end", task)
        with self._timed(seconds, "statistics"):
            new = statistics.finish(self.model, self.state)
        with self._timed(seconds, "alignment"):
            self.others.align(self.model.classifier, self.state.statistics, new, task)
            self._align(task)
        self._images.release(task.train)
        with self._timed(seconds, "evaluation"):
            self.evaluation = self._evaluated()
            own, *others = self.evaluation.accuracies
            self.state.task_confusion = self.evaluation.confusion
            self.others.add_rows(others)
            self.state.matrix.add_row(own, partial=self.num_known > 0)  # last: the task counts as learned
        if self.args.save_checkpoints:
            with self._timed(seconds, "saving"):
                self._save(task, manifest)
        if self.args.push_to_hub:
            with self._timed(seconds, "pushing"):
                self.push_what_is_saved()
        self._report_health()
        self.notify("on_task_end", task)

    def _report_health(self):
        """Print what went wrong with the task just learned; metrics.json and the report say it of the whole run."""
        for warning in health_of(self.model, self.state, self.args.recipe(), newest=True):
            say_once(self.accelerator, f"Warning: {warning}")

    def _train_on(self, task: Task, images: DecodedImages):
        """All phases of a task; none for a method that trains nothing."""
        if self.model.closed_form is not None:
            return
        self.mid_task.begin(self.state.seconds[-1])
        warm_up = self.model.warm_up() if task.index == 0 and self.args.warmup_epochs else None
        if warm_up is not None and self.mid_task.phase != "sparse":
            with warm_up:
                self.model = self._phase(task, "dense", self.args.warmup_epochs).run(images)
        self.model = self._phase(task, "sparse", self.args.epochs).run(images)

    def _phase(self, task: Task, name: str, epochs: int) -> TrainingPhase:
        return TrainingPhase(
            self.model,
            task,
            name,
            epochs,
            passes=self.passes,
            state=self.state,
            mid_task=self.mid_task,
            signals=self.signals,
            notify=self.notify,
            compiled=self.compiled if self.args.torch_compile else None,
            with_routing=self.wants_routing,
            saved_tasks=self.saved_tasks,
        )

    def _align(self, task: Task):
        """Set the head from the class statistics: from the second task on, or always where nothing is trained."""
        head, statistics, closed_form = self.model.classifier, self.state.statistics, self.model.closed_form
        if closed_form is not None:
            align_classifier(head, statistics, task.class_ids.start, replace(self.args, alignment=closed_form), None)
        elif task.index > 0:
            generator = derive_generator(self.args.seed, "alignment", task.index)
            align_classifier(head, statistics, task.class_ids.start, self.args, generator)

    def _finish(self, manifest: dict) -> dict:
        """Write the results, and have the callbacks make of them what they do."""
        metrics = metrics_where_measured(self.state.matrix, self._test_counts())
        if self.evaluation is None:  # resumed behind the last task
            self.evaluation = self._evaluated()
        details = run_details(
            self.model, self.state, self.args, self.others, self.evaluation, self._test_counts(),
            self.accelerator.num_processes, self.duplicates,
        )  # fmt: skip
        if manifest["options"].get("imbalance_factor", 1) > 1:
            of_all = [metrics, *(other["metrics"] for other in details["other_alignments"].values())]
            for of_one, recall in zip(of_all, self.evaluation.recalls, strict=True):
                of_one |= recall_by_frequency(recall, self.state.statistics.count.tolist())
        content = {"metrics": metrics}
        if self.accelerator.is_main_process:
            if self.num_known:
                keep_results(self.args.output_dir, self.num_known)
            content = write_results(
                self.args.output_dir,
                self.state.matrix,
                self._test_counts(),
                manifest,
                {"metrics": metrics, **details},
                self.yardsticks,
            )
        self.accelerator.wait_for_everyone()
        self.notify("on_train_end", content)
        return content

    # ------------------------------------------------------------------ evaluation

    def predict(self, images: DecodedImages, heads: Sequence[torch.nn.Linear] = ()) -> Tensor:
        """Predicted class id of every image of a split among all classes seen, (n,); with `heads` (1 + heads, n)."""
        args, workers = self.args, self.args.dataloader_num_workers
        return predict(
            self.model, images, self.normalize, self.accelerator, args.eval_batch_size, workers, heads=heads
        )

    def evaluate(self) -> dict:
        """Evaluate the model as it is on the test images of every task it has seen.

        Returns:
            `accuracies` by task (None where it has no test images), their mean `average_accuracy` and the
            `weighted_accuracy` over all images (None where no task has any).
        """
        if not self.model.config.tasks:
            raise ValueError("The model knows no class yet. Call train() first.")
        (accuracies,) = evaluate_tasks(self.model, self.stream, self.decoded, self.passes).accuracies
        return {"accuracies": accuracies, **overall_accuracy(accuracies, self._test_counts()[: len(accuracies)])}

    def _evaluated(self) -> Evaluation:
        heads = list(self.others.heads.values())
        return evaluate_tasks(self.model, self.stream, self.decoded, self.passes, heads)

    # ------------------------------------------------------------------ small things

    @property
    def passes(self) -> ImagePasses:
        """How this run has its model look at images; for functions that do so themselves."""
        bars = ProgressBars(len(self.stream), self.args.disable_progress)
        return ImagePasses(self.accelerator, self.args, self.normalize, self.augment, bars)

    @property
    def logged_steps(self) -> int:
        """Training steps of all tasks whose losses were logged."""
        return self.state.logged_steps

    def finish_trackers(self):
        """Have the trackers write what they hold; several processes stay connected."""
        finish_trackers(self.accelerator)

    def _test_counts(self) -> list[int]:
        return [0 if task.test is None else len(task.test) for task in self.stream]

    def decoded(self, split: TaskSplit) -> DecodedImages:
        """The split's images, each decoded once."""
        return self._images.of(split)

    @contextmanager
    def _timed(self, seconds: dict, stage: str) -> Iterator[None]:
        self.signals.stop_if_told(self.accelerator)
        start = time.perf_counter()
        yield
        seconds[stage] = round(seconds.get(stage, 0.0) + seconds_since(start), 3)
