"""The parts that objects are built of, as small triangle meshes.

Builder frame: +x front, +y left, +z up, metres; an object's base lies on z = 0. Colours are sRGB in
[0, 1]. Parts are closed surfaces whose normals point outwards; `fit` winds their triangles to match.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

Point = Sequence[float] | np.ndarray
Colour = Sequence[float] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with one colour and one gloss per vertex.

    Attributes:
        vertices: metres, builder frame.
        normals: unit vectors, builder frame.
        colours: sRGB in [0, 1].
        gloss: above 0 the strength of highlights, below 0 the strength of the surface's own light.
        faces: indices into the vertices.
    """

    vertices: Float[np.ndarray, "V 3"]
    normals: Float[np.ndarray, "V 3"]
    colours: Float[np.ndarray, "V 3"]
    gloss: Float[np.ndarray, " V"]
    faces: Int[np.ndarray, "F 3"]

    @property
    def bounds(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        """Smallest and largest corner."""
        return self.vertices.min(0), self.vertices.max(0)


def _filled(shape: tuple[int, ...], value: Colour | float) -> np.ndarray:
    result = np.empty(shape, np.float32)
    result[:] = value
    return result


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """np.cross of [..., 3] arrays, without its overhead on small ones."""
    return a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]]


def mesh(vertices: Float[np.ndarray, "V 3"], normals: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"],
         colour: Colour, gloss: float) -> Mesh:
    """A mesh of one colour."""
    count = len(vertices)
    return Mesh(np.asarray(vertices, np.float32), np.asarray(normals, np.float32),
                _filled((count, 3), colour), _filled((count,), gloss), faces)


def join(parts: Iterable[Mesh]) -> Mesh:
    """One mesh of many."""
    parts = list(parts)
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    return Mesh(np.concatenate([part.vertices for part in parts]),
                np.concatenate([part.normals for part in parts]),
                np.concatenate([part.colours for part in parts]),
                np.concatenate([part.gloss for part in parts]),
                np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)]))


def fit(source: Mesh, size: Point) -> Mesh:
    """The mesh stretched so that its extents are exactly `size` (x, y, z), centred over the origin, base on 0.

    Normals are carried by the inverse transpose of the stretch; triangles are wound counter-clockwise as
    seen from where their normals point.
    """
    low, high = source.bounds
    scale = np.asarray(size, np.float32) / np.maximum(high - low, 1e-6)
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], np.float32)
    normals = source.normals / scale
    normals /= np.maximum(np.sqrt(np.einsum("vi,vi->v", normals, normals))[:, None], 1e-9)
    vertices = (source.vertices - origin) * scale
    a, b, c = (vertices[source.faces[:, k]] for k in range(3))
    inward = np.einsum("fi,fi->f", _cross(b - a, c - a), normals[source.faces].sum(1)) < 0
    faces = np.where(inward[:, None], source.faces[:, ::-1], source.faces)
    return dataclasses.replace(source, vertices=vertices, normals=normals, faces=faces)


def rotate(source: Mesh, rotation: Float[np.ndarray, "3 3"], offset: Point = (0, 0, 0)) -> Mesh:
    """The mesh rotated about the origin, then moved."""
    turn = rotation.astype(np.float32).T
    return dataclasses.replace(source, vertices=source.vertices @ turn + np.asarray(offset, np.float32),
                               normals=source.normals @ turn)


def rotation_z(angle: float) -> Float[np.ndarray, "3 3"]:
    """Rotation about +z (up), radians, from +x towards +y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def rotation_y(angle: float) -> Float[np.ndarray, "3 3"]:
    """Rotation about +y (left), radians: a positive angle lowers the front."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def flat(triangles: Float[np.ndarray, "F 3 3"], colour: Colour, gloss: float = 0.0) -> Mesh:
    """Separate triangles, each with its own normal, away from the middle of them all."""
    triangles = np.asarray(triangles, np.float32)
    normals = _cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    outward = triangles.mean(1) - triangles.mean((0, 1))
    normals *= np.where(np.einsum("fi,fi->f", normals, outward) < 0, -1, 1)[:, None].astype(np.float32)
    normals /= np.maximum(np.sqrt(np.einsum("vi,vi->v", normals, normals))[:, None], 1e-9)
    return mesh(triangles.reshape(-1, 3), np.repeat(normals, 3, axis=0),
                np.arange(3 * len(triangles)).reshape(-1, 3), colour, gloss)


