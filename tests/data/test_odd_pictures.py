"""One rule for every picture: what can be looked at can be predicted, taught and tested, with the same pixels."""

import io

import datasets
import numpy as np
import pytest
from bad_images import BROKEN, DEEP, GREY, NATURAL, SHADES, WORKS, encoded, frames, natural, png_of, turned
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image
from space import SPACE  # noqa: F401  (makes the page's modules known)
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from smope_hf.cli.predict import check_images, read_image
from smope_hf.data.augmentation import to_uint8
from smope_hf.data.image_check import ImageCheck
from smope_hf.data.image_reading import MAX_SIDE_RATIO
from smope_hf.data.image_store import DecodedImages
from smope_hf.data.tasks import TaskStream

from limits import FORMATS, Limits, Refused  # isort: skip
from teaching import _stream  # isort: skip

SIZE = {"height": 16, "width": 16}
PROCESSORS = {
    "squeezes": ViTImageProcessorPil(size=SIZE),
    "fits the shorter side": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE),
}


def plain(width: int, height: int, kind: str = "PNG", **options) -> bytes:
    return encoded(Image.new("RGB", (width, height), (10, 200, 90)), kind, **options)


def moving(kind: str) -> bytes:
    first, second = (Image.new("RGB", (6, 4), color) for color in ("red", "blue"))
    return encoded(first, kind, save_all=True, append_images=[second])


THIN = f"one side is over {MAX_SIDE_RATIO} times the other"
# what is stored -> what is said of it; None where it is used
PICTURES: dict[str, tuple[bytes, str | None]] = {
    "1 x 1": (plain(1, 1), None),
    "1 x 200": (plain(1, 200), None),
    "200 x 1": (plain(200, 1), None),
    "3 x 400": (plain(3, 400), None),
    "20000 x 100": (plain(20000, 100), None),
    "20000 x 101": (plain(20000, 101), None),
    "101 x 20000, JPEG": (plain(101, 20000, "JPEG"), None),
    "201 x 1": (plain(201, 1), THIN),
    "1000 x 1": (plain(1000, 1), THIN),
    "1 x 1000": (plain(1, 1000), THIN),
    "1 x 1000, JPEG": (plain(1, 1000, "JPEG"), THIN),
    "65535 x 1": (plain(65535, 1), THIN),
    "65535 x 1, JPEG": (plain(65500, 1, "JPEG"), THIN),
    "grey": (encoded(GREY), None),
    "grey with alpha": (encoded(GREY.convert("LA")), None),
    "palette": (encoded(Image.fromarray(SHADES).quantize(8)), None),
    "16 bit": (encoded(DEEP), None),
    "16 bit of three channels": (png_of(1, 1, b"\0\xff\xff\x80\x00\x01\x02", 16, 2), None),
    "CMYK": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 55)), "JPEG"), None),
    "moving GIF": (frames(), None),
    "moving PNG": (moving("PNG"), None),
    "moving WebP": (moving("WEBP"), None),
    "turned": (turned(6), None),
    "turned JPEG": (turned(6, "JPEG"), None),
    "JPEG without its end marker": (natural("JPEG")[:-2], "truncated"),
    "bytes behind its end": (encoded(NATURAL) + b"more", None),
    "cut": (natural("JPEG")[:700], "truncated"),
    "a bomb": (png_of(12000, 12000), "pixels"),
}
PICTURES |= {f"documented: {name}": (content, None) for name, (content, _) in WORKS.items()}
PICTURES |= {
    f"documented: {name}": (content, "") for name, (content, _) in BROKEN.items() if isinstance(content, bytes)
}


def trained(content: bytes):
    """As training, the statistics and every evaluation see it, or what is said of it."""
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["a"])})
    rows = Dataset.from_dict({"image": [{"bytes": content, "path": None}], "label": [0]}, features=features)
    return of_stream(TaskStream(DatasetDict({"train": rows}), num_tasks=1, allow_no_test=True))


def of_stream(stream: TaskStream):
    check = ImageCheck()
    try:
        stream = stream.with_splits(check.task)
        check.finish()
    except ValueError as error:
        return str(error)
    return DecodedImages(stream[0].train, PROCESSORS["squeezes"]), stream[0].train.images([0])[0]


def predicted(path):
    good, bad = check_images([path])
    return read_image(path) if good else bad[0][1]


def on_the_page(path):
    try:
        return Limits().read_image(path)
    except Refused as error:
        return str(error)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if ":" in name else ()) for name in PICTURES]
)
def test_every_place_uses_a_picture_or_none(tmp_path, name):
    content, reason = PICTURES[name]
    path = tmp_path / "picture"
    path.write_bytes(content)
    found = {"training": trained(content), "prediction": predicted(path), "page": on_the_page(path)}
    if reason is not None:
        assert all(isinstance(said, str) for said in found.values())
        assert reason in found["training"] and reason in found["prediction"]
        assert reason != THIN or THIN in found["page"]
        return
    images, seen = found["training"]
    assert np.array_equal(np.asarray(seen), np.asarray(found["prediction"]))
    with Image.open(io.BytesIO(content)) as image:
        if image.format not in FORMATS:
            assert "cannot be read as an image" in found["page"]
            return
    if max(seen.size) <= 1024:
        assert np.array_equal(np.asarray(seen), np.asarray(found["page"]))
    lesson = of_stream(_stream([found["page"]] * 4, "new", Limits()))  # looked at, so it can be taught
    assert not isinstance(lesson, str), lesson
    assert np.array_equal(np.asarray(lesson[1]), np.asarray(found["page"]))
    for processor in PROCESSORS.values():
        assert to_uint8(processor, [seen]).shape == (1, 3, 16, 16)
        assert to_uint8(processor, [found["page"]]).shape == (1, 3, 16, 16)
