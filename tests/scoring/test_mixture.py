"""Gaussian mixtures against scikit-learn from the same start, and by meaning."""

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_info, threadpool_limits

from asdjax.scoring import folds
from asdjax.scoring.mixture import (
    Mixture,
    expectation_maximization,
    fit_mixture,
    log_joint,
    negative_log_likelihood,
)
from asdjax.types import Embeddings, InputError

FIT = jax.jit(expectation_maximization, static_argnums=3)
WIDTH, FLOOR = 4, 1e-3


def clusters(seed=0, count=90):
    """Three overlapping clusters of unit rows, each with a shape of its own, and their numbers."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 3
    shapes = rng.standard_normal((3, WIDTH, WIDTH)) * 0.25
    values = 1.3 * rng.standard_normal((3, WIDTH))[label]
    values += np.einsum("nij,nj->ni", shapes[label], rng.standard_normal((count, WIDTH)))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), label


def of_labels(values, label):
    """Return weights, means and full covariances of each label: where scikit-learn starts."""
    parts = [values[label == k].astype(np.float64) for k in range(3)]
    means = np.stack([part.mean(0) for part in parts])
    covariances = np.stack([np.cov(part.T, bias=True) + FLOOR * np.eye(WIDTH) for part in parts])
    return np.array([len(part) for part in parts]) / len(values), means, covariances


def oracle(values, label, covariance):
    weights, means, covariances = of_labels(values, label)
    precisions = np.linalg.inv(covariances)
    if covariance == "diagonal":
        precisions = 1 / np.diagonal(covariances, axis1=1, axis2=2)
    mixture = GaussianMixture(
        3,
        covariance_type={"full": "full", "diagonal": "diag"}[covariance],
        reg_covar=FLOOR,
        tol=1e-3,
        max_iter=100,
        weights_init=weights,
        means_init=means,
        precisions_init=precisions,
    )
    return mixture.fit(values.astype(np.float64))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_scikit_learn_from_the_same_start(covariance, seed):
    values, label = clusters(seed)
    wrong = np.where(np.arange(len(label)) % 4 == 0, (label + 1) % 3, label)  # a start to move from
    want = oracle(values, wrong, covariance)
    padded = np.concatenate([values, np.full((5, WIDTH), 0.5, np.float32)])
    weight = np.r_[np.ones(len(values)), np.zeros(5)].astype(np.float32)
    start = np.eye(3, dtype=np.float32)[np.r_[wrong, np.zeros(5, int)]]
    gaussians, steps = FIT(padded, weight, start, Mixture(3, covariance, FLOOR))
    assert want.converged_
    assert steps == want.n_iter_ > 2
    # 1e-3: float32 covariances near the floor, over several steps.
    np.testing.assert_allclose(np.exp(gaussians[0]), want.weights_, rtol=1e-3)
    np.testing.assert_allclose(gaussians[1], want.means_, rtol=0, atol=1e-3)
    query = np.random.default_rng(seed).standard_normal((20, WIDTH)).astype(np.float32)
    got = jax.nn.logsumexp(log_joint(query, gaussians), 1)
    np.testing.assert_allclose(got, want.score_samples(query.astype(np.float64)), rtol=2e-3)


def test_the_density_is_that_of_scipy():
    values, label = clusters()
    weights, means, covariances = of_labels(values, label)
    factors = np.linalg.cholesky(covariances)
    got = log_joint(values, [x.astype(np.float32) for x in (np.log(weights), means, factors)])
    for k in range(3):
        want = multivariate_normal(means[k], covariances[k]).logpdf(values) + np.log(weights[k])
        # 1e-4: float32 whitening of rows that are up to 30 deviations away.
        np.testing.assert_allclose(got[:, k], want, rtol=1e-4, atol=1e-4)


def test_one_full_component_is_a_gaussian_of_all_rows():
    values, _ = clusters()
    weight = np.ones(len(values), np.float32)
    gaussian, converged = fit_mixture(values, weight, Mixture(1))
    got = negative_log_likelihood(gaussian, values, Mixture(1))
    covariance = np.cov(values.astype(np.float64).T, bias=True) + FLOOR * np.eye(WIDTH)
    want = multivariate_normal(values.astype(np.float64).mean(0), covariance).logpdf(values)
    assert converged
    np.testing.assert_allclose(got, -want, rtol=0, atol=1e-4)  # float32, values of up to 10


def test_components_without_rows_do_no_harm():
    """Two rows for five components; and five for rows that are all equal."""
    two = np.eye(WIDTH, dtype=np.float32)[[0, 1, 0, 0]], np.array([1, 1, 0, 0], np.float32)
    same = np.repeat(two[0][:1], 4, 0), np.ones(4, np.float32)
    query = two[0][[0]] * np.float32([[1], [-1]])

    @jax.jit
    def fit(values, weight, query):
        return negative_log_likelihood(fit_mixture(values, weight, Mixture(5))[0], query, None)

    for given in (two, same):
        near, far = fit(*given, query)
        assert np.isfinite([near, far]).all()
        assert near < far
    # Equal rows are a sphere of the floor's width; 1e-4: float32 logarithms.
    want = WIDTH / 2 * np.log(2 * np.pi * FLOOR)
    np.testing.assert_allclose(fit(*same, query)[0], want, rtol=1e-4)


def blas_threads():
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return np.float32(max([pool["num_threads"] for pool in pools], default=1))


def test_lapack_has_one_thread_during_fits_and_as_many_as_before_after():
    def fit(values, weight):
        threads = jax.pure_callback(blas_threads, jax.ShapeDtypeStruct((), np.float32))
        return values, threads

    def apply(known, query):
        return query.sum(1)

    machine = Embeddings((), np.eye(6, dtype=np.float32))
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        sets = [folds.ReferenceSet(0, np.arange(6))]
        _, threads = folds.fit_sets([machine], sets, 1, fit, apply)
        assert blas_threads() == before
    assert threads == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"components": 0}, "components: expected >= 1, got 0"),
        ({"covariance": "tied"}, "'full' or 'diagonal', got 'tied'"),
        ({"floor": 0.0}, "floor: expected > 0, got 0.0"),
        ({"seed": -1}, r"seed: expected in \[0, 2"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Mixture(**wrong)
