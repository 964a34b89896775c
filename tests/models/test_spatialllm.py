"""The whole model at its smallest: packing, branches, cache, LoRA, remat, mixing, initialisation."""

import dataclasses
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import Mask
from spatialllm_jax.models.clip_text import CLIP, init_clip
from spatialllm_jax.models.config import ConnectorConfig, LoRAConfig
from spatialllm_jax.models.connector import resample
from spatialllm_jax.models.linear import merge_lora
from spatialllm_jax.models.llama import init_cache
from spatialllm_jax.models.presets import CLIP_PRESETS, PRESETS, clip_preset, preset
from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params, init_params

NANO = preset("nano")
N = NANO.connector.num_tokens


@pytest.fixture(scope="module")
def params():
    return init_params(NANO, jax.random.key(0))


def pictures(rows, count=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, count, 16, 16, 3), dtype=np.uint8)


@partial(jax.jit, static_argnums=0)
def run(config, params, inputs):
    return SpatialLLM(config).apply({"params": params}, **inputs)


def row(tokens, image_at=None, segment=1):
    """Inputs of one plain row; the image's tokens start at `image_at`."""
    tokens = np.asarray(tokens)[None]
    index = np.full_like(tokens, -1)
    if image_at is not None:
        index[0, image_at:image_at + N] = np.arange(N)
    return dict(tokens=tokens, positions=np.arange(tokens.shape[1])[None],
                segment_ids=np.full_like(tokens, segment), branch_ids=np.zeros_like(tokens), image_index=index)


def random_tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, 64, length)


def packed(seed=0):
    """Two samples of 12 and 9 tokens, each with an image, and 3 of padding, in a row of 24."""
    inputs = row(random_tokens(24, seed))
    inputs["segment_ids"][0] = [1] * 12 + [2] * 9 + [0] * 3
    inputs["positions"][0] = [*range(12), *range(9), 0, 0, 0]
    inputs["image_index"][0, 1:1 + N] = np.arange(N)
    inputs["image_index"][0, 14:14 + N] = N + np.arange(N)
    return {**inputs, "images": pictures(1, 2)}


def test_packed_samples_equal_rows_of_their_own(params):
    both = packed()
    out = run(NANO, params, both)
    for start, length, image, at in ((0, 12, 0, 1), (12, 9, 1, 2)):
        alone = run(NANO, params, {**row(both["tokens"][0, start:start + length], at),
                                   "images": both["images"][:, image:image + 1]})
        np.testing.assert_allclose(out[0, start:start + length], alone[0], atol=2e-5)


@pytest.mark.parametrize("change", ["token", "image"])
def test_no_leak_across_segments(params, change):
    """Change the second sample: the first one's outputs are the same to the bit."""
    before, after = packed(), packed()
    if change == "token":
        after["tokens"][0, 19] += 1
    else:
        after["images"][0, 1] = 255 - after["images"][0, 1]
    a, b = run(NANO, params, before), run(NANO, params, after)
    np.testing.assert_array_equal(a[0, :12], b[0, :12])
    assert np.abs(np.asarray(a - b))[0, 19:21].max() > 1e-3


def test_padding_changes_nothing_and_stays_finite(params):
    before, after = packed(), packed()
    after["tokens"][0, 21:] = 5
    a, b = run(NANO, params, before), run(NANO, params, after)
    np.testing.assert_array_equal(a[0, :21], b[0, :21])
    assert np.isfinite(a).all() and np.isfinite(b).all()


def branching():
    """A trunk of 8 (with image) and branches of 5, 4 and 3 that restart at position 8."""
    inputs = row(random_tokens(20, 3), 1)
    inputs["branch_ids"][0] = [0] * 8 + [1] * 5 + [2] * 4 + [3] * 3
    inputs["positions"][0] = [*range(8), *range(8, 13), *range(8, 12), *range(8, 11)]
    return {**inputs, "images": pictures(1)}


def test_branches_equal_rows_of_their_own(params):
    tree = branching()
    out = run(NANO, params, tree)
    for start, end in ((8, 13), (13, 17), (17, 20)):
        take = [*range(8), *range(start, end)]
        alone = run(NANO, params, {**row(tree["tokens"][0, take], 1), "images": tree["images"]})
        np.testing.assert_allclose(out[0, take], alone[0], atol=2e-5)


def test_no_leak_across_branches(params):
    before, after = branching(), branching()
    after["tokens"][0, 10] += 1
    a, b = run(NANO, params, before), run(NANO, params, after)
    np.testing.assert_array_equal(np.delete(a[0], [10, 11, 12], 0), np.delete(b[0], [10, 11, 12], 0))
    assert (np.abs(np.asarray(a - b))[0, 10:13].max(axis=-1) > 1e-3).all()


