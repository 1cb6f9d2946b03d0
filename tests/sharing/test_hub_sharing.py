"""What of a run can be shared on the Hub: the base model, models saved whole, and the code."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_client import RemoteError
from hub_fixtures import push
from runs import read, save_backbone, tiny_stream, tiny_trainer
from safetensors.torch import load_file
from typer.main import get_command

from smope_hf import SMoPEForImageClassification
from smope_hf.cli.program import app
from smope_hf.sharing.hub_files import check_can_be_shared, stage

WITH_PICTURES = True  # of the runs in this file

pytestmark = pytest.mark.usefixtures("no_faults_left")


def test_a_relative_folder_is_no_hub_id(alice):
    config = "type('Config', (), {'base_model_name_or_path': 'org/vit', 'base_model_revision': None})"
    with pytest.raises(RemoteError, match="'org/vit', and no commit of it is recorded"):
        alice(f"check_can_be_shared({config}, False, False)")


# A client's code: what a model makes of one image.
LOGITS = "SMoPEForImageClassification.from_pretrained(given['model'])(torch.ones(1, 3, 16, 16)).logits.tolist()"


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """One task on a base model that is a folder of this machine."""
    backbone = save_backbone(tmp_path_factory.mktemp("secret") / "backbone")
    folder = tmp_path_factory.mktemp("local-run")
    tiny_trainer(backbone, folder).train()
    return folder


def test_what_nobody_else_could_load_is_refused_before_anything_is_made(hub, alice, local_run, repo):
    with pytest.raises(RemoteError, match="a folder of this machine.*include_backbone"):
        push(alice, local_run, repo)
    assert not any("/repos/create" in entry["path"] for entry in hub.log())


@pytest.mark.parametrize("base, remote_code", [("/home/me/my-vit", False), ("embedded", True)])
def test_the_option_that_helps_is_named_as_each_command_calls_it(base, remote_code):
    config = SimpleNamespace(base_model_name_or_path=base, base_model_revision=None)
    with pytest.raises(ValueError) as caught:
        check_can_be_shared(config, include_backbone=False, remote_code=remote_code)
    training, commands = "--hub-include-backbone", get_command(app).commands
    for command, option in {"push": "--include-backbone", "train": training, "add-classes": training}.items():
        assert re.search(rf"[ (]{option} of .*`smope {command}`", str(caught.value))
        assert option in [name.replace("_", "-") for param in commands[command].params for name in param.opts]


def test_with_its_backbone_a_local_model_can_be_shared(hub, alice, bob, local_run, repo):
    options = {"include_backbone": True}
    push(alice, local_run, repo, **options)
    push(alice, local_run, repo, **options)
    assert len(hub.state(repo)["commits"]) == 4
    assert bob(LOGITS, model=repo) == alice(LOGITS, model=str(local_run / "task-03"))
    folder = bob("str(local_checkpoint(given['repo']))", repo=repo)
    texts = "".join(open(f"{folder}/{name}").read() for name in ("config.json", "trainer_state.json", "manifest.json"))
    assert "secret" not in texts and read(Path(folder), "config.json").get("base_model_name_or_path") is None


def test_a_base_model_that_has_moved_is_found_by_its_new_place(hub, alice, bob, local_run, repo, tmp_path):
    run = Path(shutil.copytree(local_run, tmp_path / "run"))
    place = read(run / "task-01", "config.json")["base_model_name_or_path"]
    for folder in run.glob("task-*"):
        config = folder / "config.json"
        config.write_text(config.read_text().replace(place, "/gone/away"))
        (folder / "checksums.json").unlink()
    with pytest.raises(RemoteError, match="(?s)'/gone/away'.*on a command line --backbone"):
        push(alice, run, repo, include_backbone=True)
    with pytest.raises(RemoteError, match="is not allowed without include_backbone"):
        push(alice, run, repo, backbone=place)
    push(alice, run, repo, include_backbone=True, backbone=place)
    assert bob(LOGITS, model=repo) == alice(LOGITS, model=str(local_run / "task-03"))
    folder = Path(bob("str(local_checkpoint(given['repo']))", repo=repo))
    assert read(folder, "config.json").get("base_model_name_or_path") is None


@pytest.mark.parametrize("include_backbone", [False, True])
def test_a_task_that_was_saved_standalone_goes_along_whole(local_run, tmp_path, include_backbone):
    """Where the base model is does not matter then, and the card says what the repository holds."""
    task = Path(shutil.copytree(local_run / "task-03", tmp_path / "task-03"))
    SMoPEForImageClassification.from_pretrained(task).save_pretrained(task, include_backbone=True)
    options = {"include_backbone": include_backbone, "remote_code": False, "backbone": str(tmp_path / "gone")}
    files = stage(task, "alice/whole", tmp_path / "scratch", **options).files
    assert any(name.startswith("backbone.") for name in load_file(files["model.safetensors"]))
    assert "repository holds the backbone, the experts" in files["README.md"].read_text()
    adapter = stage(local_run / "task-03", "alice/experts", tmp_path / "other", False, False).files
    assert "repository holds the experts" in adapter["README.md"].read_text()


@pytest.fixture(scope="module")
def nameless_run(tmp_path_factory):
    """One task on a loaded base model that has no name: its checkpoints hold the backbone."""
    backbone, folder = save_backbone(tmp_path_factory.mktemp("backbone")), tmp_path_factory.mktemp("nameless-run")
    trainer = tiny_trainer(backbone, folder, stream=tiny_stream(num_tasks=1))
    config = trainer.model.config
    config.base_model_name_or_path = config.base_model_revision = config.base_model_fingerprint = None
    trainer.train()
    return folder


@pytest.mark.parametrize("remote_code", [False, True])
@pytest.mark.parametrize("include_backbone", [False, True])
def test_a_backbone_without_a_name_goes_along(alice, bob, nameless_run, repo, include_backbone, remote_code):
    options = {"include_backbone": include_backbone, "remote_code": remote_code}
    push(alice, nameless_run, repo, **options)
    assert bob(LOGITS, model=repo) == alice(LOGITS, model=str(nameless_run / "task-01"))
    config = json.loads(bob("open(local_checkpoint(given['repo']) / 'config.json').read()", repo=repo))
    assert ("auto_map" in config) == remote_code and config.get("base_model_name_or_path") is None


def test_the_code_of_every_model_can_go_along(tmp_path):
    """All in one folder, where transformers finds what a modeling file imports."""
    from transformers.dynamic_module_utils import get_relative_import_files

    from smope_hf.models.registry import MODEL_CLASSES
    from smope_hf.sharing.remote_code import auto_map, write_code

    for model_class in MODEL_CLASSES.values():
        folder = tmp_path / model_class.__name__
        folder.mkdir()
        names = set(write_code(model_class, folder))
        starts = [folder / f"{place.split('.')[0]}.py" for place in auto_map(model_class).values()]
        found = {Path(file).name for start in starts for file in [start, *get_relative_import_files(start)]}
        assert found == names == {file.name for file in folder.iterdir()}
        assert "trainer.py" not in names and "pretrained.py" in names
        text = "".join(file.read_text() for file in folder.iterdir())
        assert not re.search(r"^\s*(from|import) (\.\.|smope_hf)", text, re.MULTILINE)
    assert {"l2p.py", "rivals.py", "prefix_attention.py"} < names


def test_code_whose_imports_name_no_file_cannot_go_along(tmp_path, monkeypatch):
    from smope_hf.models.modeling_smope import SMoPEForImageClassification
    from smope_hf.sharing import remote_code

    for name in ("modeling_smope", "configuration_smope"):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / f"{name}.py").write_text("from ..storage import safe_json\n")
    monkeypatch.setattr(remote_code, "_PACKAGE", tmp_path)
    with pytest.raises(ValueError, match=r"_smope.py:1 imports from storage, which is no module's file.*from .module"):
        remote_code.code_of(SMoPEForImageClassification)
