"""The whole model at its smallest: packing, branches, cache, LoRA, remat, mixing, initialisation."""

import dataclasses
import re
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import Mask
from spatialllm_jax.models.cache import init_cache
from spatialllm_jax.models.clip_text import CLIP, abstract_clip
from spatialllm_jax.models.config import ConnectorConfig, LoRAConfig
from spatialllm_jax.models.connector import Connector, resample
from spatialllm_jax.models.linear import Linear, merge_lora
from spatialllm_jax.models.presets import CLIP_PRESETS, PRESETS, clip_preset, preset
from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params, init_params

NANO = preset("nano")
N = NANO.connector.num_tokens


def filled(config, params, seed=0):
    """`params` completed for `config` (LoRA, say): missing leaves are random, none zero, so that all matter."""
    rng, flat = np.random.default_rng(seed), flatten_dict(params)

    def random(leaf):
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 25
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return unflatten_dict({path: flat[path] if path in flat else random(leaf)
                           for path, leaf in flatten_dict(abstract_params(config)).items()})


@pytest.fixture(scope="module")
def params():
    return filled(NANO, {})


@pytest.fixture(scope="module")
def features(params):
    """Of two different images, `[1, 2, P, C]`; most tests start here, since encoders see no text."""
    encode = jax.jit(lambda p, x: SpatialLLM(NANO).apply({"params": p}, x, method="encode_images"))
    return np.asarray(encode(params, pictures(1, 2)[0]))[None]


def pictures(rows, count=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, count, 16, 16, 3), dtype=np.uint8)


@partial(jax.jit, static_argnums=0)
def run(config, params, inputs):
    return SpatialLLM(config).apply({"params": params}, **inputs)


T = 24    # every row is padded to this, so that one compilation serves all


def row(tokens, image_at=None, image=0):
    """Inputs of one plain row; the tokens of the given image start at `image_at`."""
    fill = lambda values, rest: np.array([*values, *[rest] * (T - len(values))])[None]  # noqa: E731
    index = fill([], -1)
    if image_at is not None:
        index[0, image_at:image_at + N] = image * N + np.arange(N)
    return dict(tokens=fill(tokens, 0), positions=fill(range(len(tokens)), 0), image_index=index,
                segment_ids=fill([1] * len(tokens), 0), branch_ids=fill([], 0))


def random_tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, 64, length)


def packed(seed=0):
    """Two samples of 12 and 9 tokens, each with an image, and 3 of padding."""
    inputs = row(random_tokens(T, seed))
    inputs["segment_ids"][0] = [1] * 12 + [2] * 9 + [0] * 3
    inputs["positions"][0] = [*range(12), *range(9), 0, 0, 0]
    inputs["image_index"][0, 1:1 + N] = np.arange(N)
    inputs["image_index"][0, 14:14 + N] = N + np.arange(N)
    return inputs


def test_packed_samples_equal_rows_of_their_own(params, features):
    both = packed()
    out = run(NANO, params, {**both, "features": features})
    for start, length, image, at in ((0, 12, 0, 1), (12, 9, 1, 2)):
        alone = row(both["tokens"][0, start:start + length], at, image)
        got = run(NANO, params, {**alone, "features": features})
        np.testing.assert_allclose(out[0, start:start + length], got[0, :length], atol=2e-5)


@pytest.mark.parametrize("change", ["token", "image"])
def test_no_leak_across_segments(params, features, change):
    """Change the second sample: the first one's outputs are the same to the bit."""
    before, after, changed = packed(), packed(), features.copy()
    if change == "token":
        after["tokens"][0, 19] += 1
    else:
        changed[0, 1] += 1
    a = run(NANO, params, {**before, "features": features})
    b = run(NANO, params, {**after, "features": changed})
    np.testing.assert_array_equal(a[0, :12], b[0, :12])
    assert np.abs(np.asarray(a - b))[0, 19:21].max() > 1e-3


