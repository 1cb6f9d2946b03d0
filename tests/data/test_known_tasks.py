"""The images of classes that a model knows: matched by name, numbered as the model numbers them."""

import datasets
import numpy as np
import pytest
from PIL import Image
from runs import tiny_stream

from smope_hf.data.known_tasks import load_known_tests

NAMES = ["ant", "bee", "cat", "dog"]


def saved(folder, labels_by_split, names=NAMES):
    """A data set on disk; each image has its row's number as its colour."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    splits = {
        split: datasets.Dataset.from_dict(
            {"image": [Image.new("RGB", (4, 4), (row, 0, 0)) for row in range(len(labels))], "label": labels},
            features=features,
        )
        for split, labels in labels_by_split.items()
    }
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    return saved(tmp_path / "data", {"train": [0, 1, 2, 3], "test": [3, 0, 1, 0, 2, 1, 3, 3]})


def test_classes_are_matched_by_name_and_numbered_by_the_model(data):
    first, second = load_known_tests(data, [["dog", "bee"], ["cat", "ant"]])
    assert first.source_rows.tolist() == [0, 2, 5, 6, 7] and first.labels.tolist() == [0, 1, 1, 0, 0]
    assert second.source_rows.tolist() == [1, 3, 4] and second.labels.tolist() == [3, 3, 2]
    colours = [np.asarray(image)[0, 0, 0] for image in second.images([0, 1, 2])]
    assert colours == [1, 3, 4] and second.source_split == "test"


def test_a_task_without_images_is_none_and_keeps_its_ids(data):
    tests = load_known_tests(data, [["yak"], ["emu", "dog"], ["ant", "bee", "cat"]])
    assert tests[0] is None
    assert tests[1].labels.tolist() == [2, 2, 2]
    assert set(tests[2].labels.tolist()) == {3, 4, 5}


def test_unknown_classes_are_named(data):
    with pytest.raises(ValueError, match=r"does not know 2 of the 4 classes .*'cat', 'dog'.*ignore_unknown"):
        load_known_tests(data, [["ant", "bee"]])
    (only,) = load_known_tests(data, [["ant", "bee"]], ignore_unknown=True)
    assert only.source_rows.tolist() == [1, 2, 3, 5]


def test_many_unknown_classes_are_counted(tmp_path):
    names = [f"c{index}" for index in range(9)]
    data = saved(tmp_path / "many", {"test": list(range(9))}, names)
    with pytest.raises(ValueError, match=r"'c1', 'c2', 'c3', 'c4', 'c5' and 3 more"):
        load_known_tests(data, [["c0"]])


def test_a_class_of_the_data_without_images_is_not_unknown(tmp_path):
    data = saved(tmp_path / "sparse", {"test": [0, 0, 1]})
    (only,) = load_known_tests(data, [["ant", "bee"]])
    assert len(only) == 3


def test_a_model_that_knows_no_class_is_an_error_even_if_unknown_ones_are_ignored(data):
    with pytest.raises(ValueError, match="knows none of the 4 classes"):
        load_known_tests(data, [["yak"]], ignore_unknown=True)


@pytest.mark.parametrize("name", ["test", "validation", "valid", "val"])
def test_the_usual_splits_are_found(tmp_path, name):
    data = saved(tmp_path / "data", {"train": [0], name: [1, 1]})
    (only,) = load_known_tests(data, [["ant", "bee"]])
    assert only.source_split == name and len(only) == 2


def test_training_images_are_taken_only_when_named(tmp_path):
    data = saved(tmp_path / "data", {"train": [0, 1]})
    with pytest.raises(ValueError, match=r"no split to test on among \['train'\]: name one"):
        load_known_tests(data, [["ant", "bee"]])
    assert len(load_known_tests(data, [["ant", "bee"]], split="train")[0]) == 2
    with pytest.raises(ValueError, match="split='dev' does not exist"):
        load_known_tests(data, [["ant", "bee"]], split="dev")


def test_a_limit_takes_the_images_that_a_stream_takes(tmp_path):
    """So that a model is measured after training on what it was measured on in training."""
    from smope_hf.data.embedded import digits

    digits().save_to_disk(tmp_path / "digits")
    from smope_hf import TaskStream

    stream = TaskStream.load(tmp_path / "digits", num_tasks=5, seed=3, max_test_samples_per_class=4)
    names = [list(task.class_names) for task in stream]
    tests = load_known_tests(tmp_path / "digits", names, max_per_class=4, seed=3)
    for task, test in zip(stream, tests, strict=True):
        assert test.source_rows.tolist() == task.test.source_rows.tolist()
        assert test.labels.tolist() == task.test.labels.tolist()


def test_a_stream_and_its_own_classes_agree_without_a_limit(tmp_path):
    stream = tiny_stream(max_test_samples_per_class=None)
    rows = {task.index: task.test.source_rows.tolist() for task in stream}
    data = {"test": datasets.concatenate_datasets([task.test.dataset for task in stream])}
    datasets.DatasetDict(data).save_to_disk(tmp_path / "tests")
    tests = load_known_tests(tmp_path / "tests", [list(task.class_names) for task in stream])
    assert [len(test) for test in tests] == [len(rows[index]) for index in sorted(rows)]
