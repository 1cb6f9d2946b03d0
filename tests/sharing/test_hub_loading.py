"""A model on the Hub: loaded at any task, on any machine, and taught more, through the real client."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from hub_client import Client, RemoteError
from hub_fixtures import IMPORTS, train, upload
from huggingface_hub import ModelCard
from runs import assert_same_tensors, save_backbone
from safetensors import safe_open

RIVAL = (
    IMPORTS
    + """
from transformers import ViTImageProcessorPil
torch.manual_seed(0)
model = PromptedForImageClassification.from_backbone(given["base"], method=given["method"], settings=given["settings"])
processor = ViTImageProcessorPil.from_pretrained(given["base"])
ContinualTrainer(model, tiny_args(Path(given["run"])), tiny_stream(num_tasks=2), processor).train()
[task.tag for task in push_run(given["run"], given["repo"])]
"""
)
LOGITS = """
model = {loader}.from_pretrained(given["model"], **given.get("options", {{}})).eval()
pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
model(pixels).logits.detach().tolist()
"""


@pytest.fixture(scope="module")
def run(hub, alice, hub_base, tmp_path_factory):
    """Three tasks, each pushed to alice/digits as it ended."""
    folder = tmp_path_factory.mktemp("run")
    train(alice, folder, hub_base, push_to_hub=True, hub_model_id="digits")
    state = hub.state("alice/digits")
    assert sorted(state["tags"]) == ["task-01", "task-02", "task-03"] and len(state["commits"]) == 4
    return folder


def logits(client, model, loader="SMoPEForImageClassification", **options):
    return client(LOGITS.format(loader=loader), model=str(model), options=options)


def test_two_revisions_through_one_cache_are_two_models(bob, run):
    first, second = (logits(bob, "alice/digits", revision=tag) for tag in ("task-01", "task-02"))
    assert [len(row) for row in first] == [2, 2] and [len(row) for row in second] == [4, 4]
    assert first == logits(bob, run / "task-01") and second == logits(bob, run / "task-02")
    assert logits(bob, "alice/digits", revision="task-01") == first  # and back again
    assert logits(bob, "alice/digits") == logits(bob, run / "task-03")


def test_auto_classes_and_pipeline(bob, run):
    bob("from transformers import AutoModelForImageClassification, pipeline\nNone")
    auto = "from transformers import AutoModelForImageClassification\n" + LOGITS.format(
        loader="AutoModelForImageClassification"
    )
    for tag in ("task-02", "task-03"):
        expected = logits(bob, run / tag)
        assert bob(auto, model="alice/digits", options={"revision": tag}) == expected
    classify = """
from transformers import pipeline
from PIL import Image
classifier = pipeline("image-classification", model=given["model"], **given["options"])
[(found["label"], found["score"]) for found in classifier(Image.new("RGB", (20, 20), "red"), top_k=9)]
"""
    found = bob(classify, model="alice/digits", options={"revision": "task-02"})
    assert found == bob(classify, model=str(run / "task-02"), options={}) and len(found) == 4
    assert len(bob(classify, model="alice/digits", options={})) == 6


@pytest.mark.parametrize(
    "method, name, settings",
    [("l2p", "Deep L2P++", {"pool_size": 6, "length": 4, "top_k": 2}),
     ("coda-prompt", "CODA-Prompt", {"components_per_task": 3, "length": 4}), ("finetune", "Fine-tuning", None)],
)  # fmt: skip
def test_a_rival_comes_back_from_the_hub_as_it_was(alice, bob, hub_base, tmp_path, method, name, settings):
    """With its prompts on the base model of the Hub, or with the backbone that it trained."""
    trained = method == "finetune"
    repo, given = f"alice/{method}", {"base": hub_base, "run": str(tmp_path), "method": method, "settings": settings}
    assert alice(RIVAL, repo=repo, **given) == ["task-01", "task-02"]
    for tag, classes in (("task-01", 3), ("task-02", 6)):
        found = logits(bob, repo, "PromptedForImageClassification", revision=tag)
        assert found == logits(bob, tmp_path / tag, "PromptedForImageClassification") and len(found[0]) == classes
    with safe_open(bob("str(local_checkpoint(given['repo']))", repo=repo) + "/model.safetensors", "pt") as file:
        assert any(key.startswith("backbone.") for key in file.keys()) == trained
    card = ModelCard(bob("from huggingface_hub import ModelCard\nModelCard.load(given['repo']).content", repo=repo))
    assert f"# {name} after task 2: 6 classes" in card.text and f"by {name}, as a rival of SMoPE" in card.text
    assert f"This repository holds the {'backbone' if trained else 'prompts'}, the\nhead" in card.text
    assert (card.data.base_model, card.data.base_model_relation) == (hub_base, "finetune" if trained else "adapter")


def test_a_loaded_base_model_of_the_hub_does_not_tell_its_commit(hub, bob, hub_base):
    """A model on it could not be fetched again as it was; so it is refused, unless the commit is given."""
    code = """
