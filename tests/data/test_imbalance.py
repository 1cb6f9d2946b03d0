"""Long-tailed streams: how many images each class keeps, which, and what a run says of frequent and rare classes."""

import numpy as np
import pytest
from digit_data import TRAIN, make, protocol
from runs import NUM_TASKS, TRAIN_PER_CLASS, read, save_backbone, tiny_stream, tiny_trainer
from stopping import Stop

from smope_hf.data.imbalance import long_tailed
from smope_hf.data.tasks import TaskStream
from smope_hf.metrics.class_recall import recall_by_frequency, recall_of_classes
from smope_hf.training import evaluation
from smope_hf.training.run_arguments import DataArguments, build_arguments, load_stream

FACTOR = 9.0


def images(stream) -> dict[str, int]:
    """Training images of each class, by name."""
    labels = np.concatenate([task.train.labels for task in stream])
    return dict(zip(stream.class_names, np.bincount(labels).tolist()))


def rows(stream) -> set[int]:
    return {row for task in stream for row in task.train.source_rows.tolist()}


# ---------------------------------------------------------------------- the profile


@pytest.mark.parametrize("factor", [1, 10, 100, 137.5])
def test_the_profile_is_exponential(factor):
    kept = sorted(long_tailed({f"class {i}": 500 for i in range(100)}, factor, seed=3).values(), reverse=True)
    assert kept == [int(500 * factor ** (-i / 99) + 0.5) for i in range(100)]
    assert kept[0] == 500 and kept[-1] == int(500 / factor + 0.5)


def test_every_class_keeps_an_image_and_none_gets_more_than_it_has():
    sizes = {name: size for name, size in zip("abcdef", (1000, 3, 1000, 40, 1000, 1))}
    for seed in range(20):
        kept = long_tailed(sizes, 1e6, seed)
        assert all(1 <= kept[name] <= sizes[name] for name in sizes) and list(kept) == list(sizes)
    assert long_tailed({"alone": 7}, 100, 0) == {"alone": 7}


def test_ranks_depend_on_the_seed_and_on_nothing_else():
    names = [f"class {i}" for i in range(60)]
    kept = long_tailed(dict.fromkeys(names, 1000), 50, 0)
    assert long_tailed(dict.fromkeys(names[::-1], 1000), 50, 0) == kept
    assert long_tailed(dict.fromkeys(names, 1000), 50, 1) != kept
    fewer = long_tailed(dict.fromkeys(names[:30], 1000), 50, 0)
    assert sorted(fewer, key=fewer.get) == sorted(names[:30], key=kept.get)  # the others keep their order
    position = np.argsort([-kept[name] for name in names])
    assert abs(np.corrcoef(position, np.arange(60))[0, 1]) < 0.4  # not the data set's order


# ---------------------------------------------------------------------- a stream


def test_a_stream_keeps_its_tests_and_its_classes():
    data = make()
    even, uneven = (TaskStream(data, num_tasks=5, imbalance_factor=factor) for factor in (1, 6))
    assert even.class_names == uneven.class_names
    assert sorted(images(uneven).values(), reverse=True) == [int(TRAIN * 6 ** (-i / 9) + 0.5) for i in range(10)]
    for one, other in zip(even, uneven):
        assert np.array_equal(one.test.source_rows, other.test.source_rows)
        assert set(other.train.source_rows) <= set(one.train.source_rows)
    assert TaskStream(data, num_tasks=5).manifest() == even.manifest()
    assert uneven.manifest()["options"]["imbalance_factor"] == 6
    assert protocol(data, imbalance_factor=6) != protocol(data)


def test_frequency_does_not_follow_the_class_order():
    data = make()
    stream = TaskStream(data, num_tasks=5, imbalance_factor=6)
    turned = TaskStream(data, class_lists=[[name] for name in stream.class_names[::-1]], imbalance_factor=6)
    assert images(turned) == images(stream) and rows(turned) == rows(stream)
    plain = TaskStream(data, num_tasks=5, imbalance_factor=6, shuffle_classes=False)
    assert images(plain) == images(stream)


def test_limits_and_shares_come_first_and_selections_are_nested():
    def kept(**options):
        stream = TaskStream(make(), num_tasks=5, **options)
        return images(stream), rows(stream)

    counts, limited = kept(imbalance_factor=4, max_train_samples_per_class=8)
    assert max(counts.values()) == 8 and min(counts.values()) == 2
    assert limited < kept(max_train_samples_per_class=8)[1]
    assert limited < kept(imbalance_factor=2, max_train_samples_per_class=8)[1]
    shared = TaskStream(make(), num_tasks=5, imbalance_factor=4, validation_fraction=0.25)
    assert max(images(shared).values()) == TRAIN - 3
    before = TaskStream(make(), num_tasks=5, validation_fraction=0.25)
    for one, other in zip(shared, before):
        assert np.array_equal(one.validation.source_rows, other.validation.source_rows)


