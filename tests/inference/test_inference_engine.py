"""The engine: option scores against one plain forward per option, and answers that do not depend on company."""

import dataclasses
import functools
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.data import chat, images
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference import pictures
from spatialllm_jax.inference.engine import Engine, load_engine
from spatialllm_jax.inference.options import scoring_rows
from spatialllm_jax.inference.prompts import ChatSettings, Prompt, bucket
from spatialllm_jax.inference.scoring import option_scores
from spatialllm_jax.models import store
from spatialllm_jax.models.presets import clip_preset, preset
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.parallel.mesh import read_mesh
from tests.conftest import random_params

NANO = preset("nano")
CONFIG = NANO.replace(llm=dataclasses.replace(NANO.llm, vocab_size=512))
SETTINGS = ChatSettings("compact", "look", 16, "stretch")


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture
def engine(params, tiny_tokenizer):
    return Engine(SpatialLLM(CONFIG), params, tiny_tokenizer, SETTINGS, batch_size=4)


@pytest.fixture(scope="module")
def prompts(tiny_dataset):
    records = open_split(tiny_dataset, "test")
    return [Prompt(r.image_id, r.image, question, options) for r in (records[k] for k in range(5))
            for question, options in (
                ("What colour is the wall?", ("red", "green", "a wall in blue")),
                ("Which is closer, the cat or the dog?", ("cat", "dog")))]


@jax.jit
def hidden_and_logits(params, tokens, index, segments, pixels):
    model = SpatialLLM(CONFIG)
    zeros = tokens * 0
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden = model.apply({"params": params}, tokens, positions, segments, zeros, index, images=pixels)
    return jax.nn.log_softmax(model.apply({"params": params}, hidden, method="logits"))


def likelihood(params, tokenizer, prompt, option, width=96):
    """Sum of log-probabilities of the answer's tokens and its end, from a row of its own."""
    encoded = chat.encode(tokenizer, [(prompt.question, option)], template="compact", system="look",
                          num_image_tokens=CONFIG.connector.num_tokens)
    fill = width - encoded.length
    tokens = np.pad(encoded.tokens, (0, fill))[None]
    index = np.pad(encoded.image_index, (0, fill), constant_values=-1)[None]
    segments = (np.arange(width) < encoded.length).astype(np.int32)[None]
    pixels = images.blank(16) if prompt.image is None else images.load(prompt.image, 16, resize="stretch",
                                                                       marks=prompt.marks)
    logp = np.asarray(hidden_and_logits(params, tokens, index, segments, pixels[None, None]))[0]
    (start, end), = encoded.answers
    assert tokens[0, end - 1] == tokenizer.id("<|eot_id|>")
    return sum(float(logp[at - 1, tokens[0, at]]) for at in range(start, end))


def test_scores_equal_separate_rows(engine, params, tiny_tokenizer, prompts):
    found = engine.score(prompts, row_length=96)
    for prompt, scores in zip(prompts, found, strict=True):
        expected = [likelihood(params, tiny_tokenizer, prompt, option) for option in prompt.options]
        np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=2e-5)
    assert len({round(float(scores[0]), 6) for scores in found[::2]}) == 5     # five pictures, five scores


def test_tokens_that_are_not_the_likeliest_are_counted(engine, params, tiny_tokenizer, prompts):
    """Targets are set to the likeliest tokens of a plain forward, then some of them to others."""
    one = dataclasses.replace(prompts[0], options=("a wall in blue",))
    row, = scoring_rows(tiny_tokenizer, SETTINGS, [one], layout=functools.partial(pictures.layout, CONFIG),
                        length=96)
    # As many rows as `engine` scores at a time: its own program.
    arrays = {name: np.stack([array] * engine.batch_size) for name, array in row.arrays.items()}
    pixels = images.load(one.image, 16, resize="stretch")[None, None]
    logp = hidden_and_logits(params, *(arrays[name][:1] for name in ("tokens", "image_index", "segment_ids")), pixels)
    answer = np.flatnonzero(arrays["owner_ids"][0])
    assert len(answer) > 3
    arrays["targets"][:] = np.asarray(logp.argmax(-1))
    visual = engine.visual([one] * engine.batch_size)
    for wrong in range(4):
        scores, unlikely = option_scores(engine.model, params, visual=visual, options=8, **arrays)
        assert unlikely[0, 0] == wrong and not unlikely[0, 1:].any()
        best = np.take_along_axis(np.asarray(logp[0]), arrays["targets"][0][:, None], 1)[answer].sum()
        np.testing.assert_allclose(scores[0, 0], best, rtol=2e-5)
        arrays["targets"][:, answer[wrong]] = np.asarray(logp[0, answer[wrong]]).argmin()
    found, = engine.likelihoods([one], row_length=96)
    assert found.tokens == [len(answer)] and not found.greedy.any()      # random weights


