"""Ledoit-Wolf covariances and Mahalanobis distances against scikit-learn and scipy."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from asdjax.scoring import mahalanobis as module
from asdjax.scoring.mahalanobis import LEAST_SHRINKAGE, Mahalanobis
from asdjax.types import InputError

ledoit_wolf = jax.jit(module.ledoit_wolf)


@jax.jit
def distance(values, weight, query):
    known, shrinkage = module.fit_covariance(values, weight)
    return module.distance(known, query), shrinkage


WIDTH = 12


def rows(count, width=WIDTH, seed=0):
    """Rows with a mean and directions of very different spread."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * np.geomspace(0.1, 3, width)
    return (4 + rng.standard_normal((count, width)) @ mixing).astype(np.float32)


@pytest.mark.parametrize("count", [4, 10, 200])  # fewer than numbers, and more
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_covariance_and_shrinkage_equal_scikit_learns(count, scale):
    values = rows(count) * np.float32(scale)
    padded = np.concatenate([values, np.full((5, WIDTH), 7, np.float32)])
    weight = np.r_[np.ones(count), np.zeros(5)].astype(np.float32)
    mean, width, covariance, shrinkage = ledoit_wolf(padded, weight)
    want = LedoitWolf().fit(values.astype(np.float64))
    # 1e-5: float32 sums of products; 2e-5 where their differences shrink.
    np.testing.assert_allclose(mean, want.location_, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(shrinkage, want.shrinkage_, rtol=1e-4)
    got = np.asarray(covariance, np.float64) * float(width) ** 2
    np.testing.assert_allclose(got, want.covariance_, rtol=0, atol=2e-5 * want.covariance_.max())


@pytest.mark.parametrize("count", [4, 200])
def test_distances_equal_scipys(count):
    values, query = rows(count), rows(6, seed=1)
    got, _ = distance(values, np.ones(count, np.float32), query)
    fit = LedoitWolf().fit(values.astype(np.float64))
    precision = np.linalg.inv(fit.covariance_)
    want = [mahalanobis(row.astype(np.float64), fit.location_, precision) for row in query]
    np.testing.assert_allclose(got, want, rtol=1e-3)  # float32 factor, condition about 1,000


def test_units_of_the_embedding_do_not_matter():
    """A Mahalanobis distance is of no unit; with many clips it also does not see a rotation."""
    values, query = rows(200), rows(6, seed=1)
    weight = np.ones(200, np.float32)
    plain, _ = distance(values, weight, query)
    np.testing.assert_allclose(distance(values * 64, weight, query * 64)[0], plain, rtol=1e-5)
    turn, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((WIDTH, WIDTH)))
    turned, _ = distance(*(np.float32(x) for x in (values @ turn, weight, query @ turn)))
    np.testing.assert_allclose(turned, plain, rtol=1e-2)  # float32 factors of condition 1,000


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_rows_without_a_spread_have_a_finite_sphere(count):
    """No row; one; two, whose estimated shrinkage is 0; five equal ones."""
    values = rows(max(count, 1))
    if count == 5:
        values[:] = values[0]
    weight = np.ones(len(values), np.float32) * (count > 0)
    *_, covariance, shrinkage = ledoit_wolf(values, weight)
    assert LEAST_SHRINKAGE <= shrinkage <= 1
    assert np.linalg.eigvalsh(np.asarray(covariance, np.float64)).min() > LEAST_SHRINKAGE / 2
    query = np.stack([values[0], values[0] + 1])
    near, far = distance(values, weight, query)[0]
    assert np.isfinite([near, far]).all()
    if count:
        assert near < far
    if count in (1, 5):
        assert near < 1  # rounding of the mean
        assert far > 1000  # deviations that are rounding


def test_unknown_reference_sets_are_refused():
    with pytest.raises(InputError, match="'pooled' or 'domain', got 'both'"):
        Mahalanobis("both")
