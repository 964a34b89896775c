"""Folders of pictures as people have them: every picture once, whatever it is and whenever the run was killed."""

import collections
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from launch import generate, inspect
from spatialllm_jax.engines import Local
from spatialllm_jax.errors import UserError
from spatialllm_jax.sources import scene_file
from spatialllm_jax.sources.loaded import collect
from spatialllm_jax.sources.pseudo_labels.config import Judging, PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.folder import label_folder
from spatialllm_jax.sources.pseudo_labels.interfaces import Calibration, DepthMap, Detections, Estimators, Masks
from spatialllm_jax.sources.pseudo_labels.journal import Journal
from spatialllm_jax.sources.pseudo_labels.pictures import picture_names, read_picture

CONFIG = PseudoLabelConfig(judging=Judging(depth_error=0.0))


class Blocks:
    """Estimators for pictures of dark rectangles on white: depth is 2 m inside and a wall at 6 m outside."""

    def __init__(self, on_depth=None):
        self._on_depth = on_depth

    def tags(self, image):
        return ("block",)

    def _mask(self, image):
        return image.mean(axis=2) < 100

    def detect(self, image, tags):
        mask = self._mask(image)
        if not mask.any():
            return Detections(np.zeros((0, 4)), np.zeros(0), ())
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        return Detections(np.array([box], float), np.ones(1), ("block",))

    def segment(self, image, boxes):
        return Masks(self._mask(image)[None], np.ones(1))

    def depth(self, image):
        if self._on_depth is not None:
            self._on_depth(image)
        depth = np.where(self._mask(image), 2.0, 6.0)
        return DepthMap(np.full_like(depth, np.nan) if image[0, 0, 0] == 255 and image[0, 0, 2] < 200 else depth)

    def calibrate(self, image, depth, masks):
        height, width = image.shape[:2]
        intrinsics = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        return Calibration(intrinsics, np.array([0, 1.0, 0]))


def open_blocks(config, on_depth=None):
    blocks = Blocks(on_depth)
    return Estimators(blocks, blocks, blocks, blocks, blocks)


