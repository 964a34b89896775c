"""The square of a picture around a 2D box: what estimators that look at one object at a time are shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8


def square_crop(image: UInt8[np.ndarray, "H W 3"], bbox: Sequence[float] | Float[np.ndarray, "4"], scale: float,
                outside: int | tuple[int, ...] = 0) -> UInt8[np.ndarray, "S S 3"]:
    """The square around the middle of a box (pixels), `scale` times as long as its longer side, at the picture's scale.

    Args:
        outside: colour of what lies outside of the picture.
    """
    x1, y1, x2, y2 = (float(v) for v in bbox)
    side = max(round(scale * max(x2 - x1, y2 - y1)), 1)
    left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
    crop = np.full((side, side, 3), outside, np.uint8)
    seen = image[max(top, 0):max(top + side, 0), max(left, 0):max(left + side, 0)]
    row, column = max(-top, 0), max(-left, 0)
    crop[row:row + seen.shape[0], column:column + seen.shape[1]] = seen
    return crop
