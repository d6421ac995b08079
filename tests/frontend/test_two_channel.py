"""Two microphones against SciPy's transforms, and what they are for: a common noise goes."""

import jax
import numpy as np
import pytest
import scipy.signal

from asdjax.frontend.two_channel import FRAME_SAMPLES, near_alone


def clips(count=3, samples=8000, seed=0):
    """Near and far of machines: noise reaches the far microphone first."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, samples + 16))
    machine = np.sin(2 * np.pi * 0.06 * np.arange(samples)) * rng.uniform(0.2, 1, (count, 1))
    near = 0.1 * machine + 0.2 * noise[:, 12:-4] + 0.1 * noise[:, 8:-8]
    far = 0.01 * machine + 0.4 * noise[:, 16:]
    return np.stack([near, far], -1).astype(np.float32), machine


def by_scipy(wave, how):
    """The same of one clip `[N, 2]` in float64, by SciPy's short-time transform."""
    size, wave = FRAME_SAMPLES[how], wave.astype(np.float64)
    scale = 0.9 / np.abs(wave).max()
    window = scipy.signal.get_window("hann", size)
    half = size // 2
    padded = np.pad(scale * wave, ((half, half), (0, 0)), mode="reflect")
    padded = np.pad(padded, ((0, size), (0, 0)))
    starts = range(0, len(wave) + 1, half)
    frames = [padded[start : start + size] for start in (*starts, starts[-1] + half)]
    near, far = np.stack([np.fft.rfft(window[:, None] * one, axis=0) for one in frames]).T
    if how == "wiener":
        of = slice(len(starts))
        cross = (near * far.conj())[:, of].sum(1)
        h = cross / ((np.abs(far[:, of]) ** 2).sum(1) + 1e-12)
        left = near - h[:, None] * far
    else:
        more = np.abs(near) > np.abs(far)
        size_left = np.where(more, np.abs(near) - np.abs(far), 0.1 * np.abs(near))
        left = size_left * np.exp(1j * np.angle(near))
    _, back = scipy.signal.istft(
        left, window=window, nperseg=size, noverlap=half, boundary=True, scaling="spectrum"
    )
    return back[: len(wave)] / window.sum() / scale


@pytest.mark.parametrize("how", ["wiener", "magnitude"])
@pytest.mark.parametrize("samples", [8000, 8192, 8700])
def test_it_is_the_formula(how, samples):
    wave, _ = clips(samples=samples)
    found = near_alone(wave, how=how)
    for row, clip in zip(found, wave, strict=True):
        # 2e-5: float32 transforms of 1024 samples up to 1, forth and back.
        np.testing.assert_allclose(row, by_scipy(clip, how), rtol=0, atol=2e-5)


@pytest.mark.parametrize("samples", [16_128, 16_256, 16_340, 16_384])
def test_the_end_of_a_clip_is_no_louder_than_the_rest(samples):
    """What a long way of the noise leaves is spread evenly: no part of a frame is made louder."""
    rng = np.random.default_rng(samples)
    far = 0.1 * rng.standard_normal(samples)
    near = scipy.signal.lfilter(rng.standard_normal(300) / 17, 1, far)
    found = np.asarray(near_alone(np.stack([near, far], -1)[None].astype(np.float32)))[0]
    loud = [np.sqrt(np.square(part).mean()) for part in (found[-200:], found[1000:-1000])]
    assert loud[0] < 2 * loud[1]


def test_int16_is_the_same():
    wave = np.round(32768 * clips()[0] / 4).astype(np.int16)
    expected = near_alone(wave.astype(np.float32) / 32768)
    np.testing.assert_array_equal(near_alone(wave), expected)


@pytest.mark.parametrize("how", ["wiener", "magnitude"])
@pytest.mark.parametrize("length", [6000, 6144, 6500])
def test_a_clip_gives_in_a_longer_row_what_it_gives_alone(how, length):
    wave, _ = clips()
    wave[:, length:] = 0.7  # what follows is ignored
    found = near_alone(wave, np.full(3, length, np.int32), how)
    # 1e-6: float32, the same frames; another program may order sums otherwise
    np.testing.assert_allclose(
        found[:, :length], near_alone(wave[:, :length], how=how), rtol=0, atol=1e-6
    )
    assert not np.asarray(found[:, length:]).any()


def test_the_noise_that_both_hear_goes_and_the_machine_stays():
    wave, machine = clips(samples=64000)
    found = np.asarray(near_alone(wave))
    for row, near, hum in zip(found, wave[..., 0], 0.1 * machine, strict=True):
        before, after = (np.square(one - hum).mean() for one in (near, row))
        assert after < 0.15 * before


def test_without_a_far_sound_near_stays():
    wave, _ = clips()
    wave[..., 1] = 0
    # 1e-6: float32 transforms forth and back of samples up to 1
    np.testing.assert_allclose(near_alone(wave), wave[..., 0], rtol=0, atol=2e-6)


def test_silence_is_finite_and_too_short_is_refused():
    assert not np.asarray(near_alone(np.zeros((1, 2000, 2), np.int16))).any()
    with pytest.raises(ValueError, match="expected at least 1024 samples"):
        near_alone(np.zeros((1, 1000, 2), np.float32))


def test_it_is_linear_in_the_level():
    wave, _ = clips()
    quiet = jax.jit(near_alone)(0.01 * wave)
    np.testing.assert_allclose(quiet, 0.01 * near_alone(wave), rtol=0, atol=1e-7)


def test_a_far_microphone_with_other_noise_costs_little():
    """H is then a mean over the frames of what is not alike: it takes 1 of 125 parts of near."""
    wave, _ = clips(samples=64000)
    wave[..., 1] = np.random.default_rng(9).standard_normal(wave.shape[:2])
    taken = np.square(near_alone(wave) - wave[..., 0]).mean(1)
    assert (taken < 0.02 * np.square(wave[..., 0]).mean(1)).all()