def block(shade=20, size=(96, 72), mode="RGB"):
    pixels = np.full((size[1], size[0], 3), 250, np.uint8)
    pixels[size[1] // 3: 2 * size[1] // 3, size[0] // 4: 3 * size[0] // 4] = shade
    return Image.fromarray(pixels).convert(mode)


def write_zoo(folder):
    """One file of each kind; what is expected of it by name: "" for a scene, else the reason."""
    (folder / "sub").mkdir(parents=True)
    for k in range(4):
        block(10 * k).save(folder / f"plain{k}.jpg")
    block(mode="L").save(folder / "grey.png")
    block(mode="CMYK").save(folder / "cmyk.jpg")
    block(size=(3000, 2200)).save(folder / "huge.jpg")
    block().save(folder / "sub" / "moving.gif", save_all=True, append_images=[block(90)])
    block().quantize(8).save(folder / "palette.png")
    grey = np.asarray(block(mode="L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(folder / "sixteen.png")
    clear = block(mode="RGBA")
    clear.putalpha(255)
    clear.save(folder / "alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    block().save(folder / "turned.jpg", exif=turned)
    whole = (folder / "plain0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    Image.fromarray(np.full((72, 96, 3), 250, np.uint8)).save(folder / "nothing.jpg")
    yellow = np.asarray(block()).copy()
    yellow[0, 0] = (255, 255, 0)
    Image.fromarray(yellow).save(folder / "nan.png")
    block(size=(20, 16)).save(folder / "tiny.png")
    (folder / "notes.txt").write_text("read me")
    bad = {"cut.jpg": "image: cannot be decoded", "empty.jpg": "image: empty file", "text.png":
           "image: cannot be decoded", "nothing.jpg": "image: no object found", "nan.png": "depth: no finite value",
           "tiny.png": "image: too small"}
    return {name: bad.get(name, "") for name in picture_names(folder)[0]}


def journal(labels):
    lines = (labels / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_every_file_is_a_scene_or_named_with_its_reason(tmp_path):
    expected = write_zoo(tmp_path / "zoo")
    scenes, ignored = label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), opener=open_blocks,
                                   progress=False)
    done = journal(tmp_path / "labels")
    assert sorted(d["name"] for d in done) == sorted(expected)
    assert {d["name"]: d.get("reason", "") for d in done} == expected
    assert ignored == {**collections.Counter(reason for reason in expected.values() if reason),
                       "file: no picture by its name": 1}
    log = (tmp_path / "labels" / "log.tsv").read_text()
    for name, reason in expected.items():
        if reason:
            assert f"{name}\t{reason}" in log
    assert "cmyk.jpg\tpicture: CMYK pixels" in log and "sub/moving.gif\tpicture: GIF" in log
    assert "turned as its EXIF data says" in log and "huge.jpg\tpicture: made smaller" in log
    # The scene file is one: pictures are found, sizes agree, and each is plain RGB of eight bits.
    found = collect(scene_file.read, scenes, "train")
    assert sorted(s.image.id for s in found.scenes) == sorted(n for n, reason in expected.items() if not reason)
    for scene in found.scenes:
        with Image.open(io.BytesIO(scene.image.read())) as picture:
            assert picture.size == (scene.camera.width, scene.camera.height) and picture.mode in ("RGB", "L")
        assert max(scene.camera.width, scene.camera.height) <= CONFIG.max_side
        assert scene.objects[0].category == "block" and scene.objects[0].box.center[2] == pytest.approx(2, abs=0.05)
    by_name = {s.image.id: s for s in found.scenes}
    assert (by_name["turned.jpg"].camera.width, by_name["turned.jpg"].camera.height) == (72, 96)


@pytest.mark.parametrize("name", ["sixteen.png", "grey.png", "cmyk.jpg", "palette.png", "alpha.png", "sub/moving.gif"])
def test_pixels_are_those_of_the_picture(tmp_path, name):
    write_zoo(tmp_path / "zoo")
    read = read_picture(tmp_path / "zoo" / name, 1600)
    np.testing.assert_allclose(read.picture.astype(int), np.asarray(block()).astype(int), atol=12)
    assert bool(read.changes) == (name != "grey.png")


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    """Stopped after each number of pictures, a torn line at the end: the same files as in one go, each picture once."""
    write_zoo(tmp_path / "zoo")
    whole, ignored = label_folder(tmp_path / "zoo", tmp_path / "whole", CONFIG, Local(), opener=open_blocks,
                                  progress=False)
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 5, len(lines) - 1):
        labels = tmp_path / f"cut{kept}"
        labels.mkdir()
        (labels / "journal.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:17])
        calls = []
        again, told = label_folder(tmp_path / "zoo", labels, CONFIG, Local(), progress=False,
                                   opener=lambda config, calls=calls: open_blocks(config, lambda _: calls.append(1)))
        assert again.read_bytes() == whole.read_bytes() and told == ignored
        names = [d["name"] for d in journal(labels)]
        assert len(names) == len(set(names)) == len(lines) - 1
        assert len(calls) <= len(lines) - kept
    nothing_to_do, _ = label_folder(tmp_path / "zoo", tmp_path / "whole", CONFIG, Local(), progress=False,
                                    opener=lambda config: pytest.fail("all pictures are done"))
    assert nothing_to_do.read_bytes() == whole.read_bytes()


def test_labels_of_other_settings_are_not_mixed(tmp_path):
    write_zoo(tmp_path / "zoo")
    label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), opener=open_blocks, progress=False)
    other = dataclasses.replace(CONFIG, max_side=500)
    with pytest.raises(UserError, match="--labels"):
        label_folder(tmp_path / "zoo", tmp_path / "labels", other, Local(), opener=open_blocks, progress=False)


def test_settings_under_which_nothing_was_done_bind_nobody(tmp_path):
    write_zoo(tmp_path / "zoo")

    def missing(config):
        raise UserError("no such model")

    with pytest.raises(UserError, match="no such model"):
        label_folder(tmp_path / "zoo", tmp_path / "new" / "labels", CONFIG, Local(), opener=missing, progress=False)
    assert not (tmp_path / "new").exists()
    (tmp_path / "labels").mkdir()
    with pytest.raises(UserError, match="no such model"):
        label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), opener=missing, progress=False)
    assert list((tmp_path / "labels").iterdir()) == []
    other = dataclasses.replace(CONFIG, max_side=500)
    label_folder(tmp_path / "zoo", tmp_path / "labels", other, Local(), opener=open_blocks, progress=False)
    head = (tmp_path / "labels" / "journal.jsonl").read_text().splitlines()[0]
    assert json.loads(head)["settings"]["max_side"] == 500


