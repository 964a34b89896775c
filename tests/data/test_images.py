"""Decoding, resizing with the boxes that follow, drawn regions."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Region

RNG = np.random.default_rng(0)


def encode(pixels, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def test_decode():
    pixels = RNG.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.decode(encode(pixels)), pixels)
    grey = encode(pixels[..., 0])
    np.testing.assert_array_equal(images.decode(grey), np.repeat(pixels[..., :1], 3, axis=2))
    smooth = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    jpeg = simplejpeg.encode_jpeg(smooth, quality=95, colorspace="RGB")
    assert np.abs(images.decode(jpeg).astype(int) - smooth).max() < 6
    assert images.image_size(jpeg) == (16, 16)


@pytest.mark.parametrize("data", [b"", b"no picture", encode(np.zeros((64, 64, 3), np.uint8))[:60]])
def test_broken_images_are_named(data):
    with pytest.raises(UserError, match=r"image cat\.jpg"):
        images.decode(data, "cat.jpg")


def test_truncated_jpeg_is_named():
    jpeg = simplejpeg.encode_jpeg(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8), colorspace="RGB")
    with pytest.raises(UserError, match=r"cat\.jpg"):
        images.decode(jpeg[:300], "cat.jpg")


@pytest.mark.parametrize("mode", ["pad", "square", "stretch"])
@pytest.mark.parametrize("shape", [(60, 120), (120, 60), (100, 100), (37, 91)])
def test_boxes_follow_pixels(mode, shape):
    """A bright block is found where the transform says its box went."""
    height, width = shape
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = width // 2 - 8, height // 2 - 6, width // 2 + 9, height // 2 + 8
    pixels[y1:y2, x1:x2] = 255
    squared, transform = images.resize(pixels, 168, mode)
    assert squared.shape == (168, 168, 3) and squared.dtype == np.uint8
    ys, xs = np.nonzero((squared > 160).all(-1))
    found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    np.testing.assert_allclose(transform.boxes(np.array([x1, y1, x2, y2])), found, atol=1.6)


@pytest.mark.parametrize("seed", range(40))
def test_passes_one_by_one_give_the_pixels_of_a_square_canvas(seed):
    """Wide pictures are scaled across before the border is added: not one pixel may differ from the plain way."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 200, 2)
    picture, size, side = rng.integers(0, 256, (height, width, 3), dtype=np.uint8), 56, max(height, width)
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = images.MEAN_COLOUR
    left, top = (side - width) // 2, (side - height) // 2
    canvas[top:top + height, left:left + width] = picture
    expected = np.asarray(Image.fromarray(canvas).resize((size, size), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images.resize(picture, size, "pad")[0], expected)


def test_padding_has_the_mean_colour_and_is_centred():
    squared, _ = images.resize(np.full((50, 100, 3), 255, np.uint8), 100, "pad")
    assert (squared[:24] == images.MEAN_COLOUR).all() and (squared[76:] == images.MEAN_COLOUR).all()
    assert (squared[27:73] == 255).all()
    with pytest.raises(UserError, match="mode"):
        images.resize(squared, 10, "fit")


def test_square_is_a_centre_crop():
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[:, 25:75] = 200
    squared, _ = images.resize(pixels, 50, "square")
    assert (squared == 200).all()


def test_regions_are_drawn_where_they_are():
    image = np.full((168, 168, 3), 128, np.uint8)
    regions = (Region("0", (0.1, 0.2, 0.5, 0.6), "a"), Region("1", (0.55, 0.2, 0.95, 0.9), "b"))
    drawn = images.draw_regions(image, regions)
    assert (image == 128).all()  # the original is untouched
    for number, region in enumerate(regions):
        ys, xs = np.nonzero((drawn == images.REGION_COLOURS[number]).all(-1))
        x1, _, x2, y2 = np.array(region.bbox) * 168
        assert abs(xs.min() - x1) <= 1 and abs(xs.max() - x2) <= 1 and abs(ys.max() - y2) <= 1
    inside = drawn[60:90, 30:70]
    assert (inside == 128).all()  # the object stays visible


def test_digits_differ():
    """Two labels with the same colour still differ by their digit."""
    image = np.full((168, 168, 3), 128, np.uint8)
    tags = [images.draw_regions(image, [Region(label, (0.2, 0.3, 0.8, 0.8), "a")]) for label in ("0", "10")]
    assert (tags[0] != tags[1]).any(-1).sum() > 20


def test_load():
    pixels = np.full((60, 120, 3), 90, np.uint8)
    mark = Region("3", (0.0, 0.0, 1.0, 1.0), "all")
    plain = images.load(encode(pixels), 56)
    marked = images.load(encode(pixels), 56, marks=[mark])
    assert plain.shape == marked.shape == (56, 56, 3)
    ys, xs = np.nonzero((marked == images.REGION_COLOURS[3]).all(-1))
    assert abs(ys.max() - 42) <= 1 and xs.max() == 55  # the region followed the padding