def test_cache_equals_no_cache(params):
    """Prefill 11 with the image, a chunk of 4, then one by one, in a cache with slots to spare."""
    inputs = {**row(random_tokens(20, 5), 1), "images": pictures(1)}
    expected = run(NANO, params, inputs)
    model, slots = SpatialLLM(NANO), 32
    visual = model.apply({"params": params}, inputs["images"], method="visual_tokens")
    index = jnp.arange(slots)[None]

    @jax.jit
    def step(cache, tokens, positions, image_index, start):
        length = tokens.shape[1]
        ones = jnp.ones((1, length), jnp.int32)
        mask = Mask(ones, (index < start + length).astype(jnp.int32), 0 * ones, 0 * index,
                    start + jnp.arange(length)[None], index)
        return model.apply({"params": params}, tokens, positions, mask, cache, start, visual, image_index,
                           method="decode")

    cache, got = init_cache(NANO.llm, 1, slots), []
    for start, end in [(0, 11), (11, 15), *((t, t + 1) for t in range(15, 20))]:
        part = [inputs[key][:, start:end] for key in ("tokens", "positions", "image_index")]
        hidden, cache = step(cache, *part, start)
        got.append(hidden)
    assert cache.length == slots
    np.testing.assert_allclose(np.concatenate(got, axis=1), expected, atol=2e-5)


@pytest.fixture(scope="module")
def adapted():
    """Nano with LoRA on both towers, B away from zero so that it matters."""
    config = dataclasses.replace(NANO, vision_lora=LoRAConfig(2, 6.0, 0.3), llm_lora=LoRAConfig(3, 3.0, 0.3))
    params = init_params(config, jax.random.key(0))
    shift = lambda path, x: x + 0.1 if path[-1].key == "lora_b" else x  # noqa: E731
    return config, jax.tree_util.tree_map_with_path(shift, params)


def test_merged_lora_computes_the_same(adapted):
    config, params = adapted
    plain = dataclasses.replace(config, vision_lora=None, llm_lora=None)
    merged = merge_lora(params, config)
    assert jax.tree.structure(merged) == jax.tree.structure(abstract_params(plain))
    inputs = packed()
    applied = run(config, params, inputs)
    np.testing.assert_allclose(run(plain, merged, inputs), applied, atol=5e-5)
    off = jax.tree_util.tree_map_with_path(lambda p, x: 0 * x if p[-1].key == "lora_b" else x, params)
    assert np.abs(np.asarray(run(config, off, inputs) - applied)).max() > 1e-2
    with pytest.raises(UserError, match="lora"):
        merge_lora(params, dataclasses.replace(config, llm_lora=None))


def test_fresh_lora_changes_nothing():
    config = dataclasses.replace(NANO, llm_lora=LoRAConfig(2, 4.0, targets=r"llm/.*query$"))
    params = init_params(config, jax.random.key(0))
    found = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params) if "lora" in str(p)]
    assert len(found) == 2 and all("query" in path for path in found)
    merged = merge_lora(params, config)
    np.testing.assert_allclose(run(config, params, packed()), run(NANO, merged, packed()), atol=1e-6)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_and_dropout_leave_gradients_alike(adapted, remat):
    config, params = adapted

    @partial(jax.jit, static_argnums=0)
    def gradient(config, params):
        def loss(params):
            hidden = SpatialLLM(config).apply({"params": params}, **packed(), deterministic=False,
                                              rngs={"dropout": jax.random.key(1)})
            return (hidden ** 3).mean()
        return jax.grad(loss)(params)

    plain, again = gradient(config, params), gradient(dataclasses.replace(config, remat=remat), params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-3), plain, again)
    assert np.abs(np.asarray(plain["llm"]["layers"]["mlp"]["up"]["lora_a"])).max() > 0


def test_unknown_remat_is_named():
    with pytest.raises(UserError, match="everything.*full"):
        abstract_params(dataclasses.replace(NANO, remat="everything"))


@pytest.mark.parametrize(("mix", "merge", "tokens"), [("concat", 1, 16), ("concat", 4, 1), ("interleave", 2, 8),
                                                      ("sum", 2, 4)])
def test_mixes_give_the_promised_tokens(mix, merge, tokens):
    connector = ConnectorConfig(mix=mix, grid=4, merge=merge, layers=3 if mix == "sum" else 2, hidden=20)
    config = dataclasses.replace(NANO, connector=connector)
    assert connector.num_tokens == tokens
    params = init_params(config, jax.random.key(0))
    features = np.random.default_rng(0).normal(size=(2, 16, config.feature_channels)).astype(np.float32)
    connect = jax.jit(lambda p, f: SpatialLLM(config).apply({"params": p}, f, method="connect"))
    out = connect(params, features)
    assert out.shape == (2, tokens, 32)
    # CLIP's channels come first; with interleave they reach even tokens only.
    changed = connect(params, features + np.where(np.arange(config.feature_channels) < 16, 1, 0))
    moved = np.abs(np.asarray(changed - out)).max(axis=(0, 2)) > 1e-6
    assert moved.tolist() == ([True, False] * 4 if mix == "interleave" else [True] * tokens)