def test_padding_changes_nothing_and_stays_finite(params, features):
    before, after = packed(), packed()
    after["tokens"][0, 21:] = 5
    a, b = (run(NANO, params, {**inputs, "features": features}) for inputs in (before, after))
    np.testing.assert_array_equal(a[0, :21], b[0, :21])
    assert np.isfinite(a).all() and np.isfinite(b).all()


def branching():
    """A trunk of 8 (with image) and branches of 5, 4 and 3 that restart at position 8."""
    inputs = row(random_tokens(20, 3), 1)
    inputs["branch_ids"][0, :20] = [0] * 8 + [1] * 5 + [2] * 4 + [3] * 3
    inputs["positions"][0, :20] = [*range(8), *range(8, 13), *range(8, 12), *range(8, 11)]
    return inputs


def test_branches_equal_rows_of_their_own(params, features):
    tree = branching()
    out = run(NANO, params, {**tree, "features": features})
    for start, end in ((8, 13), (13, 17), (17, 20)):
        take = [*range(8), *range(start, end)]
        alone = run(NANO, params, {**row(tree["tokens"][0, take], 1), "features": features})
        np.testing.assert_allclose(out[0, take], alone[0, :len(take)], atol=2e-5)


def test_no_leak_across_branches(params, features):
    before, after = branching(), branching()
    after["tokens"][0, 10] += 1
    a, b = (run(NANO, params, {**inputs, "features": features}) for inputs in (before, after))
    np.testing.assert_array_equal(np.delete(a[0], [10, 11, 12], 0), np.delete(b[0], [10, 11, 12], 0))
    assert (np.abs(np.asarray(a - b))[0, 10:13].max(axis=-1) > 1e-3).all()


def test_cache_equals_no_cache(params, features):
    """Prefill 11 tokens with the image, then one by one, in a cache with slots to spare."""
    inputs = row(random_tokens(20, 5), 1)
    expected = run(NANO, params, {**inputs, "features": features})
    model, slots = SpatialLLM(NANO), 32
    index = jnp.arange(slots)[None]

    @jax.jit
    def step(cache, tokens, positions, image_index, start):
        def decode(model):
            ones = jnp.ones_like(tokens)
            mask = Mask(ones, (index < start + tokens.shape[1]).astype(jnp.int32), 0 * ones, 0 * index,
                        start + jnp.arange(tokens.shape[1])[None], index)
            visual = model.visual_tokens(features=features)
            return model.decode(tokens, positions, mask, cache, start, visual, image_index)

        return model.apply({"params": params}, method=decode)

    cache, got = init_cache(NANO.llm, 1, slots), []
    for start, end in [(0, 11), *((t, t + 1) for t in range(11, 20))]:
        part = [inputs[key][:, start:end] for key in ("tokens", "positions", "image_index")]
        hidden, cache = step(cache, *part, start)
        got.append(hidden)
    assert cache.length == slots
    np.testing.assert_allclose(np.concatenate(got, axis=1), expected[:, :20], atol=2e-5)


@pytest.fixture(scope="module")
def adapted(params):
    config = dataclasses.replace(NANO, vision_lora=LoRAConfig(2, 6.0, 0.3), llm_lora=LoRAConfig(3, 3.0, 0.3))
    return config, filled(config, params)


def test_merged_lora_computes_the_same(params, adapted):
    config, with_lora = adapted
    merged = merge_lora(with_lora, config)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    inputs = {**packed(), "images": pictures(1, 2)}
    applied = run(config, with_lora, inputs)
    np.testing.assert_allclose(run(NANO, merged, inputs), applied, atol=1e-4)
    assert np.abs(np.asarray(run(NANO, params, inputs) - applied)).max() > 1e-2
    with pytest.raises(UserError, match="lora"):
        merge_lora(with_lora, dataclasses.replace(config, llm_lora=None))


