"""Image files of every kind that a data set may hold: odd ones that work, broken ones, and what is said of them."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SHADES = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
NATURAL = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def natural(kind: str, **options) -> bytes:
    return encoded(Image.fromarray(NATURAL), kind, **options)


def turned(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(SHADES, kind, exif=exif)


def png_of(width: int, height: int, data: bytes | None = None, depth: int = 8, color: int = 0) -> bytes:
    """A PNG whose header may say anything; default without a row of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"" if data is None else data))
    return b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def frames() -> bytes:
    first, second = (Image.new("RGB", (4, 2), color) for color in ("red", "blue"))
    return encoded(first, "GIF", save_all=True, append_images=[second])


def transparent_palette() -> bytes:
    palette = Image.fromarray(SHADES).quantize(8)
    return encoded(palette, transparency=0)


def clear() -> Image.Image:
    """A red image that nobody sees: its alpha is 0."""
    return Image.new("RGBA", (4, 2), (200, 0, 0, 0))


DEEP = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
RED, GREY = (200, 0, 0), Image.fromarray(SHADES[..., 0])


def pixels(expected) -> Callable[[np.ndarray], bool]:
    return lambda found: np.array_equal(found, np.broadcast_to(np.asarray(expected, dtype=np.uint8), found.shape))


def near(expected, most: int = 12) -> Callable[[np.ndarray], bool]:
    return lambda found: np.abs(found.astype(int) - np.asarray(expected, dtype=int)).max() <= most


def shape(height: int, width: int) -> Callable[[np.ndarray], bool]:
    return lambda found: found.shape == (height, width, 3)


# what is stored -> what training, evaluation and prediction see
WORKS: dict[str, tuple[bytes, Callable[[np.ndarray], bool]]] = {
    "RGB PNG": (encoded(SHADES), pixels(SHADES)),
    "one pixel": (encoded(SHADES[:1, :1]), pixels(SHADES[:1, :1])),
    "1 x 200, the thinnest": (encoded(np.zeros((200, 1, 3), np.uint8)), shape(200, 1)),
    "grey": (encoded(GREY), pixels(SHADES[..., :1])),
    "grey with alpha": (encoded(GREY.convert("LA")), pixels(SHADES[..., :1])),
    "black and white": (encoded(Image.new("1", (4, 2), 1)), pixels(255)),
    "RGBA, whose alpha is dropped": (encoded(clear()), pixels(RED)),
    "palette": (encoded(Image.fromarray(SHADES).quantize(8)), near(SHADES, 40)),
    "palette with transparency": (transparent_palette(), near(SHADES, 40)),
    "16-bit grey, scaled": (encoded(DEEP), pixels([[[v, v, v] for v in (0, 0, 1, 128, 255)]])),
    "16-bit TIFF, scaled": (encoded(DEEP, "TIFF"), pixels([[[v, v, v] for v in (0, 0, 1, 128, 255)]])),
    "16-bit RGB PNG, scaled": (png_of(1, 1, b"\0\xff\xff\x80\x00\x01\x02", 16, 2), pixels((255, 128, 1))),
    "CMYK JPEG": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 55)), "JPEG", quality=100), near(RED)),
    "CMYK TIFF": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 55)), "TIFF"), near(RED)),
    "JPEG": (natural("JPEG", quality=100, subsampling=0), near(NATURAL)),
    "progressive JPEG": (natural("JPEG", progressive=True, quality=100, subsampling=0), near(NATURAL)),
    "WebP": (natural("WEBP", lossless=True), pixels(NATURAL)),
    "BMP": (natural("BMP"), pixels(NATURAL)),
    "GIF, first frame": (frames(), pixels((255, 0, 0))),
    "EXIF turned by 90 degrees": (turned(6), pixels(np.rot90(SHADES, -1))),
    "EXIF turned by 180 degrees": (turned(3), pixels(np.rot90(SHADES, 2))),
    "EXIF mirrored": (turned(2), pixels(SHADES[:, ::-1])),
    "EXIF with a turn that there is not": (turned(77), pixels(SHADES)),
    "a JPEG with a wrong byte, which nothing gives away": (flipped(natural("JPEG"), -40), shape(24, 32)),
    "bytes behind the end": (encoded(SHADES) + b"more", pixels(SHADES)),
}

UNKNOWN = "it is no image of a format that Pillow knows"
LIMIT = Image.MAX_IMAGE_PIXELS
# what is stored in the image column -> what is said of it, as a regular expression
BROKEN: dict[str, tuple[bytes | dict | None, str]] = {
    "zero bytes": (b"", "the file is empty"),
    "no image at all": (b"no image", UNKNOWN),
    "HTML in place of a download": (b"<!DOCTYPE html><html></html>", UNKNOWN),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNKNOWN),
    "an archive": (b"PK\x03\x04" + bytes(60), UNKNOWN),
    "JPEG cut in the middle": (natural("JPEG")[:700], "image file is truncated .*"),
    "JPEG cut near its end": (natural("JPEG")[:-200], "image file is truncated .*"),
    "JPEG cut behind its header": (natural("JPEG")[:623], ".*(truncated|broken).*"),
    "JPEG cut in its header": (natural("JPEG")[:10], ".+"),
    "progressive JPEG cut": (natural("JPEG", progressive=True)[:700], "image file is truncated .*"),
    "PNG cut": (natural("PNG")[:500], "image file is truncated.*"),
    "PNG cut in its header": (natural("PNG")[:20], ".+"),
    "PNG with a wrong byte": (flipped(encoded(SHADES), 50), "broken .*"),
    "PNG without its rows": (png_of(4, 4), ".*truncated.*"),
    "PNG of no width": (png_of(0, 4), ".+"),
    "GIF cut": (natural("GIF")[:200], ".+"),
    "WebP cut": (natural("WEBP")[:100], ".+"),
    "BMP cut": (natural("BMP")[:500], "image file is truncated.*"),
    "TIFF cut": (natural("TIFF")[:500], ".+"),
    "real numbers": (encoded(np.ones((2, 2), np.float32), "TIFF"), "PIL mode 'F' has no fixed range of values; .*"),
    "32-bit whole numbers": (encoded(np.ones((2, 2), np.int32), "TIFF"), "PIL mode 'I' has no fixed range.*"),
    "a bomb": (png_of(12000, 12000), f"12000 x 12000 pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {LIMIT}"),
    "a larger bomb": (png_of(60000, 60000), f"its pixels are over twice PIL.Image.MAX_IMAGE_PIXELS = {LIMIT}"),
    "1 x 201": (encoded(np.zeros((201, 1), np.uint8)), "of 1 x 201 pixels one side is over 200 times the other"),
    "nothing": (None, "the row holds no image"),
    "a file that is not there": ({"bytes": None, "path": "/nowhere/a.png"},
                                 "the image file cannot be read: there is no such file"),
    "a folder": (
        {"bytes": None, "path": "/"}, "the image file cannot be read: it is a folder, and only regular files are read"
    ),
}  # fmt: skip


def stored(content: bytes | dict | None) -> dict | None:
    """As a `datasets.Image` column stores it."""
    return {"bytes": content, "path": None} if isinstance(content, bytes) else content
