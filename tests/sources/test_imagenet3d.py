"""ImageNet3D: its camera model written down a second time, its files, and what is left out."""

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import (
    box_corners,
    project,
    projected_bbox,
    rotation_from_viewpoint,
    viewpoint,
)
from spatialllm_jax.scene.relations import Margins, facing_camera, scene_arrays
from spatialllm_jax.scene.types import Box3D, Camera
from spatialllm_jax.sources import imagenet3d
from spatialllm_jax.sources.fronts import FRONTS, NO_FRONT, common_name

WIDTH, HEIGHT = 500, 400
ENTRY = {
    "azimuth": np.float64(0.7), "elevation": 0.2, "theta": 0.1, "distance": 8.0, "viewport": 2000,
    "cad_index": 1, "px": 250.0, "py": 200.0, "bbox": np.array([150.0, 120, 350, 280]), "class": "car",
    "height": np.uint16(HEIGHT), "width": np.uint16(WIDTH), "object_status": "status_good", "dense": "dense_no",
}  # fmt: skip


def pixels_of(points, azimuth, elevation, theta, distance, viewport, px, py):
    """The projection of PASCAL3D+ and ImageNet3D, from its description: CAD points (front -y, left +x, up +z)
    seen from distance * (cos e sin a, -cos e cos a, sin e) by a camera that looks at the origin with z up."""
    a, e = azimuth, elevation
    position = distance * np.array([np.cos(e) * np.sin(a), -np.cos(e) * np.cos(a), np.sin(e)])
    forward = -position / distance
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    upward = np.cross(right, forward)
    seen = (points - position) @ np.stack([right, upward, forward], axis=1)
    x, y = viewport * seen[:, 0] / seen[:, 2], viewport * seen[:, 1] / seen[:, 2]  # y upwards
    turned_x = np.cos(theta) * x - np.sin(theta) * y  # counter-clockwise as one looks at the picture
    turned_y = np.sin(theta) * x + np.cos(theta) * y
    return np.stack([px + turned_x, py - turned_y], axis=1)


def test_their_camera_is_ours():
    """Pixel by pixel for random poses: azimuth, elevation and theta have ImageNet3D's signs."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        azimuth, theta = rng.uniform(0, 2 * np.pi, 2)
        elevation = rng.uniform(-1.5, 1.5)
        distance, viewport = rng.uniform(3, 20), rng.uniform(500, 3000)
        px, py = rng.uniform(100, 400, 2)
        cad = rng.uniform(-0.5, 0.5, (10, 3))
        expected = pixels_of(cad, azimuth, elevation % (2 * np.pi), theta, distance, viewport, px, py)
        center = np.array([0, 0, distance])  # their optical axis goes through the object
        rotation = rotation_from_viewpoint(*np.degrees([azimuth, elevation, theta]), center)
        own = np.stack([-cad[:, 1], -cad[:, 2], cad[:, 0]], axis=1)  # front, down, left
        intrinsics = np.array([[viewport, 0, px], [0, viewport, py], [0, 0, 1]])
        np.testing.assert_allclose(project(center + own @ rotation.T, intrinsics), expected, atol=1e-6)


def test_what_is_seen_off_centre_is_the_same():
    """An object at the edge is turned with its ray: its look is that of the annotated angles."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        azimuth, elevation, theta = rng.uniform(0, 360), rng.uniform(-80, 80), rng.uniform(-179, 179)
        center = np.array([*rng.uniform(-3, 3, 2), 9.0])
        box = Box3D(center, np.ones(3), rotation_from_viewpoint(azimuth, elevation, theta, center))
        found = viewpoint(box)
        assert np.cos(np.radians(found[0] - azimuth)) == pytest.approx(1) and found[1] == pytest.approx(elevation)
        assert np.cos(np.radians(found[2] - theta)) == pytest.approx(1)


@pytest.fixture
def folder(tmp_path):
    """Writes a folder with one picture of each given (category, name, entries)."""
    for part in ("images", "annotations", "lists"):
        (tmp_path / part).mkdir()

    def write(*samples, split="train", size=(WIDTH, HEIGHT)):
        for category, name, entries in samples:
            for part in ("images", "annotations"):
                (tmp_path / part / category).mkdir(exist_ok=True)
            Image.new("RGB", size).save(tmp_path / "images" / category / f"{name}.JPEG")
            np.savez(tmp_path / "annotations" / category / f"{name}.npz", annotations=entries)
            with (tmp_path / "lists" / f"{category}_imagenet_{split}.txt").open("a") as file:
                file.write(f"{name}\n")
        return tmp_path

    return write


