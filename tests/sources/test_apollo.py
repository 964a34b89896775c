"""Apollo Synthetic: its order of fields, its camera, gravity from the road, what is left out."""

import json

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import gravity_from_ground, up_vector
from spatialllm_jax.scene.relations import Margins, higher, scene_arrays
from spatialllm_jax.sources import apollo

# frame, id, type, truncated, occluded, alpha, 2D box, height, length, width, centre, rotation_y
CAR = "0 12 Sedan 0.00 0 1.85 400 150 500 320 1.50 4.00 1.60 1.00 0.85 20.00 0.50"
PLACE = "13-00/CLEAR_SKY/NO_DEGRADATION/With_Pedestrian/With_TrafficBarrier/Urban/Traffic_003"


@pytest.fixture
def folder(tmp_path):
    """Writes a frame with the given lines."""

    def write(*lines, place=PLACE, size=(1920, 1080)):
        for part in ("RGB", "Object_GroundTruth"):
            (tmp_path / part / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "RGB" / place / "0000000.jpg")
        (tmp_path / "Object_GroundTruth" / place / "0000000.txt").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def test_one_frame(folder):
    (scene,) = apollo.load(folder(CAR)).scenes
    (car,) = scene.objects
    assert car.box.size.tolist() == [4.0, 1.5, 1.6] and car.box.center.tolist() == [1.0, 0.85, 20.0]
    np.testing.assert_allclose(car.box.rotation[:, 0], [np.cos(0.5), 0, -np.sin(0.5)], atol=1e-12)
    assert (car.category, car.has_front, car.visibility, car.truncation) == ("car", True, 1.0, 0.0)
    assert scene.camera.intrinsics.tolist() == [[2015, 0, 960], [0, 2015, 540], [0, 0, 1]]
    assert (scene.source, scene.metric, scene.setting, scene.upright) == ("apollo", True, "outdoor", True)
    assert scene.image.id == "apollo-" + PLACE.replace("/", "--") + "--0000000"


def test_pictures_of_another_size_and_own_cameras(folder):
    root = folder(CAR.replace("400 150 500 320", "200 75 250 160"), size=(960, 540))
    assert apollo.load(root).scenes[0].camera.intrinsics[0].tolist() == [1007.5, 0, 480]
    own = [[700.0, 0, 480], [0, 700.0, 270], [0, 0, 1]]
    (root / "camera.json").write_text(json.dumps({"K": own}))
    assert apollo.load(root).scenes[0].camera.intrinsics.tolist() == own
    (root / "camera.json").write_text('{"K": [1, 2]}')
    with pytest.raises(UserError, match=r'camera\.json is not a camera .* write \{"K": \[\[f, 0, x\]'):
        apollo.load(root)
    (root / "camera.json").write_text(json.dumps({"K": np.eye(3).tolist()}))
    with pytest.raises(UserError, match=r"camera of .* is unusable .*absurd focal"):
        apollo.load(root)


def on_a_road(pitch, *places):
    """Cars on a level road, seen by a camera 1.5 m above it that looks down by `pitch` degrees."""
    a = np.radians(pitch)
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    for x, z in places:
        at = tilt @ [x, 1.5 - 0.75, z]
        yield CAR.replace("1.00 0.85 20.00", " ".join(f"{v:.4f}" for v in at))


def test_gravity_from_the_road(folder):
    """Four degrees of pitch put a car 40 m ahead 2 m higher in the picture; it is not higher."""
    (scene,) = apollo.load(folder(*on_a_road(4, (-4, 10), (2, 20), (-3, 35), (3, 50)))).scenes
    angle = np.degrees(np.arccos(up_vector(scene) @ [0, -np.cos(np.radians(4)), -np.sin(np.radians(4))]))
    assert angle < 0.3
    arrays = scene_arrays(scene)
    assert higher(arrays, 0, 3, Margins()) is None
    assert scene.objects[0].box.center[1] - scene.objects[3].box.center[1] > 2


def test_gravity_without_a_road():
    np.testing.assert_allclose(gravity_from_ground(np.zeros((0, 3))), [0, 1, 0])
    np.testing.assert_allclose(gravity_from_ground(np.array([[1.0, 2, 30]])), [0, 1, 0])
    side_by_side = gravity_from_ground(np.array([[-3.0, 1.4, 20], [3, 1.7, 20.5]]))
    assert np.degrees(np.arccos(side_by_side[1])) < 1  # two points at one distance tell nothing of the pitch
    assert np.linalg.norm(side_by_side) == pytest.approx(1)


@pytest.mark.parametrize(
    ("line", "reason", "hidden"),
    [
        (CAR.replace("Sedan", "Dirigible"), "type unknown", "*"),
        (CAR.replace("Sedan 0.00 0", "Bus 0.80 0"), "truncated", "bus"),
        (CAR.replace("Sedan 0.00 0", "SUV 0.00 3"), "occlusion unknown", "car"),
        (CAR.replace("Sedan 0.00 0", "SUV 0.00 0.80"), "hidden", "car"),
        (CAR.replace("Sedan 0.00 0", "SUV 0.00 1.80"), "malformed", "*"),
        (CAR.replace("150 500 320", "150 500 160"), "too small in the image", "car"),
        (CAR.replace("20.00", "-20.00"), "behind the camera", "car"),
        (CAR.replace("1.50", "nan"), "box: nan", "car"),
        (CAR.replace("1.50", "0.0"), "box: size", "car"),
        (CAR.replace("400 150 500", "2400 150 2500"), "2D box outside the image", "car"),
        ("0 12 Sedan 0.00 0 1.85", "malformed", "*"),
    ],
)
def test_left_out_and_counted(folder, line, reason, hidden):
    loaded = apollo.load(folder(CAR, line))
    assert loaded.ignored == {f"object: {reason}": 1}
    assert len(loaded.scenes[0].objects) == 1 and loaded.scenes[0].hidden == (hidden,)


def test_occlusion_as_a_share(folder):
    (scene,) = apollo.load(folder(CAR.replace("0.00 0 ", "0.00 0.25 "), CAR.replace("0.00 0 ", "0.00 1 "))).scenes
    assert [o.visibility for o in scene.objects] == [0.75, 0.6]


def test_frames_of_two_folders_have_two_ids(folder):
    folder(CAR)
    ids = [scene.image.id for scene in apollo.load(folder(CAR, place=PLACE.replace("13", "18"))).scenes]
    assert len(set(ids)) == 2


def test_bad_folders(folder, tmp_path):
    with pytest.raises(UserError, match="has no folder Object_GroundTruth; name the folder that holds"):
        apollo.load(tmp_path)
    root = folder("")
    with pytest.raises(UserError, match="Object_GroundTruth has no image with a usable object"):
        apollo.load(root)
    with pytest.raises(UserError, match="split 'dev'"):
        apollo.load(root, "dev")
    (root / "RGB" / PLACE / "0000000.jpg").unlink()
    with pytest.raises(UserError, match=r"image .*0000000\.jpg of .*0000000\.txt is missing"):
        apollo.load(root)
    (root / "RGB" / PLACE / "0000000.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="is not a picture"):
        apollo.load(root)
    (root / "Object_GroundTruth" / PLACE / "0000000.txt").write_bytes(b"\xff\xfe\x00")
    Image.new("RGB", (1920, 1080)).save(root / "RGB" / PLACE / "0000000.jpg")
    with pytest.raises(UserError, match="cannot be read as text"):
        apollo.load(root)
