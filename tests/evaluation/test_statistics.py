import pytest
from statsmodels.stats.proportion import proportion_confint

from spatialllm_jax.evaluation.statistics import Accuracy, accuracy, macro, wilson


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
