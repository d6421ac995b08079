"""The baseline's log-mel against librosa, its autoencoder, batch norm, padded clips, distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.baseline.network import (
    BANDS,
    FLOOR,
    MOMENTUM,
    SINGULAR,
    Autoencoder,
    clip_log_mel,
    frame_count,
    initialize,
    log_mel,
    mahalanobis,
    mel_filters,
    precision_of,
    reconstruct,
    reconstruct_training,
    scatter,
    score_clips,
    score_frames,
    vectors,
)
from asdjax.models import weights_file

ATOL = 2e-5  # float32 sums of a few hundred terms of unit scale
ATOL_DB = 1e-4


@pytest.fixture(scope="module")
def librosa(golden):
    """Return the log-mel that `golden/make_baseline_mel.py` had librosa compute."""
    return np.load(golden / "baseline_mel.npz")


@pytest.fixture(scope="module")
def split_weights():
    return initialize(jax.random.key(0))


@pytest.fixture(scope="module")
def weights(split_weights):
    trainable, statistics = split_weights
    return trainable | statistics


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("samples", [6_000, 5_120, 5_119, 2_048])
def test_log_mel_equals_librosa(librosa, samples):
    found = log_mel(librosa[f"{samples}_wave"][None])[0]
    assert found.shape == (frame_count(samples), 128)
    np.testing.assert_allclose(found, librosa[f"{samples}_mel"], rtol=0, atol=ATOL_DB)


def test_a_pure_tone_equals_librosa_down_to_70_db_below_it(librosa):
    found, expected = log_mel(librosa["tone_wave"][None])[0], librosa["tone_mel"]
    near = expected > expected.max(1, keepdims=True) - 70
    assert near.sum() > 100
    # float32 has 144 dB: 70 dB below the tone the FFT is exact to 2e-4 of the value.
    np.testing.assert_allclose(found[near], expected[near], rtol=0, atol=1e-3)


def test_mel_filters_equal_librosa(librosa):
    np.testing.assert_allclose(mel_filters(), librosa["filters"], rtol=0, atol=1e-8)


def test_a_frame_worked_out_by_hand():
    # The first frame has zeros in its first half, then a click in its middle, where the window is
    # 1: power 1 in each bin, so that each band has the sum of its filter.
    wave = np.zeros((1, 1024), np.float32)
    wave[0, 0] = 1
    expected = 10 * np.log10(mel_filters().sum(0))
    np.testing.assert_allclose(log_mel(wave)[0, 0], expected, rtol=0, atol=ATOL_DB)


def test_silence_is_the_floor():
    np.testing.assert_allclose(log_mel(np.zeros((1, 2048), np.int16)), 10 * np.log10(FLOOR), 1e-6)


def test_int16_and_float_are_the_same_wave(librosa):
    wave = librosa["6000_wave"][None]
    np.testing.assert_array_equal(log_mel(wave), log_mel(wave.astype(np.float32) / 32768))


@pytest.mark.parametrize("length", [400, 5_119, 5_120])
def test_a_padded_row_equals_the_clip_alone(librosa, length):
    wave = np.stack([librosa["6000_wave"], librosa["6000_wave"][::-1]])
    padded = np.asarray(log_mel(wave, np.int32([length, 6000])))
    alone = np.asarray(log_mel(wave[:1, :length]))
    # Programs for other shapes may round in another order: 4 steps of float32 near 10 dB.
    np.testing.assert_allclose(padded[0, : frame_count(length)], alone[0], rtol=0, atol=4e-6)
    assert not padded[0, frame_count(length) :].any()
    np.testing.assert_array_equal(padded[1], log_mel(wave)[1])


def test_an_offset_of_a_clip_changes_nothing(librosa):
    wave, lengths = librosa["6000_wave"][None] // 2, np.int32([6000])
    moved, plain = clip_log_mel(wave + np.int16(500), lengths), clip_log_mel(wave, lengths)
    np.testing.assert_allclose(moved, plain, rtol=0, atol=ATOL_DB)
    assert np.abs(log_mel(wave + np.int16(500)) - log_mel(wave)).max() > 1  # dB


def test_as_many_parameters_as_the_official_network(split_weights):
    trainable, statistics = split_weights
    assert weights_file.count(trainable) == 267_928
    assert weights_file.count(trainable) + weights_file.count(statistics) == 269_992


def test_dense_layers_start_uniform_within_one_over_the_root_of_the_inputs(weights):
    for name, value in weights.items():
        if name.endswith("kernel"):
            bound = 1 / np.sqrt(len(value))
            assert 0.99 * bound < np.abs(value).max() <= bound
            # of n uniform numbers: mean 0 ± bound / sqrt(3 n), deviation bound / sqrt(3)
            assert abs(value.mean()) < 4 * bound / np.sqrt(3 * value.size)
            np.testing.assert_allclose(value.std(), bound / np.sqrt(3), rtol=0.05)
    kernels = [value for name, value in weights.items() if value.shape == (128, 128)]
    assert len({float(kernel.sum()) for kernel in kernels}) == len(kernels) == 6


def test_a_vector_is_a_frame_and_the_four_that_follow():
    mel = normal(7, BANDS)
    expected = [mel[t : t + 5].reshape(-1) for t in range(3)]
    np.testing.assert_array_equal(vectors(mel), expected)


def test_with_statistics_of_the_batch_itself_use_equals_training(weights):
    x, valid = normal(12, 640), np.ones(12, np.float32)
    found, after = reconstruct_training(weights, x, valid)
    batch = {name: (after[name] - (1 - MOMENTUM) * weights[name]) / MOMENTUM for name in after}
    biased = {n: v * 11 / 12 if n.endswith("variance") else v for n, v in batch.items()}
    # What one step leaves of the batch in the statistics is a hundredth: so are its digits.
    np.testing.assert_allclose(reconstruct(weights | biased, x), found, rtol=0, atol=100 * ATOL)


@pytest.mark.parametrize("filler", [0.0, 1e3])
def test_rows_that_fill_a_batch_change_nothing(weights, filler):
    x = normal(12, 640)
    alone, expected = reconstruct_training(weights, x, np.ones(12, np.float32))
    padded = np.concatenate([x, np.full((4, 640), filler, np.float32)])
    valid = np.float32([1] * 12 + [0] * 4)
    found, statistics = reconstruct_training(weights, padded, valid)
    np.testing.assert_allclose(found[:12], alone, rtol=0, atol=ATOL)
    for name, value in expected.items():
        np.testing.assert_allclose(statistics[name], value, rtol=0, atol=ATOL)


def test_a_clip_has_the_scores_of_its_own_frames_whatever_lies_behind_them(weights):
    mel, root = normal(9, BANDS), np.float64(normal(2, BANDS, BANDS, seed=1))
    precisions = root @ root.swapaxes(1, 2)
    domains = zip(("source", "target"), np.float32(precisions), strict=True)
    weights = weights | {f"precision.{domain}": precision for domain, precision in domains}
    residual = np.float64(vectors(mel) - reconstruct(weights, vectors(mel)))
    rows = residual.reshape(-1, BANDS)
    expected = [np.mean(residual**2), *((rows @ p @ rows.T).mean() for p in precisions)]
    longer = np.concatenate([mel, np.full((6, BANDS), 50, np.float32)])
    scores = jax.jit(score_frames)
    for found in (scores(weights, mel, 9), scores(weights, longer, 9)):
        np.testing.assert_allclose(found, expected, rtol=1e-4)  # float32 products cancel


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


def test_the_memory_of_a_clip_is_at_most_what_is_said(split_weights):
    samples = 200 * 16_000
    wave = jax.ShapeDtypeStruct((1, samples), jnp.int16)
    length = jax.ShapeDtypeStruct((1,), jnp.int32)
    weights = split_weights[0] | split_weights[1]
    weights |= {f"precision.{domain}": jnp.eye(BANDS) for domain in ("source", "target")}
    used = jax.jit(score_clips).lower(weights, wave, length).compile().memory_analysis()
    total = used.temp_size_in_bytes + 2 * samples
    assert total <= Autoencoder().clip_bytes(samples) <= 4 * total
