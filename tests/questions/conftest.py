"""Hand-made random scenes, without a renderer."""

import io

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.scene.geometry import projected_bbox, rotation_y, truncation_of
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage

CATEGORIES = ("car", "dog", "bed", "chair", "school bus", "bus", "person", "sofa")
COLOURS = ("red", "brown", "white", "blue", "green", "black")


@pytest.fixture(scope="session")
def random_scene():
    """seed -> a scene of 3 to 5 objects whose camera looks a little down."""

    def build(seed, gravity_known=True, repeat=False):
        rng = np.random.default_rng(seed)
        pitch = rng.uniform(0, 0.5)
        gravity = np.array([0, np.cos(pitch), np.sin(pitch)])
        camera = Camera(
            224, 200, np.array([[200.0, 0, 112], [0, 200, 100], [0, 0, 1]]), gravity if gravity_known else None
        )
        names = rng.permutation(CATEGORIES)
        objects = []
        while len(objects) < rng.integers(3, 6):
            heading = rng.normal(size=3)
            rotation = rotation_y(heading, -gravity)
            z = rng.uniform(3, 10)
            center = np.array([rng.uniform(-0.4, 0.4) * z, rng.uniform(-0.3, 0.3) * z, z])
            box = Box3D(center, rng.uniform(0.4, 2, 3), rotation)
            bbox = projected_bbox(box, camera)
            if bbox is None:
                continue
            category = str(names[len(objects) % (2 if repeat else len(names))])
            colour = COLOURS[len(objects)]
            objects.append(
                Object3D(category, f"{colour} {category}", box, bbox, category != "bed", 1.0,
                         truncation_of(box, camera), {"colour": colour})
            )  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (200, 224, 3), dtype=np.uint8)).save(buffer, "PNG")
        image = SceneImage(f"scene-{seed}", encoded=buffer.getvalue())
        return Scene(image, camera, tuple(objects), True, "handmade", "indoor")

    return build
