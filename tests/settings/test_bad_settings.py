"""Settings: every field of every config with values of every wrong kind, and names that there are not."""

import subprocess
import sys
from dataclasses import fields

import pytest
from conftest import EXTRA, SIZES
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from smope_hf import ContinualTrainer, ContinualTrainingArguments, SMoPEConfig, SMoPEForImageClassification
from smope_hf.data.partition import RowSampler, class_groups
from smope_hf.data.reading import Classes
from smope_hf.models.configuration_prompted import PromptedConfig
from smope_hf.models.methods.rivals import PROMPT_METHODS
from smope_hf.models.modeling_prompted import PromptedForImageClassification
from smope_hf.settings.recipe_guard import arguments_to_go_on
from smope_hf.training.run_arguments import DataArguments, ModelArguments, method_config, read_recipe

NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**400
WRONG = {
    "an object": object(), "bytes": b"8", "a set": {8}, "a dict": {"a": NAN}, "a list of a dict": [{}],
    "nothing in a list": [None], "a list of NaN": [NAN], "a list of infinity": [INFINITE],
    "a switch in a list": [True],
    "NaN": NAN, "infinity": INFINITE, "minus infinity": -INFINITE, "a huge number": HUGE, "a complex number": 1j,
}  # fmt: skip
TEXTS = {"empty text": "", "text": "eight", "a number as text": "8", "a switch as text": "yes"}
NUMBERS = {"a negative number": -1, "minus a half": -0.5, "a share": 0.5, "a large number": 2**70, "a switch": True}
# values of those that a field takes, by what it takes
TAKES_TEXT = ("text", "a number as text", "a switch as text")
TAKES = {str: TAKES_TEXT, bool: ("a switch",), int: (), float: ("a share",), list: ()}
ANY_POSITIVE = ("a share", "a large number")
EXCEPTIONS = {
    "class_order_seed": ("a negative number",), "imbalance_factor": ("a large number",), "min_learning_rate": (),
    "push_to_hub": (), "hub_license": TAKES_TEXT, "hub_model_id": TAKES_TEXT, "backbone_config": (), "tasks": (),
    "settings": (), "prompt_layers": (), "pooling": (), "method": (), "routing": (),
    **dict.fromkeys(
        ("drift_shrinkage", "learning_rate", "prefix_lr_multiplier", "backbone_lr_multiplier",
         "alignment_learning_rate", "weight_decay", "alignment_weight_decay", "max_grad_norm", "image_cache_gib",
         "router_loss_coef", "prototype_loss_coef"),
        ANY_POSITIVE,
    ),
}  # fmt: skip
BASE_NAMES = ("base_model_name_or_path", "base_model_revision", "base_model_fingerprint")  # any text, even none
NOT_EARLY = {"pooling": TAKES_TEXT}  # of ModelArguments: the backbone decides, see the configs


def backbone():
    return CONFIG_MAPPING["vit"](**SIZES, **EXTRA["vit"])


def build(kind, name, value):
    needed = {
        SMoPEConfig: {"backbone_config": backbone()},
        PromptedConfig: {"backbone_config": backbone(), "method": "l2p"},
        DataArguments: {"dataset": "embedded"},
    }
    return kind(**{**needed.get(kind, {}), name: value})


def names_of(kind):
    return sorted(kind.own_fields()) if hasattr(kind, "own_fields") else [setting.name for setting in fields(kind)]


def taken(kind, name) -> tuple[str, ...]:
    """The wrong kinds that are none for this field."""
    if name in BASE_NAMES:
        return (*TAKES_TEXT, "empty text")
    if kind is ModelArguments and name in NOT_EARLY:
        return NOT_EARLY[name]
    if name in EXCEPTIONS:
        return EXCEPTIONS[name]
    setting = next(setting for setting in fields(kind) if setting.name == name)
    if setting.metadata.get("choices"):
        return ()
    hint = str(setting.type)
    found = next(plain for plain in (list, str, bool, float, int) if plain.__name__ in hint)
    return TAKES[found]


