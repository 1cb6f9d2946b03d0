"""Geometry, augmentation and normalisation: equal to the image processor's, exact where exactness is promised."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    Owlv2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from smope_hf.data.augmentation import CROP_ATTEMPTS, BatchAugmentation, Normalization, processed_size, to_uint8

SQUARE, SHORTEST, CROP = {"height": 20, "width": 20}, {"shortest_edge": 24}, {"height": 20, "width": 20}
PROCESSORS = {
    "vit": ViTImageProcessorPil(size=SQUARE, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    "vit, not square": ViTImageProcessorPil(size={"height": 20, "width": 26}),
    "vit, numbers for all channels": ViTImageProcessorPil(size=SQUARE, image_mean=0.4, image_std=0.3),
    "vit, no normalisation": ViTImageProcessorPil(size=SQUARE, do_normalize=False),
    "vit, no rescaling": ViTImageProcessorPil(size=SQUARE, do_rescale=False, image_mean=[127.5] * 3),
    "vit, neither": ViTImageProcessorPil(size=SQUARE, do_rescale=False, do_normalize=False),
    "clip": CLIPImageProcessorPil(size=SHORTEST, crop_size=CROP),
    "clip, crop larger than the image": CLIPImageProcessorPil(size={"shortest_edge": 14}, crop_size=CROP),
    "siglip": SiglipImageProcessorPil(size=SQUARE),
    "dinov2": BitImageProcessorPil(size=SHORTEST, crop_size=CROP),
    "deit": DeiTImageProcessorPil(size={"height": 24, "width": 24}, crop_size=CROP),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 20}),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pictures() -> list[Image.Image]:
    shapes = [(32, 32), (15, 60), (50, 11), (24, 20)]
    return [Image.fromarray(noise(height, width, 3)) for height, width in shapes]


def batch(count: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(noise(count, 3, height, width))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(count: int, *parameters: float) -> torch.Tensor:
    return torch.tensor([parameters]).repeat(count, 1)


@pytest.mark.parametrize("name", PROCESSORS)
def test_geometry_and_normalisation_make_the_processors_own_pixels(name):
    processor = PROCESSORS[name]
    expected = processor(pictures(), return_tensors="pt").pixel_values.float()
    images = to_uint8(processor, pictures())
    assert images.dtype == torch.uint8 and tuple(images.shape[-2:]) == processed_size(processor)
    found = Normalization.from_processor(processor)(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert images.float().std() > 10


def test_reference_normalisation_scales_to_one():
    images = batch(2, 4, 4)
    for processor in PROCESSORS.values():
        normalization = Normalization.from_processor(processor, mode="reference")
        torch.testing.assert_close(normalization(images), images / 255, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match='normalization=\'none\'.*"processor" and "reference"'):
        Normalization.from_processor(PROCESSORS["vit"], mode="none")
    with pytest.raises(ValueError, match="std=.*above 0"):
        Normalization(std=(1.0, 0.0, 1.0))


def test_normalisation_leaves_its_input_alone():
    images = batch(2, 4, 4).float()
    before = images.clone()
    Normalization.from_processor(PROCESSORS["vit"])(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "processor",
    [ViTImageProcessorPil(do_resize=False), CLIPImageProcessorPil(size=SHORTEST, do_center_crop=False)],
)
def test_processors_without_a_fixed_size_are_refused(processor):
    with pytest.raises(ValueError, match="for a wide and .* for a tall.*do_center_crop=True"):
        processed_size(processor)
    with pytest.raises(ValueError, match="one batch of 4 images.*do_center_crop=True"):
        to_uint8(processor, pictures())


def test_processors_with_other_steps_are_refused():
    with pytest.raises(ValueError, match="Owlv2ImageProcessorPil does more than|whole numbers"):
        Normalization.from_processor(Owlv2ImageProcessorPil(size=SQUARE))


@pytest.mark.parametrize("size", [(8, 8), (20, 26), (224, 224)])
def test_the_whole_image_comes_back_exactly_and_mirrored_exactly(size):
    augmentation, images = BatchAugmentation(size), batch(2, *size)
    for dtype in (torch.uint8, torch.float32, torch.float64):
        whole = augmentation(images.to(dtype), rows(2, 0.0, 0.0, 1.0, 1.0, 0.0))
        mirrored = augmentation(images.to(dtype), rows(2, 0.0, 0.0, 1.0, 1.0, 1.0))
        assert whole.dtype == torch.float32
        assert torch.equal(whole, images.float())
        assert torch.equal(mirrored, images.float().flip(-1))


def test_a_mirrored_crop_is_the_crop_mirrored():
    augmentation, images = BatchAugmentation((20, 26)), batch(16, 20, 26)
    parameters = augmentation.draw(16, generator(0))
    parameters[:, 4] = 0
    plain = augmentation(images, parameters)
    parameters[:, 4] = 1
    torch.testing.assert_close(augmentation(images, parameters), plain.flip(-1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("box", [(3, 5, 10, 12), (0, 0, 20, 26), (15, 20, 5, 6), (0, 13, 20, 13)])
def test_a_crop_of_whole_pixels_is_pils_crop_and_bilinear_resize(box):
    """PIL rounds to whole numbers between its two passes and at the end: 1.5 of 255 at most, 0.5 on average."""
    height, width = 20, 26
    top, left, crop_height, crop_width = box
    pixels = noise(height, width, 3)
    expected = Image.fromarray(pixels).crop((left, top, left + crop_width, top + crop_height))
    expected = torch.from_numpy(np.array(expected.resize((width, height), Image.Resampling.BILINEAR)))
    parameters = rows(1, top / height, left / width, crop_height / height, crop_width / width, 0.0)
    found = BatchAugmentation((height, width))(torch.from_numpy(pixels).permute(2, 0, 1)[None], parameters)[0]
    difference = (found.permute(1, 2, 0) - expected).abs()
    inner_rows = slice(_border(height, crop_height), height - _border(height, crop_height))
    inner_columns = slice(_border(width, crop_width), width - _border(width, crop_width))
    assert difference[inner_rows, inner_columns].max() <= 1.5
    assert difference[inner_rows, inner_columns].mean() <= 0.5


def _border(size: int, crop: int) -> int:
    """Output pixels whose neighbours lie outside the crop: PIL repeats the crop's edge, we look at the image."""
    return 0 if size == crop else math.ceil(size / crop / 2)


