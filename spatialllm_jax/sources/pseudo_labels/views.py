"""What masks and depth say about one another: who hides whom, what the edge cuts off, where a thing may be."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from spatialllm_jax.sources.pseudo_labels.boxes import Rays
from spatialllm_jax.sources.pseudo_labels.points import mask_pixels, points_at, usable

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


def without_overlap(masks: Bool[np.ndarray, "N H W"]) -> Bool[np.ndarray, "N H W"]:
    """Each pixel to one mask, the smallest that claims it: the cushion, not the sofa it lies on."""
    result = np.zeros_like(masks)
    free = np.ones(masks.shape[1:], bool)
    for k in np.argsort(masks.sum(axis=(1, 2)), kind="stable"):
        result[k] = masks[k] & free
        free &= ~masks[k]
    return result


def inner(mask: Bool[np.ndarray, "H W"], pixels: int) -> Bool[np.ndarray, "H W"]:
    """The mask without a border that may belong to the background, unless that leaves less than a third of it."""
    from scipy import ndimage

    if pixels <= 0:
        return mask
    smaller = ndimage.binary_erosion(mask, iterations=pixels, border_value=1)
    return smaller if 3 * smaller.sum() >= mask.sum() else mask


def mask_box(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "4"]:
    """x1, y1, x2, y2 around a mask's pixels; the mask must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def look_at(index: int, masks: Bool[np.ndarray, "N H W"], depth: Float[np.ndarray, "H W"],
            intrinsics: Float[np.ndarray, "3 3"]) -> Seen:
    """What is known about the whereabouts of object `index`; its mask must hold a usable depth."""
    from scipy import ndimage

    mask = masks[index]
    good = usable(depth)
    own = np.where(mask & good, depth, np.inf)
    # Pixels in which an edge may lie: those of the mask and their neighbours, from their nearest own depth on.
    nearest = ndimage.minimum_filter(own, size=3, mode="constant", cval=np.inf)
    grown = np.isfinite(nearest)
    outline = grown & ~mask
    hiding = np.zeros_like(mask)
    common = np.zeros_like(mask)
    for other, shape in enumerate(masks):
        contact = outline & shape & good
        if other == index or not contact.any():
            continue
        if np.median(depth[contact] / nearest[contact]) < 1 - _NEARER:
            hiding |= shape & good
            common |= contact
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    rim = outline | (mask & ~ndimage.binary_erosion(mask, border_value=1))
    parts = [(rim & grown, nearest, False), (mask & good, depth, False), (hiding & ~grown, depth, True)]
    directions, starts, behind = [], [], []
    for where, start, hides in parts:
        pixels = mask_pixels(where, _RAYS // len(parts))
        directions.append(points_at(pixels, np.ones_like(depth), intrinsics))
        starts.append(start[pixels[:, 0], pixels[:, 1]])
        behind.append(np.full(len(pixels), hides))
    return Seen(Rays(np.concatenate(directions), np.concatenate(starts).astype(float), np.concatenate(behind)),
                1.0 - float(common.sum()) / max(int(outline.sum()), 1), int(border.sum()) >= 2)
