"""Scenes written in ImageNet3D's format come back as they were."""

import io

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import rotation_from_viewpoint
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources import imagenet3d, imagenet3d_writer


def scene_of(name, *things, size=64):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (10, 90, 200)).save(buffer, "JPEG")
    camera = Camera(size, size, np.array([[60.0, 0, 32], [0, 60.0, 32], [0, 0, 1]]))
    return Scene(SceneImage(name, encoded=buffer.getvalue()), camera, things, True, "hand")


def thing(category, angles, center, visibility=1.0):
    center = np.array(center, float)
    box = Box3D(center, np.ones(3), rotation_from_viewpoint(*angles, center))
    return Object3D(category, category, box, np.array([8.0, 10, 50, 60]), True, visibility)


def test_there_and_back(tmp_path):
    scenes = [scene_of("a", thing("washing machine", (200.0, 15, -10), (1.0, -0.5, 4))),
              scene_of("b", thing("car", (355.0, -20, 30), (-2, 0.3, 6), 0.6), thing("bus", (90.0, 5, 0), (0, 0, 9)))]
    for split, scene in zip(("train", "val"), scenes, strict=True):
        category = imagenet3d_writer.write_scene(tmp_path, scene, [{"mesh": "by hand"}] * len(scene.objects))
        imagenet3d_writer.write_lists(tmp_path, split, [(category, scene.image.id)])
        (found,) = imagenet3d.load(tmp_path, split).scenes
        assert found.image.id == f"imagenet3d-{category}--{scene.image.id}"
        assert found.image.read() == scene.image.encoded
        np.testing.assert_allclose(found.camera.intrinsics, scene.camera.intrinsics)
        for one, other in zip(found.objects, scene.objects, strict=True):
            assert one.category == other.category
            np.testing.assert_allclose(one.box.rotation, other.box.rotation, atol=1e-9)
            np.testing.assert_allclose(one.box.center, other.box.center, atol=1e-9)
            np.testing.assert_allclose(one.bbox2d, other.bbox2d)
    assert [item.visibility for item in found.objects] == [0.6, 1.0]        # "partially", "good"
    assert (tmp_path / "images" / "washing_machine" / "a.JPEG").is_file()
    assert not list(tmp_path.rglob("*.partial"))


def test_angles_are_written_in_radians():
    entry = imagenet3d_writer.annotation(thing("car", (350.0, -10, -20), (0, 0, 5)), scene_of("a").camera)
    np.testing.assert_allclose([entry["azimuth"], entry["elevation"], entry["theta"]], np.radians([350, 350, 340]))
    assert (entry["distance"], entry["viewport"], entry["px"], entry["py"]) == (5.0, 60.0, 32.0, 32.0)


def test_a_scene_without_objects_has_no_category(tmp_path):
    with pytest.raises(UserError, match="scene a has no object"):
        imagenet3d_writer.write_scene(tmp_path, scene_of("a"))
    assert not list(tmp_path.iterdir())
