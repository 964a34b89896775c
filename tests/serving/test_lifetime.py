"""Clients that leave, a queue that is full, an engine that fails, a server that is told to end."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

from spatialllm_jax.inference import live as live_module
from tests.serving.running import NAME, asking, data_url, model_folder, png, post, serving, until
from tests.serving.test_bad_requests import head, raw


def body(seed=0, **fields):
    return {"model": NAME, "messages": [asking("What is this?", data_url(png(seed)))], **fields}


@pytest.fixture
def slow(worker, monkeypatch):
    """Holds the engine before every step until it is told how many it may take."""
    allowed = threading.Semaphore(0)
    step = worker.live.step
    monkeypatch.setattr(live_module, "_MOST_STEPS", 1)

    def held():
        allowed.acquire()
        yield from step()

    monkeypatch.setattr(worker.live, "step", held)
    yield allowed
    monkeypatch.undo()
    allowed.release(1000)


def test_a_client_that_leaves_frees_its_lane(worker, slow):
    with serving(worker, queue=2) as server:
        open_ones = []
        for seed in range(6):
            data = json.dumps(body(seed, stream=seed % 2 == 0)).encode()
            open_ones.append(raw(server.url, head(len(data)), data))
            until(lambda: server.service.under_way == len(open_ones))
        status, headers, answer = post(server.url, body(9))
        assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "queue_full", "1")
        slow.release(2)         # the first step knew of the first request alone
        until(lambda: worker.live.running == 4)
        for connection in open_ones:
            connection.close()
        until(lambda: server.service.under_way == 0)
        slow.release(50)
        until(lambda: not worker.live.busy)
        assert server.service.metrics.requests == {429: 1, 499: 6}
        assert post(server.url, body(3))[0] == 200


def test_a_fault_of_the_engine_costs_what_was_under_way(worker, monkeypatch):
    with serving(worker) as server:
        expected = post(server.url, body(1))[2]["choices"]
        step = worker.live.step

        def broken():
            monkeypatch.setattr(worker.live, "step", step)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(worker.live, "step", broken)
        status, _, answer = post(server.url, body(1))
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (500, "engine_failure", "server_error")
        assert post(server.url, body(1))[2]["choices"] == expected


def test_told_to_end_it_finishes_what_runs(worker, slow):
    with serving(worker) as server:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(post, server.url, body(1))
            until(lambda: server.service.under_way == 1)
            server.handle_exit(signal.SIGTERM, None)
            status, headers, answer = post(server.url, body(2))
            assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "shutting_down", "1")
            assert server.service.health()[0] == 503 and not server.should_exit
            slow.release(1000)
            assert running.result()[0] == 200
        until(lambda: server.should_exit)


@pytest.mark.slow
def test_sigterm_finishes_what_runs(tiny_tokenizer, tmp_path):
    """A process of its own: ready, asked, told to end in the middle of an answer."""
    folder = model_folder(tmp_path / "tiny" / "model", tiny_tokenizer)
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.serve", "--model", str(folder), "--port", "0", "--concurrent", "1", "--context",
         "128", "--max-new-tokens", "2000", "--json"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "XLA_FLAGS": "", "SPATIALLLM_API_KEY": ""})
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: http://127.0.0.1:") and "serves 'tiny'" in line
        url = line.split()[1]
        with urllib.request.urlopen(f"{url}/health") as response:
            assert json.load(response) == {"status": "ok", "model": "tiny"}
        data = json.dumps(body(stream=True)).encode()
        with raw(url, head(len(data), "Connection: close\r\n"), data) as running:
            stream = running.makefile("rb")
            while not (first := stream.readline()).startswith(b'data: {"id"'):
                assert first
            process.send_signal(signal.SIGTERM)
            until(lambda: post(url, body())[0] == 503)
            status, headers, answer = post(url, body())
            assert (status, answer["error"]["code"]) == (503, "shutting_down") and headers["retry-after"] == "1"
            rest = stream.read()
        assert rest.rstrip().endswith(b"[DONE]\n\n0") or b"data: [DONE]" in rest
        out = process.communicate(timeout=30)[0]
        assert process.returncode == 0
        assert json.loads(out.splitlines()[-1])["requests"]["200"] == 1
    finally:
        process.kill()
        process.wait()
