"""Statistics of the log-mel: what the numbers are, and that padding changes nothing."""

import jax
import numpy as np
import pytest

from asdjax.frontend.fbank import BEATS, fbank
from asdjax.models import logmel
from asdjax.models.logmel import LogMel, front_end
from asdjax.models.system import Architecture


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal((1, samples)).astype(np.float32) * 0.1


def statistics(wave, lengths=None):
    return front_end(wave, lengths).x


def test_they_are_the_mean_and_deviation_over_frames():
    wave = noise(4000)
    mel = np.asarray(fbank(wave, BEATS))[0].astype(np.float64)
    expected = np.concatenate([mel.mean(0), mel.std(0)])
    # 1e-5: float32 sums of 23 log energies of about 10.
    for lengths in (np.array([4000]), None):
        np.testing.assert_allclose(statistics(wave, lengths)[0], expected, rtol=0, atol=1e-5)


def test_padding_changes_nothing():
    wave = noise(4000)
    padded = np.pad(wave, ((0, 0), (0, 3000)))
    compute = jax.jit(statistics)
    # 1e-4: float32, another batch of the FFT and longer sums.
    np.testing.assert_allclose(
        compute(padded, np.array([4000])), compute(wave, np.array([4000])), rtol=0, atol=1e-4
    )


def test_a_clip_without_a_single_frame_inside_is_finite():
    assert np.isfinite(statistics(noise(800), np.array([100]))).all()


def test_they_are_an_embedding_without_weights():
    embedder = Architecture((LogMel().network(),)).embedder({})
    assert embedder.params == {}
    wave, lengths = noise(4000), np.array([3000])
    found = jax.jit(embedder.apply)({}, wave, lengths)
    assert found.shape == (1, LogMel().network().width)
    # 1e-4: float32; without its mean, the wave rounds in another way
    np.testing.assert_allclose(found, statistics(wave, lengths), rtol=0, atol=1e-4)


@pytest.mark.parametrize("frames", [23, 24, 46, 60])
def test_long_clips_in_windows_have_the_statistics_of_the_whole(monkeypatch, frames):
    samples = 400 + 160 * (frames - 1) + 37
    wave = np.repeat(noise(samples, seed=2), 3, 0) * np.linspace(0.1, 3, samples, dtype=np.float32)
    lengths = np.array([samples, samples - 2000, 500])
    whole = statistics(wave, lengths)
    monkeypatch.setattr(logmel, "WINDOW_FRAMES", 23)
    # 2e-5: float32 sums of up to 60 log energies of about 10, in another order.
    np.testing.assert_allclose(statistics(wave, lengths), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("seconds", [10, 200, 3600])
def test_the_memory_of_a_clip_is_at_most_what_is_said(seconds):
    shapes = [((1, seconds * 16_000), np.int16), ((1,), np.int32)]
    apply = Architecture((LogMel().network(),)).embedder({}).apply
    lowered = jax.jit(apply).lower({}, *(jax.ShapeDtypeStruct(*of) for of in shapes))
    used = lowered.compile().memory_analysis()
    total = used.temp_size_in_bytes + used.argument_size_in_bytes
    assert total <= LogMel().clip_bytes(seconds * 16_000) <= 8 * total
