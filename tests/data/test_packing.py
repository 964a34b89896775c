"""Rows and buckets as functions of lengths: what they hold, how full they are, and how many a step needs."""

import itertools

import numpy as np
import pytest

from spatialllm_jax.data import lengths
from spatialllm_jax.data.packing import Buckets, FullRows, _completion, fill_rows
from spatialllm_jax.data.pipeline import RowConfig
from spatialllm_jax.data.stream import _Shares
from spatialllm_jax.errors import UserError

RNG = np.random.default_rng


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_every_sample_once_and_never_too_much(seed):
    rng = RNG(seed)
    sizes, pictures = rng.integers(1, 101, 80).tolist(), rng.integers(0, 2, 80).tolist()
    rows = fill_rows(sizes, pictures, 100, 2)
    assert sorted(itertools.chain(*rows)) == list(range(80))
    for row in rows:
        assert sum(sizes[i] for i in row) <= 100 and sum(pictures[i] for i in row) <= 2
    # The oldest sample left opens each row: none waits longer than its window.
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


@pytest.mark.parametrize("seed", range(30))
def test_completions_are_the_best_there_are(seed):
    rng = RNG(seed)
    sizes, pictures = rng.integers(1, 40, 9).tolist(), rng.integers(0, 3, 9).tolist()
    room, slots = int(rng.integers(0, 90)), int(rng.integers(0, 5))
    chosen = _completion(sizes, pictures, room, slots)
    subsets = itertools.chain(*(itertools.combinations(range(9), count) for count in range(10)))
    possible = [sum(sizes[i] for i in subset) for subset in subsets
                if sum(sizes[i] for i in subset) <= room and sum(pictures[i] for i in subset) <= slots]
    assert len(set(chosen)) == len(chosen) and sum(pictures[i] for i in chosen) <= slots
    assert sum(sizes[i] for i in chosen) == max(possible)


def test_image_slots_limit_a_row():
    assert fill_rows([10] * 6, [1] * 6, 100, 2) == [[0, 1], [2, 3], [4, 5]]
    assert fill_rows([10] * 6, [1, 0, 1, 0, 1, 0], 100, 1) == [[0, 1, 3, 5], [2], [4]]


def test_rows_leave_in_random_but_repeatable_order():
    arrange = FullRows(10, 1)
    sizes, pictures = [10] * 50, [0] * 50
    first = arrange(sizes, pictures, RNG((0, 1)))
    assert first == arrange(sizes, pictures, RNG((0, 1))) != arrange(sizes, pictures, RNG((0, 2)))
    assert sorted(first) == [(10, [index]) for index in range(50)]


def test_density_on_lengths_like_mix665k():
    sizes, pictures = lengths.like_mix665k(8192)
    assert np.mean(pictures == 0) == pytest.approx(0.06, abs=0.01)
    assert sizes[pictures > 0].min() > 576 and sizes.max() == 2048 and np.median(sizes) == pytest.approx(776, abs=10)
    per_row, density = lengths.pack_statistics(sizes, pictures, RowConfig(1, 4096, 6))
    assert density >= 0.97 and per_row == pytest.approx(4096 * density / sizes.mean(), rel=1e-6)
    # Two pictures leave a hole in 2048 that no third fits into, whoever packs.
    assert 0.80 < lengths.pack_statistics(sizes, pictures, RowConfig(1, 2048, 3))[1] < 0.90
    assert density > lengths.padded_density(sizes, pictures, grouped=True) \
        > lengths.padded_density(sizes, pictures, grouped=False)


def test_padded_density_by_hand():
    sizes, pictures = np.array([10, 20, 30, 40, 5, 5]), np.array([1, 1, 1, 1, 0, 0])
    plain = lengths.padded_density(sizes, pictures, grouped=False, batch=2, devices=1)
    assert plain == pytest.approx(110 / (2 * 20 + 2 * 40 + 2 * 5))
    # One step of four pictures, longest first, over two devices; then the texts.
    grouped = lengths.padded_density(sizes[[0, 3, 4, 1, 2, 5]], pictures[[0, 3, 4, 1, 2, 5]], grouped=True, batch=2,
                                     devices=2)
    assert grouped == pytest.approx(110 / (2 * 40 + 2 * 20 + 2 * 5))


