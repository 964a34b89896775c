"""Omni3D's rules one by one on a small file, and the real annotated photographs."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import box_corners, projected_bbox, viewpoint
from spatialllm_jax.sources import omni3d
from spatialllm_jax.sources.fronts import FRONTS, has_front

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real3d" / "real3d.json"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason="real photographs (../shared/data/real3d) are absent")

ANNOTATION = {
    "id": 0, "image_id": 7, "category_name": "car", "valid3D": True, "behind_camera": False,
    "bbox2D_tight": [-1, -1, -1, -1], "bbox2D_trunc": [40, 40, 60, 60], "bbox2D_proj": [40, 40, 60, 60],
    "center_cam": [0, 0, 10], "dimensions": [1.6, 1.5, 4.0], "R_cam": np.eye(3).tolist(),
    "visibility": -1, "truncation": -1, "segmentation_pts": -1, "lidar_pts": -1, "depth_error": -1,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Writes an Omni3D file with one image and the given annotations."""

    def build(annotations, **image):
        Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
        entry = {"id": 7, "dataset_id": "nuScenes", "width": 100, "height": 100, "file_path": "a.png",
                 "K": [[100, 0, 50], [0, 100, 50], [0, 0, 1]], "src_flagged": False, **image}  # fmt: skip
        path = tmp_path / "o.json"
        path.write_text(json.dumps({"info": {}, "images": [entry], "categories": [], "annotations": annotations}))
        return path

    return build


def changed(**fields):
    return {**copy.deepcopy(ANNOTATION), **fields}


def test_one_object(write):
    scene = omni3d.load(write([ANNOTATION])).scenes[0]
    car = scene.objects[0]
    assert car.box.size.tolist() == [4.0, 1.5, 1.6]  # [w, h, l] -> (l, h, w)
    assert (car.category, car.has_front, car.visibility, car.truncation) == ("car", True, 1.0, 0.0)
    assert car.bbox2d.tolist() == [40, 40, 60, 60]
    assert (scene.source, scene.metric, scene.setting, scene.hidden) == ("omni3d/nuscenes", True, "outdoor", ())


@pytest.mark.parametrize(
    ("fields", "split", "reason"),
    [
        ({"behind_camera": True}, "train", "behind the camera"),
        ({"valid3D": False}, "train", "no valid 3D box"),
        ({"dimensions": [1, 0, 1]}, "train", "size not positive"),
        ({"lidar_pts": 0}, "train", "no lidar points"),
        ({"segmentation_pts": 0}, "train", "no segmentation points"),
        ({"depth_error": 0.6}, "train", "depth error"),
        ({"bbox2D_trunc": [40, 40, 60, 44.9]}, "train", "too small in the image"),
        ({"bbox2D_trunc": [40, -80, 60, 70]}, "train", "too tall for the image"),
        ({"truncation": 0.75}, "train", "truncated"),
        ({"truncation": 0.74}, "train", None),
        ({"truncation": 0.34}, "test", "truncated"),
        ({"visibility": 0.25}, "train", "hidden"),
        ({"visibility": 0.26}, "train", None),
        ({"visibility": 0.33}, "test", "hidden"),
        ({"visibility": 0}, "train", "hidden"),
        ({"center_cam": [0, float("nan"), 9]}, "train", "box: nan"),
        ({"R_cam": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}, "train", "box: rotation"),
        ({"R_cam": [[1, 0], [0, 1]]}, "train", "malformed"),
        ({"dimensions": None}, "train", "malformed"),
        ({"category_name": "misc"}, "train", "class without a name"),
        ({"bbox2D_trunc": [120, 40, 140, 60]}, "train", "2D box outside the image"),
    ],
)
def test_ignore_rules(write, fields, split, reason):
    """Each bad annotation is counted and stays known as a hidden thing; its neighbour is kept."""
    loaded = omni3d.load(write([ANNOTATION, changed(id=1, **fields)]), split=split)
    scene = loaded.scenes[0]
    if reason is None:
        assert len(scene.objects) == 2 and loaded.ignored == {}
    else:
        assert len(scene.objects) == 1 and loaded.ignored == {f"object: {reason}": 1}
        assert scene.hidden == ((fields.get("category_name") or "car"),)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"src_flagged": True}, "image: flagged"),
        ({"K": [[0, 0, 50], [0, 100, 50], [0, 0, 1]]}, "camera: absurd focal"),
        ({"K": [[100, 0, 5000], [0, 100, 50], [0, 0, 1]]}, "camera: absurd principal"),
        ({"K": [[100, 0, 50], [0, float("inf"), 50], [0, 0, 1]]}, "camera: not a finite"),
        ({"width": "wide"}, "image: malformed"),
    ],
)
def test_bad_images_are_counted(write, image, reason):
    with pytest.raises(UserError, match=reason):
        omni3d.load(write([ANNOTATION], **image))


