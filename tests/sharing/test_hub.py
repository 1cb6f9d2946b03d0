"""A run on the Hub, through the real client: one commit and one tag for each task, whatever goes wrong in between."""

import hashlib
import json
import re
import shutil
import time

import pytest
from hub_client import Client, RemoteError
from hub_faults import KILLED, LASTING, PASSING, rule
from hub_fixtures import PUSH, push, train

WITH_PICTURES = True  # of the runs in this file

pytestmark = pytest.mark.usefixtures("no_faults_left")


@pytest.fixture(scope="module")
def run(alice, hub_base, tmp_path_factory):
    """Three tasks on a base model of the Hub, trained and saved, not pushed."""
    folder = tmp_path_factory.mktemp("run")
    train(alice, folder, hub_base)
    return folder


@pytest.fixture(scope="module")
def two(run, tmp_path_factory):
    """Its first two tasks."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("task-01", "task-02"):
        shutil.copytree(run / name, folder / name)
    return folder


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def essentials(folder) -> dict[str, str]:
    """The files that decide what the model is."""
    return {path.name: sha256(path) for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def check_whole(state: dict, run) -> list[int]:
    """Every commit is the empty repository or exactly one task; gives the tasks in the order of the commits."""
    tasks = []
    for commit in state["commits"]:
        files = {path: value for path, value in commit["files"].items() if path.endswith((".json", ".safetensors"))}
        if not files:
            assert set(commit["files"]) <= {".gitattributes"}
            continue
        matching = [
            n for n in range(1, len(list(run.glob("task-*"))) + 1) if essentials(run / f"task-{n:02d}") == files
        ]
        assert len(matching) == 1, f"a commit is a mixture: {sorted(files)}"
        tasks += matching
    for name, oid in state["tags"].items():
        commit = next(commit for commit in state["commits"] if commit["oid"] == oid)
        found = {path: value for path, value in commit["files"].items() if path.endswith((".json", ".safetensors"))}
        assert found == essentials(run / name), f"{name} names another model"
    return tasks


def check_finished(hub, repo, run, tasks=3):
    """The state that every push must end in, however often and badly it was interrupted."""
    state = hub.state(repo)
    assert check_whole(state, run) == list(range(1, tasks + 1))
    assert sorted(state["tags"]) == [f"task-{n:02d}" for n in range(1, tasks + 1)]
    assert state["head"] == state["tags"][f"task-{tasks:02d}"]
    return state


# ---------------------------------------------------------------------- push


def test_each_task_is_one_commit_with_a_tag(hub, alice, run, repo):
    pushed = push(alice, run, repo)
    state = check_finished(hub, repo, run)
    assert [task["tag"] for task in pushed] == ["task-01", "task-02", "task-03"]
    assert [task["commit"] for task in pushed] == [state["tags"][task["tag"]] for task in pushed]
    assert all(task["created"] for task in pushed) and pushed[2]["url"] == f"{hub.url}/{repo}/tree/task-03"
    parents = [commit["parent"] for commit in state["commits"]]
    assert parents == [None, *(commit["oid"] for commit in state["commits"][:-1])]
    assert {"README.md", "accuracy_matrix.png"} < set(state["commits"][-1]["files"])
    assert [commit["title"] for commit in state["commits"][1:]] == [f"Learn task {n}: 2 classes" for n in (1, 2, 3)]
    assert len(alice.said) == 3 and not state["private"]


def test_pushing_again_changes_nothing(hub, alice, run, repo):
    push(alice, run, repo)
    before = hub.state(repo)
    hub.reset()
    again = push(alice, run, repo)
    assert hub.state(repo) == before and not any(task["created"] for task in again)
    assert not [entry for entry in hub.log() if "/commit/" in entry["path"] or "/tag/" in entry["path"]]
    assert all("there already" in line for line in alice.said)


def test_a_run_that_went_on_adds_only_the_new_task(hub, alice, run, repo, tmp_path):
    for number in (1, 2):
        shutil.copytree(run / f"task-{number:02d}", tmp_path / f"task-{number:02d}")
    push(alice, tmp_path, repo)
    first = hub.state(repo)
    pushed = push(alice, run, repo)
    assert [task["created"] for task in pushed] == [False, False, True]
    state = check_finished(hub, repo, run)
    assert state["commits"][:3] == first["commits"]


def test_private_by_option(hub, alice, bob, run, repo):
    push(alice, run, repo, private=True)
    assert hub.state(repo)["private"]
    with pytest.raises(RemoteError, match="could not be had from the Hub"):
        bob("str(local_checkpoint(given['repo']))", repo=repo)


def test_a_name_alone_is_a_repository_of_ones_own(hub, alice, run, repo):
    push(alice, run, repo.split("/")[1])
    check_finished(hub, repo, run)


def test_the_token_is_nowhere(hub, alice, run, repo):
    push(alice, run, repo, token="hf_alice")
    texts = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(b"hf_alice" in text for text in texts)
    assert "hf_alice" not in alice.output + "".join(alice.said)
    with pytest.raises(RemoteError) as error:
        push(alice, run, repo, token="hf_secret_but_wrong")
    assert "hf_secret_but_wrong" not in error.value.message + error.value.output


# ---------------------------------------------------------------------- faults: the table of docs/hub.md


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_waited_for(hub, alice, two, repo, fault):
    hub.faults([PASSING[fault]])
    push(alice, two, repo)
    assert any(entry["fault"] for entry in hub.log()), "the fault never happened"
    check_finished(hub, repo, two, 2)


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_an_error_and_a_later_push_mends_it(hub, alice, two, repo, fault):
    faulty, message = LASTING[fault]
    hub.faults([faulty])
    with pytest.raises(RemoteError, match=message) as error:
        push(alice, two, repo)
    assert "PushError" in error.value.kinds and repo in error.value.message
    check_whole(hub.state(repo), two)
    hub.reset()
    push(alice, two, repo)
    check_finished(hub, repo, two, 2)


@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_push_is_mended_by_another(hub, alice, two, repo, tmp_path, moment):
    hub.faults([KILLED[moment]])
    victim = Client(hub, "hf_alice", tmp_path)
    victim.start(PUSH, run=str(two), repo=repo)
    deadline = time.monotonic() + 60
    while not any(entry["fault"] for entry in hub.log()) and time.monotonic() < deadline:
        time.sleep(0.05)
    victim.kill()
    state = hub.state(repo)
    check_whole(state, two)
    assert len(state["tags"]) < 2
    hub.reset()
    push(alice, two, repo)
    check_finished(hub, repo, two, 2)


def test_two_pushes_at_once_end_in_one_state(hub, alice, two, repo, tmp_path):
    hub.faults([rule("POST", "/commit/", {"delay": 0.2}, times=2)])
    with Client(hub, "hf_alice", tmp_path) as other:
        other("1")  # imports are done
        other.start(PUSH, run=str(two), repo=repo)
        push(alice, two, repo)
        other.answer()
    check_finished(hub, repo, two, 2)


# ---------------------------------------------------------------------- other people's commits


def test_somebody_elses_commit_is_never_overwritten(hub, alice, run, repo, tmp_path):
    shutil.copytree(run / "task-01", tmp_path / "task-01")
    push(alice, tmp_path, repo)
    foreign = hub.foreign_commit(repo, "Improve the card", {"README.md": "mine", "extra.txt": "x"})
    before = hub.state(repo)
    with pytest.raises(RemoteError, match=f"newest commit is {foreign}.*Improve the card.*mallory.*--onto") as error:
        push(alice, run, repo)
    assert "PushConflictError" in error.value.kinds and hub.state(repo) == before
    push(alice, run, repo, onto=foreign)  # after having looked at it
    state = hub.state(repo)
    assert state["commits"][-1]["files"]["extra.txt"] and state["tags"]["task-03"] == state["head"]
    assert [commit["parent"] for commit in state["commits"]][-2] == foreign


def test_a_lost_answer_and_then_somebody_elses_commit(hub, alice, run, repo, tmp_path):
    """The first task was committed, its answer lost, and others committed on top before the second attempt."""
    shutil.copytree(run / "task-01", tmp_path / "task-01")
    hub.faults([rule("POST", "/tag/", {"status": 503}, times=99)])
    with pytest.raises(RemoteError, match="503"):
        push(alice, tmp_path, repo)
    hub.reset()
    hub.foreign_commit(repo, "Meanwhile", {"extra.txt": "x"})
    push(alice, tmp_path, repo)
    state = hub.state(repo)
    assert state["tags"] == {"task-01": state["commits"][1]["oid"]} and len(state["commits"]) == 3


def test_a_repository_with_other_content_is_left_alone(hub, alice, run, repo):
    alice("HfApi().create_repo(given['repo']).repo_id", repo=repo)
    hub.foreign_commit(repo, "Another model", {"model.bin": "x"})
    before = hub.state(repo)
    with pytest.raises(RemoteError, match="Another model.*not of this run"):
        push(alice, run, repo)
    assert hub.state(repo) == before


def test_another_run_is_not_pushed_over_the_first(hub, alice, hub_base, run, repo, tmp_path):
    push(alice, run, repo)
    before = hub.state(repo)
    train(alice, tmp_path, hub_base, seed=1)
    with pytest.raises(RemoteError, match="tag task-01 already, of another model.*model.safetensors differ"):
        push(alice, tmp_path, repo)
    assert hub.state(repo) == before


def test_a_wrong_tag_is_seen(hub, alice, run, repo):
    push(alice, run, repo)
    first = hub.state(repo)["tags"]["task-01"]
    alice("HfApi().delete_tag(given['repo'], tag='task-02')", repo=repo)
    alice("HfApi().create_tag(given['repo'], tag='task-02', revision=given['first'])", repo=repo, first=first)
    with pytest.raises(RemoteError, match="tag task-02 already, of another model"):
        push(alice, run, repo)


@pytest.mark.parametrize("token, message", [("hf_bob", "may not write"), ("hf_nobody", "hf auth login"),
                                            ("hf_readonly", "may not write")])  # fmt: skip
def test_who_may_not_write_is_told_so(hub, alice, run, repo, token, message):
    with pytest.raises(RemoteError, match=message) as error:
        push(alice, run, repo, token=token)
    assert token not in error.value.message


def copy_of(run, folder, *numbers):
    for number in numbers:
        shutil.copytree(run / f"task-{number:02d}", folder / f"task-{number:02d}")
    return folder


def test_a_task_is_never_put_behind_a_later_one(hub, alice, run, repo, tmp_path):
    """A repository that begins with task-03; `--onto` its commit must not make main an older model."""
    push(alice, copy_of(run, tmp_path, 3), repo)
    before = hub.state(repo)
    for options in ({}, {"onto": before["head"]}):
        with pytest.raises(RemoteError, match="holds task-03, so task-01 cannot be its next") as error:
            push(alice, run, repo, **options)
        assert "--onto" not in error.value.message
    assert hub.state(repo) == before


def test_a_task_is_not_put_behind_a_gap_or_another_lineage(hub, alice, hub_base, run, repo, tmp_path):
    push(alice, copy_of(run, tmp_path / "first", 1), repo)
    before = hub.state(repo)
    with pytest.raises(RemoteError, match="holds task-01, so task-03 cannot be its next"):
        push(alice, copy_of(run, tmp_path / "third", 3), repo)
    train(alice, tmp_path / "other", hub_base, seed=1)
    with pytest.raises(RemoteError, match="task-01 in .* is not the model that task-02 went on from"):
        push(alice, copy_of(tmp_path / "other", tmp_path / "second", 2), repo)
    with pytest.raises(RemoteError, match="not task-02 before it"):
        push(alice, copy_of(run, tmp_path / "gap", 1, 3), repo)
    assert hub.state(repo) == before


def test_private_is_never_taken_for_granted(hub, alice, run, repo):
    alice("HfApi().create_repo(given['repo']).repo_id", repo=repo)
    with pytest.raises(RemoteError, match="exists and is public, and private was asked for"):
        push(alice, run, repo, private=True)
    assert hub.state(repo)["tags"] == {}


def test_an_equal_model_trained_again_is_the_same_model(hub, alice, hub_base, run, repo, tmp_path):
    """Only its seconds differ: a run whose folder was lost goes on in its repository."""
    push(alice, copy_of(run, tmp_path / "first", 1, 2), repo)
    train(alice, tmp_path / "again", hub_base)
    pushed = push(alice, tmp_path / "again", repo)
    assert [task["created"] for task in pushed] == [False, False, True]


# ---------------------------------------------------------------------- the card


def test_the_card_of_a_pushed_task(hub, alice, run, repo):
    push(alice, run, repo)
    card = alice("""
