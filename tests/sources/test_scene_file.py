"""Scene files: round trip, random access, and lines that somebody else got wrong."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.serialize import scene_to_json
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources import scene_file
from spatialllm_jax.sources.loaded import collect


def scene(k, folder=None, **fields):
    box = Box3D(np.array([0.1 * k, 0.0, 5.0]), np.array([1.0, 1.5, 2.0]), np.eye(3))
    camera = Camera(100, 80, np.array([[90.0, 0, 50], [0, 90, 40], [0, 0, 1]]), np.array([0.0, 1, 0]))
    obj = Object3D(f"thing {k % 3}", f"thing {k % 3}", box, np.array([10.0, 10, 50, 60]), True, 0.9, 0.1)
    path = None if folder is None else str(folder / f"{k}.png")
    return Scene(SceneImage(f"s-{k}", path=path), camera, (obj,), True, "test", **fields)


@pytest.fixture
def folder(tmp_path):
    for k in range(5):
        Image.new("RGB", (100, 80), (k, k, k)).save(tmp_path / f"{k}.png")
    return tmp_path


def line(k, **changes):
    data = {"file": f"{k}.png", **json.loads(scene_to_json(scene(k)))}
    data.update(changes)
    return json.dumps(data)


def test_round_trip_in_any_order(folder):
    scenes = [scene(k, folder, shared_scale=k != 2, upright=k != 3) for k in range(5)]
    written = scene_file.write_scenes(folder / "s.jsonl", iter(scenes))
    assert written.count == 5 and written.categories == ("thing 0", "thing 1", "thing 2")
    assert written.sources == {"test": 5}
    for k in (3, 0, 4, 2):
        found = scene_file.read_scene(str(folder / "s.jsonl"), k)
        assert scene_to_json(found) == scene_to_json(scenes[k]) and found.image.path == scenes[k].image.path
        assert found.shared_scale == (k != 2) and found.upright == (k != 3)


def test_digest_tells_scenes_apart_but_not_places(tmp_path):
    digests = []
    for name, shift in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        scenes = [scene(k + shift, tmp_path / name) for k in range(3)]
        digests.append(scene_file.write_scenes(tmp_path / name / "s.jsonl", scenes).digest)
    assert digests[0] == digests[1] != digests[2]


def test_somebody_s_file(folder):
    bad = {"center": [0, float("nan"), 5], "size": [1, 1, 1], "rotation": np.eye(3).tolist()}
    boxes = json.loads(line(1))["objects"]
    lines = [
        line(0),
        line(1, objects=[*boxes, {**boxes[0], **bad, "category": "ghost"}, {**boxes[0], "center": [0, 0, -4]}]),
        line(2, objects=[]),
        line(3, camera={"width": 100, "height": 80, "gravity": None,
                        "intrinsics": [[0.0, 0, 50], [0, 90, 40], [0, 0, 1]]}),
        "",
    ]  # fmt: skip
    (folder / "mine.jsonl").write_text("\n".join(lines))
    loaded = collect(scene_file.read, folder / "mine.jsonl", "train")
    assert [s.image.id for s in loaded.scenes] == ["s-0", "s-1"]
    assert len(loaded.scenes[1].objects) == 1 and "ghost" in loaded.scenes[1].hidden
    assert loaded.ignored == {"object: unusable box": 2, "image: no usable object": 1,
                              "camera: absurd focal length": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"line 2 of .*s\.jsonl is no scene"),
        ('{"image_id": "x"}', r"line 2 of .* is no scene \(KeyError\('file'\)\)"),
        (line(1, file="../../etc/passwd"), "leaves the folder"),
        (line(1, file="none.png"), r"none\.png of line 2 in .* is missing"),
        (line(1, camera=None), "line 2 of .* is no scene: scene JSON"),
    ],
)
def test_lines_that_are_wrong(folder, text, message):
    (folder / "s.jsonl").write_text(line(0) + "\n" + text + "\n")
    with pytest.raises(UserError, match=message):
        list(scene_file.read(str(folder / "s.jsonl"), "train", Counter()))


def test_files_that_are_wrong(folder):
    with pytest.raises(UserError, match="does not exist"):
        list(scene_file.read(str(folder / "none.jsonl"), "train", Counter()))
    (folder / "s.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        list(scene_file.read(str(folder / "s.jsonl"), "train", Counter()))
    (folder / "s.jsonl").write_text(line(0, objects=[]) + "\n")
    with pytest.raises(UserError, match="no scene with a usable object"):
        list(scene_file.read(str(folder / "s.jsonl"), "train", Counter()))
