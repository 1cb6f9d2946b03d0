"""One list of endings and one rule for hidden files: what is trained on is what is evaluated and predicted."""

import re

import pytest
from PIL import Image

from smope_hf import TaskStream
from smope_hf.cli.predict import find_images
from smope_hf.data.image_files import IMAGE_ENDINGS, UNREAD_ENDINGS, count_endings
from smope_hf.data.known_tasks import load_known_tests
from smope_hf.data.reading import load_dataset_dict

HIDDEN = ("six/._0.png", "six/.1.png", "._cover.png", "__MACOSX/six/._0.png", "__MACOSX/six/2.png", ".thumbs/3.png")


@pytest.fixture
def photos(tmp_path):
    """Class folders with an image of every ending that is read, and all that a Mac leaves beside them."""
    for number, name in enumerate(("six", "seven")):
        (tmp_path / name).mkdir()
        for ending in IMAGE_ENDINGS:
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name / f"a{ending}", "PNG")
        (tmp_path / name / "B.PNG").write_bytes((tmp_path / name / "a.png").read_bytes())
    for name in HIDDEN:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07 no image")
    return tmp_path


def test_prediction_and_evaluation_see_what_training_sees(photos):
    folder = photos
    found = {path.relative_to(folder).as_posix() for path in find_images([str(folder)])}
    assert {".jfif", ".jpe", ".ppm", ".tga", ".jp2", ".jpg", ".webp"} <= IMAGE_ENDINGS
    assert found == {
        f"{name}/{file}" for name in ("six", "seven") for file in (*(f"a{e}" for e in IMAGE_ENDINGS), "B.PNG")
    }
    trained = TaskStream.load(folder, num_tasks=1, allow_no_test=True)
    assert len(trained[0].train) == len(found)
    (tested,) = load_known_tests(folder, [["six", "seven"]], split="train")
    assert len(tested) == len(found)


def test_a_hidden_file_that_is_named_is_taken(photos):
    assert find_images([str(photos / HIDDEN[0])]) == [photos / HIDDEN[0]]
    assert find_images([f"{photos}/six/*.png"]) == [photos / "six" / "a.png"]


def test_images_of_kinds_that_are_not_read_are_counted_by_their_endings(photos):
    for number, ending in enumerate(sorted(UNREAD_ENDINGS)):
        for copy in range(3 if number == 0 else 1):
            (photos / "six" / f"c{copy}{ending}").write_bytes(b"no matter")
    with pytest.raises(ValueError, match=r"kind that is not read \(3 .3fr, 1 .arw, 1 .avif, ") as error:
        load_dataset_dict(photos)
    assert all(ending in str(error.value) for ending in UNREAD_ENDINGS)
    assert (
        len([path for path in find_images([str(photos)]) if path.suffix in UNREAD_ENDINGS]) == len(UNREAD_ENDINGS) + 2
    )


def test_a_folder_of_nothing_else_says_so(tmp_path):
    (tmp_path / "six").mkdir()
    for name in ("a.heic", "b.HEIC", "c.avif"):
        (tmp_path / "six" / name).write_bytes(b"no matter")
    with pytest.raises(ValueError, match=re.escape("3 of kinds that are not read (2 .heic, 1 .avif): convert them")):
        load_dataset_dict(tmp_path)
    assert count_endings(["a.JPG", "b.jpg", "c.png"]) == "2 .jpg, 1 .png"
