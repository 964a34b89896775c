"""Losses against torch and against full logits; the step's promises."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict

from spatialllm_jax.data.batch import Batch
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params
from spatialllm_jax.parallel.mesh import batch_sharding, make_mesh
from spatialllm_jax.training.objectives import Contrastive, NextToken, PatchWords, contrastive_sums, token_sums
from spatialllm_jax.training.partition import split, unflatten
from spatialllm_jax.training.step import init_state, make_step
from tests.training.recorder import recorded

CONFIG = preset("nano")
MODEL = SpatialLLM(CONFIG)
ROWS, LENGTH, PATCHES = 8, 20, CONFIG.connector.num_tokens


@pytest.fixture(scope="module")
def flat():
    rng = np.random.default_rng(0)
    return {path: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 25),
                              jnp.float32)
            for path, leaf in flatten_dict(abstract_params(CONFIG), sep="/").items()}


@pytest.fixture(scope="module")
def batch():
    """Uneven weights and two sources: averaging averages would show."""
    rng = np.random.default_rng(1)
    channels = sum(encoder.width for encoder in CONFIG.vision)
    index = np.full((ROWS, LENGTH), -1)
    index[:, 1:1 + PATCHES] = np.arange(PATCHES)
    return Batch(
        tokens=jnp.asarray(rng.integers(0, 64, (ROWS, LENGTH))),
        positions=jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH)),
        segment_ids=jnp.asarray((np.arange(LENGTH) < rng.integers(9, LENGTH, (ROWS, 1))).astype(np.int32)),
        branch_ids=jnp.zeros((ROWS, LENGTH), jnp.int32), targets=jnp.asarray(rng.integers(0, 64, (ROWS, LENGTH))),
        loss_weights=jnp.asarray((rng.random((ROWS, LENGTH)) < rng.random((ROWS, 1))).astype(np.float32)),
        source_ids=jnp.asarray(rng.integers(0, 2, (ROWS, LENGTH))), image_index=jnp.asarray(index),
        image_mask=jnp.ones((ROWS, 1), bool),
        features=jnp.asarray(rng.normal(size=(ROWS, 1, CONFIG.connector.grid ** 2, channels)), jnp.float32))


@pytest.mark.parametrize("chunk", [7, 20, 256])
def test_token_sums_equal_the_full_logits(flat, batch, chunk):
    params = unflatten(flat)
    hidden = jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, LENGTH, CONFIG.llm.width)), jnp.float32)
    loss, weight, sums = jax.jit(lambda h: token_sums(MODEL, params, h, batch, 2, chunk))(hidden)
    logits = torch.tensor(np.asarray(hidden)) @ torch.tensor(np.asarray(flat["llm/embedding"])).T
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(np.asarray(batch.targets)).flatten().long(),
        reduction="none").numpy().reshape(ROWS, LENGTH)
    right = (logits.numpy().argmax(-1) == np.asarray(batch.targets))
    weights, sources = np.asarray(batch.loss_weights), np.asarray(batch.source_ids)
    assert float(weight) == weights.sum()
    assert float(loss) == pytest.approx((losses * weights).sum(), rel=1e-5)
    for source in range(2):
        inside = weights * (sources == source)
        assert float(sums["loss"][source]) == pytest.approx((losses * inside).sum(), rel=1e-5)
        assert float(sums["right"][source]) == (right * inside).sum()
        assert float(sums["weight"][source]) == inside.sum()


class Towers:
    """Stands in for CLIP: fixed embeddings, whatever it is shown."""

    def __init__(self, image, text, scale):
        self.outputs = (jnp.asarray(image), jnp.asarray(text), jnp.float32(scale))

    def apply(self, variables, images, tokens, end, **kwargs):
        self.end = end
        return self.outputs


def clip_batch(captions, length=6):
    rows = len(captions)
    tokens, segments = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row, caption in enumerate(captions):
        tokens[row, :len(caption)], segments[row, :len(caption)] = caption, 1
        tokens[row, len(caption):] = 9 + row             # what lies in the padding must not matter
    zeros = jnp.zeros((rows, length), jnp.int32)
    return Batch(jnp.asarray(tokens), zeros, jnp.asarray(segments), zeros, zeros, zeros.astype(jnp.float32), zeros,
                 zeros - 1, images=jnp.zeros((rows, 1, 4, 4, 3), jnp.uint8))


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("captions", [
    [[1, 2], [1, 3, 4], [5], [1, 2, 3]],                 # all different: CLIP's own loss
    [[1, 2], [1, 3, 4], [1, 2], [1, 2]]])                # three of one kind
def test_contrastive_loss(captions, chunk):
    rng = np.random.default_rng(0)
    image, text, scale = unit(rng, 4, 5), unit(rng, 4, 5), 7.0
    towers = Towers(image, text, scale)
    loss, count, sums = Contrastive(towers, chunk)({}, clip_batch(captions), jax.random.key(0))
    logits = torch.tensor(scale * image @ text.T)
    target = torch.tensor([[float(a == b) for b in captions] for a in captions])
    target /= target.sum(1, keepdim=True)
    cross = torch.nn.functional.cross_entropy
    expected = (cross(logits, target, reduction="sum") + cross(logits.T, target, reduction="sum")) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-5) and float(count) == 4
    if len(set(map(tuple, captions))) == 4:
        labels = torch.arange(4)
        assert float(loss) / 4 == pytest.approx(float((cross(logits, labels) + cross(logits.T, labels)) / 2), rel=1e-5)
    assert towers.end.tolist() == [len(caption) - 1 for caption in captions]
    found = logits.argmax(1).numpy()
    assert float(sums["right"][0]) == sum(captions[k] == captions[found[k]] for k in range(4))


def pairs(rows, distinct):
    """(images, texts, scale, captions): `distinct` captions among the rows, that differ in their last word alone."""
    rng = np.random.default_rng(0)
    captions = np.tile([3, 1, 4, 1, 5, 0, 0], (rows, 1)).astype(np.int32)
    captions[:, 4] = 5 + rng.permutation(np.arange(rows) % distinct)
    return unit(rng, rows, 24), unit(rng, rows, 24), np.float32(30.0), captions


def by_torch(image, text, scale, captions):
    """The mean loss and its gradients, from the whole matrix."""
    image, text, scale = (torch.tensor(x, requires_grad=True) for x in (image, text, scale))
    target = torch.tensor((captions[:, None] == captions[None]).all(-1)).float()
    target /= target.sum(1, keepdim=True)
    logits = scale * image @ text.T
    loss = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    loss.backward()
    return float(loss.detach()), [x.grad.numpy() for x in (image, text, scale)]


@functools.cache
def chunked(chunk):
    """(images, texts, scale, captions) -> (mean loss, gradients)."""
    return jax.jit(jax.value_and_grad(
        lambda *args: contrastive_sums(*args, chunk)[0] / len(args[0]), (0, 1, 2)))


@pytest.mark.parametrize("distinct", [40, 7])
@pytest.mark.parametrize("shape", [None, (8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_contrast_in_chunks_on_any_mesh_is_the_whole_matrix(shape, distinct):
    args = pairs(40, distinct)
    loss, grads = by_torch(*args)
    for chunk in (1, 3, 64) if shape is None else (3, 64):
        if shape is None:
            value, found = chunked(chunk)(*args)
        else:
            mesh = make_mesh(*shape)
            with jax.set_mesh(mesh):
                image, text, captions = (jax.device_put(x, batch_sharding(mesh)) for x in (args[0], args[1], args[3]))
                value, found = chunked(chunk)(image, text, args[2], captions)
        assert float(value) == pytest.approx(loss, abs=1e-5)
        for mine, theirs in zip(found, grads, strict=True):
            assert np.abs(theirs).max() > 1e-4
            np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_no_device_holds_the_matrix():
    """The compiled step of 512 rows on 8 devices: 16 x 512 logits are the largest, forward and backward."""
    args, mesh = pairs(512, 100), make_mesh(4, 2, 1)
    with jax.set_mesh(mesh):
        placed = [x if x.ndim == 0 else jax.device_put(x, batch_sharding(mesh)) for x in args]
        program = chunked(16).lower(*placed).compile()
    text = program.as_text()
    sizes = {tuple(map(int, shape.split(","))) for shape in re.findall(r"[a-z]\d*\[([\d,]+)\]", text)}
    assert (16, 512) in sizes or (2, 16, 512) in sizes or (16, 2, 512) in sizes
    assert max(np.prod(size) for size in sizes) == 2 * 16 * 512
    assert program.memory_analysis().temp_size_in_bytes < 512 * 512 * 4


@pytest.fixture(scope="module")
def objective():
    return NextToken(MODEL, 2, 16)


def fresh(flat, tx):
    chosen, frozen = split({path: jnp.array(leaf) for path, leaf in flat.items()}, "connector")
    return init_state(chosen, frozen, tx, jax.random.key(3))


@pytest.fixture(scope="module")
def tx():
    """Rates that depend on the number of updates."""
    return recorded(optax.adamw(optax.linear_schedule(1e-2, 0.0, 10)))


@pytest.fixture(scope="module")
def whole_step(objective, tx):
    """A step that trains the connector through the frozen language model."""
    return jax.jit(make_step(objective, tx))


def test_accumulated_micro_batches_equal_the_whole(flat, batch, objective, tx, whole_step):
    whole, metrics = whole_step(fresh(flat, tx), batch)
    state, found = jax.jit(make_step(objective, tx, 4))(fresh(flat, tx), batch)
    for path, leaf in state.opt_state[0].items():
        assert np.abs(leaf).max() > 1e-4, path
        np.testing.assert_allclose(leaf, whole.opt_state[0][path], atol=1e-6, err_msg=path)
    assert float(found["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert float(found["weight"]) == float(metrics["weight"]) == float(batch.loss_weights.sum())
    np.testing.assert_allclose(found["sources"]["loss"], metrics["sources"]["loss"], rtol=1e-5)


def test_frozen_parameters_stay_and_have_no_moments(flat, batch, tx, whole_step):
    state = fresh(flat, tx)
    for _ in range(3):
        state, _ = whole_step(state, batch)
    for path, leaf in state.frozen.items():
        assert (np.asarray(leaf) == np.asarray(flat[path])).all(), path
    assert all((np.asarray(leaf) != np.asarray(flat[path])).any() for path, leaf in state.trainable.items())
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state[1]) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for path, leaf in flat.items() if path.startswith("connector"))
    assert whole_step._cache_size() == 1


def test_a_step_that_is_not_finite_changes_nothing(flat, batch, tx, whole_step):
    step = whole_step
    good, _ = step(fresh(flat, tx), batch)
    bad_batch = dataclasses.replace(batch, features=batch.features.at[0, 0, 0, 0].set(jnp.nan))
    before = fresh(flat, tx)
    bad, metrics = step(before, bad_batch)
    assert not np.isfinite(float(metrics["loss"])) and int(metrics["skipped"]) == 1 and int(bad.step) == 1
    for a, b in zip(jax.tree.leaves((bad.trainable, bad.opt_state)),
                    jax.tree.leaves((before.trainable, before.opt_state)), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    after, metrics = step(bad, batch)                    # and the next good step is the one it would have been
    for a, b in zip(jax.tree.leaves((after.trainable, after.opt_state)),
                    jax.tree.leaves((good.trainable, good.opt_state)), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    assert int(metrics["skipped"]) == 1 and np.isfinite(float(metrics["loss"]))


def test_clamp(batch):
    def objective(params, batch, rng):
        return -params["logit_scale"] * 100, jnp.float32(1.0), {}

    tx = optax.sgd(1.0)
    state = init_state({"logit_scale": jnp.float32(4.0)}, {}, tx, jax.random.key(0))
    state, _ = make_step(objective, tx, clamp={"logit_scale": (0.0, 4.6)})(state, batch)
    assert float(state.trainable["logit_scale"]) == pytest.approx(4.6)


@pytest.fixture(scope="module")
def worded(batch):
    """Every visual token with none to three words."""
    rng = np.random.default_rng(4)
    words = np.where(np.arange(6) < rng.integers(0, 4, (ROWS, PATCHES, 1)), rng.integers(0, 64, (ROWS, PATCHES, 6)), -1)
    return dataclasses.replace(batch, patch_targets=jnp.asarray(words))


def bag_losses(flat, batch):
    """Cross-entropy of every visual token against a uniform bag of its words, by torch; 0 without words."""
    features = np.asarray(batch.features).reshape(ROWS, *batch.features.shape[2:])
    patches = MODEL.apply({"params": unflatten(flat)}, features, method="connect")
    patches = torch.nn.functional.rms_norm(torch.tensor(np.asarray(patches)), (CONFIG.llm.width,),
                                           torch.tensor(np.asarray(flat["llm/norm/scale"])), CONFIG.llm.norm_eps)
    logits = patches @ torch.tensor(np.asarray(flat["llm/embedding"])).T
    bags = torch.zeros(ROWS, PATCHES, CONFIG.llm.vocab_size)
    for row, patch, word in np.argwhere(np.asarray(batch.patch_targets) >= 0):
        bags[row, patch, int(batch.patch_targets[row, patch, word])] += 1
    count = bags.sum(-1, keepdim=True)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), (bags / count.clamp(min=1)).flatten(0, 1), reduction="none").numpy()
    right = bags.flatten(0, 1).gather(1, logits.flatten(0, 1).argmax(1, keepdim=True)).numpy()[:, 0] > 0
    return losses, count.numpy().ravel() > 0, right


@pytest.mark.parametrize("chunk", [3, 256])
def test_patch_words_against_torch(flat, worded, chunk):
    losses, said, right = bag_losses(flat, worded)
    assert 0 < (~said).sum() < said.size
    loss, weight, sums = jax.jit(PatchWords(MODEL, chunk))(unflatten(flat), worded, jax.random.key(0))
    assert float(loss) == pytest.approx(losses.sum(), rel=1e-5) and float(weight) == said.sum()
    assert float(sums["right"][0]) == right.sum()


def test_patch_words_beside_next_tokens(flat, worded):
    objectives = NextToken(MODEL, 2, 16), PatchWords(MODEL, 16), NextToken(MODEL, 2, 16, 0.5)
    alone, words, (loss, weight, sums) = jax.jit(lambda *args: [objective(*args) for objective in objectives])(
        unflatten(flat), worded, jax.random.key(0))
    assert float(loss) == pytest.approx(float(alone[0]) + 0.5 * float(words[0]), rel=1e-5)
    assert float(weight) == pytest.approx(float(alone[1]) + 0.5 * float(words[1]), rel=1e-6)
    np.testing.assert_allclose(sums["loss"], np.concatenate([alone[2]["loss"], words[2]["loss"]]), rtol=1e-5)


def test_patch_words_train_no_layer(flat, worded):
    objective = PatchWords(MODEL, 16)
    grads = jax.jit(jax.grad(lambda params: objective(params, worded, jax.random.key(0))[0]))(unflatten(flat))
    touched = {path for path, leaf in flatten_dict(grads, sep="/").items() if float(jnp.abs(leaf).max()) > 0}
    assert touched == {path for path in flat if path.startswith("connector/")} | {"llm/embedding", "llm/norm/scale"}
