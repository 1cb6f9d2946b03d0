"""The folder of one task: written whole or not at all, read from safetensors and JSON alone (docs/hub.md)."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import CONFIG_NAME

from ..heads.alignment import ClassStatistics
from ..models.backbones import head_shape
from ..models.modeling_incremental import IncrementalClassifier
from ..models.modeling_smope import SMoPEForImageClassification
from ..models.registry import config_of
from ..routing.usage import ROUTING_FILE
from ..storage.checkpoint_guard import inside
from ..storage.checksums import check_file, sha256, update_checksums
from ..storage.files import remove_temporary, sync, write_json
from ..storage.unchanged_files import check_unchanged, identities
from .model_card import write_card
from .run_files import FORMAT_VERSION, MANIFEST_FILE, STATE_FILE
from .run_files import load_manifest as load_manifest
from .run_files import load_state as load_state
from .statistics_file import read_statistics

STATISTICS_FILE = "class_statistics.safetensors"


def task_folder(output_dir: str | os.PathLike, index: int) -> Path:
    """Folder of the task with this index: task-01 for 0."""
    return Path(output_dir) / f"task-{index + 1:02d}"


def missing_to_go_on(names: Iterable[str], place: str = "") -> str | None:
    """A sentence on the files without which a checkpoint cannot be taught more classes; None where all are there.

    Args:
        names: of the files that the checkpoint has.
        place: of the checkpoint, as it goes on behind the names, such as " in runs/model".
    """
    missing = sorted({STATISTICS_FILE, STATE_FILE, MANIFEST_FILE}.difference(names))
    if not missing:
        return None
    return (
        f"There is no {' and no '.join(missing)}{place}: the model cannot be taught more classes. Take the task-NN "
        "folder that training wrote."
    )


def saved_tasks(output_dir: str | os.PathLike, first: int | None = None) -> list[Path]:
    """The task folders of a run, in order.

    Args:
        output_dir: folder of the run.
        first: index of the task to begin with. Default: the first one there is; a run that went on from another
            one's checkpoint has no task-01.

    Raises:
        ValueError: when a task is missing between two that are there.
    """
    found = [task_index(path.parent.name) for path in Path(output_dir).glob(f"task-*/{STATE_FILE}")]
    indices = sorted(index for index in found if index is not None and index >= (first or 0))
    start = first if first is not None else min(indices, default=0)
    for expected, index in enumerate(indices, start):
        if index != expected:
            missing, there = (task_folder("", number).name for number in (expected, index))
            raise ValueError(
                f"{output_dir} holds {there}, but not {missing} before it. Put that folder back, or move the later "
                "ones away if the run is to go on without them."
            )
    return [task_folder(output_dir, index) for index in indices]


def task_index(name: str) -> int | None:
    """Index of the task that a folder or tag is named for: 0 for task-01; None for other names."""
    number = name.removeprefix("task-")
    index = int(number) - 1 if number.isascii() and number.isdigit() else -1
    return index if index >= 0 and task_folder("", index).name == name else None


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes it when the block ends, and vanishes when the block fails.

    Raises:
        FileExistsError: when the target exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists already. Give another output_dir, or resume that run.")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    beside.mkdir()
    try:
        yield beside
        readable = beside.stat().st_mode & 0o666  # safetensors would keep its files from everybody else
        for path in sorted(beside.rglob("*")):
            if path.is_file():
                path.chmod(readable)
                sync(path)
        sync(beside)
        os.rename(beside, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def remove_partial(output_dir: str | os.PathLike):
    """Delete what a killed process left half written."""
    for path in Path(output_dir).glob(".task-*.partial"):
        shutil.rmtree(path)
    for folder in (Path(output_dir), *Path(output_dir).glob("*/")):  # of plots/ and other folders beside the tasks'
        remove_temporary(folder)


def routing_report(model: SMoPEForImageClassification, usage_history: list[Tensor]) -> dict:
    """What a person wants to know of the routing.

    Args:
        model: the model after its last task.
        usage_history: for each task the counts (L, H, E) that its images added.
    """
    counts = torch.stack([experts.usage_counts.cpu() for experts in model.prefix_experts])  # (L, H, E)
    marked = torch.stack([experts.frequently_used.cpu() for experts in model.prefix_experts])
    config = model.config
    layers = [
        {
            "layer": layer,
            "dead_experts": [_positions(head == 0) for head in counts[index]],
            "frequently_used_experts": [_positions(head) for head in marked[index]],
            "usage_share": _shares(counts[index]),
            "usage_share_by_task": [_shares(task[index]) for task in usage_history],
        }
        for index, layer in enumerate(config.prompt_layers)
    ]
    return {
        "format_version": FORMAT_VERSION,
        "num_experts": config.num_experts,
        "top_k": config.top_k,
        "noise_epsilon": config.noise_epsilon,
        "routing": config.routing,
        "images_by_task": [int(task[0, 0].sum()) // config.top_k for task in usage_history],
        "dead_share": round((counts == 0).double().mean().item(), 6),
        "frequently_used_share": round(marked.double().mean().item(), 6),
        "layers": layers,
    }


def _positions(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _shares(counts: Tensor) -> list[list[float]]:
    shares = counts.double() / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return [[round(share, 6) for share in head] for head in shares.tolist()]


def save_task(
    folder: Path,
    model: IncrementalClassifier,
    image_processor,
    statistics: ClassStatistics,
    usage_history: list[Tensor],
    state: dict,
    manifest: dict,
    add_to: Callable[[Path], None] = lambda folder: None,
):
    """Write a task's folder: the model, what is needed to go on, and what a person reads.

    Args:
        folder: must not exist yet.
        statistics: of every class seen.
        usage_history: for each task the counts (L, H, E) that its images added; empty for a model without experts.
        state: the run so far, as JSON.
        manifest: of the tasks learned so far.
        add_to: told the folder that is to become the task's, before its card is written: it may put pictures there.

    Raises:
        FileExistsError: when the folder exists.
        OSError: when it cannot be written; nothing of it is left, and the message says what to do.
    """
    try:
        _write_task(folder, model, image_processor, statistics, usage_history, state, manifest, add_to)
    except FileExistsError:
        raise
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{folder} could not be saved: {error}. Nothing of it was left, and what was saved before is whole. Make "
            "room or give the right to write there, and go on with the same command and --resume."
        ) from error


def _write_task(folder, model, image_processor, statistics, usage_history, state, manifest, add_to):
    with whole_folder(folder) as beside:
        model.save_pretrained(beside)
        image_processor.save_pretrained(beside)
        tensors = statistics.to_tensors()
        if model.records_usage:
            tensors["usage_by_task"] = torch.stack(usage_history)
            write_json(beside / ROUTING_FILE, routing_report(model, usage_history))
        save_file({name: value.contiguous() for name, value in tensors.items()}, beside / STATISTICS_FILE)
        write_json(beside / STATE_FILE, {"format_version": FORMAT_VERSION, **state})
        write_json(beside / MANIFEST_FILE, manifest)
        add_to(beside)
        write_card(beside)
        update_checksums(beside)


def load_statistics(folder: Path) -> tuple[ClassStatistics, list[Tensor]]:
    """Class statistics and usage history of a task's folder, checked against its config.json.

    Raises:
        ValueError: for broken files or statistics that do not fit the config; the message names the tensor.
    """
    inside(folder, Path(folder) / CONFIG_NAME)
    config = config_of(folder)
    heads, _ = head_shape(config.backbone_config)
    seen = identities([Path(folder) / STATISTICS_FILE])
    tensors = read_statistics(Path(folder), STATISTICS_FILE, config, heads)
    check_file(Path(folder) / STATISTICS_FILE)
    check_unchanged(seen)
    usage = list(tensors.pop("usage_by_task", ()))
    return ClassStatistics(**tensors), usage


def statistics_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's class statistics: no two runs have the same."""
    return sha256(folder / STATISTICS_FILE)


def check_own_run(output_dir: str | os.PathLike, num_known: int, follows: str | None):
    """Refuse a folder whose earlier tasks are of another run than the one gone on from; none there is fine.

    Args:
        output_dir: folder for the new tasks.
        num_known: tasks that the model knows, at least 1.
        follows: hash of the class statistics of the last of them; see `statistics_hash`.

    Raises:
        FileExistsError: when task `num_known` of the folder has other statistics, or only tasks before it are there.
    """
    folders = [task_folder(output_dir, index) for index in range(num_known)]
    earlier, last = [folder for folder in folders if folder.exists()], folders[-1]
    if earlier and not ((last / STATISTICS_FILE).is_file() and statistics_hash(last) == follows):
        raise FileExistsError(
            f"{output_dir} holds {earlier[-1].name} of another run than the one that is gone on from, whose "
            f"{last.name} the new tasks follow. Give a folder of their own as output_dir, or the folder of that run."
        )