def changed(**fields):
    return {key: value for key, value in {**ENTRY, **fields}.items() if value is not None}


def test_one_picture(folder):
    loaded = imagenet3d.load(folder(("car", "n1_2", [ENTRY])))
    (scene,) = loaded.scenes
    (car,) = scene.objects
    assert loaded.ignored == {} and scene.hidden == ()
    assert (scene.image.id, scene.source, scene.metric) == ("imagenet3d-car--n1_2", "imagenet3d", False)
    assert (scene.shared_scale, scene.upright, scene.camera.gravity) == (False, True, None)
    assert scene.camera.intrinsics.tolist() == [[2000, 0, 250], [0, 2000, 200], [0, 0, 1]]
    assert (car.category, car.has_front, car.visibility) == ("car", True, 1.0)
    assert np.linalg.norm(car.box.center) == pytest.approx(8.0)
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2 * car.box.size[[2, 0, 1]]
    expected = pixels_of(corners, 0.7, 0.2, 0.1, 8.0, 2000, 250, 200)
    found = project(box_corners(car.box), scene.camera.intrinsics)
    for pixel in expected:
        assert np.abs(found - pixel).max(axis=1).min() < 1e-6
    assert scene.image.read()[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("degrees", "side"), [(0, "front"), (90, "left"), (180, "back"), (270, "right"), (359, "front")]
)
def test_azimuth_to_side(folder, degrees, side):
    """Asked of a picture with one upright object, gravity unknown: its own up is the vertical."""
    entry = changed(azimuth=np.radians(degrees), elevation=np.radians(355), theta=np.radians(359))
    (scene,) = imagenet3d.load(folder(("car", "a", [entry]))).scenes
    assert facing_camera(scene_arrays(scene), 0, Margins()).answer == side


def test_the_centre_lies_behind_its_pixel(folder):
    entries = [changed(px=90.0, py=330.0, bbox=[40, 280, 140, 380]), changed(viewport=1000, px=400.0, py=100.0)]
    (scene,) = imagenet3d.load(folder(("car", "a", entries))).scenes
    for item, entry in zip(scene.objects, entries, strict=True):
        np.testing.assert_allclose(project(item.box.center, scene.camera.intrinsics), [entry["px"], entry["py"]])
    # The second was seen with half the focal length, which leaves it half as large in its picture.
    assert np.linalg.norm(scene.objects[1].box.center) == pytest.approx(16.0)


@pytest.mark.parametrize("azimuth", [0, 30, 45, 90, 200])
@pytest.mark.parametrize("elevation", [-20, 0, 15, 50])
def test_boxes_cover_their_2d_boxes(azimuth, elevation):
    """In closed form: exact far away; where the solution is no box, a cube of the mean extent."""
    rng = np.random.default_rng(azimuth + elevation + 20)
    center = np.array([0.0, 0, 1000.0])
    rotation = rotation_from_viewpoint(azimuth, elevation, rng.uniform(-5, 5), center)
    extent = rng.uniform(1, 2, 2)
    size = imagenet3d.fit_size(rotation, extent)
    camera = Camera(2000, 2000, np.array([[1000.0, 0, 1000], [0, 1000, 1000], [0, 0, 1]]))
    found = projected_bbox(Box3D(center, size, rotation), camera)
    seen = np.array([found[2] - found[0], found[3] - found[1]])
    assert (size > 0).all()
    if size[0] != size[1]:
        np.testing.assert_allclose(seen, extent, rtol=0.01)
    else:
        assert seen.sum() == pytest.approx(extent.sum(), rel=0.01)


def test_a_box_that_cannot_be_told_is_a_cube():
    from_above = rotation_from_viewpoint(0, 50, 0, np.array([0.0, 0, 9]))  # a footprint of 10 is higher than 1
    a = np.radians(50)
    assert imagenet3d.fit_size(from_above, np.array([10.0, 1.0])) == pytest.approx(11 / (1 + np.sin(a) + np.cos(a)))
    diagonal = np.array([[0, 0.5, 0], [0, 0.5, 0], [0, 0, 0]])  # width and height tell the same
    assert imagenet3d.fit_size(diagonal, np.array([2.0, 2.0])).tolist() == [4.0] * 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"object_status": "status_bad"}, "pose cannot be seen"),
        ({"object_status": None}, "status missing"),
        ({"ignore": 1}, "ignored by its source"),
        ({"px": None}, "no pose"),
        ({"distance": 0.0}, "distance not positive"),
        ({"distance": float("nan")}, "distance not positive"),
        ({"azimuth": float("nan")}, "box: nan"),
        ({"bbox": np.array([1.0, 2, 3])}, "malformed"),
        ({"bbox": np.array([600.0, 20, 700, 300])}, "2D box outside the image"),
        ({"bbox": np.array([100.0, 20, 200, 30])}, "too small in the image"),
        ({"theta": "upright"}, "malformed"),
        ({"viewport": 0}, "viewport not positive"),
        ({"viewport": None}, "malformed"),
        ({"viewport": float("inf")}, "box: size"),
    ],
)
def test_left_out_and_counted(folder, fields, reason):
    loaded = imagenet3d.load(folder(("car", "a", [ENTRY, changed(**fields)])))
    assert loaded.ignored == {f"object: {reason}": 1}
    assert len(loaded.scenes[0].objects) == 1 and loaded.scenes[0].hidden == ("car",)


