"""One run holds its folder: who comes second is told, and what a killed process has left is in nobody's way."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest

import smope_hf.training.run_lock
from smope_hf.sharing.checkpoint import remove_partial
from smope_hf.storage.files import atomic_path
from smope_hf.training.run_lock import LOCK_FILE, FolderHeldError, hold_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the tests fork")
FOREVER = 60


@contextlib.contextmanager
def child(act):
    """A forked process that does something, says so, and then sleeps; it is killed when the block ends."""
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = act()  # noqa: F841
            os.write(say, b"+")
            time.sleep(FOREVER)
        finally:
            os._exit(1)
    os.close(say)
    try:
        assert os.read(ready, 1) == b"+"
        yield pid
    finally:
        os.close(ready)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def names(folder):
    return sorted(os.listdir(folder))


def test_the_second_is_told_who_has_the_folder_and_changes_nothing(tmp_path):
    with child(lambda: hold_folder(tmp_path / "run")) as pid:
        before = (tmp_path / "run" / LOCK_FILE).read_bytes()
        start = time.monotonic()
        with pytest.raises(FolderHeldError) as error:
            hold_folder(tmp_path / "run")
        assert time.monotonic() - start < FOREVER / 2
        for told in (f"process {pid} on ", "since 20", os.path.basename(sys.argv[0]), "output_dir", str(tmp_path)):
            assert told in str(error.value)
        assert names(tmp_path / "run") == [LOCK_FILE] and (tmp_path / "run" / LOCK_FILE).read_bytes() == before


def test_what_a_killed_process_has_left_is_in_nobodys_way_and_goes(tmp_path):
    with child(lambda: hold_folder(tmp_path / "run")) as pid:
        kill(pid)
        assert names(tmp_path / "run") == [LOCK_FILE]
        hold = hold_folder(tmp_path / "run")
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
        hold.release()
    assert names(tmp_path / "run") == []


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    hold_folder(tmp_path / "runs" / "one").release()
    assert names(tmp_path) == []
    hold = hold_folder(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one" / "kept").touch()
    hold.release()
    assert names(tmp_path / "runs" / "one") == ["kept"]


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_children_that_outlive_a_run_do_not_hold_its_folder(tmp_path, how):
    def hold_and_have_a_child():
        hold = hold_folder(tmp_path)
        if how == "exec":
            left = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})"], close_fds=False).pid
        elif (left := os.fork()) == 0:
            time.sleep(FOREVER)
            os._exit(0)
        (tmp_path / "left").write_text(str(left))
        return hold

    with child(hold_and_have_a_child) as pid:
        with pytest.raises(FolderHeldError):
            hold_folder(tmp_path)
        kill(pid)
        left = int((tmp_path / "left").read_text())
        os.kill(left, 0)  # it lives
        hold_folder(tmp_path).release()
        os.kill(left, signal.SIGKILL)


def test_a_fork_neither_holds_nor_releases_what_its_parent_holds(tmp_path):
    hold = hold_folder(tmp_path)
    with child(hold.release):
        assert names(tmp_path) == [LOCK_FILE]
        with child(lambda: pytest.raises(FolderHeldError, hold_folder, tmp_path)):
            assert hold.is_held
    hold.release()
    assert names(tmp_path) == []


def test_trainers_of_one_process_share_a_folder_but_not_at_the_same_time(tmp_path):
    """As in a notebook, where a trainer is made a second time while the first one still has a name."""
    first, second = hold_folder(tmp_path), hold_folder(tmp_path / "." / "")
    with first.in_use(), pytest.raises(FolderHeldError, match="this very program"):
        hold_folder(tmp_path)
    with first.in_use(), pytest.raises(FolderHeldError, match="this very program"), second.in_use():
        pytest.fail("the block must not run")
    first.release()
    first.release()
    assert names(tmp_path) == [LOCK_FILE] and second.is_held
    with second.in_use():
        pass
    second.release()
    assert names(tmp_path) == []


def test_of_many_that_come_and_go_one_at_a_time_is_in(tmp_path):
    """The file goes with each of them: nobody may be left with the lock of a file that is gone."""

    def come_and_go():
        end, times = time.monotonic() + 1, 0
        while time.monotonic() < end:
            with contextlib.suppress(FolderHeldError):
                hold = hold_folder(tmp_path / "run")
                os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))
                os.unlink(tmp_path / "inside")
                hold.release()
                times += 1
        return times

    smope_hf.training.run_lock._PATIENCE, patience = 0.0, smope_hf.training.run_lock._PATIENCE
    pids = []
    try:
        for _ in range(4):
            pids.append(os.fork())
            if pids[-1] == 0:
                try:
                    os._exit(0 if come_and_go() > 3 else 2)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
    finally:
        smope_hf.training.run_lock._PATIENCE = patience
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"pid": -1}', b"[" * 70_000, b'{"pid": 1e999}'], ids=repr)
def test_whatever_stands_in_a_file_that_nobody_locks(tmp_path, content):
    (tmp_path / LOCK_FILE).write_bytes(content)
    hold_folder(tmp_path).release()
    assert names(tmp_path) == []


def test_a_holder_that_tells_something_else_than_who_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(smope_hf.training.run_lock, "_PATIENCE", 0.1)
    told = {"pid": "\x1b[31m", "host": "\u202e", "since": "x" * 9999, "command": "\n" * 99}
    for content in (b"{", json.dumps(told).encode()):
        with child(lambda: (hold_folder(tmp_path), (tmp_path / LOCK_FILE).write_bytes(content))):
            with pytest.raises(FolderHeldError) as error:
                hold_folder(tmp_path)
            assert str(error.value).isprintable() and len(str(error.value)) < 2000


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_lock_file_is_neither_written_nor_waited_for(tmp_path, kind):
    (tmp_path / "precious").write_text("kept")
    make = {
        "link": lambda file: file.symlink_to(tmp_path / "precious"), "pipe": os.mkfifo, "folder": os.mkdir
    }[kind]  # fmt: skip
    make(tmp_path / LOCK_FILE)
    with pytest.raises(FileExistsError, match=f"{LOCK_FILE} is no lock of a run.*Move it away"):
        hold_folder(tmp_path)
    assert (tmp_path / "precious").read_text() == "kept" and names(tmp_path) == [LOCK_FILE, "precious"]


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def no_locks(handle, shared=False):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("smope_hf.training.run_lock.try_lock", no_locks)
    with pytest.warns(UserWarning, match="has no locks .No locks available.: a second run .* Start none"):
        hold_folder(tmp_path).release()


def test_threads_do_not_get_in_together(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(20):
            with contextlib.suppress(FolderHeldError):
                hold = hold_folder(tmp_path)
                with contextlib.suppress(FolderHeldError), hold.in_use():
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
                hold.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most and set(most) == {1} and names(tmp_path) == []


# ---------------------------------------------------------------------- what others write beside a run


def test_a_run_that_begins_leaves_what_another_process_is_writing(tmp_path):
    """As `smope plot` and `smope report` do, beside a run or before it goes on."""
    (tmp_path / "plots").mkdir()

    def draw():
        context = atomic_path(tmp_path / "plots" / "a.png")
        context.__enter__().write_text("half")
        return context

    with child(draw) as pid:
        remove_partial(tmp_path)
        (left,) = names(tmp_path / "plots")
        assert left.startswith(".a.png.") and (tmp_path / "plots" / left).read_text() == "half"
        kill(pid)
        remove_partial(tmp_path)
    assert names(tmp_path / "plots") == []


def test_a_file_that_was_not_written_does_not_appear(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OSError, match="a.json was not written"), atomic_path(tmp_path / "a.json"):
        pass
    assert names(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "old"
