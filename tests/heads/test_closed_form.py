"""Heads in closed form: LDA and the nearest mean, their shrinkage, and what they refuse."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from class_features import SIZE, generator, make_features, statistics_of
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from smope_hf.heads.alignment import ClassStatistics, check_images_suffice, estimated_shrinkage, lda_head
from smope_hf.training.run_arguments import build_arguments, load_trainer
from smope_hf.training.yardsticks import discriminant_analysis, frozen_features


@pytest.mark.parametrize("shrinkage", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("counts", [[40] * 5, [10, 60, 25, 80, 40]], ids=["even", "uneven"])
def test_lda_equals_scikit_learn(counts, shrinkage):
    """scikit-learn weighs class covariances by prior and divides by n: with priors n / N only a factor differs.

    The pooled covariance is then the same up to N / (N - C), which scales all decisions alike. Its log priors are
    taken off again, because this head gives every class the same.
    """
    features, labels = make_features(counts)
    total, classes = sum(counts), len(counts)
    priors = np.array(counts) / total
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=priors)
    theirs.fit(features.double().numpy(), labels.numpy())
    weight, bias = lda_head(statistics_of(features, labels), shrinkage)
    probes = torch.cat([features, 10 * torch.randn(500, SIZE, generator=generator())])
    ours = (probes.double() @ weight.double().T + bias.double()).numpy()
    reference = theirs.decision_function(probes.double().numpy()) - np.log(priors)
    reference *= (total - classes) / total
    ours, reference = (values - values[:, :1] for values in (ours, reference))  # only differences decide
    scale = np.abs(reference).max()
    np.testing.assert_allclose(ours / scale, reference / scale, atol=2e-5)
    clear = np.sort(reference, axis=1)[:, -1] - np.sort(reference, axis=1)[:, -2] > 1e-3 * scale
    assert clear.mean() > 0.8 and (ours.argmax(axis=1) == reference.argmax(axis=1))[clear].all()


@pytest.mark.parametrize("shrinkage", [0.1, None])
@pytest.mark.parametrize("counts", [[40] * 5, [10, 60, 25, 80, 40], [8, 90]], ids=["even", "uneven", "two"])
def test_the_yardstick_is_the_same_lda(counts, shrinkage):
    """A run's yardstick and `--method lda` are one method, also where classes have unequally many images."""
    features, labels = make_features(counts)
    probes = 3 * torch.randn(2000, SIZE, generator=generator())
    weight, bias = lda_head(statistics_of(features, labels), shrinkage)
    ours = probes.double() @ weight.double().T + bias.double()
    (theirs,) = discriminant_analysis(features, labels, [probes], shrinkage)
    best = ours.topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-4
    assert clear.sum() > 1900 and torch.equal(ours.argmax(dim=1)[clear], theirs[clear])


@pytest.mark.parametrize("images", [3, 20, 500])
def test_the_estimated_shrinkage_equals_scikit_learn(images):
    features, labels = make_features([images] * 4)
    statistics = statistics_of(features, labels)
    deviation = (features - statistics.mean[labels]).double()
    _, expected = oas(deviation.numpy(), assume_centered=True)
    covariance = deviation.T @ deviation / len(deviation)
    assert estimated_shrinkage(covariance, len(deviation)) == pytest.approx(expected)
    freedom = len(deviation) - 4  # what a covariance within four classes is the mean over
    unbiased = statistics.covariance()
    expected = estimated_shrinkage(unbiased, freedom)
    torch.testing.assert_close(statistics.covariance(None), statistics.covariance(expected))
    assert 0 < expected < 1


def test_an_even_spread_is_shrunk_wholly():
    assert estimated_shrinkage(2 * torch.eye(5, dtype=torch.float64), 10) == 1.0
    assert estimated_shrinkage(torch.zeros(5, 5, dtype=torch.float64), 10) == 1.0


