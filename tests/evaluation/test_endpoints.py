"""Models behind HTTP against a server on this machine that answers, refuses, hangs and talks nonsense."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.endpoints import Endpoint, EndpointConfig, Reply, picture
from spatialllm_jax.inference.prompts import Prompt
from spatialllm_jax.questions.types import Region
from tests.evaluation.fake_endpoint import picture_of, serving, text_of


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def encoded(kind="PNG", size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(buffer, kind)
    return buffer.getvalue()


def prompts(count, **kwargs):
    return [Prompt(f"i{k}", encoded(), f"question {k}", **kwargs) for k in range(count)]


def endpoint(fake, waits=None, **kwargs):
    return Endpoint(EndpointConfig(fake.url, "model-x", **kwargs), wait=(waits if waits is not None else []).append)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_both_formats(kind, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(lambda text, _: f"says {text[-1]}") as fake:
        replies = endpoint(fake, format=kind, key_variable="MY_KEY").generate(prompts(5), max_new_tokens=9)
    assert replies == [f"says {k}" for k in range(5)]       # in order, whichever came first
    assert {(reply.input_tokens, reply.output_tokens, reply.failure) for reply in replies} == {(10, 2, "")}
    path, headers, body = fake.requests[0]
    assert path == {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[kind]
    assert (headers["authorization"] if kind == "openai" else headers["x-api-key"]).endswith("secret")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("model-x", 9, 0.0)
    assert picture_of(body) == ("image/png", encoded())


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_several_pictures_are_sent_at_their_places(kind):
    first, second, third = (encoded(size=(20 + k, 20)) for k in range(3))
    more = (("b", second), ("c", third))
    asked = [Prompt("a", first, "Is <image> nearer than\n<image> and <image>?", more=more),
             Prompt("a", first, "Which is nearest?", more=more)]
    with serving(lambda *_: "fine") as fake:
        endpoint(fake, format=kind, workers=1).generate(asked)
    sent = []
    for _, _, body in fake.requests:
        parts = body["messages"][0]["content"]
        sent.append([part["text"] if part["type"] == "text" else picture_of({"messages": [{"content": [part]}]})[1]
                     for part in parts])
    assert sent == [["Is ", first, " nearer than\n", second, " and ", third, "?"],
                    [first, second, third, "Which is nearest?"]]


def test_parameters_of_every_request():
    with serving(lambda *_: "fine") as fake:
        chosen = (("temperature", None), ("max_tokens", None), ("max_completion_tokens", 99))
        endpoint(fake, parameters=chosen).generate(prompts(1), max_new_tokens=9)
    body = fake.requests[0][2]
    assert body["max_completion_tokens"] == 99 and not {"temperature", "max_tokens"} & set(body)


def test_pictures_carry_their_regions_as_local_models_see_them():
    marks = (Region("0", (0.1, 0.1, 0.6, 0.8), "cat"), Region("1", (0.5, 0.2, 0.9, 0.9), "dog"))
    big = encoded("JPEG", (400, 300))
    kind, data = picture(Prompt("a", big, "?", marks=marks), 2048)
    expected = images.draw_regions(images.decode(big), marks)
    assert kind == "image/jpeg"
    off = [np.abs(images.decode(data).astype(int) - other).mean() for other in (expected, images.decode(big))]
    assert off[0] < 1 and off[0] < off[1] / 4       # the marked picture, but for JPEG at quality 95
    assert picture(Prompt("a", big, "?"), 2048) == ("image/jpeg", big)
    small = images.decode(picture(Prompt("a", big, "?"), 100)[1])
    assert small.shape == (75, 100, 3)
    blank = images.decode(picture(Prompt("", None, "?"), 2048)[1])
    assert np.abs(blank.astype(int) - images.MEAN_COLOUR).max() <= 2


def test_busy_servers_are_asked_again():
    waits = []
    script = {1: (429, {"retry-after": "7"}, "{}"), 2: (503, {}, "down"), 3: (529, {}, "")}
    with serving(lambda text, number: script.get(number, "fine")) as fake:
        reply, = endpoint(fake, waits, workers=1).generate(prompts(1))
    assert reply == "fine" and len(fake.requests) == 4
    assert waits[0] == 7.0 and 1.0 <= waits[1] <= 2.0 and 2.0 <= waits[2] <= 4.0     # back-off with jitter


def test_what_goes_wrong_costs_that_prompt_alone():
    wrong = {"question 1": (200, {}, "<html>nonsense</html>"), "question 2": (200, {}, '{"choices": []}'),
             "question 3": (500, {}, '{"error": {"message": "oops"}}'),
             "question 4": (400, {}, '{"error": "picture too large"}'), "question 5": "hang",
             "question 6": (200, {"content-length": "500"}, "cut short")}
    with serving(lambda text, _: wrong.get(text, "fine")) as fake:
        replies = endpoint(fake, attempts=2, timeout=0.3, workers=4).generate(prompts(8))
    assert [str(reply) for reply in replies] == ["fine"] + [""] * 6 + ["fine"]
    failures = [reply.failure for reply in replies]
    for failure, why in zip(failures, ("", "not of the format", "IndexError", "500: oops", "400: picture too large",
                                       "timeout", "no connection", ""), strict=True):
        assert why in failure and bool(failure) == bool(why)
    assert not any(reply.fatal for reply in replies)
    asked = [text_of(body) for _, _, body in fake.requests]
    assert [asked.count(f"question {k}") for k in range(8)] == [1, 2, 2, 2, 1, 2, 2, 1]      # a bad request stays one


@pytest.mark.parametrize("status, why", [(401, "the key is not accepted"), (403, "may not"), (404, "no such address"),
                                         (302, "sends us elsewhere")])
def test_what_would_fail_for_all_ends_it(status, why, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    said = (status, {"location": "http://elsewhere.invalid/"}, '{"error": {"message": "go"}}')
    with serving(lambda *_: said) as fake:
        replies = endpoint(fake, workers=1).generate(prompts(4))
    assert len(fake.requests) == 1 and all(reply.fatal for reply in replies)      # the others were not even asked
    assert why in replies[0].failure and "OPENAI_API_KEY" in replies[0].failure and "secret" not in replies[0].failure


def test_rate_limit():
    with serving(lambda *_: "fine") as fake:
        began, waits = time.monotonic(), []
        endpoint(fake, waits, per_minute=60, workers=4).generate(prompts(5))
        assert time.monotonic() - began < 5         # the waits were only noted
    assert sorted(round(wait) for wait in waits) == [1, 2, 3, 4]


def test_refusals_of_the_model_are_answers():
    said = '{"choices": [{"message": {"content": null, "refusal": "I cannot help."}}]}'
    with serving(lambda *_: (200, {}, said)) as fake:
        reply, = endpoint(fake).generate(prompts(1))
    assert reply == "I cannot help." and not reply.failure and (reply.input_tokens, reply.output_tokens) == (0, 0)
    assert isinstance(Reply("x") + "y", str)


@pytest.mark.parametrize("url, changes, key, why", [
    ("ftp://x/v1", {}, "", "no http"), ("/v1", {}, "", "no http"), ("https://me:pw@x/v1", {}, "", "holds a password"),
    ("http://example.com/v1", {}, "secret", "unencrypted"), ("https://x/v1", {"format": "grpc"}, "", "grpc is unknown"),
])
def test_addresses_that_cannot_be(url, changes, key, why, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=why) as found:
        Endpoint(EndpointConfig(url, "m", **changes))
    assert "secret" not in str(found.value)