KINDS = (SMoPEConfig, PromptedConfig, ContinualTrainingArguments, ModelArguments, DataArguments)
FIELDS = [(kind, name) for kind in KINDS for name in names_of(kind)]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_every_field_refuses_every_wrong_kind_by_its_name(kind, name):
    """Also a field that was added later: without a check of its own it fails here."""
    values = {**WRONG, **TEXTS, **NUMBERS}
    wrong = {what: value for what, value in values.items() if what not in taken(kind, name)}
    assert len(wrong) >= len(WRONG)
    for what, value in wrong.items():
        with pytest.raises((ValueError, StrictDataclassError)) as error:
            build(kind, name, value)
            pytest.fail(f"{kind.__name__}.{name} takes {what}")
        assert name in str(error.value), what
    for what in set(values) - set(wrong):
        build(kind, name, values[what])


def test_there_are_as_many_fields_as_the_documentation_says():
    assert len(FIELDS) >= 90


# ---------------------------------------------------------------------- beyond the backbone, and together


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_layers": [4]}, r"prompt_layers = \[4\] is not allowed. Allowed: layers 0 to 3: the backbone has 4"),
        ({"prompt_layers": [0, 0]}, "each layer once"),
        ({"prompt_layers": [-1]}, "layers 0 to 3"),
        ({"prompt_layers": []}, "at least one layer"),
        ({"num_experts": 4}, "top_k = 5 is not allowed. Allowed: between 1 and num_experts = 4"),
        ({"num_experts": 2**14 + 1}, "num_experts = 16385 is not allowed. Allowed: 1 to 16384"),
        ({"backbone_config": {}}, r"backbone_config\['model_type'\] = None is not allowed. Allowed: one of vit, deit"),
        ({"backbone_config": {"model_type": "bert"}}, "= 'bert' is not allowed"),
        ({"backbone_config": {"model_type": "vit", "hidden_size": 2**40}}, "hidden_size"),
        ({"backbone_config": {"model_type": "vit", "num_hidden_layers": 0}}, "num_hidden_layers"),
        ({"tasks": [[0, 2]], "num_labels": 2}, "tasks"),
        ({"tasks": [[0], []], "num_labels": 1}, "at least one class in every task"),
    ],
)
def test_a_model_beyond_its_backbone_is_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        SMoPEConfig(**{"backbone_config": backbone(), **fields})


@pytest.mark.parametrize("method", sorted(PROMPT_METHODS))
def test_every_setting_of_every_rival_refuses_every_wrong_kind(method):
    for name, default in PROMPT_METHODS[method].defaults.items():
        wrong = {**WRONG, **TEXTS, **NUMBERS}
        wrong.pop("a share" if isinstance(default, float) else "a dict")
        for what, value in {**wrong, "nothing": None, **({"zero": 0} if isinstance(default, int) else {})}.items():
            with pytest.raises((ValueError, StrictDataclassError)) as error:
                PromptedConfig(backbone_config=backbone(), method=method, settings={name: value})
                pytest.fail(f"{method}: {name} takes {what}")
            assert "settings" in str(error.value), what


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "l2p",
            {"top_k": 4, "pool_size": 3},
            "settings['top_k'] = 4 is not allowed. Allowed: at most pool_size = 3",
        ),
        ("coda-prompt", {"length": 7}, "settings['length'] = 7 is not allowed. Allowed: an even number"),
        ("ovor", {"outlier_share": 1.5}, "settings['outlier_share'] = 1.5 is not allowed. Allowed: a share"),
        ("l2p", {"pool_size": 2**16, "length": 2**16}, "whose product is at most 131072"),
        ("l2p", {"pool_sice": 3}, "pool_size, length, top_k, pull_coef. Did you mean 'pool_size'?"),
        ("linear", {"length": 3}, "of linear: none"),
    ],
)
def test_settings_of_a_rival_that_do_not_go_together_are_refused(method, settings, message):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        PromptedConfig(backbone_config=backbone(), method=method, settings=settings)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["length", "length=", "length=x", "length=nan", "=3", "length=1;top_k=2"])
def test_settings_of_a_rival_as_text(text):
    arguments = ModelArguments(method="l2p", method_settings=text)
    with pytest.raises((ValueError, StrictDataclassError), match="settings"):
        model, chosen = method_config(arguments)
        chosen.pop("attn_implementation")
        model.config_class(backbone_config=backbone(), **chosen)


