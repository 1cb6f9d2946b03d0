"""A disk that is really full: a small file system of its own, where the test may mount one."""

import errno
import os
import shutil
import subprocess

import pytest
from runs import assert_same_tensors, save_backbone, tensors, tiny_trainer

from smope_hf import SMoPEForImageClassification
from smope_hf.sharing.checkpoint import load_statistics


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a file system of so many KiB."""
    mounted = []

    def mount(kib):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("mounting a small file system needs root")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk):
    """Take what room there is but for what the file system counts in."""
    with open(disk / "other", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("which", ["its first file", "its last file", "its folder"])
def test_a_write_that_fails_leaves_the_tasks_before_it_and_can_be_made_up_for(tmp_path, monkeypatch, which):
    """As on a full disk, on any machine: whichever write of the second task fails, nothing half written stays."""
    backbone = save_backbone(tmp_path / "backbone")
    tiny_trainer(backbone, tmp_path / "whole").train()
    files = sorted(path for path in (tmp_path / "whole" / "task-02").rglob("*") if path.is_file())
    run = tmp_path / "run"
    failing = {"its first file": files[0].name, "its last file": files[-1].name, "its folder": ".task-02"}[which]

    def sync(path):
        if ".task-02" in str(path) and path.name.startswith(failing):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("smope_hf.sharing.checkpoint.sync", sync)
    with pytest.raises(OSError, match="No space left"):
        tiny_trainer(backbone, run).train()
    assert names(run) == ["task-01"]
    assert_same_tensors(tmp_path / "whole" / "task-01", run / "task-01")
    monkeypatch.undo()
    tiny_trainer(backbone, run, resume=True).train()
    assert_same_tensors(tmp_path / "whole" / "task-03", run / "task-03")


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_every", [0, 2])
def test_a_full_disk_ends_the_run_with_what_to_do_and_loses_nothing(disk, tmp_path, checkpoint_every):
    """The first task fits; then others take the room. With it back, the run goes on to where it would have come."""
    backbone = save_backbone(tmp_path / "backbone")
    settings = {"checkpoint_every": checkpoint_every}
    tiny_trainer(backbone, tmp_path / "whole", **settings).train()
    small = disk(16 * 1024)
    trainer = tiny_trainer(backbone, small / "run", **settings)
    learn = trainer._learn

    def learn_and_fill(task, manifest):
        learn(task, manifest)
        fill(small)

    trainer._learn = learn_and_fill
    with pytest.raises(OSError) as error:
        trainer.train()
    text = str(error.value)
    assert "No space left" in text and ("Make room" in text or "make room" in text) and "--resume" in text
    assert [name for name in names(small / "run") if name != "state"] == ["task-01"]
    SMoPEForImageClassification.from_pretrained(small / "run" / "task-01", backbone=backbone)
    assert len(load_statistics(small / "run" / "task-01")[0].count) == 2
    assert_same_tensors(tmp_path / "whole" / "task-01", small / "run" / "task-01")
    (small / "other").unlink()
    tiny_trainer(backbone, small / "run", resume=True, **settings).train()
    assert_same_tensors(tmp_path / "whole" / "task-03", small / "run" / "task-03")
    assert tensors(small / "run" / "task-02")
