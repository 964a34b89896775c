"""The server beside the engine alone: time to the first token, and answers per second when many ask at once.

One model of random weights in this process answers both ways, in turns, on the same cores; every request has a picture
of its own. Answers of both are compared first: they must be equal, text for text.

1. First token: one client at a time asks for a stream; from the first byte sent to the first event received. Beside
   it a bare prefill: one program that encodes the picture and reads the prompt, unpadded, up to the first token; no
   HTTP, no base64, no decoding of the file.
2. Throughput: `--concurrent` clients, threads of this process, against `Engine.generate` with the same prompts in a
   list and as many lanes. Answers are streamed, `--new` tokens each.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from launch import bench_report, cli
from spatialllm_jax.errors import UserError

_NAME = "bench"
_QUESTIONS = ("Which object is closer to the viewer, the car in Region [0] or the person in Region [1]?",
              "Which side of the chair is facing the camera?", "Is the lamp or the table higher up in the real world?",
              "From the perspective of the bus, in which direction is the tree?")


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    result = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench serve")
    result.add_argument("--preset", default="smollm2_135m", help="size of the model; its weights are random")
    result.add_argument("--merge", type=int, default=1, help="neighbouring patches that become one visual token")
    result.add_argument("--requests", type=int, default=64, help="of a turn of throughput, a picture each")
    result.add_argument("--concurrent", type=int, default=32, help="clients, and lanes of either side")
    result.add_argument("--new", type=int, default=32, help="tokens of every answer")
    result.add_argument("--first", type=int, default=10, help="requests for a first token, one after the other")
    result.add_argument("--repeats", type=int, default=3, help="turns of throughput; the figures are medians")
    result.add_argument("--seed", type=int, default=0, help="of weights and pictures")
    return result


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Measures both and prints the figures; see the module."""
    args = parser().parse_args(argv)
    cli.at_least_one(args, "merge", "requests", "concurrent", "new", "first", "repeats")
    from spatialllm_jax.training import partition

    engine = _engine(args)
    with _serving(engine, args) as url:
        result = {"parameters": partition.count(partition.flatten(engine.params)), "requests": args.requests,
                  "concurrent": args.concurrent, "new": args.new, **_first_token(engine, url, args),
                  **_throughput(engine, url, args)}
    bench_report.table(result)
    return bench_report.finish(result, "flax", "starlette", "uvicorn")


def _engine(args: argparse.Namespace) -> Any:
    import jax

    from spatialllm_jax.data import tokenizer as tokenizers
    from spatialllm_jax.inference.engine import Engine
    from spatialllm_jax.inference.prompts import ChatSettings
    from spatialllm_jax.models.presets import preset
    from spatialllm_jax.models.spatialllm import SpatialLLM, init_params

    config = preset(args.preset)
    tokenizer = tokenizers.train([*_QUESTIONS] * 4, 512)
    config = config.replace(llm=dataclasses.replace(config.llm, vocab_size=tokenizer.vocab_size),
                            connector=dataclasses.replace(config.connector, merge=args.merge))
    settings = ChatSettings("compact", "", config.vision[0].image_size, "pad")
    params = init_params(config, jax.random.key(args.seed))
    return Engine(SpatialLLM(config), params, tokenizer, settings, batch_size=args.concurrent)


@contextlib.contextmanager
def _serving(engine: Any, args: argparse.Namespace) -> Iterator[str]:
    """The address of a warm server, as `launch.serve` makes it."""
    from launch.serve import warm
    from spatialllm_jax.inference.live import Live, lanes_for
    from spatialllm_jax.serving import run
    from spatialllm_jax.serving.limits import Limits
    from spatialllm_jax.serving.service import Service
    from spatialllm_jax.serving.worker import Worker

    worker = Worker(Live(engine, lanes_for(engine, 0, args.new, args.concurrent, 1)))
    warm(worker)
    service = Service(worker, _NAME, Limits(queue=args.requests))
    sock = run.bind("127.0.0.1", 0)
    server = run.Server(service, "127.0.0.1")
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield run.address(sock)
    finally:
        server.should_exit = True
        thread.join()
        worker.stop()


def _pictures(count: int, size: int, seed: int) -> list[bytes]:
    """PNG files of noise, whose like no cache has seen."""
    from PIL import Image

    files = []
    for pixels in np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        files.append(buffer.getvalue())
    return files


