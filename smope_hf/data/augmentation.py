"""Image geometry, training augmentation and normalisation, on batches of tensors and without torchvision.

The order is `to_uint8` (the image processor's own resize and crop, done once), `BatchAugmentation` (training only),
`Normalization`. Without the middle step the result is the image processor's own `pixel_values`.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CROP_ATTEMPTS = 10
_FIXED_SIZE = 'Images must all get one size: set do_center_crop=True or size={"height": ..., "width": ...}'


def to_uint8(image_processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """Apply the image processor's geometry (resize, centre crop) and nothing else.

    Args:
        image_processor: A transformers image processor.
        images: RGB images of any size.

    Returns:
        Tensor (B, 3, h, w) of uint8, 0 to 255; `Normalization` turns it into the processor's own `pixel_values`.

    Raises:
        ValueError: If the processor does not give one 3-channel image of 8-bit values and of equal size per image.
    """
    name = type(image_processor).__name__
    try:
        pixels = image_processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values
    except ValueError as error:
        raise ValueError(f"{name} could not make one batch of {len(images)} images. {_FIXED_SIZE}") from error
    if pixels.ndim != 4 or pixels.shape[:2] != (len(images), 3):
        raise ValueError(
            f"{name} gives pixel values of shape {tuple(pixels.shape)} for {len(images)} images; "
            f"({len(images)}, 3, height, width) is needed. {_FIXED_SIZE}"
        )
    if pixels.dtype == torch.uint8:
        return pixels
    rounded = pixels.round()
    if not torch.equal(rounded, pixels) or rounded.min() < 0 or rounded.max() > 255:
        raise ValueError(
            f"{name} gives values that are not whole numbers from 0 to 255 with do_rescale=False and "
            "do_normalize=False; use an image processor whose resizing works on 8-bit images"
        )
    return rounded.to(torch.uint8)


def processed_size(image_processor: Any) -> tuple[int, int]:
    """Size of the images that an image processor makes, found by giving it a wide and a tall one.

    Args:
        image_processor: A transformers image processor (`size`, `crop_size`, `shortest_edge`: all are respected).

    Returns:
        (height, width) in pixels.

    Raises:
        ValueError: If the size depends on the image.
    """
    probes = [Image.new("RGB", size) for size in ((96, 64), (64, 96))]
    wide, tall = (tuple(to_uint8(image_processor, [probe]).shape[-2:]) for probe in probes)
    if wide != tall:
        raise ValueError(
            f"{type(image_processor).__name__} gives images of (height, width) {wide} for a wide and {tall} for a "
            f"tall image. {_FIXED_SIZE}"
        )
    return wide


def as_trained(image_processor: Any, mode: str) -> Any:
    """The image processor that gives what the model is trained on; it is what a checkpoint has to keep.

    Args:
        image_processor: A transformers image processor.
        mode: "processor" for itself, "reference" for a copy that scales to [0, 1] and does no more.

    Raises:
        ValueError: If mode is neither.
    """
    if mode == "processor":
        return image_processor
    if mode != "reference":
        raise ValueError(f'normalization={mode!r}: allowed are "processor" and "reference"')
    image_processor = copy.deepcopy(image_processor)
    image_processor.do_rescale, image_processor.rescale_factor, image_processor.do_normalize = True, 1 / 255, False
    return image_processor


class Normalization:
    """Map 8-bit pixel values to what the backbone takes.

    Args:
        rescale_factor: Multiplies the pixel values first. Default 1/255.
        mean: Per channel, subtracted after rescaling. Default 0.
        std: Per channel, divides last; above 0. Default 1.
    """

    def __init__(
        self,
        rescale_factor: float = 1 / 255,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ):
        if any(value <= 0 for value in std):
            raise ValueError(f"std={tuple(std)}: every value must be above 0")
        self.rescale_factor = float(rescale_factor)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_processor(cls, image_processor: Any, mode: str = "processor") -> "Normalization":
        """The normalisation of an image processor, or the published one.

        Args:
            image_processor: A transformers image processor.
            mode: "processor" (default) takes its rescale_factor, image_mean and image_std as far as do_rescale and
                do_normalize are on; "reference" scales to [0, 1], as the published implementation does.

        Returns:
            A callable from (B, 3, h, w), 0 to 255, to float32 of the same shape.

        Raises:
            ValueError: If mode is neither, or the processor's own pixel values are not what this gives.
        """
        if mode == "reference":
            return cls()
        if mode != "processor":
            raise ValueError(f'normalization={mode!r}: allowed are "processor" and "reference"')
        fields = {"rescale_factor": image_processor.rescale_factor if image_processor.do_rescale else 1.0}
        if image_processor.do_normalize:
            fields["mean"] = _per_channel(image_processor.image_mean)
            fields["std"] = _per_channel(image_processor.image_std)
        normalization = cls(**fields)
        _check_against(image_processor, normalization)
        return normalization

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            images: (B, 3, h, w), uint8 or floating, 0 to 255, on any device.

        Returns:
            Tensor (B, 3, h, w) of float32 on the same device.
        """
        if images.device not in self._constants:
            constants = torch.tensor([self.mean, self.std], dtype=torch.float32, device=images.device)
            self._constants[images.device] = tuple(constants[:, :, None, None])  # twice (3, 1, 1)
        mean, std = self._constants[images.device]
        return (images.to(torch.float32) * self.rescale_factor).sub_(mean).div_(std)

    def __repr__(self) -> str:
        return f"Normalization(rescale_factor={self.rescale_factor}, mean={self.mean}, std={self.std})"


