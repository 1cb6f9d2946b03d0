"""What a visitor may send, in one place, and the checks that hold on the server."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from smope_hf.base.printable import is_blank, printable
from smope_hf.data.image_reading import MAX_SIDE_RATIO, UnreadableImage, check_size, to_rgb
from smope_hf.settings.class_names import as_seen, one_form

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SIDE = 1024  # pixels; larger images are reduced to it, which is more than any backbone here looks at


class Refused(ValueError):
    """What a visitor asked for cannot be had; the message is for them, and says what to do."""


@dataclass(frozen=True)
class Limits:
    """The limits of the page.

    Args:
        image_bytes: of one file.
        image_pixels: of one image, before it is decoded.
        least_images: of a new class.
        most_images: of a new class, and of one upload.
        held_out: share of a new class's images that it is tested on, not taught with; at least one image.
        name_length: characters of a class's name.
        lessons: new classes that one visit can teach.
        lesson_seconds: of training for one class; then it is given up.
        visit_seconds: of training in one visit.
        idle_seconds: after which a visit ends by itself, and everything of it is deleted.
        visits: at a time.
        address_visits: of them, from one address.
        upload_bytes: of all visitors' files at a time.
        address_bytes: of the uploads from one address at a time.
        message_bytes: of a request that is no upload.
    """

    image_bytes: int = 10 * 2**20
    image_pixels: int = 25_000_000
    least_images: int = 4
    most_images: int = 40
    held_out: float = 0.25
    name_length: int = 40
    lessons: int = 5
    lesson_seconds: float = 120
    visit_seconds: float = 300
    idle_seconds: float = 1800
    visits: int = 500
    address_visits: int = 100
    upload_bytes: int = 2**30
    address_bytes: int = 2**29
    message_bytes: int = 2**18

    @property
    def request_bytes(self) -> int:
        """Of one upload: the most images, and a kilobyte of headers for each."""
        return self.most_images * (self.image_bytes + 2**10)

    def check_number(self, count: int):
        """Refuse too few or too many images of a class."""
        if count < self.least_images:
            raise Refused(
                f"{_images(count)} of the new class: at least {self.least_images} are needed, since a quarter of them "
                "is held out to test on. Add some more."
            )
        if count > self.most_images:
            more = count - self.most_images
            raise Refused(f"{count} images: at most {self.most_images} can be taught at once here. Remove {more}.")

    def check_name(self, name: str | None, known: Sequence[str]) -> str:
        """The name of a new class without needless spaces; refused where it is empty, too long or known already."""
        if printable(name or "") != (name or ""):
            raise Refused("The name has characters that cannot be shown. Type it again, in one line.")
        name = one_form(" ".join((name or "").split()))
        if is_blank(name):
            raise Refused("The new class has no name. Type one, such as 'eight'.")
        if len(name) > self.name_length:
            raise Refused(f"The name has {len(name)} characters: at most {self.name_length} are allowed. Shorten it.")
        same = [label for label in known if as_seen(label).casefold() == as_seen(name).casefold()]
        if same:
            raise Refused(
                f"The model knows a class {same[0]!r} already. Give the new one another name, or choose a revision "
                "from before it was learned."
            )
        return name

    def check_teaching(self, lessons: int, seconds: float):
        """Refuse another lesson in a visit that had its share."""
        if lessons >= self.lessons:
            raise Refused(
                f"This visit has taught {lessons} classes, which is the most. Reload the page to begin anew."
            )
        if seconds >= self.visit_seconds:
            raise Refused(
                f"This visit has used its {self.visit_seconds:.0f} seconds of training. Download what it has taught; "
                "to teach more, run the page on your own machine."
            )

    def read_image(self, path: str | os.PathLike) -> Image.Image:
        """Read an uploaded image, upright, in RGB and at most 1024 pixels wide and high, without its metadata.

        Raises:
            Refused: for a file that is too large, has too many pixels, or is no image that could be taught.
        """
        name = Path(path).name
        if not Path(path).is_file():
            raise Refused(f"{name} is no longer here: visits end after a while. Upload it again.")
        if Path(path).stat().st_size > self.image_bytes:
            raise Refused(f"{name} has more than {self.image_bytes // 2**20} MB. Send a smaller copy.")
        try:
            with Image.open(path, formats=FORMATS) as image:
                self._check_pixels(name, *image.size)  # the header tells, before a bomb is decoded
                image = to_rgb(ImageOps.exif_transpose(image))
        except Refused:
            raise
        except UnreadableImage as error:  # as training would say it: what can be looked at can be taught
            raise Refused(f"{name} cannot be used: {error}. Send another one.") from error
        except Image.DecompressionBombError as error:
            raise self._too_many_pixels(name) from error
        except Exception as error:  # decoders raise many kinds: OSError, ValueError, SyntaxError, struct.error, ...
            raise Refused(f"{name} cannot be read as an image. Send a {', '.join(FORMATS[:-1])} or GIF.") from error
        return _reduced(image)

    def _check_pixels(self, name: str, width: int, height: int):
        if width * height > self.image_pixels:
            raise self._too_many_pixels(name, f" ({width} x {height})")
        check_size(width, height)

    def _too_many_pixels(self, name: str, size: str = "") -> Refused:
        return Refused(f"{name} has more than {self.image_pixels // 10**6} million pixels{size}. Send a smaller copy.")

    def told(self) -> str:
        """The limits that a visitor should know, in a sentence."""
        return (
            f"{self.least_images} to {self.most_images} images a class, each up to {self.image_bytes // 2**20} MB and "
            f"{self.image_pixels // 10**6} million pixels; {self.lessons} classes and {self.visit_seconds / 60:.0f} "
            f"minutes of training a visit"
        )


def _reduced(image: Image.Image) -> Image.Image:
    """An image of at most 1024 pixels a side, no thinner than training takes images."""
    image.thumbnail((SIDE, SIDE))
    least = math.ceil(max(image.size) / MAX_SIDE_RATIO)
    return image if min(image.size) >= least else image.resize(tuple(max(side, least) for side in image.size))


def _images(count: int) -> str:
    return "One image" if count == 1 else f"{count or 'No'} images"