@pytest.mark.parametrize("tower", ["vision/clip", "vision/dinov2", "llm"])
def test_merged_lora_of_each_tower(params, tower):
    """Merged equals applied to 1e-5 of the largest output, tower by tower."""
    lora, part = LoRAConfig(2, 4.0, targets=rf"{tower}/.*(query|key|value|out|gate|up|down)$"), tower.split("/")[0]
    config = dataclasses.replace(NANO, **{f"{part}_lora": lora})
    with_lora = filled(config, params)
    merged = merge_lora(with_lora, config)
    changed = {"/".join(path) for path, leaf in flatten_dict(merged).items()
               if (np.asarray(leaf) != np.asarray(flatten_dict(params)[path])).any()}
    assert changed == {path for path in map("/".join, flatten_dict(params))
                       if re.match(rf"{tower}/(blocks|layers)/.*kernel", path)}

    def outputs(config, tree):
        apply = partial(SpatialLLM(config).apply, {"params": tree})
        return apply(**packed()) if tower == "llm" else apply(pictures(1, 2)[0], method="encode_images")

    applied = outputs(config, with_lora)
    assert np.abs(applied - outputs(NANO, params)).max() > 1e-2
    np.testing.assert_allclose(outputs(NANO, merged), applied, atol=1e-5 * np.abs(applied).max())


def test_fresh_lora_changes_nothing():
    layer = Linear(5, lora=LoRAConfig(2, 4.0, targets=""))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    params = layer.init(jax.random.key(0), x)["params"]
    assert np.abs(np.asarray(params["lora_a"])).min() > 0
    np.testing.assert_array_equal(layer.apply({"params": params}, x), x @ params["kernel"] + params["bias"])


def test_lora_targets_choose_the_layers():
    config = dataclasses.replace(NANO, vision_lora=LoRAConfig(2, 4.0, targets=r"vision/clip/.*mlp"),
                                 llm_lora=LoRAConfig(2, 4.0, targets=r"query$"))
    found = {"/".join(path[:-1]) for path in flatten_dict(abstract_params(config)) if "lora" in path[-1]}
    assert found == {"llm/layers/attention/query", "vision/clip/blocks/mlp/up", "vision/clip/blocks/mlp/down"}


@pytest.mark.parametrize("part", ["vision", "llm"])
def test_remat_and_dropout_leave_gradients_alike(part):
    """The rematerialised pass draws the same dropout as the plain one: gradients agree."""
    base = dataclasses.replace(NANO, vision=NANO.vision[:1], vision_lora=LoRAConfig(2, 6.0, 0.3),
                               llm_lora=LoRAConfig(3, 3.0, 0.3))
    flat = flatten_dict(filled(base, {}))
    lora = {path: leaf for path, leaf in flat.items() if path[-1] == "lora_b" and path[0] == part}

    def gradient(config):
        def loss(lora):
            model, rngs = SpatialLLM(config), {"dropout": jax.random.key(1)}
            variables = {"params": unflatten_dict({**flat, **lora})}
            if part == "vision":
                out = model.apply(variables, pictures(2)[0], False, method="encode_images", rngs=rngs)
            else:
                out = model.apply(variables, **row(random_tokens(12)), deterministic=False, rngs=rngs)
            return (out ** 3).mean()
        return jax.jit(jax.grad(loss))(lora)

    plain, again = gradient(base), gradient(dataclasses.replace(base, remat="full"))
    assert plain
    for path, value in plain.items():
        # The vision tower's last block does not run for its features, so it has no gradient.
        assert (np.abs(value).max(axis=(1, 2)) > 0).tolist() == [True, part == "llm"], path
        np.testing.assert_allclose(again[path], value, rtol=1e-3, atol=1e-3 * np.abs(value).max(), err_msg=str(path))


def test_unknown_remat_is_named():
    with pytest.raises(UserError, match=r"everything.*full"):
        abstract_params(dataclasses.replace(NANO, remat="everything"))


