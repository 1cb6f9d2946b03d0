"""What was checked of a checkpoint is what is loaded: a file that changes is refused, or changes nothing."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from edits import EDITS
from runs import read, save_backbone, tiny_stream, tiny_trainer

from smope_hf import (
    ContinualTrainer,
    SMoPEForImageClassification,
    checkpoint,
    continuation,
    pretrained,
    run_files,
    staged_upload,
    state_folder,
)
from smope_hf.sharing.checkpoint import load_manifest, load_state, load_statistics
from smope_hf.sharing.hub_files import stage
from smope_hf.sharing.source import find_checkpoint
from smope_hf.sharing.staged_upload import ChangedFileError, additions
from smope_hf.storage.checksums import CHECKSUMS_FILE, listed, update_checksums
from smope_hf.storage.state_folder import INDEX_FILE, read_tensors, write_state
from smope_hf.storage.unchanged_files import check_unchanged, identities


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_trainer(save_backbone(folder / "backbone"), folder / "run", tiny_stream(max_tasks=2), epochs=1).train()
    return folder / "run"


@pytest.fixture
def task(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run") / "task-02"
    time.sleep(0.02)  # a few ticks of the file system's clock
    return folder


def put_in_place(file: Path, content: bytes):
    """Write into the file that is there: it has the same inode afterwards, and another time."""
    file.write_bytes(content)
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))


def put_beside(file: Path, content: bytes):
    other = file.with_name(f"new-{file.name}.tmp")
    other.write_bytes(content)
    shutil.copystat(file, other)  # the same time, another inode
    os.replace(other, file)


LOADERS = {  # file -> what loads it, and the function by which it reads it
    "config.json": (SMoPEForImageClassification.from_pretrained, pretrained, "read_config"),
    "model.safetensors": (SMoPEForImageClassification.from_pretrained, pretrained, "read_tensors"),
    "class_statistics.safetensors": (load_statistics, checkpoint, "read_statistics"),
    "trainer_state.json": (load_state, run_files, "read_json"),
    "manifest.json": (load_manifest, run_files, "read_json"),
}


@pytest.mark.parametrize("put", [put_in_place, put_beside])
@pytest.mark.parametrize("name", LOADERS)
def test_a_file_that_is_another_one_while_it_is_read_is_refused(task, monkeypatch, name, put):
    """Checked by its hash is the file that was saved: the other one was there while it was read alone."""
    load, module, function = LOADERS[name]
    file, right = task / name, (task / name).read_bytes()
    EDITS[name][0](task)
    other, reader = file.read_bytes(), getattr(module, function)
    file.write_bytes(right)
    time.sleep(0.02)

    def read_other(*arguments, **options):
        put(file, other)
        try:
            return reader(*arguments, **options)
        finally:
            put(file, right)

    monkeypatch.setattr(module, function, read_other)
    with pytest.raises(ValueError, match=f"^{file} was changed while the checkpoint was read.*load it again"):
        load(task)
    monkeypatch.undo()
    load(task)


@pytest.mark.parametrize("include_backbone", [False, True])
def test_a_loaded_model_does_not_change_with_its_file(task, tmp_path, include_backbone):
    model = SMoPEForImageClassification.from_pretrained(task)
    model.save_pretrained(tmp_path / "model", include_backbone=include_backbone)
    model = SMoPEForImageClassification.from_pretrained(tmp_path / "model")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = tmp_path / "model" / "model.safetensors"
    with open(file, "r+b") as opened:  # as a tool that copies into the file that is there
        start = 8 + int.from_bytes(opened.read(8), "little")
        opened.seek(start)
        opened.write(b"\x11" * (file.stat().st_size - start))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "manifest.json"])
def test_a_checkpoint_that_changes_between_finding_and_loading_is_refused(task, name):
    source = find_checkpoint(task)
    put_beside(task / name, (task / name).read_bytes())
    with pytest.raises(ValueError, match=f"^{task / name} was changed while the checkpoint was read"):
        source.load_model()
    assert find_checkpoint(task).load_model().config.num_labels == 4


def test_parts_of_two_checkpoints_are_not_mixed(task, tmp_path, monkeypatch):
    """Each file fits its hash, the old ones and the new ones."""
    classes, load = list(tiny_stream()[2].class_names), continuation.load_statistics

    def replaced(folder):
        found = load(folder)
        EDITS["model.safetensors"][0](folder)
        update_checksums(folder, ["model.safetensors"])
        return found

    monkeypatch.setattr(continuation, "load_statistics", replaced)
    more = tiny_stream(num_tasks=None, class_lists=[classes])
    with pytest.raises(ValueError, match=f"^{task}/.* was changed while the checkpoint was read"):
        ContinualTrainer.from_checkpoint(task, more, output_dir=tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_a_folder_that_is_replaced_while_a_run_resumes_is_refused(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "run")
    trainer = tiny_trainer(str(run.parent / "backbone"), folder, tiny_stream(max_tasks=2), epochs=1, resume=True)
    state, load = folder / "task-02" / "trainer_state.json", checkpoint.load_statistics

    def late(place):
        put_beside(state, state.read_bytes())
        return load(place)

    monkeypatch.setattr(checkpoint, "load_statistics", late)
    with pytest.raises(ValueError, match=f"^{state} was changed while"):
        trainer.train()


def test_the_tensors_of_a_state_are_those_that_were_hashed(tmp_path, monkeypatch):
    tensors, others = ({"a": torch.full((4,), value)} for value in (1.0, 2.0))
    write_state(tmp_path / "other", {}, others)
    write_state(tmp_path / "state", {}, tensors)
    content = read(tmp_path / "state", INDEX_FILE)
    file = tmp_path / "state" / content["tensors"]["file"]
    other = next((tmp_path / "other").glob("*.safetensors")).read_bytes()
    reader = state_folder.read_bytes

    def once(path):
        found = reader(path)
        file.write_bytes(other)
        return found

    monkeypatch.setattr(state_folder, "read_bytes", once)
    assert torch.equal(read_tensors(tmp_path / "state", content)["a"], tensors["a"])
    with pytest.raises(ValueError, match="is not the file that was written"):
        read_tensors(tmp_path / "state", content)


def test_a_file_that_comes_or_goes_is_a_change(tmp_path):
    file = tmp_path / "a.json"
    seen = identities([file])
    check_unchanged(seen)
    file.write_text("{}")
    with pytest.raises(ValueError, match="was changed"):
        check_unchanged(seen)
    seen = identities([file])
    file.unlink()
    with pytest.raises(ValueError, match="was changed"):
        check_unchanged(seen)


def test_what_is_uploaded_is_what_was_hashed(task, tmp_path, monkeypatch):
    staged = stage(task, "me/model", tmp_path / "scratch", include_backbone=False, remote_code=False)
    hashes = listed(staged.files[CHECKSUMS_FILE])
    whole = {operation.path_in_repo: operation for operation in additions(staged.files, hashes)}
    contents = {path: file.read_bytes() for path, file in staged.files.items()}
    for name in EDITS:
        put_beside(staged.files[name], contents[name] + b" ")
        for most in (2**20, 0):  # from memory, and by its name
            monkeypatch.setattr(staged_upload, "MOST_IN_MEMORY", most)
            with pytest.raises(ChangedFileError, match=f"{name} was changed while it was pushed.*Push again"):
                additions(staged.files, hashes)
        with whole[name].as_file() as file:  # was read before, and is what goes to the Hub
            assert file.read() == contents[name]
        staged.files[name].write_bytes(contents[name])


@pytest.mark.parametrize("name", EDITS)
def test_a_damaged_file_is_not_pushed_with_a_hash_made_anew(task, tmp_path, name):
    EDITS[name][0](task)
    with pytest.raises(ValueError, match=f"^{task / name} is not the file that was saved"):
        stage(task, "me/model", tmp_path / "scratch", include_backbone=False, remote_code=False)