def test_the_image_continues_beyond_its_border():
    images = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    parameters = BatchAugmentation((8, 8)).draw(50, generator(0))
    found = BatchAugmentation((8, 8))(images.repeat(50, 1, 1, 1), parameters)
    torch.testing.assert_close(found, torch.full_like(found, 200.0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (20, 40)])
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.05, 1.0), (3 / 4, 4 / 3)), ((0.3, 0.5), (0.5, 2.0)), ((0.2, 0.2), (1, 1))]
)
def test_crops_keep_to_the_distribution(size, scale, ratio):
    draws = BatchAugmentation(size, scale, ratio, flip_probability=0.3).draw(20_000, generator(0)).double()
    top, left, height, width, flip = draws.unbind(1)
    tiny = 1e-5
    assert top.min() >= 0 and left.min() >= 0
    assert (top + height).max() <= 1 + tiny and (left + width).max() <= 1 + tiny
    area, aspect = height * width, width / height * size[1] / size[0]
    assert area.min() >= scale[0] - tiny and area.max() <= scale[1] + tiny
    assert aspect.min() >= ratio[0] - tiny and aspect.max() <= ratio[1] + tiny
    assert abs(flip.mean() - 0.3) < 0.02 and set(flip.tolist()) == {0.0, 1.0}
    room = (1 - height > 0.05) & (1 - width > 0.05)
    for start, length in ((top, height), (left, width)):
        place = start[room] / (1 - length[room])
        assert abs(place.mean() - 0.5) < 0.02 and abs(place.std() - 12**-0.5) < 0.02


def test_area_is_uniform_and_aspect_log_uniform_where_nothing_is_rejected():
    draws = BatchAugmentation((32, 32), (0.1, 0.4), (0.5, 2.0)).draw(20_000, generator(1)).double()
    area, aspect = draws[:, 2] * draws[:, 3], draws[:, 3] / draws[:, 2]
    quantiles = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(area.quantile(quantiles), 0.1 + 0.3 * quantiles, rtol=0, atol=0.01)
    expected = math.log(0.5) + 2 * math.log(2) * quantiles
    torch.testing.assert_close(aspect.log().quantile(quantiles), expected, rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((32, 32), (2.0, 2.0), (0.25, 0.0, 0.5, 1.0)),
        ((32, 32), (0.25, 0.5), (0.0, 0.25, 1.0, 0.5)),
        ((20, 40), (1.0, 1.0), (0.0, 0.25, 1.0, 0.5)),
        ((20, 40), (4.0, 4.0), (0.25, 0.0, 0.5, 1.0)),
    ],
)
def test_where_no_draw_fits_the_largest_centred_crop_is_taken(size, ratio, expected):
    draws = BatchAugmentation(size, (1.0, 1.0), ratio).draw(30, generator(0))
    torch.testing.assert_close(draws[:, :4], rows(30, *expected))


