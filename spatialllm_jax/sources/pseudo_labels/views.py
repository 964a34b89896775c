"""What masks and depth say about one another: who hides whom, what the edge cuts off, where a thing may be."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from spatialllm_jax.sources.pseudo_labels.boxes import Rays
from spatialllm_jax.sources.pseudo_labels.points import mask_pixels, rays_through, usable

_RAYS = 1200        # per object, about: through its inside, along its outline, and through what hides it
# A thing hides another where it is nearer at their common outline by this share of the depth.
_NEARER = 0.02


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """Attributes:
    rays: on which the object may lie.
    visibility: share of its outline that is its own, not that of a thing in front.
    cut: whether the image's edge cuts it off.
    """

    rays: Rays
    visibility: float
    cut: bool


def owners(masks: Bool[np.ndarray, "N H W"]) -> Int[np.ndarray, "H W"]:
    """Each pixel's mask, the smallest that claims it: the cushion, not the sofa it lies on. -1 where there is none."""
    result = np.full(masks.shape[1:], -1)
    for k in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        result[masks[k]] = k
    return result


def inner(mask: Bool[np.ndarray, "H W"], pixels: int) -> Bool[np.ndarray, "H W"]:
    """The mask without a border that may belong to the background, unless that leaves less than a third of it."""
    from scipy import ndimage

    if pixels <= 0 or not mask.any():
        return mask
    x1, y1, x2, y2 = mask_box(mask).astype(int)
    window = slice(max(y1 - 1, 0), y2 + 1), slice(max(x1 - 1, 0), x2 + 1)
    smaller = np.zeros_like(mask)
    smaller[window] = ndimage.binary_erosion(mask[window], iterations=pixels, border_value=1)
    return smaller if 3 * smaller.sum() >= mask.sum() else mask


def mask_box(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "4"]:
    """x1, y1, x2, y2 around a mask's pixels; the mask must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def look_at(index: int, owner: Int[np.ndarray, "H W"], depth: Float[np.ndarray, "H W"],
            intrinsics: Float[np.ndarray, "3 3"]) -> Seen:
    """What is known about the whereabouts of object `index`, which must own a pixel with a usable depth."""
    from scipy import ndimage

    height, width = depth.shape
    edge = owner == index
    x1, y1, x2, y2 = mask_box(edge).astype(int)
    # Filters look at the object and its surroundings, not at the whole picture.
    window = slice(max(y1 - 2, 0), min(y2 + 2, height)), slice(max(x1 - 2, 0), min(x2 + 2, width))
    mask, near, others = edge[window], depth[window], owner[window]
    good = usable(near)
    # Pixels in which an edge may lie: those of the mask and their neighbours, from their nearest own depth on.
    nearest = ndimage.minimum_filter(np.where(mask & good, near, np.inf), size=3, mode="constant", cval=np.inf)
    grown = np.isfinite(nearest)
    outline = grown & ~mask
    common = np.zeros_like(mask)
    hiding = np.zeros_like(edge)
    for other in np.unique(others[outline & good & (others >= 0)]):
        contact = outline & good & (others == other)
        if np.median(near[contact] / nearest[contact]) < 1 - _NEARER:
            hiding |= owner == other
            common |= contact
    hiding[window] &= ~grown
    rim = outline | (mask & ~ndimage.binary_erosion(mask, border_value=1))
    parts = [_rays(rim & grown, nearest, window, intrinsics), _rays(mask & good, near, window, intrinsics)]
    if hiding.any():
        everywhere = slice(0, height), slice(0, width)
        parts.append(_rays(hiding & usable(depth), depth, everywhere, intrinsics))
    directions, starts = (np.concatenate(part) for part in zip(*parts, strict=True))
    behind = np.arange(len(starts)) >= sum(len(start) for _, start in parts[:2])
    border = edge[0].sum() + edge[-1].sum() + edge[:, 0].sum() + edge[:, -1].sum()
    return Seen(Rays(directions, starts, behind), 1.0 - float(common.sum()) / max(int(outline.sum()), 1),
                int(border) >= 2)


def _rays(where: Bool[np.ndarray, "h w"], start: Float[np.ndarray, "h w"], window: tuple[slice, slice],
          intrinsics: Float[np.ndarray, "3 3"]) -> tuple[Float[np.ndarray, "M 3"], Float[np.ndarray, " M"]]:
    """(directions with z = 1, depth from which on the object may lie) of some pixels of a window."""
    pixels = mask_pixels(where, _RAYS // 3)
    starts = start[pixels[:, 0], pixels[:, 1]].astype(float)
    corner = [window[0].start, window[1].start]
    return rays_through(pixels + corner, intrinsics), starts
