"""A small data set in ImageNet3D's format whose pictures tell the azimuth by their colour."""

import io

import numpy as np
from PIL import Image

from spatialllm_jax.scene.geometry import rotation_from_viewpoint
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources import imagenet3d_writer

SIZE = 48


def colour_of(azimuth):
    """Red grows towards the front, green towards the left."""
    a = np.radians(azimuth)
    return np.array([128 + 120 * np.cos(a), 128 + 120 * np.sin(a), 90])


def scene(name, category, azimuth, elevation=10.0, theta=0.0):
    """A coloured square in the middle of a grey picture."""
    pixels = np.full((SIZE, SIZE, 3), 128, np.uint8)
    pixels[8:40, 8:40] = colour_of(azimuth)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    center = np.array([0.0, 0, 5])
    box = Box3D(center, np.ones(3), rotation_from_viewpoint(azimuth, elevation, theta, center))
    thing = Object3D(category, category, box, np.array([8.0, 8, 40, 40]), True)
    camera = Camera(SIZE, SIZE, np.array([[60.0, 0, SIZE / 2], [0, 60.0, SIZE / 2], [0, 0, 1]]))
    return Scene(SceneImage(name, encoded=buffer.getvalue()), camera, (thing,), True, "hand")


def write(root, train=48, val=16):
    """Writes the folder; returns its path as text."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        samples = []
        for index in range(count):
            item = scene(f"{split}-{index}", ("car", "chair", "table")[index % 3], rng.uniform(0, 360))
            samples.append((imagenet3d_writer.write_scene(root, item), item.image.id))
        imagenet3d_writer.write_lists(root, split, samples)
    return str(root)