def test_buckets():
    rng = RNG(3)
    sizes = rng.integers(1, 101, 48).tolist()
    rows = Buckets((25, 50, 100), 8)(sizes, [1] * 48, RNG(0))
    assert sorted(index for _, (index,) in rows) == list(range(48))
    batches = [rows[start:start + 8] for start in range(0, 48, 8)]
    for batch in batches:
        longest = max(sizes[index] for _, (index,) in batch)
        assert {length for length, _ in batch} == {min(b for b in (25, 50, 100) if b >= longest)}
    assert len({batch[0][0] for batch in batches}) == 3 and batches != sorted(batches)


@pytest.mark.parametrize(("samples", "per_row", "ways", "rows"), [
    (128, 4.0, 1, 32), (128, 4.92, 8, 24), (128, 4.92, 1, 26), (128, 5.0, 64, 64), (256, 1.0, 16, 256), (1, 7.0, 4, 4)])
def test_rows_for_a_number_of_samples(samples, per_row, ways, rows):
    assert lengths.rows_for(samples, per_row, ways) == rows


def test_plan():
    sizes, pictures = np.full(4096, 1000), np.ones(4096, int)
    rows = RowConfig(length=4096, images=8, samples=128)
    plan = lengths.plan_rows(sizes, pictures, rows, seed=0, ways=8, total=665_298)
    assert (plan.batch_size, plan.samples_per_row, plan.samples_per_step) == (32, 4.0, 128.0)
    assert plan.steps == 5198 and plan.density == pytest.approx(4000 / 4096)
    assert "32 rows hold 128.0 samples per step" in str(plan) and "5,198 steps" in str(plan)
    single = lengths.plan_rows(sizes, pictures, RowConfig(16, 2048, 1, packing=False), seed=0)
    assert (single.samples_per_step, single.steps, single.density) == (16, None, 1000 / 2048)
    buckets = RowConfig(length=2048, samples=64, packing="buckets", buckets=(1024, 2048))
    assert lengths.plan_rows(sizes, pictures, buckets, seed=0).density == 1000 / 1024
    with pytest.raises(UserError, match="both 0"):
        lengths.plan_rows(sizes, pictures, RowConfig(length=2048), seed=0)
    with pytest.raises(UserError, match=r"rows\.batch_size=6 does not divide over 4"):
        lengths.plan_rows(sizes, pictures, RowConfig(6, 2048), seed=0, ways=4)


def test_counts_are_kept_in_every_pass_and_spread():
    shares = _Shares((3, 30, 7))
    for turn in range(3):
        found = [shares[turn * 40 + place] for place in range(40)]
        for source, count in enumerate((3, 30, 7)):
            assert [key for s, key in found if s == source] == list(range(turn * count, (turn + 1) * count))
    places = [place for place in range(40) if shares[place][0] == 0]
    assert places == [6, 19, 33]           # in the middle of each third


@pytest.mark.parametrize(("changes", "words"), [
    ({"packing": "sometimes"}, "'sometimes' is unknown"), ({"resize": "crop"}, "'crop' is unknown"),
    ({"packing": "buckets"}, "go together"), ({"buckets": (64, 96)}, "go together"),
    ({"packing": "buckets", "buckets": (64,)}, "ascend up to"), ({"samples": 4}, "two ways to say"),
    ({"packing": "buckets", "buckets": (96, 64)}, "ascend up to"), ({"images": 0}, "at least 1"),
    ({"max_length": 97}, r"rows\.max_length=97 must be 0 or up to rows\.length=96"),
])
def test_mistakes_in_rows(changes, words):
    with pytest.raises(UserError, match=words):
        RowConfig(**{"batch_size": 4, "length": 96, **changes})
