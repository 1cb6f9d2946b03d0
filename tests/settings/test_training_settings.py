"""Settings of a run: what is refused, which learning rate a step has, which seeds differ, which run is the same."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_config, tiny_model
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from smope_hf import ContinualTrainingArguments
from smope_hf.data.seeding import derive_generator, derive_seed
from smope_hf.heads.alignment import ClassStatistics
from smope_hf.models.modeling_prompted import PromptedForImageClassification
from smope_hf.training.optimization import build_optimizer, build_schedule, learning_rate_at
from smope_hf.training.run_state import RunState, check_same_run, comparable_fields, versions

# ---------------------------------------------------------------------- settings

NAN, INFINITE = float("nan"), float("inf")
WRONG = [
    ("epochs", 0), ("epochs", 2.5), ("epochs", True), ("epochs", "20"),
    ("dense_epochs", -1), ("dense_epochs", 0.5),
    ("batch_size", 0), ("batch_size", -128), ("eval_batch_size", 0), ("eval_batch_size", None),
    ("gradient_accumulation_steps", 0), ("gradient_accumulation_steps", 129),
    ("learning_rate", 0), ("learning_rate", -0.1), ("learning_rate", NAN), ("learning_rate", INFINITE),
    ("learning_rate", "0.005"), ("prefix_lr_multiplier", 0), ("prefix_lr_multiplier", NAN),
    ("backbone_lr_multiplier", 0),
    ("min_learning_rate", -1e-6), ("min_learning_rate", NAN), ("min_learning_rate", 1.0),
    ("freeze_epochs", -1), ("freeze_epochs", 20), ("freeze_epochs", 1.5),
    ("lr_schedule", "linear"), ("lr_schedule", None), ("weight_decay", -0.1), ("weight_decay", INFINITE),
    ("max_grad_norm", 0), ("max_grad_norm", -1.0), ("max_grad_norm", NAN),
    ("crop_scale", [0.5, 0.1]), ("crop_scale", [0.0, 1.0]), ("crop_scale", [0.5]), ("crop_scale", "all"),
    ("crop_ratio", [2.0, 1.0]), ("crop_ratio", [-1.0, 1.0]),
    ("flip_probability", -0.1), ("flip_probability", 1.1), ("flip_probability", NAN),
    ("normalization", "imagenet"), ("statistics", "test"),
    ("alignment", "linear"), ("alignment", None), ("alignment_epochs", 0), ("alignment_batch_ratio", 0),
    ("alignment_learning_rate", 0), ("alignment_weight_decay", -1), ("alignment_shrinkage", 1.01),
    ("alignment_shrinkage", -0.01), ("mixed_precision", "fp8"), ("image_cache_gib", -1),
    ("torch_compile", "yes"), ("image_cache_dir", ""),
    ("dataloader_num_workers", -1), ("report_to", "wandb"), ("logging_steps", 0), ("seed", -1), ("seed", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda item: str(item))
def test_wrong_settings_are_refused_with_name_and_value(name, value):
    with pytest.raises(ValueError) as error:
        ContinualTrainingArguments(**{name: value})
    message = str(error.value)
    assert f"{name} = {value!r}" in message and "Allowed: " in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 1), ("dense_epochs", 0), ("gradient_accumulation_steps", 128), ("freeze_epochs", 19),
     ("max_grad_norm", 1), ("flip_probability", 0), ("flip_probability", 1), ("alignment_shrinkage", 0),
     ("min_learning_rate", 0),
     ("alignment_shrinkage", 1), ("image_cache_gib", 0), ("weight_decay", 0), ("crop_scale", [1.0, 1.0])],
)  # fmt: skip
def test_the_limits_themselves_are_allowed(name, value):
    assert getattr(ContinualTrainingArguments(**{name: value}), name) == value


def test_the_warm_up_is_half_the_epochs_unless_given():
    assert ContinualTrainingArguments(epochs=20).warmup_epochs == 10
    assert ContinualTrainingArguments(epochs=1).warmup_epochs == 0
    assert ContinualTrainingArguments(epochs=20, dense_epochs=0).warmup_epochs == 0


def test_the_recipe_is_json_of_what_decides_the_result():
    recipe = ContinualTrainingArguments().recipe()
    assert json.loads(json.dumps(recipe, allow_nan=False)) == recipe
    elsewhere = ContinualTrainingArguments(
        output_dir="elsewhere", resume=True, logging_steps=1, image_cache_gib=0, dataloader_num_workers=2,
        image_cache_dir="here", eval_batch_size=3, disable_progress=True, save_checkpoints=False,
    )  # fmt: skip
    assert elsewhere.recipe() == recipe
    for name, value in {"seed": 1, "batch_size": 64, "statistics": "train", "mixed_precision": "bf16"}.items():
        assert ContinualTrainingArguments(**{name: value}).recipe() != recipe


def test_two_ways_of_computing_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="torch_compile = True is not allowed.*gradient_checkpointing"):
        ContinualTrainingArguments(torch_compile=True, gradient_checkpointing=True)


def test_pairs_and_names_given_as_tuples_are_those_of_the_saved_recipe():
    recipe = ContinualTrainingArguments(
        crop_scale=(0.5, 1.0), crop_ratio=(1.0, 1.0), compare_alignments=("none",)
    ).recipe()
    assert recipe == json.loads(json.dumps(recipe)) and recipe["crop_scale"] == [0.5, 1.0]


def test_settings_do_not_share_their_lists():
    first, second = ContinualTrainingArguments(), ContinualTrainingArguments()
    first.crop_scale[0] = 1.0
    assert second.crop_scale == [0.05, 1.0]


# ---------------------------------------------------------------------- learning rates

EPOCHS, EPOCH_STEPS, PEAK = 6, 5, 0.02


def rates(**settings):
    args = ContinualTrainingArguments(**{"epochs": EPOCHS, **settings})
    return [learning_rate_at(step, PEAK, args, EPOCHS, EPOCH_STEPS) for step in range(EPOCHS * EPOCH_STEPS)]


def torchs_cosine(steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=PEAK)
    schedule = CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("frozen", [0, 1, 3, 5])
def test_a_cosine_per_step_behind_the_freeze(frozen):
    found = rates(lr_schedule="cosine", freeze_epochs=frozen)
    assert found[: frozen * EPOCH_STEPS] == [1e-6] * (frozen * EPOCH_STEPS)
    cosine = found[frozen * EPOCH_STEPS :]
    assert cosine[0] == PEAK and cosine == sorted(cosine, reverse=True)
    assert cosine == pytest.approx(torchs_cosine(len(cosine)), rel=1e-9)


def test_the_cosine_ends_near_its_minimum():
    assert 1e-6 < rates(lr_schedule="cosine")[-1] < 0.01 * PEAK
    args = ContinualTrainingArguments(epochs=EPOCHS)
    assert learning_rate_at(EPOCHS * EPOCH_STEPS, PEAK, args, EPOCHS, EPOCH_STEPS) == pytest.approx(1e-6)


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_cosine_per_epoch_stays_through_each_epoch(frozen):
    found = rates(lr_schedule="cosine-per-epoch", freeze_epochs=frozen)[frozen * EPOCH_STEPS :]
    by_epoch = torchs_cosine(EPOCHS - frozen)
    assert found == pytest.approx([rate for rate in by_epoch for _ in range(EPOCH_STEPS)], rel=1e-9)


def test_a_constant_rate():
    assert rates(lr_schedule="constant", freeze_epochs=1) == [1e-6] * EPOCH_STEPS + [PEAK] * 25


def test_a_phase_shorter_than_the_freeze_still_trains_in_its_last_epoch():
    """The warm-up may have fewer epochs than the freeze asks for."""
    args = ContinualTrainingArguments(epochs=20, freeze_epochs=4)
    found = [learning_rate_at(step, PEAK, args, 3, EPOCH_STEPS) for step in range(3 * EPOCH_STEPS)]
    assert found[:10] == [1e-6] * 10 and found[10] == PEAK


def test_prefix_experts_learn_at_five_times_the_heads_rate():
    model = tiny_model()
    args = ContinualTrainingArguments(epochs=EPOCHS, freeze_epochs=1, learning_rate=0.01, weight_decay=0.1)
    optimizer = build_optimizer(model, args)
    schedule = build_schedule(optimizer, args, EPOCHS, EPOCH_STEPS)
    seen = []
    for _ in range(EPOCHS * EPOCH_STEPS):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert seen[0] == pytest.approx([1e-6, 1e-6]) and seen[EPOCH_STEPS] == pytest.approx([0.05, 0.01])
    expected = [[learning_rate_at(i, peak, args, EPOCHS, EPOCH_STEPS) for peak in (0.05, 0.01)] for i in range(30)]
    assert [rate for both in seen for rate in both] == pytest.approx([rate for both in expected for rate in both])


def test_the_optimizer_holds_experts_and_head_and_nothing_else():
    model = tiny_model()
    groups = build_optimizer(model, ContinualTrainingArguments(weight_decay=0.1)).param_groups
    held = [{id(parameter) for parameter in group["params"]} for group in groups]
    assert held[0] == {id(p) for p in model.prefix_experts.parameters()}
    assert held[1] == {id(p) for p in model.classifier.parameters()}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


def test_a_backbone_that_is_trained_learns_far_slower_than_its_head():
    """At the rate of prompts, five times the head's, a pre-trained backbone is destroyed within a task."""
    model = PromptedForImageClassification.from_backbone(tiny_model().backbone, method="finetune")
    prompts, head = build_optimizer(model, ContinualTrainingArguments(learning_rate=0.01)).param_groups
    assert (prompts["lr"], head["lr"]) == pytest.approx((1e-4, 0.01))
    assert {id(p) for p in model.backbone.parameters()} == {id(p) for p in prompts["params"]}


