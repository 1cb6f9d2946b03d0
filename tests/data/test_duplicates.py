"""Images that are there more than once: counted, told, refused where that is asked for."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image
from runs import read, save_backbone, tiny_trainer

from smope_hf import TaskStream
from smope_hf.data.duplicates import ON_DUPLICATE, Duplicates, check_duplicates, find_duplicates
from smope_hf.reports.run_folder import RunFolder
from smope_hf.reports.run_warnings import warnings_of_run
from smope_hf.settings.training_args import ContinualTrainingArguments
from smope_hf.sharing.run_files import load_metrics

NAMES = ("ant", "bee", "cow", "dog")


def image(number: int) -> dict:
    """The file of an image; the same number, the same bytes."""
    pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def stream(train: dict[int, list[int]], test: dict[int, list[int]], **options) -> TaskStream:
    """Two tasks of two classes: the numbers of the images of each class."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})

    def rows(of_class):
        pairs = [(image(number), label) for label, numbers in of_class.items() for number in numbers]
        return datasets.Dataset.from_dict({"image": [a for a, _ in pairs], "label": [b for _, b in pairs]}, features)

    return TaskStream(datasets.DatasetDict({"train": rows(train), "test": rows(test)}), num_tasks=2, **options)


CLEAN = ({0: [1, 2, 3], 1: [4, 5, 6], 2: [7, 8, 9], 3: [10, 11, 12]}, {0: [21], 1: [22], 2: [23], 3: [24]})


def counts(found: Duplicates) -> tuple[int, int, int]:
    return found.tested_on_training, found.in_two_classes, found.repeated


def test_where_every_image_is_there_once_nothing_is_found():
    found = find_duplicates(stream(*CLEAN))
    assert counts(found) == (0, 0, 0) and found.sentences == [] and found.examples == {}


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ({}, {0: [1]}, (1, 0, 0)),  # a test image of its own class
        ({}, {0: [7]}, (1, 1, 0)),  # of another task's class
        ({}, {0: [1, 2], 3: [24, 12]}, (3, 0, 0)),
        ({0: [1, 2, 4]}, {}, (0, 1, 0)),  # in two classes of a task
        ({0: [1, 7, 4]}, {}, (0, 2, 0)),
        ({0: [1, 1, 1]}, {}, (0, 0, 2)),
        ({}, {0: [21, 21]}, (0, 0, 1)),  # among the test images
        ({0: [1, 1, 4]}, {1: [4]}, (1, 1, 1)),  # each kind
    ],
)
def test_each_kind_is_counted(train, test, expected):
    found = find_duplicates(stream({**CLEAN[0], **train}, {**CLEAN[1], **test}))
    assert counts(found) == expected
    assert len(found.sentences) == sum(map(bool, expected)) == len(found.examples)


def test_validation_images_are_not_training_images():
    twice = {label: [*numbers, *numbers] for label, numbers in CLEAN[0].items()}
    found = find_duplicates(stream(twice, CLEAN[1], validation_fraction=0.5))
    by_hand = 0
    for task in stream(twice, CLEAN[1], validation_fraction=0.5):
        train = {row.tobytes() for row in task.train.hashes()}
        by_hand += sum(row.tobytes() in train for row in task.validation.hashes())
    assert found.tested_on_training == by_hand > 0


def test_the_words_name_two_places():
    found = find_duplicates(stream({**CLEAN[0], 0: [1, 2, 4]}, {**CLEAN[1], 0: [1]}))
    assert found.sentences == [
        "1 validation or test image is a training image too, so accuracies are too high (such as row 0 of split "
        "'train', column 'image' and row 0 of split 'test', column 'image').",
        "1 image stands in more than one class, so one of them is wrong (such as row 2 of split 'train', column "
        "'image' and row 3 of split 'train', column 'image').",
    ]
    assert "3 images stand" in find_duplicates(stream({**CLEAN[0], 0: [1] * 4}, CLEAN[1])).sentences[0]


def test_they_are_refused_before_any_work_where_that_is_asked_for(tmp_path):
    leaking = stream(CLEAN[0], {**CLEAN[1], 0: [1]})
    with pytest.raises(ValueError, match="is a training image too.*Remove one of each.*--on-duplicate warn"):
        check_duplicates(leaking, "error")
    backbone = save_backbone(tmp_path / "vit")
    with pytest.raises(ValueError, match="is a training image too"):
        tiny_trainer(backbone, tmp_path / "run", leaking, on_duplicate="error")
    assert not list((tmp_path / "run").glob("task-*"))
    tiny_trainer(backbone, tmp_path / "clean", stream(*CLEAN), on_duplicate="error")
    with pytest.raises(ValueError, match="on_duplicate = 'never' is not allowed.*warn"):
        ContinualTrainingArguments(on_duplicate="never")
    assert ContinualTrainingArguments().on_duplicate == ON_DUPLICATE[0]


def test_a_run_tells_them_and_keeps_them(tmp_path, capsys):
    told = stream({**CLEAN[0], 3: [10, 11, 11]}, {**CLEAN[1], 0: [1]})
    tiny_trainer(save_backbone(tmp_path / "vit"), tmp_path / "run", told, epochs=1).train()
    printed = capsys.readouterr()
    assert "Warning: 1 validation or test image is a training image too" in printed.out + printed.err
    content = read(tmp_path / "run", "metrics.json")
    assert content["duplicate_images"] == find_duplicates(told).to_json()
    assert content["warnings"][:2] == find_duplicates(told).sentences
    warnings = warnings_of_run(RunFolder(tmp_path / "run"))
    assert sum("Remove one of each" in warning for warning in warnings) == 2


@pytest.mark.parametrize(
    "content",
    [
        [], {}, {"tested_on_training": 0, "in_two_classes": 0, "repeated": -1, "examples": {}},
        {"tested_on_training": 1, "in_two_classes": 0, "repeated": 0, "examples": {}},
        {"tested_on_training": 0, "in_two_classes": 0, "repeated": 0, "examples": {"repeated": ["a", "b"]}},
        {"tested_on_training": 1, "in_two_classes": 0, "repeated": 0, "examples": {"tested_on_training": ["a"]}},
    ],
)  # fmt: skip
def test_what_no_run_has_written_is_refused(tmp_path, content):
    import json

    (tmp_path / "metrics.json").write_text(json.dumps({"duplicate_images": content}))
    with pytest.raises(ValueError, match="metrics.json: duplicate_images is .*three counts"):
        load_metrics(tmp_path)
