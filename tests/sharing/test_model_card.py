"""The README.md of a checkpoint: what the Hub reads of it, and what a person does."""

import re

import pytest
from conftest import tiny_config
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from smope_hf import ContinualTrainingArguments
from smope_hf.data.manifest import protocol_hash
from smope_hf.sharing.model_card import build_card

CLASSES = (("zero", "one"), ("two|2", "three"), ("four", "five"))
SPLIT = {"num_samples": 7, "sha256": "0" * 64}


def make_manifest(num_tasks: int, **fields) -> dict:
    tasks = [
        {
            "index": index,
            "class_ids": [2 * index, 2 * index + 1],
            "class_names": list(CLASSES[index]),
            "train": SPLIT,
            "validation": None,
            "test": SPLIT,
        }
        for index in range(num_tasks)
    ]
    information = {"source": {"name_or_path": "owner/digits", "local": False}}
    options = {"test_split": "test", "seed": 0}
    columns = {"image": "image", "label": "label"}
    return {
        "format_version": 1, "name": "digits", "protocol_hash": protocol_hash(tasks), "seed": 0,
        "num_classes": 2 * num_tasks, "columns": columns, "options": options, "tasks": tasks,
        "information": information, **fields,
    }  # fmt: skip


def make_card(rows=((0.9,), (0.8, 0.625)), settings=None, manifest=None, state=None, card=None, **fields) -> str:
    tasks = len(rows)
    config = tiny_config(num_labels=2 * tasks, tasks=[[2 * t, 2 * t + 1] for t in range(tasks)], **fields)
    state = {
        "recipe": (settings or ContinualTrainingArguments()).recipe(),
        "accuracy_matrix": rows,
        "versions": {"smope_hf": "9.9", "torch": "2.13", "transformers": "5.23", "python": "3.11"},
        **(state or {}),
    }
    return build_card(config, state, make_manifest(tasks, **(manifest or {})), {"dead_share": 0.25}, **(card or {}))


def test_the_hub_reads_its_metadata():
    base = {"base_model_name_or_path": "google/vit-base-patch16-224-in21k", "base_model_revision": "abc"}
    card = ModelCard(make_card(**base))
    data = card.data.to_dict()
    assert data["library_name"] == "smope_hf" and "license" not in data  # whose would it be?
    assert data["pipeline_tag"] == "image-classification" and "continual-learning" in data["tags"]
    assert data["base_model"] == base["base_model_name_or_path"] and data["base_model_revision"] == "abc"
    assert data["base_model_relation"] == "adapter"
    assert data["datasets"] == ["owner/digits"] and data["metrics"] == ["accuracy"]
    assert ModelCard(str(card)).data.to_dict() == data


def test_the_model_index_has_the_metrics_and_the_accuracy_on_each_task():
    card = ModelCard(make_card())
    overall = {r.metric_type: r.metric_value for r in card.data.eval_results if r.dataset_name == "digits"}
    assert overall == {
        "final_average_accuracy": pytest.approx((0.8 + 0.625) / 2),
        "cumulative_average_accuracy": pytest.approx((0.9 + 0.7125) / 2),
        "forgetting": pytest.approx(0.1),
    }
    tasks = {r.dataset_config: r for r in card.data.eval_results if r.metric_type == "accuracy"}
    assert {name: result.metric_value for name, result in tasks.items()} == {"task-01": 0.8, "task-02": 0.625}
    assert {r.task_type for r in card.data.eval_results} == {"image-classification"}
    assert {r.dataset_type for r in card.data.eval_results} == {"owner/digits"}
    index = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    name, results = model_index_to_eval_results(index)  # what the Hub keeps of it
    assert name == card.data.model_name and len(results) == 5


def test_after_one_task_there_is_nothing_to_forget():
    card = ModelCard(make_card(rows=((0.9,),)))
    assert "forgetting" not in {result.metric_type for result in card.data.eval_results}
    assert "| 90.00 | 90.00 | n/a |" in card.text


def test_a_person_reads_the_tasks_learned_the_protocol_and_the_recipe():
    settings = ContinualTrainingArguments(seed=7)
    text = ModelCard(make_card(settings=settings, card={"pictured": True})).text
    assert "after task 2: 4 classes" in text and "`digits`" in text
    assert f"`{make_manifest(2)['protocol_hash']}`" in text
    assert "| 1 | zero, one | 7 | 7 | 80.00 |\n| 2 | two\\|2, three | 7 | 7 | 62.50 |" in text
    assert "four" not in text  # a class not learned yet
    assert '"seed": 7' in text and '"test_split": "test"' in text
    assert "25% of its experts were never used" in text
    assert "(accuracy_matrix.png)" in text
    assert "accuracy_matrix.png" not in make_card(settings=settings)  # where there is none