# ---------------------------------------------------------------------- seeds


def test_every_purpose_has_its_own_seed():
    purposes = [
        (seed, purpose, task, phase, epoch)
        for seed in range(3)
        for purpose in ("shuffle", "augmentation")
        for task in range(12)
        for phase in ("dense", "sparse")
        for epoch in range(12)
    ]
    seeds = {derive_seed(*purpose) for purpose in purposes}
    assert len(seeds) == len(purposes) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, 1, 11) != derive_seed(0, 11, 1) != derive_seed(0, 111)


def test_seeds_do_not_depend_on_the_process():
    """A fixed value: Python's own hash would differ from run to run."""
    assert derive_seed(0, "shuffle", 1, 2) == derive_seed(0, "shuffle", 1, 2) == 8895240160307591480
    numbers = torch.rand(3, generator=derive_generator(5, "alignment", 1))
    torch.rand(7)
    assert torch.equal(numbers, torch.rand(3, generator=derive_generator(5, "alignment", 1)))


def test_streams_of_different_purposes_do_not_follow_each_other():
    draws = torch.stack([torch.randn(2000, generator=derive_generator(0, "augmentation", i)) for i in range(20)])
    correlation = torch.corrcoef(draws) - torch.eye(20)
    assert correlation.abs().max() < 5 / math.sqrt(2000)


