"""Images and labels that are wrong or odd: each works as documented, or is named by row and column before training."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from bad_images import BROKEN, SHADES, WORKS, encoded, stored, turned
from datasets import ClassLabel, DatasetDict, Image, Value
from digit_data import NAMES, change, make, write_folders
from PIL import Image as Pillow
from transformers.image_utils import load_image

from smope_hf.cli.predict import check_images, read_image
from smope_hf.data.continued_stream import ContinuedStream
from smope_hf.data.image_check import ImageCheck
from smope_hf.data.image_reading import decode_image
from smope_hf.data.joint_stream import JointStream
from smope_hf.data.tasks import TaskStream

ROW = {"train": 25, "test": 7}
TABLE = [
    *((name, content, None) for name, (content, _) in WORKS.items()),
    *((name, content, reason) for name, (content, reason) in BROKEN.items()),
]


@pytest.fixture(scope="module")
def data() -> DatasetDict:
    return make()


def with_image(data, split, content) -> TaskStream:
    return TaskStream(change(data, split, ROW[split], image=stored(content)), num_tasks=5)


def checked(stream, on_bad_image="error", **options):
    check = ImageCheck(on_bad_image, **options)
    stream = stream.with_splits(check.task)
    check.finish()
    return stream


def rows_of(stream, split) -> list[int]:
    return sorted(row for task in stream for row in task.splits[split].source_rows.tolist())


def test_there_are_as_many_cases_as_the_documentation_says():
    assert len(WORKS) >= 25 and len(BROKEN) >= 27 and len(LABELS) >= 19


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "content", "reason"), TABLE, ids=[name for name, _, _ in TABLE])
def test_an_image_works_or_is_named_before_training(data, split, name, content, reason):
    stream = with_image(data, split, content)
    row, where = ROW[split], f"row {ROW[split]} of split '{split}', column 'image'"
    if reason is None:
        good = checked(stream)
        part = next(task.splits[split] for task in good if row in task.splits[split].source_rows)
        (image,) = part.images(np.flatnonzero(part.source_rows == row))
        assert image.mode == "RGB" and WORKS[name][1](np.asarray(image))
        assert good.manifest() == stream.manifest()  # the hashes of the check are those of the content
        return
    with pytest.raises(ValueError, match=f"^1 of 160 images cannot be used. {re.escape(where)}: {reason}. Replace"):
        checked(stream)
    left = checked(stream, "skip")
    assert rows_of(left, split) == [other for other in rows_of(stream, split) if other != row]
    (image,) = left.manifest()["information"]["skipped_images"]
    label = NAMES[make()[split]["label"][row]]
    expected = {"used_for": split, "split": split, "row": row, "column": "image", "class": label}
    assert expected.items() <= image.items() and re.fullmatch(reason, image["reason"])
    part = next(task.splits[split] for task in stream if row in task.splits[split].source_rows)
    with pytest.raises(ValueError, match=f"{re.escape(where)}: the image cannot be decoded"):
        part.images(np.flatnonzero(part.source_rows == row))


@pytest.mark.parametrize(("name", "content", "reason"), TABLE, ids=[name for name, _, _ in TABLE])
def test_prediction_sees_what_training_sees(tmp_path, name, content, reason):
    file = tmp_path / "image"
    if not isinstance(content, bytes):
        file = tmp_path if (content or {}).get("path") == "/" else file
    else:
        file.write_bytes(content)
    good, bad = check_images([file])
    if reason is None:
        assert good and WORKS[name][1](np.asarray(read_image(file)))
    else:
        assert [path for path, _ in bad] == [file] and str(tmp_path) not in bad[0][1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_is_obeyed_alike_in_training_prediction_and_the_pipeline(tmp_path, orientation, kind):
    file = tmp_path / "image"
    file.write_bytes(turned(orientation, kind))
    seen = np.asarray(decode_image(file.read_bytes()))
    assert seen.shape == ((4, 2, 3) if orientation > 4 else (2, 4, 3))
    assert np.array_equal(seen, np.asarray(read_image(file)))
    assert np.array_equal(seen, np.asarray(load_image(str(file)).convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", None])
def test_sixteen_bits_are_scaled_whatever_mode_the_column_has(data, mode):
    deep = encoded(np.array([[0, 256, 65535]], dtype=np.uint16))
    data = change(data, "train", 0, image=stored(deep))
    data = DatasetDict({split: part.cast_column("image", Image(mode=mode)) for split, part in data.items()})
    split = next(task.train for task in TaskStream(data, num_tasks=5) if 0 in task.train.source_rows)
    assert np.asarray(split.images([0])[0])[0, :, 0].tolist() == [0, 1, 255]


def test_the_limit_of_pillow_can_be_set(monkeypatch):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(ValueError, match="4 x 2 pixels are more than PIL.Image.MAX_IMAGE_PIXELS = 7"):
        decode_image(encoded(SHADES))
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", None)
    assert decode_image(encoded(SHADES)).size == (4, 2)


def test_too_little_memory_is_no_fault_of_the_image(data, monkeypatch):
    """Else a good image would be skipped on a small machine."""

    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError):
        checked(TaskStream(data, num_tasks=5), "skip")


# ---------------------------------------------------------------------- several, and whole classes


def spoilt(data, split, rows) -> DatasetDict:
    for row in rows:
        data = change(data, split, row, image=stored(b"no image"))
    return data


def test_several_bad_images_are_counted_and_the_first_are_named(data):
    stream = TaskStream(spoilt(data, "train", [3, 30, 31, 90]), num_tasks=5, shuffle_classes=False)
    with pytest.raises(ValueError, match=r"^4 of 160 images.*; .*; row \d+ of .*; and 1 more\. .*--skip-bad"):
        checked(stream)


def test_a_class_without_a_usable_image_is_an_error_even_when_skipping(data):
    labels = {split: np.array(data[split]["label"][:]) for split in data}
    for split in ("train", "test"):
        stream = TaskStream(spoilt(data, split, np.flatnonzero(labels[split] == 3)), num_tasks=5)
        with pytest.raises(ValueError, match=f"no {split} image of class 'digit 3' can be used. row .*class_lists"):
            checked(stream, "skip")


def test_what_is_skipped_changes_no_other_choice_and_the_protocol_is_of_what_is_left(data):
    options = {"num_tasks": 5, "max_train_samples_per_class": 6, "validation_fraction": 0.25}
    whole = TaskStream(data, **options)
    row = int(whole[4].train.source_rows[3])
    left = checked(TaskStream(spoilt(data, "train", [row]), **options), "skip")
    assert rows_of(left, "train") == [other for other in rows_of(whole, "train") if other != row]
    assert rows_of(left, "validation") == rows_of(whole, "validation")
    hashes = [stream.manifest()["protocol_hash"] for stream in (whole, left)]
    removed = TaskStream(data, **options).with_splits(
        lambda task, name: task.splits[name].without(np.flatnonzero(task.splits[name].source_rows == row), [])
        if name == "train" else task.splits[name]
    )  # fmt: skip
    assert hashes[0] != hashes[1] == removed.manifest()["protocol_hash"]
    assert len(left.manifest()["information"]["skipped_images"]) == 1


def test_all_in_one_task_and_tasks_of_a_checkpoint_know_what_was_skipped(data):
    stream = TaskStream(spoilt(data, "test", [7]), num_tasks=5)
    plain, joint = checked(stream, "skip"), checked(JointStream(stream), "skip")
    information = joint.manifest()["information"]
    assert information["joint_of"] == plain.manifest()["protocol_hash"]
    assert [image["row"] for image in information["skipped_images"]] == [7]
    renamed = DatasetDict(
        {k: v.cast_column("label", ClassLabel(names=[f"new {n}" for n in NAMES])) for k, v in data.items()}
    )
    more = TaskStream(spoilt(renamed, "train", [25]), num_tasks=1)
    tests = [task.test for task in stream]
    continued = checked(ContinuedStream(plain.manifest(), more, tests), "skip").manifest()
    found = [
        (image["task_index"], image["split"], image["row"]) for image in continued["information"]["skipped_images"]
    ]
    old = plain.manifest()["information"]["skipped_images"][0]["task_index"]
    assert found == [(old, "test", 7), (5, "train", 25)]


def test_several_processes_share_the_work_and_leave_the_same_rows_out(data, monkeypatch):
    stream = TaskStream(spoilt(data, "train", [3, 30, 31]), num_tasks=5)
    alone = checked(stream, "skip")
    checks = [ImageCheck("skip") for _ in range(2)]
    for rank, check in enumerate(checks):
        check.rank, check.world = rank, 2
    looked_at = []

    def gather(mine):
        other = checks[1 - mine_of]
        looked_at.append(len(mine))
        share = range(other.rank, len(split), 2)
        return [*zip(share, other._look_at(split, share)), *mine]

    monkeypatch.setattr("smope_hf.data.image_check.gather_object", gather)
    for mine_of, check in enumerate(checks):
        for task, expected in zip(stream, alone, strict=True):
            split = task.train
            found = check.task(task, "train")
            assert found.source_rows.tolist() == expected.train.source_rows.tolist()
            assert np.array_equal(found.digests, expected.train.digests) and found.skipped == expected.train.skipped
    assert max(looked_at) <= 12  # of 24 in a task


# ---------------------------------------------------------------------- labels


def relabelled(kind, convert=lambda value: value, **row):
    data = make(kind, convert)
    return change(data, "train", 7, **row) if row else data


def outside() -> DatasetDict:
    """A label beyond the names, which `datasets` itself does not refuse in a table."""
    data = make()
    table = data["train"].data.table
    labels = table.column("label").to_pylist()
    labels[7] = 10
    table = table.set_column(table.column_names.index("label"), "label", [labels])
    return DatasetDict({**data, "train": datasets.Dataset(table, info=data["train"].info)})


def without_class(split) -> DatasetDict:
    data = make()
    return DatasetDict({**data, split: data[split].filter(lambda label: label != 3, input_columns="label")})


def single_images() -> DatasetDict:
    data = make()
    firsts = [np.array(data["train"]["label"][:]).tolist().index(label) for label in range(10)]
    return DatasetDict({**data, "train": data["train"].select(firsts)})


NO_LABEL = r"row 7 of split 'train' has no label \(column 'label' holds {}.*\): remove such rows"
# data, options, what is said; None where the tasks are made
LABELS = {
    "missing": (lambda: relabelled(None, label=None), {}, NO_LABEL.format("None")),
    "minus one, which stands for missing": (lambda: relabelled(None, label=-1), {}, NO_LABEL.format("-1")),
    "beyond the names": (outside, {}, NO_LABEL.format("10, and there are 10 classes, 0 to 9")),
    "missing among texts": (lambda: relabelled(Value("string"), str, label=None), {"label_column": "label"},
                            NO_LABEL.format("None")),
    "an empty text": (lambda: relabelled(Value("string"), str, label=""), {"label_column": "label"},
                      NO_LABEL.format("''")),
    "a text of blanks": (lambda: relabelled(Value("string"), str, label=" \t"), {"label_column": "label"},
                         NO_LABEL.format(r"' \\t'")),
    "missing among numbers": (lambda: relabelled(Value("int64"), label=None), {"label_column": "label"},
                              NO_LABEL.format("None")),
    "texts": (lambda: relabelled(Value("string"), str), {"label_column": "label"}, None),
    "texts, column not named": (lambda: relabelled(Value("string"), str), {}, r"set label_column .*\['label'\]"),
    "real numbers": (lambda: relabelled(Value("float32"), float), {"label_column": "label"},
                     "label_column='label' is not a ClassLabel, string or integer column"),
    "switches": (lambda: relabelled(Value("bool"), bool), {"label_column": "label"}, "label_column='label' is not"),
    "another type in the test split": (
        lambda: DatasetDict({"train": make()["train"], "test": make(Value("string"), str)["test"]}), {},
        "label_column='label' must have the same type in all splits"),
    "a class without a training image": (lambda: without_class("train"), {},
                                         "split 'train' has no training image of class 'digit 3'"),
    "a class without a test image": (lambda: without_class("test"), {},
                                     "split 'test' has no test image of class 'digit 3'"),
    "one image of each class": (single_images, {}, None),
    "one image to train and to test on": (lambda: DatasetDict({"train": single_images()["train"]}),
                                          {"test_fraction": 0.5}, "has only one image of class"),
    "a class in two tasks": (make, {"num_tasks": None, "class_lists": [["digit 3"], ["digit 3"]]},
                             "names class 'digit 3' twice, in tasks 0 and 1"),
    "an empty split": (lambda: DatasetDict({**make(), "test": make()["test"].select([])}), {}, "'test' is empty"),
    "no image column": (lambda: make().remove_columns("image"), {}, "no column of type Image"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "options", "message"), LABELS.values(), ids=LABELS)
def test_labels_work_or_are_named(build, options, message):
    options = {"num_tasks": 5, **options}
    if message is None:
        assert TaskStream(build(), **options).num_classes == 10
    else:
        with pytest.raises(ValueError, match=message):
            TaskStream(build(), **options)


def test_an_image_of_a_class_that_an_earlier_task_has_is_named(data):
    learned = TaskStream(data, class_lists=[["digit 3"], ["digit 4"]]).manifest()
    with pytest.raises(
        ValueError, match=r"already: 'digit 4' \(task 2\). Row \d+ of split 'train', column 'label', is"
    ):
        ContinuedStream(learned, TaskStream(data, class_lists=[["digit 7", "digit 4"]]))


def test_a_folder_of_images_is_checked_as_any_data_set(tmp_path):
    folder = write_folders(tmp_path / "digits")
    (folder / "train" / NAMES[2] / "004.png").write_bytes(b"")
    (folder / "test" / NAMES[5] / "notes.txt").write_text("not an image, and not taken for one")
    stream = TaskStream.load(folder, num_tasks=5)
    with pytest.raises(ValueError, match="1 of 160 images .* column 'image': the file is empty") as error:
        checked(stream)
    assert str(tmp_path) not in str(error.value)
    assert len(rows_of(checked(stream, "skip", num_workers=2), "train")) == 119


def copy(place, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(place.read_bytes())


def spoil(folder, how: str):
    """Folder with class folders, or with splits, in which something is made, copied, moved or linked."""
    kind, *places = how.split(", ")
    *source, target = [folder / place for place in places]
    if kind == "make":
        target.mkdir(parents=True)
    elif kind == "copy":
        copy(*source, target)
    elif kind == "move":
        source[0].rename(target)
    else:
        target.symlink_to(source[0])


ASTRAY = [  # splits, what is done, what is said
    ("", "copy, six/0.png, cover.png", "outside a class folder: '{}/cover.png'."),
    ("train test", "copy, train/six/0.png, train/cover.png", "outside a class folder: '{}/train/cover.png'."),
    ("", "copy, six/0.png, six/more/0.png", "inside a class folder: '{}/six/more'."),
    ("Training Testing", "make, new", "would be one class: '{}/Testing/seven', .*; .*'{}/new'."),
    ("", "make, eight", "no image can be read .*: '{}/eight'."),
    ("", "make, test", "no image can be read .*: '{}/test'."),
    ("train test", "make, test/eight/more", "no image can be read .*: '{}/test/eight'."),
    ("", "copy, six/0.png, eight/0.heic", "no image can be read .*: '{}/eight'."),
    ("", "copy, six/0.png, six/0.HEIC", r"kind that is not read \(1 .heic; convert .*: '{}/six/0.HEIC'."),
    ("", "copy, six/0.png, cover.avif", r"kind that is not read \(1 .avif; convert .*: '{}/cover.avif'."),
    ("train test", "copy, test/six/0.png, test/six/0.jxl", r"not read \(1 .jxl; convert .*: '{}/test/six/0.jxl'."),
    ("", "link, six, eight", "no image can be read .*: '{}/eight'."),
    ("", "move, six/0.png, six/0.Png", "left out .*: '{}/six/0.Png'."),
    ("", "copy, six/0.png, six/val_1.png", "left out .*: '{}/seven/0.png', .*'{}/six/1.png'."),
    ("train test", "move, test/six, test/train", "in two splits .*: '{}/test/train/0.png', '{}/test/train/1.png'."),
    ("", "move, six, test tube", "no class folder .*'{}/test tube/0.png' .'{}/test tube' is taken for a split folder"),
]


def photos(folder, splits="") -> Path:
    places = [folder / split / name for split in splits.split() or ("",) for name in ("six", "seven")]
    for number, place in enumerate(places):
        place.mkdir(parents=True)
        for image in range(2):
            Pillow.new("RGB", (4, 4), (number, image, 0)).save(place / f"{image}.png")
    return folder


def load_photos(folder, **options) -> TaskStream:
    return TaskStream.load(folder, num_tasks=1, shuffle_classes=False, allow_no_test=True, **options)


@pytest.mark.parametrize(("splits", "how", "message"), ASTRAY, ids=[how for _, how, _ in ASTRAY])
def test_a_folder_of_which_an_image_or_a_class_would_go_astray_is_refused(tmp_path, splits, how, message):
    spoil(photos(tmp_path / "photos", splits), how)
    with pytest.raises(ValueError, match=message.replace("{}", re.escape(str(tmp_path / "photos")))) as error:
        load_photos(tmp_path / "photos")
    assert f"Allowed: {tmp_path}/photos/CLASS/IMAGE" in str(error.value)


def test_images_without_a_class_folder_are_no_class(tmp_path):
    photos(tmp_path / "photos")
    with pytest.raises(
        ValueError, match="no class folder for them, the first is '.*/six/0.png'. Allowed: .*/CLASS/IM"
    ):
        load_photos(tmp_path / "photos" / "six")


def test_other_folders_that_datasets_reads_work(tmp_path):
    def classes(folder, how="", **options):
        if how:
            spoil(folder, how)
        return load_photos(folder, **options).class_names

    both = ["seven", "six"]
    assert classes(photos(tmp_path / "data" / "deep"), "copy, six/0.png, six/notes/a.txt") == both
    assert classes(tmp_path / "data", "make, deep/.hidden") == both
    assert classes(photos(tmp_path / "split", "my-train val"), "copy, val/six/0.png, unsorted/0.png") == both
    assert classes(tmp_path / "split", "copy, val/six/0.png, cover.png") == both
    stray = photos(tmp_path / "stray")
    copy(stray / "six" / "0.png", stray / "cover.png")
    assert classes(stray, data_files={"train": "s*/0.png"}) == both
    (stray / "README.md").write_text("---\nconfigs:\n- config_name: own\n  data_files: s*/*\n---\nMine")
    assert classes(stray) == both
    (stray / "README.md").unlink()
    (stray / "metadata.csv").write_text("file_name,kind\nsix/0.png,A\ncover.png,B\n")
    assert classes(stray, label_column="kind") == ["A", "B"]


def test_one_class_is_learned_where_the_test_folder_has_more(tmp_path):
    folder = photos(tmp_path / "photos", "train test")
    spoil(folder, "move, train/seven, unsorted")
    stream = TaskStream.load(folder, class_lists=[["six"]])
    assert stream.class_names == ["six"] and len(stream[0].train) == len(stream[0].test) == 2