def connected(connector, seed=0):
    """(function features -> tokens with random parameters, channels): encoders "a" of 3 channels, "b" of 5."""
    module = Connector(connector, (("a", 3), ("b", 5)), 32)
    variables = module.init(jax.random.key(seed), np.zeros((1, connector.grid**2, 8), np.float32))
    return jax.jit(partial(module.apply, variables)), variables["params"]


@pytest.mark.parametrize(("mix", "merge", "tokens"), [("concat", 1, 16), ("concat", 4, 1), ("interleave", 2, 8),
                                                      ("sum", 2, 4)])
def test_mixes_give_the_promised_tokens(mix, merge, tokens):
    config = ConnectorConfig(mix=mix, grid=4, merge=merge, layers=3 if mix == "sum" else 2, hidden=20)
    connect, params = connected(config)
    assert set(params) == ({"linear_0", "linear_1"} if mix == "concat" else {"a", "b"})
    features = np.random.default_rng(0).normal(size=(2, 16, 8)).astype(np.float32)
    out = connect(features)
    assert out.shape == (2, config.num_tokens, 32) and config.num_tokens == tokens
    # The first encoder's channels come first; interleaved, they reach even tokens only.
    changed = connect(features + (np.arange(8) < 3).astype(np.float32))
    moved = np.abs(np.asarray(changed - out)).max(axis=(0, 2)) > 1e-6
    assert moved.tolist() == ([True, False] * 4 if mix == "interleave" else [True] * tokens)