def test_rejected_draws_are_made_again():
    """Of the draws with scale up to 1 and ratio up to 4, many do not fit; ten attempts leave few to the fallback."""
    augmentation = BatchAugmentation((32, 32), (0.1, 1.0), (0.25, 4.0))
    draws = augmentation.draw(5000, generator(0))
    fallback = (draws[:, 2] == 1) & (draws[:, 3] == 1)
    uniform = torch.rand(5000, 3 + 2 * CROP_ATTEMPTS, generator=generator(0), dtype=torch.float32)
    area, ratio = 0.1 + 0.9 * uniform[:, 3], torch.exp((2 * uniform[:, 3 + CROP_ATTEMPTS] - 1) * math.log(4))
    rejected_first = (area * ratio > 1) | (area / ratio > 1)
    assert rejected_first.float().mean() > 0.3
    assert fallback.float().mean() < 0.01


def test_a_sample_does_not_depend_on_its_batch():
    augmentation, images = BatchAugmentation((20, 26)), batch(12, 20, 26)
    parameters = augmentation.draw(12, generator(5))
    assert torch.equal(augmentation.draw(7, generator(5)), parameters[:7])
    together = augmentation(images, parameters)
    order = torch.randperm(12, generator=generator(0))
    torch.testing.assert_close(augmentation(images[order], parameters[order]), together[order], rtol=0, atol=1e-4)
    for index in (0, 11):
        alone = augmentation(images[index : index + 1], parameters[index : index + 1])
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-4)


def test_the_generator_decides():
    augmentation = BatchAugmentation((20, 20))
    assert torch.equal(augmentation.draw(9, generator(1)), augmentation.draw(9, generator(1)))
    assert not torch.equal(augmentation.draw(9, generator(1)), augmentation.draw(9, generator(2)))
    state = torch.get_rng_state()
    augmentation(batch(9, 20, 20), augmentation.draw(9, generator(1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_mixed_precision_does_not_reach_the_augmentation():
    augmentation, images = BatchAugmentation((20, 20)), batch(4, 20, 20)
    parameters = augmentation.draw(4, generator(0))
    expected = augmentation(images, parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augmentation(images, parameters), expected)


def test_nothing_waits_for_a_value_from_the_device():
    """Tensors without values go through; reading one would raise an error."""
    augmentation, normalization = BatchAugmentation((20, 20)), Normalization()
    with FakeTensorMode():
        images, parameters = torch.empty(4, 3, 20, 20, dtype=torch.uint8), torch.empty(4, 5)
        assert normalization(augmentation(images, parameters)).shape == (4, 3, 20, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 20)}, r"size=\(0, 20\)"),
        ({"size": 20}, "size=20: two numbers"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\)"),
        ({"scale": (0.5, 1.5)}, r"scale=\(0.5, 1.5\)"),
        ({"scale": (0.9, 0.5)}, r"scale=\(0.9, 0.5\).*smallest <= largest"),
        ({"ratio": (2.0, 0.5)}, r"ratio=\(2.0, 0.5\)"),
        ({"ratio": (0.0, 0.5)}, r"ratio=\(0.0, 0.5\)"),
        ({"flip_probability": 1.1}, "flip_probability=1.1"),
        ({"flip_probability": -0.1}, "flip_probability=-0.1"),
        ({"flip_probability": math.nan}, "flip_probability=nan"),
    ],
)
def test_wrong_values_are_refused_with_field_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        BatchAugmentation(**{"size": (20, 20), **options})


def test_wrong_shapes_are_refused():
    augmentation = BatchAugmentation((20, 26))
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 26, 20\).*20, 26"):
        augmentation(batch(2, 26, 20), rows(2, 0.0, 0.0, 1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match=r"parameters of shape \(3, 5\).*\(2, 5\)"):
        augmentation(batch(2, 20, 26), rows(3, 0.0, 0.0, 1.0, 1.0, 0.0))
