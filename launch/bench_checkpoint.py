"""How long a checkpoint takes to write, and for how much of that a training step has to wait."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import bench_report, cli
from spatialllm_jax.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    result = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench checkpoint")
    result.add_argument("--megabytes", type=int, default=1500, help="size of the state: parameters and two moments")
    result.add_argument("--repeats", type=int, default=3, help="saves; the median counts")
    result.add_argument("--folder", default=None, help="where to write (default: the temporary folder)")
    return result


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Saves a state of random parameters with AdamW's moments, as the training loop does."""
    args = parser().parse_args(argv)
    if args.megabytes < 1 or args.repeats < 1:
        raise UserError("--megabytes and --repeats must be at least 1")
    if args.folder is not None and not Path(args.folder).is_dir():
        raise UserError(f"--folder {args.folder} is not a folder; name one that is there")
    import grain
    import jax
    import jax.numpy as jnp
    import optax

    from spatialllm_jax.training.checkpoints import Checkpoints, saved_bytes
    from spatialllm_jax.training.step import init_state

    size, arrays = args.megabytes * 2**20 // 12, 12  # parameters and both moments, 4 bytes each
    trainable = {f"llm/{k}/kernel": jax.random.normal(jax.random.key(k), (size // arrays // 1024, 1024))
                 for k in range(arrays)}
    state = jax.block_until_ready(init_state(trainable, {}, optax.adamw(1e-3), jax.random.key(0)))
    stream = iter(grain.MapDataset.source(range(10)).to_iter_dataset())
    blocked, whole = [], []
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=args.folder) as folder:
        keeper = Checkpoints(Path(folder), 1, keep_last=1)
        for step in range(1, args.repeats + 2):
            state = jax.block_until_ready(jax.tree.map(lambda x: x + jnp.ones((), x.dtype)
                                                       if jnp.issubdtype(x.dtype, jnp.floating) else x, state))
            began = time.perf_counter()
            keeper.maybe_save(step, state, stream)
            blocked.append(time.perf_counter() - began)
            keeper.wait()
            whole.append(time.perf_counter() - began)
        keeper.close()
    del blocked[0], whole[0]    # the first one warms up
    blocking, total = statistics.median(blocked), statistics.median(whole)
    result = {"megabytes": round(saved_bytes(state) / 2**20), "repeats": args.repeats,
              **bench_report.median("seconds", whole), **bench_report.median("blocked_seconds", blocked),
              "blocked_share": round(blocking / total, 4),
              "megabytes_per_second": round(saved_bytes(state) / 2**20 / total)}
    bench_report.table(result)
    return bench_report.finish(result, "orbax-checkpoint")
