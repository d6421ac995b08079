"""Levels in bands and the dense layer on them, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.frontend import spectral
from asdjax.models.bands import Bands
from asdjax.types import InputError

WAVE = (2000 * np.random.default_rng(0).standard_normal((2, 4096))).astype(np.int16)


def spectrogram(wave):
    """Return magnitudes [B, T, 500] of the bins from 200 Hz on."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    starts = range(0, wave.shape[1] - 1023, 512)
    frames = np.stack([wave[:, i : i + 1024] / 32768 * hann for i in starts], 1)
    return np.abs(np.fft.rfft(frames))[..., 13:]


def test_bands_of_the_spectrum_are_logs_of_their_rms():
    magnitude = np.abs(np.fft.fft(WAVE / 32768))[:, :2048] / np.sqrt(4096)
    groups = np.split(magnitude[:, :2044], 7, axis=1)  # 292 bins each, 4 left out
    want = np.stack([np.log(np.sqrt((g**2).mean(1)) + 1e-4) for g in groups], 1)
    np.testing.assert_allclose(spectral.spectrum_bands(WAVE, 7), want, atol=1e-5)  # float32


def test_the_level_of_noise_does_not_depend_on_the_length_of_the_clip():
    noise = np.random.default_rng(1).standard_normal((1, 64000)).astype(np.float32)
    short, long = (spectral.spectrum_bands(noise[:, :n], 4) for n in (16000, 64000))
    # 2000 bins a band: their mean power varies by 1 / sqrt(2000), its level by half of that.
    np.testing.assert_allclose(short, long, atol=0.06)


def test_bands_of_the_spectrogram_are_means_of_logs():
    level = np.log(spectrogram(WAVE) + 1e-3)
    want = level[..., :496].reshape(2, 7, 62, 8).mean(-1)
    # float32: the log near its floor magnifies rounding of the quietest bins.
    np.testing.assert_allclose(spectral.spectrogram_bands(WAVE, 62), want, atol=1e-4)


@pytest.mark.parametrize("view", ["spectrum", "spectrogram"])
def test_it_is_a_dense_layer_on_normalized_levels_and_their_deviation(view):
    config = Bands(view, embedding=3, bands=5)
    x = np.asarray(config.frontend(jnp.asarray(WAVE)))
    network = config.build(4096, train=True, rngs=nnx.Rngs(0))
    got = network(jnp.asarray(x))
    if view == "spectrogram":
        x = np.concatenate([x.mean(1), np.sqrt(x.var(1) + 1e-4)], -1)
    normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    # Two clips: what is normalized is their difference, small beside the levels in float32.
    np.testing.assert_allclose(got, normalized @ np.asarray(network.project.kernel), atol=2e-3)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="1 to 500 bands, got 501"):
        Bands(bands=501)
    with pytest.raises(InputError, match="at least 2 numbers, got 1"):
        Bands(embedding=1)
    with pytest.raises(InputError, match=r"expected clips of at least 1024 samples.*got 800"):
        Bands().build(800, train=False, rngs=nnx.Rngs(0))
