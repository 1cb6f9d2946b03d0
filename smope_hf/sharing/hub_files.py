"""The files of a checkpoint on their way to the Hub."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from ..base.printable import printable
from ..models.backbones import EMBEDDED
from ..models.image_processors import find_image_processor
from ..models.pretrained import WEIGHTS, holds_backbone
from ..models.registry import MODEL_CLASSES, config_of
from ..storage.checkpoint_guard import inside
from ..storage.checksums import CHECKSUMS_FILE, check_file, listed, sha256, write_checksums
from ..storage.config_fields import shareable
from ..storage.config_guard import read_config_content
from ..storage.files import write_json
from ..storage.foreign_files import check_regular, read_bytes
from ..storage.unchanged_files import check_unchanged, identities
from .checkpoint import (
    STATISTICS_FILE,
    load_manifest,
    load_state,
    task_folder,
    task_index,
)
from .model_card import PICTURE, card_of, is_hub_id
from .remote_code import auto_map, write_code
from .source import CONFIG_FILE, FILES, LOADED, PROCESSOR

LONGEST_NAME = 80  # characters of a class's name in a commit's message
MARK = "smope-checkpoint: "  # before the hash in a commit's message
CARD_FILE = "README.md"
WITH_BACKBONE = (  # how to ask for it, in Python and on the command line
    "include_backbone (--include-backbone of `smope push`, --hub-include-backbone of `smope train` and `smope "
    "add-classes`)"
)


@dataclass(frozen=True)
class StagedTask:
    """A checkpoint as it is to be on the Hub.

    Args:
        index: of the task, from 0.
        files: path in the repository -> file on this machine.
        title: first line of the commit.
        description: the lines below.
        follows: SHA-256 of the class statistics of the task before; None for the first.
    """

    index: int
    files: dict[str, Path]
    title: str
    description: str
    follows: str | None

    @property
    def tag(self) -> str:
        return task_folder("", self.index).name

    @property
    def mark(self) -> str:
        """What a commit of this task carries, to be recognised by."""
        digest, hashes = hashlib.sha256(), listed(self.files[CHECKSUMS_FILE])
        for path in sorted(self._decisive()):
            digest.update(f"{path} {hashes[path]}\n".encode())
        return f"{MARK}{digest.hexdigest()}"

    def differences(self, remote: dict[str, RepoFile]) -> list[str]:
        """The files that decide what the model is and are not the same there."""
        files = self._decisive()
        there = {path for path in remote if is_checkpoint_file(path) and is_decisive(path)}
        return [path for path in sorted({*files, *there}) if path not in files or not _same(files[path], remote, path)]

    def _decisive(self) -> dict[str, Path]:
        return {path: file for path, file in self.files.items() if is_decisive(path)}


def is_decisive(path: str) -> bool:
    """Whether a file decides what the model is: not those that tell of it or of the run, such as its seconds."""
    return any(Path(path).match(pattern) for pattern in (CONFIG_FILE, *WEIGHTS, STATISTICS_FILE, *PROCESSOR))


def is_checkpoint_file(path: str) -> bool:
    """Whether a path in a repository is one that a checkpoint has."""
    return Path(path).name == path and any(Path(path).match(pattern) for pattern in (*FILES, CARD_FILE, PICTURE))


def check_can_be_shared(config, include_backbone: bool, remote_code: bool):
    """Refuse to push what nobody else could load.

    Args:
        config: of the model, a [`SMoPEConfig`].
        include_backbone: whether the backbone goes along.
        remote_code: whether the code does.

    Raises:
        ValueError: for a base model that is a folder of this machine, or the embedded one where smope_hf is not.
    """
    base = config.base_model_name_or_path
    if include_backbone or base is None:  # without a name the backbone is in the checkpoint
        return
    if base == EMBEDDED and remote_code:
        raise ValueError(
            "remote_code is for machines without smope_hf, but the base model 'embedded' comes with smope_hf. Set "
            f"{WITH_BACKBONE} too."
        )
    if base != EMBEDDED and (not is_hub_id(base) or config.base_model_revision is None):  # the Hub's have a commit
        what = "a folder of this machine" if not is_hub_id(base) else (
            "and no commit of it is recorded: it is a folder of this machine, or was handed to from_backbone() as a "
            "loaded model without revision="
        )  # fmt: skip
        raise ValueError(
            f"The base model is {base!r}, {what}: nobody else could load the model. Set "
            f"{WITH_BACKBONE} to push standalone models, or train on a base model of the Hub."
        )


def check_processor(folder: Path):
    """Refuse to push an image processor that nobody could load, or one that names somebody's code.

    Args:
        folder: of the task; one without an image processor passes.

    Raises:
        ValueError: naming the file and the field.
    """
    if any((folder / name).is_file() for name in PROCESSOR):
        find_image_processor(str(folder))


def stage(
    folder: Path,
    repo_id: str,
    scratch: Path,
    include_backbone: bool,
    remote_code: bool,
    backbone: str | None = None,
    token: str | None = None,
    license: str | None = None,
) -> StagedTask:
    """Prepare a task's folder for the Hub; the folder itself is not changed.

    Args:
        folder: of the task.
        repo_id: where it goes; named in the card.
        scratch: folder for the files that differ.
        include_backbone: put the backbone into the weights; where it is in there already, it goes along in any case.
        remote_code: add the model's code.
        backbone: where the base model is, if not where the checkpoint says.
        token: to load the base model with.
        license: for the card.

    Raises:
        ValueError: when a file of the folder is not the one that was saved, or changes meanwhile, or leads out of the
            folder, such as a link to one that is nobody's business.
        OSError: for one that is no regular file.
    """
    scratch.mkdir(parents=True)
    files = {path.name: inside(folder, path) for path in sorted(folder.iterdir()) if is_checkpoint_file(path.name)}
    for path in files.values():
        check_regular(path)
    seen = identities(file for file in files.values() if file.suffix in LOADED)
    for file in seen:  # its hash is taken anew below, which must not make a damaged file a sound one
        check_file(file)
    config = config_of(folder)
    model_class = MODEL_CLASSES[config.model_type]
    model_files = folder
    if include_backbone and config.base_model_name_or_path is not None:  # without a name the backbone is in there
        files = {path: file for path, file in files.items() if not any(Path(path).match(w) for w in WEIGHTS)}
        place = None if holds_backbone(folder) else backbone
        model = model_class.from_pretrained(folder, backbone=place, **({"token": token} if token else {}))
        if not is_hub_id(config.base_model_name_or_path) and config.base_model_name_or_path != EMBEDDED:
            model.config.base_model_name_or_path = None  # a folder's place is nobody's business
        model.save_pretrained(scratch, include_backbone=True)
        model_files = scratch
    content = read_config_content(model_files / CONFIG_FILE)
    shared = shareable(content, config.model_type) | ({"auto_map": auto_map(model_class)} if remote_code else {})
    if shared != content:
        write_json(scratch / CONFIG_FILE, shared)
    if remote_code:
        files |= write_code(model_class, scratch)
    state, manifest = load_state(folder), load_manifest(folder)
    card = card_of(folder, repo_id=repo_id, standalone=include_backbone, remote_code=remote_code, license=license)
    (scratch / CARD_FILE).write_text(card, encoding="utf-8")
    files |= {path.name: path for path in sorted(scratch.iterdir()) if is_checkpoint_file(path.name)}
    write_checksums(scratch, files.values())
    check_unchanged(seen)
    files[CHECKSUMS_FILE] = scratch / CHECKSUMS_FILE
    names = manifest["tasks"][-1]["class_names"]
    shown = ", ".join(printable(name, LONGEST_NAME) for name in names[:10]) + (
        f" and {len(names) - 10} more" if len(names) > 10 else ""
    )
    index = task_index(folder.name)
    title = f"Learn task {index + 1}: {len(names)} {'class' if len(names) == 1 else 'classes'}"
    return StagedTask(index, files, title, shown, state["follows"])


def remote_files(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    """The files of a commit, by path."""
    tree = api.list_repo_tree(repo_id, revision=commit, recursive=True)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def statistics_hash(api: HfApi, repo_id: str, commit: str) -> str | None:
    """SHA-256 of the class statistics in a commit, None where it has none."""
    entry = remote_files(api, repo_id, commit).get(STATISTICS_FILE)
    if entry is None or entry.lfs is not None:
        return None if entry is None else entry.lfs.sha256
    return sha256(Path(api.hf_hub_download(repo_id, STATISTICS_FILE, revision=commit)))


def _same(file: Path, remote: dict[str, RepoFile], path: str) -> bool:
    entry = remote.get(path)
    if entry is None or entry.size != file.stat().st_size:
        return False
    return entry.lfs.sha256 == sha256(file) if entry.lfs is not None else entry.blob_id == _git_sha1(file)


def _git_sha1(file: Path) -> str:
    content = read_bytes(file)
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