def test_with_few_images_the_estimated_shrinkage_recognises_more_digits(tmp_path):
    """Ten images of each class in 96 dimensions, where a covariance with hardly any shrinkage is at its worst."""
    few = {"method": "lda", "num_tasks": 1, "max_train_samples_per_class": 10, "disable_progress": True}
    given = {"dataset": "embedded", "backbone": "embedded", "output_dir": str(tmp_path), **few}
    trainer = load_trainer(*build_arguments(given))
    task = trainer.stream[0]
    train, test = trainer.decoded(task.train), trainer.decoded(task.test)
    statistics = statistics_of(frozen_features(trainer.model, train, trainer.passes), train.labels)
    features = frozen_features(trainer.model, test, trainer.passes)
    accuracy = {}
    for shrinkage in (0.001, None, 1.0):
        weight, bias = lda_head(statistics, shrinkage)
        predicted = (features @ weight.T + bias).argmax(dim=1)
        accuracy[shrinkage] = (predicted == test.labels).double().mean().item()
    assert accuracy[None] > accuracy[0.001] + 0.1 and accuracy[None] > accuracy[1.0] + 0.02


def test_equal_images_are_told_in_words():
    features = torch.eye(3).repeat_interleave(2, dim=0)
    with pytest.raises(ValueError, match="no spread to tell classes by.*--alignment ncm or none"):
        lda_head(statistics_of(features, torch.arange(3).repeat_interleave(2)), None)


def test_lda_does_not_depend_on_the_axes():
    """Turning all features turns the weights and leaves every decision as it was."""
    features, labels = make_features([30, 30, 30])
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator(), dtype=torch.float64)).Q
    turned = (features.double() @ turn).float()
    straight, rotated = (lda_head(statistics_of(each, labels), 0.1) for each in (features, turned))
    torch.testing.assert_close(rotated[0].double(), straight[0].double() @ turn, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        turned @ rotated[0].T + rotated[1], features @ straight[0].T + straight[1], rtol=1e-3, atol=1e-3
    )


def test_full_shrinkage_is_the_nearest_mean():
    features, labels = make_features([30] * 4)
    statistics = statistics_of(features, labels)
    weight, bias = lda_head(statistics, 1.0)
    nearest = torch.cdist(features, statistics.mean).argmin(dim=1)
    assert torch.equal((features @ weight.T + bias).argmax(dim=1), nearest)


def test_a_singular_covariance_is_refused_with_advice():
    features, labels = make_features([2, 2])  # 4 images cannot span 6 dimensions
    features[:, 0] = 1
    statistics = statistics_of(features, labels)
    with pytest.raises(ValueError, match="alignment_shrinkage = 0.0.*4 images.*another output_dir"):
        lda_head(statistics, 0.0)
    weight, bias = lda_head(statistics, 0.01)
    assert weight.isfinite().all() and bias.isfinite().all()


def test_too_few_images_for_lda_are_known_before_training():
    def tasks(*sizes, first=0):
        return [SimpleNamespace(index=i, train=range(n), class_names="ab") for i, n in enumerate(sizes, first)]

    none, known = ClassStatistics.empty(6), statistics_of(*make_features([4, 4]))
    with pytest.raises(ValueError, match="'lda-uncompensated' here: behind task 2 there are 9 images.* 10"):
        check_images_suffice(["none", "lda-uncompensated"], 0, tasks(5, 4, 50), none, False)
    with pytest.raises(ValueError, match="behind task 3 there are 9 images"):  # task 2 has one image of each class
        check_images_suffice(["lda"], 0, tasks(2, 2, 5), none, False)
    with pytest.raises(ValueError, match="behind task 2 there are 9 images of 4 classes"):
        check_images_suffice(["lda"], 0, tasks(1, first=1), known, False)
    with pytest.raises(ValueError, match="behind task 1 there are 5 images of 2 classes"):  # the only head it has
        check_images_suffice(["lda"], 0, tasks(5, 5), none, True)
    check_images_suffice(["lda"], 0, tasks(2, first=1), known, False)
    check_images_suffice(["lda"], 0, tasks(5, 5), none, False)
    check_images_suffice(["lda"], 0.001, tasks(5, 4), none, False)
    check_images_suffice(["gaussian-full", "ncm"], 0, tasks(5, 4), none, False)


@pytest.mark.parametrize("shrinkage", [0.0, 0.001, 1.0])
def test_one_image_of_each_class_makes_lda_the_nearest_mean(shrinkage):
    """There is no spread to learn: nothing fails, and each image is its own class."""
    features, labels = make_features([1] * 5)
    weight, bias = lda_head(statistics_of(features, labels), shrinkage)
    probes = torch.randn(200, SIZE, generator=generator()) * 3 + 4
    nearest = labels[torch.cdist(probes, features).argmin(dim=1)]
    assert torch.equal((probes @ weight.T + bias).argmax(dim=1), nearest)
