"""The class-incremental protocol: who is in which task, what may change it, and what is refused."""

import random

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict, Features, Image, Value
from digit_data import NAMES, TRAIN, change, make, protocol

from smope_hf.data.tasks import TaskStream


@pytest.fixture
def data() -> DatasetDict:
    return make()


def contents(split) -> list[bytes]:
    return [encoded["bytes"] for encoded in split.encoded(np.arange(len(split)))]


def test_class_ids_partition_the_classes_in_order_of_appearance(data):
    stream = TaskStream(data, classes_per_task=2)
    assert len(stream) == 5 and stream.num_classes == 10
    assert [class_id for task in stream for class_id in task.class_ids] == list(range(10))
    assert [name for task in stream for name in task.class_names] == stream.class_names
    assert sorted(stream.class_names) == sorted(NAMES)
    for task in stream:
        for split in (task.train, task.test):
            assert split.labels.dtype == np.int64 and set(split.labels.tolist()) == set(task.class_ids)
            own_labels = [NAMES[label] for label in split.dataset["label"]]
            assert own_labels == [stream.class_names[label] for label in split.labels]


@pytest.mark.parametrize("seed", [0, 1, 1234])
def test_class_order_is_the_published_call(data, seed):
    order = list(range(10))
    random.Random(seed).shuffle(order)
    assert TaskStream(data, num_tasks=10, seed=seed).class_names == [NAMES[position] for position in order]
    assert TaskStream(data, num_tasks=10, seed=seed, shuffle_classes=False).class_names == NAMES


def test_class_lists_give_uneven_tasks_and_leave_classes_out(data):
    stream = TaskStream(data, class_lists=[["digit 3"], ["digit 0", 7]])
    assert [task.class_names for task in stream] == [("digit 3",), ("digit 0", "digit 7")]
    assert [list(task.class_ids) for task in stream] == [[0], [1, 2]]
    assert sum(len(task.train) for task in stream) == 3 * TRAIN


@pytest.mark.parametrize("sizes", [{"num_tasks": 5}, {"class_lists": [[3], [1, 4], [0, 2]]}])
def test_the_first_tasks_are_those_of_the_whole_stream(data, sizes):
    options = {**sizes, "seed": 3, "imbalance_factor": 2, "validation_fraction": 0.4}
    whole, first = TaskStream(data, **options), TaskStream(data, max_tasks=2, **options)
    assert len(first) == 2 and first.num_classes == sum(len(task.class_names) for task in whole[:2])
    assert first.class_names == whole.class_names[: first.num_classes]
    for one, other in zip(first, whole):
        assert (one.index, one.class_names, one.class_ids) == (other.index, other.class_names, other.class_ids)
        for split in ("train", "validation", "test"):
            assert contents(getattr(one, split)) == contents(getattr(other, split))
    assert first.manifest()["protocol_hash"] != whole.manifest()["protocol_hash"]
    assert first.manifest()["options"]["max_tasks"] == 2
    every = TaskStream(data, max_tasks=len(whole), **options)
    assert every.manifest()["protocol_hash"] == whole.manifest()["protocol_hash"]


