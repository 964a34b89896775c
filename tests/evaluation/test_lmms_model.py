"""An installed lmms-eval finds the engine, asks it a small local task, and its answers are the engine's own.

Run by `make test-lmms`, in an environment of its own: lmms-eval brings a hundred packages along.
"""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.engine import load_engine
from spatialllm_jax.inference.prompts import ChatSettings, Prompt
from spatialllm_jax.models import store
from spatialllm_jax.models.presets import preset
from tests.conftest import random_params
from tests.evaluation.lmms_task import CHOICES, WORDS, documents_of, lmms, prompts_of

pytestmark = [pytest.mark.slow]
pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; run: make test-lmms")
ASKED = ("What colour is the wall?", "Is the cat closer than the dog?", "Count <image> dogs.")

@pytest.fixture(scope="module")
def folder(tiny_tokenizer, tmp_path_factory):
    config = preset("nano")
    config = config.replace(llm=dataclasses.replace(config.llm, vocab_size=512))
    where = tmp_path_factory.mktemp("lmms") / "model"
    store.save_model(where, config, random_params(config))
    (where / "chat.json").write_text(json.dumps(dataclasses.asdict(ChatSettings("compact", "look", 16, "stretch"))))
    tiny_tokenizer.save(where)
    return where


@pytest.fixture(scope="module")
def documents():
    """Three pictures with two questions each, and a question without a picture."""
    return documents_of(ASKED, 3)


def test_words(tmp_path, folder, documents):
    words = load_engine(folder, batch_size=2).generate(prompts_of(documents), max_new_tokens=6)
    cut = [text.partition("e")[0].strip() for text in words]
    known = [{**doc, "answer": text if k % 2 else "yes"} for k, (doc, text) in enumerate(
        zip(documents, cut, strict=True))]
    lines, result = lmms(tmp_path, known, "spatialllm_jax", f"pretrained={folder}", WORDS, "local_words")
    assert [line["filtered_resps"].strip() for line in lines] == cut
    assert any(text.strip() != before for text, before in zip(words, cut, strict=True))     # the stop string met
    assert len(set(cut)) > 1
    assert result["equal,none"] == np.mean([a == doc["answer"] for a, doc in zip(cut, known, strict=True)]) >= 3 / 7


def test_choices(tmp_path, folder, documents):
    lines, result = lmms(tmp_path, documents, "spatialllm_jax", f"pretrained={folder}", CHOICES,
                         "local_choices")
    expected = load_engine(folder, batch_size=2).likelihoods(prompts_of(documents, ("yes", "no", "a wall")))
    losses = [-its.logp / its.tokens for its in expected]
    for line, loss in zip(lines, losses, strict=True):
        np.testing.assert_allclose([float(reply[0]) for reply in line["filtered_resps"]], loss, rtol=1e-4)
    best = [int(np.argmin(loss)) for loss in losses]
    share = np.mean([k == doc["label"] for k, doc in zip(best, documents, strict=True)])
    assert 0 < share < 1 and result["acc,none"] == share


def request(text, settings, visuals, kind="generate_until"):
    from lmms_eval.api.instance import Instance

    return Instance(kind, (text, settings, lambda _: visuals, 0, "t", "test"), 0,
                    {"task": "t", "doc_id": 0, "repeats": 1})


def test_documents_with_several_pictures(folder, documents):
    """Where the task's text places them, or in front as lmms-eval's LLaVA class does; words and losses."""
    from spatialllm_jax.evaluation.lmms_model import LmmsModel

    model = LmmsModel(str(folder), batch_size=2)
    model.task_dict = {"t": {"test": [None]}}
    visuals = [documents[k]["image"] for k in (0, 2, 4)]
    (_, first), *more = ((str(k), one.image) for k, one in enumerate(prompts_of([documents[k] for k in (0, 2, 4)])))
    texts = ["<image> and <image>: like <image>?", "Which?"]
    prompts = [Prompt("0", first, text, ("a wall",), more=tuple(more)) for text in (
        texts[0], "<image> <image> <image>\nWhich?")]
    engine = load_engine(folder, batch_size=2)
    assert model.generate_until([request(text, {"max_new_tokens": 6}, visuals) for text in texts]) == engine.generate(
        prompts, max_new_tokens=6)
    losses = [found.text[0] for found in model.loglikelihood(
        [request(text, "a wall", visuals, "loglikelihood") for text in texts])]
    np.testing.assert_allclose(losses, [-its.logp[0] / its.tokens[0] for its in engine.likelihoods(
        prompts, row_length=1024)], rtol=1e-5)


def test_mistakes(folder):
    from spatialllm_jax.evaluation.lmms_model import LmmsModel

    with pytest.raises(UserError, match="needs pretrained"):
        LmmsModel()
    with pytest.raises(UserError, match="does not know temprature"):
        LmmsModel(str(folder), temprature=1)
    model = LmmsModel(str(folder))

    def ask(visuals, text="q", **settings):
        model.task_dict = {"t": {"test": [None]}}
        model.generate_until([request(text, settings, visuals)])

    with pytest.raises(UserError, match=r"2 pictures for 1 places \(<image>\)"):
        ask([Image.new("RGB", (4, 4))] * 2, text="what is <image>?")
    with pytest.raises(UserError, match="num_beams=3"):
        ask([], num_beams=3)
    with pytest.raises(UserError, match="a dict is no picture"):
        ask([{"video": 1}])
    with pytest.raises(UserError, match="cannot be read"):
        ask(["/nowhere.png"])
