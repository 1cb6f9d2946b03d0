"""Class statistics and the alignment of the head, against numpy and scikit-learn."""

import numpy as np
import pytest
import torch
from class_features import SIZE, arguments, generator, make_features, statistics_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from smope_hf.heads.alignment import (
    VARIANCE_FLOOR,
    ClassStatistics,
    GaussianSampler,
    StatisticsAccumulator,
    align_classifier,
    lda_head,
    set_gradients,
    train_on_samples,
)

# ---------------------------------------------------------------------- statistics


@pytest.mark.parametrize("parts", [1, 7, 60])
def test_statistics_are_numpys_in_any_split_into_batches(parts):
    counts = [20, 1, 9, 30]
    features, labels = make_features(counts)
    found = statistics_of(features, labels, parts)
    scatter = np.zeros((SIZE, SIZE))
    for index in range(len(counts)):
        rows = features[labels == index].double().numpy()
        np.testing.assert_allclose(found.mean[index], rows.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.variance[index], rows.var(axis=0), rtol=1e-5, atol=1e-6)
        if len(rows) > 1:
            scatter += np.cov(rows.T, bias=True) * len(rows)
    np.testing.assert_allclose(found.scatter, scatter, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.scatter, found.scatter.T)
    assert found.count.tolist() == counts and found.count.dtype == torch.int64
    assert {found.mean.dtype, found.variance.dtype, found.scatter.dtype} == {torch.float32}
    np.testing.assert_allclose(found.covariance(), scatter / (60 - 4), rtol=1e-5, atol=1e-6)


def test_statistics_far_from_zero_keep_their_digits():
    """Sums of squares in float32 would lose the variance of features whose mean is large."""
    features, labels = make_features([50, 50])
    near, far = statistics_of(features, labels), statistics_of((features + 4096).round(decimals=2), labels)
    np.testing.assert_allclose(far.variance, near.variance, rtol=0.01)
    np.testing.assert_allclose(far.scatter, near.scatter, rtol=0.02, atol=1)
    constant = statistics_of(torch.full((10, SIZE), 1000.1), torch.zeros(10, dtype=torch.long))
    assert (constant.variance >= 0).all() and constant.variance.max() < 1e-6


def test_statistics_of_two_tasks_are_those_of_both_together():
    features, labels = make_features([10, 12, 8, 5])
    whole = statistics_of(features, labels)
    first, second = labels < 2, labels >= 2
    joined = statistics_of(features[first], labels[first]).joined(statistics_of(features[second], labels[second] - 2))
    joined = ClassStatistics.empty(SIZE).joined(joined)
    for name, tensor in whole.to_tensors().items():
        torch.testing.assert_close(joined.to_tensors()[name], tensor, rtol=1e-6, atol=1e-4)


def test_a_class_without_an_image_is_refused_by_number():
    accumulator = StatisticsAccumulator(4, SIZE)
    accumulator.update(torch.randn(3, SIZE), torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match=r"\[1, 3\].*no training image"):
        accumulator.result()


# ---------------------------------------------------------------------- closed form


def test_samples_are_drawn_from_a_covariance_that_rounding_left_indefinite():
    generator = torch.Generator().manual_seed(0)
    features = 200 * torch.randn(200, 384, generator=generator)  # fewer images than dimensions, far from 1
    sampler = GaussianSampler(statistics_of(features, torch.zeros(200, dtype=torch.long)), True, generator)
    drawn = sampler(torch.zeros(4000, dtype=torch.long))
    assert (drawn.var(dim=0).mean() / features.var(dim=0).mean()).item() == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------------- samples


@pytest.mark.parametrize("full", [False, True])
def test_samples_have_the_mean_and_covariance_of_their_class(full):
    statistics = statistics_of(*make_features([40, 200, 80]))
    sampler = GaussianSampler(statistics, full, generator())
    number = 60_000
    samples = sampler(torch.arange(3).repeat_interleave(number)).double().split(number)
    floor = VARIANCE_FLOOR * torch.eye(SIZE, dtype=torch.float64)
    for index, of_class in enumerate(samples):
        covariance = statistics.covariance() if full else statistics.variance[index].double().diag()
        covariance = covariance + floor
        error = (of_class.mean(dim=0) - statistics.mean[index]) / (covariance.diagonal() / number).sqrt()
        assert error.abs().max() < 5
        scale = covariance.diagonal().sqrt()
        difference = (torch.cov(of_class.T) - covariance) / (scale[:, None] * scale)
        assert difference.abs().max() < 0.03


@pytest.mark.parametrize("full", [False, True])
def test_samples_of_fewer_images_than_dimensions(full):
    """Their covariance has no inverse and needs none: a small floor keeps the samples apart."""
    features = torch.ones(4, SIZE)
    features[:, 0] = torch.tensor([1.0, 3.0, 5.0, 7.0])
    statistics = statistics_of(features, torch.tensor([0, 0, 1, 1]))
    samples = GaussianSampler(statistics, full, generator())(torch.zeros(4000, dtype=torch.long))
    torch.testing.assert_close(samples.var(dim=0)[1:], torch.full((SIZE - 1,), VARIANCE_FLOOR), rtol=0.15, atol=0)
    expected = 2.0 if full else 1.0  # deviations of 1: four squares over 4 - 2, and two over 2
    torch.testing.assert_close(samples.var(dim=0)[0], torch.tensor(expected), rtol=0.1, atol=0)


def test_a_class_of_one_image_is_sampled_around_it():
    features, labels = make_features([1, 30])
    samples = GaussianSampler(statistics_of(features, labels), False, generator())(torch.zeros(2000, dtype=torch.long))
    torch.testing.assert_close(samples.mean(dim=0), features[labels == 0][0], rtol=0, atol=2e-3)
    torch.testing.assert_close(samples.var(dim=0), torch.full((SIZE,), VARIANCE_FLOOR), rtol=0.2, atol=0)


