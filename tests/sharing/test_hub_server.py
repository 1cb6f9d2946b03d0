"""The loopback Hub keeps the Hub's promises to the real client: every step runs in a client process over HTTP."""

import contextlib
import hashlib
import http.client as http_client
import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub_server import HubServer, environment

# What every client script starts from: `api`, and `raised(call)`, which names the error of a call that must fail.
PREAMBLE = """
import json, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd as Add, CommitOperationDelete as Delete
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api, given = HfApi(), json.loads(sys.argv[1])

def raised(call):
    try:
        return ["no error", None, str(call())]
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        return [type(error).__name__, status, str(error)]

def commit(title, files, repo="alice/model", **options):
    operations = [Add(path, content.encode()) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message=title, **options).oid

def read(path, **options):
    return Path(hf_hub_download("alice/model", path, **options)).read_text()
"""


def run_client(server: HubServer | str, home: Path, script: str, token: str | None = "hf_alice", **given) -> dict:
    """Runs the script in a client process; what it leaves in `out` comes back."""
    program = PREAMBLE + script + "\nprint(json.dumps(out))"
    command = [sys.executable, "-c", program, json.dumps(given)]
    done = subprocess.run(command, env=environment(server, token, home), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def http(url: str, body=None, headers: dict | None = None, method: str | None = None):
    """One request without the client, its retries and its redirects: status, headers, body."""
    parts = urlsplit(url)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = http_client.HTTPConnection(parts.netloc, timeout=20)
    with contextlib.closing(connection):
        connection.request(method or ("GET" if data is None else "POST"), url, data, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def sent(hub: HubServer, method: str, part: str) -> list[int | None]:
    """The statuses of the requests whose path contains this part."""
    return [entry["status"] for entry in hub.log() if entry["method"] == method and part in entry["path"]]


@pytest.fixture
def hub(fresh_hub):
    return fresh_hub


def test_a_commit_holds_regular_and_lfs_files_and_two_tags_give_two_contents(hub, tmp_path):
    out = run_client(
        hub,
        tmp_path / "home",
        """
api.create_repo("alice/model")
initial = api.model_info("alice/model").sha
files = {"config.json": "{}", "model.safetensors": "weights 1", "sub/a.txt": "a"}
one = commit("one", files, commit_description="why")
api.create_tag("alice/model", tag="task-01", revision=one)
two = commit("two", {"model.safetensors": "weights 2", "config.json": "[]"}, parent_commit=one)
api.create_tag("alice/model", tag="task-02", revision=two)
again = commit("again", {"config.json": "[]"})
third = api.create_commit("alice/model", [Delete("sub/")], commit_message="three").oid
out = dict(
    initial=initial, one=one, two=two, again=again, third=third,
    stale=raised(lambda: commit("late", {"late.txt": "x"}, parent_commit=one)),
    same_tag=raised(lambda: api.create_tag("alice/model", tag="task-01", revision=two)),
    contents=[[read(p, revision=t) for p in ("model.safetensors", "config.json")] for t in ("task-01", "task-02")],
    folder=sorted(p.name for p in Path(snapshot_download("alice/model", revision="task-01")).rglob("*.*")),
    tags={t.name: t.target_commit for t in api.list_repo_refs("alice/model").tags},
    log=[[c.commit_id, c.title, c.message] for c in api.list_repo_commits("alice/model")],
    tree={f.path: type(f).__name__ for f in api.list_repo_tree("alice/model", revision=one)},
    inside=[f.path for f in api.list_repo_tree("alice/model", "sub", revision=one)],
    lfs=[bool(f.lfs) for f in api.get_paths_info("alice/model", ["model.safetensors", "config.json", "none"])],
    no_file=raised(lambda: read("none.txt")), no_tag=raised(lambda: read("config.json", revision="task-09")),
    no_repo=raised(lambda: api.model_info("alice/none")), who=api.whoami()["name"],
)
api.delete_tag("alice/model", tag="task-02")
""",
    )
    assert out["contents"] == [["weights 1", "{}"], ["weights 2", "[]"]]
    assert out["again"] == out["two"]  # nothing changed: no commit
    assert out["tags"] == {"task-01": out["one"], "task-02": out["two"]}
    names = [(out["third"], "three", ""), (out["two"], "two", ""), (out["one"], "one", "why")]
    assert out["log"] == [*map(list, names), [out["initial"], "initial commit", ""]]
    assert out["folder"] == [".gitattributes", "a.txt", "config.json", "model.safetensors"]
    folders = {"sub": "RepoFolder"}
    assert out["tree"] == dict.fromkeys([".gitattributes", "config.json", "model.safetensors"], "RepoFile") | folders
    assert out["inside"] == ["sub/a.txt"] and sorted(out["lfs"]) == [False, True] and out["who"] == "alice"
    assert [out[key][1] for key in ("stale", "same_tag")] == [412, 409]
    errors = [out[key][0] for key in ("no_file", "no_tag", "no_repo")]
    assert errors == ["RemoteEntryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError"]
    state = hub.state("alice/model")
    assert state["head"] == out["third"] and state["tags"] == {"task-01": out["one"]}
    assert [commit["parent"] for commit in state["commits"]] == [None, *[c["oid"] for c in state["commits"][:-1]]]
    assert state["commits"][1]["files"]["model.safetensors"] == hashlib.sha256(b"weights 1").hexdigest()
    assert "sub/a.txt" not in state["commits"][-1]["files"]
    assert sent(hub, "PUT", "/lfs-upload/") == [200, 200]


def test_who_may_read_and_write(hub, tmp_path):
    """A private repository is as good as missing to others; a public one takes commits from its owner only."""
    setup = """
api.create_repo("alice/model", private=True)
api.create_repo("alice/open")
commit("one", {"a.txt": "secret", "b.bin": "blob"})
out = [read("a.txt"), read("b.bin"), api.model_info("alice/model").private, api.model_info("alice/open").private]
"""
    assert run_client(hub, tmp_path / "alice", setup) == ["secret", "blob", True, False]
    others = """
out = dict(
    info=raised(lambda: api.model_info("alice/model")), file=raised(lambda: read("a.txt")),
    write=raised(lambda: commit("mine", {"a.txt": "b"}, repo="alice/open")),
    create=raised(lambda: api.create_repo("alice/other")), delete=raised(lambda: api.delete_repo("alice/open")),
    public=api.model_info("alice/open").id,
)
"""
    head = hub.state("alice/open")["head"]
    for token, hidden, refused in (("hf_bob", 404, 403), (None, 401, 401)):
        out = run_client(hub, tmp_path / "others", others, token=token)
        assert [out[key][:2] for key in ("info", "file")] == [["RepositoryNotFoundError", hidden]] * 2
        assert [out[key][1] for key in ("write", "create", "delete")] == [refused] * 3
        assert out["public"] == "alice/open"
    reader = """
out = dict(read=read("a.txt"), role=api.whoami()["auth"]["accessToken"]["role"],
    write=raised(lambda: commit("mine", {"a.txt": "b"}))[1])
"""
    reading = {"read": "secret", "role": "read", "write": 403}
    assert run_client(hub, tmp_path / "reader", reader, token="hf_readonly") == reading
    assert http(f"{hub.url}/api/models/alice/open", headers={"Authorization": "Bearer hf_who"})[0] == 401
    assert hub.state("alice/open")["head"] == head and hub.state("alice/model")["commits"][-1]["title"] == "one"


def test_a_request_that_breaks_off_changes_nothing_and_a_lost_answer_hides_a_finished_commit(hub, tmp_path):
    script = """
api.create_repo("alice/model", exist_ok=True)
out = raised(lambda: commit("one", {"a.txt": "a" * 50_000, "model.safetensors": "w" * 50_000}))
"""
    hub.faults([{"match": {"method": "POST", "path": "/commit/main$"}, "action": {"cut_request_after": 9_000}}])
    hub.faults([{"match": {"method": "PUT"}, "action": {"cut_request_after": 9_000}}])
    broken = run_client(hub, tmp_path / "home", script)
    assert broken[0] in ("ReadError", "WriteError", "RemoteProtocolError") and broken[1] is None
    assert sent(hub, "PUT", "/lfs-upload/") == [None, 200]  # the client itself repeats a cut upload
    assert sent(hub, "POST", "/commit/") == [None]
    state = hub.state("alice/model")
    assert [commit["title"] for commit in state["commits"]] == ["initial commit"] and len(state["blobs"]) == 1

    hub.reset()
    hub.faults(
        [
            {"match": {"path": "/preupload/"}, "action": {"status": 429, "headers": {"Retry-After": "0"}, "body": {}}},
            {"match": {"path": "/commit/"}, "action": {"drop_response": True}},
        ]
    )
    lost = run_client(hub, tmp_path / "home", script)
    assert lost[0] == "ReadError" and sent(hub, "POST", "/preupload/") == [429, 200]
    assert sent(hub, "PUT", "/lfs-upload/") == []  # the blob of the broken attempt is there already
    assert [commit["title"] for commit in hub.state("alice/model")["commits"]] == ["initial commit", "one"]
    faults = [entry["fault"] for entry in hub.log() if "/commit/" in entry["path"]]
    assert faults == [{"drop_response": True}]


def test_downloads_survive_cuts_and_ranges_are_served(hub, tmp_path):
    rule = {"match": {"method": "GET", "path": "/blobs/"}, "skip": 1, "action": {"cut_response_after": 20_000}}
    hub.faults([rule])
    script = """
api.create_repo("alice/model")
commit("one", {"first.bin": "1" * 50_000, "second.bin": "2" * 50_000, "a.txt": "0123456789"})
out = [read("first.bin") == "1" * 50_000, read("second.bin") == "2" * 50_000]
"""
    assert run_client(hub, tmp_path / "home", script) == [True, True]
    downloads = [entry for entry in hub.log() if entry["method"] == "GET" and "/blobs/" in entry["path"]]
    assert [bool(entry["fault"]) for entry in downloads] == [False, True, False]  # the cut file is asked for once more
    url = f"{hub.url}/alice/model/resolve/main/a.txt"
    status, headers, body = http(url, headers={"Range": "bytes=2-4"})
    assert (status, headers["Content-Range"], body) == (206, "bytes 2-4/10", b"234")
    assert http(url, headers={"Range": "bytes=-3"})[2] == b"789"
    assert http(url, headers={"Range": "bytes=10-"})[0] == 416
    head, blob = hub.state("alice/model")["head"], hashlib.sha256(b"1" * 50_000).hexdigest()
    status, headers, body = http(url, method="HEAD")
    assert (status, headers["X-Repo-Commit"], headers["Content-Length"], body) == (200, head, "10", b"")
    status, headers, _ = http(url.replace("a.txt", "first.bin"), method="HEAD")
    assert (status, headers["X-Repo-Commit"], headers["X-Linked-Size"]) == (302, head, "50000")
    assert headers["X-Linked-Etag"] == f'"{blob}"'
    assert http(headers["Location"], headers={"Range": "bytes=0-1"})[::2] == (206, b"11")


def test_faults_over_http_and_a_killed_server_that_goes_on_from_its_root(tmp_path):
    """The server as a program: killed without warning, a new one on the same root has everything."""
    program = [sys.executable, str(Path(__file__).parents[1] / "hub_server.py"), "--root", str(tmp_path / "hub")]

    def start():
        process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().strip()

    process, url = start()
    rule = {"match": {"path": "whoami"}, "times": 2, "action": {"status": 503, "body": "later"}}
    assert http(f"{url}/_faults", [rule])[0] == 200
    script = """
out = [raised(api.whoami)[1], raised(api.whoami)[1], api.whoami()["name"]]
api.create_repo("alice/model")
oid = commit("one", {"a.txt": "a", "model.safetensors": "w"})
api.create_tag("alice/model", tag="task-01", revision=oid)
"""
    assert run_client(url, tmp_path / "home", script) == [503, 503, "alice"]
    before = http(f"{url}/_state/alice/model")[2]
    seen = [entry for entry in json.loads(http(f"{url}/_log")[2]) if "whoami" in entry["path"]]
    assert [(entry["status"], entry["user"]) for entry in seen] == [(503, "alice"), (503, "alice"), (200, "alice")]
    assert [bool(entry["fault"]) for entry in seen] == [True, True, False]
    process.send_signal(signal.SIGKILL)
    process.communicate()

    process, url = start()
    try:
        assert http(f"{url}/_state/alice/model")[2] == before
        script = 'out = [read(p, revision="task-01") for p in ("a.txt", "model.safetensors")]'
        assert run_client(url, tmp_path / "other", script) == ["a", "w"]
        foreign = json.loads(http(f"{url}/_foreign/alice/model", {"message": "theirs", "files": {"b.txt": "b"}})[2])
        assert json.loads(http(f"{url}/_state/alice/model")[2])["head"] == foreign["oid"]
        assert json.loads(http(f"{url}/_log")[2]) != [] and http(f"{url}/_reset", {})[0] == 200
        assert json.loads(http(f"{url}/_log")[2]) == []
    finally:
        process.kill()
        process.communicate()


def test_a_foreign_commit_in_between_makes_the_parent_stale(hub, tmp_path):
    script = """
out = raised(lambda: commit("two", {"b.txt": "b"}, parent_commit=given["parent"]))
"""
    run_client(hub, tmp_path / "home", 'out = str(api.create_repo("alice/model"))')
    parent = hub.state("alice/model")["head"]
    foreign = hub.foreign_commit("alice/model", "surprise", {"theirs.txt": "x"})
    assert run_client(hub, tmp_path / "home", script, parent=parent)[1] == 412
    state = hub.state("alice/model")
    assert state["head"] == foreign and state["commits"][-1]["author"] == "mallory"
    assert run_client(hub, tmp_path / "home", script, parent=foreign)[0] == "no error"


def test_a_commit_is_refused_whole(hub, tmp_path):
    """One bad operation, and none of the others counts; a blob is stored only with the announced size and digest."""
    owner = {"Authorization": "Bearer hf_alice"}
    assert http(f"{hub.url}/api/repos/create", {"name": "model"}, owner)[0] == 200
    head = hub.state("alice/model")["head"]
    header = {"key": "header", "value": {"summary": "bad"}}
    good = {"key": "file", "value": {"path": "a.txt", "content": "YQ==", "encoding": "base64"}}
    lfs = {"path": "m.bin", "algo": "sha256", "oid": hashlib.sha256(b"never sent").hexdigest(), "size": 10}
    bad = [{"key": "lfsFile", "value": lfs}, {"key": "deletedFile", "value": {"path": "none"}}]
    for operation in [*bad, {"key": "file", "value": {**good["value"], "path": "../a.txt"}}]:
        lines = "\n".join(json.dumps(line) for line in (header, good, operation)).encode()
        status, headers, _ = http(f"{hub.url}/api/models/alice/model/commit/main", lines, owner)
        assert status in (400, 404) and headers["X-Error-Message"]
    batch = {"operation": "upload", "objects": [{"oid": lfs["oid"], "size": 10}]}
    answer = json.loads(http(f"{hub.url}/alice/model.git/info/lfs/objects/batch", batch, owner)[2])
    href = answer["objects"][0]["actions"]["upload"]["href"]
    assert http(href, {"not": "it"}, method="PUT")[0] == 400
    assert http(href.replace("signature=", "signature=0"), {"not": "it"}, method="PUT")[0] == 403
    state = hub.state("alice/model")
    assert (state["head"], state["blobs"]) == (head, [])


def test_cards_are_checked(hub, tmp_path):
    """`ModelCard.validate` and a commit of README.md take a good card and name what a bad one lacks."""
    script = """
import warnings
from huggingface_hub import EvalResult, ModelCard, ModelCardData
warnings.simplefilter("ignore")
result = EvalResult(task_type="image-classification", dataset_type="cifar100", dataset_name="CIFAR-100",
    metric_type="accuracy", metric_value=0.5)
data = ModelCardData(license="mit", model_name="m", eval_results=[result], base_model="a/b",
    base_model_relation="adapter")
good = f"---\\n{data.to_yaml()}\\n---\\n# Model\\n"
api.create_repo("alice/model")
bad = {
    "list": "---\\n- a\\n---\\n", "syntax": "---\\na: [\\n---\\n",
    "relation": good.replace("adapter", "cousin"), "dataset": good.replace("name: CIFAR-100", "config: x"),
    "value": good.replace("value: 0.5", "verified: false"), "task": good.replace("image-classification", ""),
}
out = {name: raised(lambda: commit("card", {"README.md": card})) for name, card in bad.items()}
out["card"] = raised(lambda: ModelCard(bad["relation"]).validate())
ModelCard(good).validate()
ModelCard("---\\ntags: [a]\\n---\\n# No license").validate()
commit("card", {"README.md": good})
out["loaded"] = ModelCard.load("alice/model").data.eval_results[0].metric_value
"""
    out = run_client(hub, tmp_path / "home", script)
    assert out.pop("loaded") == 0.5
    assert {name: error[0] for name, error in out.items()} == dict.fromkeys(out, "ValueError")
    named = {
        "card": "cousin",
        "relation": "cousin",
        "dataset": "dataset.name",
        "value": "metrics[0].value",
        "task": "task.type",
    }
    assert [part for name, part in named.items() if part not in out[name][2]] == []
    assert len(hub.state("alice/model")["commits"]) == 2


def test_datasets_are_served_beside_models(hub, tmp_path):
    script = """
api.create_repo("alice/model", repo_type="dataset")
commit("one", {"data.parquet": "rows", "a.txt": "a"}, repo_type="dataset")
out = [read(p, repo_type="dataset") for p in ("data.parquet", "a.txt")] + [api.repo_exists("alice/model")]
"""
    assert run_client(hub, tmp_path / "home", script) == ["rows", "a", False]
    assert hub.state("datasets/alice/model")["commits"][-1]["title"] == "one"