_HEXA_FACES = np.array([[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]])


def hexahedron(corners: Float[np.ndarray, "8 3"], colour: Colour, gloss: float = 0.0) -> Mesh:
    """Six flat sides over eight corners; corner i has bits (z, y, x) = (4, 2, 1)."""
    quads = np.asarray(corners, np.float32)[_HEXA_FACES]
    return flat(np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]), colour, gloss)


def taper(low: Point, high: Point, colour: Colour, gloss: float = 0.0,
          front: float = 0.0, back: float = 0.0, sides: float = 0.0) -> Mesh:
    """A box from `low` to `high` whose top is drawn in: at the front, at the back and at both sides (metres)."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    return hexahedron(np.array([
        (x0, y0, z0), (x1, y0, z0), (x0, y1, z0), (x1, y1, z0),
        (x0 + back, y0 + sides, z1), (x1 - front, y0 + sides, z1),
        (x0 + back, y1 - sides, z1), (x1 - front, y1 - sides, z1)]), colour, gloss)


@functools.cache
def _unit_box() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices in {-0.5, 0.5}, normals and faces of the unit cube."""
    grid = np.stack(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5], indexing="ij"), -1)
    unit = hexahedron(grid.transpose(2, 1, 0, 3).reshape(8, 3), (0, 0, 0))
    return unit.vertices, unit.normals, unit.faces


def box(low: Point, high: Point, colour: Colour, gloss: float = 0.0) -> Mesh:
    """An axis-aligned box between two corners."""
    a, b = np.asarray(low, np.float32), np.asarray(high, np.float32)
    vertices, normals, faces = _unit_box()
    return mesh(vertices * (b - a) + (a + b) / 2, normals, faces, colour, gloss)


@functools.cache
def _grid_faces(rows: int, columns: int, closed_rows: bool, closed_columns: bool) -> np.ndarray:
    """Triangles over a grid of vertices, wrapping around where closed."""
    row = np.arange(rows if closed_rows else rows - 1)[:, None]
    column = np.arange(columns if closed_columns else columns - 1)[None]
    next_row, next_column = (row + 1) % rows, (column + 1) % columns
    a, b = row * columns + column, row * columns + next_column
    c, d = next_row * columns + next_column, next_row * columns + column
    return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])