def test_a_question_is_read_once_for_its_options(engine, params, tiny_tokenizer, prompts):
    """Options that begin alike, and one that is the beginning of another; every rotation of them."""
    words = ("a wall", "a wall in blue", "a wall in red", "sky")
    turned = [dataclasses.replace(prompts[0], question=f"{prompts[0].question} {' '.join(words[k:] + words[:k])}",
                                  options=words[k:] + words[:k]) for k in range(4)]
    rows = scoring_rows(tiny_tokenizer, SETTINGS, turned, layout=functools.partial(pictures.layout, CONFIG), length=96)
    apart = [chat.encode(tiny_tokenizer, [(one.question, option)], template="compact", system="look",
                         num_image_tokens=CONFIG.connector.num_tokens).length for one in turned for option in words]
    assert sorted(owner for row in rows for owner in row.owners) == [(p, o) for p in range(4) for o in range(4)]
    assert sum(int(row.arrays["segment_ids"].sum()) for row in rows) < sum(apart) / 2.5
    found = engine.score(turned, row_length=96)
    for one, scores in zip(turned, found, strict=True):
        np.testing.assert_allclose(scores, [likelihood(params, tiny_tokenizer, one, option) for option in one.options],
                                   rtol=2e-5, atol=2e-5)
    for name in ("logp", "greedy", "tokens"):       # no more than so many side by side: the same
        for one, other in zip(engine.likelihoods(turned, row_length=96), engine.likelihoods(
                turned, row_length=96, beside=8), strict=True):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=2e-5, atol=2e-5)


def test_options_behind_a_question_without_a_token(engine, params, tiny_tokenizer, prompts):
    """This template drops the mark: every option's first token is predicted by the picture's last."""
    one = dataclasses.replace(prompts[0], question="?")
    found, = engine.score([one], row_length=96)
    np.testing.assert_allclose(found, [likelihood(params, tiny_tokenizer, one, option) for option in one.options],
                               rtol=2e-5, atol=2e-5)


def test_scores_do_not_depend_on_packing_or_order(engine, prompts):
    whole = engine.score(prompts, row_length=96)
    narrow = engine.score(prompts, row_length=48)      # fewer branches per row
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = engine.score([prompts[k] for k in order], row_length=96)
    alone = [engine.score([prompt], row_length=96)[0] for prompt in prompts]
    for k in range(len(prompts)):
        np.testing.assert_allclose(narrow[k], whole[k], atol=2e-5)
        np.testing.assert_allclose(alone[k], whole[k], atol=2e-5)
        np.testing.assert_allclose(shuffled[list(order).index(k)], whole[k], atol=2e-5)


def test_answers_do_not_depend_on_batch_size_or_order(engine, prompts):
    whole = engine.generate(prompts, max_new_tokens=6)
    assert len(set(whole)) > 3
    order = np.random.default_rng(1).permutation(len(prompts))
    shuffled = engine.generate([prompts[k] for k in order], max_new_tokens=6)
    assert [shuffled[list(order).index(k)] for k in range(len(prompts))] == whole
    single = dataclasses.replace(engine, batch_size=1)
    assert single.generate(prompts[:3], max_new_tokens=6) == whole[:3]