def test_two_runs_at_once_are_one_too_many(tmp_path):
    write_zoo(tmp_path / "zoo")
    running = Journal(tmp_path / "labels", tmp_path / "zoo", {})
    with pytest.raises(UserError, match="another run"):
        Journal(tmp_path / "labels", tmp_path / "zoo", {})
    running.finish(set())
    Journal(tmp_path / "labels", tmp_path / "zoo", {})


@pytest.mark.parametrize("place, word", [("afile", "cannot be written"), ("afile/labels", "cannot be written"),
                                         ("zoo/labels", "among the pictures"), ("mine", "in the way")])
def test_a_place_that_cannot_hold_labels_is_told(tmp_path, place, word):
    write_zoo(tmp_path / "zoo")
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "afile").write_text("mine")
    with pytest.raises(UserError, match=f"{word}.*--labels"):
        label_folder(tmp_path / "zoo", tmp_path / place, CONFIG, Local(), opener=open_blocks, progress=False)
    assert not (tmp_path / "zoo" / "labels").exists() and len(list((tmp_path / "mine").iterdir())) == 1


def test_a_damaged_journal_is_told(tmp_path):
    write_zoo(tmp_path / "zoo")
    label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), opener=open_blocks, progress=False)
    with (tmp_path / "labels" / "journal.jsonl").open("a") as file:
        file.write("not JSON\n")
    with pytest.raises(UserError, match="damaged at byte"):
        label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), opener=open_blocks, progress=False)


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "zoo" / "sub").mkdir(parents=True)
    (tmp_path / "more").mkdir()
    block().save(tmp_path / "zoo" / "sub" / "a.jpg")
    block().save(tmp_path / "more" / "b.jpg")
    (tmp_path / "zoo" / "sub" / "up").symlink_to(tmp_path / "zoo")
    (tmp_path / "zoo" / "sub" / "self").symlink_to(".")
    (tmp_path / "zoo" / "aside").symlink_to(tmp_path / "more")
    assert picture_names(tmp_path / "zoo") == (["aside/b.jpg", "sub/a.jpg"], 0)


def test_pictures_that_came_or_went(tmp_path):
    """Labels of pictures that are gone stay in the journal and out of the scenes; new ones are added."""
    write_zoo(tmp_path / "zoo")
    label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), opener=open_blocks, progress=False)
    (tmp_path / "zoo" / "plain0.jpg").unlink()
    block(30).save(tmp_path / "zoo" / "a_new_one.jpg")
    scenes, _ = label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), opener=open_blocks, progress=False)
    names = [json.loads(line)["image_id"] for line in scenes.read_text().splitlines()]
    assert "a_new_one.jpg" in names and "plain0.jpg" not in names and names == sorted(names)


def test_a_model_that_breaks_on_a_picture_is_not_the_end(tmp_path):
    write_zoo(tmp_path / "zoo")

    def on_depth(image):
        if image.shape[0] > 1000:
            raise RuntimeError("too large for this model")

    _, ignored = label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), progress=False,
                              opener=lambda config: open_blocks(config, on_depth))
    assert ignored["error: RuntimeError"] == 1
    assert "huge.jpg\terror: RuntimeError\ttoo large for this model" in (tmp_path / "labels" / "log.tsv").read_text()


def test_a_model_that_breaks_on_everything_is(tmp_path):
    (tmp_path / "many").mkdir()
    for k in range(25):
        block().save(tmp_path / "many" / f"{k}.jpg")

    def on_depth(image):
        raise RuntimeError("no kernel")

    with pytest.raises(UserError, match=r"20 pictures in a row.*no kernel"):
        label_folder(tmp_path / "many", tmp_path / "labels", CONFIG, Local(), progress=False,
                     opener=lambda config: open_blocks(config, on_depth))