from transformers import ViTModel
from smope_hf.sharing.hub_files import check_can_be_shared
loaded = ViTModel.from_pretrained(given["base"])
model = SMoPEForImageClassification.from_backbone(loaded, revision=given["commit"])
check_can_be_shared(model.config, include_backbone=False, remote_code=False)
model.config.base_model_revision
"""
    commit = hub.state(hub_base)["commits"][-1]["oid"]
    assert bob(code, base=hub_base, commit=commit) == commit
    with pytest.raises(RemoteError, match="no commit of it is recorded: .* as a loaded model without revision="):
        bob(code, base=hub_base, commit=None)


def test_what_was_downloaded_works_without_the_hub(run, newcomer):
    expected = logits(newcomer, "alice/digits", revision="task-02")
    newcomer("import huggingface_hub.constants\nhuggingface_hub.constants.HF_HUB_OFFLINE = True\nNone")
    assert logits(newcomer, "alice/digits", revision="task-02") == expected


def test_a_cut_download_is_taken_up_again(hub, run, newcomer):
    hub.reset()
    hub.faults([{"match": {"method": "GET", "path": "/blobs/"}, "action": {"cut_response_after": 3000}}])
    found = logits(newcomer, "alice/digits", revision="task-03")
    assert any(entry["fault"] for entry in hub.log())
    assert found == logits(newcomer, run / "task-03")
    hub.reset()


@pytest.mark.parametrize("find", ["given['model']", "local_checkpoint(given['model'])"])
def test_a_damaged_download_is_had_again_as_the_message_says(run, newcomer, find):
    """The file in the snapshot is a link: without it alone, the client would link to the damaged blob again."""
    load = f"SMoPEForImageClassification.from_pretrained({find}).config.num_labels"
    assert newcomer(load, model="alice/digits") == 6
    weights = newcomer("str(local_checkpoint(given['model']))", model="alice/digits") + "/model.safetensors"
    Path(weights).write_bytes(Path(weights).read_bytes()[:2000])
    with pytest.raises(RemoteError, match="no readable safetensors file") as error:
        newcomer(load, model="alice/digits")
    blob = error.value.message.partition("Delete ")[2].partition(", and it is downloaded again")[0]
    Path(blob).unlink()
    assert newcomer(load, model="alice/digits") == 6


def test_a_wrong_revision_or_name_is_one_clear_error(bob, run):
    for name, revision in (("alice/digits", "task-09"), ("alice/nothing", None), ("no such name!", None)):
        with pytest.raises(RemoteError, match="could not be had from the Hub") as error:
            bob("str(local_checkpoint(given['name'], given['revision']))", name=name, revision=revision)
        assert "OSError" in error.value.kinds


# ---------------------------------------------------------------------- going on


GO_ON = (
    IMPORTS
    + """
