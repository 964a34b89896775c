"""Pictures: decoding, square crops and padding as in LLaVA, and numbered regions drawn on them."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Region

# The colour that fills padded borders: CLIP's mean, as LLaVA-v1.5 pads.
MEAN_COLOUR = (122, 116, 104)
RESIZES = ("pad", "square", "stretch")
# Distinct, saturated, and readable under white or black digits.
REGION_COLOURS = (
    (230, 25, 75), (0, 110, 230), (250, 200, 20), (20, 160, 60), (240, 100, 0),
    (145, 30, 180), (0, 190, 200), (240, 50, 230), (120, 70, 20), (90, 90, 90),
)  # fmt: skip


class ImageError(UserError):
    """A picture that is missing, cut short or no picture; the input pipeline skips a few of them."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """How pixels moved: new = scale * old + offset, per axis, in pixels.

    Attributes:
        scale, offset: (x, y).
        size: side of the new square image.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: int

    def boxes(self, boxes: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, "... 4"]:
        """Boxes x1, y1, x2, y2 in pixels of the original, in pixels of the new image, cut to it."""
        scale, offset = np.array(self.scale * 2), np.array(self.offset * 2)
        return np.clip(np.asarray(boxes, float) * scale + offset, 0, self.size)

    def regions(self, regions: Sequence[Region], width: int, height: int) -> tuple[Region, ...]:
        """Regions of the original (`width` x `height`) as regions of the new image."""
        sides = np.array([width, height, width, height], float)
        result = []
        for region in regions:
            x1, y1, x2, y2 = (self.boxes(np.array(region.bbox) * sides) / self.size).tolist()
            result.append(dataclasses.replace(region, bbox=(x1, y1, x2, y2)))
        return tuple(result)


def decode(encoded: bytes, name: str = "") -> UInt8[np.ndarray, "H W 3"]:
    """Decodes JPEG (quickly) or any other format that PIL knows, to RGB.

    Raises:
        ImageError: when the bytes are no picture or are cut short; the sentence names the image.
    """
    try:
        if simplejpeg.is_jpeg(encoded):
            try:
                return simplejpeg.decode_jpeg(encoded, colorspace="RGB")
            except ValueError:
                pass  # CMYK and other rarities: PIL decides
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"image {name or 'without a name'} cannot be decoded ({_why(error)}); replace or remove it") from error


def image_size(encoded: bytes, name: str = "") -> tuple[int, int]:
    """(width, height) from the header alone. Raises ImageError when the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(
            f"image {name or 'without a name'} is not a picture ({_why(error)}); replace or remove it") from error


def _why(error: Exception) -> str:
    # Pillow's own text for this one holds the address of a buffer.
    return "no known format" if isinstance(error, UnidentifiedImageError) else str(error)


def resize(
    image: UInt8[np.ndarray, "H W 3"], size: int, mode: str = "pad"
) -> tuple[UInt8[np.ndarray, "S S 3"], Transform]:
    """A square image of side `size` (bicubic), and where its pixels came from.

    Args:
        mode: "pad" expands to a square with the mean colour (LLaVA stage 2), "square" scales the
            shortest edge and crops the centre (LLaVA stage 1), "stretch" ignores the aspect.
    """
    height, width = image.shape[:2]
    moved = transform(width, height, size, mode)
    picture = Image.fromarray(image)
    if mode == "pad":
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        # Pillow scales across, then down. Rows of border stay what they are across, so that a wide picture needs the
        # first pass for its own rows only: the same pixels as from a square canvas, in half the time.
        if width > height:
            picture = _scaled(picture, size, height)
        if width != height:
            canvas = Image.new("RGB", (picture.width if width > height else side, side), MEAN_COLOUR)
            canvas.paste(picture, (left if width < height else 0, top))
            picture = canvas
        picture = _scaled(picture, size, size)
    elif mode == "square":
        picture = _scaled(picture, round(width * moved.scale[0]), round(height * moved.scale[1]))
        left, top = (-round(offset) for offset in moved.offset)
        picture = picture.crop((left, top, left + size, top + size))
    else:
        picture = _scaled(picture, size, size)
    return np.asarray(picture), moved


def transform(width: int, height: int, size: int, mode: str = "pad") -> Transform:
    """How `resize` moves the pixels of a `width` x `height` image."""
    if mode not in RESIZES:
        raise UserError(f"resize mode {mode!r} is unknown; choose from {', '.join(RESIZES)}")
    if mode == "stretch":
        return Transform((size / width, size / height), (0.0, 0.0), size)
    if mode == "pad":
        side = max(width, height)
        factor = size / side
        return Transform((factor, factor), ((side - width) // 2 * factor, (side - height) // 2 * factor), size)
    factor = size / min(width, height)
    new_width, new_height = max(round(width * factor), size), max(round(height * factor), size)
    return Transform((new_width / width, new_height / height),
                     (-float((new_width - size) // 2), -float((new_height - size) // 2)), size)


def _scaled(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.BICUBIC)


def load(
    encoded: bytes, size: int, *, resize: str = "pad", marks: Sequence[Region] = (), name: str = ""
) -> UInt8[np.ndarray, "S S 3"]:
    """Decodes, squares, and draws marks in the new image's pixels (so that digits stay legible)."""
    image = decode(encoded, name)
    height, width = image.shape[:2]
    squared, transform = _resize(image, size, resize)
    if not marks:
        return squared
    return draw_regions(squared, transform.regions(marks, width, height))


