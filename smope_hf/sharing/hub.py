"""A run on the Hub: each task one atomic commit and a tag (docs/hub.md).

Pushing is a loop of looking and acting: look where the repository stands, do the one next thing, look again. Whatever
is cut off in between, by a crash here or a lost answer from there, the next look finds it done or not done. Nothing is
kept on this side about it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationDelete, GitCommitInfo, HfApi
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from ..base.home import expanded
from ..base.printable import printable
from ..models.registry import config_of
from ..storage.checksums import CHECKSUMS_FILE, listed
from .checkpoint import saved_tasks, task_index
from .hub_answers import LONGEST_ANSWER, asked_to_wait, explain, read_answer
from .hub_files import (
    MARK,
    StagedTask,
    check_can_be_shared,
    check_processor,
    is_checkpoint_file,
    remote_files,
    stage,
    statistics_hash,
)
from .source import find_checkpoint as find_checkpoint
from .source import local_checkpoint as local_checkpoint
from .staged_upload import ChangedFileError, additions

RETRY_DELAYS = (1, 2, 4, 8, 16, 32)  # seconds
PASSING = (408, 429, 500, 502, 503, 504)  # answers that another attempt may change
BRANCH = "main"


class PushError(RuntimeError):
    """The Hub refused, or could not be reached. What was there is unchanged or whole."""


class PushConflictError(PushError):
    """The repository holds what this run did not put there. Nothing was overwritten."""


@dataclass(frozen=True)
class PushedTask:
    """A task as it is on the Hub.

    Args:
        tag: "task-01" and so on.
        commit: the commit that the tag names.
        url: page of the tag.
        created: whether this push put it there; False when it was there already.
    """

    tag: str
    commit: str
    url: str
    created: bool


def push_run(
    run_dir: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    include_backbone: bool = False,
    backbone: str | None = None,
    remote_code: bool = False,
    onto: str | None = None,
    license: str | None = None,
    first: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[PushedTask]:
    """Push every task of a run that the repository does not have yet. Running it again changes nothing.

    Args:
        run_dir: folder of a run, with task-NN folders.
        repo_id: owner/name, or name for one of your own; made where it is missing.
        private: make it private when it is made.
        token: Default: the one of `hf auth login` or HF_TOKEN.
        include_backbone: push standalone models instead of experts and head alone. Tasks that were saved standalone,
            such as those learned onto a standalone model, are standalone in any case.
        backbone: where the base model to include is, when it is not where the checkpoints say.
        remote_code: push the model's code too, for `trust_remote_code=True` on machines without smope_hf.
        onto: a commit of somebody else at the head of main that this push may build on; its files stay where a
            checkpoint has none of that name.
        license: of the models, for their cards, such as "apache-2.0". Default: none is claimed, but for the embedded
            backbone its own.
        first: index of the task to begin with, from 0, where those before are known to be there. Default: the first
            one that the folder holds.
        report: told each step in a line.

    Returns:
        What is on the Hub now, by task.

    Raises:
        FileNotFoundError: when the folder holds no task.
        ValueError: when nobody else could load the model as it is; the message says which option helps. Also for a
            `backbone` that is not to be included, and an image processor that is not allowed.
        PushConflictError: when the repository holds other commits, or other models under these tags.
        PushError: when the Hub refuses or cannot be reached, after some attempts.
    """
    run_dir, backbone = expanded(run_dir), expanded(backbone)
    folders = saved_tasks(run_dir, first)
    if not folders:
        raise FileNotFoundError(f"{run_dir} holds no task-NN folder. Give the folder of a run, its --output_dir.")
    if backbone is not None and not include_backbone:
        raise ValueError(
            f"backbone = {backbone!r} is not allowed without include_backbone (--include-backbone): a checkpoint "
            "without its base model needs none to be pushed."
        )
    for folder in folders:
        check_can_be_shared(config_of(folder), include_backbone, remote_code)
        check_processor(folder)
    repo_id = open_repository(repo_id, private=private, token=token, report=report)
    pushed: list[PushedTask] = []
    with TemporaryDirectory() as scratch:
        for folder in folders:
            place = Path(scratch) / folder.name
            options = {"backbone": backbone, "token": token, "license": license}
            task = stage(folder, repo_id, place, include_backbone, remote_code, **options)
            push = _Push(HfApi(token=token), repo_id, task, onto, report)
            pushed.append(push.run())
    return pushed


def task_tags(api: HfApi, repo_id: str) -> dict[int, str]:
    """The tasks that a repository has learned: index, from 0, and commit."""
    tags = {task_index(tag.name): tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    return {index: commit for index, commit in tags.items() if index is not None}


def check_can_follow(api: HfApi, repo_id: str, tags: dict[int, str], index: int, follows: str | None) -> str | None:
    """Whether a task may be the next of a repository.

    Args:
        tags: of the repository, from `task_tags`.
        index: of the task, from 0.
        follows: SHA-256 of the class statistics of the task before it.

    Returns:
        The commit of the task before; None for a repository that has learned none.

    Raises:
        PushConflictError: when the repository's last task is not the one before.
    """
    if not tags:
        return None
    last = max(tags)
    names = {number: f"task-{number + 1:02d}" for number in (*tags, index)}
    if last != index - 1:
        raise PushConflictError(
            f"{repo_id} holds {', '.join(names[number] for number in sorted(tags))}, so {names[index]} cannot be its "
            "next. Nothing was overwritten. Push to another repository."
        )
    if statistics_hash(api, repo_id, tags[last]) != follows:
        raise PushConflictError(
            f"{names[last]} in {repo_id} is not the model that {names[index]} went on from. Nothing was overwritten. "
            "Push to a repository of its own."
        )
    return tags[last]


def check_next(repo_id: str, index: int, follows: str | None, token: str | None = None):
    """Find out before a task is learned whether it will have a place; arguments as for `check_can_follow`.

    Raises:
        PushError: as `push_run` would raise it afterwards.
    """
    api = HfApi(token=token)

    def look() -> str:
        tags = task_tags(api, repo_id)
        if index in tags:
            raise PushConflictError(
                f"{repo_id} has a task-{index + 1:02d} already, which another run has learned. Push to another "
                "repository."
            )
        check_can_follow(api, repo_id, tags, index, follows)
        return ""

    _patiently(look, repo_id, lambda line: None)


def open_repository(
    repo_id: str, *, private: bool = False, token: str | None = None, report: Callable[[str], None] = lambda line: None
) -> str:
    """Make the repository where it is missing, and find out whether it can be written to.

    Returns:
        Its full name, owner/name.

    Raises:
        PushError: without a token that may write to it, when the Hub cannot be reached, or when a private one was
            asked for and a public one exists.
    """
    api = HfApi(token=token)
    create = lambda: api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id  # noqa: E731
    repo_id = _patiently(create, repo_id, report)
    if private and _patiently(lambda: str(api.repo_info(repo_id).private), repo_id, report) != "True":
        raise PushConflictError(
            f"{repo_id} exists and is public, and private was asked for. Nothing was pushed. Make it private on the "
            "Hub, or take another name."
        )
    return repo_id


class _Push:
    """One task on its way."""

    def __init__(self, api: HfApi, repo_id: str, task: StagedTask, onto: str | None, report):
        self.api, self.repo_id, self.task, self.onto, self.report = api, repo_id, task, onto, report
        self.created = False

    def run(self) -> PushedTask:
        commit = _patiently(self._advance, self.repo_id, self.report)
        url = f"{self.api.endpoint}/{self.repo_id}/tree/{self.task.tag}"
        self.report(f"{self.task.tag}: {'pushed' if self.created else 'there already'}, commit {commit[:8]}")
        return PushedTask(self.task.tag, commit, url, self.created)

    def _advance(self) -> str:
        """Look, and do what is missing; gives the tagged commit. Safe to repeat from any state."""
        tags = task_tags(self.api, self.repo_id)
        if self.task.index in tags:
            self._check_tagged(tags[self.task.index])
            return tags[self.task.index]
        before = check_can_follow(self.api, self.repo_id, tags, self.task.index, self.task.follows)
        newest_first = self.api.list_repo_commits(self.repo_id, revision=BRANCH)
        commit = self._find_untagged(newest_first, before)
        if commit is None:
            self._check_head(newest_first, before)
            commit = self._commit(parent=newest_first[0].commit_id)
        self.created = True
        self.api.create_tag(self.repo_id, tag=self.task.tag, revision=commit)
        return commit

    def _check_tagged(self, commit: str):
        different = self.task.differences(remote_files(self.api, self.repo_id, commit))
        if different:
            raise PushConflictError(
                f"{self.repo_id} has a tag {self.task.tag} already, of another model or of this one pushed with other "
                f"options: {', '.join(different)} differ. Nothing was overwritten. Push with the options of the first "
                "time (--include-backbone, --remote-code), or to another repository."
            )

    def _find_untagged(self, newest_first: list[GitCommitInfo], before: str | None) -> str | None:
        """A commit of this very task whose answer or tag was lost."""
        for commit in newest_first:
            if commit.commit_id == before:
                return None
            if self.task.mark in f"{commit.title}\n{commit.message}":
                if not self.task.differences(remote_files(self.api, self.repo_id, commit.commit_id)):
                    return commit.commit_id
        return None

    def _check_head(self, newest_first: list[GitCommitInfo], before: str | None):
        """Build only on the task before, on a repository that is still empty, or on what the user has named."""
        head = newest_first[0]
        if head.commit_id == before:
            return
        a_task = MARK in f"{head.title}\n{head.message}"
        if head.commit_id == self.onto and not a_task:
            return
        if before is None and set(remote_files(self.api, self.repo_id, head.commit_id)) <= {".gitattributes"}:
            return
        author = f" by {printable(', '.join(head.authors), LONGEST_ANSWER)}" if head.authors else ""
        title = printable(head.title, LONGEST_ANSWER)
        advice = "Push to another repository."
        if not a_task:
            advice = (
                f"Look at it; then either keep it and build on it (smope push ... --onto {head.commit_id}), or push "
                "to another repository."
            )
        raise PushConflictError(
            f"{self.repo_id} has moved on: its newest commit is {head.commit_id} ({title!r}{author}), which is "
            f"not {'the task before ' + self.task.tag if before else 'of this run'}. Nothing was overwritten. {advice}"
        )

    def _commit(self, parent: str) -> str:
        stale = [path for path in remote_files(self.api, self.repo_id, parent) if is_checkpoint_file(path)]
        try:
            operations: list = additions(self.task.files, listed(self.task.files[CHECKSUMS_FILE]))
        except ChangedFileError as error:
            raise PushError(str(error)) from error
        operations += [CommitOperationDelete(path) for path in stale if path not in self.task.files]
        return self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=self.task.title,
            commit_description=f"{self.task.description}\n\n{self.task.mark}",
            revision=BRANCH,
            parent_commit=parent,
        ).oid


def _patiently(act: Callable[[], str], repo_id: str, report: Callable[[str], None]) -> str:
    """Act; after an answer that may change, or none at all, wait and act again."""
    for delay in (*RETRY_DELAYS, None):
        try:
            return act()
        except PushError:
            raise
        except OfflineModeIsEnabled as error:
            raise PushError("HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it, and push again.") from error
        except (HTTPError, OSError, RuntimeError) as error:
            status, problem = read_answer(error)
            if status is None and problem is None:
                raise
            passing = status in PASSING or status in (409, 412) or status is None
            if not passing or delay is None:
                raise PushError(explain(status, problem, repo_id)) from error
            wait = delay if status not in (409, 412) else 0.1
            report(f"The Hub {f'answered {status}' if status else 'did not answer'}; trying again in {wait} s")
            time.sleep(max(wait, asked_to_wait(error)))
    raise AssertionError("the last attempt returns or raises")