def spoiled_head(statistics):
    """A head that knows the last class alone, as training on one task leaves it."""
    head = nn.Linear(SIZE, len(statistics.count))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[-1] = 1
    return head


def accuracy(head, features, labels):
    with torch.no_grad():
        return (head(features).argmax(dim=1) == labels).double().mean().item()


@pytest.mark.parametrize("alignment", ["gaussian", "gaussian-full", "lda"])
def test_alignment_mends_a_spoiled_head(alignment):
    features, labels = make_features([60] * 5, spread=2.0)
    statistics = statistics_of(features, labels)
    heads = []
    for seed in (1, 1, 2):
        head = spoiled_head(statistics)
        assert accuracy(head, features, labels) == 0.2
        args = arguments(alignment=alignment, alignment_learning_rate=0.05)
        with torch.no_grad():  # as the trainer may call it
            align_classifier(head, statistics, 4, args, generator(seed))
        assert accuracy(head, features, labels) > 0.8
        heads.append(head.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2]) == (alignment == "lda")  # which draws nothing


def test_every_class_is_sampled_equally_often(monkeypatch):
    drawn, call = [], GaussianSampler.__call__

    def watched(self, labels):
        drawn.append(labels)
        return call(self, labels)

    monkeypatch.setattr(GaussianSampler, "__call__", watched)
    statistics = statistics_of(*make_features([9] * 7))
    args = arguments(alignment_epochs=3, batch_size=10, alignment_batch_ratio=1.5)
    train_on_samples(spoiled_head(statistics), statistics, False, 5, args, generator())
    assert [len(labels) for labels in drawn] == [15] * (3 * 5)  # epochs x old classes, ratio x batch size
    seen = torch.cat(drawn).bincount(minlength=7)
    assert seen.max() - seen.min() <= 1
    assert not torch.equal(drawn[0][:7], drawn[0][7:14])


def test_the_learning_rate_falls_along_a_cosine(monkeypatch):
    groups, step = [], torch.optim.AdamW.step

    def watched(self, *args):
        groups.append(dict(self.param_groups[0]))
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    statistics = statistics_of(*make_features([9] * 4))
    args = arguments(alignment_epochs=5, alignment_learning_rate=0.1, alignment_weight_decay=0.3)
    train_on_samples(spoiled_head(statistics), statistics, False, 2, args, generator())
    expected = [0.05 * (1 + np.cos(np.pi * index / 10)) for index in range(10)]
    np.testing.assert_allclose([group["lr"] for group in groups], expected, rtol=1e-6)
    assert {group["weight_decay"] for group in groups} == {0.3}


# ---------------------------------------------------------------------- the choice


def test_no_alignment_leaves_the_head_bit_equal():
    statistics = statistics_of(*make_features([9] * 4))
    head = nn.Linear(SIZE, 4)
    before = head.weight.detach().clone(), head.bias.detach().clone()
    align_classifier(head, statistics, 2, arguments(alignment="none"), generator())
    assert torch.equal(head.weight, before[0]) and torch.equal(head.bias, before[1])


@pytest.mark.parametrize("alignment", ["gaussian", "gaussian-full", "lda"])
def test_statistics_of_too_few_classes_are_refused(alignment):
    statistics = statistics_of(*make_features([9] * 4))
    with pytest.raises(ValueError, match="head has 6 classes and the class statistics 4.*every class"):
        align_classifier(nn.Linear(SIZE, 6), statistics, 2, arguments(alignment=alignment), generator())


@pytest.mark.parametrize("rows", [1, 7])
def test_closed_form_gradients_are_autograds(rows):
    head = nn.Linear(SIZE, 5).double()
    features = torch.randn(rows, SIZE, dtype=torch.float64, generator=generator())
    labels = torch.randint(5, (rows,), generator=generator(1))
    expected = torch.autograd.grad(nn.functional.cross_entropy(head(features), labels), head.parameters())
    with torch.no_grad():
        set_gradients(head, features, labels)
    for parameter, gradient in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-7)  # the softmax is float32


class LargestTensor(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that torch makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("alignment", ["gaussian", "gaussian-full"])
def test_alignment_of_a_thousand_classes_holds_one_batch_of_samples(alignment):
    classes, size, batch = 1000, 32, 64
    statistics = ClassStatistics(
        torch.randn(classes, size), torch.ones(classes, size), torch.full((classes,), 50), 50_000 * torch.eye(size)
    )
    settings = arguments(alignment=alignment, alignment_epochs=1, batch_size=batch, alignment_batch_ratio=1)
    with LargestTensor() as seen:
        align_classifier(nn.Linear(size, classes), statistics, 3, settings, generator())
    assert classes * size <= seen.elements <= batch * classes  # the statistics; the logits of one batch


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("what", ["statistics", "lda", "gaussian", "gaussian-full", "a training step"])
def test_the_work_of_torch_does_not_grow_with_the_classes(what):
    """More classes make larger tensors, never more calls: nothing loops over classes."""
    counted = []
    for classes in (10, 100):
        features, labels = make_features([3] * classes)
        statistics = statistics_of(features, labels)
        with Operations() as operations:
            if what == "statistics":
                statistics_of(features, labels)
            elif what == "lda":
                lda_head(statistics, 0.1)
            elif what == "a training step":
                args = arguments(alignment_epochs=1, batch_size=8)
                train_on_samples(nn.Linear(SIZE, classes), statistics, False, 1, args, generator())
            else:
                GaussianSampler(statistics, what == "gaussian-full", generator())(labels)
        counted.append(operations.count)
    assert counted[0] == counted[1] > 0