@pytest.mark.parametrize("number", [0, -1, 6, 2.0, True, "2"])
def test_a_number_of_tasks_that_there_are_not_is_refused(data, number):
    with pytest.raises(ValueError, match=f"max_tasks={number!r}.*(there are 5 tasks|above 0)"):
        TaskStream(data, num_tasks=5, max_tasks=number)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([["digit 3"], ["digit 3"]], "'digit 3' twice, in tasks 0 and 1"),
        ([["digit 3", 3]], "'digit 3' twice"),
        ([["digit 33"]], "'digit 33'.*'digit 3'"),
        ([[10]], "10.*none of the 10 classes"),
        ([[-1]], "-1.*none of the 10 classes"),
        ([["digit 1"], []], "at least one class"),
        ([], "at least one task"),
        (["digit 1"], "one list of classes per task"),
    ],
)
def test_wrong_class_lists_are_refused(data, lists, message):
    with pytest.raises(ValueError, match=message):
        TaskStream(data, class_lists=lists)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of .*num_tasks.*none"),
        ({"num_tasks": 2, "classes_per_task": 5}, "exactly one of .*'num_tasks', 'classes_per_task'"),
        ({"num_tasks": 3}, r"num_tasks=3 does not divide the 10 classes.*\[1, 2, 5, 10\].*class_lists"),
        ({"classes_per_task": 20}, "classes_per_task=20 does not divide the 10"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"num_tasks": 5, "seed": "0"}, "seed='0'"),
        ({"num_tasks": 5, "validation_fraction": 1.0}, "validation_fraction=1.0"),
        ({"num_tasks": 5, "test_fraction": -0.1}, "test_fraction=-0.1"),
        ({"num_tasks": 5, "test_fraction": 0.5, "validation_fraction": 0.5}, "sum must be below 1"),
        ({"num_tasks": 5, "max_train_samples_per_class": 0}, "max_train_samples_per_class=0"),
        ({"num_tasks": 5, "train_split": "training"}, r"train_split='training'.*\['train', 'test'\]"),
        ({"num_tasks": 5, "test_split": "dev"}, r"test_split='dev'.*\['train', 'test'\]"),
        ({"num_tasks": 5, "test_split": "train"}, "is the training split"),
        ({"num_tasks": 5, "test_fraction": 0.2}, "test_fraction=0.2 but the data set has the split 'test'"),
        ({"num_tasks": 5, "image_column": "label"}, r"image_column='label'.*\['image'\].*cast_column"),
        ({"num_tasks": 5, "image_column": "img"}, r"image_column='img'.*\['image', 'label'\]"),
        ({"num_tasks": 5, "label_column": "image"}, r"label_column='image'.*\['label'\]"),
    ],
)
def test_wrong_options_are_refused_with_value_and_advice(data, options, message):
    with pytest.raises(ValueError, match=message):
        TaskStream(data, **options)


def test_a_single_split_is_refused_with_advice(data):
    with pytest.raises(TypeError, match=r'not Dataset.*DatasetDict\(\{"train": dataset\}\)'):
        TaskStream(data["train"], num_tasks=5)


@pytest.mark.parametrize(
    ("label", "convert", "names", "listed"),
    [
        (ClassLabel(names=NAMES), int, NAMES, 3),
        (Value("string"), lambda value: NAMES[value], NAMES, "digit 3"),
        (Value("large_string"), lambda value: NAMES[value], NAMES, "digit 3"),
        (Value("int32"), lambda value: 5 * value - 10, [str(5 * value - 10) for value in range(10)], 5),
        (Value("uint8"), lambda value: value, [str(value) for value in range(10)], "3"),
    ],
)
def test_labels_of_all_kinds_give_the_same_tasks(data, label, convert, names, listed):
    """Rows may come in any order; integers sort as numbers (-10, -5, 0, 5, 10) and not as text."""

    def turned(data):
        return DatasetDict({split: part.select(range(len(part) - 1, -1, -1)) for split, part in data.items()})

    column = None if isinstance(label, ClassLabel) else "label"
    stream = TaskStream(turned(make(label, convert)), num_tasks=5, label_column=column)
    expected = TaskStream(turned(data), num_tasks=5)
    assert stream.class_names == [names[NAMES.index(name)] for name in expected.class_names]
    for task, other in zip(stream, expected):
        assert np.array_equal(task.train.labels, other.train.labels)
        assert np.array_equal(task.train.source_rows, other.train.source_rows)
    one = TaskStream(make(label, convert), class_lists=[[listed]], label_column=column)
    assert one.class_names == [names[3]]


def test_splits_that_number_their_classes_differently_are_matched_by_name(data):
    turned = make(ClassLabel(names=NAMES[::-1]), lambda value: 9 - value)
    mixed = DatasetDict({"train": data["train"], "test": turned["test"]})
    assert protocol(mixed) == protocol(data)


