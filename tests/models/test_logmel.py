"""Statistics of the log-mel: what the numbers are, and that padding changes nothing."""

import jax
import numpy as np
import pytest

from asdjax.frontend.fbank import BEATS, fbank
from asdjax.models import logmel
from asdjax.models.logmel import LogMel, front_end
from asdjax.models.pooling import Pool
from asdjax.models.system import Architecture
from asdjax.types import InputError


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


def test_by_bands_the_statistics_of_a_part_lie_together():
    wave = noise(4000)
    whole = np.asarray(statistics(wave))[0].reshape(2, 8, 16)
    found = LogMel(bands=8).network().front_end(wave).x[0]
    np.testing.assert_array_equal(found, whole.swapaxes(0, 1).reshape(-1))


def test_pooled_frames_by_bands():
    """Each part of 16 mel bands with weights of its own; frames behind the clip change nothing."""
    pool = Pool(deviation=4.0, bands=True)
    network = LogMel(bands=8, pools=(pool, pool)).network()
    wave = np.pad(noise(4000), ((0, 0), (0, 3000)))
    found = network.front_end(wave, np.array([4000])).x[0]
    assert found.shape == (network.width,) == (256,)
    mel = np.asarray(fbank(wave[:, :4000], BEATS))
    expected = [Pool(4.0)(mel[:, :, start : start + 16], None, 1)[0] for start in range(0, 128, 16)]
    # 1e-4: float32, another batch of the FFT and longer sums of energies of about 10.
    np.testing.assert_allclose(found, np.tile(np.concatenate(expected), 2), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match=r"LogMel\.bands: expected .* divides 128, got 7"):
        LogMel(bands=7)
    with pytest.raises(InputError, match="all pools by bands or none"):
        LogMel(8, (Pool(), pool))
    whole = LogMel(8, (Pool(4.0),)).network().front_end(wave[:, :4000]).x
    np.testing.assert_allclose(whole, Pool(4.0)(mel, None, 1), rtol=0, atol=1e-4)


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