learned = tiny_stream()
names = [list(learned[2].class_names)]
trainer = ContinualTrainer.from_checkpoint(
    given["model"], tiny_stream(num_tasks=None, class_lists=names), revision=given["revision"],
    output_dir=given["run"], disable_progress=True, eval_batch_size=8,
    old_tests=[task.test for task in learned[:2]], **given["settings"],
)
trainer.train()
"""
)


def test_another_person_goes_on_from_a_tag_bit_for_bit(hub, bob, run, tmp_path):
    settings = {"push_to_hub": True, "hub_model_id": "bob/more"}
    content = bob(GO_ON, model="alice/digits", revision="task-02", run=str(tmp_path), settings=settings)
    assert_same_tensors(tmp_path / "task-03", run / "task-03")
    assert content["protocol_hash"] in (run / "task-03" / "manifest.json").read_text()
    state = hub.state("bob/more")
    assert list(state["tags"]) == ["task-03"] and len(state["commits"]) == 2
    assert logits(bob, "bob/more") == logits(bob, run / "task-03")
    commit = hub.state("alice/digits")["tags"]["task-02"]
    card = bob("from huggingface_hub import ModelCard\nModelCard.load('bob/more').text")
    assert f"It went on from `alice/digits` at commit `{commit}`, which had learned 2 tasks" in card


def test_going_on_in_ones_own_repository_adds_the_next_task(hub, alice, run, hub_base, tmp_path):
    """A repository with two tasks gets its third from a folder that holds that task alone."""
    first = tmp_path / "first"
    for name in ("task-01", "task-02"):
        shutil.copytree(run / name, first / name)
    alice("len(push_run(given['run'], 'alice/own'))", run=str(first))
    settings = {"push_to_hub": True, "hub_model_id": "alice/own"}
    alice(GO_ON, model="alice/own", revision=None, run=str(tmp_path / "more"), settings=settings)
    state = hub.state("alice/own")
    assert sorted(state["tags"]) == ["task-01", "task-02", "task-03"] and len(state["commits"]) == 4


def test_a_task_is_not_pushed_behind_a_model_it_did_not_come_from(hub, alice, run, hub_base, tmp_path):
    other = tmp_path / "other"
    train(alice, other, hub_base, seed=5)
    shutil.rmtree(other / "task-03")
    alice("len(push_run(given['run'], 'alice/other'))", run=str(other))
    before = hub.state("alice/other")
    alice(GO_ON, model="alice/digits", revision="task-02", run=str(tmp_path / "more"), settings={})
    with pytest.raises(RemoteError, match="task-02 in alice/other is not the model that task-03 went on from"):
        alice("len(push_run(given['run'], 'alice/other'))", run=str(tmp_path / "more"))
    assert hub.state("alice/other") == before


# ---------------------------------------------------------------------- pushing while training


def test_a_hub_that_is_away_does_not_end_the_training(hub, alice, run, hub_base, tmp_path):
    hub.faults([{"match": {"method": "POST", "path": "alice/away/commit/"}, "skip": 1, "times": 4,
                 "action": {"status": 503}}])  # fmt: skip
    settings = {"push_to_hub": True, "hub_model_id": "alice/away"}
    train(alice, tmp_path, hub_base, **settings)
    # the push after the third task made up for the one after the second
    assert sorted(hub.state("alice/away")["tags"]) == ["task-01", "task-02", "task-03"]
    assert "Not pushed yet" in alice.output
    hub.reset()


def test_a_hub_that_stays_away_is_an_error_at_the_end_and_resuming_mends_it(hub, alice, run, hub_base, tmp_path):
    hub.faults([{"match": {"method": "POST", "path": "alice/gone/tag/"}, "times": 99, "action": {"status": 503}}])
    settings = {"push_to_hub": True, "hub_model_id": "alice/gone"}
    with pytest.raises(RemoteError, match="All tasks were learned and saved.*smope push") as error:
        train(alice, tmp_path, hub_base, **settings)
    assert "PushError" in error.value.kinds
    hub.reset()
    train(alice, tmp_path, hub_base, **settings, resume=True)
    state = hub.state("alice/gone")
    assert sorted(state["tags"]) == ["task-01", "task-02", "task-03"] and len(state["commits"]) == 4
    assert_same_tensors(tmp_path / "task-03", run / "task-03")


def test_a_place_that_is_taken_is_found_before_any_training(hub, alice, run, hub_base, tmp_path):
    before = hub.state("alice/digits")
    settings = {"push_to_hub": True, "hub_model_id": "alice/digits"}
    with pytest.raises(RemoteError, match="has a task-03 already, which another run has learned"):
        alice(GO_ON, model="alice/digits", revision="task-02", run=str(tmp_path / "a"), settings=settings)
    with pytest.raises(RemoteError, match="has a task-01 already"):
        train(alice, tmp_path / "b", hub_base, **settings, seed=3)
    assert hub.state("alice/digits") == before and not list(tmp_path.iterdir())


def test_a_push_that_cannot_work_is_refused_before_any_training(hub, alice, run, hub_base, tmp_path):
    settings = {"push_to_hub": True, "hub_model_id": "bob/not-mine"}
    with pytest.raises(RemoteError, match="may not write to bob/not-mine"):
        train(alice, tmp_path / "a", hub_base, **settings)
    settings = {"push_to_hub": True, "hub_model_id": "alice/local"}
    backbone = save_backbone(tmp_path / "backbone")
    with pytest.raises(RemoteError, match="a folder of this machine"):
        train(alice, tmp_path / "b", backbone, **settings)
    assert not list(tmp_path.glob("[ab]/task-*"))


# ---------------------------------------------------------------------- base models and code


def test_the_base_comes_at_its_recorded_commit_and_no_other(hub, alice, run, hub_base, newcomer, tmp_path):
    """The base's main branch moves on; the models stay what they are, and the new base is refused for them."""
    expected = logits(newcomer, run / "task-03")
    other = save_backbone(tmp_path / "other", seed=9)
    upload(alice, hub_base, other)
    assert logits(newcomer, "alice/digits", revision="task-03") == expected
    recorded = hub.state(hub_base)["commits"][1]["oid"]
    with pytest.raises(RemoteError, match=f"not those .*'{hub_base}' \\(revision {recorded}\\)"):
        logits(newcomer, "alice/digits", backbone=hub_base)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> str:
    """The interpreter of a machine with all of our dependencies, and without smope_hf."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, with_pip=False, symlinks=True)
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (next(folder.glob("lib/*/site-packages")) / "dependencies.pth").write_text(ours + "\n")
    python = str(folder / "bin" / "python")
    done = subprocess.run([python, "-c", "import transformers, smope_hf"], capture_output=True, text=True, cwd=folder)
    assert "No module named 'smope_hf'" in done.stderr
    return python


REMOTE = LOGITS.format(loader="AutoModelForImageClassification")


@pytest.fixture(scope="module", params=[False, True], ids=["adapter", "standalone"])
def with_code(request, alice, run) -> str:
    """A repository with the model's code in it, and with or without its backbone."""
    repo = f"alice/with-code-{int(request.param)}"
    options = {"include_backbone": request.param, "remote_code": True}
    alice("len(push_run(given['run'], given['repo'], **given['options']))", run=str(run), repo=repo, options=options)
    return repo


