"""Omni3D's rules one by one on a small file, and the real annotated photographs."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import box_corners, projected_bbox, viewpoint
from spatialllm_jax.scene.relations import scene_arrays
from spatialllm_jax.sources import omni3d
from spatialllm_jax.sources.fronts import FRONTS, NO_FRONT, common_name, has_front

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
        ({"bbox2D_trunc": [40, 40, float("nan"), 60], "bbox2D_proj": None}, "train", "malformed"),
        ({"center_cam": [0, 0, -3]}, "train", "behind the camera"),
        ({"dimensions": [1, float("inf"), 1]}, "train", "box: nan"),
        ({"truncation": 0.34}, "val", None),
        ({"visibility": "good"}, "train", "malformed"),
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
        ({"K": [[100, 0, 50], [0, 100, 50]]}, "camera: not a finite"),
        ({"K": "pinhole"}, "image: malformed"),
        ({"width": "wide"}, "image: malformed"),
        ({"width": 0}, "camera: no image size"),
        ({"id": [7]}, "image: malformed"),
    ],
)
def test_bad_images_are_counted(write, image, reason):
    with pytest.raises(UserError, match=reason):
        omni3d.load(write([ANNOTATION], **image))


def test_a_test_split_is_not_made_of_training_files(write):
    path = write([ANNOTATION])
    for stated, split, fine in (("Train", "test", False), ("val", "test", False), ("Test", "test", True),
                                ("test", "train", True), ("Train", "train", True)):
        path.write_text(json.dumps({**json.loads(path.read_text()), "info": {"name": "KITTI", "split": stated}}))
        if fine:
            assert len(omni3d.load(path, split).scenes) == 1
        else:
            with pytest.raises(UserError, match=r"a test split is asked for; name the file of the test split"):
                omni3d.load(path, split)


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
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not JSON"):
        omni3d.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not JSON"):
        omni3d.load(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="has no list 'images'; it is not an Omni3D file"):
        omni3d.load(path)
    with pytest.raises(UserError, match=r"1 of 1 images of .* are missing, the first is b\.png below .*; fetch them"):
        omni3d.load(write([ANNOTATION], file_path="b.png"))
    with pytest.raises(UserError, match=r"image path '/etc/passwd' leaves the folder"):
        omni3d.load(write([ANNOTATION], file_path="/etc/passwd"))
    with pytest.raises(UserError, match="leaves the folder"):
        omni3d.load(write([ANNOTATION], file_path="../../../etc/passwd"))
    with pytest.raises(UserError, match="no image with a usable object"):
        omni3d.load(write([]))
    with pytest.raises(UserError, match="split 'dev'"):
        omni3d.load(write([ANNOTATION]), split="dev")


def rewrite(path, **changes):
    """The file with some of its top-level keys changed."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_entries_that_are_no_objects(write):
    path = write([ANNOTATION, 5, "car", None, {"id": 3}, changed(id={}), changed(id=0), changed(id=9, image_id=8)])
    data = json.loads(path.read_text())
    loaded = omni3d.load(rewrite(path, images=[*data["images"], 3, data["images"][0]]))
    assert len(loaded.scenes) == 1 and len(loaded.scenes[0].objects) == 1
    assert loaded.ignored == {
        "annotation: not an object": 3, "annotation: malformed": 1, "annotation: id used twice": 1,
        "annotation: no usable image": 2, "image: malformed": 1, "image: listed twice": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("info", "number", "path", "name"),
    [
        ({"id": 1, "source": 3, "name": "KITTI Train", "split": "Train"}, 1, "x/a.png", "kitti"),
        ({"id": "5", "source": 5, "name": "nuScenes Val"}, 5, "x/a.png", "nuscenes"),
        ({"id": 2, "source": "SUNRGBD", "name": "Train"}, 2, "x/a.png", "sunrgbd"),
        ({"id": 2, "name": "SUN RGB-D Test"}, 2, "x/a.png", "sunrgbd"),
        ({"id": 2}, 2, "ARKitScenes/Training/a.png", "arkitscenes"),
        ({}, "4", "hypersim/ai_001_001/a.png", "hypersim"),
        ({"name": "mine"}, 4, "KITTI_object/training/image_2/a.png", "kitti"),
        (None, None, "objectron/train/a.png", "objectron"),
        ({"name": "KITTI"}, "nuScenes", "x/a.png", "nuscenes"),
        ([{"id": 1, "name": "KITTI Train"}, {"id": 2, "name": "Hypersim Train"}], 2, "x/a.png", "hypersim"),
        ([{"id": 1, "name": "KITTI Train"}, {"id": 2, "name": "Hypersim Train"}], 3, "SUNRGBD/kv1/a.png", "sunrgbd"),
        ({}, "Garage", "x/a.png", "garage"),
        ({}, 7, "x/kitti.png", ""),
    ],
)
def test_sub_datasets(info, number, path, name):
    """Omni3D's own files number them and name them in `info`; folders are named after them."""
    assert omni3d.sub_dataset({"dataset_id": number, "file_path": path}, info) == name