def _per_channel(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence | np.ndarray) else (value,) * 3


def _check_against(image_processor: Any, normalization: Normalization) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = image_processor([image], return_tensors="pt").pixel_values.to(torch.float32)
    found = normalization(to_uint8(image_processor, [image]))
    tolerance = 1e-5 * max(1.0, expected.abs().max().item())
    if found.shape != expected.shape or (found - expected).abs().max() > tolerance:
        raise ValueError(
            f"{type(image_processor).__name__} does more than resize, crop, rescale and normalise, so its pixel "
            "values cannot be made from 8-bit images; use an image processor without other steps (padding, tiling)"
        )


@dataclass(frozen=True)
class BatchAugmentation:
    """Random resized crop and horizontal flip of whole batches.

    The crop is distributed as in the usual random resized crop: its share of the image's area is uniform in `scale`,
    its width over its height (in pixels) log-uniform in `ratio`, its place uniform. A draw that does not fit into the
    image is made again, ten times at most; after that the largest centred crop with a permitted ratio is taken.
    Positions are not rounded to whole pixels. Crops are never larger than the image, so they are only enlarged, and
    bilinear interpolation needs no antialiasing.

    Args:
        size: (height, width) in pixels of the images, before and after. See `processed_size`.
        scale: Smallest and largest share of the area, above 0, at most 1. Default (0.05, 1.0).
        ratio: Smallest and largest width / height of the crop, above 0. Default (3/4, 4/3).
        flip_probability: Probability of a horizontal mirror image, 0 to 1. Default 0.5.

    Raises:
        ValueError: If a value is outside its range.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.05, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def __post_init__(self):
        for field in ("size", "scale", "ratio"):
            value = getattr(self, field)
            if not isinstance(value, Sequence) or len(value) != 2:
                raise ValueError(f"{field}={value!r}: two numbers are needed")
        if not all(isinstance(edge, int) and edge > 0 for edge in self.size):
            raise ValueError(f"size={self.size!r}: (height, width) must be whole numbers above 0")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale!r}: (smallest, largest) with 0 < smallest <= largest <= 1 is needed")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio={self.ratio!r}: (smallest, largest) with 0 < smallest <= largest is needed")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability={self.flip_probability!r}: a number from 0 to 1 is needed")

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw the crops and flips of a number of samples.

        Row i depends on the generator's state and on i alone, not on `num_samples`. Draw once per epoch for the whole
        task, with a generator seeded from the epoch, and index the rows by sample: a sample's augmentation is then
        the same in any batch, on any process, and after a restart.

        Args:
            num_samples: Number of rows n.
            generator: Source of randomness; a CPU generator gives the same values on every machine.

        Returns:
            Tensor (n, 5) of float32 on the generator's device: top, left, height, width of the crop as fractions of
            the image, and 1 for a mirrored image, else 0.
        """
        uniform = torch.rand(num_samples, 3 + 2 * CROP_ATTEMPTS, generator=generator, device=generator.device)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform[:, 3 : 3 + CROP_ATTEMPTS]  # (n, attempts)
        low, high = (math.log(edge) for edge in self.ratio)
        ratio = torch.exp(low + (high - low) * uniform[:, 3 + CROP_ATTEMPTS :])  # (n, attempts), in pixels
        ratio = ratio * (self.size[0] / self.size[1])  # of fractions
        height, width = torch.sqrt(area / ratio), torch.sqrt(area * ratio)
        fits = (height <= 1) & (width <= 1)
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # (n, 1)
        any_fits = fits.any(dim=1)
        centre_height, centre_width = self._largest_crop()
        height = torch.where(any_fits, height.gather(1, first).squeeze(1), centre_height)  # (n,)
        width = torch.where(any_fits, width.gather(1, first).squeeze(1), centre_width)
        top = (1 - height) * torch.where(any_fits, uniform[:, 1], 0.5)
        left = (1 - width) * torch.where(any_fits, uniform[:, 2], 0.5)
        flip = (uniform[:, 0] < self.flip_probability).to(uniform.dtype)
        return torch.stack([top, left, height, width, flip], dim=1)  # (n, 5)

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Crop, enlarge and mirror a batch.

        Args:
            images: (B, 3, h, w) with (h, w) = `size`, uint8 or floating, 0 to 255, on any device.
            parameters: (B, 5), rows of `draw`.

        Returns:
            Tensor (B, 3, h, w) of float32, 0 to 255, on the images' device: not yet normalised.

        Raises:
            ValueError: If a shape is not as above.
        """
        if images.ndim != 4 or tuple(images.shape[-2:]) != tuple(self.size):
            needed = ("B", 3, *self.size)
            raise ValueError(f"images of shape {tuple(images.shape)}: {needed} is needed")
        if parameters.shape != (len(images), 5):
            raise ValueError(f"parameters of shape {tuple(parameters.shape)}: ({len(images)}, 5) is needed")
        parameters = parameters.to(images.device, torch.float32, non_blocking=True)
        top, left, height, width, flip = parameters.unbind(dim=1)
        mirrored = flip > 0.5
        left, width = torch.where(mirrored, left + width, left), torch.where(mirrored, -width, width)
        with torch.autocast(images.device.type, enabled=False):
            rows = _interpolation_matrix(top, height, self.size[0])  # (B, h, h)
            columns = _interpolation_matrix(left, width, self.size[1])  # (B, w, w)
            # Bilinear interpolation is separable: rows @ image @ columns^T, for each channel.
            wide = images.to(torch.float32).flatten(1, 2).bmm(columns.mT)  # (B, 3 * h, w)
            return rows[:, None] @ wide.unflatten(1, images.shape[1:3])  # (B, 3, h, w)

    def _largest_crop(self) -> tuple[float, float]:
        """Height and width, as fractions, of the largest crop whose ratio is permitted."""
        image_ratio = self.size[1] / self.size[0]
        ratio = min(max(image_ratio, self.ratio[0]), self.ratio[1])
        return min(1.0, image_ratio / ratio), min(1.0, ratio / image_ratio)


def _interpolation_matrix(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Weights (B, size, size) of each source pixel in each output pixel along one axis; a negative length mirrors."""
    pixels = torch.arange(size, device=start.device, dtype=start.dtype)
    centres = size * start[:, None] + length[:, None] * (pixels + 0.5) - 0.5  # (B, size), in source pixels
    centres = centres.clamp(0, size - 1)  # beyond the outermost pixel's centre its value continues
    return (1 - (centres[:, :, None] - pixels).abs()).clamp_(min=0)  # (B, size, size)
