"""An image out of a file's content: upright, in 8-bit RGB, and never larger than Pillow's limit allows."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_SIDE_RATIO = 200  # a processor that fits the shorter side would make a huge image of a long, thin one
_MOST_OF_A_REASON = 200  # characters


class UnreadableImage(ValueError):
    """Why a file gives no image that can be used, without the file's place on this machine."""


class ChangedImage(ValueError):
    """An image is not the one any more whose hash was taken, so that the run's manifest would tell of another one."""


def decode_image(content: bytes, mode: str | None = None) -> Image.Image:
    """Decode an image.

    Args:
        content: of the file.
        mode: Pillow's mode to convert to before RGB, as a `datasets.Image` column may ask for. Default: none.

    Returns:
        The image in RGB, upright according to its EXIF orientation. 16-bit grey is scaled to 8 bits, transparency is
        dropped, CMYK and palettes are converted as Pillow does; of several frames it is the first.

    Raises:
        UnreadableImage: for content that is no whole image, or one beyond the limits.
    """
    return _decode(content, mode, reduced=False)


def check_image(content: bytes, mode: str | None = None):
    """Find out whether `decode_image` would succeed.

    Every format is decoded to its end, since headers alone say nothing of a file that was cut. JPEG is decoded at an
    eighth of its size: all of its data is read, and most of the arithmetic is saved.

    Raises:
        UnreadableImage: as `decode_image`.
    """
    _decode(content, mode, reduced=True)


def _decode(content: bytes, mode: str | None, reduced: bool) -> Image.Image:
    if not content:
        raise UnreadableImage("the file is empty")
    # Decoders raise many kinds of error for a broken file: OSError, ValueError, SyntaxError, struct.error, ...
    try:
        with Image.open(io.BytesIO(content)) as image:
            check_size(*image.size)
            if reduced:
                image.draft(None, (1, 1))
            image.load()
            return to_rgb(_converted(ImageOps.exif_transpose(image), mode))
    except (UnreadableImage, MemoryError):  # too little memory is no fault of the image
        raise
    except Exception as error:
        raise UnreadableImage(reason_of(error)) from error


def check_size(width: int, height: int):
    """Refuse an image by its width and height in pixels, before it is decoded.

    Raises:
        UnreadableImage: for more pixels than Pillow's limit, or one side over 200 times the other.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise UnreadableImage(f"{width} x {height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {limit}")
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise UnreadableImage(f"of {width} x {height} pixels one side is over {MAX_SIDE_RATIO} times the other")


def _converted(image: Image.Image, mode: str | None) -> Image.Image:
    image = _eight_bit(image)
    return image if mode is None or mode.startswith("I;16") else image.convert(mode)


def _eight_bit(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow would clip the values at 255


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in 8-bit RGB.

    Raises:
        UnreadableImage: for a mode whose values have no fixed range.
    """
    if image.mode in ("I", "F"):
        raise UnreadableImage(f"PIL mode {image.mode!r} has no fixed range of values; store 8-bit or 16-bit images")
    return _eight_bit(image).convert("RGB")


def reason_of(error: Exception) -> str:
    """An error of a decoder or of the file system in one line that is the same on every machine."""
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, UnidentifiedImageError):  # its own message has an address in memory
        return "it is no image of a format that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"its pixels are over twice PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:  # the rest of its message is the file's path
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if text.isprintable() else ascii(text))[:_MOST_OF_A_REASON]