_resize = resize


def draw_regions(image: UInt8[np.ndarray, "H W 3"], regions: Sequence[Region]) -> UInt8[np.ndarray, "H W 3"]:
    """A copy with a coloured box and a numbered tag per region, legible from 168 px on."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(min(width, height) / 140))
    font = _font(max(12, round(min(width, height) / 17)))
    sides = np.array([width, height, width, height])
    others = [tuple((np.array(region.bbox) * sides).tolist()) for region in regions]
    taken: list[tuple[float, ...]] = []
    for position, region in enumerate(regions):
        number = int(region.label) if region.label.isdigit() else position
        colour = REGION_COLOURS[number % len(REGION_COLOURS)]
        x1, y1, x2, y2 = others[position]
        x1, y1 = max(0, round(x1)), max(0, round(y1))
        x2, y2 = min(width - 1, round(x2)), min(height - 1, round(y2))
        draw.rectangle((x1, y1, max(x2, x1), max(y2, y1)), outline=colour, width=line)
        left, top, right, bottom = draw.textbbox((0, 0), region.label, font=font)
        tag_width, tag_height = right - left + 2 * line + 2, bottom - top + 2 * line + 2
        rivals = others[:position] + others[position + 1 :]
        tag = _tag_place((x1, y1, x2, y2), tag_width, tag_height, width, height, taken, rivals)
        taken.append((*tag, tag[0] + tag_width, tag[1] + tag_height))
        draw.rectangle((*tag, tag[0] + tag_width, tag[1] + tag_height), fill=colour)
        ink = (0, 0, 0) if sum(c * w for c, w in zip(colour, (0.3, 0.59, 0.11), strict=True)) > 150 else (255,) * 3
        draw.text((tag[0] + line + 1 - left, tag[1] + line + 1 - top), region.label, fill=ink, font=font)
    return np.asarray(picture)


def _tag_place(
    box: tuple[float, float, float, float],
    width: float,
    height: float,
    image_width: int,
    image_height: int,
    tags: list[tuple[float, ...]],
    boxes: list[tuple[float, ...]],
) -> tuple[float, float]:
    """Where a tag goes: the corner of its box, inside the image, that covers least of other tags and boxes."""
    x1, y1, x2, y2 = box
    corners = [(x1, y1 - height), (x1, y1), (x2 - width, y1), (x2 - width, y2 - height), (x1, y2 - height), (x1, y2)]
    places = [
        (min(max(x, 0), image_width - 1 - width), min(max(y, 0), image_height - 1 - height)) for x, y in corners
    ]

    def covered(place: tuple[float, float], others: list[tuple[float, ...]]) -> float:
        x, y = place
        return sum(
            max(0.0, min(x + width, o[2]) - max(x, o[0])) * max(0.0, min(y + height, o[3]) - max(y, o[1]))
            for o in others
        )

    return min(places, key=lambda place: 4 * covered(place, tags) + covered(place, boxes))


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def blank(size: int) -> UInt8[np.ndarray, "S S 3"]:
    """A picture without content, CLIP's mean colour all over: what blind baselines see."""
    return np.full((size, size, 3), MEAN_COLOUR, np.uint8)
