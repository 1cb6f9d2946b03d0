"""Drift compensation: stored statistics of old classes follow what training does to the features."""

import pytest
import torch
from runs import save_backbone, tensors, tiny_args, tiny_stream, tiny_trainer

from smope_hf.heads import drift as drift_module
from smope_hf.heads.alignment import ClassStatistics, StatisticsAccumulator
from smope_hf.heads.drift import FeatureDrift
from smope_hf.training.callbacks import ContinualCallback
from smope_hf.training.statistics_pass import take_statistics

SIZE, CLASSES = 6, 3


def features(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = 3 * torch.randn(CLASSES, SIZE, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(count, SIZE, generator=generator, dtype=torch.float64), labels


def statistics_of(rows, labels) -> ClassStatistics:
    accumulator = StatisticsAccumulator(CLASSES, SIZE)
    accumulator.update(rows, labels)
    return accumulator.result()


def affine(rows, seed=5):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(SIZE, dtype=torch.float64) + 0.3 * torch.randn(SIZE, SIZE, generator=generator).double()
    return rows @ matrix + torch.arange(SIZE)


def test_a_linear_movement_is_followed_exactly():
    """Learned on other images than those of the statistics, which then are as if taken afresh."""
    old, labels = features(60, seed=0)
    new, _ = features(400, seed=1)
    drift = FeatureDrift.between(new, affine(new), "linear", shrinkage=1e-9)
    moved, expected = drift.applied(statistics_of(old, labels)), statistics_of(affine(old), labels)
    torch.testing.assert_close(moved.mean, expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.scatter, expected.scatter, rtol=1e-4, atol=1e-2)
    assert torch.equal(moved.count, expected.count)
    before = statistics_of(old, labels)
    assert (before.mean - expected.mean).abs().max() > 1 and (before.scatter - expected.scatter).abs().max() > 10


def test_the_map_does_not_depend_on_how_many_features_are_taken_at_a_time(monkeypatch):
    rows, _ = features(400, seed=1)
    whole = FeatureDrift.between(rows, affine(rows), "linear", shrinkage=0.5)
    centred = rows - rows.mean(dim=0)
    moved = affine(rows) - rows
    covariance = centred.T @ centred / 400
    penalty = 0.5 * covariance.diagonal().mean() * torch.eye(SIZE, dtype=torch.float64)
    expected = torch.linalg.solve(covariance + penalty, centred.T @ (moved - moved.mean(dim=0)) / 400)
    torch.testing.assert_close(whole.matrix, expected)
    monkeypatch.setattr(drift_module, "ROWS", 7)
    parts = FeatureDrift.between(rows, affine(rows), "linear", shrinkage=0.5)
    torch.testing.assert_close(parts.matrix, whole.matrix)
    torch.testing.assert_close(parts.shift, moved.mean(dim=0))


def test_variances_are_followed_where_the_dimensions_are_independent():
    old, labels = features(60, seed=0)
    scale = torch.linspace(0.5, 2, SIZE, dtype=torch.float64)
    new, _ = features(400, seed=1)
    drift = FeatureDrift.between(new, new * scale, "linear", shrinkage=1e-9)
    moved = drift.applied(statistics_of(old, labels))
    torch.testing.assert_close(moved.variance, statistics_of(old * scale, labels).variance, rtol=1e-4, atol=1e-5)


def test_shrinkage_leads_from_a_linear_map_to_a_common_shift():
    old, labels = features(60, seed=0)
    new, _ = features(400, seed=1)
    known = statistics_of(old, labels)
    shift = FeatureDrift.between(new, affine(new), "shift", shrinkage=1.0).applied(known)
    torch.testing.assert_close(shift.mean - known.mean, (affine(new) - new).mean(dim=0).float().expand(CLASSES, -1))
    assert torch.equal(shift.scatter, known.scatter)
    held = FeatureDrift.between(new, affine(new), "linear", shrinkage=1e9).applied(known)
    torch.testing.assert_close(held.mean, shift.mean, rtol=0, atol=1e-4)
    free = FeatureDrift.between(new, affine(new), "linear", shrinkage=1e-3).applied(known)
    between = FeatureDrift.between(new, affine(new), "linear", shrinkage=1.0).applied(known)
    truth = statistics_of(affine(old), labels).mean
    errors = [(found.mean - truth).norm() for found in (free, between, held)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("count", [1, 2])
def test_a_handful_of_images_gives_a_finite_map(count):
    rows = torch.ones(count, SIZE)
    known = statistics_of(*features(60, seed=0))
    moved = FeatureDrift.between(rows, rows + 2, "linear", shrinkage=10.0).applied(known)
    torch.testing.assert_close(moved.mean, known.mean + 2)


class Distances(ContinualCallback):
    """How far the stored means are from those of the same images under the prompts as they are now."""

    def __init__(self):
        self.found = []

    def on_task_end(self, trainer, task):
        for old in trainer.stream[: task.index]:
            fresh, _ = take_statistics_without_counting(trainer, old)
            rows = slice(old.class_ids.start, old.class_ids.stop)
            self.found.append((trainer.state.statistics.mean[rows] - fresh.mean).norm().item())


def take_statistics_without_counting(trainer, task):
    trainer.model.records_usage, kept = False, trainer.model.records_usage
    try:
        return take_statistics(trainer.model, task, trainer.decoded(task.train), trainer.passes)
    finally:
        trainer.model.records_usage = kept


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


def test_a_run_keeps_old_classes_statistics_nearer_to_the_truth(backbone, tmp_path):
    found = {}
    for kind in ("none", "shift", "linear"):
        watch = Distances()
        tiny_trainer(
            backbone, tmp_path / kind, callbacks=[watch], drift_compensation=kind, alignment_shrinkage=0.1,
            learning_rate=0.02, epochs=4,
        ).train()  # fmt: skip
        found[kind] = torch.tensor(watch.found)
    assert len(found["none"]) == 3 and bool((found["none"] > 0.1).all())  # the features do drift
    assert bool((found["shift"] < found["none"]).all()) and bool((found["linear"] < found["none"]).all())


def test_without_compensation_old_statistics_stay_as_they_were_taken(backbone, tmp_path):
    tiny_trainer(backbone, tmp_path, drift_compensation="none", alignment_shrinkage=0.1).train()
    first, last = (tensors(tmp_path / name) for name in ("task-01", "task-03"))
    for part in ("mean", "variance"):
        name = f"class_statistics.safetensors/{part}"
        assert torch.equal(last[name][: len(first[name])], first[name])


def test_the_published_transform_sees_the_same_crops_before_and_after(backbone, tmp_path):
    """With statistics taken through the training augmentation, a model that did not change has not drifted."""
    trainer = tiny_trainer(
        backbone, tmp_path, tiny_stream(), statistics="train", alignment_shrinkage=0.1, learning_rate=1e-12,
        min_learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    first, last = (tensors(tmp_path / name) for name in ("task-01", "task-03"))
    name = "class_statistics.safetensors/mean"
    torch.testing.assert_close(last[name][: len(first[name])], first[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{"drift_compensation": "both"}, {"drift_shrinkage": 0.0}])
def test_wrong_settings_are_refused(settings, tmp_path):
    with pytest.raises(ValueError, match=next(iter(settings))):
        tiny_args(tmp_path, **settings)
