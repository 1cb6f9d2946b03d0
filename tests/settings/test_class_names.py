"""Names and labels of classes: one that nobody can see is refused by its place, whole numbers of all sizes work."""

import csv

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_model
from datasets import ClassLabel, DatasetDict, Value
from digit_data import NAMES, make, write_folders

from smope_hf.data.continued_stream import ContinuedStream
from smope_hf.data.known_tasks import load_known_tests
from smope_hf.data.tasks import TaskStream
from smope_hf.settings.class_names import check_alike, one_form, told_apart

BLANK = {
    "empty": "", "a space": " ", "blanks": " \t\n", "a control character": "\x07", "an escape": "\x1b",
    "of zero width": "\u200b", "marks of direction": "\u202e\u2066", "wide spaces": "\u3000\xa0", "a filler": "\u3164",
    "an accent alone": "\u0301", "a joiner": "\u200d",
}  # fmt: skip


def renamed(**names) -> DatasetDict:
    """The digits, some of their classes named otherwise."""
    data = make()
    all_names = [names.get(f"c{index}", name) for index, name in enumerate(NAMES)]
    return DatasetDict({split: rows.cast_column("label", ClassLabel(names=all_names)) for split, rows in data.items()})


@pytest.mark.parametrize("name", BLANK.values(), ids=BLANK)
def test_a_class_that_nobody_can_see_is_refused_by_its_place(name):
    with pytest.raises(
        ValueError, match="label_column='label': class 3 is .* which is a name that nobody can see. Name"
    ):
        TaskStream(renamed(c3=name), num_tasks=5)
    rest = [[other for index, other in enumerate(NAMES) if index != 3]]
    assert TaskStream(renamed(c3=name), class_lists=rest).num_classes == 9