def test_merge_puts_neighbours_together():
    """A token of the merged 2 x 2 grid depends on the patches of its own quarter alone."""
    connect, _ = connected(ConnectorConfig(grid=4, merge=2))
    features = np.zeros((17, 16, 8), np.float32)
    features[np.arange(16), np.arange(16)] = 1
    out = np.asarray(connect(features))
    for patch in range(16):
        moved = np.flatnonzero(np.abs(out[patch] - out[16]).max(axis=-1) > 1e-6)
        assert moved.tolist() == [patch // 8 * 2 + patch % 4 // 2]


@pytest.mark.parametrize("mix", ["concat", "interleave", "sum"])
def test_layer_norm_is_per_encoder(mix):
    """Standardising features before a plain connector, encoder by encoder, is what `norm="layer"` does."""
    features = np.random.default_rng(1).normal(3.0, [1.0] * 3 + [50.0] * 5, size=(2, 16, 8)).astype(np.float32)
    parts = np.split(features.astype(np.float64), [3], axis=-1)
    by_hand = np.concatenate(
        [(x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) for x in parts], axis=-1)
    plain, params = connected(ConnectorConfig(mix=mix, grid=4))
    normed, same = connected(ConnectorConfig(mix=mix, grid=4, norm="layer"))
    jax.tree.map(np.testing.assert_array_equal, params, same)
    np.testing.assert_allclose(normed(features), plain(by_hand.astype(np.float32)), atol=1e-5)
    assert np.abs(normed(features) - plain(features)).max() > 0.5
    assert np.isfinite(normed(np.zeros_like(features))).all()


def test_resample_is_bilinear_as_torch():
    torch = pytest.importorskip("torch", reason="the oracle is torch: pip install torch")
    x = np.random.default_rng(0).normal(size=(2, 49, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.tensor(x).reshape(2, 7, 7, 3).permute(0, 3, 1, 2), size=(12, 12),
                                             mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resample(jnp.asarray(x), 12), theirs.permute(0, 2, 3, 1).reshape(2, 144, 3), atol=1e-5)


def test_features_stand_in_for_images(params, features):
    assert features.shape == (1, 2, NANO.num_patches, NANO.feature_channels)
    np.testing.assert_allclose(run(NANO, params, {**packed(), "features": features}),
                               run(NANO, params, {**packed(), "images": pictures(1, 2)}), atol=2e-5)
    with pytest.raises(ValueError, match="features have shape"):
        run(NANO, params, {**packed(), "features": features[..., :-1]})


def test_masked_images_are_blank(params, features):
    mask, other = np.array([[True, False]]), features.copy()
    other[0, 1] = np.nan
    a, b = (run(NANO, params, {**packed(), "features": f, "image_mask": mask}) for f in (features, other))
    np.testing.assert_array_equal(a, b)


def test_text_alone_needs_no_images(params):
    assert run(NANO, params, row(random_tokens(6))).shape == (1, T, 32)


def test_bfloat16_stays_close(params, features):
    inputs = {**packed(), "features": features}
    half = run(dataclasses.replace(NANO, dtype="bfloat16"), params, inputs)
    assert half.dtype == jnp.bfloat16
    full = np.asarray(run(NANO, params, inputs))
    assert np.abs(np.asarray(half, np.float32) - full)[inputs["segment_ids"] > 0].mean() < 0.05


def test_same_key_same_parameters():
    """And they are of the size that keeps activations of order one."""
    config = preset("nano_clip")
    first, again, other = (init_params(config, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert jax.tree.map(lambda x: x.shape, first) == jax.tree.map(lambda x: x.shape, abstract_params(config))
    kernel = first["llm"]["layers"]["mlp"]["up"]["kernel"]
    assert np.abs(np.asarray(kernel - other["llm"]["layers"]["mlp"]["up"]["kernel"])).max() > 0
    assert 0.9 < np.std(kernel) * np.sqrt(32) < 1.1
    assert 0.4 < np.std(first["llm"]["layers"]["mlp"]["down"]["kernel"]) * np.sqrt(64) < 0.6    # sqrt(1 / 2 depth)


def test_attention_may_start_by_matching():
    """Keys as the first query head of every group, outputs as the values' transposes; layers and heads differ."""
    llm = dataclasses.replace(NANO.llm, num_heads=4, num_kv_heads=2, attention_init="match")
    layers = init_params(NANO.replace(llm=llm), jax.random.key(0))["llm"]["layers"]["attention"]
    kernels = {name: np.asarray(layers[name]["kernel"]) for name in ("query", "key", "value", "out")}
    query = kernels["query"].reshape(llm.depth, llm.width, 4, llm.head_dim)
    key, value = (kernels[name].reshape(llm.depth, llm.width, 2, llm.head_dim) for name in ("key", "value"))
    np.testing.assert_array_equal(key, query[:, :, [0, 2]])
    assert np.abs(key[0] - key[1]).max() > 0 and np.abs(key[:, :, 0] - key[:, :, 1]).max() > 0
    out = kernels["out"].reshape(llm.depth, 4, llm.head_dim, llm.width)
    np.testing.assert_allclose(out, 0.5 * value[:, :, [0, 0, 1, 1]].transpose(0, 2, 3, 1), rtol=1e-6)  # 1 / 2 depth
    with pytest.raises(UserError, match="attention_init 'copy'"):
        dataclasses.replace(NANO.llm, attention_init="copy")


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
    tower = abstract_clip(clip_preset(name))["vision"]["clip"]
    assert jax.tree.map(lambda x: x.shape, tower) == jax.tree.map(lambda x: x.shape, whole["vision"]["clip"])


def test_contrastive_embeddings_are_unit_and_ignore_padding():
    config, rng = clip_preset("nano"), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract_clip(config))
    tokens, end = np.random.default_rng(0).integers(0, 64, (3, 10)), np.array([4, 9, 6])
    embed = jax.jit(CLIP(config).apply)
    image, text, scale = embed({"params": params}, pictures(2)[:, 0], tokens, end)
    np.testing.assert_allclose(np.linalg.norm(image, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(scale, np.exp(params["logit_scale"]), rtol=1e-5)
    np.testing.assert_allclose(config.logit_scale_init, np.log(1 / 0.07))
    tokens[0, 5:] = 1
    np.testing.assert_array_equal(embed({"params": params}, pictures(2)[:, 0], tokens, end)[1][0], text[0])
