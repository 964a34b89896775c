"""Serves a model over HTTP in OpenAI's chat format, and a page to draw regions on: docs/serving.md.

    python -m launch.serve --model RUN/tune/model          # then open http://127.0.0.1:8000

Nothing but this machine can reach it unless `--host` says so. A key in SPATIALLLM_API_KEY must then be sent along.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from launch import cli
from spatialllm_jax.errors import UserError

KEY = "SPATIALLLM_API_KEY"
_WHOLE = ("model", "params")        # folder names that say nothing about a model


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, compiles, serves until told to end; returns what was served."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder, e.g. RUN/rows/align_in166k/tune/model")
    parser.add_argument("--name", default="", help="the model's name for clients (default: from the folder's)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    cli.mesh_flag(parser)
    parser.add_argument("--context", type=int, default=0,
                        help="longest prompt in tokens, picture included (0: the picture's and 512)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--concurrent", type=int, default=16, help="answers at a time")
    parser.add_argument("--per-picture", type=int, default=1, help="of them in a row of the cache, on one picture")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait beside; more are refused (429)")
    parser.add_argument("--max-body", type=float, default=20, help="largest request in MiB")
    parser.add_argument("--max-pixels", type=int, default=40_000_000, help="largest picture, width times height")
    parser.add_argument("--request-timeout", type=float, default=300, help="seconds for a request, all in all")
    cli.cache_flag(parser)
    args = parser.parse_args(argv)
    cli.prepare(args)

    limits, run = _serving(args)
    sock = run.bind(args.host, args.port)

    from convert.engines import load_engine
    from spatialllm_jax.inference.live import Live, check_lanes, lanes_for
    from spatialllm_jax.serving.service import Service
    from spatialllm_jax.serving.worker import Worker

    check_lanes(args.max_new_tokens, args.concurrent, args.per_picture)
    engine = load_engine(args.model, batch_size=args.concurrent, mesh=cli.mesh(args))
    shape = lanes_for(engine, args.context, args.max_new_tokens, args.concurrent, args.per_picture)
    worker = Worker(Live(engine, shape))
    warm(worker)
    key = os.environ.get(KEY, "")
    service = Service(worker, args.name or _name(args.model), limits, key)
    if not key and args.host not in run.LOOPBACK:
        print(f"note: anybody who reaches {args.host} may ask; set {KEY} to have requests carry a key")
    said = (f"ready: {run.address(sock)} serves {service.name!r}, prompts of up to {shape.context} tokens, answers of "
            f"up to {shape.new}, {args.concurrent} at a time")
    run.Server(service, args.host, lambda: print(said, flush=True)).run([sock])
    worker.stop()
    answered = service.metrics.requests
    print(f"ended after {sum(answered.values())} requests")
    return {"requests": {str(status): count for status, count in sorted(answered.items())}}


def _serving(args: Any) -> tuple[Any, Any]:
    """(limits, `serving.run`). Raises UserError when the packages for serving are missing."""
    from spatialllm_jax.serving.limits import Limits

    if not 0 < args.max_body < float("inf"):
        raise UserError(f"--max-body {args.max_body:g} must be a positive number of MiB")
    limits = Limits(int(args.max_body * 2**20), args.max_pixels, queue=args.queue, seconds=args.request_timeout)
    try:
        from spatialllm_jax.serving import run
    except ImportError as error:
        raise UserError(f'serving needs {error.name}; run: pip install -e ".[serve]"') from None
    return limits, run


def warm(worker: Any) -> None:
    """Starts the engine's thread and waits until it has compiled everything."""
    from tqdm import tqdm

    with tqdm(total=worker.live.programs, desc="compiling", unit="program") as bar:
        worker.progress = bar.update
        worker.start()
        worker.warm.wait()
    if worker.failure is not None:
        raise worker.failure


def _name(folder: str) -> str:
    """The last part of the path that tells models apart."""
    parts = [part for part in Path(folder).absolute().parts if part not in _WHOLE]
    return parts[-1]


if __name__ == "__main__":
    cli.run(main)
