"""KITTI's text format: frames, P2's shift, headings, what is left out."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import projected_bbox
from spatialllm_jax.sources import kitti
from spatialllm_jax.sources.loaded import THRESHOLDS

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_kitti = pytest.mark.skipif(not (DATA / "kitti").is_dir(), reason="KITTI scenes (../shared/data/kitti) are absent")
CAR = "Car 0.00 0 1.85 400 150 500 220 1.50 1.60 4.00 1.00 1.60 20.00 0.50"


@pytest.fixture
def folder(tmp_path):
    """A KITTI folder with one image; label lines are given by the test."""
    for part in ("label_2", "calib", "image_2"):
        (tmp_path / "training" / part).mkdir(parents=True)
    Image.new("RGB", (1242, 375)).save(tmp_path / "training/image_2/000000.png")
    (tmp_path / "training/calib/000000.txt").write_text(
        "P0: 700 0 600 0 0 700 180 0 0 0 1 0\nP2: 700 0 600 70 0 700 180 -7 0 0 1 0.01\n"
    )

    def write(*lines):
        (tmp_path / "training/label_2/000000.txt").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def test_frames(folder):
    car = kitti.load(folder(CAR)).scenes[0].objects[0]
    # K [I | t] = P2: t_z = 0.01, t_x = (70 - 600 t_z) / 700, t_y = (-7 - 180 t_z) / 700.
    shift = np.array([(70 - 6) / 700, (-7 - 1.8) / 700, 0.01])
    np.testing.assert_allclose(car.box.center, np.array([1.0, 1.6 - 0.75, 20.0]) + shift, atol=1e-12)
    assert car.box.size.tolist() == [4.0, 1.5, 1.6]
    np.testing.assert_allclose(car.box.rotation[:, 0], [np.cos(0.5), 0, -np.sin(0.5)], atol=1e-12)
    np.testing.assert_allclose(car.box.rotation[:, 1], [0, 1, 0], atol=1e-12)
    assert np.linalg.det(car.box.rotation) == pytest.approx(1)


@pytest.mark.parametrize(
    ("line", "reason", "hidden"),
    [
        ("DontCare -1 -1 -10 503 169 590 190 -1 -1 -1 -1000 -1000 -1000 -10", "not cared about", "*"),
        (CAR.replace("Car 0.00 0", "Car 0.80 0"), "truncated", "car"),
        (CAR.replace("Car 0.00 0", "Van 0.00 3"), "occlusion unknown", "van"),
        (CAR.replace("150 500 220", "150 500 160"), "too small in the image", "car"),
        (CAR.replace("20.00", "-20.00"), "behind the camera", "car"),
        (CAR.replace("1.50", "nan"), "box: nan", "car"),
        (CAR.replace("1.50", "0.0"), "box: size", "car"),
        (CAR[:-4] + "inf", "box: nan", "car"),
        (CAR.replace("Car 0.00", "Car nan"), "box: nan", "car"),
        (CAR.replace("Car 0.00 0", "Van 0.00 inf"), "malformed", "*"),
        (CAR.replace("400 150 500 220", "1400 150 1500 220"), "2D box outside the image", "car"),
        (CAR.replace("150 500 220", "-400 500 220"), "too tall for the image", "car"),
        (CAR.replace("Car", "Misc"), "class without a name", "misc"),
        ("Car 0.00 0 1.85 400", "malformed", "*"),
        ("Car 0.00 zero 1.85 400 1 1 1 1 1 1 1 1 1 1", "malformed", "*"),
    ],
)
def test_left_out_and_counted(folder, line, reason, hidden):
    loaded = kitti.load(folder(CAR, line))
    assert len(loaded.scenes[0].objects) == 1
    assert loaded.ignored == {f"object: {reason}": 1} and loaded.scenes[0].hidden == (hidden,)


def test_test_thresholds_are_stricter(folder):
    lines = CAR.replace("Car 0.00 0", "Car 0.40 0"), CAR.replace("Car 0.00 0", "Car 0.00 2")
    assert len(kitti.load(folder(CAR, *lines), "train").scenes[0].objects) == 3
    assert len(kitti.load(folder(CAR, *lines), "test").scenes[0].objects) == 1
    assert THRESHOLDS["test"].truncation < THRESHOLDS["train"].truncation


def test_bad_folders(folder, tmp_path):
    with pytest.raises(UserError, match="no folder label_2"):
        kitti.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"label_2 has no image with a usable object \(object: not cared about: 1"):
        kitti.load(folder("DontCare -1 -1 -10 5 5 9 9 -1 -1 -1 -1 -1 -1 -10"))
    root = folder(CAR)
    calibration = root / "training/calib/000000.txt"
    calibration.write_text("P2: 1 2 3\n")
    with pytest.raises(UserError, match=r"P2 in .* is not a camera"):
        kitti.load(root)
    calibration.write_text("P0: 1 2 3\n")
    with pytest.raises(UserError, match="no line P2"):
        kitti.load(root)
    calibration.unlink()
    with pytest.raises(UserError, match=r"calibration .* is missing"):
        kitti.load(root)
    (root / "training/image_2/000000.png").write_bytes(b"no picture")
    calibration.write_text("P2: 700 0 600 70 0 700 180 -7 0 0 1 0.01\n")
    with pytest.raises(UserError, match="not a picture"):
        kitti.load(root)
    (root / "training/image_2/000000.png").unlink()
    with pytest.raises(UserError, match=r"image .*000000\.png of .*000000\.txt is missing; fetch it"):
        kitti.load(root)
    Image.new("RGB", (1242, 375)).save(root / "training/image_2/000000.png")
    calibration.write_text("P2: 0.7 0 600 70 0 700 180 -7 0 0 1 0.01\n")
    with pytest.raises(UserError, match=r"calib/000000\.txt is unusable \(camera: absurd focal length\)"):
        kitti.load(root)
    calibration.write_text("P2: 700 0 600 70 0 700 180 -7 0 0 1 0.01\n")
    (root / "training/label_2/000000.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"label_2/000000\.txt cannot be read as text"):
        kitti.load(root)
    with pytest.raises(UserError, match="split 'dev' of the annotations is unknown; choose train, val or test"):
        kitti.load(root, "dev")


def test_scenes_come_one_by_one(folder):
    """The first scene is there before the second file is looked at."""
    root = folder(CAR)
    (root / "training/label_2/000001.txt").write_text(CAR)
    ignored: Counter[str] = Counter()
    scenes = kitti.read(str(root), "train", ignored)
    assert next(scenes).image.id == "kitti-000000"
    with pytest.raises(UserError, match=r"000001\.png of .* is missing"):
        next(scenes)


@needs_kitti
def test_real_labels_reproject():
    """Whole vehicles: within 3 px of the 2D boxes."""
    checked = 0
    for scene in kitti.load(DATA / "kitti").scenes:
        for o in scene.objects:
            if o.category in ("car", "truck") and o.truncation == 0:
                assert np.abs(projected_bbox(o.box, scene.camera) - o.bbox2d).max() <= 3.0
                checked += 1
    assert checked == 3


@needs_kitti
def test_agrees_with_omni3d_annotations():
    """The same photographs, annotated in Omni3D's format by others: centres, sizes and rotations agree."""
    data = json.loads((DATA / "real3d" / "real3d.json").read_text())
    images = {i["id"]: Path(i["file_path"]).stem for i in data["images"]}
    given = [a for a in data["annotations"] if images[a["image_id"]] in ("kitti_000000", "kitti_000001")]
    found = [o for scene in kitti.load(DATA / "kitti").scenes[:2] for o in scene.objects]
    assert len(found) == 3
    for o in found:
        match = min(given, key=lambda a: np.abs(np.array(a["center_cam"]) - o.box.center).max())
        np.testing.assert_allclose(o.box.center, match["center_cam"], atol=1e-3)
        np.testing.assert_allclose(o.box.rotation, match["R_cam"], atol=1e-3)
        w, h, length = match["dimensions"]
        np.testing.assert_allclose(o.box.size, [length, h, w], atol=1e-6)
