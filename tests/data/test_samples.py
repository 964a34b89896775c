"""Which questions a sample gets, and in which form."""

import collections
import dataclasses

import numpy as np
import pytest

from spatialllm_jax.data import samples
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError

TEXT = samples.TextConfig("compact", 200, 4)


@pytest.fixture(scope="module")
def record(tiny_dataset):
    return open_split(tiny_dataset, "train")[0]


def source(types, **kwargs):
    return samples.SourceConfig("hand", "somewhere", types, **kwargs)


def draws(record, config, times, seed=0):
    rng = np.random.default_rng(seed)
    return [samples.draw_questions(record, config, rng) for _ in range(times)]


def test_types_are_drawn_by_weight(record):
    drawn = draws(record, source({"colour": 3.0, "caption": 1.0, "count": 5.0}), 2000)
    counts = collections.Counter(questions[0].type for questions in drawn)
    assert set(counts) == {"colour", "caption"}                 # the record has no "count"
    assert counts["colour"] / 2000 == pytest.approx(0.75, abs=0.04)   # four standard errors
    wordings = collections.Counter(q[0].text for q in drawn if q[0].type == "caption")
    assert len(wordings) == 2 and min(wordings.values()) > 180


def test_questions_of_a_sample_differ_and_run_out(record):
    for questions in draws(record, source({"what": 1.0, "colour": 1.0}, questions=9), 20):
        assert sorted(q.type for q in questions) == ["colour", "what", "what"]
        assert len({q.id for q in questions}) == 3
    assert draws(record, source({"count": 1.0}, questions=3), 1) == [[]]


def test_marks_never_contradict(record):
    config = source({"higher": 1.0, "colour": 0.2}, questions=3)
    seen = collections.Counter()
    for questions in draws(record, config, 60):
        marks = samples.marks_of(questions)
        assert len({(r.label, r.bbox) for q in questions if q.region_style == "mark" for r in q.regions}) == len(marks)
        assert sum(q.type == "higher" for q in questions) == 1
        seen[marks[0].phrase] += 1
    assert set(seen) == {"cat", "dog"}


def test_names_are_not_drawn(record):
    named = [dataclasses.replace(q, region_style="name") for q in record.questions]
    assert samples.marks_of(named) == ()
    assert [r.label for r in samples.marks_of(record.questions)] == ["0"]


def test_same_generator_same_draw(record):
    config = source({"what": 1.0, "colour": 1.0, "caption": 2.0}, questions=3)
    assert draws(record, config, 10, 7) == draws(record, config, 10, 7) != draws(record, config, 10, 8)


@pytest.mark.parametrize("form", samples.FORMS)
def test_forms(record, tiny_tokenizer, form):
    config = source({"caption": 1.0}, form=form, questions=2)
    questions = samples.draw_questions(record, config, np.random.default_rng(0))
    assert len(questions) == {"branches": 2, "dialogue": 2, "patches": 0}.get(form, 1)
    encoded = samples.encode_sample(tiny_tokenizer, TEXT, config, questions)
    said = [tiny_tokenizer.decode(encoded.tokens[a:b].tolist()) for a, b in encoded.answers]
    if form == "contrastive":
        assert (encoded.image_index == -1).all() and encoded.supervised.all()
        assert encoded.tokens[0] == tiny_tokenizer.id("<|begin_of_text|>")
        assert encoded.tokens[-1] == tiny_tokenizer.id("<|eot_id|>") and said == [questions[0].answer]
    elif form == "patches":
        assert encoded.length == 5 and (encoded.image_index >= 0).sum() == 4 and not encoded.supervised.any()
    else:
        assert (encoded.image_index >= 0).sum() == 4 and said == [q.answer for q in questions]
        asked = tiny_tokenizer.decode(encoded.tokens[~encoded.supervised].tolist())
        assert (questions[0].text.rstrip(".?") in asked) == (form != "plain")
        assert encoded.branch_ids.max() == (2 if form == "branches" else 0)


def test_long_captions_keep_their_end(tiny_tokenizer):
    text = samples.TextConfig("compact", 6, 4)
    encoded = samples.encode_caption(tiny_tokenizer, "a wall in red " * 10, text)
    assert encoded.length == 6 and encoded.tokens[-1] == tiny_tokenizer.id("<|eot_id|>")


def test_nothing_supervised_gives_no_sample(record, tiny_tokenizer):
    config = source({"caption": 1.0}, form="dialogue")
    short = dataclasses.replace(TEXT, max_length=7)
    assert samples.encode_sample(tiny_tokenizer, short, config, record.questions[:1]) is None
    assert samples.encode_sample(tiny_tokenizer, TEXT, config, []) is None


def test_user_mistakes():
    with pytest.raises(UserError, match=r"'chat'.*branches, dialogue, plain, contrastive"):
        source({"caption": 1.0}, form="chat")
    with pytest.raises(UserError, match="no question types"):
        source({})
