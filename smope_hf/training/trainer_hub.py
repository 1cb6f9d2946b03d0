"""The part of the trainer that speaks with the Hub."""

from functools import partial
from typing import Any

from ..base.printing import say_once
from ..sharing import checkpoint
from ..sharing.hub import (
    PushConflictError,
    PushedTask,
    PushError,
    check_can_be_shared,
    check_next,
    open_repository,
    push_run,
)


class PushesToHub:
    """Pushes a run's tasks, all at once or each as it ends; for [`ContinualTrainer`]."""

    push_failure: PushError | None = None
    num_pushed = 0  # tasks that are known to be on the Hub

    def push_to_hub(self, repo_id: str | None = None, **options: Any) -> list[PushedTask]:
        """Push every saved task, each as one commit with a tag; see `smope_hf.sharing.hub.push_run`.

        Args:
            repo_id: owner/name or name. Default `args.hub_model_id`.
            **options: as for `push_run`; defaults from `args.hub_*`.

        Returns:
            What is on the Hub now, by task; an empty list on other processes than the main one.

        Raises:
            ValueError: without a repository, or where nothing was saved.
            PushError: when the Hub refuses or cannot be reached; nothing of what is there was changed.
        """
        repo_id = repo_id or self.args.hub_model_id
        if repo_id is None:
            raise ValueError("push_to_hub needs a repository: give repo_id, or set hub_model_id in the arguments.")
        settings = {
            "private": self.args.hub_private_repo,
            "include_backbone": self.args.hub_include_backbone,
            "remote_code": self.args.hub_remote_code,
            "license": self.args.hub_license,
            "report": partial(say_once, self.accelerator),
            **options,
        }
        if not self.accelerator.is_main_process:
            return []
        return push_run(self.args.output_dir, repo_id, **settings)

    def _push_the_rest(self):
        """Push the saved tasks that are not known to be there."""
        first = max(self.num_known, self.num_pushed)
        if checkpoint.saved_tasks(self.args.output_dir, first):
            self.push_to_hub(first=first)
            self.num_pushed = self.num_known + len(self.saved_tasks())

    def open_hub(self):
        """Find out before any work is done whether pushing will work, and push what an earlier attempt left."""
        if self.accelerator.is_main_process:
            options = (self.args.hub_include_backbone, self.args.hub_remote_code)
            check_can_be_shared(self.model.config, *options)
            repo_id = open_repository(self.args.hub_model_id, private=self.args.hub_private_repo)
            self._push_the_rest()
            index = len(self.model.config.tasks)
            if index < len(self.stream):
                check_next(repo_id, index, self.state.follows)
        self.accelerator.wait_for_everyone()

    def push_what_is_saved(self):
        """Push after a task. A Hub that is away does not end the training: the next task's push makes up for it."""
        try:
            if self.accelerator.is_main_process:
                self._push_the_rest()
            self.push_failure = None
        except PushError as error:
            self.push_failure = error
            say_once(self.accelerator, f"Not pushed yet: {error}")
        self.accelerator.wait_for_everyone()

    def raise_push_failure(self):
        """At the end of a run: say what is not on the Hub, and how to get it there.

        Raises:
            PushError: when the last push failed.
        """
        if self.push_failure is not None:
            final = isinstance(self.push_failure, PushConflictError)
            advice = "" if final else f" Then run: smope push {self.args.output_dir} {self.args.hub_model_id}"
            raise type(self.push_failure)(
                f"All tasks were learned and saved in {self.args.output_dir}, but not all are on the Hub: "
                f"{self.push_failure}{advice}"
            ) from self.push_failure
