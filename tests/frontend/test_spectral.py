"""Spectrum and spectrogram against numpy and scipy in float64, and by meaning."""

import jax
import numpy as np
import pytest
import scipy.signal

from asdjax.frontend import spectral
from asdjax.frontend.spectral import magnitude_spectrogram, magnitude_spectrum

# Of the largest magnitude before a mean is taken away: float32 FFTs are off by a few 1e-7 of it.
PART = 1e-6


def sound(*shape, seed=0):
    """Noise with a loud tone, as 16-bit samples."""
    noise = np.random.default_rng(seed).normal(size=shape) * 2_000
    tone = 20_000 * np.sin(2 * np.pi * 1_000 / 16_000 * np.arange(shape[-1]))
    return np.round(noise + tone).astype(np.int16)


def assert_close(got, want, wave):
    """Compare within rounding of the largest magnitude of the whole `wave` or of a frame."""
    loudest = np.abs(np.fft.rfft(wave[:, : 1024 if np.ndim(want) == 3 else None])).max()
    loudest /= 32_768 if wave.dtype == np.int16 else 1
    np.testing.assert_allclose(got, want, rtol=0, atol=PART * loudest)


@pytest.mark.parametrize("samples", [16_000, 12_001])
def test_the_spectrum_is_the_fft_of_the_whole_clip_below_nyquist(samples):
    wave = sound(2, samples)
    want = np.abs(np.fft.fft(np.float64(wave) / 32_768))[:, : samples // 2]
    got = magnitude_spectrum(wave)
    assert got.dtype == np.float32
    assert_close(got, want, wave)


def test_a_tone_stands_in_its_bin_with_half_its_amplitude_times_the_samples():
    wave = 0.5 * np.cos(2 * np.pi * 440 / 16_000 * np.arange(16_000))[None]
    want = np.zeros((1, 8_000))
    want[0, 440] = 0.5 * 16_000 / 2
    assert_close(magnitude_spectrum(wave.astype(np.float32)), want, wave)


def oracle(wave, low, high):
    """Return `[B, T, F]` of the bins from `low` to below `high`, by scipy."""
    taper = scipy.signal.get_window("hann", 1024)  # periodic
    _, _, stft = scipy.signal.stft(
        np.float64(wave) / 32_768, window=taper, nperseg=1024, noverlap=512,
        boundary=None, padded=False,
    )  # fmt: skip
    magnitude = np.abs(stft).swapaxes(1, 2)[..., low:high] * taper.sum()  # scipy divides by it
    return magnitude - magnitude.mean(1, keepdims=True)


@pytest.mark.parametrize("samples", [1_024, 16_000, 16_896, 17_407])
def test_the_spectrogram_is_scipys_without_each_bins_mean(samples):
    wave = sound(3, samples)
    want = oracle(wave, 13, 513)  # 203.125 Hz to 8 kHz
    got = magnitude_spectrogram(wave)
    assert got.dtype == np.float32
    assert got.shape == want.shape == (3, spectral.frame_count(samples), 500)
    assert_close(got, want, wave)


def test_a_sound_that_repeats_every_hop_leaves_nothing():
    wave = np.tile(sound(1, 512), 8)
    assert_close(magnitude_spectrogram(wave), np.zeros((1, 7, 500)), wave)


@pytest.mark.parametrize("view", [magnitude_spectrum, magnitude_spectrogram])
def test_integers_equal_floats_and_a_clip_alone_equals_the_clip_in_a_batch(view):
    wave = sound(3, 5_000)
    got = np.asarray(view(wave))
    np.testing.assert_array_equal(got, view(np.float32(wave) / 32_768))
    assert_close(view(wave[1:2]), got[1:2], wave)  # rows may be summed in another order


@pytest.mark.parametrize("view", [magnitude_spectrum, magnitude_spectrogram])
def test_silence_is_silent(view):
    assert not np.asarray(view(np.zeros((1, 2_048), np.int16))).any()


def test_ten_seconds_have_the_published_shapes():
    row = jax.ShapeDtypeStruct((1, 160_000), np.int16)
    assert jax.eval_shape(magnitude_spectrum, row).shape == (1, 80_000)
    assert jax.eval_shape(magnitude_spectrogram, row).shape == (1, 311, 500)


def test_less_than_a_frame_is_refused():
    with pytest.raises(ValueError, match="at least 1024 samples, got wave \\(1, 1023\\)"):
        magnitude_spectrogram(np.zeros((1, 1_023), np.int16))
