"""What tests on a loopback Hub share: the Hub, who uses it, a base model on it, and training and pushing there.

conftest.py loads this file as a plugin, so that every test can name its fixtures. `hub` and those who use it serve a
whole test file; `fresh_hub` serves a single test.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Client
from hub_server import HubServer

TESTS = str(Path(__file__).parent)
IMPORTS = f"""
import sys
sys.path.insert(0, {TESTS!r})
from pathlib import Path
from runs import tiny_args, tiny_stream, tiny_trainer
"""
TRAIN = (
    IMPORTS
    + """
trainer = tiny_trainer(given["base"], Path(given["run"]), **given["settings"])
trainer.train()["protocol_hash"]
"""
)
PUSH = "[vars(task) for task in push_run(given['run'], given['repo'], report=say, **given.get('options', {}))]"
UPLOAD = """
HfApi().create_repo(given["repo"], exist_ok=True)
HfApi().upload_folder(repo_id=given["repo"], folder_path=given["folder"]).oid
"""


@contextlib.contextmanager
def loopback_hub(folder: Path) -> Iterator[HubServer]:
    """A Hub with its state in this folder, that has not stumbled over a request when it ends."""
    with HubServer(folder) as server:
        yield server
        assert server.failures == []


def train(client: Client, run: Path, base: str, **settings) -> str:
    """Let a client train three tasks on a base model; gives the protocol hash."""
    return client(TRAIN, run=str(run), base=str(base), settings=settings)


def push(client: Client, run: Path, repo: str, **options) -> list[dict]:
    """Let a client push a run; gives what became of each task."""
    return client(PUSH, run=str(run), repo=repo, options=options)


def upload(client: Client, repo: str, folder: Path | str) -> str:
    """Let a client put a folder into a repository, which is made where there is none; gives the commit."""
    return client(UPLOAD, repo=repo, folder=str(folder))


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[HubServer]:
    with loopback_hub(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def fresh_hub(tmp_path) -> Iterator[HubServer]:
    """A Hub of the test's own, in `tmp_path / "hub"`."""
    with loopback_hub(tmp_path / "hub") as server:
        yield server


@pytest.fixture(scope="module")
def alice(hub, tmp_path_factory) -> Iterator[Client]:
    with Client(hub, "hf_alice", tmp_path_factory.mktemp("alice")) as client:
        yield client


@pytest.fixture(scope="module")
def bob(hub, tmp_path_factory) -> Iterator[Client]:
    with Client(hub, "hf_bob", tmp_path_factory.mktemp("bob")) as client:
        yield client


@pytest.fixture
def newcomer(hub, tmp_path) -> Iterator[Client]:
    """Bob on a machine that has downloaded nothing yet."""
    with Client(hub, "hf_bob", tmp_path / "newcomer") as client:
        yield client


@pytest.fixture
def no_faults_left(hub) -> Iterator[None]:
    """The Hub without the faults and the requests of the test before."""
    hub.reset()
    yield
    hub.reset()


@pytest.fixture
def repo(request) -> str:
    """A repository of its own for each test."""
    return "alice/" + hashlib.sha1(request.node.name.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def hub_base(alice, tmp_path_factory) -> str:
    """A base model on the Hub."""
    from runs import save_backbone  # slow to import, and loaded with this file in every run of the tests

    upload(alice, "alice/vit", save_backbone(tmp_path_factory.mktemp("backbone")))
    return "alice/vit"