def test_what_was_not_measured_is_not_claimed():
    card = ModelCard(make_card(rows=((0.9,), (None, 0.6))))
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy"}
    assert "| n/a | n/a | n/a |" in card.text and "| 1 | zero, one | 7 | 7 | n/a |" in card.text
    nothing = ModelCard(make_card(rows=((None,), (None, None))))
    assert nothing.data.eval_results is None and "nothing was measured" in nothing.text
    assert "accuracy_matrix.png" not in nothing.text


def test_a_model_on_the_hub_says_how_to_load_it_and_where_it_came_from():
    origin = {"name": "alice/first", "commit": "c0ffee", "num_tasks": 1}
    text = make_card(card={"repo_id": "bob/more", "remote_code": True}, state={"continued_from": origin})
    assert 'pipeline("image-classification", model="bob/more", revision="task-02")' in text
    assert 'from_pretrained("bob/more", revision="task-02", trust_remote_code=True)' in text
    assert "It went on from `alice/first` at commit `c0ffee`, which had learned 1 task." in text
    assert "trust_remote_code" not in make_card(card={"repo_id": "bob/more"})


def test_a_license_is_only_what_somebody_said():
    assert ModelCard(make_card(card={"license": "mit"})).data.license == "mit"
    assert ModelCard(make_card(base_model_name_or_path="embedded")).data.license == "apache-2.0"


def test_no_name_of_a_class_breaks_the_card(monkeypatch):
    wild = ("a|b", "<script>x</script> `y` *z* {{ card_data }}\n# head")
    monkeypatch.setattr("test_model_card.CLASSES", (wild,))
    text = ModelCard(make_card(rows=((0.9,),))).text
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert "<script>" not in text and r"a\|b, &lt;script&gt;x&lt;/script&gt; \`y\` \*z\*" in row and row.endswith("|")


def test_data_sets_of_earlier_runs_are_named_too():
    before = make_manifest(1, information={"source": {"name_or_path": "owner/letters", "local": False}})
    information = {"source": {"name_or_path": "photos", "local": True}, "continues": before}
    card = ModelCard(make_card(manifest={"information": information}))
    assert card.data.datasets == ["owner/letters"]


def test_the_body_names_the_base_model_and_its_revision():
    text = ModelCard(make_card(base_model_name_or_path="google/vit", base_model_revision="abc123")).text
    assert "`google/vit`, revision `abc123`" in text


@pytest.mark.parametrize("base", ["embedded", None, "/data/private/vit", "./vit", "../vit", "~/vit", "runs/my/vit"])
def test_a_base_that_is_not_on_the_hub_is_no_base_of_the_card(base):
    """The Hub links `base_model`; a folder of this machine is nobody's business there."""
    content = make_card(base_model_name_or_path=base)
    assert ModelCard(content).data.base_model is None
    assert "private" not in content and "(``)" not in content


def test_a_local_folder_that_looks_like_a_hub_id_is_no_base_of_the_card(tmp_path, monkeypatch):
    (tmp_path / "models" / "vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ModelCard(make_card(base_model_name_or_path="models/vit")).data.base_model is None


def test_nothing_of_this_machine_is_in_the_card(tmp_path):
    settings = ContinualTrainingArguments(output_dir=str(tmp_path / "run"))
    content = make_card(settings=settings, base_model_name_or_path=str(tmp_path / "backbone"))
    assert str(tmp_path) not in content and "pytest" not in content
    assert not re.search(r"(?<![\w.`/:])/(home|tmp|root|work|data|Users)/", content)


@pytest.mark.parametrize("name", ["owner/name", 'a "quoted": name', "# hash", "- dash", "{{ braces }}"])
def test_any_name_of_a_data_set_keeps_the_metadata_whole(name):
    card = ModelCard(make_card(manifest={"name": name, "information": {}}))
    overall = [result for result in card.data.eval_results if result.metric_type != "accuracy"]
    assert {result.dataset_name for result in overall} == {name} and f"`{name}`" in card.text
