"""Any-resolution tiling by hand-made cases; against transformers in tests/convert/test_llava_next.py."""

import numpy as np
import pytest

from spatialllm_jax.data import tiling
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import Tiling
from spatialllm_jax.models.presets import preset

PINPOINTS = ((8, 16), (16, 8), (16, 16))


@pytest.mark.parametrize(("height", "width", "canvas"), [
    (10, 40, (8, 16)), (40, 10, (16, 8)), (50, 50, (16, 16)),
    (8, 8, (8, 16)),        # all keep every pixel: the smallest, then the first
    (4, 12, (8, 16)), (1, 100, (8, 16))])
def test_canvas(height, width, canvas):
    assert tiling.best_resolution(height, width, PINPOINTS) == canvas


def test_tiles_lie_in_reading_order_on_a_centred_black_canvas():
    image = np.full((5, 20, 3), 200, np.uint8)
    cut = tiling.tiles(image, PINPOINTS, 8)
    assert cut.shape == (3, 8, 8, 3) and cut.dtype == np.uint8
    assert (cut[0] == 200).all()                                   # the whole, squeezed
    canvas = np.concatenate([cut[1], cut[2]], axis=1)
    assert (canvas[2:6] == 200).all() and not canvas[:2].any() and not canvas[6:].any()


def test_layout_reads_rows_across_tiles_and_breaks_lines():
    # Side 2: base 0-3, tiles 4-7 and 8-11 beside each other, the break behind five images' tokens.
    assert tiling.layout(8, 16, PINPOINTS, 8, 2).tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 20, 6, 7, 10, 11, 20]
    # Borders of half a canvas: the upper and lower quarter of the tokens go.
    wide = tiling.layout(8, 64, PINPOINTS, 8, 4)
    assert wide[:16].tolist() == list(range(16)) and wide[16:].tolist() == [
        *range(20, 24), *range(36, 40), 80, *range(24, 28), *range(40, 44), 80]


def test_config_is_checked_and_survives_the_folder():
    nano = preset("nano_clip")
    size = nano.vision[0].image_size
    config = nano.replace(tiling=Tiling(((size, 2 * size), (2 * size, 2 * size))))
    assert config.num_slots == 5 and nano.num_slots == 1
    assert store.config_from_json(store.config_to_json(config)) == config
    with pytest.raises(UserError, match="not a multiple of the vision encoder's image_size"):
        nano.replace(tiling=Tiling(((size, size + 1),)))
    with pytest.raises(UserError, match=r"tiling\.pinpoints is"):
        Tiling(())