from huggingface_hub import ModelCard
card = ModelCard.load(given["repo"])
card.validate()
{"data": card.data.to_dict(), "text": card.text}
""", repo=repo)  # fmt: skip
    head = hub.state("alice/vit")["head"]
    assert card["data"]["base_model"] == "alice/vit" and card["data"]["base_model_revision"] == head
    assert card["data"]["base_model_relation"] == "adapter" and card["data"]["library_name"] == "smope_hf"
    measured = json.loads((run / "task-03" / "trainer_state.json").read_text())["accuracy_matrix"][-1]
    results = card["data"]["model-index"][0]["results"]
    accuracies = [r["metrics"][0]["value"] for r in results if r["metrics"][0]["type"] == "accuracy"]
    assert accuracies == pytest.approx(measured, abs=1e-6)
    assert f'model="{repo}", revision="task-03"' in card["text"]
    assert re.search(r"\| 3 \| \w, \w \| 18 \| 10 \|", card["text"])


def test_offline_is_said_at_once(alice, run):
    code = """
import huggingface_hub.constants as constants
constants.HF_HUB_OFFLINE = True
try:
    push_run(given["run"], "alice/offline", report=say)
    text = "pushed"
except PushError as error:
    text = str(error)
finally:
    constants.HF_HUB_OFFLINE = False
text
"""
    assert "HF_HUB_OFFLINE is set" in alice(code, run=str(run)) and alice.said == []
