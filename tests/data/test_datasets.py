"""The paper's datasets as commands: exact SpatialVQA, mixtures of sources, pictures kept apart."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from launch import generate
from spatialllm_jax.data.generation import SplitPlan, scene_order
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.balance import answer_key
from spatialllm_jax.questions.recheck import recheck
from spatialllm_jax.questions.types import SPATIAL_TYPES
from spatialllm_jax.scene.serialize import scene_from_json
from spatialllm_jax.scene.types import Camera, Scene, SceneImage
from spatialllm_jax.sources.scene_file import write_scenes
from spatialllm_jax.sources.sources import SceneSource
from tests.data.scenes import UP, random_objects

NAMES = ("car", "bus", "person", "dog", "chair", "sofa", "bed", "bicycle")


def random_scene(seed, picture, source):
    rng = np.random.default_rng(seed)
    camera = Camera(96, 72, np.array([[90.0, 0, 48], [0, 90, 36], [0, 0, 1]]), -UP)
    objects = random_objects(camera, rng, 4, lambda: str(rng.choice(NAMES)))
    return Scene(SceneImage(f"{source}-{seed}", path=picture), camera, objects, True, source)


def scene_file(folder, name, count, pictures=1, start=0):
    """A scene file whose scenes share a few pictures of smooth blobs; returns the value of --input."""
    for k in range(start, start + pictures):
        noise = np.random.default_rng(k).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    scenes = (random_scene(k, f"{start + k % pictures}.png", name) for k in range(start, start + count))
    write_scenes(folder / f"{name}.jsonl", scenes)
    return f"scenes:{folder / name}.jsonl"


def questions_of(folder, split):
    return [(record, question) for record in open_split(folder, split) for question in record.questions]


def test_spatial_vqa_has_the_paper_s_numbers(tmp_path):
    inputs = [scene_file(tmp_path, name, 500, start=1000 * k) for k, name in enumerate(("indoor", "urban", "other"))]
    arguments = ["--dataset", "spatial_vqa", "--out", str(tmp_path / "d")]
    result = generate.main([*arguments, *(x for text in inputs for x in ("--input", text))])
    assert result["short"] == {} and result["splits"]["test"]["questions"] == 1323
    found = questions_of(tmp_path / "d", "test")
    assert Counter(q.group for _, q in found) == {"distance": 420, "orientation": 370, "relation": 533}
    for kind in SPATIAL_TYPES:
        answers = Counter(answer_key(q) for _, q in found if q.type == kind)
        assert max(answers.values()) - min(answers.values()) <= 1 and answers.total() in (177, 178, 185, 210)
    sources = Counter(q.source for _, q in found)
    assert set(sources) == {"indoor", "urban", "other"} and min(sources.values()) > 0.25 * 1323
    assert all(recheck(q, scene_from_json(record.scene)) is None for record, q in found)
    card = (tmp_path / "d" / "CARD.md").read_text()
    assert "1323 questions" in card and "scenes indoor.jsonl: 500 scenes" in card and "licence:" in card


def test_order_of_sources():
    def source(count, kind="scenes"):
        return SceneSource(kind, "x", count, "", ())

    small, large = source(30), source(300)
    by_size = scene_order(SplitPlan("train", (small, large), 0, 0, ()))
    assert len(by_size) == 330
    assert sorted(map(tuple, by_size.tolist())) == [(0, k) for k in range(30)] + [(1, k) for k in range(300)]
    assert Counter(by_size[:110, 0].tolist())[0] == 10
    even = scene_order(SplitPlan("train", (small, large), 0, 0, (), even_sources=True))
    assert Counter(even[:40, 0].tolist()) == {0: 20, 1: 20} and len(even) == 330
    assert by_size[by_size[:, 0] == 1, 1].tolist() != list(range(300))  # shuffled
    other = scene_order(SplitPlan("train", (small, large), 1, 0, ()))
    assert not np.array_equal(other, by_size)
    rendered = scene_order(SplitPlan("train", (source(None, "rendered"),), 0, 5, ()))
    assert rendered.tolist() == [[0, k] for k in range(5)]
    with pytest.raises(UserError, match="give it a --count"):
        scene_order(SplitPlan("train", (source(None, "rendered"),), 0, 0, ()))


def test_no_picture_in_two_splits(tmp_path):
    """The same pictures come as training and test scenes under other names: training gives way."""
    tested = scene_file(tmp_path, "tested", 6, pictures=6)
    mixed = scene_file(tmp_path, "mixed", 10, pictures=10, start=0)
    scenes = (tmp_path / "mixed.jsonl").read_text().replace('"image_id":"mixed-', '"image_id":"other-')
    (tmp_path / "mixed.jsonl").write_text(scenes)
    common = ["--dataset", "quickstart", "--config.splits.train.near_duplicates=4", "--seed", "3",
              "--config.splits.test.near_duplicates=4"]
    both = generate.main([*common, "--out", str(tmp_path / "both"), "--input", f"test={tested}",
                          "--input", f"train={mixed}"])
    assert both["splits"]["test"]["images"] == 6 and both["splits"]["train"]["images"] == 4
    assert both["left_out"] == {"train": {"image: near-duplicate of one in test": 6}}
    alone = [*common, "--out", str(tmp_path / "alone"), "--split", "train", "--input", mixed]
    generate.main([*common, "--out", str(tmp_path / "exam"), "--split", "test", "--input", tested])
    apart = generate.main([*alone, "--exclude", str(tmp_path / "exam")])
    assert apart["left_out"] == {"train": {"image: near-duplicate of one in exam": 6}}
    with pytest.raises(UserError, match="--exclude takes datasets"):
        generate.main([*alone, "--overwrite", "--exclude", str(tmp_path / "nowhere")])


def test_moved_inputs_give_the_same_bytes(tmp_path):
    found = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        text = scene_file(tmp_path / name, "s", 40)
        generate.main(["--dataset", "3di_ft1m", "--out", str(tmp_path / name / "d"), "--input", text,
                       "--questions", "200", "--workers", "1"])
        found.append({p.name: p.read_bytes() for p in (tmp_path / name / "d").iterdir()})
    assert found[0] == found[1] and "card.json" in found[0]
    assert json.loads(found[0]["card.json"])["splits"]["train"]["questions"] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "3di_pb_in166k"], "'imagenet3d' needs --input"),
        (["--dataset", "3di_ft1m", "--input", "scenes:none.jsonl"], r"none\.jsonl does not exist"),
        (["--dataset", "captions", "--input", "somewhere"], "does not say what it is"),
        (["--dataset", "captions", "--questions", "0"], "--questions '0'"),
        (["--dataset", "captions", "--split", "dev"], "no split 'dev'"),
        (["--dataset", "spatial_vqa", "--source", "rendered", "--count", "3", "--config.splits.test.quotas.tall=3"],
         "tall"),
    ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        generate.main([*arguments, "--out", "x"])
    assert list(tmp_path.iterdir()) == []


def make_apollo(root):
    from tests.sources.test_apollo import CAR, PLACE

    for part in ("RGB", "Object_GroundTruth"):
        (root / part / PLACE).mkdir(parents=True)
    Image.new("RGB", (1920, 1080)).save(root / "RGB" / PLACE / "0000000.jpg")
    far = "0 13 Bus 0.00 0 1.85 900 150 1100 320 3.00 9.00 2.60 4.00 0.85 40.00 2.10"
    (root / "Object_GroundTruth" / PLACE / "0000000.txt").write_text(f"{CAR}\n{far}\n")


def make_imagenet3d(root):
    from tests.sources.test_imagenet3d import ENTRY, HEIGHT, WIDTH

    for category, azimuth in (("car", 0.1), ("chair", 3.1), ("bottle", 1.0)):
        for part in ("images", "annotations"):
            (root / part / category).mkdir(parents=True)
        (root / "lists").mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / category / "n1.JPEG")
        entries = [{**ENTRY, "class": category, "azimuth": azimuth}]
        np.savez(root / "annotations" / category / "n1.npz", annotations=entries)
        (root / "lists" / f"{category}_imagenet_train.txt").write_text("n1\n")


def make_bop(root):
    from tests.sources.test_bop import INFO, LOOKS_DOWN, MODEL, TRUTH, K

    scene = root / "train" / "000002"
    (scene / "rgb").mkdir(parents=True)
    (root / "models").mkdir()
    (root / "models/models_info.json").write_text(json.dumps({"1": MODEL, "5": MODEL}))
    Image.new("RGB", (640, 480)).save(scene / "rgb/000007.png")
    far = {**TRUTH, "obj_id": 5, "cam_t_m2c": [300.0, 100, 1500]}
    (scene / "scene_camera.json").write_text(json.dumps(
        {"7": {"cam_K": K, "depth_scale": 1.0, "cam_R_w2c": LOOKS_DOWN}}))
    (scene / "scene_gt.json").write_text(json.dumps({"7": [TRUTH, far]}))
    (scene / "scene_gt_info.json").write_text(json.dumps({"7": [INFO, {**INFO, "bbox_visib": [400, 260, 60, 50]}]}))


@pytest.mark.parametrize(
    ("kind", "make", "dataset", "asked", "not_asked"),
    [
        ("apollo", make_apollo, "3di_ft1m", {"closer_to_camera", "facing_camera"}, set()),
        # No lengths of ImageNet3D are comparable, and bottles have no front.
        ("imagenet3d", make_imagenet3d, "3di_pb_in166k", {"azimuth", "elevation", "facing_camera"},
         {"depth", "distance"}),
        ("bop", make_bop, "3di_ft1m", {"closer_to_camera"}, {"facing_camera", "on_which_side", "same_direction"}),
    ],
)
def test_every_source_through_the_door(kind, make, dataset, asked, not_asked, tmp_path):
    (tmp_path / "lm").mkdir()
    make(tmp_path / "lm")
    generate.main(["--dataset", dataset, "--input", f"{kind}:{tmp_path / 'lm'}", "--out", str(tmp_path / "d"),
                   "--workers", "1", "--config.splits.train.category_slack=100"])
    found = questions_of(tmp_path / "d", "train")
    types = {q.type for _, q in found}
    assert asked <= types and not not_asked & types
    assert all(recheck(q, scene_from_json(record.scene)) is None for record, q in found)
    if kind == "imagenet3d":
        assert not any(r.phrase == "bottle" for _, q in found if q.type in ("azimuth", "facing_camera")
                       for r in q.regions)
        assert any(r.phrase == "bottle" for _, q in found for r in q.regions)
