"""What a file from elsewhere may set: every field of every dataclass that a file reaches is in one list or another."""

import importlib
import pkgutil
from collections import Counter
from dataclasses import fields, is_dataclass

import pytest
from transformers import CONFIG_MAPPING, PreTrainedConfig

import smope_hf
from smope_hf import ContinualTrainingArguments
from smope_hf.models.backbones import FAMILIES
from smope_hf.models.configuration_incremental import OTHER_NAMES
from smope_hf.models.configuration_prompted import PromptedConfig
from smope_hf.models.methods.rivals import PROMPT_METHODS
from smope_hf.models.registry import MODEL_CLASSES
from smope_hf.settings.training_args import LEARNING, OWN, ROUNDING
from smope_hf.sharing.remote_code import auto_map
from smope_hf.storage import config_fields as listed

NOT_TAKEN = {*listed.AS_USUAL, *listed.WITHOUT_A_WORD, *listed.NEVER, *listed.REFUSED}
OF_TWO_HALVES = {"vision_config", "text_config", "projection_dim", "logit_scale_init_value", "initializer_factor"}
FROM_FILES = {  # dataclass whose values a file of a checkpoint or base model reaches -> names in the lists
    "ContinualTrainingArguments": {*LEARNING, *ROUNDING, *OWN},
    "SMoPEConfig": {*listed.SHARED, *listed.MODELS["smope"], *NOT_TAKEN},
    "PromptedConfig": {*listed.SHARED, *listed.MODELS["smope_prompted"], *NOT_TAKEN},
    "IncrementalConfig": {*listed.SHARED, *listed.MODELS["smope"], *NOT_TAKEN},
    # Results and tensors, with no field that anything is done by but `continued_from` (tests of the continuation).
    "RunState": {
        "statistics",
        "usage_history",
        "matrix",
        "seconds",
        "continued_from",
        "follows",
        "task_confusion",
        "made_with",
        "version_changes",
        "logged_steps",
    },
    "ClassStatistics": {"mean", "variance", "count", "scatter"},
    "Task": {"index", "class_names", "class_ids", "train", "validation", "test"},  # a file gives names and ids alone
}
NEVER_FROM_FILES = {  # made by the code from what it has, or by the user: by the command line and recipes of their own
    "ModelArguments", "DataArguments", "BackboneFamily", "BeitFamily", "BatchAugmentation", "CheckpointSource",
    "Classes", "Duplicates", "Evaluation", "FeatureDrift", "Picture", "PromptedOutput", "PushedTask",
    "RowSampler", "RunGroup", "ImagePasses", "ProgressBars", "SMoPEImageClassifierOutput", "SkippedImage",
    "StagedTask", "TaskSplit",
}  # fmt: skip


# ---------------------------------------------------------------------- the lists are whole


def dataclasses_of_the_package() -> dict[str, type]:
    names = [module.name for module in pkgutil.walk_packages(smope_hf.__path__, "smope_hf.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    kinds = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    return {kind.__name__: kind for kind in kinds if is_dataclass(kind) and kind.__module__.startswith("smope_hf.")}


def test_it_is_known_of_every_dataclass_whether_files_reach_it():
    found = set(dataclasses_of_the_package())
    assert not found - FROM_FILES.keys() - NEVER_FROM_FILES, "say of these whether a file from elsewhere sets them"
    assert not (FROM_FILES.keys() | NEVER_FROM_FILES) - found


@pytest.mark.parametrize("name", FROM_FILES)
def test_every_field_is_in_a_list(name):
    in_none = [
        field.name for field in fields(dataclasses_of_the_package()[name]) if field.name not in FROM_FILES[name]
    ]
    assert not in_none, f"{name}: say of these whether a file from elsewhere may set them: {in_none}"


def test_no_setting_of_training_is_in_two_lists():
    twice = [name for name, count in Counter([*LEARNING, *ROUNDING, *OWN]).items() if count > 1]
    assert not twice and set(ContinualTrainingArguments().recipe()) == set(LEARNING)


@pytest.mark.parametrize("family", [*FAMILIES, *listed.HALVES])
def test_every_field_of_a_backbones_config_is_in_a_list(family):
    own = OF_TWO_HALVES if family in listed.HALVES else {*listed.BACKBONES[family]}
    in_none = {field.name for field in fields(CONFIG_MAPPING[family])} - own - {*listed.SHARED} - NOT_TAKEN
    assert not in_none, f"{family}: say of these whether a config.json may set them: {in_none}"
    assert family in listed.HALVES or not own & NOT_TAKEN - {"projection_dim"}


def test_every_other_name_that_transformers_takes_is_in_a_list():
    everywhere = {*listed.SHARED, *NOT_TAKEN, "auto_map"}
    assert {field.name for field in fields(PreTrainedConfig)} | {*OTHER_NAMES} <= everywhere
    assert listed.BACKBONES.keys() == FAMILIES.keys() and listed.MODELS.keys() == MODEL_CLASSES.keys()


def test_the_code_of_a_model_is_where_its_list_says():
    for model_class in MODEL_CLASSES.values():
        found = {place.split(".")[1] for place in auto_map(model_class).values()}
        assert found == {model_class.__name__, model_class.config_class.__name__}
        for place in auto_map(model_class).values():
            module, name = place.split(".")
            assert hasattr(importlib.import_module(f"smope_hf.{module}"), name)


@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_no_setting_of_a_rival_is_taken_at_any_size(method):
    for name in PROMPT_METHODS[method].defaults:
        content = {**PromptedConfig(method=method, num_labels=2).to_dict(), "settings": {name: 10**9}}
        with pytest.raises(Exception, match=name):
            PromptedConfig.from_dict(content)