def test_merge_puts_neighbours_together(params):
    """Token (1, 0) of the merged 2 x 2 grid depends on the patches of its own quarter alone."""
    features = np.zeros((1, 16, NANO.feature_channels), np.float32)
    connect = jax.jit(lambda f: SpatialLLM(NANO).apply({"params": params}, f, method="connect"))
    base = connect(features)
    for patch in range(16):
        changed = features.copy()
        changed[0, patch] = 1
        moved = np.flatnonzero(np.abs(np.asarray(connect(changed) - base)).max(axis=(0, 2)) > 1e-6)
        assert moved.tolist() == [patch // 8 * 2 + patch % 4 // 2]


def test_resample_is_bilinear_as_torch():
    torch = pytest.importorskip("torch", reason="the oracle is torch: pip install torch")
    x = np.random.default_rng(0).normal(size=(2, 49, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.tensor(x).reshape(2, 7, 7, 3).permute(0, 3, 1, 2), size=(12, 12),
                                             mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resample(jnp.asarray(x), 12), theirs.permute(0, 2, 3, 1).reshape(2, 144, 3), atol=1e-5)


def test_features_stand_in_for_images(params):
    inputs = packed()
    images = inputs.pop("images")
    features = SpatialLLM(NANO).apply({"params": params}, images[0], method="encode_images")[None]
    assert features.shape == (1, 2, NANO.num_patches, NANO.feature_channels)
    np.testing.assert_allclose(run(NANO, params, {**inputs, "features": features}),
                               run(NANO, params, {**inputs, "images": images}), atol=1e-5)
    with pytest.raises(ValueError, match="features have shape"):
        run(NANO, params, {**inputs, "features": features[..., :-1]})


def test_masked_images_are_blank(params):
    inputs = packed()
    mask = np.array([[True, False]])
    other = {**inputs, "images": np.stack([inputs["images"][0, 0], pictures(1, 1, 9)[0, 0]])[None]}
    np.testing.assert_array_equal(run(NANO, params, {**inputs, "image_mask": mask}),
                                  run(NANO, params, {**other, "image_mask": mask}))


def test_text_alone_needs_no_images(params):
    assert run(NANO, params, row(random_tokens(6))).shape == (1, 6, 32)


def test_bfloat16_stays_close(params):
    inputs = packed()
    half = run(dataclasses.replace(NANO, dtype="bfloat16"), params, inputs)
    assert half.dtype == jnp.bfloat16
    full = np.asarray(run(NANO, params, inputs))
    assert np.abs(np.asarray(half, np.float32) - full)[inputs["segment_ids"] > 0].mean() < 0.05


def test_same_key_same_parameters(params):
    again = init_params(NANO, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    other = init_params(NANO, jax.random.key(1))
    assert np.abs(np.asarray(other["llm"]["embedding"] - params["llm"]["embedding"])).max() > 0


def test_abstract_8b_in_two_seconds():
    start = time.perf_counter()
    shapes = abstract_params(preset("spatialllm_8b"))
    assert time.perf_counter() - start < 2
    sizes = {part: sum(x.size for x in jax.tree.leaves(shapes[part])) for part in shapes}
    assert sizes["llm"] == 8_030_261_248
    assert sum(x.size for x in jax.tree.leaves(shapes["vision"]["clip"])) == 303_507_456
    assert shapes["connector"]["linear_0"]["kernel"].shape == (2048, 4096)


def test_tokens_of_the_paper():
    for name, tokens in (("llava15", 576), ("clip_mae", 576), ("spatialllm_8b", 576), ("tiny", 36)):
        assert preset(name).connector.num_tokens == tokens


def test_presets_by_name():
    for name in PRESETS:
        abstract_params(preset(name))
    with pytest.raises(UserError, match=r"gigantic.*spatialllm_8b.*tiny"):
        preset("gigantic")
    with pytest.raises(UserError, match="gigantic"):
        clip_preset("gigantic")


@pytest.mark.parametrize("name", sorted(CLIP_PRESETS))
def test_contrastive_tower_is_the_models_own(name):
    """Stage 0's result drops into SpatialLLM: the same subtree, name for name and shape for shape."""
    whole = abstract_params(preset({"clip_l_336": "llava15"}.get(name, name)))
    tower = jax.eval_shape(partial(init_clip, clip_preset(name)), jax.random.key(0))["vision"]["clip"]
    assert jax.tree.map(lambda x: x.shape, tower) == jax.tree.map(lambda x: x.shape, whole["vision"]["clip"])


def test_contrastive_embeddings_are_unit_and_ignore_padding():
    config = clip_preset("nano")
    params = init_clip(config, jax.random.key(0))
    tokens, end = np.random.default_rng(0).integers(0, 64, (3, 10)), np.array([4, 9, 6])
    embed = jax.jit(CLIP(config).apply)
    image, text, scale = embed({"params": params}, pictures(2)[:, 0], tokens, end)
    np.testing.assert_allclose(np.linalg.norm(image, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(scale, 1 / 0.07, rtol=1e-4)
    tokens[0, 5:] = 1
    np.testing.assert_array_equal(embed({"params": params}, pictures(2)[:, 0], tokens, end)[1][0], text[0])
