"""Points of objects: back-projected masks, without outliers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from spatialllm_jax.scene.geometry import back_project


def usable(depth: Float[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Where a depth is a finite, positive number."""
    return np.isfinite(depth) & (depth > 0)


def mask_pixels(mask: Bool[np.ndarray, "H W"], most: int) -> Int[np.ndarray, "P 2"]:
    """(row, column) of a mask's pixels, thinned evenly to about `most`; the same ones every time."""
    found = np.flatnonzero(mask)
    return np.stack(np.divmod(found[:: max(1, round(len(found) / most))], mask.shape[1]), axis=1)


def rays_through(pixels: Int[np.ndarray, "P 2"], intrinsics: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "P 3"]:
    """Directions with z = 1, camera frame, through the centres of pixels (row, column)."""
    centres = pixels[:, ::-1] + 0.5
    return back_project(centres, np.ones(len(centres)), intrinsics)


def points_at(pixels: Int[np.ndarray, "P 2"], depth: Float[np.ndarray, "H W"], intrinsics: Float[np.ndarray, "3 3"]
              ) -> Float[np.ndarray, "P 3"]:
    """Points in the camera frame, metres, at the centres of pixels (row, column)."""
    return rays_through(pixels, intrinsics) * depth[pixels[:, 0], pixels[:, 1]].astype(float)[:, None]


def dbscan(points: Float[np.ndarray, "P 3"], radius: float, neighbours: int) -> Int[np.ndarray, " P"]:
    """Clusters of densely lying points (Ester et al. 1996): numbers from 0, largest cluster first; -1 is noise.

    A core point has `neighbours` points, itself included, within `radius`; a cluster is the core points that hang
    together and the points within reach of one of them.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    labels = np.full(len(points), -1)
    if len(points) < neighbours:
        return labels
    nearby, _ = cKDTree(points).query(points, k=[neighbours])
    core = nearby[:, 0] <= radius
    if not core.any():
        return labels
    cores = np.flatnonzero(core)
    inner = cKDTree(points[cores])

    def components(pairs: Int[np.ndarray, "E 2"]) -> tuple[int, Int[np.ndarray, " C"]]:
        graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(cores), len(cores)))
        count, found = connected_components(graph, directed=False)
        return int(count), found

    # Neighbours first: where they hold all core points together, the many other pairs add nothing.
    near, index = inner.query(points[cores], k=min(neighbours, len(cores)),
                              distance_upper_bound=np.nextafter(radius, np.inf))
    near, index = near.reshape(len(cores), -1), index.reshape(len(cores), -1)
    rows, columns = np.nonzero(np.isfinite(near))
    count, found = components(np.stack([rows, index[rows, columns]], axis=1))
    if count > 1:
        _, found = components(inner.query_pairs(radius, output_type="ndarray"))
    labels[cores] = found
    rest = np.flatnonzero(~core)
    distance, nearest = inner.query(points[rest], distance_upper_bound=np.nextafter(radius, np.inf))
    reached = np.isfinite(distance)
    labels[rest[reached]] = found[nearest[reached]]
    sizes = np.bincount(labels[labels >= 0])
    rank = np.empty(len(sizes), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return np.where(labels >= 0, rank[np.maximum(labels, 0)], -1)


def main_cluster(points: Float[np.ndarray, "P 3"], radius: float, neighbours: int) -> Bool[np.ndarray, " P"]:
    """Which points belong to the largest cluster; the rest bled in from the background or the foreground.

    Far objects are sampled more sparsely than `radius` allows for: it grows to three times the median distance of a
    point to its neighbour, so that density is judged against the object's own.
    """
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return np.zeros(len(points), bool)
    gaps, _ = cKDTree(points).query(points, k=2)
    return dbscan(points, max(radius, 3 * float(np.median(gaps[:, 1]))), neighbours) == 0