def test_ambiguous_columns_are_named(data):
    features = Features({**data["train"].features, "mask": Image()})
    two_images = data.map(lambda row: {"mask": row["image"]}, features=features)
    with pytest.raises(ValueError, match=r"\['image', 'mask'\]: set image_column"):
        TaskStream(two_images, num_tasks=5)
    assert TaskStream(two_images, num_tasks=5, image_column="mask").image_column == "mask"
    coarse = ClassLabel(names=["low", "high"])
    two_labels = data.map(
        lambda row: {"coarse": int(row["label"] > 4)}, features=Features({**data["train"].features, "coarse": coarse})
    )
    with pytest.raises(ValueError, match=r"\['label', 'coarse'\]: set label_column"):
        TaskStream(two_labels, num_tasks=2)
    assert set(TaskStream(two_labels, num_tasks=2, label_column="coarse").class_names) == {"low", "high"}
    with pytest.raises(ValueError, match="no column of type Image.*cast_column"):
        TaskStream(data.remove_columns("image"), num_tasks=5)


def test_string_labels_are_taken_only_when_named():
    data = make(Value("string"), str)
    with pytest.raises(ValueError, match=r"no column of type ClassLabel; set label_column.*\['label'\]"):
        TaskStream(data, num_tasks=5)


@pytest.mark.parametrize(
    ("label", "missing"), [(Value("int64"), None), (Value("string"), None), (None, None), (None, -1)]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_without_a_label_are_named(label, missing, split):
    convert = str if label is not None and label.dtype == "string" else int
    data = change(make(label, convert), split, 7, label=missing)
    with pytest.raises(ValueError, match=f"row 7 of split '{split}' has no label"):
        TaskStream(data, num_tasks=5, label_column="label")


def test_classes_without_images_are_named(data):
    for split, word in (("train", "training"), ("test", "test")):
        lacking = DatasetDict({**data, split: data[split].filter(lambda label: label != 3, input_columns="label")})
        with pytest.raises(ValueError, match=f"'{split}' has no {word} image of class 'digit 3'.*class_lists"):
            TaskStream(lacking, num_tasks=5)
        assert len(TaskStream(lacking, class_lists=[[0, 1], [2, 4]])) == 2


def test_the_test_split_is_found(data):
    renamed = DatasetDict({"train": data["train"], "validation": data["test"]})
    assert protocol(renamed) == protocol(data)
    three = DatasetDict({**renamed, "test": data["test"].select(range(40))})
    assert TaskStream(three, num_tasks=5).test_split == "test"
    assert TaskStream(three, num_tasks=5, test_split="validation").test_split == "validation"
    with pytest.raises(ValueError, match=r"no split to test on among \['train'\].*test_split.*test_fraction"):
        TaskStream(DatasetDict({"train": data["train"]}), num_tasks=5)
    only_test = TaskStream(DatasetDict({"test": data["train"]}), num_tasks=5, train_split="test", test_fraction=0.25)
    assert only_test.test_split is None and only_test[0].test.source_split == "test"


def test_shares_are_disjoint_stratified_and_complete(data):
    source = DatasetDict({"train": data["train"]})
    stream = TaskStream(source, num_tasks=5, test_fraction=0.25, validation_fraction=0.2)
    seen: list[bytes] = []
    for task in stream:
        for split, per_class in ((task.train, 7), (task.validation, 2), (task.test, 3)):
            counts = np.bincount(split.labels, minlength=10)[list(task.class_ids)]
            assert counts.tolist() == [per_class] * 2
            seen += contents(split)
    assert len(seen) == len(set(seen)) == len(source["train"])


def test_one_image_always_stays_for_training(data):
    few = DatasetDict({**data, "train": data["train"].select(range(11))})  # two of class 0, one of each other class
    per_class = np.bincount(few["train"]["label"][:], minlength=10)
    assert per_class.min() == 1 and per_class.max() == 2
    twice = int(per_class.argmax())
    stream = TaskStream(few, class_lists=[[twice, (twice + 1) % 10]], validation_fraction=0.9)
    assert np.bincount(stream[0].train.labels).tolist() == [1, 1]
    assert stream[0].validation.labels.tolist() == [0]
    with pytest.raises(ValueError, match="task 0: validation_fraction=0.9"):
        TaskStream(few, class_lists=[[(twice + 1) % 10]], validation_fraction=0.9)
    with pytest.raises(ValueError, match="only one image of class .*one to train and one to test"):
        TaskStream(DatasetDict({"train": few["train"]}), num_tasks=5, test_fraction=0.5)


def test_limits_are_nested_and_leave_other_choices_alone(data):
    def rows(split_name="train", **options):
        stream = TaskStream(data, num_tasks=5, **options)
        return stream.class_names, [set(getattr(task, split_name).source_rows.tolist()) for task in stream]

    names, all_rows = rows()
    for count in (1, 3, 8):
        limited_names, limited = rows(max_train_samples_per_class=count)
        assert limited_names == names
        assert [len(task) for task in limited] == [2 * count] * 5
        more = rows(max_train_samples_per_class=count + 1)[1]
        assert all(few < many <= everything for few, many, everything in zip(limited, more, all_rows))
    validation = rows("validation", validation_fraction=0.25)
    assert validation == rows("validation", validation_fraction=0.25, max_train_samples_per_class=2)
    assert validation == rows("validation", validation_fraction=0.25, max_test_samples_per_class=2)
    assert rows("test", max_test_samples_per_class=2) == rows(
        "test", max_test_samples_per_class=2, validation_fraction=0.25
    )
    one, other = (rows(max_train_samples_per_class=3, shuffle_classes=False, seed=seed)[1] for seed in (0, 1))
    assert one != other
    assert sum(map(len, rows("test", max_test_samples_per_class=3)[1])) == 30


def test_a_class_keeps_its_rows_whatever_task_it_is_in(data):
    options = {"validation_fraction": 0.25, "max_train_samples_per_class": 4}
    alone = TaskStream(data, class_lists=[["digit 6"]], **options)[0]
    amid = TaskStream(data, class_lists=[["digit 2"], ["digit 9", "digit 6"]], **options)[1]
    for split in ("train", "validation"):
        mine = getattr(amid, split).source_rows[getattr(amid, split).labels == 2]
        assert np.array_equal(mine, getattr(alone, split).source_rows)


def test_classes_are_sampled_independently(data):
    stream = TaskStream(data, num_tasks=10, shuffle_classes=False, max_train_samples_per_class=4)
    of_class = [np.flatnonzero(np.array(data["train"]["label"][:]) == label) for label in range(10)]
    chosen = {tuple(np.searchsorted(of_class[task.index], task.train.source_rows)) for task in stream}
    assert len(chosen) > 5


def test_settings_can_be_tuned_without_the_test_images():
    """evaluate_on="validation": the validation images stand where the test images stood, and those are not used."""
    usual = TaskStream(make(), num_tasks=5, validation_fraction=0.25)
    tuning = TaskStream(make(), num_tasks=5, validation_fraction=0.25, evaluate_on="validation")
    for before, after in zip(usual, tuning, strict=True):
        assert after.test.source_rows.tolist() == before.validation.source_rows.tolist()
        assert after.test.source_split == "train" and after.validation is None
        assert after.train.source_rows.tolist() == before.train.source_rows.tolist()
    assert usual.manifest()["protocol_hash"] != tuning.manifest()["protocol_hash"]


@pytest.mark.parametrize("options", [{"evaluate_on": "validation"}, {"evaluate_on": "train"}])
def test_what_cannot_be_evaluated_on_is_refused(options):
    with pytest.raises(ValueError, match="evaluate_on='(validation|train)' with validation_fraction=0.0"):
        TaskStream(make(), num_tasks=5, **options)