# ---------------------------------------------------------------------- the same run

RECIPE = {"seed": 0, "epochs": 20, "alignment": "lda"}
SAVED = {"recipe": RECIPE, "protocol_hash": "abc"}


def check(tmp_path, recipe=None, protocol_hash="abc", saved=SAVED, **fields):
    now = tiny_config(num_labels=None, **fields)  # a fresh model knows no class yet
    check_same_run(tmp_path / "task-02", saved, recipe or RECIPE, protocol_hash, tiny_config(), now)


def test_the_same_run_goes_on(tmp_path):
    check(tmp_path)
    check(tmp_path, saved=json.loads(json.dumps(SAVED)))


def test_every_difference_is_named(tmp_path):
    recipe = {"seed": 1, "epochs": 20, "alignment": "none"}
    with pytest.raises(ValueError) as error:
        check(tmp_path, recipe, "xyz", top_k=3, noise_epsilon=0.7, routing="unmasked", prompt_layers=[1, 2])
    message = str(error.value)
    for part in (
        "seed was 0 and is 1", "alignment was 'lda' and is 'none'", "top_k was 2 and is 3",
        "noise_epsilon was 0.4 and is 0.7", "routing was 'masked' and is 'unmasked'",
        "prompt_layers was [0, 1] and is [1, 2]", "protocol_hash differs", str(tmp_path), "another output_dir",
    ):  # fmt: skip
        assert part in message, part
    assert "epochs" not in message and "num_experts" not in message


@pytest.mark.parametrize(
    "fields",
    [{"num_experts": 7}, {"router_loss_coef": 0.5}, {"prototype_loss_coef": 0.5}, {"pooling": "mean"},
     {"base_model_fingerprint": "0" * 64}],
)  # fmt: skip
def test_another_model_is_another_run(tmp_path, fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"{name} was .* and is"):
        check(tmp_path, **fields)


def test_a_setting_that_came_later_had_its_default(tmp_path):
    saved = {"recipe": RECIPE, "protocol_hash": "abc"}
    check(tmp_path, {**RECIPE, "compare_alignments": [], "drift_shrinkage": 3.0}, saved=saved)
    with pytest.raises(ValueError, match="compare_alignments was .. and is .*drift_shrinkage was 3.0 and is 2"):
        check(tmp_path, {**RECIPE, "compare_alignments": ["none"], "drift_shrinkage": 2}, saved=saved)
    older = SimpleNamespace(**comparable_fields(tiny_config()))
    del older.routing
    check_same_run(tmp_path / "state", saved, RECIPE, "abc", older, tiny_config(num_labels=None))
    with pytest.raises(ValueError, match="routing was 'masked' and is 'random'"):
        check_same_run(tmp_path / "state", saved, RECIPE, "abc", older, tiny_config(num_labels=None, routing="random"))


def test_settings_that_this_version_lacks_are_differences(tmp_path):
    for saved, recipe in ((RECIPE, {**RECIPE, "new": 1}), ({**RECIPE, "new": 1}, RECIPE)):
        with pytest.raises(ValueError, match="new was"):
            check(tmp_path, recipe, saved={"recipe": saved, "protocol_hash": "abc"})


def test_a_run_goes_on_from_its_own_json():
    state = RunState(ClassStatistics.empty(4))
    for row in ([0.9], [0.8, 0.7], [0.6, 0.65, 0.5]):
        state.begin_task()["training"] = 1.5
        state.matrix.add_row(row)
    saved = json.loads(json.dumps({"accuracy_matrix": state.matrix.to_json(), "seconds_by_task": state.seconds}))
    again = RunState.from_saved(copy.deepcopy(saved), state.statistics, [])
    assert again.matrix.to_json() == state.matrix.to_json() == [[0.9], [0.8, 0.7], [0.6, 0.65, 0.5]]
    assert again.seconds == [{"training": 1.5}] * 3


def test_versions_are_texts_of_what_decides_a_result():
    found = versions()
    assert {"python", "processor", "torch", "transformers", "smope_hf"} <= set(found)
    assert torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability() in found["processor"]
    assert all(isinstance(version, str) for version in found.values()) and found["torch"] == torch.__version__