@pytest.mark.parametrize("name", BLANK.values(), ids=BLANK)
def test_a_row_whose_text_nobody_can_see_has_no_label(name):
    texts = {split: ["a", name] * (len(rows) // 2) + ["b"] * (len(rows) % 2) for split, rows in make().items()}
    data = DatasetDict(
        {split: rows.remove_columns("label").add_column("label", texts[split]) for split, rows in make().items()}
    )
    with pytest.raises(ValueError, match="row 1 of split 'train' has no label"):
        TaskStream(data, num_tasks=2, label_column="label")


@pytest.mark.parametrize("name", ["\u200b", " ", "\u3164"], ids=ascii)
def test_a_folder_that_nobody_can_see_is_no_class(tmp_path, name):
    folder = write_folders(tmp_path / "digits")
    for split in ("train", "test"):
        (folder / split / NAMES[3]).rename(folder / split / name)
    with pytest.raises(ValueError, match="which is a name that nobody can see. Name the class: rename its folder"):
        TaskStream.load(folder, num_tasks=5)


def test_a_table_of_labels_with_a_name_that_nobody_can_see(tmp_path):
    folder = write_folders(tmp_path / "digits")
    for split in ("train", "test"):
        images = sorted((folder / split).rglob("*.png"))
        with open(folder / split / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            rows = [(str(image.relative_to(folder / split)), image.parent.name) for image in images]
            rows[2] = (rows[2][0], "\u200b")
            csv.writer(file).writerows([("file_name", "kind"), *rows])
    with pytest.raises(ValueError, match=r"has no label \(column 'kind' holds '\\u200b'"):
        TaskStream.load(folder, num_tasks=5, label_column="kind")


@pytest.mark.parametrize("name", ["\udcff", "a\ud800"], ids=ascii)
def test_a_name_that_no_file_can_hold_is_refused(name):
    model = tiny_model(num_labels=0)
    with pytest.raises(ValueError, match="begin_task: class 1 is .* which is a name that UTF-8 cannot write"):
        model.begin_task(["ant", name])


@pytest.mark.parametrize("name", BLANK.values(), ids=BLANK)
def test_a_model_learns_no_class_that_nobody_can_see(name):
    model = tiny_model(num_labels=0)
    with pytest.raises(ValueError, match="begin_task: class 1 is .* which is a name that nobody can see"):
        model.begin_task(["ant", name])
    assert model.config.num_labels == 0 and model.config.tasks == []


def test_names_with_something_hidden_in_them_are_taken_as_they_are():
    names = ["\x1b[2Jant", "cat\u202egnp", "\u200bbee"]
    stream = TaskStream(renamed(c3=names[0], c4=names[1], c5=names[2]), num_tasks=5, shuffle_classes=False)
    assert stream.class_names[3:6] == names


# ---------------------------------------------------------------------- kinds of labels


def labelled(values: pa.Array) -> DatasetDict:
    """Images with such labels, in turn."""
    rows = make()["test"].remove_columns("label").select(range(8))
    labels = datasets.Dataset(pa.table({"label": values}))
    both = datasets.concatenate_datasets([rows, labels], axis=1)
    return DatasetDict({"train": both, "test": both})


WHOLE = [
    (pa.uint8(), [0, 255]), (pa.uint16(), [0, 65535]), (pa.uint32(), [1, 2**32 - 1]), (pa.uint64(), [0, 1]),
    (pa.uint64(), [2**63, 2**64 - 1]), (pa.uint64(), [5, 2**63 + 1]), (pa.int8(), [-128, 127]),
    (pa.int64(), [-(2**63), 2**63 - 1]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), WHOLE, ids=str)
def test_whole_numbers_of_every_size_are_labels(tmp_path, kind, values):
    data = labelled(pa.array(values * 4, type=kind))
    data.save_to_disk(tmp_path / "data")
    for source in (data, datasets.load_from_disk(tmp_path / "data")):
        stream = TaskStream(source, num_tasks=2, label_column="label", shuffle_classes=False)
        assert stream.class_names == [str(value) for value in values]
        assert [len(task.train) for task in stream] == [4, 4]
        listed = TaskStream(source, class_lists=[[values[1]], [str(values[0])]], label_column="label")
        assert listed.class_names == [str(values[1]), str(values[0])]
    tests = load_known_tests(tmp_path / "data", [[str(value)] for value in values], label_column="label")
    assert [test.labels.tolist() for test in tests] == [[0] * 4, [1] * 4]
    assert all(np.array_equal(one.train.source_rows, two.source_rows) for one, two in zip(stream, tests, strict=True))


@pytest.mark.parametrize("kind", ["uint8", "uint64", "int64"])
def test_classes_may_be_stored_as_any_whole_number(tmp_path, kind):
    data = labelled(pa.array([1, 0] * 4, type=pa.int64()).cast(kind)).cast_column(
        "label", ClassLabel(names=["ant", "bee"])
    )
    assert TaskStream(data, num_tasks=2, shuffle_classes=False).class_names == ["ant", "bee"]


NOT_LABELS = {
    "bool": (pa.array([True, False] * 4),
             r'its type is bool\. .* dataset.cast_column\("label", datasets.Value\("int64"\)\)'),
    "float32": (pa.array([0.0, 1.5] * 4, type=pa.float32()),
                r'its type is float32\. .*cast_column\("label", datasets.Value\("string"\)\)'),
    "float16": (pa.array(np.array([0, 1] * 4, dtype=np.float16)), r'its type is float16\. .*Value\("string"\)'),
    "binary": (pa.array([b"a", b"b"] * 4), r"its type is binary\. There is no such column"),
    "timestamp": (pa.array([0, 1] * 4, type=pa.timestamp("s")), r"its type is timestamp\[s\]\."),
    "a list": (pa.array([[0], [1]] * 4), r"its type is List\."),
    "nothing": (pa.nulls(8), r"its type is null\."),
}  # fmt: skip


@pytest.mark.parametrize(("values", "message"), NOT_LABELS.values(), ids=NOT_LABELS)
def test_other_labels_are_refused_by_column_type_and_remedy(values, message):
    with pytest.raises(
        ValueError, match="^label_column='label' is not a ClassLabel, string or integer column: " + message
    ):
        TaskStream(labelled(values), num_tasks=2, label_column="label")


def test_the_remedies_work():
    for values, kind in ((pa.array([True, False] * 4), "int64"), (pa.array([0.0, 1.5] * 4), "string")):
        data = labelled(values).cast_column("label", Value(kind))
        assert TaskStream(data, num_tasks=2, label_column="label").num_classes == 2


def test_a_column_that_is_not_there_is_said_not_to_be():
    with pytest.raises(ValueError, match="there is no column of that name. Set label_column to one of \\['label'\\]"):
        TaskStream(make(), num_tasks=2, label_column="lable")


DECLARED = {
    "beyond int64": (pa.array([0, 2**64 - 1] * 4, type=pa.uint64()), "18446744073709551615"),
    "a half": (pa.array([0.5, 1.0] * 4), "0.5"),
    "a text": (pa.array(["0", "x\x1b[2J"] * 4), r"x\\x1b\[2J"),
}


@pytest.mark.parametrize(("values", "shown"), DECLARED.values(), ids=DECLARED)
def test_values_that_are_not_as_declared_are_named_with_the_columns(tmp_path, monkeypatch, values, shown):
    folder = tmp_path / "data"
    folder.mkdir()
    labelled(pa.array([0, 1] * 4)).remove_columns("label")["train"].to_parquet(folder / "test.parquet")
    table = pq.read_table(folder / "test.parquet").replace_schema_metadata(None).append_column("label", values)
    pq.write_table(table, folder / "train.parquet")
    pq.write_table(table, folder / "test.parquet")
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': ant\n          '1': bee\n---\n"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(
        ValueError, match=f"cannot be read .*{shown}.* 'image' Image, 'label' ClassLabel: correct that"
    ):
        TaskStream.load(folder, num_tasks=2)


# ---------------------------------------------------------------------- names that look alike

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
ALIKE = [("one", "one "), ("one", "\u200bone"), ("one", "o\u200bne"), ("a b", "a  b"), ("a b", "a\u00a0b"),
         ("a b", "a\nb"), ("one", " one"), ("one", "one\ufeff"),
         ("猫", "猫\u3164"), (COMPOSED, DECOMPOSED + " ")]  # fmt: skip


def test_one_name_in_two_forms_is_one_class(tmp_path):
    data = renamed(c3=COMPOSED, c4=DECOMPOSED)
    stream = TaskStream(data, num_tasks=3, shuffle_classes=False)
    rows = {split: np.isin(data[split]["label"], (3, 4)).sum() for split in data}
    assert stream.class_names == [*NAMES[:3], COMPOSED, *NAMES[5:]]
    assert (stream[1].train.labels == 3).sum() == rows["train"] and (stream[1].test.labels == 3).sum() == rows["test"]
    listed = TaskStream(data, class_lists=[[DECOMPOSED, 5], [9]])
    assert listed.class_names == [COMPOSED, NAMES[5], NAMES[9]]
    data.save_to_disk(tmp_path / "data")
    for name in (COMPOSED, DECOMPOSED):  # what an older checkpoint may have
        tests = load_known_tests(tmp_path / "data", [["a"], [name]], ignore_unknown=True)
        assert tests[0] is None and len(tests[1]) == rows["test"]


def test_splits_may_have_a_name_in_different_forms():
    data = renamed(c3=COMPOSED)
    data["test"] = renamed(c3=DECOMPOSED)["test"]
    assert TaskStream(data, num_tasks=5, shuffle_classes=False).class_names == [*NAMES[:3], COMPOSED, *NAMES[4:]]
    texts = {
        split: rows.remove_columns("label").add_column("label", [names[label] for label in rows["label"]])
        for (split, rows), names in zip(
            make().items(), ([*NAMES[:3], COMPOSED, *NAMES[4:]], [*NAMES[:3], DECOMPOSED, *NAMES[4:]])
        )
    }
    assert COMPOSED in TaskStream(DatasetDict(texts), num_tasks=5, label_column="label").class_names


@pytest.mark.parametrize(("first", "second"), ALIKE, ids=ascii)
def test_names_that_look_alike_are_refused_with_both_told_apart(first, second):
    with pytest.raises(ValueError, match="differ by blanks or invisible characters alone") as error:
        TaskStream(renamed(c3=first, c4=second), num_tasks=5)
    shown = [" ".join(told_apart(one_form(name)).split()) for name in (first, second)]  # as the command line shows it
    assert shown[0] != shown[1] and all(name in str(error.value) for name in shown)
    rest = [[other for index, other in enumerate(NAMES) if index != 3]]
    assert TaskStream(renamed(c3=first), class_lists=rest).num_classes == 9
    model = tiny_model(num_labels=0)
    with pytest.raises(ValueError, match="begin_task: the classes .* differ by blanks"):
        model.begin_task([first, second])
    model.begin_task([first])
    with pytest.raises(ValueError, match="begin_task: the classes .* differ by blanks"):
        model.begin_task([second])


def test_a_model_keeps_names_in_one_form_and_knows_them_in_each():
    model = tiny_model(num_labels=0)
    model.begin_task([DECOMPOSED])
    assert model.config.id2label == {0: COMPOSED}
    for name in (COMPOSED, DECOMPOSED):
        with pytest.raises(ValueError, match="begin_task got the classes .* again"):
            model.begin_task([name])


@pytest.mark.parametrize("known", [[DECOMPOSED, COMPOSED, "one", "one "], [DECOMPOSED]], ids=ascii)
def test_names_of_an_older_checkpoint_load_as_they_are(tmp_path, known):
    model = tiny_model(num_labels=0)
    model.begin_task([f"c{index}" for index in range(len(known))])
    model.config.id2label = dict(enumerate(known))
    model.config.label2id = {name: index for index, name in enumerate(known)}
    model.save_pretrained(tmp_path, include_backbone=True)
    loaded = type(model).from_pretrained(tmp_path)
    assert list(loaded.config.id2label.values()) == known
    check_alike(["new"], "begin_task", known)  # among each other they may be alike
    with pytest.raises(ValueError, match="again"):
        loaded.begin_task([COMPOSED])


def test_what_differs_by_case_alone_is_warned_of_by_name():
    with pytest.warns(UserWarning, match="small and capital letters alone: 'one' and 'One'"):
        stream = TaskStream(renamed(c3="one", c4="One"), num_tasks=5, shuffle_classes=False)
    assert stream.class_names[3:5] == ["one", "One"]


@pytest.mark.parametrize("names", [("hot dog", "hotdog"), ("می\u200cخواهم", "میخواهم"), ("ß", "ss"), ("a", "á")])
def test_names_that_look_different_are_two_classes(names, recwarn):
    assert TaskStream(renamed(c3=names[0], c4=names[1]), num_tasks=5).num_classes == 10
    assert not [one for one in recwarn if "small and capital" in str(one.message)]


def learned(*names) -> dict:
    return {"tasks": [{"index": 0, "class_names": list(names), "class_ids": list(range(len(names)))}],
            "num_classes": len(names), "name": "old"}  # fmt: skip


def test_new_classes_are_compared_with_those_of_a_checkpoint():
    stream = TaskStream(renamed(c3=COMPOSED, c4="One"), class_lists=[[COMPOSED, "One"]])
    with pytest.raises(ValueError, match="knows these classes already"):
        ContinuedStream(learned(DECOMPOSED), stream)
    with pytest.raises(ValueError, match=r"'One\\x20' and 'One' differ by blanks"):
        ContinuedStream(learned("One "), stream)
    with pytest.warns(UserWarning, match="letters alone: 'ONE' and 'One'"):
        assert ContinuedStream(learned("ONE"), stream).num_classes == 3
