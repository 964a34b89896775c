"""The sides of `launch.bench_train`, each in a process of its own: `python -m launch.bench_train_sides SIDE FOLDER {}`.

A side reads orders from its standard input, one JSON object a line, and answers each with one:
`{"batches": [names]}` takes a training step on every batch and answers losses, seconds, processor seconds and the most
memory that the process has held so far.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from launch import bench_report

LEARNING_RATE = 2e-5        # LLaVA-v1.5's in stage 2
Step = Callable[[dict[str, np.ndarray]], float]


def ours(folder: Path, **settings: Any) -> Step:
    """This project's step as `training.run` builds it for a stage that trains connector and language model.

    Args:
        settings: fields of the `ModelConfig`.
    """
    import jax

    from convert.folders import open_weights
    from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params
    from spatialllm_jax.parallel.mesh import make_mesh, replicated
    from spatialllm_jax.parallel.rules import param_shardings, state_shardings
    from spatialllm_jax.training import optimizer
    from spatialllm_jax.training.loop import to_device
    from spatialllm_jax.training.objectives import NextToken
    from spatialllm_jax.training.partition import flatten, split
    from spatialllm_jax.training.step import init_state, make_step

    stored = open_weights(folder)
    config = stored.config.replace(**settings)
    mesh = make_mesh()
    jax.set_mesh(mesh)
    shardings = flatten(param_shardings(abstract_params(config), mesh))
    params = flatten(stored.load(shardings=shardings))
    trainable, frozen = split(params, "connector|llm")
    tx = optimizer.build(optimizer.OptimizerConfig(LEARNING_RATE, schedule="constant", warmup=0.0), 1)
    state = init_state(trainable, frozen, tx, jax.random.key(0))
    state = jax.device_put(state, state_shardings(state, params, mesh))
    del params, trainable, frozen
    step_fn = jax.jit(make_step(NextToken(SpatialLLM(config)), tx), donate_argnums=0,
                      out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)))

    def step(arrays: dict[str, np.ndarray]) -> float:
        nonlocal state
        state, metrics = step_fn(state, to_device(arrays, mesh))
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step


def peer(folder: Path) -> Step:
    """PyTorch's step on transformers' LLaVA: fused kernels where there are, and nothing that need not be done."""
    import torch
    import transformers

    torch.set_num_threads(bench_report.cores())
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float32)
    model.config.use_cache = model.config.text_config.use_cache = False     # type: ignore[union-attr]
    model.train()
    model.model.vision_tower.requires_grad_(False)     # no input needs a gradient: autograd records nothing of it
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE,
                                  weight_decay=0.0, fused=True)

    def step(arrays: dict[str, np.ndarray]) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**{name: torch.from_numpy(array) for name, array in arrays.items()}).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


SIDES: dict[str, Callable[..., Step]] = {"ours": ours, "peer": peer}


def peak_memory() -> int:
    """Most bytes of memory that this process has had resident (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Answers orders until the input ends."""
    side, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)       # what libraries print must not come between the answers
    step = SIDES[side](folder / side, **json.loads(sys.argv[3]))
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        batches = [dict(np.load(folder / f"{side}-{name}.npz")) for name in json.loads(line)["batches"]]
        began, used = time.perf_counter(), time.process_time()
        losses = [step(batch) for batch in batches]
        answer: dict[str, Any] = {"losses": losses, "seconds": time.perf_counter() - began,
                                  "processor": time.process_time() - used, "peak": peak_memory()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