@pytest.mark.parametrize("prepare, word", [(lambda p: None, "no folder"), (lambda p: p.mkdir(), "no picture")])
def test_a_folder_without_pictures_is_told(tmp_path, prepare, word):
    prepare(tmp_path / "zoo")
    with pytest.raises(UserError, match=word):
        label_folder(tmp_path / "zoo", tmp_path / "labels", CONFIG, Local(), opener=open_blocks)


@pytest.fixture(scope="module")
def small_models(tmp_path_factory):
    pytest.importorskip("torch", reason="the models are torch's: pip install torch")
    from configs.data import families
    from spatialllm_jax.sources.pseudo_labels.models import small

    return small.write_small_models(tmp_path_factory.mktemp("small"), tuple(families.LARGEST))


def arguments(models, pictures, out):
    """Random models are unsure of everything; without filters they find something in every picture."""
    settings = {**{f"models.{k}": v for k, v in dataclasses.asdict(models).items()}, "filters.confidence": 0.0,
                "filters.box_threshold": 0.0, "filters.text_threshold": 0.0, "judging.least_confidence": 1e-6,
                "judging.depth_error": 1e-4, "judging.hidden": 0.05, "judging.orientation_confidence": 0.0,
                "judging.orientation_error": 1e-3, "max_side": 160}
    return ["--dataset", "3di_pb_oi1m", "--input", str(pictures), "--out", str(out),
            *(f"--config.pseudo_labels.{k}={v}" for k, v in settings.items())]


def noise(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((128, 96), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg", quality=95)


def test_pictures_to_questions_with_real_models(tmp_path, small_models):
    """Folder -> labels -> questions -> dataset -> overlays, by the command; a second run makes nothing twice."""
    noise(tmp_path / "pictures", 3)
    done = generate.main(arguments(small_models, tmp_path / "pictures", tmp_path / "out"))
    assert done["splits"]["train"]["questions"] > 0 and done["splits"]["train"]["sources"].keys() == {"pseudo_labels"}
    checked = inspect.main([str(tmp_path / "out"), "--check"])
    assert checked["wrong"] == 0
    page = inspect.main([str(tmp_path / "out"), "--out", str(tmp_path / "page.html"), "--limit", "5"])
    assert (tmp_path / "page.html").stat().st_size > 5000 and page["questions"] == 5
    assert generate.main(arguments(small_models, tmp_path / "pictures", tmp_path / "out"))["reused"]
    shutil.rmtree(tmp_path / "out")
    stamp = (tmp_path / "out.labels" / "train-0" / "journal.jsonl").stat().st_mtime_ns
    generate.main(arguments(small_models, tmp_path / "pictures", tmp_path / "out"))
    assert (tmp_path / "out.labels" / "train-0" / "journal.jsonl").stat().st_mtime_ns == stamp


def test_missing_models_are_one_sentence_before_any_picture(tmp_path):
    pytest.importorskip("torch", reason="the models are torch's: pip install torch")
    noise(tmp_path / "pictures", 1)
    with pytest.raises(UserError, match="hf download IDEA-Research/grounding-dino-base"):
        generate.main(["--dataset", "3di_pb_oi1m", "--input", str(tmp_path / "pictures"), "--out",
                       str(tmp_path / "out"), f"--config.pseudo_labels.models.detector={tmp_path}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path, small_models):
    pytest.importorskip("ray", reason='needs ray: pip install -e ".[ray]"')
    noise(tmp_path / "pictures", 6)
    write_zoo(tmp_path / "pictures" / "zoo")
    for engine in ("local", "ray"):
        generate.main([*arguments(small_models, tmp_path / "pictures", tmp_path / engine), "--engine", engine])
    files = sorted(p.name for p in (tmp_path / "local").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "ray").iterdir())
    for name in files:
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes(), name
    scenes = [tmp_path / f"{engine}.labels" / "train-0" / "scenes.jsonl" for engine in ("local", "ray")]
    assert scenes[0].read_bytes() == scenes[1].read_bytes()
