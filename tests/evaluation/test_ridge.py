"""Ridge over a path of penalties, against least squares on an augmented matrix."""

import numpy as np
import pytest

from spatialllm_jax.evaluation import ridge


@pytest.mark.parametrize("rows, columns", [(60, 8), (20, 30)])
def test_every_penalty_is_the_augmented_least_squares(rows, columns):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(rows, columns)), rng.normal(3, 1, (rows, 2)), rng.normal(size=(5, columns))
    x *= np.arange(1, columns + 1)          # scales are undone
    path = ridge.Path(x)
    mean, scale = x.mean(0), x.std(0) + 1e-3
    for penalty in (0.1, 10.0, 1e4):
        left = np.r_[(x - mean) / scale, np.sqrt(penalty) * np.eye(columns)]
        weights = np.linalg.lstsq(left, np.r_[y - y.mean(0), np.zeros((columns, 2))], rcond=None)[0]
        np.testing.assert_allclose(path.predict(y, new, penalty), (new - mean) / scale @ weights + y.mean(0), atol=1e-8)
    np.testing.assert_allclose(path.predict(y, new, 1e12), np.repeat(y.mean(0)[None], 5, 0), atol=1e-6)


def test_penalties_are_chosen_per_target_and_never_on_held_out_rows():
    """A linear target wants the smallest penalty, noise that could be fitted by heart the largest."""
    rng = np.random.default_rng(1)
    x, pictures = rng.normal(size=(400, 150)), np.repeat(np.arange(200), 2)
    train = pictures < 150
    linear, noise = x @ rng.normal(size=(150, 1)), rng.normal(size=(400, 1))
    found = ridge.fit_predict(x, [linear, noise], pictures, train)
    whole = ridge.Path(x[train])
    by_heart = whole.predict(noise[train], x[~train], ridge.PENALTIES[0])
    assert found[1].std() < 0.5 * by_heart.std()
    np.testing.assert_allclose(found[0], whole.predict(linear[train], x[~train], ridge.PENALTIES[0]), atol=1e-9)
    other = np.where(train[:, None], linear, rng.normal(size=(400, 1)))
    np.testing.assert_array_equal(ridge.fit_predict(x, [other], pictures, train)[0], found[0])
