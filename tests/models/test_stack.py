"""Remat policies: the same numbers whatever is kept, what each keeps and makes again, and who keeps nothing."""

import dataclasses
import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import stack
from spatialllm_jax.models.attention import self_mask
from spatialllm_jax.models.llama import Llama
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.training.partition import flatten, unflatten
from tests.conftest import random_params

NANO = preset("nano")


def llama_loss(config, remat, attention, length, dtype=jnp.float32):
    """(params, embeddings) -> a number that all hidden states matter to."""
    def loss(params, x):
        index = jnp.broadcast_to(jnp.arange(length), x.shape[:2])
        mask = self_mask(1 + (index > length // 2), 0 * index)
        hidden, _ = Llama(config, dtype, remat, attention).apply({"params": params}, x, index, mask)
        return (hidden.astype(jnp.float32) ** 3).mean()
    return loss


@pytest.fixture(scope="module")
def value_and_gradients():
    """A function from policy and attention to the loss and gradients of the nano language model."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, NANO.llm.width)), jnp.float32)
    params = random_params(NANO)["llm"]
    return functools.cache(lambda remat, attention="xla": jax.jit(jax.value_and_grad(
        llama_loss(NANO.llm, remat, attention, 20)))(params, x))


@pytest.mark.parametrize("remat, attention", [
    ("selective", "xla"), ("offload", "xla"), ("save:attention_out,attention_lse", "flash"),
    pytest.param("full", "xla", marks=pytest.mark.slow),
    pytest.param("selective_light", "xla", marks=pytest.mark.slow)])
def test_values_and_gradients_are_those_without_remat(value_and_gradients, remat, attention):
    plain, found = value_and_gradients("none"), value_and_gradients(remat, attention)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


def operations(jaxpr):
    """Multiplications and additions of a jaxpr's products, loops unrolled and kernels by their own estimate.

    A kernel whose outputs nobody reads is not run: JAX leaves it standing, XLA removes it.
    """
    total = 0.0
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    for eqn in jaxpr.eqns:
        if not any(id(v) in read for v in eqn.outvars):
            continue
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _), a = eqn.params["dimension_numbers"], eqn.invars[0].aval
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(a.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "pallas_call":
            total += eqn.params["cost_estimate"].flops
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            total += times * sum(operations(inner) for inner in jax.extend.core.jaxprs_in_params(eqn.params))
    return total


def traced(remat, llm, length=2048):
    """Operations of a loss and its gradient on one row."""
    params = jax.eval_shape(lambda key: Llama(llm).init(
        key, jnp.zeros((1, 1, llm.width)), jnp.zeros((1, 1), int), self_mask(jnp.ones((1, 1), int)))["params"],
        jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, length, llm.width), jnp.bfloat16)
    loss = llama_loss(llm, remat, "flash", length, jnp.bfloat16)
    return operations(jax.make_jaxpr(jax.grad(loss))(params, x).jaxpr)


def test_selective_makes_little_again():
    """Llama-3-8B's layers on rows of 2,048, one sample each: what the policies execute over what is useful."""
    llm = dataclasses.replace(preset("spatialllm_8b").llm, depth=2)
    plain = traced("none", llm)
    ratio = {remat: traced(remat, llm) / plain for remat in ("full", "selective_light", "selective")}
    assert 1.22 < ratio["full"] < 1.26
    assert 1.19 < ratio["selective_light"] < 1.22
    assert 1.11 < ratio["selective"] < 1.13
    # Without a second pass through the kernel.
    more = traced("save:query,key,value,mlp_gate,attention_out,attention_lse", llm) / plain
    assert more < ratio["selective"] - 0.01


def test_frozen_encoders_keep_nothing(capsys):
    """A step that trains connector and language model finds the encoders' features, and nothing from inside them."""
    params = flatten(random_params(NANO))
    frozen = {path: leaf for path, leaf in params.items() if path.startswith("vision/")}
    trainable = {path: leaf for path, leaf in params.items() if path not in frozen}
    tokens, images = np.ones((2, 12), np.int32), np.zeros((2, 1, 16, 16, 3), np.uint8)

    def kept(remat, moving, still):
        model = SpatialLLM(dataclasses.replace(NANO, remat=remat))

        def loss(moving):
            hidden = model.apply({"params": unflatten({**still, **moving})}, tokens, tokens, tokens, 0 * tokens,
                                 0 * tokens, images)
            return (hidden ** 2).sum()

        capsys.readouterr()
        print_saved_residuals(loss, moving)
        return [line.split("[")[1].split("]")[0] for line in capsys.readouterr().out.splitlines()]

    for remat in ("none", "full", "selective"):
        inside = f",{NANO.vision[0].grid ** 2 + 1},"    # CLS and the patches
        assert not [shape for shape in kept(remat, trainable, frozen) if inside in shape], remat
    assert [shape for shape in kept("none", params, {}) if inside in shape], "what it would keep were they trained"


def test_names_are_checked():
    with pytest.raises(UserError, match=r"everything.*selective.*offload:NAMES"):
        stack.policy("everything")
    with pytest.raises(UserError, match=r"'gates'.*mlp_gate"):
        stack.policy("save:query,gates")
    for remat in stack.REMAT[1:]:
        stack.policy(remat)


def test_offload_needs_the_hosts_memory(monkeypatch):
    monkeypatch.setattr(stack, "_reaches_host", lambda: False)
    with pytest.raises(UserError, match=r"pinned_host.*selective"):
        stack.policy("offload")
