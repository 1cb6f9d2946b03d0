"""What a run has reached, and whether a saved one is the same run."""

import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, distributed

from ..heads.alignment import ClassStatistics
from ..metrics.accuracy_matrix import AccuracyMatrix
from ..models.configuration_incremental import IncrementalConfig
from ..settings.training_args import ContinualTrainingArguments
from ..storage.safe_json import shown
from ..storage.version_changes import version_change

PACKAGES = ("smope_hf", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow")
_MOST_NAMED = 12
GROWING = {"backbone_config", "base_model_name_or_path", "base_model_revision", "tasks", "output_router_scores"}


@dataclass
class RunState:
    """What a run has reached.

    Args:
        statistics: of every class seen.
        usage_history: for each task the usage counts (L, H, E) that its images added.
        matrix: accuracy matrix so far.
        seconds: for each task the wall time of each stage.
        continued_from: the checkpoint that the run went on from: its Hub name and commit (None for a folder), its
            number of tasks. None for a run from the start.
        follows: SHA-256 of the class statistics of the task before, by which a push knows that one task follows
            another; None before the first is saved.
        task_confusion: for each task how many of its test images the model of now takes for each task's classes; None
            for a task without test images.
        logged_steps: training steps of all tasks whose losses were logged.
        made_with: versions of the saved state that is gone on from, until they are compared; None for none.
        version_changes: each place where the run went on under other versions; see `version_changes.version_change`.
    """

    statistics: ClassStatistics
    usage_history: list[Tensor] = field(default_factory=list)
    matrix: AccuracyMatrix = field(default_factory=AccuracyMatrix)
    seconds: list[dict[str, float]] = field(default_factory=list)
    continued_from: dict | None = None
    follows: str | None = None
    task_confusion: list[list[int] | None] = field(default_factory=list)
    logged_steps: int = 0
    made_with: dict[str, str] | None = None
    version_changes: list[dict] = field(default_factory=list)

    def begin_task(self) -> dict[str, float]:
        """Open the next task's record of seconds."""
        self.seconds.append({})
        return self.seconds[-1]

    @classmethod
    def from_saved(cls, saved: dict, statistics: ClassStatistics, usage_history: list[Tensor]) -> "RunState":
        matrix = AccuracyMatrix.from_json(saved["accuracy_matrix"])
        state = cls(statistics, usage_history, matrix, saved["seconds_by_task"], saved.get("continued_from"))
        state.task_confusion = saved.get("task_confusion") or []
        state.take_versions(saved)
        return state

    def take_versions(self, saved: dict):
        """Go on from a saved state as far as versions are concerned: those it was written with, and its changes."""
        self.made_with = dict(saved.get("versions") or {})
        self.version_changes = list(saved.get("version_changes") or [])

    def compare_versions(self, behind_task: int, step: int | None) -> dict | None:
        """Keep and give what differs between the saved state and now, once; arguments as for `version_change`."""
        change = None if self.made_with is None else version_change(self.made_with, versions(), behind_task, step)
        self.made_with = None
        if change is not None:
            self.version_changes.append(change)
        return change


def check_same_run(
    folder: Path,
    saved: dict,
    recipe: dict,
    protocol_hash: str,
    saved_config,
    config: IncrementalConfig,
):
    """Refuse to go on with a run under other settings, on other tasks or with another model.

    What a later version of the package has added, and the saved run lacks, counts as left at its default.

    Args:
        folder: in the run's, where `saved` was found.
        saved: its `recipe` and `protocol_hash`.
        recipe: of now.
        protocol_hash: of now.
        saved_config: the config of the saved model, or whatever has its `comparable_fields`.
        config: of the model of now.

    Raises:
        ValueError: naming every difference.
    """
    settings = ContinualTrainingArguments().recipe() | saved["recipe"]
    different = [
        f"{name} was {shown(settings.get(name))} and is {shown(recipe.get(name))}"
        for name in sorted({*recipe, *saved["recipe"]})
        if settings.get(name) != recipe.get(name)
    ]
    defaults = type(config)()
    for name in sorted(config.own_fields() - GROWING):
        before, now = getattr(saved_config, name, getattr(defaults, name)), getattr(config, name)
        if before != now:
            different.append(f"{name} was {shown(before)} and is {shown(now)}")
    if saved["protocol_hash"] != protocol_hash:
        different.append("the tasks are others (their manifest's protocol_hash differs: data, class order or split)")
    if different:
        more = f" and {len(different) - _MOST_NAMED} more" if len(different) > _MOST_NAMED else ""
        raise ValueError(
            f"The run in {folder.parent} cannot be resumed with other settings: "
            f"{'; '.join(different[:_MOST_NAMED])}{more}, as {folder.name} says. Give the "
            "settings it was started with, or another output_dir."
        )


def comparable_fields(config: IncrementalConfig) -> dict:
    """The fields of a model's config that `check_same_run` compares, by name, as JSON."""
    return {name: getattr(config, name) for name in sorted(config.own_fields() - GROWING)}


def model_settings(config: IncrementalConfig) -> dict:
    """The settings of a model that decide a result, by name, as JSON: all but its backbone's own and its classes."""
    left_out = {"backbone_config", "tasks", "output_router_scores"}
    return {name: getattr(config, name) for name in sorted(config.own_fields() - left_out)}


def versions() -> dict[str, str]:
    """What a result comes from, by name: Python and packages, processor or GPU, CPU threads and processes."""
    processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    found = {"python": platform.python_version(), "processor": processor()}
    found |= {"threads": str(torch.get_num_threads()), "processes": str(processes)}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def processor() -> str:
    """The GPU, or the processor and the instructions that torch has there, as "AMD EPYC, AVX512, avx512_bf16".

    On another kind sums are rounded in another order, and one seed gives slightly other weights.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    known = torch.cpu.get_capabilities()
    of_bfloat16 = [name for name in ("avx512_bf16", "amx_bf16") if known.get(name)]
    name = known.get("cpu_name", platform.machine())
    return ", ".join([name, torch.backends.cpu.get_cpu_capability(), *of_bfloat16])