@pytest.mark.slow
def test_with_its_code_a_model_is_loaded_without_smope_hf(hub, bob, run, elsewhere, with_code, tmp_path):
    prepare = (
        "import torch\ntorch.set_num_threads(1)\nfrom transformers import AutoModelForImageClassification, pipeline"
    )
    with Client(hub, "hf_bob", tmp_path, prepare, elsewhere) as client:
        with pytest.raises(RemoteError, match="trust_remote_code"):
            client(REMOTE, model=with_code)
        for tag in ("task-02", "task-03"):
            found = client(REMOTE, model=with_code, options={"trust_remote_code": True, "revision": tag})
            assert found == logits(bob, run / tag)
        classify = "pipeline('image-classification', model=given['model'], trust_remote_code=True).model.config.top_k"
        assert client(classify, model=with_code) == 2
    assert logits(bob, with_code) == logits(bob, run / "task-03")  # with smope_hf its own code is used


def test_code_from_a_repository_beside_an_installed_smope_hf_does_not_disturb_it(bob, run, with_code):
    auto = "from transformers import AutoModelForImageClassification\n" + REMOTE
    expected = logits(bob, run / "task-03")
    assert bob(auto, model=with_code, options={"trust_remote_code": True}) == expected
    assert logits(bob, "alice/digits") == expected
    loaded = "from transformers import AutoModelForImageClassification as Auto\nAuto.from_pretrained('alice/digits')"
    assert bob(f"{loaded}.__class__.__module__") == "smope_hf.models.modeling_smope"


def test_code_for_the_embedded_base_needs_the_backbone_along(alice, run, tmp_path):
    with pytest.raises(RemoteError, match="'embedded' comes with smope_hf.*include_backbone"):
        alice("check_can_be_shared(SMoPEForImageClassification.from_backbone('embedded').config, False, True)")