def _prompts(engine: Any, count: int, seed: int) -> list[Any]:
    from spatialllm_jax.inference.prompts import Prompt, picture_id

    return [Prompt(picture_id(file), file, _QUESTIONS[k % len(_QUESTIONS)])
            for k, file in enumerate(_pictures(count, engine.settings.image_size, seed))]


def _asked(url: str, prompt: Any, new: int) -> tuple[float, str]:
    """(seconds to the first event, the whole text) of one streamed answer."""
    body = json.dumps({"model": _NAME, "stream": True, "max_tokens": new, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {
            "url": f"data:image/png;base64,{base64.b64encode(prompt.image).decode()}"}},
        {"type": "text", "text": prompt.question}]}]}).encode()
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    with contextlib.closing(connection):
        began, first, text = time.perf_counter(), 0.0, ""
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise UserError(f"the server answered {response.status}: {response.read().decode()[:200]}")
        for line in response:
            first = first or time.perf_counter() - began
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    return first, text


def _first_token(engine: Any, url: str, args: argparse.Namespace) -> dict[str, Any]:
    bare = _bare_prefill(engine)
    prompts = _prompts(engine, 1 + args.first, args.seed + 1)
    times = []
    for prompt in prompts:      # in turns, so that what else the machine does meets both
        pixels, encoded = engine.pixels(prompt), engine.request(prompt, 1)
        bare(pixels, encoded)       # every length is a program of its own here
        began = time.perf_counter()
        bare(pixels, encoded)
        times.append((time.perf_counter() - began, _asked(url, prompt, 1)[0]))
    times = times[1:]
    return {"prompt_tokens": encoded.length,
            **bench_report.median("bare_prefill_ms", [1e3 * a for a, _ in times], 1),
            **bench_report.median("first_token_ms", [1e3 * b for _, b in times], 1),
            **bench_report.median("first_token_ratio", [b / a for a, b in times], 2)}


def _bare_prefill(engine: Any) -> Callable[[np.ndarray, Any], int]:
    """The first token from a picture and a prompt, by one program without padding, cache or anything else."""
    import jax
    import jax.numpy as jnp

    from spatialllm_jax.models.attention import self_mask

    def read(module: Any, pixels: jax.Array, tokens: jax.Array, index: jax.Array) -> jax.Array:
        hidden, _ = module.llm(module.embed(tokens, module.visual_tokens(pixels), index),
                               jnp.arange(tokens.shape[1])[None], self_mask(jnp.ones_like(tokens)))
        likeliest: jax.Array = module.logits(hidden[:, -1]).argmax(-1)
        return likeliest

    @jax.jit
    def program(params: Any, pixels: jax.Array, tokens: jax.Array, index: jax.Array) -> jax.Array:
        found: Any = engine.model.apply({"params": params}, pixels, tokens, index, method=read)
        return found

    def bare(pixels: np.ndarray, request: Any) -> int:
        arrays = [np.concatenate([getattr(part, name) for part in (request.before, request.after)])[None]
                  for name in ("tokens", "image_index")]
        return int(program(engine.params, pixels[None], *arrays)[0])

    return bare


def _throughput(engine: Any, url: str, args: argparse.Namespace) -> dict[str, Any]:
    def offline(prompts: list[Any]) -> tuple[float, list[str]]:
        began = time.perf_counter()
        found = engine.generate(prompts, max_new_tokens=args.new)
        return time.perf_counter() - began, found

    def served(prompts: list[Any]) -> tuple[float, list[str]]:
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(args.concurrent) as pool:
            found = [text for _, text in pool.map(lambda prompt: _asked(url, prompt, args.new), prompts)]
        return time.perf_counter() - began, found

    turns = []
    for turn in range(1 + args.repeats):
        prompts = _prompts(engine, args.requests, args.seed + 2 + turn)
        a, ours = offline(prompts)
        engine.forget()             # the pictures are the same, and the server shares the engine
        b, theirs = served(prompts)
        if ours != theirs:
            raise UserError("the server's answers are not the engine's; their speeds mean nothing")
        turns.append((a, b))
    turns = turns[1:]       # the first one compiled the engine's own programs
    return {**bench_report.median("offline_answers_per_second", [args.requests / a for a, _ in turns], 2),
            **bench_report.median("served_answers_per_second", [args.requests / b for _, b in turns], 2),
            **bench_report.median("throughput_ratio", [a / b for a, b in turns], 2)}