def test_entries_that_are_no_dicts(folder):
    loaded = imagenet3d.load(folder(("car", "a", np.array([ENTRY, "car"], object))))
    assert loaded.ignored == {"object: malformed": 1} and loaded.scenes[0].hidden == ("*",)


def test_status_and_density(folder):
    entries = [changed(object_status="status_barely"), changed(object_status="status_partially", dense="dense_yes")]
    root = folder(("car", "a", entries))
    folder(("car", "a", entries), split="val")
    (scene,) = imagenet3d.load(root).scenes
    assert [o.visibility for o in scene.objects] == [0.3, 0.6] and scene.hidden == ("car",)
    strict = imagenet3d.load(root, "test")
    assert len(strict.scenes[0].objects) == 1 and strict.ignored == {"object: hidden": 1}


def test_splits_and_ids(folder):
    """The same picture may serve two categories; "test" reads the val lists."""
    root = folder(("car", "n1_2", [ENTRY]), ("diningtable", "n1_2", [changed(**{"class": "diningtable"})]))
    folder(("car", "n3", [ENTRY]), split="val")
    train = [s.image.id for s in imagenet3d.load(root, "train").scenes]
    assert train == ["imagenet3d-car--n1_2", "imagenet3d-diningtable--n1_2"]
    assert [s.image.id for s in imagenet3d.load(root, "val").scenes] == ["imagenet3d-car--n3"]
    assert [s.image.id for s in imagenet3d.load(root, "test").scenes] == ["imagenet3d-car--n3"]
    table = imagenet3d.load(root, "train").scenes[1].objects[0]
    assert table.category == "dining table" and not table.has_front


def test_pictures_of_another_size_are_counted(folder):
    root = folder(("car", "a", [ENTRY]), ("bus", "b", [changed(width=499)]))
    assert imagenet3d.load(root).ignored == {"image: its size is not the annotation's": 1}


def test_sizes_may_be_missing(folder):
    root = folder(("car", "a", [changed(width=None, height=None)]))
    assert imagenet3d.load(root).scenes[0].camera.width == WIDTH


def test_bad_folders(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere has no folder images; name ImageNet3D's folder"):
        imagenet3d.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no list \*_imagenet_train\.txt"):
        imagenet3d.load(tmp_path)
    root = folder(("car", "a", [changed(viewport=1e9)]))
    with pytest.raises(UserError, match=r"no image with a usable object .*absurd focal"):
        imagenet3d.load(root)
    listed = root / "lists" / "car_imagenet_train.txt"
    listed.write_text("a\nb\nc\n")
    missing = r"2 of 3 files of .*images that the lists name are missing, the first is .*b\.JPEG"
    with pytest.raises(UserError, match=missing):
        imagenet3d.load(root)
    listed.write_text("../../secret\n")
    with pytest.raises(UserError, match=r"'\.\./\.\./secret' leaves the folder"):
        imagenet3d.load(root)
    listed.write_text("a\n")
    (root / "images/car/a.JPEG").write_bytes(b"no picture")
    with pytest.raises(UserError, match="is not a picture"):
        imagenet3d.load(root)
    (root / "annotations/car/a.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"a\.npz is not a readable \.npz file"):
        imagenet3d.load(root)
    with pytest.raises(UserError, match="split 'dev'"):
        imagenet3d.load(root, "dev")


def test_every_category_has_a_front_or_a_reason():
    fronts, without = FRONTS["imagenet3d"], NO_FRONT["imagenet3d"]
    assert not fronts.keys() & without.keys() and len(fronts) + len(without) == 198  # 203 spellings of 198 names
    assert all(common_name(name) == name for name in (*fronts, *without))
    assert {"airplane", "dining table", "television monitor"} <= {*fronts, *without}
    assert "car" in fronts and "bottle" in without
