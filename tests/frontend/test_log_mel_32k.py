"""The log-mel of EfficientAT against its reference, and waves at twice the rate against sines."""

import numpy as np
import pytest
from machines import golden_wave

from asdjax.frontend import log_mel_32k
from asdjax.frontend.log_mel_32k import doubled, frame_count, log_mel


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_it_equals_the_reference(golden):
    with np.load(golden / "efficientat_mn04.npz") as arrays:
        found = np.asarray(log_mel_32k.log_mel_32k(golden_wave()[None])[0])
        assert found.shape == (1000, 128)
        # A bin rounds by 1e-6 of the strongest, the tone, whose power is some 500 times that of the
        # noise in a band: by 5e-4 of its value, a fifth of which counts. Means round less.
        np.testing.assert_allclose(found[:20].T, arrays["mel_first"], rtol=0, atol=2e-4)
        np.testing.assert_allclose(found.mean(0), arrays["mel_mean"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("hz", [50.0, 1000.0, 4321.0, 7000.0])
def test_between_samples_there_is_the_sine_they_are_of(hz):
    seconds = np.arange(4000) / 16_000
    wave = np.sin(2 * np.pi * hz * seconds + 0.3).astype(np.float32)
    found = np.asarray(doubled(wave[None])[0])
    assert found.shape == (8000,)
    expected = np.sin(2 * np.pi * hz * np.arange(8000) / 32_000 + 0.3)
    inside = slice(256, -256)  # beyond the clip there is silence, as far as the filter reaches
    np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=2e-4)
    np.testing.assert_array_equal(found[::2], wave)


@pytest.mark.parametrize("samples", [202, 400, 1600, 4001])
def test_frames_are_those_of_a_plain_transform(samples):
    wave = noise(samples)
    found = np.asarray(log_mel(wave[None])[0])
    high = np.asarray(doubled(wave[None])[0], np.float64)
    slope = np.pad(high[1:] - 0.97 * high[:-1], 512, mode="reflect")
    window = np.pad(np.hanning(800), 112)
    assert len(found) == frame_count(samples) == 1 + (2 * samples - 1) // 320
    for t, frame in enumerate(found):
        power = np.abs(np.fft.rfft(slope[320 * t : 320 * t + 1024] * window)) ** 2
        energy = power[:-1] @ log_mel_32k.triangles(*log_mel_32k.BANK).astype(np.float64)
        # energies of noise are sums of many bins: rounding of 1e-6 of the strongest
        np.testing.assert_allclose(frame, (np.log(energy + 1e-5) + 4.5) / 5, rtol=0, atol=1e-3)


def test_a_clip_in_a_longer_row_gives_its_own_frames():
    wave, lengths = noise(3, 8000), np.array([8000, 3333, 400])
    found = np.asarray(log_mel(wave, lengths))
    for row, length in enumerate(lengths):
        alone = np.asarray(log_mel(wave[row : row + 1, :length])[0])
        # the same sums in programs of other shapes
        np.testing.assert_allclose(found[row, : len(alone)], alone, rtol=0, atol=1e-4)
        assert not found[row, len(alone) :].any()


def test_silence_is_no_zero_and_pcm_is_its_wave():
    silence = np.asarray(log_mel(np.zeros((1, 1600), np.float32)))
    np.testing.assert_allclose(silence, (np.log(1e-5) + 4.5) / 5, rtol=1e-6)
    pcm = (3000 * noise(1, 1600)).astype(np.int16)
    np.testing.assert_array_equal(log_mel(pcm), log_mel((pcm / 32768.0).astype(np.float32)))
