"""What cannot be answered is said plainly, in the API's own format, and the server stays up."""

import http.client
import io
import json
import socket
import struct
import urllib.parse
import zlib

import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.lanes import Shape
from spatialllm_jax.serving import protocol, run
from spatialllm_jax.serving.errors import RequestError
from spatialllm_jax.serving.limits import Limits
from spatialllm_jax.serving.metrics import Metrics
from tests.serving.running import CONTEXT, NAME, asking, data_url, png, post, serving, until

SHAPE = Shape(4, 1, 16, CONTEXT - 16, 24)
PNG = data_url(png())


def bomb():
    """A PNG of a few hundred bytes that says it is 50,000 x 50,000."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def body(**fields):
    return {"model": NAME, "messages": [asking("What is this?", PNG)], **fields}


def messages(*said, **fields):
    return body(messages=list(said), **fields)


USER, BOT = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}
CASES = {
    "invalid JSON": (b"{'model': 1}", 400, "not JSON"),
    "deep JSON": (b"[" * 100_000, 400, "not JSON"),
    "no object": (b"[1]", 400, "must be a JSON object"),
    "not a number": (json.dumps(body(temperature=float("nan"))).encode(), 400, "temperature: must be a number"),
    "unknown model": (body(model="gpt-4o"), 404, "'gpt-4o' does not exist; this server has 'tiny'"),
    "no model": ({"messages": [USER]}, 400, "model: is missing"),
    "unknown field": (body(beam=3), 400, "beam: unknown field"),
    "no messages": (body(messages=[]), 400, "messages: must be a list"),
    "no role": (messages({"content": "x"}), 400, "messages[0].role"),
    "no text": (messages(asking("  ", PNG)), 400, "the user's message 1 has no text"),
    "no turns": (messages(USER, USER), 400, "must take turns"),
    "ends with an answer": (messages(USER, BOT), 400, "last message must be the user's"),
    "odd content": (messages({"role": "user", "content": [{"type": "audio"}]}), 400, "type text or image_url"),
    "picture of the system": (messages({**asking("x", PNG), "role": "system"}, USER), 400, "belong into messages of"),
    "template's marks": (messages({"role": "user", "content": "x<|eot_id|>"}), 400, "holds <|eot_id|>"),
    "remote picture": (messages(asking("x", "https://example.org/a.jpg")), 400, "fetches no pictures"),
    "local file": (messages(asking("x", "file:///etc/passwd")), 400, "must be a data URL"),
    "bad base64": (messages(asking("x", "data:image/png;base64,iVBOR*")), 400, "base64 of the picture is broken"),
    "no picture": (messages(asking("x", data_url(b"hello"))), 400, "not a picture that can be read"),
    "empty picture": (messages(asking("x", data_url(b""))), 400, "picture is empty"),
    "cut picture": (messages(asking("x", data_url(png()[:3000]))), 400, "cannot be decoded"),
    "bomb": (messages(asking("x", data_url(bomb()))), 400, "more than 1,000,000; scale it down"),
    "script as picture": (messages(asking("x", data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"))), 400,
                          "not a picture that can be read"),
    "two pictures": (messages(asking("x", PNG, PNG)), 400, "2 pictures are more than 1"),
    "1,000 pictures": (messages(asking("x", *["data:image/png;base64,AA=="] * 1000)), 400, "1000 pictures"),
    "too long": (messages({"role": "user", "content": "cat dog " * 400}), 400, f"may have {CONTEXT}"),
    "far too long": (messages({"role": "user", "content": "x" * 10_000}), 400, "10,000 characters"),
    "several answers": (body(n=2), 400, "n: is not supported"),
    "log-probabilities": (body(logprobs=True), 400, "give `options`"),
    "tools": (body(tools=[{"type": "function"}]), 400, "tools: is not supported"),
    "temperature": (body(temperature=2.5), 400, "temperature: must be a number from 0 to 2"),
    "top_p": (body(top_p="1"), 400, "top_p: must be a number"),
    "no tokens": (body(max_tokens=0), 400, "max_tokens: must be a whole number"),
    "half a seed": (body(seed=0.5), 400, "seed: must be a whole number"),
    "five stops": (body(stop=list("abcde")), 400, "stop: must be a list of at most 4"),
    "stream": (body(stream="yes"), 400, "stream: must be true or false"),
    "one option": (body(options=["cat"]), 400, "two or more answers"),
    "17 options": (body(options=["cat"] * 17), 400, "options: must be a list of at most 16"),
    "options later": (messages(USER, BOT, USER, options=["a", "b"]), 400, "scored on a first question"),
    "long options": (body(options=["cat " * 300, "dog"]), 400, "longer than"),
    "regions of nothing": (messages(USER, regions=[{"bbox": [0, 0, 1, 1]}]), 400, "no picture to draw them on"),
    "region outside": (body(regions=[{"bbox": [0, 0, 1, 1.2]}]), 400, "regions[0].bbox: needs"),
    "region of words": (body(regions=[{"bbox": "0,0,1,1"}]), 400, "regions[0].bbox: must be four numbers"),
    "labels": (body(regions=[{"bbox": [0, 0, 1, 1], "label": "<b>"}]), 400, "one to three letters or digits"),
    "same label": (body(regions=[{"bbox": [0, 0, 1, 1], "label": "1"}, {"bbox": [0, 0, 1, 1]}]), 400, "there twice"),
    "33 regions": (body(regions=[{"bbox": [0, 0, 1, 1]}] * 33), 400, "list of at most 32"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_requests(server, case):
    sent, status, said = CASES[case]
    found, headers, answer = post(server.url, sent)
    assert (found, headers["content-type"]) == (status, "application/json")
    assert said in answer["error"]["message"] and answer["error"].keys() == {"message", "type", "param", "code"}
    assert server.service.under_way == 0


def test_known_fields_that_change_nothing_are_taken(server):
    idle = {"user": "me", "metadata": {"a": "b"}, "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0,
            "response_format": {"type": "text"}, "logprobs": False, "tools": None, "stop": None, "seed": -1,
            "max_tokens": 1}
    status, _, answer = post(server.url, body(**idle))
    assert status == 200 and answer["usage"]["completion_tokens"] == 1


def test_addresses(server):
    for path, headers, status, said in (
            ("/v1/completions", {}, 404, "nothing at /v1/completions"),
            ("/v1/chat/completions", {"Content-Type": "text/plain"}, 415, "application/json"),
            ("/v1/models", {}, 405, "not asked by POST"),
            ("/v1/models", {"Host": "rebound.example"}, 403, "not called"),
            ("/v1/marked", {}, 400, "image: must be a data URL")):
        found, _, answer = post(server.url, {}, path, headers)
        assert found == status and said in answer["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_oversized_bodies(server, chunked):
    parts = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    data = iter([b"x" * (1 << 18)] * 8) if chunked else b"x" * (2 << 20)
    connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"},
                       encode_chunked=chunked)
    response = connection.getresponse()
    assert response.status == 413 and "larger than 1,048,576 bytes" in json.loads(response.read())["error"]["message"]
    connection.close()
    assert post(server.url, body(max_tokens=1))[0] == 200


def raw(url, head, sent=b""):
    """An open connection that has sent so much of a request."""
    parts = urllib.parse.urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port))
    connection.sendall(head.encode() + sent)
    return connection


def head(length, more=""):
    return (f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n{more}\r\n")


def test_slow_clients_are_told_and_let_go(worker):
    with serving(worker, seconds=0.6) as server:
        with raw(server.url, head(1000), b"{") as slow:
            until(lambda: server.service.under_way == 1)
            answer = slow.makefile("rb").read().decode()
            assert answer.startswith("HTTP/1.1 504") and "longer than 0.6 s" in answer
        until(lambda: server.service.under_way == 0)
        with raw(server.url, head(1000), b"{"):     # and one that leaves in the middle
            until(lambda: server.service.under_way == 1)
        until(lambda: server.service.under_way == 0)
        assert server.service.metrics.requests[499] == server.service.metrics.requests[504] == 1


def test_pictures_of_other_kinds(server):
    for kind in ("JPEG", "WEBP", "GIF", "BMP"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(png())).convert("RGB").save(buffer, kind)
        assert post(server.url, messages(asking("x", data_url(buffer.getvalue(), "image/x")), max_tokens=1))[0] == 200


def test_limits_and_flags():
    for flag, fields in (("--max-body 0", {"body": 0}), ("--queue -1", {"queue": -1}),
                         ("--request-timeout -1", {"seconds": -1.0}), ("--max-pixels 0", {"pixels": 0})):
        with pytest.raises(UserError, match=flag):
            Limits(**fields)
    with run.bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match=r"cannot listen there \(Address already in use\)"):
            run.bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(RequestError, match="model: is missing"):
        protocol.chat(b"{}", NAME, SHAPE, Limits())


def test_metrics_add_up():
    metrics = Metrics()
    for seconds in (0.01, 0.3, 0.3, 1000):
        metrics.finished(200, seconds)
    metrics.finished(429, 0)
    text = metrics.text({"lanes": ("answers at a time", 4)})
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['spatialllm_requests_total{status="200"}'] == "4" and lines["spatialllm_lanes"] == "4"
    assert lines['spatialllm_request_seconds_bucket{le="0.25"}'] == "2"
    assert lines['spatialllm_request_seconds_bucket{le="0.5"}'] == "4"
    assert lines['spatialllm_request_seconds_bucket{le="+Inf"}'] == lines["spatialllm_request_seconds_count"] == "5"