@pytest.mark.parametrize("value", [*WRONG.values(), "0.5", -0.1, 1])
def test_shares_of_a_stream_are_checked_without_a_data_set(value):
    for name in ("validation_fraction", "test_fraction"):
        shares = {"validation_fraction": 0.0, "test_fraction": 0.0, name: value}
        with pytest.raises(ValueError, match=name):
            RowSampler(0, **shares, max_train_samples_per_class=None, max_test_samples_per_class=None)


@pytest.mark.parametrize("lists", [8, "ab", {"a": 1}, {"a"}, [8], [None], [[None]], [[NAN]], [["c"]], [[]], []])
def test_lists_of_classes_are_checked(lists):
    classes = Classes(["a", "b"], "ClassLabel", {})
    with pytest.raises(ValueError, match="class_lists"):
        class_groups(classes, num_tasks=None, classes_per_task=None, class_lists=lists, shuffle_classes=False, seed=0)


# ---------------------------------------------------------------------- names that there are not


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        (ContinualTrainingArguments, "epohcs", "epochs"), (ContinualTrainingArguments, "lr_scheduler", "lr_schedule"),
        (DataArguments, "num_task", "num_tasks"), (ModelArguments, "num_expert", "num_experts"),
        (SMoPEConfig, "num_expert", "num_experts"), (SMoPEConfig, "topk", "top_k"),
        (SMoPEConfig, "router_loss_coeff", "router_loss_coef"), (PromptedConfig, "setings", "settings"),
    ],
)  # fmt: skip
def test_a_keyword_that_there_is_not(kind, name, nearest):
    with pytest.raises(TypeError, match=f"{kind.__name__} has no setting '{name}'. Did you mean '{nearest}'?"):
        build(kind, name, 1)


def test_a_keyword_that_is_like_none_lists_all():
    for kind in KINDS:
        with pytest.raises(TypeError, match="has no setting 'zzz'. There are: "):
            build(kind, "zzz", 1)


@pytest.mark.parametrize("model", [SMoPEForImageClassification, PromptedForImageClassification])
def test_a_keyword_of_from_backbone(model):
    with pytest.raises(TypeError, match="Did you mean 'prompt_layers'"):
        model.from_backbone("embedded", promt_layers=[0])


def test_a_field_of_a_later_version_is_left_out_and_told_of(monkeypatch):
    """A name that nobody has looked at could name code to run, or where to run it."""
    warnings = []
    monkeypatch.setattr("smope_hf.storage.config_fields.logger.warning", warnings.append)
    config = SMoPEConfig.from_dict({**SMoPEConfig(backbone_config=backbone()).to_dict(), "num_routers": 2})
    assert not hasattr(config, "num_routers") and "'num_routers': 2" in warnings[0]
    assert SMoPEConfig.from_dict(SMoPEConfig(backbone_config=backbone()).to_dict()) and len(warnings) == 1


def test_a_keyword_of_from_checkpoint(tmp_path):
    with pytest.raises(OSError):  # the checkpoint is looked for first
        ContinualTrainer.from_checkpoint(str(tmp_path), None, output_dir="x", epohcs=1)
    with pytest.raises(ValueError, match=r"\['epohcs'\] are no training settings. Did you mean 'epochs'?"):
        arguments_to_go_on({"recipe": {}}, tmp_path, {"epohcs": 1})


def test_a_key_of_a_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("on_bad_images: skip\n")
    with pytest.raises(ValueError, match="'on_bad_images' is no setting. Did you mean 'on_bad_image'?"):
        read_recipe(tmp_path / "recipe.yaml")


def test_an_option_of_the_command_line():
    command = [sys.executable, "-m", "smope_hf", "train", "--dataset", "embedded", "--epohcs", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "'--epochs'" in done.stderr and "Traceback" not in done.stderr
