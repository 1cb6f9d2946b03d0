"""A checkpoint that was named: in a folder of this machine, or had from the Hub."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from ..base.home import expanded
from ..base.printable import printable
from ..models.modeling_incremental import IncrementalClassifier
from ..models.pretrained import WEIGHTS
from ..models.registry import MODEL_CLASSES, config_of
from ..storage.checksums import CHECKSUMS_FILE, check_file
from ..storage.safe_json import read_json
from ..storage.unchanged_files import Identity, check_unchanged, identities
from .checkpoint import MANIFEST_FILE, ROUTING_FILE, STATE_FILE, STATISTICS_FILE, saved_tasks

CONFIG_FILE = "config.json"
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
FILES = (CONFIG_FILE, *WEIGHTS, STATISTICS_FILE, ROUTING_FILE, STATE_FILE, MANIFEST_FILE, *PROCESSOR, CHECKSUMS_FILE)
LOADED = (".json", ".safetensors")  # endings of what a model is loaded from


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint is.

    Args:
        folder: with its files, on this machine.
        name: what to load the model by: the Hub id, or the folder.
        commit: on the Hub; None for a folder.
        seen: its files as they were when it was found.
    """

    folder: Path
    name: str
    commit: str | None
    seen: dict[Path, Identity] = field(default_factory=dict, repr=False, compare=False)

    def load_model(self, **options) -> IncrementalClassifier:
        """The model; options as for `from_pretrained`.

        Raises:
            ValueError: also when a file of the checkpoint has changed since it was found.
        """
        model_class = MODEL_CLASSES[config_of(self.folder).model_type]
        model = model_class.from_pretrained(self.name, revision=self.commit, **options)
        self.check_unchanged()
        return model

    def check_unchanged(self):
        """Refuse a checkpoint of which a file has changed since it was found: its parts may be of two models.

        Raises:
            ValueError: naming the file.
        """
        check_unchanged(self.seen)

    def __str__(self) -> str:
        return self.name if self.commit is None else f"{self.name} at commit {self.commit[:12]}"


def find_checkpoint(
    name_or_path: str | Path, revision: str | None = None, token: str | None = None
) -> CheckpointSource:
    """Find a checkpoint on this machine, or download its files from the Hub; never anything but safetensors and JSON.

    Args:
        name_or_path: a task's folder, a run's folder (its last task, or the one that `revision` names), or a Hub id.
        revision: branch, tag (such as "task-03") or commit.
        token: for private repositories. Default: the one of `hf auth login` or HF_TOKEN.

    Raises:
        OSError: when there is no such checkpoint; the message says what was looked for.
        ValueError: when one of its JSON files is broken or hostile; the message names the file and the field.
    """
    path = expanded(Path(name_or_path))
    source = _find_folder(path, revision) if path.is_dir() else _download(name_or_path, revision, token)
    source = replace(source, seen=identities(file for file in source.folder.iterdir() if file.suffix in LOADED))
    for file in sorted(source.folder.glob("*.json")):  # before libraries that trust them read them
        read_json(file)
        if file.name in PROCESSOR:
            check_file(file)
    return source


def _download(name_or_path: str | Path, revision: str | None, token: str | None) -> CheckpointSource:
    if str(name_or_path).startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(f"{name_or_path} is not a folder. Give a task's or a run's folder, or a Hub id.")
    try:
        folder = snapshot_download(str(name_or_path), revision=revision, allow_patterns=list(FILES), token=token)
    except RevisionNotFoundError as error:
        raise OSError(f"{name_or_path} could not be had from the Hub: it has no revision {revision!r}.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, ValueError) as error:
        reason = printable(str(error).strip().splitlines()[0], 500).rstrip(".")
        raise OSError(
            f"{str(name_or_path)!r} is no folder here and could not be had from the Hub ({reason}). Check the name; a "
            "private repository needs `hf auth login` or HF_TOKEN."
        ) from error
    return CheckpointSource(Path(folder), str(name_or_path), Path(folder).name)


def _find_folder(path: Path, revision: str | None) -> CheckpointSource:
    tasks = {folder.name: folder for folder in saved_tasks(path)}
    if tasks:
        if revision is not None and revision not in tasks:
            raise FileNotFoundError(f"{path} holds {', '.join(tasks)}, but no {revision!r}.")
        folder = tasks[revision] if revision else list(tasks.values())[-1]
        return CheckpointSource(folder, str(folder), None)
    if revision is not None:
        raise FileNotFoundError(f"{path} is one checkpoint on this machine and has no revision {revision!r}.")
    if not (path / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{path} holds neither task-NN folders nor a {CONFIG_FILE}: it is no checkpoint.")
    return CheckpointSource(path, str(path), None)


def local_checkpoint(name_or_path: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder with a checkpoint's files, downloaded first where it is on the Hub; see `find_checkpoint`."""
    return find_checkpoint(name_or_path, revision, token).folder
