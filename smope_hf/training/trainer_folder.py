"""The part of the trainer that keeps a run in its folder: a checkpoint for each task, and going on from the last."""

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..base.printing import say_once
from ..data.image_check import write_skipped
from ..data.manifest import first_tasks
from ..data.tasks import Task
from ..models.pretrained import holds_backbone
from ..sharing import checkpoint
from ..storage.output_check import check_room
from ..storage.unchanged_files import check_unchanged, identities
from ..storage.version_changes import change_warning
from .run_lock import FolderHold
from .run_place import check_begun, take_folder
from .run_room import checkpoint_bytes
from .run_state import RunState, check_same_run, versions


def lets_go_when_refused(init: Callable) -> Callable:
    """Decorator of a trainer's `__init__`: one that is not made does not hold its folder."""

    @functools.wraps(init)
    def made(self, *arguments, **options):
        try:
            init(self, *arguments, **options)
        except BaseException:
            self._let_folder_go()
            raise

    return made


class KeepsRunFolder:
    """Saves the tasks of a run in `args.output_dir`, and resumes behind the last of them; for [`ContinualTrainer`].

    The folder is held from when the trainer is made until its `train()` has ended, or the trainer is gone.
    """

    _has_folder = False
    _hold: FolderHold | None = None  # of the main process

    def _take_folder(self):
        """Hold the folder and try it, where that has not been done; on every process."""
        if self._has_folder:
            return
        args = self.args
        self._hold = take_folder(args.output_dir, args.image_cache_dir, args.report_to)
        self._has_folder = True
        if self._hold is not None:
            weakref.finalize(self, self._hold.release)

    def _let_folder_go(self):
        if self._hold is not None:
            self._hold.release()
        self._hold, self._has_folder = None, False

    @contextmanager
    def _in_own_folder(self) -> Iterator[None]:
        """A block that writes into the folder, and lets it go."""
        self._take_folder()
        try:
            if self._hold is None:
                yield
            else:
                with self._hold.in_use():
                    yield
        finally:
            self._let_folder_go()

    def _save(self, task: Task, manifest: dict):
        if self.accelerator.is_main_process:
            folder = checkpoint.task_folder(self.args.output_dir, task.index)
            state = {
                "recipe": self.args.recipe(),
                "eval_batch_size": self.args.eval_batch_size,
                "protocol_hash": manifest["protocol_hash"],
                "accuracy_matrix": self.state.matrix.to_json(),
                "test_counts": self._test_counts()[: task.index + 1],
                "task_confusion": self.state.task_confusion,
                "seconds_by_task": self.state.seconds,
                "logged_steps": self.state.logged_steps,
                "continued_from": self.state.continued_from,
                "follows": self.state.follows,
                "versions": versions(),
                "version_changes": self.state.version_changes,
            }
            learned = first_tasks(manifest, task.index + 1)
            self.others.save(self.args.output_dir, task.index)
            history = self.state.usage_history
            checkpoint.save_task(
                folder, self.model, self.image_processor, self.state.statistics, history, state, learned,
                add_to=lambda beside: self.notify("on_save", task, beside),
            )  # fmt: skip
            self.state.follows = checkpoint.statistics_hash(folder)
            self.mid_task.remove()
        self.accelerator.wait_for_everyone()

    def saved_tasks(self) -> list[Path]:
        """The folders of the tasks that this run has saved; not those of a run that it goes on from."""
        return checkpoint.saved_tasks(self.args.output_dir, self.num_known)

    def _check_output_dir(self, state: RunState | None):
        if self.num_known:
            checkpoint.check_own_run(self.args.output_dir, self.num_known, state.follows)
        check_begun(self.args.output_dir, self.args.resume, self.num_known)

    def _check_room_for_tasks(self):
        to_save = self.stream[self.num_known + len(self.saved_tasks()) :] if self.args.save_checkpoints else ()
        if len(to_save):
            needed = checkpoint_bytes(self.model, to_save, self.args.checkpoint_every)
            check_room(self.args.output_dir, needed, f"Saving {len(to_save)} tasks")

    def _prepare_output(self, manifest: dict):
        saved = self.saved_tasks()
        if saved:
            self._resume_from(saved[-1], manifest)
        self.mid_task.find(self.model, self.state, manifest["protocol_hash"])
        self._compare_versions()
        if self.args.push_to_hub:
            self.open_hub()
        if self.accelerator.is_main_process:
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            checkpoint.remove_partial(self.args.output_dir)
            write_skipped(self.args.output_dir, manifest)

    def _compare_versions(self):
        """Say once, and keep for the results, what differs from the versions that wrote the state gone on from."""
        found = self.mid_task.content
        if found is not None:
            self.state.take_versions(found)
        step = None if found is None else found["step"]
        change = self.state.compare_versions(len(self.model.config.tasks), step)
        if change is not None:
            say_once(self.accelerator, f"Warning: {change_warning(change)}")

    def _resume_from(self, folder: Path, manifest: dict):
        seen = identities(folder.iterdir())
        saved = checkpoint.load_state(folder)
        model = type(self.model).from_pretrained(
            folder,
            backbone=None if holds_backbone(folder) else self.model.backbone,
            dtype=self.model.dtype,
            attn_implementation=self.model.config._attn_implementation,
        )
        check_same_run(folder, saved, self.args.recipe(), manifest["protocol_hash"], model.config, self.model.config)
        self.others.load(self.args.output_dir, len(model.config.tasks) - 1, model.classifier)
        statistics, usage_history = checkpoint.load_statistics(folder)
        self.model = model.to(self.accelerator.device)
        self.state = RunState.from_saved(saved, statistics, usage_history)
        self.state.follows, self.state.logged_steps = checkpoint.statistics_hash(folder), saved["logged_steps"]
        check_unchanged(seen)  # all parts are of one folder
        say_once(self.accelerator, f"Resuming behind {folder}: {len(model.config.tasks)} tasks are learned.")
