"""Files of a folder -> pixels, whatever people keep in folders of pictures.

What can be shown is shown: grey, CMYK, palettes, 16 bits, transparency, EXIF turns, first frames of animations and
huge pictures become plain RGB. What cannot is told by a reason, never by an exception.
"""

from __future__ import annotations

import dataclasses
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from spatialllm_jax.sources.pseudo_labels.interfaces import Picture

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2",
            ".avif")
# Smaller pictures show nothing that could be measured.
_SMALLEST = 32
_QUALITY = 95
_PLAIN_FORMATS = ("JPEG", "PNG")


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """What became of a file.

    Attributes:
        picture: None when it cannot be shown.
        reason: why not, in words to count by; "" when it can.
        detail: more about it, for the log.
        changes: what was done to show it; then the file itself is not what later readers should see.
    """

    picture: Picture | None
    reason: str = ""
    detail: str = ""
    changes: tuple[str, ...] = ()

    def encoded(self) -> bytes:
        """The picture as JPEG."""
        assert self.picture is not None
        out = io.BytesIO()
        Image.fromarray(self.picture).save(out, "JPEG", quality=_QUALITY, subsampling=0)
        return out.getvalue()


def picture_names(folder: Path) -> tuple[list[str], int]:
    """(paths of all pictures below a folder, relative to it and sorted; number of other files)."""
    names, others = [], 0
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _leads_back(Path(root), name))
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                names.append((Path(root) / file).relative_to(folder).as_posix())
            else:
                others += 1
    return sorted(names), others


def _leads_back(root: Path, name: str) -> bool:
    """Whether a folder is a link to one that holds it, which would be walked in circles."""
    return (root / name).is_symlink() and root.resolve().is_relative_to((root / name).resolve())


def read_picture(path: Path, max_side: int) -> Read:
    """Reads a file; its longer side is at most `max_side` afterwards."""
    try:
        if path.stat().st_size == 0:
            return Read(None, "image: empty file")
        with warnings.catch_warnings():
            # Large pictures are wanted: JPEGs are decoded at a smaller scale, and the limit of twice as much holds.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _plain(image, max_side)
    except Image.DecompressionBombError as error:
        return Read(None, "image: too large to decode", str(error))
    except MemoryError:
        return Read(None, "image: too large to decode", "out of memory")
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, KeyError, IndexError, TypeError) as error:
        # Pillow's parsers raise all of these on files that are cut short or made up.
        return Read(None, "image: cannot be decoded", type(error).__name__ + ": " + str(error).replace(str(path), ""))


def _plain(image: Image.Image, max_side: int) -> Read:
    changes: list[str] = []
    if image.format not in _PLAIN_FORMATS:
        changes.append(f"{image.format} stored as JPEG")
    if getattr(image, "n_frames", 1) > 1:
        changes.append("first frame of an animation")
        image.seek(0)
    if image.getexif().get(0x0112, 1) not in (0, 1):
        changes.append("turned as its EXIF data says")
    if max(image.size) > max_side:
        changes.append("made smaller")
        image.draft("RGB", (max_side, max_side))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        changes.append(f"{image.mode} pixels")
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all():
            return Read(None, "image: cannot be decoded", f"{image.mode} pixels that are no numbers")
        top = 65535.0 if values.max() > 255 else 1.0 if image.mode == "F" and values.max() <= 1 else 255.0
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        changes.append("transparency over white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image.convert("RGBA"))
    elif image.mode not in ("RGB", "L"):
        changes.append(f"{image.mode} pixels")
    image = image.convert("RGB")
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)),
                             Image.Resampling.LANCZOS)
    if min(image.size) < _SMALLEST:
        return Read(None, "image: too small", f"{image.width}x{image.height} pixels")
    return Read(np.array(image), changes=tuple(changes))
