"""The server as the `openai` package sees it, and the same answers through every door."""

import concurrent.futures
import dataclasses
import io
import sys

import numpy as np
import openai
import pytest

from launch import ask as ask_command
from launch import chat as chat_command
from spatialllm_jax.data import images
from spatialllm_jax.inference import live
from spatialllm_jax.inference.prompts import Prompt, picture_id
from spatialllm_jax.questions.types import Region
from tests.serving.running import CONTEXT, NAME, NEW, asking, data_url, model_folder, png, post, serving

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def said(client, *messages, **fields):
    return client.chat.completions.create(model=NAME, messages=list(messages), **fields)


def test_models(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "spatialllm-jax"
    with pytest.raises(openai.NotFoundError, match="'gpt' does not exist; this server has 'tiny'"):
        client.models.retrieve("gpt")


def test_whole_and_streamed_answers_are_the_engines(client, tiny, monkeypatch):
    monkeypatch.setattr(live, "_MOST_STEPS", 1)        # else so small a model says it all in one piece
    data = png(1)
    prompt = Prompt(picture_id(data), data, QUESTION)
    expected = tiny.generate([prompt], max_new_tokens=NEW)[0]
    whole = said(client, asking(QUESTION, data_url(data)))
    assert whole.choices[0].message.content == expected and whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.prompt_tokens == tiny.request(prompt, 1).length
    chunks = list(said(client, asking(QUESTION, data_url(data)), stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 6
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []


def test_conversations_regions_and_texts_alone(client, tiny):
    data = png(2)
    box = {"bbox": [0.1, 0.2, 0.6, 0.9], "label": "0"}
    system = {"role": "system", "content": "look at the cat"}
    turns = [asking("How far is the cat?", data_url(data)), {"role": "assistant", "content": "2 metres"},
             {"role": "user", "content": QUESTION}]
    marks = (Region("0", (0.1, 0.2, 0.6, 0.9), ""),)
    prompts = [Prompt(picture_id(data), data, QUESTION, marks=marks, history=(("How far is the cat?", "2 metres"),),
                      system="look at the cat"),
               Prompt(picture_id(data), data, QUESTION, history=(("How far is the cat?", "2 metres"),)),
               Prompt("", b"", QUESTION)]
    found = [said(client, system, *turns, extra_body={"regions": [box]}), said(client, *turns),
             said(client, {"role": "user", "content": QUESTION})]
    answers = [one.choices[0].message.content for one in found]
    assert answers == tiny.generate(prompts, max_new_tokens=NEW) and len(set(answers)) == 3


def test_drawing_is_the_requests_own(client):
    message = asking(QUESTION, data_url(png(3)))

    def drawn(seed=None, **fields):
        return said(client, message, temperature=1.5, **fields, **({} if seed is None else {"seed": seed})
                    ).choices[0].message.content

    assert drawn(1) == drawn(1) != drawn(2)
    assert len({drawn() for _ in range(4)}) > 1                 # without a seed it is another one each time
    assert drawn(5, top_p=0.0) == said(client, message).choices[0].message.content     # the likeliest alone
    with concurrent.futures.ThreadPoolExecutor(8) as pool:      # more than there are lanes
        together = list(pool.map(drawn, range(8)))
    assert together == [drawn(seed) for seed in range(8)]


def test_ends_of_answers(client):
    message = asking(QUESTION, data_url(png(4)))
    whole = said(client, message).choices[0].message.content
    for field in ("max_tokens", "max_completion_tokens"):
        short = said(client, message, **{field: 3})
        assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
        assert whole.startswith(short.choices[0].message.content)
    assert said(client, message, max_tokens=10**6).choices[0].message.content == whole
    word = whole[4:7]
    cut = said(client, message, stop=["never said", word])
    assert cut.choices[0].message.content == whole[:whole.index(word)].rstrip()
    assert cut.choices[0].finish_reason == "stop"


def test_options_are_scored(client, tiny):
    data, options = png(5), ("cat", "dog", "a wall")
    # In rows of the server's size; `tests/inference/test_live.py` compares with others.
    alone = dataclasses.replace(tiny, batch_size=1)
    scores = alone.score([Prompt(picture_id(data), data, QUESTION, options)], row_length=CONTEXT + NEW,
                         beside=live.MOST_OPTIONS)[0]
    for stream in (False, True):
        found = said(client, asking(QUESTION, data_url(data)), extra_body={"options": list(options)}, stream=stream)
        if stream:
            found = list(found)
            text, listed = "".join(chunk.choices[0].delta.content or "" for chunk in found), found[-1].options
        else:
            text, listed = found.choices[0].message.content, found.options
        assert text == options[int(scores.argmax())] and [one["text"] for one in listed] == list(options)
        np.testing.assert_allclose([one["logprob"] for one in listed], scores, atol=1e-4)
        assert sum(one["probability"] for one in listed) == pytest.approx(1)


def test_errors_reach_the_client_as_its_own(client, worker):
    message = asking(QUESTION, data_url(png(6)))
    with pytest.raises(openai.BadRequestError, match="temperature: must be a number") as error:
        said(client, message, temperature=-1)
    assert (error.value.param, error.value.code, error.value.type) == (
        "temperature", "invalid_value", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' does not exist"):
        client.chat.completions.create(model="gpt-4o", messages=[message])
    with serving(worker, key="secret") as locked:
        for key, fits in (("wrong", False), ("secret", True)):
            other = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key, max_retries=0)
            if fits:
                assert said(other, message).choices[0].message.content
            else:
                with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
                    said(other, message)
    with serving(worker, queue=0) as busy:
        busy.service.under_way = busy.service.most
        other = openai.OpenAI(base_url=f"{busy.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="busy with 4 requests") as refused:
            said(other, message)
        assert refused.value.response.headers["retry-after"] == "1"
        busy.service.under_way = 0
        assert said(other, message).choices[0].message.content


def test_the_marked_picture_is_what_the_model_sees(server, tiny):
    data = png(7)
    boxes = [{"bbox": [0.1, 0.2, 0.6, 0.9]}, {"bbox": [0.5, 0.5, 0.9, 0.95], "label": "7"}]
    status, headers, found = post(server.url, {"image": data_url(data), "regions": boxes}, "/v1/marked")
    assert status == 200 and headers["content-type"] == "image/png"
    marks = tuple(Region(label, tuple(box["bbox"]), "") for label, box in zip("07", boxes, strict=True))
    np.testing.assert_array_equal(images.decode(found), images.load(data, 168, resize="pad", marks=marks))


@pytest.mark.slow
def test_the_terminal_says_the_same(client, tiny_tokenizer, tmp_path, monkeypatch, capsys):
    folder, data = model_folder(tmp_path / "model", tiny_tokenizer), png(8)
    (tmp_path / "picture.png").write_bytes(data)
    first = said(client, asking(QUESTION, data_url(data))).choices[0].message.content
    second = said(client, asking(QUESTION, data_url(data)), {"role": "assistant", "content": first},
                  {"role": "user", "content": "Is it red?"}).choices[0].message.content
    marked = said(client, asking("What is in Region [0]?", data_url(data)),
                  extra_body={"regions": [{"bbox": [0.1, 0.2, 0.6, 0.9]}]}).choices[0].message.content
    lines = [f"/image {tmp_path / 'picture.png'}", QUESTION, "", "Is it red?", "/region 0.1,0.2,0.6,0.9",
             "What is in Region [0]?", "/clear", QUESTION, "/quit", "never read"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    arguments = ["--model", str(folder), "--max-new-tokens", str(NEW), "--context", "128"]
    found = chat_command.main(arguments)["turns"]
    assert [answer for _, answer in found] == [first, second, marked, first]
    assert capsys.readouterr().out == f"{first}\n{second}\nRegion [0]\n{marked}\n{first}\n"
    one = ask_command.main([QUESTION, "--model", str(folder), "--image", str(tmp_path / "picture.png"),
                            "--max-new-tokens", str(NEW)])
    assert one["answer"] == first
