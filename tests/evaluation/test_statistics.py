import numpy as np
import pytest
import scipy.stats
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar as oracle
from statsmodels.stats.proportion import proportion_confint

from spatialllm_jax.evaluation.statistics import (
    Accuracy,
    accuracy,
    clustered_error,
    macro,
    mcnemar,
    paired_bootstrap,
    wilson,
    wilson_clustered,
)


@pytest.mark.parametrize("n", [1, 2, 7, 60, 1323])
def test_wilson_against_statsmodels(n):
    for right in {0, 1, n // 3, n // 2, n - 1, n}:
        low, high = proportion_confint(right, n, alpha=0.05, method="wilson")
        assert wilson(right, n) == pytest.approx((low, high), abs=1e-12)


def test_no_questions():
    assert wilson(0, 0) == (0.0, 1.0)
    assert accuracy([], []) == Accuracy(0.0, 0, 0.0, 1.0, 0.0)
    assert macro({}) == 0.0


def test_accuracy_and_macro_by_hand():
    found = accuracy([True, False, True, True], [0.5, 0.5, 0.25, 0.25], parse_failures=1)
    assert (found.acc, found.n, found.chance, found.parse_failures) == (0.75, 4, 0.375, 1)
    assert found.low < 0.75 < found.high
    assert macro({"a": found, "b": accuracy([False], [0.5])}) == pytest.approx(0.375)


def test_clustered_error_against_statsmodels():
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 40, 300)
    values = (rng.random(300) + rng.normal(size=40)[clusters] > 0.5).astype(float)
    fit = OLS(values, np.ones(300)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert clustered_error(values.tolist(), clusters.tolist()) == pytest.approx(fit.bse[0], rel=1e-12)
    # One question per picture: the usual error of a mean.
    single = clustered_error(values.tolist(), list(range(300)))
    assert single == pytest.approx(scipy.stats.sem(values), rel=1e-12)


def test_clustered_interval_is_wider_where_pictures_decide():
    right, alone = [True] * 30 + [False] * 30, [str(k) for k in range(60)]
    assert wilson_clustered(right, alone) == pytest.approx(wilson(30, 60), rel=0.02)
    low, high = wilson_clustered(right, [str(k // 10) for k in range(60)])     # six pictures, each right or wrong
    assert high - low > 2 * (wilson(30, 60)[1] - wilson(30, 60)[0])
    assert wilson_clustered([True] * 60, [str(k // 10) for k in range(60)]) == wilson(6, 6)
    assert wilson_clustered([], []) == (0.0, 1.0)
    # Never narrower than the questions themselves allow, however evenly pictures split.
    assert wilson_clustered([True, False] * 30, [str(k // 2) for k in range(60)]) == wilson(30, 60)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (0, 1), (3, 3), (2, 9), (40, 15), (700, 640)])
def test_mcnemar_against_statsmodels(only_a, only_b):
    assert mcnemar(only_a, only_b) == pytest.approx(
        oracle([[50, only_a], [only_b, 20]], exact=True).pvalue if only_a + only_b else 1.0, rel=1e-9)
    if only_a + only_b:
        assert mcnemar(only_a, only_b) == pytest.approx(scipy.stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)


def test_paired_bootstrap_against_scipy():
    rng = np.random.default_rng(1)
    differences = rng.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.6, 0.3])
    found = paired_bootstrap(differences.tolist(), [str(k) for k in range(200)])
    theirs = scipy.stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=10_000, rng=2)
    interval = theirs.confidence_interval
    assert found == pytest.approx((interval.low, interval.high), abs=0.011)
    assert found == paired_bootstrap(differences.tolist(), [str(k) for k in range(200)])      # drawn from a seed
    twice = paired_bootstrap(differences.repeat(2).tolist(), [str(k // 2) for k in range(400)])
    assert twice == pytest.approx(found, abs=0.011)       # asking everything twice proves nothing more
    assert paired_bootstrap([], []) == (0.0, 0.0)