@functools.cache
def _octants(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sphere whose octants have separate vertices: unit normals, signs of the octants, faces."""
    latitude = np.concatenate([np.linspace(-90, 0, steps + 1), np.linspace(0, 90, steps + 1)])
    latitude_sign = np.repeat([-1, 1], steps + 1)
    longitude = np.concatenate([np.linspace(q * 90, q * 90 + 90, steps + 1) for q in range(4)])
    quadrant = np.repeat([[1, 1], [-1, 1], [-1, -1], [1, -1]], steps + 1, axis=0)
    lat, lon = np.radians(latitude)[:, None], np.radians(longitude)[None]
    normals = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0 * lon], -1)
    signs = np.concatenate([np.broadcast_to(quadrant[None], (*normals.shape[:2], 2)),
                            np.broadcast_to(latitude_sign[:, None, None], (*normals.shape[:2], 1))], -1)
    return (normals.reshape(-1, 3).astype(np.float32), signs.reshape(-1, 3).astype(np.float32),
            _grid_faces(len(latitude), len(longitude), False, True))


def rounded(low: Point, high: Point, radius: float, colour: Colour, gloss: float = 0.0, steps: int = 2) -> Mesh:
    """A box with rounded edges: a sphere pulled apart at its octants."""
    a, b = np.asarray(low, np.float32), np.asarray(high, np.float32)
    half = (b - a) / 2
    radii = np.minimum(np.float32(radius), half)
    directions, signs, faces = _octants(steps)
    return mesh((a + b) / 2 + directions * radii + signs * (half - radii), directions, faces, colour, gloss)


@functools.cache
def _sphere(rings: int, segments: int) -> tuple[np.ndarray, np.ndarray]:
    latitude = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)[:, None]
    longitude = np.linspace(0, 2 * np.pi, segments, endpoint=False)[None]
    points = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude),
                       np.sin(latitude) + 0 * longitude], -1)
    return points.reshape(-1, 3).astype(np.float32), _grid_faces(rings + 1, segments, False, True)


def ellipsoid(center: Point, radii: Point, colour: Colour, gloss: float = 0.0, tilt: float = 0.0,
              rings: int = 6, segments: int = 10) -> Mesh:
    """An ellipsoid; `tilt` (radians) lowers its front end."""
    if max(radii) < 0.07:     # eyes, noses, knobs: a few pixels
        rings, segments = 4, 6
    unit, faces = _sphere(rings, segments)
    scale = np.asarray(radii, np.float32)
    normals = unit / scale
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    part = mesh(unit * scale, normals, faces, colour, gloss)
    if tilt:
        return rotate(part, rotation_y(tilt), center)
    return dataclasses.replace(part, vertices=part.vertices + np.asarray(center, np.float32))


@functools.cache
def _circle(segments: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


def tube(start: Point, end: Point, radius: float, colour: Colour, gloss: float = 0.0,
         end_radius: float | None = None, segments: int = 8) -> Mesh:
    """A closed cylinder or cone frustum between two points."""
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    axis = (b - a) / np.sqrt(((b - a) ** 2).sum())
    helper = np.array([0.0, 0.0, 1.0]) if abs(axis[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    u = _cross(helper, axis)
    u /= np.sqrt((u ** 2).sum())
    around = _circle(segments) @ np.stack([u, _cross(axis, u)])
    last = radius if end_radius is None else end_radius
    low, high = a + radius * around, b + last * around
    # Side vertices carry radial normals, caps carry the axis.
    vertices = np.concatenate([low, high, a[None], low, b[None], high])
    caps = np.broadcast_to(axis, (segments + 1, 3))
    return mesh(vertices, np.concatenate([around, around, -caps, caps]), _tube_faces(segments), colour, gloss)


@functools.cache
def _tube_faces(segments: int) -> np.ndarray:
    k = np.arange(segments)
    after = (k + 1) % segments
    bottom, top = 2 * segments, 3 * segments + 1
    return np.concatenate([
        np.stack([k, after, segments + after], -1), np.stack([k, segments + after, segments + k], -1),
        np.stack([np.full_like(k, bottom), bottom + 1 + k, bottom + 1 + after], -1),
        np.stack([np.full_like(k, top), top + 1 + k, top + 1 + after], -1)])


def ring(center: Point, radius: float, thickness: float, colour: Colour, gloss: float = 0.0,
         segments: int = 20) -> Mesh:
    """A torus standing upright in the x-z plane (a tyre)."""
    around, across = _circle(segments)[:, None], _circle(6)[None]
    reach = radius - thickness + thickness * across[..., :1]
    points = np.concatenate([around[..., :1] * reach,
                             np.broadcast_to(thickness * across[..., 1:], (segments, 6, 1)),
                             around[..., 1:] * reach], -1)
    normals = np.concatenate([around[..., :1] * across[..., :1],
                              np.broadcast_to(across[..., 1:], (segments, 6, 1)),
                              around[..., 1:] * across[..., :1]], -1)
    return mesh(points.reshape(-1, 3) + np.asarray(center, np.float32), normals.reshape(-1, 3),
                _grid_faces(segments, 6, True, True), colour, gloss)


def prism(profile: Float[np.ndarray, "N 2"], half_width: Float[np.ndarray, " N"] | float, colour: Colour,
          gloss: float = 0.0) -> Mesh:
    """A side profile (x, z) drawn out along y to `half_width` on both sides, at each point its own.

    The profile must be star-shaped about its mean: the two sides are fans around it.
    """
    profile = np.asarray(profile, np.float32)
    count = len(profile)
    half = np.broadcast_to(np.asarray(half_width, np.float32), (count,))
    left = np.stack([profile[:, 0], half, profile[:, 1]], -1)
    right = left * np.array([1, -1, 1], np.float32)
    next_left, next_right = np.roll(left, -1, 0), np.roll(right, -1, 0)
    centre = np.broadcast_to(left.mean(0), left.shape)
    mirrored = centre * np.array([1, -1, 1], np.float32)
    return flat(np.concatenate([
        np.stack([left, next_left, next_right], 1), np.stack([left, next_right, right], 1),
        np.stack([centre, left, next_left], 1), np.stack([mirrored, right, next_right], 1)]), colour, gloss)
