"""Patch words: which words lie on which cell, worked out by hand."""

import dataclasses

import numpy as np
import pytest

from spatialllm_jax.data import patch_words, pipeline
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.samples import SourceConfig, TextConfig
from spatialllm_jax.data.storage import write_dataset
from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import rotation_from_viewpoint
from spatialllm_jax.scene.serialize import scene_to_json
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from tests.conftest import tiny_records

ALL = ("category", "colour", "azimuth", "distance")


def thing(category, bbox, center, azimuth, colour=None, has_front=True):
    center = np.array(center, float)
    box = Box3D(center, np.ones(3), rotation_from_viewpoint(azimuth, 10.0, 0.0, center))
    return Object3D(category=category, phrase=category, box=box, bbox2d=np.array(bbox, float), has_front=has_front,
                    visibility=1.0, truncation=0.0, attributes={"colour": colour} if colour else {})


def record(objects, width=80, height=80, metric=True):
    camera = Camera(width, height, np.array([[80.0, 0, width / 2], [0, 80.0, height / 2], [0, 0, 1]]), None)
    scene = Scene(image=SceneImage("a"), camera=camera, objects=tuple(objects), metric=metric, source="hand")
    return ImageRecord("a", b"", width, height, (), scene_to_json(scene))


def test_cells_of_a_square_picture():
    # 4 x 4 cells of 20 px, centres at 10, 30, 50, 70. The dog's smaller box lies over the sofa's.
    sofa = thing("sofa", (0, 20, 60, 80), (0, 0, 5.9), 180.0, "red")
    dog = thing("dog", (40, 40, 80, 60), (1, 0, 3.2), 90.0)
    for objects in ([sofa, dog], [dog, sofa]):
        texts = np.array(patch_words.patch_texts(record(objects), ALL, 4)).reshape(4, 4)
        s, d, n = "sofa red back 5", "dog left 3", "nothing"
        assert texts.tolist() == [[n, n, n, n], [s, s, s, n], [s, s, d, d], [s, s, s, n]]


@pytest.mark.parametrize("azimuth, word", [(0, "front"), (44, "front"), (46, "left"), (90, "left"),
                                           (200, "back"), (314, "right"), (350, "front")])
def test_azimuth_is_one_of_four_sides(azimuth, word):
    assert patch_words.describe(thing("car", (0, 0, 9, 9), (0.3, 0.2, 4), azimuth), ("azimuth",)) == word


def test_only_what_is_known_is_said():
    lamp = thing("lamp", (0, 0, 80, 80), (0, 0, 12.7), 0.0, has_front=False)
    assert patch_words.patch_texts(record([lamp]), ALL, 1) == ["lamp 12"]
    assert patch_words.patch_texts(record([lamp], metric=False), ALL, 1) == ["lamp"]
    assert patch_words.patch_texts(record([lamp]), ("azimuth",), 1) == ["nothing"]


@pytest.mark.parametrize("resize, expected", [
    # 160 x 80: padded above and below to 160 x 160; cropped to the middle 80 x 80; or squeezed.
    ("pad", ["nothing", "nothing", "cat", "nothing"]), ("square", ["nothing", "nothing", "nothing", "nothing"]),
    ("stretch", ["nothing", "nothing", "cat", "nothing"])])
def test_boxes_move_with_the_picture(resize, expected):
    cat = thing("cat", (0, 40, 50, 80), (0, 0, 2), 0.0)
    assert patch_words.patch_texts(record([cat], 160, 80), ("category",), 2, resize) == expected


def test_targets_are_the_words_tokens(tiny_tokenizer):
    cat = thing("cat", (0, 0, 80, 40), (0, 0, 2.5), 0.0)
    targets = patch_words.patch_targets(record([cat]), tiny_tokenizer, ("category", "distance"), 2)
    ids = tiny_tokenizer.encode("cat 2")
    nothing = tiny_tokenizer.encode("nothing")[:patch_words.MAX_WORDS]
    assert targets.shape == (4, patch_words.MAX_WORDS)
    for cell, wanted in enumerate((ids, ids, nothing, nothing)):
        assert targets[cell].tolist() == [*wanted, *[-1] * (patch_words.MAX_WORDS - len(wanted))]


def test_batches_carry_the_words_of_their_own_pictures(tmp_path, tiny_tokenizer):
    records = []
    for index, plain in enumerate(tiny_records("train", 8)):
        described = record([thing(("cat", "dog")[index % 2], (0, 0, 24, 20), (0, 0, 2 + index), 0.0)], 24, 20)
        records.append(dataclasses.replace(plain, scene=described.scene))
    write_dataset(tmp_path / "data", "hand", {"train": records})
    path = str(tmp_path / "data")
    worded = SourceConfig("a", path, {"colour": 1.0}, patch_words=("category",))
    silent = SourceConfig("b", path, {"colour": 1.0})
    rows = pipeline.RowConfig(4, 40, 6, 16, resize="stretch")
    stream = pipeline.build([worded, silent], TextConfig("compact", 40, 4), rows, tiny_tokenizer, seed=0,
                            patches=pipeline.PatchMap(2, "stretch"))
    names = {tiny_tokenizer.encode(name): name for name in ("cat", "dog")}
    seen = {"worded": 0, "silent": 0, "empty": 0}
    for batch, _ in zip(stream, range(6), strict=False):
        assert batch["patch_targets"].shape == (4, 6 * 4, patch_words.MAX_WORDS)
        for row in range(4):
            for slot in range(6):
                words = batch["patch_targets"][row, slot * 4:(slot + 1) * 4]
                inside = batch["segment_ids"][row] == slot + 1
                if not batch["image_mask"][row, slot]:
                    assert (words == -1).all() and not inside.any()
                    seen["empty"] += 1
                elif (batch["source_ids"][row][inside] == 1).all():
                    assert (words == -1).all()
                    seen["silent"] += 1
                else:
                    found = {tuple(t for t in cell if t >= 0) for cell in words.tolist()}
                    # The picture's blue value ends in its number (see `tiny_records`); even ones show cats.
                    number = int(batch["images"][row, slot, 8, 8, 2]) % 10
                    assert {names[ids] for ids in found} == {("cat", "dog")[number % 2]}
                    seen["worded"] += 1
    assert min(seen.values()) > 0, seen


def test_mistakes_are_named():
    with pytest.raises(UserError, match="image a has no scene"):
        patch_words.patch_texts(dataclasses.replace(record([]), scene=""), ALL, 2)
    with pytest.raises(UserError, match="unknown patch words \\['colours'\\]; choose from category, colour"):
        SourceConfig("a", "data", {"colour": 1.0}, patch_words=("colours",))
