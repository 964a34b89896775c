"""A server with a tiny random model, in this process or one of its own, and requests to it."""

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import threading
import time
import urllib.parse

import numpy as np
from PIL import Image

from spatialllm_jax.inference.engine import Engine
from spatialllm_jax.inference.live import Live, lanes_for
from spatialllm_jax.inference.prompts import ChatSettings
from spatialllm_jax.models import store
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.serving import run
from spatialllm_jax.serving.limits import Limits
from spatialllm_jax.serving.service import Service
from spatialllm_jax.serving.worker import Worker
from tests.conftest import random_params

# Every size is a program to compile: one encoder, and questions of one width.
NAME, NEW, CONTEXT = "tiny", 24, 80
NANO = preset("nano_clip")
CONFIG = NANO.replace(llm=dataclasses.replace(NANO.llm, vocab_size=512))
SETTINGS = ChatSettings("compact", "look", 168, "pad")


def tiny_engine(tokenizer):
    # Images in batches of the server's sizes, so that both run its compiled encoders.
    return Engine(SpatialLLM(CONFIG), random_params(CONFIG), tokenizer, SETTINGS, batch_size=4, image_batches=(1, 8))


def tiny_worker(engine, concurrent=4, new=NEW, context=CONTEXT):
    """A worker that has compiled everything; on one row per answer."""
    worker = Worker(Live(engine, lanes_for(engine, context, new, concurrent, 1)))
    worker.start()
    worker.warm.wait()
    assert worker.failure is None
    return worker


def model_folder(folder, tokenizer):
    """The same model as a folder."""
    store.save_model(folder, CONFIG, random_params(CONFIG))
    tokenizer.save(folder)
    (folder / "chat.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    return folder


@contextlib.contextmanager
def serving(worker, *, key="", **limits):
    """A running `run.Server`; its address is `server.url`. The worker goes on afterwards."""
    service = Service(worker, NAME, Limits(**limits), key)
    sock = run.bind("127.0.0.1", 0)
    server = run.Server(service, "127.0.0.1")
    server.url = run.address(sock)
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(true, seconds=20.0):
    """Waits until `true()`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def png(seed=0, size=(60, 90)):
    """A picture of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def asking(text, *pictures):
    """The user's message."""
    return {"role": "user", "content": [*({"type": "image_url", "image_url": {"url": url}} for url in pictures),
                                        {"type": "text", "text": text}]}


def post(url, body, path="/v1/chat/completions", headers=None):
    """(status, headers, answer) of a request; the answer is read as JSON where it is."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        kind = response.getheader("content-type", "")
        return response.status, dict(response.getheaders()), json.loads(content) if "json" in kind else content
    finally:
        connection.close()
