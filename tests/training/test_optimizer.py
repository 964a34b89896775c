"""Schedules against their formulas, AdamW against torch."""

import math

import jax
import numpy as np
import optax
import pytest
import torch

from spatialllm_jax.errors import UserError
from spatialllm_jax.training import optimizer, partition
from spatialllm_jax.training.optimizer import OptimizerConfig, build, schedule


def test_llava_stage_two():
    steps, peak = 5198, 2e-5                            # 665,298 samples in batches of 128, warm-up 0.03
    rate = schedule(OptimizerConfig(peak, "cosine", 0.03), steps)
    assert float(rate(22)) == pytest.approx(2.8205e-6, rel=1e-4)
    for step in (0, 1, 100, 155, 156, 157, 1000, 2677, 5197, 5198):
        # transformers' get_cosine_schedule_with_warmup, written out.
        expected = peak * (step / 156 if step < 156 else 0.5 * (1 + math.cos(math.pi * (step - 156) / (steps - 156))))
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=1e-12), step


def test_hold_linear_and_constant():
    rate = schedule(OptimizerConfig(1.0, "hold_linear", 0.1, 0.5), 100)
    for step in range(101):
        expected = step / 10 if step < 10 else 1.0 if step <= 60 else (100 - step) / 40
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6), step
    held = schedule(OptimizerConfig(1.0, "hold_linear", 0.1, 1.0), 100)
    assert [float(held(step)) for step in (10, 50, 99)] == [1.0, 1.0, 1.0]
    constant = schedule(OptimizerConfig(3.0, "constant", 0.0), 10)
    assert [float(constant(step)) for step in (1, 5, 9)] == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["cosine", "hold_linear", "constant"])
def test_very_short_runs_stay_finite(name, steps):
    rate = schedule(OptimizerConfig(1.0, name), steps)
    assert all(0 <= float(rate(step)) <= 1 for step in range(steps + 1))


def test_unknown_schedule():
    with pytest.raises(UserError, match=r"'linear'.*cosine, hold_linear or constant"):
        schedule(OptimizerConfig(1.0, "linear"), 10)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_adamw_against_torch(clip):
    config = OptimizerConfig(1e-2, "cosine", 0.2, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, clip=clip,
                             scales={"llm/": 0.5})
    rng = np.random.default_rng(0)
    shapes = {"llm/kernel": (3, 4), "llm/bias": (4,), "connector/norm/scale": (4,), "connector/kernel": (4, 2)}
    start = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    gradients = [{path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()} for _ in range(8)]

    tx = build(config, 8)
    params, state = start, tx.init(start)
    update = jax.jit(tx.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)

    leaves = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in start.items()}
    # Kernels decay, biases and norms do not; "llm/" learns at half the rate.
    groups = [{"params": [leaf], "weight_decay": 0.3 if path.endswith("kernel") else 0.0,
               "factor": 0.5 if path.startswith("llm/") else 1.0} for path, leaf in leaves.items()]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    for step, grads in enumerate(gradients):
        for path, leaf in leaves.items():
            leaf.grad = torch.tensor(grads[path])
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        for group in reference.param_groups:
            group["lr"] = group["factor"] * 1e-2 * (
                step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 6)))
        reference.step()
    for path, leaf in leaves.items():
        np.testing.assert_allclose(params[path], leaf.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=path)
        assert np.abs(params[path] - start[path]).max() > 1e-3


def test_moments_in_bfloat16():
    tx = build(OptimizerConfig(1e-3, moment_dtype="bfloat16"), 10)
    state = tx.init({"kernel": np.ones((2, 2), np.float32)})
    assert sorted(str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.ndim == 2) == ["bfloat16", "float32"]


def test_partition():
    flat = {"vision/clip/kernel": 1, "vision/clip/lora_a": 2, "connector/kernel": 3, "llm/layers/query/kernel": 4}
    assert partition.flatten(partition.unflatten(flat)) == flat
    train, frozen = partition.split(flat, "connector|llm")
    assert train == {"connector/kernel": 3, "llm/layers/query/kernel": 4} and train | frozen == flat
    assert partition.split(flat, ".*lora_")[0] == {"vision/clip/lora_a": 2}
    assert partition.split(flat, ".*")[1] == {}
    with pytest.raises(UserError, match=r"'head' matches no parameter; the tree has connector, llm, vision"):
        partition.split(flat, "head")
    with pytest.raises(UserError, match="not a regular expression"):
        partition.split(flat, "llm(")
    assert partition.count({"a": np.ones((2, 3)), "b": np.ones(4)}) == 10
    assert float(optimizer.norms({"a": np.full(4, 1.5), "b": np.full(4, 2.0)})) == pytest.approx(5.0)
