"""The roofline and the search for rows, on numbers made up."""

import pytest

from spatialllm_jax.planning.lowering import out_of_memory
from spatialllm_jax.planning.roofline import estimate
from spatialllm_jax.planning.search import largest_rows
from spatialllm_jax.planning.targets import GIB, MACHINES, Machine, Shares
from spatialllm_jax.planning.work import StepWork, Work

MACHINE = Machine("x", "cuda", "X", memory=1, peak=100.0, float32=0.5, bandwidth=10.0, link=4.0, network=1.0,
                  per_host=8)
SHARES = Shares(compute=0.5, bandwidth=1.0, link=0.5, overlap=0.75)


def of(*work, **changes):
    return estimate(StepWork(work, (), ()), MACHINE, 8, shares=SHARES, samples=6.0, **{"useful": 800.0, **changes})


def test_kernels_follow_each_other_and_collectives_hide():
    found = of(Work("product", 2, flops=100.0, bytes=1.0, dtype="bf16"),    # 2 x 2 s
               Work("masters", 1, flops=50.0, bytes=1.0, dtype="f32"),      # 2 s at half the rate
               Work("norms", 3, flops=0.0, bytes=20.0),                     # 3 x 2 s
               Work("gather", 4, collective="all-gather", sent=2.0, group=8))     # 4 x 1 s, a quarter seen
    assert (found.products, found.memory, found.collectives, found.exposed) == (6.0, 6.0, 4.0, 1.0)
    assert found.seconds == 13.0 and found.samples_per_second == pytest.approx(6 / 13)
    assert found.mfu == pytest.approx(800 / (13 * 8 * 100))


def test_what_leaves_the_host_goes_by_the_network():
    alone = Work("gather", 1, collective="all-gather", sent=2.0, group=16)
    assert of(alone, useful=None).seconds == 4.0 and of(alone, useful=None).mfu is None     # nothing to hide behind
    assert estimate(StepWork((alone,), (), ()), MACHINES["cpu"], 8, shares=SHARES, samples=1.0, useful=None) is None


@pytest.mark.parametrize("slope, base, budget, best", [
    (3, 10, 64, 18), (7, 40, 64, 3), (1, 70, 64, 0), (2, 0, 1000, 500)])
def test_the_largest_number_of_rows(slope, base, budget, best):
    compiled = []

    def measure(rows):
        compiled.append(rows)
        return base + slope * rows

    found = largest_rows(measure, budget, {16: base + 16 * slope}, tries=8)
    assert found.rows == best and found.exact and len(compiled) <= 8
    assert found.peak <= budget or best == 0
    assert len(set(compiled)) == len(compiled)


def test_a_refusal_that_names_no_size_is_halved_away():
    """TPUs refuse programs; a refusal may not say how much was missing."""
    found = largest_rows(lambda rows: 10 * rows if rows <= 5 else 2**62, 55, {16: 2**62}, tries=8)
    assert found.rows == 5 and found.exact


def test_a_search_that_runs_out_of_tries_says_so():
    found = largest_rows(lambda rows: rows**2, 10_000, {1: 1}, tries=2)
    assert 1 <= found.rows <= 100 and not found.exact


def test_what_a_tpu_compiler_refuses():
    said = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 34.90G of "
    assert out_of_memory(said + "30.75G hbm. Exceeded hbm capacity by 4.15G.") == int(34.9 * GIB)
    assert out_of_memory("RESOURCE_EXHAUSTED: hbm is full") == 2**62
    assert out_of_memory("INTERNAL: something else") is None
