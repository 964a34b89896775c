"""Pictures in requests: data URLs -> files that may be decoded, and what the model sees of them -> PNG."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatialllm_jax.serving.errors import RequestError, wrong

# Everything else that Pillow reads is seldom a photo and has more code in its way.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_DATA = re.compile(r"data:(image/[\w.+-]+)?(;[\w=.+-]+)*;base64,", re.ASCII)


def from_url(url: object, param: str, most_pixels: int) -> bytes:
    """The file in a data URL.

    Raises:
        RequestError: it is none, its base64 is broken, it is no picture of the known formats, or too large.
    """
    if not isinstance(url, str):
        raise wrong(param, "must be a data URL, a text that begins with data:image/jpeg;base64,")
    if url[:8].lower().startswith(("http://", "https://")):
        raise RequestError(400, f"{param}: this server fetches no pictures from other addresses; send the picture "
                           "itself as a data URL (data:image/jpeg;base64,...)", "remote_images_not_allowed", param)
    if not (head := _DATA.match(url[:200])):
        raise wrong(param, "must be a data URL with base64, such as data:image/jpeg;base64,...")
    try:
        data = base64.b64decode(url[head.end():], validate=True)
    except (binascii.Error, ValueError):
        raise wrong(param, "the base64 of the picture is broken; encode the file's bytes anew") from None
    if not data:
        raise wrong(param, "the picture is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)     # bounded below
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise _too_large(param, "hundreds of millions of", most_pixels) from None
    except Exception:       # parsers of headers raise nearly anything
        raise wrong(param, f"not a picture that can be read; send one of {', '.join(_FORMATS)}") from None
    if width * height > most_pixels:
        raise _too_large(param, f"{width} x {height}", most_pixels)
    return data


def _too_large(param: str, size: str, most: int) -> RequestError:
    return RequestError(400, f"{param}: the picture has {size} pixels, more than {most:,}; scale it down",
                        "image_too_large", param)


def png(pixels: UInt8[np.ndarray, "n S S 3"]) -> bytes:
    """What the model sees of a picture, its tiles side by side, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(pixels), axis=1)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
