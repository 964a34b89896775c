"""Generation with a cache against the plain model, step by step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialllm_jax.inference.decoding import generate
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import SpatialLLM
from tests.conftest import random_params

CONFIG = preset("nano")
MODEL = SpatialLLM(CONFIG)
PATCHES = CONFIG.connector.num_tokens
NEW, LENGTHS, LONGEST = 10, (1, 5, 9, 16), 16


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@dataclasses.dataclass
class Prompts:
    tokens: np.ndarray
    lengths: np.ndarray
    image_index: np.ndarray
    visual: np.ndarray

    def pick(self, rows):
        return Prompts(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def padded(self, width):
        """The same prompts in wider arrays, with rubbish in the padding."""
        extra = ((0, 0), (0, width - self.tokens.shape[1]))
        tokens = np.pad(self.tokens, extra, constant_values=7)
        for row, length in enumerate(self.lengths):
            tokens[row, length:] = 7
        return dataclasses.replace(self, tokens=tokens, image_index=np.pad(
            self.image_index, extra, constant_values=-1))


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    tokens = np.zeros((len(LENGTHS), LONGEST), np.int32)
    index = np.full_like(tokens, -1)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = rng.integers(1, 64, length)
        if length > PATCHES:
            index[row, 1:1 + PATCHES] = np.arange(PATCHES)
    visual = rng.normal(size=(len(LENGTHS), PATCHES, CONFIG.llm.width)).astype(np.float32)
    return Prompts(tokens, np.array(LENGTHS, np.int32), index, visual)


def run(params, p, *, stop=(), new=NEW, temperature=0.0, key=0):
    return np.asarray(generate(MODEL, params, p.tokens, p.lengths, p.image_index, p.visual, jax.random.key(key),
                               max_new_tokens=new, stop=stop, temperature=temperature))


def _plain(module, tokens, visual, index, segments):
    from spatialllm_jax.models.attention import self_mask

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = module.llm(module.embed(tokens, visual, index), positions, self_mask(segments))
    return module.logits(hidden)


@functools.partial(jax.jit)
def logits(params, tokens, visual, index, segments):
    return MODEL.apply({"params": params}, tokens, visual, index, segments, method=_plain)


def without_cache(params, p, row):
    """Greedy tokens by running the whole sequence anew for each of them."""
    width = LONGEST + NEW
    length = int(p.lengths[row])
    tokens = np.zeros((1, width), np.int32)
    tokens[0, :length] = p.tokens[row, :length]
    index = np.full((1, width), -1, np.int32)
    index[0, :length] = p.image_index[row, :length]
    out = []
    for at in range(length, length + NEW):
        segments = (np.arange(width) < at).astype(np.int32)[None]
        values = logits(params, tokens, p.visual[row:row + 1], index, segments)[0, at - 1]
        out.append(int(values.argmax()))
        tokens[0, at] = out[-1]
    return out


def test_equals_step_by_step_without_a_cache(params, prompts):
    found = run(params, prompts)
    expected = [without_cache(params, prompts, row) for row in range(len(LENGTHS))]
    assert found.tolist() == expected
    assert len({tuple(row) for row in expected}) == len(LENGTHS)      # the prompts differ, and so do the answers


def test_answers_do_not_depend_on_padding_order_or_batch(params, prompts):
    whole = run(params, prompts)
    assert (run(params, prompts.padded(24)) == whole).all()
    order = np.array([2, 0, 3, 1])
    assert (run(params, prompts.pick(order)) == whole[order]).all()
    alone = np.concatenate([run(params, prompts.pick(np.array([row]))) for row in range(len(LENGTHS))])
    assert (alone == whole).all()


def test_a_row_stops_and_the_others_go_on(params, prompts):
    whole = run(params, prompts)
    stop = int(whole[1, 4])
    found = run(params, prompts, stop=(stop,))
    for row in range(len(LENGTHS)):
        hits = np.flatnonzero(whole[row] == stop)
        end = hits[0] + 1 if len(hits) else NEW
        assert (found[row, :end] == whole[row, :end]).all() and (found[row, end:] == -1).all()
    assert (found[1] == -1).any() and (found != -1).all(axis=1).any()
    # All stopped at the first token: nothing else is made.
    first = tuple({int(token) for token in whole[:, 0]})
    assert (run(params, prompts, stop=first)[:, 1:] == -1).all()


def test_fewer_tokens_are_a_prefix(params, prompts):
    whole = run(params, prompts)
    assert (run(params, prompts, new=1) == whole[:, :1]).all()


def test_pictures_matter(params, prompts):
    changed = dataclasses.replace(prompts, visual=-prompts.visual)
    same = (run(params, changed) == run(params, prompts)).all(axis=1)
    assert same.tolist() == [length <= PATCHES for length in LENGTHS]  # rows without a picture are as before


def test_sampling_follows_the_softmax(params, prompts):
    rows = np.full(4000, 2)
    many = prompts.pick(rows)
    drawn = run(params, many, new=1, temperature=2.0)[:, 0]
    one = prompts.pick(np.array([2]))
    width = LONGEST
    segments = (np.arange(width) < LENGTHS[2]).astype(np.int32)[None]
    values = np.asarray(logits(params, one.tokens, one.visual, one.image_index, segments))[0, LENGTHS[2] - 1]
    expected = np.exp(values / 2.0 - (values / 2.0).max())
    expected /= expected.sum()
    counts = np.bincount(drawn, minlength=64) / len(drawn)
    error = 5 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-3
    assert (np.abs(counts - expected) < error).all()
    assert (run(params, many, new=1, temperature=2.0)[:, 0] == drawn).all()
    assert (run(params, many, new=1, temperature=2.0, key=1)[:, 0] != drawn).any()
