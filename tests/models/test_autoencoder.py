"""The autoencoder's numbers: sizes, first weights, batch norm, clips of a padded row, distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import params
from asdjax.models.autoencoder import (
    BANDS,
    MOMENTUM,
    SINGULAR,
    clip_residual,
    initialize,
    mahalanobis,
    precision_of,
    reconstruct,
    reconstruct_training,
    scatter,
    vectors,
)

ATOL = 2e-5  # float32 sums of a few hundred terms of unit scale


@pytest.fixture(scope="module")
def weights():
    return initialize(jax.random.key(0))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_as_many_numbers_as_the_official_network(weights):
    trainable, statistics = weights
    assert params.count(trainable) == 267_928
    assert params.count(trainable) + params.count(statistics) == 269_992


def test_dense_layers_start_uniform_within_one_over_the_root_of_the_inputs(weights):
    for name, value in weights[0].items():
        if name.endswith("kernel"):
            bound = 1 / np.sqrt(len(value))
            assert 0.99 * bound < np.abs(value).max() <= bound
            # of n uniform numbers: mean 0 ± bound / sqrt(3 n), deviation bound / sqrt(3)
            assert abs(value.mean()) < 4 * bound / np.sqrt(3 * value.size)
            np.testing.assert_allclose(value.std(), bound / np.sqrt(3), rtol=0.05)
    kernels = [value for name, value in weights[0].items() if value.shape == (128, 128)]
    assert len({float(kernel.sum()) for kernel in kernels}) == len(kernels) == 6


def test_a_vector_is_a_frame_and_the_four_that_follow():
    mel = normal(7, BANDS)
    expected = [mel[t : t + 5].reshape(-1) for t in range(3)]
    np.testing.assert_array_equal(vectors(mel), expected)


def test_with_statistics_of_the_batch_itself_use_equals_training(weights):
    trainable, statistics = weights
    x, valid = normal(12, 640), np.ones(12, np.float32)
    found, after = reconstruct_training(trainable, statistics, x, valid)
    batch = {name: (after[name] - (1 - MOMENTUM) * statistics[name]) / MOMENTUM for name in after}
    biased = {n: v * 11 / 12 if n.endswith("variance") else v for n, v in batch.items()}
    # What one step leaves of the batch in the statistics is a hundredth: so are its digits.
    np.testing.assert_allclose(reconstruct(trainable, biased, x), found, rtol=0, atol=100 * ATOL)


@pytest.mark.parametrize("filler", [0.0, 1e3])
def test_rows_that_fill_a_batch_change_nothing(weights, filler):
    x = normal(12, 640)
    alone, expected = reconstruct_training(*weights, x, np.ones(12, np.float32))
    padded = np.concatenate([x, np.full((4, 640), filler, np.float32)])
    valid = np.float32([1] * 12 + [0] * 4)
    found, statistics = reconstruct_training(*weights, padded, valid)
    np.testing.assert_allclose(found[:12], alone, rtol=0, atol=ATOL)
    for name, value in expected.items():
        np.testing.assert_allclose(statistics[name], value, rtol=0, atol=ATOL)


def test_frames_behind_a_clip_change_nothing(weights):
    mel = normal(9, BANDS)
    error, row = clip_residual(*weights, mel, 9)
    longer = np.concatenate([mel, np.full((6, BANDS), 50, np.float32)])
    padded = jax.jit(clip_residual)(*weights, longer, 9)
    for found, expected in zip(padded, (error, row), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)
    residual = vectors(mel) - reconstruct(*weights, vectors(mel))
    np.testing.assert_allclose(error, np.mean(np.float64(residual) ** 2), rtol=1e-6)
    mean = np.float64(residual).reshape(-1, BANDS).mean(0)
    np.testing.assert_allclose(row, mean, rtol=0, atol=ATOL)


def test_the_score_is_the_mean_of_the_whole_matrix_of_products_not_of_its_diagonal():
    residual, root = np.float64(normal(6, 640)), np.float64(normal(BANDS, BANDS, seed=1))
    rows, precision = residual.reshape(-1, BANDS), root @ root.T
    products = rows @ precision @ rows.T
    found = mahalanobis(rows.mean(0).astype(np.float32), precision.astype(np.float32))
    np.testing.assert_allclose(found, products.mean(), rtol=1e-4)  # float32 products cancel
    assert found < 0.2 * np.diag(products).mean()


def test_rows_are_centered_within_their_batch_and_others_do_not_count():
    residual = normal(8, 640) + 3
    weight = np.float32([1, 0, 1, 1, 0, 1, 0, 1])
    rows = np.float64(residual[weight > 0]).reshape(-1, BANDS)
    centered = rows - rows.mean(0)
    # sums of 25 products around 1
    np.testing.assert_allclose(scatter(residual, weight), centered.T @ centered, atol=1e-4)
    np.testing.assert_array_equal(scatter(residual, 0 * weight), np.zeros((BANDS, BANDS)))


def test_the_covariance_is_divided_by_the_vectors_less_one():
    rows = np.float64(normal(1000, BANDS))
    precision, ridge = precision_of(rows.T @ rows, 200)
    assert ridge == 0
    np.testing.assert_allclose(precision, np.linalg.inv(rows.T @ rows / 199), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rank", [0, 1, 127])
def test_a_singular_covariance_gets_the_smallest_ridge_that_float32_can_invert(rank):
    rows = np.float64(normal(max(rank, 1), BANDS)) * (rank > 0)
    precision, ridge = precision_of(rows.T @ rows, 2)
    assert ridge > 0
    assert np.isfinite(precision).all()
    largest = np.linalg.eigvalsh(rows.T @ rows).max()
    np.testing.assert_allclose(ridge, SINGULAR * largest if rank else 1.0, rtol=1e-3)
    scores = mahalanobis(normal(20, BANDS), jnp.asarray(precision))
    assert (scores > 0).all()