def test_unknown_sub_datasets(write):
    scene = omni3d.load(write([ANNOTATION], dataset_id=7)).scenes[0]
    assert (scene.source, scene.image.id, scene.setting) == ("omni3d", "omni3d-a", "")
    assert not scene.objects[0].has_front


def test_layout_of_omni3d(write, tmp_path):
    """datasets/Omni3D/KITTI_train.json beside datasets/KITTI_object, which may be a link to elsewhere."""
    elsewhere = tmp_path / "disk" / "training"
    elsewhere.mkdir(parents=True)
    (tmp_path / "datasets/Omni3D").mkdir(parents=True)
    path = write([ANNOTATION], dataset_id=1, file_path="KITTI_object/training/000001.png")
    (tmp_path / "a.png").rename(elsewhere / "000001.png")
    (tmp_path / "datasets/KITTI_object").symlink_to(tmp_path / "disk")
    moved = path.rename(tmp_path / "datasets/Omni3D/KITTI_train.json")
    scene = omni3d.load(moved).scenes[0]
    assert (scene.source, scene.image.id) == ("omni3d/kitti", "kitti-000001")
    assert scene.image.read()[:4] == b"\x89PNG"


def test_ids_of_frames_with_one_name(write, tmp_path):
    """Hypersim calls every video's first picture frame.0000; the folders tell them apart."""
    path = write([changed(id=k, image_id=k) for k in range(2)])
    (entry,) = json.loads(path.read_text())["images"]
    images = []
    for k in range(2):
        name = f"hypersim/ai_{k}/frame.0000.tonemap.png"
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (100, 100)).save(tmp_path / name)
        images.append({**entry, "id": k, "dataset_id": 3, "file_path": name})
    ids = [scene.image.id for scene in omni3d.load(rewrite(path, images=images)).scenes]
    assert ids == [f"hypersim-hypersim--ai_{k}--frame.0000.tonemap" for k in range(2)]
    (alone,) = omni3d.load(rewrite(path, images=images[:1])).scenes
    assert alone.image.id == "hypersim-frame.0000.tonemap"


def test_rotated_pictures(write):
    """Annotations belong to the copies that Omni3D turned: another copy is counted, not read wrongly."""
    assert len(omni3d.load(write([ANNOTATION], src_90_rotate=1)).scenes) == 1
    wide = {"width": 100, "height": 120, "src_90_rotate": 3}
    with pytest.raises(UserError, match="image: not the copy that Omni3D rotated: 1"):
        omni3d.load(write([ANNOTATION], **wide))


