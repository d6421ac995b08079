"""Embedders: what the numbers are, and that padding changes nothing."""

import jax
import numpy as np

from asdjax.frontend.fbank import BEATS, fbank
from asdjax.models.embedder import logmel_statistics, masked_mean


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal((1, samples)).astype(np.float32) * 0.1


def test_logmel_statistics_are_the_mean_and_deviation_over_frames():
    wave = noise(4000)
    mel = np.asarray(fbank(wave, BEATS))[0].astype(np.float64)
    got = np.asarray(logmel_statistics(wave, np.array([4000])))[0]
    # 1e-5: float32 sums of 23 log energies of about 10.
    np.testing.assert_allclose(got, np.concatenate([mel.mean(0), mel.std(0)]), rtol=0, atol=1e-5)


def test_padding_changes_nothing():
    wave = noise(4000)
    padded = np.pad(wave, ((0, 0), (0, 3000)))
    embed = jax.jit(logmel_statistics)
    # 1e-4: float32, another batch of the FFT and longer sums.
    np.testing.assert_allclose(
        embed(padded, np.array([4000])), embed(wave, np.array([4000])), rtol=0, atol=1e-4
    )


def test_a_clip_without_a_single_frame_inside_is_finite():
    assert np.isfinite(logmel_statistics(noise(800), np.array([100]))).all()


def test_masked_mean_averages_only_what_is_inside():
    x = np.arange(12.0, dtype=np.float32).reshape(2, 3, 2)
    inside = np.array([[True, True, False], [False, False, False]])[..., None]
    np.testing.assert_array_equal(masked_mean(x, inside), [[1, 2], [0, 0]])
