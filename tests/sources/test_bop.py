"""The BOP format on a hand-made dataset: millimetres, axes, boxes, gravity, names, what is left out."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import box_corners, up_vector
from spatialllm_jax.scene.relations import Margins, higher, scene_arrays
from spatialllm_jax.sources import bop

K = [500.0, 0, 320, 0, 500, 240, 0, 0, 1]
POSE = Rotation.from_euler("xyz", [100, 20, 30], degrees=True).as_matrix()
TRUTH = {"obj_id": 1, "cam_R_m2c": POSE.ravel().tolist(), "cam_t_m2c": [50.0, -20, 900]}
INFO = {"bbox_obj": [300, 200, 80, 60], "bbox_visib": [310, 205, 60, 50], "visib_fract": 0.8}
MODEL = {"min_x": -40.0, "min_y": -30, "min_z": -10, "size_x": 80.0, "size_y": 50, "size_z": 120}
LOOKS_DOWN = [1, 0, 0, 0, -0.6, -0.8, 0, 0.8, -0.6]  # rows; the world's z is (0, -0.8, -0.6) in the camera frame


@pytest.fixture
def dataset(tmp_path):
    """Writes a dataset with one scene of one picture."""

    def write(truths=(TRUTH,), infos=(INFO,), camera=None, name="lm", part="test", picture="rgb/000007.png"):
        root = tmp_path / name
        scene = root / part / "000002"
        (scene / picture).parent.mkdir(parents=True, exist_ok=True)
        (root / "models").mkdir(exist_ok=True)
        (root / "models/models_info.json").write_text(json.dumps({"1": MODEL, "5": MODEL}))
        Image.new("RGB", (640, 480)).save(scene / picture)
        (scene / "scene_camera.json").write_text(json.dumps({"7": {"cam_K": K, "depth_scale": 1.0, **(camera or {})}}))
        (scene / "scene_gt.json").write_text(json.dumps({"7": list(truths)}))
        if infos is not None:
            (scene / "scene_gt_info.json").write_text(json.dumps({"7": list(infos)}))
        return root

    return write


def test_one_object(dataset):
    (scene,) = bop.load(dataset(), "test").scenes
    (ape,) = scene.objects
    assert (scene.image.id, scene.source) == ("lm-test-000002-000007", "bop/lm")
    assert (scene.metric, scene.setting) == (True, "indoor")
    assert (scene.upright, scene.shared_scale, scene.camera.gravity) == (False, True, None)
    assert (ape.category, ape.has_front, ape.visibility, ape.truncation) == ("ape", False, 0.8, 0.0)
    assert ape.bbox2d.tolist() == [310, 205, 370, 255]
    # Every corner of the model's box, taken to the camera as the format says, is a corner of ours (metres).
    low = np.array([MODEL[f"min_{a}"] for a in "xyz"])
    size = np.array([MODEL[f"size_{a}"] for a in "xyz"])
    model = np.array([low + size * [x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    given = (model @ POSE.T + TRUTH["cam_t_m2c"]) / 1000
    found = box_corners(ape.box)
    for corner in given:
        assert np.linalg.norm(found - corner, axis=1).min() < 1e-9
    np.testing.assert_allclose(-ape.box.rotation[:, 1], POSE[:, 2])  # up is the model's z
    assert np.linalg.det(ape.box.rotation) == pytest.approx(1)


def test_gravity(dataset):
    def gravity(rows, name="lm", part="test"):
        root = dataset(camera={"cam_R_w2c": rows}, name=name, part=part)
        return bop.load(root, part.split("_")[0]).scenes[0].camera.gravity

    np.testing.assert_allclose(gravity(LOOKS_DOWN), [0, 0.8, 0.6], atol=1e-12)
    assert gravity(np.eye(3).ravel().tolist()) is None  # a world whose z is the camera's view
    assert gravity([1, 0, 0, 0, 0.6, 0.8, 0, -0.8, 0.6]) is None  # z points down in the picture
    assert gravity([1, 0, 0, 0, 0.8, -0.6, 0, 0.6, 0.8]) is None  # z points away from the viewer
    assert gravity(LOOKS_DOWN, "ycbv") is None  # its world is the first camera
    assert gravity(LOOKS_DOWN, "ycbv", "train_pbr") is not None


def test_higher_is_asked_only_with_gravity(dataset):
    stacked = [TRUTH, {**TRUTH, "cam_t_m2c": [50.0, -420, 900]}]
    unknown = scene_arrays(bop.load(dataset(stacked, [INFO] * 2), "test").scenes[0])
    assert higher(unknown, 0, 1, Margins()) is None and not unknown.vertical
    known = bop.load(dataset(stacked, [INFO] * 2, {"cam_R_w2c": LOOKS_DOWN}), "test").scenes[0]
    assert higher(scene_arrays(known), 0, 1, Margins()).answer == "second"
    np.testing.assert_allclose(up_vector(known), [0, -0.8, -0.6])


@pytest.mark.parametrize(
    ("name", "number", "word"),
    [("lm", 5, "watering can"), ("lmo", 1, "ape"), ("ycbv", 5, "mustard bottle"), ("mine", 1, "object")],
)
def test_names(dataset, name, number, word):
    (scene,) = bop.load(dataset([{**TRUTH, "obj_id": number}], name=name), "test").scenes
    assert scene.objects[0].category == word


def test_own_names(dataset):
    root = dataset(name="mine")
    (root / "names.json").write_text('{"1": "Toy_Car"}')
    assert bop.load(root, "test").scenes[0].objects[0].category == "toy car"
    (root / "names.json").write_text('{"one": "car"}')
    with pytest.raises(UserError, match=r"names\.json does not map numbers to names"):
        bop.load(root, "test")


@pytest.mark.parametrize(
    ("truth", "info", "reason", "hidden"),
    [
        ({"obj_id": 9}, {}, "no model", "duck"),
        ({"cam_t_m2c": [0, 0, -900]}, {}, "behind the camera", "watering can"),
        ({"cam_t_m2c": [0, float("nan"), 900]}, {}, "box: nan", "watering can"),
        ({"cam_R_m2c": [1, 0, 0, 0, 1, 0, 0, 0, -1]}, {}, "box: rotation", "watering can"),
        ({"cam_R_m2c": [1, 0]}, {}, "malformed", "watering can"),
        ({"obj_id": None}, {}, "malformed", "*"),
        ({}, {"visib_fract": 0.3}, "hidden", "watering can"),
        ({}, {"bbox_obj": [-60, 200, 100, 60]}, "truncated", "watering can"),
        ({}, {"bbox_visib": [-1, -1, -1, -1]}, "2D box outside the image", "watering can"),
        ({}, {"bbox_visib": [300, 200, 50, 20]}, "too small in the image", "watering can"),
        ({}, {"bbox_visib": None}, "malformed", "watering can"),
    ],
)
def test_left_out_and_counted(dataset, truth, info, reason, hidden):
    root = dataset([TRUTH, {**TRUTH, "obj_id": 5, **truth}], [INFO, {**INFO, **info}])
    loaded = bop.load(root, "test")
    assert loaded.ignored == {f"object: {reason}": 1} and len(loaded.scenes[0].objects) == 1
    assert loaded.scenes[0].hidden == (hidden,)


def test_truncation_is_the_share_outside(dataset):
    (scene,) = bop.load(dataset(infos=[{**INFO, "bbox_obj": [-20, 200, 100, 60]}]), "test").scenes
    assert scene.objects[0].truncation == pytest.approx(0.2)


def test_without_info_the_box_is_projected(dataset):
    (scene,) = bop.load(dataset(infos=None), "test").scenes
    (ape,) = scene.objects
    corners = box_corners(ape.box) @ np.reshape(K, (3, 3)).T
    pixels = corners[:, :2] / corners[:, 2:]
    np.testing.assert_allclose(ape.bbox2d, [*pixels.min(0), *pixels.max(0)], atol=1e-6)
    assert (ape.visibility, ape.truncation) == (1.0, pytest.approx(0))


def test_split_types_and_gray(dataset):
    dataset(part="train_pbr", picture="rgb/000007.jpg")
    root = dataset(part="train_real", picture="gray/000007.png")
    found = [scene.image.id for scene in bop.load(root, "train").scenes]
    assert found == ["lm-train_pbr-000002-000007", "lm-train_real-000002-000007"]


def test_what_cannot_be_read_is_counted(dataset):
    root = dataset()
    dataset(part="test_other", picture="gray/000007.tif")
    (root / "test" / "000001").mkdir()
    assert bop.load(root, "test").ignored == {"scene: no ground truth": 1, "image: TIFF, which is not read": 1}
    bad = root / "test_other" / "000002"
    (bad / "gray/000007.tif").rename(bad / "gray/000007.png")
    (bad / "scene_camera.json").write_text('{"7": {"cam_K": [1, 2]}}')
    assert bop.load(root, "test").ignored == {"scene: no ground truth": 1, "image: malformed camera": 1}
    (bad / "scene_camera.json").write_text(json.dumps({"7": {"cam_K": [0.0, *K[1:]]}}))
    assert bop.load(root, "test").ignored["camera: absurd focal length"] == 1


def test_bad_files(dataset, tmp_path):
    with pytest.raises(UserError, match=r"nowhere has no models/models_info\.json"):
        bop.load(tmp_path / "nowhere")
    root = dataset()
    with pytest.raises(UserError, match=r"lm has no folder val or val_\*"):
        bop.load(root, "val")
    with pytest.raises(UserError, match="split 'dev'"):
        bop.load(root, "dev")
    truth = root / "test/000002/scene_gt.json"
    truth.write_text('{"7": []}')
    with pytest.raises(UserError, match="lm has no image with a usable object"):
        bop.load(root, "test")
    truth.write_text('{"8": []}')
    with pytest.raises(UserError, match=r"image .*000008\.png of entry '8' of scene_gt\.json is missing"):
        bop.load(root, "test")
    truth.write_text("[]")
    with pytest.raises(UserError, match=r"scene_gt\.json holds no JSON object"):
        bop.load(root, "test")
    truth.write_text("{")
    with pytest.raises(UserError, match=r"scene_gt\.json is not JSON"):
        bop.load(root, "test")
    (root / "models/models_info.json").write_text('{"1": {"diameter": 3}}')
    with pytest.raises(UserError, match=r"object 1 in .*models_info\.json has no box"):
        bop.load(root, "test")
    dataset()
    (root / "test/000002/scene_camera.json").unlink()
    with pytest.raises(UserError, match=r"scene_camera\.json is missing"):
        bop.load(root, "test")