def test_what_is_not_used_is_dropped_while_parsing(write):
    path = write([changed(bbox3D_cam=[[0, 0, 0]] * 8, category_id=3)])
    _, _, annotations = omni3d._parse(path, Counter())
    assert annotations[7][0].keys() == ANNOTATION.keys()


def test_scenes_come_one_by_one(write, tmp_path):
    """What is left out is counted as the scenes come."""
    path = write([changed(id=0, image_id=0), changed(id=1, image_id=1), changed(id=2, image_id=1, valid3D=False)])
    (entry,) = json.loads(path.read_text())["images"]
    for k in range(2):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{k}.png")
    rewrite(path, images=[{**entry, "id": k, "file_path": f"{k}.png"} for k in range(2)])
    ignored: Counter[str] = Counter()
    scenes = omni3d.read(str(path), "train", ignored)
    assert next(scenes).image.id == "nuscenes-0" and not ignored
    assert next(scenes).image.id == "nuscenes-1" and ignored == {"object: no valid 3D box": 1}
    assert next(scenes, None) is None


def boxes_on_a_floor(pitch, count, seed=0):
    """Rotations of boxes that stand on a floor, their axes named at random, seen by a pitched camera."""
    rng = np.random.default_rng(seed)
    tilt = Rotation.from_euler("x", pitch, degrees=True)
    for _ in range(count):
        turn = Rotation.from_euler("y", rng.uniform(0, 360), degrees=True)
        naming = Rotation.create_group("O")[rng.integers(24)]
        yield (tilt * turn * naming).as_matrix()


@pytest.mark.parametrize("source", ["hypersim", "objectron"])
def test_gravity_by_vote(write, source):
    """Axes carry no meaning in Hypersim, yet furniture shares the vertical."""
    standing = [changed(id=k, R_cam=r.tolist()) for k, r in enumerate(boxes_on_a_floor(20, 6))]
    scene = omni3d.load(write(standing, dataset_id=source)).scenes[0]
    expected = Rotation.from_euler("x", 20, degrees=True).apply([0, 1, 0])
    np.testing.assert_allclose(scene.camera.gravity, expected, atol=1e-9)
    assert not scene.upright and scene.metric == (source == "hypersim")


def test_no_gravity_without_consensus(write):
    rng = np.random.default_rng(0)
    thrown = [changed(id=k, R_cam=Rotation.random(random_state=rng).as_matrix().tolist()) for k in range(6)]
    scene = omni3d.load(write(thrown, dataset_id="Hypersim")).scenes[0]
    assert scene.camera.gravity is None and not scene_arrays(scene).vertical


@pytest.mark.parametrize(
    ("name", "setting", "metric", "upright", "car", "bed"),
    [
        ("KITTI", "outdoor", True, True, True, False),
        ("nuScenes", "outdoor", True, True, True, False),
        ("SUNRGBD", "indoor", True, True, False, True),
        ("ARKitScenes", "indoor", True, True, False, False),
        ("Hypersim", "indoor", True, False, False, False),
        ("Objectron", "", False, False, False, False),
    ],
)
def test_the_six_sub_datasets(write, name, setting, metric, upright, car, bed):
    scene = omni3d.load(write([ANNOTATION, changed(id=1, category_name="bed")], dataset_id=name)).scenes[0]
    assert (scene.setting, scene.metric, scene.upright) == (setting, metric, upright) and scene.shared_scale
    assert [o.has_front for o in scene.objects] == [car, bed]


