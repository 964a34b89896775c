"""The closed-form count of operations against published sizes and against XLA's own count."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from spatialllm_jax.models import flops
from spatialllm_jax.models.connector import Connector
from spatialllm_jax.models.presets import CLIP_L_336, DINOV2_L_336, LLAMA3_8B, VICUNA_7B, preset
from spatialllm_jax.models.vit import ViT


@pytest.mark.parametrize(
    ("llm", "published"),
    # Parameters that Meta and LMSYS publish, without embeddings, head and norms.
    [(LLAMA3_8B, 8_030_261_248 - 2 * 128_256 * 4096 - 65 * 4096),
     (VICUNA_7B, 6_738_415_616 - 2 * 32_000 * 4096 - 65 * 4096)],
)
def test_decoder_matrices(llm, published):
    assert flops.linear_parameters(llm) == published


def executed(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("encoder", [CLIP_L_336, DINOV2_L_336])
def test_vision_against_xla(encoder):
    """XLA counts a scanned block once, so a single block is compared, at a narrower width."""
    small = dataclasses.replace(encoder, width=256, mlp_dim=1024, depth=1, num_heads=4, feature_layer=-1,
                                image_size=112, pretrain_grid=None)
    pixels = jnp.zeros((1, 112, 112, 3))
    params = ViT(small).init(jax.random.key(0), pixels)["params"]
    found = executed(lambda p, x: ViT(small).apply({"params": p}, x), params, pixels)
    # Norms, softmax and activations come on top, a few per cent at this width.
    assert flops.vision_flops(small) == pytest.approx(found, rel=0.06) and flops.vision_flops(small) < found


@pytest.mark.parametrize("name", ["tiny", "tiny_clip"])
def test_connector_against_xla(name):
    config = preset(name)
    features = jnp.zeros((1, config.num_patches, config.feature_channels))
    encoders = tuple((encoder.name, encoder.width) for encoder in config.vision)
    module = Connector(config.connector, encoders, config.llm.width)
    params = module.init(jax.random.key(0), features)["params"]
    found = executed(lambda p, x: module.apply({"params": p}, x), params, features)
    assert flops.connector_flops(config) == pytest.approx(found, rel=0.06) and flops.connector_flops(config) < found


def test_what_trains_costs_three_times():
    config = preset("spatialllm_8b")
    tune = flops.step_flops(config, trains_llm=True)
    align = flops.step_flops(config, trains_llm=False)
    assert tune.position / align.position == 1.5 and tune.pair == align.pair
    assert flops.step_flops(config, trains_llm=True, encodes=False).image < 0.15 * tune.image
    counts = {"positions": 1000, "pairs": 0, "supervised": 0, "images": 0}
    # The rule of thumb: 6 operations per parameter and token.
    assert tune.count(counts) == 6 * 1000 * flops.linear_parameters(config.llm)


def test_peaks():
    assert flops.peak("NVIDIA A100-SXM4-80GB") == 312e12 and flops.peak("TPU v5 lite") == 197e12
    assert flops.peak("TPU v5p") == flops.peak("TPU v5") == 459e12 and flops.peak("cpu") is None
