"""Answers to requests that come and go, against the same prompts answered alone and in a closed list."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from spatialllm_jax.data import chat
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference import lanes
from spatialllm_jax.inference.engine import Engine, load_engine
from spatialllm_jax.inference.live import MOST_OPTIONS, Live, Sampling, lanes_for
from spatialllm_jax.inference.prompts import ChatSettings, Prompt, open_prompt
from spatialllm_jax.models import store
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.parallel.mesh import read_mesh
from tests.conftest import random_params

NANO = preset("nano_clip")
CONFIG = NANO.replace(llm=dataclasses.replace(NANO.llm, vocab_size=512))
SETTINGS = ChatSettings("compact", "look", 16, "stretch")
NEW = 10


@pytest.fixture(scope="module")
def engine(tiny_tokenizer):
    # Committed to a device, as loaded weights are.
    params = jax.device_put(random_params(CONFIG), jax.devices()[0])
    # Images in batches of `Live`'s sizes, so that both run the same compiled encoders.
    return Engine(SpatialLLM(CONFIG), params, tiny_tokenizer, SETTINGS, batch_size=4, image_batches=(1, 8))


@pytest.fixture(scope="module")
def live(engine):
    found = Live(engine, lanes_for(engine, 128, NEW, 4, 2))
    assert found.shape == lanes.Shape(2, 2, 16, 112, NEW)
    assert len(list(found.warm())) == found.programs
    return found


@pytest.fixture(scope="module")
def prompts(tiny_dataset):
    records = open_split(tiny_dataset, "test")
    pictured = [Prompt(r.image_id, r.image, question) for r in (records[k] for k in range(5))
                for question in ("What colour is the wall?", "Which is closer, the cat or the dog?", "What is this?")]
    longer = dataclasses.replace(pictured[0], history=(
        ("What is this?", "a wall"), ("How far is the cat?", "2 metres")))
    return [*pictured, longer, Prompt("", b"", "What is this?"), Prompt("", None, "What is this?"),
            dataclasses.replace(pictured[4], system="a cat and a dog look at a wall in red or green or blue " * 4)]


def answered(live, prompts, samplings, arrivals=None, left=(), whole=10**6):
    """(texts, finishes, tokens): prompts arrive before the given steps; those `left` are cancelled at their first."""
    arrivals = [0] * len(prompts) if arrivals is None else arrivals
    texts, finishes, tokens, step = [""] * len(prompts), [""] * len(prompts), [0] * len(prompts), 0
    while step <= max(arrivals) or live.busy:
        for k, at in enumerate(arrivals):
            if at == step:
                live.add(k, live.ready(prompts[k], samplings[k]))
        gone = set()
        for updates in live.step():
            for update in updates:
                assert not finishes[update.ticket]
                texts[update.ticket] += update.text
                finishes[update.ticket], tokens[update.ticket] = update.finish, update.tokens
                if update.ticket in left:
                    gone.add(update.ticket)
        for ticket in gone:
            live.cancel(ticket)
        step += 1
        assert step < whole
    return texts, finishes, tokens


def test_nothing_compiles_after_warming_up(engine, live, prompts):
    compiled = []

    def heard(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        jax.jit(lambda x: x + 41)(1)
        assert compiled         # the listener hears
        compiled.clear()
        answered(live, prompts[:1], [Sampling(2)])
        assert not compiled
        for count in (2, 3, 7, len(prompts)):
            fresh = [dataclasses.replace(p, image_id=p.image_id + str(count)) for p in prompts[-count:]]
            for temperature in (0.0, 1.0):
                answered(live, fresh, [Sampling(4, temperature, 0.5, stop=("a",))] * count, left={1})
        for options in (("red", "green"), tuple("abcdefghi")):
            live.score(live.ready(dataclasses.replace(prompts[0], options=options), Sampling(1)))
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def test_whoever_else_is_served(engine, live, prompts):
    """All kinds of prompts at random times, some of them drawn, some left: each as if it were alone."""
    rng = np.random.default_rng(0)
    warm = [Sampling(int(rng.integers(1, NEW + 1)), 1.3 * (k % 3 == 2), 0.8 if k % 2 else 1.0, k)
            for k in range(len(prompts))]
    together, finishes, tokens = answered(live, prompts, warm)
    alone = [answered(live, [prompt], [sampling]) for prompt, sampling in zip(prompts, warm, strict=True)]
    assert [(t, f, n) for (t,), (f,), (n,) in alone] == list(zip(together, finishes, tokens, strict=True))
    assert len(set(together)) > 12
    closed = engine.generate(prompts, max_new_tokens=NEW)       # the same prompts, all there from the start, greedily
    assert answered(live, prompts, [Sampling(NEW)] * len(prompts))[0] == closed
    assert all(n == s.max_tokens if finish == "length" else n <= s.max_tokens
               for finish, n, s in zip(finishes, tokens, warm, strict=True)) and all(finishes)
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(prompts))
        left = {0, 3, 7}
        found, ends, _ = answered(live, [prompts[k] for k in order], [warm[k] for k in order],
                                  rng.integers(0, 9, len(prompts)).tolist(), left)
        for place, k in enumerate(order):
            if place not in left:
                assert (found[place], ends[place]) == (together[k], finishes[k])
            else:
                assert together[k].startswith(found[place])
    assert live.running == 0 and not live.busy


def test_options_are_scored_as_by_the_engine(engine, live, prompts):
    asked = dataclasses.replace(prompts[1], options=("cat", "dog"))
    np.testing.assert_allclose(live.score(live.ready(asked, Sampling(1))), engine.score([asked], row_length=96)[0],
                               atol=2e-5)
    with pytest.raises(UserError, match=f"more than {MOST_OPTIONS}"):
        live.score(live.ready(dataclasses.replace(asked, options=("a",) * 17), Sampling(1)))
    with pytest.raises(UserError, match="leave out the turns before"):
        live.score(live.ready(dataclasses.replace(asked, history=(("a", "b"),)), Sampling(1)))


def test_a_picture_stays_for_the_next_question(live, prompts, monkeypatch):
    begun = []
    begin = lanes.begin
    monkeypatch.setattr(lanes, "begin", lambda *args: begun.append(args[4]) or begin(*args))
    picture = dataclasses.replace(prompts[0], image_id="new")
    for question in ("What is this?", "How far is the cat?"):
        answered(live, [dataclasses.replace(picture, question=question)], [Sampling(3)])
    assert len(begun) == 1
    # More questions at once than lanes of a row: the other row takes some of them.
    answered(live, [dataclasses.replace(picture, question=f"What is {k}?") for k in "abcd"], [Sampling(NEW)] * 4)
    assert len(begun) == 2


def test_nobody_waits_for_ever(live, prompts):
    """A picture in both rows whose questions never end does not keep another one out."""
    hot, cold = prompts[0], prompts[6]
    for k in range(4):
        live.add(("hot", k), live.ready(hot, Sampling(NEW)))
    number, served = 4, False
    live.add("cold", live.ready(cold, Sampling(2)))
    for _ in range(200):
        for updates in live.step():
            for update in updates:
                served |= update.ticket == "cold" and bool(update.finish)
                if update.finish and update.ticket != "cold":
                    live.add(("hot", number), live.ready(hot, Sampling(NEW)))
                    number += 1
        if served:
            break
    assert served and number < 60
    for k in range(number):
        live.cancel(("hot", k))
    assert not live.busy


def test_stop_texts_free_the_lane(live, prompts):
    (whole,), _, _ = answered(live, [prompts[3]], [Sampling(NEW)])
    cut = whole[len(whole) // 2:][:2].strip() or whole[-1]
    (text,), (finish,), _ = answered(live, [prompts[3]], [Sampling(NEW, stop=(cut,))])
    assert text == whole[:whole.index(cut)].rstrip() and finish == "stop" and live.running == 0


def test_conversations_read_as_in_training(tiny_tokenizer):
    turns = (("What is this?", "a wall"), ("How far is the cat?", "2 metres"))
    for template in ("compact", "llama3"):
        settings = dataclasses.replace(SETTINGS, template=template)
        trained = chat.encode(tiny_tokenizer, [*turns, ("Is it red?", "yes")], template=template, system="look",
                              num_image_tokens=4)
        found = open_prompt(tiny_tokenizer, settings, "Is it red?", 4, history=turns)
        np.testing.assert_array_equal(found.tokens, trained.tokens[:trained.answers[-1][0]])
        text = open_prompt(tiny_tokenizer, settings, "Is it red?", 0, history=turns, system="")
        assert (text.image_index == -1).all() and text.length < found.length - 4


def test_prompts_that_do_not_fit(engine, live, prompts):
    with pytest.raises(UserError, match=r"has \d+ tokens, 4 of them for the picture, and may have 128"):
        live.ready(dataclasses.replace(prompts[0], question="cat dog " * 100), Sampling(1))
    for arguments, match in (((20, 4, 4, 2), "--context 20 is too short"), ((0, 0, 4, 2), "--max-new-tokens 0"),
                             ((0, 4, 4, 3), "multiple of --per-picture"), ((0, 4, 0, 1), "--concurrent 0")):
        with pytest.raises(UserError, match=match):
            lanes_for(engine, *arguments)


def test_top_p_keeps_the_head_of_the_softmax():
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(40, 30))).astype(np.float32)
    top_p = rng.uniform(0, 1, 40).astype(np.float32)
    top_p[:3] = 0.0, 1.0, 1.5
    found = np.asarray(jax.jit(lanes._nucleus)(logits, top_p))
    shares = np.exp(logits.astype(float))
    shares /= shares.sum(1, keepdims=True)
    for row, share, p, kept in zip(logits, shares, top_p, found, strict=True):
        total, expected = 0.0, set()
        for token in np.argsort(-row):
            if expected and total >= p:
                break
            expected.add(int(token))
            total += share[token]
        assert set(np.flatnonzero(np.isfinite(kept)).tolist()) == (set(range(30)) if p >= 1 else expected)
        assert (kept[list(expected)] == row[list(expected)]).all()


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["fsdp=8", "data=2,tensor=4"])
def test_eight_devices_answer_as_one_and_compile_nothing_later(live, prompts, tiny_tokenizer, tmp_path, axes):
    store.save_model(tmp_path, CONFIG, random_params(CONFIG))
    tiny_tokenizer.save(tmp_path)
    (tmp_path / "chat.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    engine = load_engine(tmp_path, batch_size=4, mesh=read_mesh(axes))
    spread = Live(engine, lanes_for(engine, 128, NEW, 4, 2))
    list(spread.warm())
    programs = (lanes.begin, lanes.ask, lanes.advance, lanes.release)
    before = sum(program._cache_size() for program in programs)
    samplings = [Sampling(NEW, k % 2, 0.9, k) for k in range(len(prompts))]
    found = answered(spread, prompts, samplings, left={3})
    assert sum(program._cache_size() for program in programs) == before
    expected = answered(live, prompts, samplings, left={3})
    assert [one for k, one in enumerate(found[0]) if k != 3] == [one for k, one in enumerate(expected[0]) if k != 3]