def test_fronts():
    assert not any(source in FRONTS for source in ("arkitscenes", "hypersim", "objectron", "bop"))
    assert has_front("sunrgbd", "bed") and not has_front("sunrgbd", "night stand")
    assert not has_front("nuscenes", "barrier") and not has_front("kitti", "tram")
    for source, categories in NO_FRONT.items():
        assert not FRONTS.get(source, {}).keys() & categories.keys()
    assert all(common_name(name) == name for source in FRONTS.values() for name in source)


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
def test_projections_are_those_of_the_file():
    """All boxes before the camera: our projection is the file's bbox2D_proj."""
    data = json.loads(REAL.read_text())
    given = {tuple(np.round(a["center_cam"], 6)): np.array(a["bbox2D_proj"]) for a in data["annotations"]}
    checked = 0
    for scene in omni3d.load(REAL).scenes:
        for o in scene.objects:
            if box_corners(o.box)[:, 2].min() > 0.1:
                found = projected_bbox(o.box, scene.camera, clip=False)
                np.testing.assert_allclose(found, given[tuple(np.round(o.box.center, 6))], atol=0.5)
                checked += 1
    assert checked >= 60


# Which side of a thing one sees. Made by hand from enlarged cut-outs of the photographs, without the boxes drawn
# (but not blind: the annotated angles had been printed before): lamps, windscreens, number plates, faces, feet and
# the direction of a stride tell. For everything that has a
# front and whose side can be told by eye; people behind barriers, and vehicles of which little shows, are left
# out. Two words: the corner between them. (photograph, pixel of its middle, side)
SEEN = [
    ("kitti_000000", (761, 225), "right"),  # strides to the right of the picture
    ("kitti_000001", (614, 172), "back"),  # red rear lamps
    ("kitti_000001", (405, 192), "front"),  # head lamps
    ("kitti_000002", (678, 206), "back"),
    ("kitti_000008", (479, 275), "front"),  # grille and plate
    ("kitti_000008", (659, 218), "back"),
    ("kitti_000008", (766, 188), "front"),
    ("kitti_000008", (920, 209), "back"),
    ("nuscenes_cam_front", (342, 441), "back"),  # tail lift
    ("nuscenes_cam_front", (1042, 506), "back"),
    ("nuscenes_cam_front", (927, 503), "back"),
    ("nuscenes_cam_front", (749, 497), "back"),
    ("nuscenes_cam_front", (627, 527), "left"),  # bends towards the lorry on the left
    ("nuscenes_cam_front_left", (590, 482), "right"),  # walks to the right, telephone before him
    ("nuscenes_cam_front_left", (1534, 435), "back"),
    ("nuscenes_cam_back", (415, 543), "back right"),  # taxi: boot on the left, its right side along
    ("nuscenes_cam_back", (905, 537), "left"),  # cross the road to the left
    ("nuscenes_cam_back", (943, 542), "left"),
    ("nuscenes_cam_back", (1073, 528), "left"),
    ("nuscenes_cam_back_left", (1175, 475), "front"),  # a face
    ("nuscenes_cam_back_left", (1159, 468), "back"),
    ("nuscenes_cam_back_right", (933, 499), "front"),  # straps of a rucksack over his chest
    ("nuscenes_cam_back_right", (1119, 566), "front right"),  # a face, steps to the right
    ("nuscenes_cam_back_right", (1316, 494), "left"),  # strides to the left
    ("nuscenes_cam_back_right", (790, 508), "back"),
    ("sunrgbd_000017", (406, 334), "front"),  # foot board
]
AZIMUTHS = {"front": 0, "front left": 45, "left": 90, "back left": 135, "back": 180, "back right": 225, "right": 270,
            "front right": 315}  # fmt: skip


@needs_real
@pytest.mark.parametrize(("stem", "pixel", "side"), SEEN)
def test_fronts_agree_with_what_one_sees(stem, pixel, side):
    scene = next(s for s in omni3d.load(REAL).scenes if s.image.id.endswith(stem))
    item = min(scene.objects, key=lambda o: np.abs((o.bbox2d[:2] + o.bbox2d[2:]) / 2 - pixel).max())
    assert np.abs((item.bbox2d[:2] + item.bbox2d[2:]) / 2 - pixel).max() < 2 and item.has_front
    off = (viewpoint(item.box)[0] - AZIMUTHS[side] + 180) % 360 - 180
    assert abs(off) <= 45
