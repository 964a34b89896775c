"""Rendered scenes: from a seed and an index to a picture with exact annotations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.rendered import catalogue, meshes
from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.layout import (
    TALLEST_ON_TOP,
    Asset,
    Placed,
    outside_share,
    place,
    sample_view,
)
from spatialllm_jax.sources.rendered.renderer import View, renderer
from spatialllm_jax.sources.rendered.scenery import compose

ATTEMPTS = 200
FRONTLESS_WEIGHT = 0.6      # of categories without a front, against 1 for those with one


@dataclasses.dataclass(frozen=True, eq=False)
class RenderedScene:
    """A scene with its ground-truth maps.

    Attributes:
        depth: z-depth in metres, infinite in the sky.
        instances: 0 for scenery, i + 1 for `scene.objects[i]`.
        credits: per object the mesh it came from, its creator and licence; "" for procedural objects.
    """

    scene: Scene
    depth: Float[np.ndarray, "H W"]
    instances: UInt8[np.ndarray, "H W"]
    credits: tuple[str, ...] = ()


def _draw(config: RenderConfig, rng: np.random.Generator, setting: str, placed: Sequence[Placed],
          on_top: bool) -> Asset | None:
    """The next object of a scene; None when no category is left."""
    used = {thing.asset.category for thing in placed} if config.distinct_categories else set()
    names = [name for name in catalogue.names(setting, config.categories) if name not in used]
    folder = config.mesh_folder
    from_mesh = folder is not None and (config.assets == "sweethome3d" or (config.assets == "both"
                                                                           and rng.random() < 0.5))
    if from_mesh:
        names = [name for name in names if name in meshes.categories(str(folder), config.mesh_split)]
    if on_top:
        names = [name for name in names if catalogue.CATEGORIES[name].small]
    if not names:
        return None
    weights = np.array([1.0 if catalogue.CATEGORIES[name].has_front else FRONTLESS_WEIGHT for name in names])
    category = catalogue.CATEGORIES[names[rng.choice(len(names), p=weights / weights.sum())]]
    tallest = min(category.height[1], TALLEST_ON_TOP) if on_top else category.height[1]
    if from_mesh:
        found = meshes.choose(str(folder), config.mesh_cache, config.mesh_max_faces, category.name,
                              tallest if on_top else None, rng, config.mesh_split)
        if found is None:
            return None
        low, high = found[0].bounds
        length, width, height = (float(v) for v in high - low)
        front = category.has_front and category.name not in meshes.WITHOUT_FRONT
        return Asset(category.name, found[1], front, category.carries, category.small,
                     (length, width, height), *found[::2])
    size = (rng.uniform(*category.length), rng.uniform(*category.width),
            rng.uniform(min(category.height[0], tallest), tallest))
    colour = category.colours[rng.integers(len(category.colours))]
    return Asset(category.name, colour, category.has_front, category.carries, category.small, size,
                 catalogue.build(category, size, colour, rng))


def _object(thing: Placed, view: View, size: int, visibility: float) -> Object3D:
    """The annotation of a placed object in the camera frame."""
    length, width, height = thing.asset.size
    c, s = np.cos(thing.yaw), np.sin(thing.yaw)
    axes = np.array([[c, 0, -s], [s, 0, c], [0, -1, 0]])        # columns: front, down, left in the world
    vertices = thing.asset.mesh.vertices.astype(np.float64)
    turned = vertices @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + thing.position
    pixels, _ = view.project(turned)
    box = np.concatenate([pixels.min(0), pixels.max(0)])
    return Object3D(
        thing.asset.category, f"{thing.asset.colour} {thing.asset.category}",
        Box3D(view.to_camera(thing.position + np.array([0, 0, height / 2])), np.array([length, height, width]),
              view.rotation @ axes),
        np.clip(box, 0, size), thing.asset.has_front, visibility, max(float(outside_share(box, size)), 0.0),
        {"colour": thing.asset.colour})


def render(config: RenderConfig, seed: int, index: int) -> RenderedScene:
    """Scene `index` of the stream `seed`, with depth and instance maps.

    The same arguments give the same bytes. Raises UserError when OpenGL or moderngl is missing, or when
    the settings leave no room for a scene.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    draw = renderer(config.image_size, config.samples)
    # The setting is drawn once, so that the harder one to lay out is not the rarer; one without enough
    # categories is never drawn.
    least = config.objects[0] if config.distinct_categories else 1
    settings = [name for name in config.settings if len(catalogue.names(name, config.categories)) >= least]
    setting = settings[rng.integers(len(settings))] if settings else config.settings[0]
    for _ in range(ATTEMPTS):
        count = int(rng.integers(config.objects[0], config.objects[1] + 1))
        view = sample_view(config, rng, setting)
        placed = place(config, view, setting, count, rng, functools.partial(_draw, config, rng, setting))
        if placed is None:
            continue
        drawing = compose(rng, view, placed, setting)
        depth, instances, alone = draw.truth(view, drawing, count)
        visible = np.bincount(instances.ravel(), minlength=count + 1)[1:count + 1]
        share = visible / np.maximum(alone, 1)
        objects = tuple(_object(thing, view, config.image_size, float(v))
                        for thing, v in zip(placed, share, strict=True))
        if share.min() < config.min_visibility or max(o.truncation for o in objects) > config.max_truncation:
            continue
        image = draw.colour(view, drawing)
        encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=config.jpeg_quality,
                                         colorspace="RGB", colorsubsampling="444")
        camera = Camera(config.image_size, config.image_size, view.intrinsics,
                        view.rotation @ np.array([0.0, 0.0, -1.0]))
        scene = Scene(SceneImage(f"rendered-{seed}-{index:06d}", encoded=encoded), camera, objects, True,
                      "rendered", setting)
        return RenderedScene(scene, depth, instances, tuple(thing.asset.credit for thing in placed))
    raise UserError(f"no scene {index} could be laid out in {ATTEMPTS} attempts with objects={config.objects}, "
                    f"min_extent={config.min_extent}, max_extent={config.max_extent}, min_visibility="
                    f"{config.min_visibility} of the render settings; ask for fewer or smaller objects")


def iter_scenes(config: RenderConfig, seed: int, start: int, count: int) -> Iterator[Scene]:
    """Scenes `start` to `start + count - 1` of the stream `seed`, each independent of the others."""
    for index in range(start, start + count):
        yield render(config, seed, index).scene
