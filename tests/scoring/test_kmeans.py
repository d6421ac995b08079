"""k-means against scikit-learn from the same start, and by meaning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from asdjax.scoring import kmeans as module

lloyd = jax.jit(module.lloyd)
kmeans = jax.jit(module.kmeans, static_argnames=("count", "starts"))


def rows(count=60, width=6, groups=5, seed=0):
    """Unit rows around a few directions, wide enough to overlap."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((groups, width))[rng.integers(0, groups, count)]
    values += 0.5 * rng.standard_normal((count, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def padded(values, extra=7):
    """Rows of weight 0 behind the others, where nothing should be found."""
    values = np.concatenate([values, np.full((extra, values.shape[1]), 0.5, np.float32)])
    return values, np.r_[np.ones(len(values) - extra), np.zeros(extra)].astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_lloyd_equals_scikit_learn_from_the_same_start(seed):
    values = rows(seed=seed)
    first = values[np.random.default_rng(seed).choice(len(values), 8, replace=False)]
    oracle = KMeans(8, init=first, n_init=1, tol=0, max_iter=300).fit(values.astype(np.float64))
    centers, label, inertia = lloyd(*padded(values), first)
    np.testing.assert_array_equal(label[: len(values)], oracle.labels_)
    # 1e-6: float32 means of unit rows.
    np.testing.assert_allclose(centers, oracle.cluster_centers_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(inertia, oracle.inertia_, rtol=1e-5)


def test_the_best_of_several_starts_is_about_as_good_as_scikit_learns():
    ratios = []
    for seed in range(6):
        values = rows(seed=seed)
        oracle = KMeans(8, n_init=10, random_state=seed).fit(values)
        ratios.append(kmeans(*padded(values), seed, count=8, starts=10)[2] / oracle.inertia_)
    # Both are the best of ten local optima. A single start of scikit-learn is 7 % above here.
    assert np.mean(ratios) < 1.03


def test_more_starts_are_never_worse_and_rows_of_weight_0_change_nothing():
    values = rows()
    few, many = (kmeans(*padded(values), 3, count=8, starts=n)[2] for n in (1, 10))
    assert many <= few
    want = kmeans(values, np.ones(len(values), np.float32), 3, count=8, starts=10)[0]
    holes = [0, 0, 20, 21, 40, 41, 59]
    between = np.insert(values, holes, 0.3, axis=0), np.insert(np.ones(60, np.float32), holes, 0)
    for given in (padded(values), between):
        got = kmeans(*given, 3, count=8, starts=10)[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)  # sums in another order


def test_starts_are_rows_in_proportion_to_their_squared_distance():
    """On a line: from 0 the second draw is 1, 2 or 3 with chances of 1, 4 and 9 in 14."""
    values = jnp.array([[0.0], [1.0], [2.0], [3.0], [9.0]])
    weight = jnp.array([1.0, 1, 1, 1, 0])
    draw = jax.jit(jax.vmap(lambda key: module._plus_plus(values, weight, key, 2)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 20000)))[:, :, 0]
    first, counts = np.unique(drawn[:, 0], return_counts=True)
    np.testing.assert_array_equal(first, [0, 1, 2, 3])
    # 0.02: five standard errors of a share of 20,000 draws, and of a share of 5,000.
    np.testing.assert_allclose(counts / len(drawn), 0.25, rtol=0, atol=0.02)
    second = drawn[drawn[:, 0] == 0, 1]
    shares = [(second == row).mean() for row in (1, 2, 3)]
    np.testing.assert_allclose(shares, np.array([1, 4, 9]) / 14, rtol=0, atol=0.036)


@pytest.mark.parametrize("count", [3, 4, 9])
def test_few_rows_are_all_centers(count):
    values = rows(3)
    centers, label, inertia = kmeans(*padded(values), 0, count=count, starts=2)
    rounded = {"rtol": 0, "atol": 1e-6}  # moved by the mean and back, once each in float32
    found = np.unique(np.asarray(centers), axis=0)
    np.testing.assert_allclose(found, np.unique(values, axis=0), **rounded)
    np.testing.assert_allclose(np.asarray(centers)[label[:3]], values, **rounded)
    assert inertia == 0


def test_equal_rows_have_one_center():
    values, weight = padded(np.full((6, 3), 0.25, np.float32))
    np.testing.assert_array_equal(kmeans(values, weight, 0, count=4, starts=2)[0], 0.25)
