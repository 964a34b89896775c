"""Objects at random before a level camera, for hand-made scenes."""

import numpy as np

from spatialllm_jax.scene.geometry import projected_bbox, rotation_y
from spatialllm_jax.scene.types import Box3D, Object3D

UP = np.array([0.0, -1.0, 0.0])


def random_objects(camera, rng, count, name):
    """`count` upright objects that the camera sees; `name()` gives each its category."""
    objects = []
    while len(objects) < count:
        z = rng.uniform(3, 12)
        center = np.array([rng.uniform(-0.4, 0.4) * z, rng.uniform(-0.3, 0.3) * z, z])
        box = Box3D(center, rng.uniform(0.5, 2, 3), rotation_y(rng.normal(size=3), UP))
        bbox = projected_bbox(box, camera)
        if bbox is not None:
            category = name()
            objects.append(Object3D(category, category, box, bbox, True))
    return tuple(objects)