def test_blank_pictures(engine, params, tiny_tokenizer, prompts):
    blind = [dataclasses.replace(prompt, image=None) for prompt in prompts]
    found = engine.score(blind, row_length=96)
    expected = [likelihood(params, tiny_tokenizer, blind[0], option) for option in blind[0].options]
    np.testing.assert_allclose(found[0], expected, rtol=2e-5, atol=2e-5)
    for k in range(2, len(blind)):                      # the same whatever the picture was
        np.testing.assert_allclose(found[k], found[k % 2], atol=2e-5)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), images.MEAN_COLOUR).save(buffer, "PNG")
    seen = engine.score([dataclasses.replace(prompts[0], image_id="mean", image=buffer.getvalue())], row_length=96)
    np.testing.assert_allclose(seen[0], found[0], atol=2e-5)


def test_stored_features_give_the_same_scores(engine, params, prompts):
    encode = jax.jit(lambda p, x: SpatialLLM(CONFIG).apply({"params": p}, x, method="encode_images"))
    kept = {p.image_id: np.asarray(encode(params, images.load(p.image, 16, resize="stretch")[None]))[0]
            for p in prompts}
    stored = dataclasses.replace(engine, features=kept)
    for a, b in zip(engine.score(prompts, row_length=96), stored.score(prompts, row_length=96), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_many_pictures_are_forgotten_but_answered(engine, prompts):
    copies = [dataclasses.replace(prompts[2 * (k % 5)], image_id=f"copy{k}") for k in range(70)]
    found = engine.score(copies, row_length=96)
    for k in range(5, 70):
        np.testing.assert_allclose(found[k], found[k % 5], atol=2e-5)
    assert len(engine._recent) <= 64


def test_folder_round_trip_and_user_mistakes(engine, params, tiny_tokenizer, prompts, tmp_path):
    folder = tmp_path / "model"
    store.save_model(folder, CONFIG, params)
    with pytest.raises(UserError, match=r"chat\.json"):
        load_engine(folder)
    (folder / "chat.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_engine(folder)
    tiny_tokenizer.save(folder)
    loaded = load_engine(folder, batch_size=4)
    np.testing.assert_allclose(loaded.score(prompts[:2], row_length=96)[0], engine.score(prompts[:2], row_length=96)[0],
                               atol=1e-6)
    # On a CPU a loaded model's layers are listed; `engine` scans over them.
    assert loaded.model.listed and "layer0" in loaded.params["llm"] and not engine.model.listed
    assert loaded.generate(prompts, max_new_tokens=6) == engine.generate(prompts, max_new_tokens=6)
    with pytest.raises(UserError, match="longer than 16 tokens"):
        engine.score(prompts[:1], row_length=16)
    with pytest.raises(UserError, match="has no options"):
        engine.score([dataclasses.replace(prompts[0], options=())])
    clip = clip_preset("nano")
    store.save_model(tmp_path / "clip", clip, {"logit_scale": np.float32(1)})
    with pytest.raises(UserError, match="not a whole model"):
        load_engine(tmp_path / "clip")


@pytest.mark.parametrize("axes", ["data=4,tensor=2", *(pytest.param(axes, marks=pytest.mark.slow)
                                                      for axes in ("fsdp=8", "data=2,tensor=4", "data=4,context=2"))])
def test_eight_devices_answer_as_one(engine, params, tiny_tokenizer, prompts, tmp_path, axes):
    folder = tmp_path / "model"
    store.save_model(folder, CONFIG, params)
    tiny_tokenizer.save(folder)
    (folder / "chat.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    loaded = load_engine(folder, batch_size=8, mesh=read_mesh(axes))
    kernel = loaded.params["llm"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size
    assert loaded.generate(prompts, max_new_tokens=6) == engine.generate(prompts, max_new_tokens=6)
    if axes == "data=4,tensor=2":       # both key heads and all rows are divided
        keys = loaded._board.state.cache.k[0]
        assert keys.addressable_shards[0].data.size * 8 == keys.size
    for mine, theirs in zip(loaded.score(prompts, row_length=96), engine.score(prompts, row_length=96), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-5)


@pytest.mark.parametrize("text", ["8", "fsdp", "fsdp=x", "rows=2", "fsdp=2,fsdp=4", "fsdp=3"])
def test_meshes_that_are_none(text):
    with pytest.raises(UserError, match="mesh"):
        read_mesh(text)


def test_buckets():
    assert [bucket(n) for n in (1, 64, 65, 128, 129)] == [64, 64, 128, 128, 256]
