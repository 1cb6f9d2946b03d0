"""Rendered Latin letters: glyphs from the fonts that matplotlib ships, and their augmentation in batches.

No digit is ever rendered. A glyph is drawn once; every batch then warps, blurs and coarsens the glyphs it draws, so
that they look like the small grey images of handwriting that scanners and old data sets give.
"""

import string
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont
from torch import Tensor

ALPHABET = string.ascii_letters
CANVAS = 64  # side of a pre-rendered glyph, pixels
GLYPH_BOX = 48  # the longer side of a glyph's bounding box, the rest is margin for the warps
STROKES = (0.0, 0.02, 0.04)  # extra stroke width on each side, as a share of the font size
FONT_SIZE = 96

# With every glyph scaled to the same box, these letters look alike in both cases.
CASE_MERGED = "cosvwxz"


@dataclass
class Glyphs:
    """Every drawn glyph, and which of them show each class.

    images: (G, 1, CANVAS, CANVAS) uint8, light on dark; labels: (G,) class of each glyph;
    classes: the letter that names each class; fonts: names of the fonts used; left_out: name and reason of the others.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    fonts: list[str]
    left_out: list[str]

    def __post_init__(self):
        self.order = self.labels.argsort(stable=True)
        self.counts = torch.bincount(self.labels, minlength=len(self.classes))
        self.starts = self.counts.cumsum(0) - self.counts

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws classes uniformly, then a glyph of each: images (B, 1, CANVAS, CANVAS) in [0, 1] and labels (B,)."""
        labels = torch.randint(len(self.classes), (batch_size,), generator=generator)
        within = (torch.rand(batch_size, generator=generator) * self.counts[labels]).long()
        chosen = self.order[self.starts[labels] + within]
        return self.images[chosen].float() / 255, labels


def class_of(letter: str) -> str:
    """The letter that names the class of `letter`."""
    return letter.lower() if letter.lower() in CASE_MERGED else letter


def letter_characters(path: Path) -> dict[str, str]:
    """Characters of a font that show a Latin letter, each with that letter.

    A code point alone proves nothing: the TeX symbol fonts keep brackets at "A", and the last-resort font one box for
    all scripts. The glyph's own name does. Mathematical alphabets (script, fraktur, ...) count as further styles.
    """
    names = TTFont(path).getBestCmap() or {}
    plain = {letter: letter for letter in ALPHABET if names.get(ord(letter)) == letter}
    if not plain:
        return {}
    styled = {}
    for code in names:
        if unicodedata.decomposition(chr(code)).startswith("<font>"):
            letter = unicodedata.normalize("NFKC", chr(code))
            if letter in plain:
                styled[chr(code)] = letter
    return plain | styled


def font_paths() -> list[Path]:
    """Every TrueType font that matplotlib ships."""
    return sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))


def draw(character: str, font: ImageFont.FreeTypeFont, stroke: int) -> Tensor:
    """One glyph, cropped, scaled to GLYPH_BOX and centred: (CANVAS, CANVAS) uint8."""
    mask = font.getmask(character, stroke_width=stroke)
    glyph = Image.frombytes("L", mask.size, bytes(mask))
    glyph = glyph.crop(glyph.getbbox())
    scale = GLYPH_BOX / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * scale)) for side in glyph.size], Image.Resampling.BOX)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(glyph, ((CANVAS - glyph.width) // 2, (CANVAS - glyph.height) // 2))
    return torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(CANVAS, CANVAS)


def render_glyphs(strokes: tuple[float, ...] = STROKES) -> Glyphs:
    """Draws every letter of every font that matplotlib ships, in each stroke width."""
    classes = sorted({class_of(letter) for letter in ALPHABET})
    images, labels, fonts, left_out = [], [], [], []
    for path in font_paths():
        characters = letter_characters(path)
        if not characters:
            left_out.append(path.stem)
            continue
        fonts.append(path.stem)
        font = ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        for character, letter in characters.items():
            for stroke in strokes:
                images.append(draw(character, font, round(stroke * FONT_SIZE)))
                labels.append(classes.index(class_of(letter)))
    return Glyphs(torch.stack(images)[:, None], torch.tensor(labels), classes, fonts, left_out)


def uniform(low: float, high: float, *shape: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def warp(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random rotation, shear, scale, shift and elastic displacement: (B, 1, CANVAS, CANVAS) -> (B, 1, size, size)."""
    batch = len(images)
    angle = uniform(-0.3, 0.3, batch, generator=generator)
    shear = uniform(-0.4, 0.4, batch, generator=generator)
    # The sampling grid reads a larger area where scale > 1, so the glyph comes out smaller. 0.75 fills the image.
    height, width = uniform(0.72, 1.0, 2, batch, generator=generator)
    width = width * uniform(0.85, 1.5, batch, generator=generator)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(batch, 2, 2)
    stretch = torch.stack([width, shear * width, torch.zeros(batch), height], 1).view(batch, 2, 2)
    shift = uniform(-0.12, 0.12, batch, 2, 1, generator=generator)
    grid = F.affine_grid(torch.cat([rotation @ stretch, shift], 2), (batch, 1, size, size), align_corners=False)
    waves = 0  # (B, 2, size, size), a slow and a fast wave: slant of strokes, and tremor
    for knots, strength in ((4, 0.16), (7, 0.06)):
        field = torch.randn(batch, 2, knots, knots, generator=generator)
        strengths = uniform(0, strength, batch, 1, 1, 1, generator=generator)
        waves = waves + strengths * F.interpolate(field, (size, size), mode="bicubic", align_corners=True)
    return F.grid_sample(images, grid + waves.permute(0, 2, 3, 1), mode="bilinear", align_corners=False)


def blur(images: Tensor, strongest: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur with a standard deviation of its own, up to `strongest` pixels, per image: (B, 1, S, S)."""
    batch = len(images)
    offsets = torch.arange(-3, 4).float()
    sigma = uniform(0.2, strongest, batch, 1, generator=generator)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), 1)  # (B, 7)
    flat = images.transpose(0, 1)  # (1, B, S, S): one group per image
    flat = F.conv2d(flat, kernel.view(batch, 1, 7, 1), padding=(3, 0), groups=batch)
    flat = F.conv2d(flat, kernel.view(batch, 1, 1, 7), padding=(0, 3), groups=batch)
    return flat.transpose(0, 1)


def coarsen(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Averages to 8x8 ... 16x16 pixels in 17 grey levels, and back up to (B, 1, size, size)."""
    parts = []
    for index, part in enumerate(images.chunk(4)):
        # Half of the images go to 8x8; the order of a batch is random, so its halves are too.
        side = 8 if index < 2 else int(torch.randint(8, 17, (), generator=generator))
        part = F.adaptive_avg_pool2d(part, side)
        gain = uniform(0.8, 1.6, len(part), 1, 1, 1, generator=generator)
        noise = uniform(0, 0.06, len(part), 1, 1, 1, generator=generator)
        part = (part * gain + noise * torch.randn(part.shape, generator=generator)).clamp(0, 1)
        part = (part * 16).round() / 16
        parts.append(F.interpolate(part, (size, size), mode="bilinear", align_corners=False))
    return torch.cat(parts)


def letter_batch(glyphs: Glyphs, batch_size: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One augmented batch.

    Returns:
        Pixel values (B, 3, size, size), grey repeated, normalised to [-1, 1]; labels (B,).
    """
    images, labels = glyphs.sample(batch_size, generator)
    images = blur(warp(images, 32, generator), 1.2, generator)
    images = coarsen(images, size, generator)
    return (images * 2 - 1).expand(-1, 3, -1, -1), labels