@pytest.mark.parametrize("factor", [0.5, 0, -1, float("nan"), float("inf"), "10", True, None])
def test_wrong_factors_are_refused(factor):
    with pytest.raises(ValueError, match="imbalance_factor=.*a finite number from 1"):
        TaskStream(make(), num_tasks=5, imbalance_factor=factor)


def test_the_option_reaches_the_stream(tmp_path):
    _, data, _ = build_arguments({"dataset": "embedded", "num_tasks": 5, "imbalance_factor": 20})
    counts = images(load_stream(data)).values()
    assert max(counts) / min(counts) == pytest.approx(20, rel=0.1)
    assert DataArguments("embedded").imbalance_factor == 1


# ---------------------------------------------------------------------- recall


def test_recall_of_known_predictions():
    import torch

    labels = torch.tensor([4, 4, 5, 5, 5, 7])
    predicted = torch.tensor([4, 0, 5, 5, 4, 7])
    assert recall_of_classes(predicted, labels, range(4, 8)) == [0.5, pytest.approx(2 / 3), None, 1.0]


def test_thirds_are_those_of_the_training_images():
    recall, counts = [0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 0.8], [5, 90, 40, 5, 60, 1, 80]
    expected = {"recall_many": (0.9 + 0.8 + 0.7) / 3, "recall_medium": (0.5 + 0.1) / 2, "recall_few": (0.3 + 0.2) / 2}
    assert recall_by_frequency(recall, counts) == pytest.approx(expected)
    recall[3] = None
    assert recall_by_frequency(recall, counts)["recall_few"] is None
    assert recall_by_frequency([0.5, 1.0], [3, 9]) == {"recall_many": 1.0, "recall_medium": 0.5, "recall_few": None}
    with pytest.raises(ValueError, match="recall has 1 classes and training_images 2"):
        recall_by_frequency([1.0], [1, 2])


# ---------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


def run(backbone, folder, **settings):
    stream = tiny_stream(imbalance_factor=FACTOR)
    return tiny_trainer(backbone, folder, stream=stream, compare_alignments=["none"], **settings)


@pytest.fixture(scope="module")
def finished(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = run(backbone, folder)
    return folder, trainer, trainer.train()


def test_metrics_tell_of_frequent_and_rare_classes(finished):
    folder, trainer, content = finished
    counts = images(trainer.stream)
    assert content["training_images_by_class"] == list(counts.values())
    assert max(counts.values()) == TRAIN_PER_CLASS and min(counts.values()) == 1
    own, other = [], []
    for task in trainer.stream:
        predictions = trainer.predict(trainer.decoded(task.test), list(trainer.others.heads.values())).numpy()
        for recall, predicted in zip((own, other), predictions, strict=True):
            recall += [(predicted[task.test.labels == label] == label).mean() for label in task.class_ids]
    assert content["recall_by_class"] == pytest.approx(own) and len(set(own)) > 1 and own != other
    for metrics, recall in ((content["metrics"], own), (content["other_alignments"]["none"]["metrics"], other)):
        assert np.mean(recall) == pytest.approx(metrics["weighted_final_accuracy"])  # equally many test images
        thirds = recall_by_frequency(recall, list(counts.values()))
        assert {name: metrics[name] for name in thirds} == pytest.approx(thirds)
    assert read(folder, "metrics.json")["metrics"] == content["metrics"]


def test_test_images_are_passed_over_once_a_task(backbone, tmp_path, monkeypatch):
    trainer = run(backbone, tmp_path, epochs=1, save_checkpoints=False)
    passes, predict = [], evaluation.predict
    monkeypatch.setattr(evaluation, "predict", lambda *given, **more: passes.append(1) or predict(*given, **more))
    trainer.train()
    assert len(passes) == NUM_TASKS * (NUM_TASKS + 1) // 2


def test_a_resumed_run_says_the_same(backbone, finished, tmp_path):
    folder, _, content = finished
    with pytest.raises(KeyboardInterrupt):
        run(backbone, tmp_path, callbacks=[Stop()]).train()
    resumed = run(backbone, tmp_path, resume=True).train()
    again = run(backbone, folder, resume=True).train()  # all tasks are learned: evaluated once more
    for name in ("metrics", "other_alignments", "recall_by_class", "training_images_by_class"):
        assert resumed[name] == again[name] == content[name], name


def test_an_even_stream_has_recall_but_no_thirds(backbone, tmp_path):
    content = tiny_trainer(backbone, tmp_path, stream=tiny_stream(num_tasks=1), epochs=1).train()
    assert len(content["recall_by_class"]) == 6 and content["training_images_by_class"] == [TRAIN_PER_CLASS] * 6
    assert not [name for name in content["metrics"] if name.startswith("recall")]
