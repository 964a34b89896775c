"""Crops pixel by pixel, objects read from a folder in ImageNet3D's format, and their mirror images."""

from collections import Counter

import numpy as np
import pytest

from spatialllm_jax.data.images import MEAN_COLOUR
from spatialllm_jax.errors import UserError
from spatialllm_jax.pose import objects
from tests.pose import written

PICTURE = np.arange(20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)


def test_a_crop_is_the_pixels_around_its_box():
    crop = objects.square_crop(PICTURE, (10, 6, 18, 12), 8, context=1.0)       # 8 wide, 6 high: rows 5 to 12
    np.testing.assert_array_equal(crop, PICTURE[5:13, 10:18])
    wider = objects.square_crop(PICTURE, (10, 6, 18, 12), 16, context=2.0)
    np.testing.assert_array_equal(wider, PICTURE[1:17, 6:22])


def test_what_lies_outside_has_the_mean_colour():
    crop = objects.square_crop(PICTURE, (-4, -4, 4, 4), 8, context=1.0)
    np.testing.assert_array_equal(crop[4:, 4:], PICTURE[:4, :4])
    assert (crop[:4] == MEAN_COLOUR).all() and (crop[:, :4] == MEAN_COLOUR).all()


def test_crops_are_scaled():
    flat = np.full((20, 30, 3), 77, np.uint8)
    crop = objects.square_crop(flat, (5, 5, 10, 10), 14)
    assert crop.shape == (14, 14, 3) and (crop == 77).all()


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (40, 5, 50, 9), (-9, 5, -1, 9), (0, 0, np.nan, 5)])
def test_boxes_that_show_nothing(box):
    with pytest.raises(UserError, match="shows nothing of a picture of 30 x 20"):
        objects.square_crop(PICTURE, box, 8)


def test_objects_of_a_folder(tmp_path):
    folder, ignored = written.write(tmp_path / "data", train=6, val=3), Counter()
    found = objects.read(folder, "train")
    assert sorted(item.category for item in found) == ["car", "car", "chair", "chair", "table", "table"]
    car = next(item for item in found if item.category == "car")
    assert car.bbox == (8, 8, 40, 40) and car.angles[1:] == pytest.approx((10, 0), abs=1e-4)
    crop = car.crop(16, 0.5)                # inside the square alone
    np.testing.assert_allclose(crop.mean((0, 1)), written.colour_of(car.angles[0]), atol=1)
    fronted = objects.read(folder, "train", ignored, fronts_only=True)
    assert {item.category for item in fronted} == {"car", "chair"} and ignored["object: no semantic front"] == 2
    assert len(objects.read(folder, "train", limit=2)) == 2 and len(objects.read(folder, "val")) == 3
    with pytest.raises(UserError, match="no folder images"):
        objects.read(tmp_path, "train")


def test_mirror_images_and_jitter(tmp_path):
    folder = written.write(tmp_path / "data", train=3, val=1)
    found = objects.read(folder, "train")
    shown = objects.for_training(found, mirror=True, jitter=False)
    assert len(shown) == 6 and len({item.id for item in shown}) == 6
    for plain, flipped in zip(shown[::2], shown[1::2], strict=True):
        np.testing.assert_array_equal(flipped.crop(16, 1.1), plain.crop(16, 1.1)[:, ::-1])
        assert (plain.angles[0] + flipped.angles[0]) % 360 == pytest.approx(0, abs=1e-6)
        assert flipped.angles[1:] == (plain.angles[1], -plain.angles[2])
    moved = objects.for_training(found, mirror=False, jitter=True)[0]
    assert not np.array_equal(moved.crop(48, 1.5), shown[0].crop(48, 1.5))
    np.testing.assert_array_equal(moved.crop(48, 1.5), moved.crop(48, 1.5))