def test_bad_files(write, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        omni3d.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="is a folder"):
        omni3d.load(tmp_path)
    path = write([ANNOTATION])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="is not JSON"):
        omni3d.load(path)
    path.write_text('{"images": []}')
    with pytest.raises(UserError, match="'annotations'"):
        omni3d.load(path)
    with pytest.raises(UserError, match=r"missing, the first is b\.png"):
        omni3d.load(write([ANNOTATION], file_path="b.png"))
    with pytest.raises(UserError, match="leaves the folder"):
        omni3d.load(write([ANNOTATION], file_path="../../../etc/passwd"))
    with pytest.raises(UserError, match="no image with a usable object"):
        omni3d.load(write([]))
    with pytest.raises(UserError, match="split"):
        omni3d.load(write([ANNOTATION]), split="val")


def test_unknown_sources_have_no_fronts(write):
    scene = omni3d.load(write([ANNOTATION], dataset_id="ARKitScenes")).scenes[0]
    assert not scene.objects[0].has_front and scene.setting == "indoor"
    assert not any(source in FRONTS for source in ("arkitscenes", "hypersim", "objectron"))
    assert has_front("sunrgbd", "bed") and not has_front("sunrgbd", "night stand")
    assert not has_front("nuscenes", "barrier") and not has_front("kitti", "tram")


@needs_real
def test_real_photographs():
    loaded = omni3d.load(REAL)
    assert len(loaded.scenes) == 11
    objects = sum(len(s.objects) for s in loaded.scenes)
    assert objects + sum(n for k, n in loaded.ignored.items() if k.startswith("object")) == 98


@needs_real
def test_corners_of_real_boxes():
    """Our corners are those that the file gives, one by one."""
    data = json.loads(REAL.read_text())
    given = {tuple(np.round(a["center_cam"], 6)): np.array(a["bbox3D_cam"]) for a in data["annotations"]}
    for scene in omni3d.load(REAL).scenes:
        for o in scene.objects:
            np.testing.assert_allclose(box_corners(o.box), given[tuple(np.round(o.box.center, 6))], atol=1e-4)


@needs_real
def test_real_boxes_reproject():
    """Whole vehicles of KITTI: the projected 3D box is within 3 px of the 2D box drawn by hand."""
    checked = 0
    for scene in omni3d.load(REAL).scenes:
        for o in scene.objects:
            if scene.source == "omni3d/kitti" and o.category in ("car", "truck") and o.truncation == 0:
                found = projected_bbox(o.box, scene.camera)
                assert np.abs(found - o.bbox2d).max() <= 3.0
                checked += 1
    assert checked >= 5


@needs_real
def test_fronts_agree_with_what_one_sees():
    """Judged by eye on the photographs: who shows the camera its front, its back."""
    def azimuths(stem, category):
        scene = next(s for s in omni3d.load(REAL).scenes if s.image.id.endswith(stem))
        return [viewpoint(o.box)[0] for o in scene.objects if o.category == category]

    def near(angle, target):
        return abs((angle - target + 180) % 360 - 180) < 30

    assert near(azimuths("kitti_000001", "truck")[0], 180)  # drives ahead of us
    assert near(azimuths("kitti_000001", "car")[0], 0)  # comes towards us
    assert near(azimuths("sunrgbd_000017", "bed")[0], 0)  # its foot towards us
    parked = azimuths("kitti_000008", "car")
    assert [near(a, t) for a, t in zip(parked, (0, 180, 0, 180), strict=True)] == [True] * 4
    assert all(near(a, 180) for a in azimuths("nuscenes_cam_front", "car"))  # the queue ahead of us
