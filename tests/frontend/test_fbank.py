"""The filter bank against torchaudio's numbers, against a float64 oracle, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.frontend import fbank as module
from asdjax.frontend.fbank import (
    BEATS,
    EAT,
    beats_frontend,
    eat_frames,
    eat_frontend,
    fbank,
    frame_count,
    without_offset,
)

CONFIGS = {"beats": BEATS, "eat": EAT}
SOUNDS = ["noise", "machine", "quiet_noise", "impulse", "one_frame", "ragged"]
STEEP = ["sweep", "int16_extreme"]  # bands more than 80 dB below the frame's strongest are noise


@pytest.fixture(scope="module")
def reference(golden):
    with np.load(golden / "fbank.npz") as file:
        return dict(file)


def compute(reference, name, config):
    return np.asarray(fbank(reference[f"{name}_wave"][None], CONFIGS[config]))[0]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", SOUNDS)
def test_real_sounds_equal_torchaudio(reference, name, config):
    # 1e-3 in log units: torchaudio's own float32 result is up to 2.5e-4 off float64.
    np.testing.assert_allclose(
        compute(reference, name, config), reference[f"{name}_{config}"], rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", STEEP)
def test_steep_spectra_equal_torchaudio_above_rounding_noise(reference, name, config):
    got, want = compute(reference, name, config), reference[f"{name}_{config}"]
    loud = want > want.max(-1, keepdims=True) - 8 * np.log(10)  # 80 dB
    # 3e-3: float32 FFT rounding moves torchaudio itself by 8e-4 within 80 dB.
    np.testing.assert_allclose(got[loud], want[loud], rtol=0, atol=3e-3)
    # Everywhere: energies to float32 precision of the frame's strongest band. Ours may be 4e-6
    # off from the filters (float64 here, float32 there) and as much from either FFT.
    error = np.abs(np.exp(got) - np.exp(want)) / np.exp(want).max(-1, keepdims=True)
    assert error.max() < 1.2e-5


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["silence", "dc"])
def test_silence_and_constant_are_exactly_at_the_floor(reference, name, config):
    np.testing.assert_array_equal(compute(reference, name, config), np.log(np.float32(2.0**-23)))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_silence_and_constants_after_a_sound_are_exactly_at_the_floor(config):
    loud = np.random.default_rng(0).uniform(-1, 1, 2000)
    wave = np.concatenate([loud, np.zeros(2000), np.full(2000, 0.3)]).astype(np.float32)
    mel = np.asarray(fbank(wave[None], config))[0]
    floor = np.log(np.float32(2.0**-23))
    np.testing.assert_array_equal(mel[13:23], floor)  # frames from sample 2080 to 3999
    np.testing.assert_array_equal(mel[26:], floor)  # from sample 4160 on
    assert (mel[:10].max(-1) > floor + 1).all()


def test_windows_and_filters_equal_torchaudio(reference):
    # torchaudio evaluates both in float32: window error 2e-7; filters near a corner 1.4e-5
    # (the difference of two mel values of about 2840, float32 spacing 2.4e-4, divided by 22).
    np.testing.assert_allclose(
        module.window("povey")[:400], reference["window_povey"], rtol=0, atol=3e-7
    )
    np.testing.assert_allclose(
        module.window("hann")[:400], reference["window_hanning"], rtol=0, atol=3e-7
    )
    np.testing.assert_allclose(module.mel_bank(BEATS).T, reference["mel_bank"], rtol=0, atol=2e-5)
    assert not module.mel_bank(BEATS)[:, 3].any()  # narrower than the spacing of the FFT bins


def test_normalized_inputs_of_both_backbones(reference):
    wave = reference["machine_wave"][None]
    # 2e-4: the log-mel tolerance 1e-3 divided by twice the smaller deviation (9.1).
    for got, name in [
        (beats_frontend(wave), "beats_norm_machine"),
        (eat_frontend(wave, 64), "eat_norm_machine_64"),
        (eat_frontend(wave, 32), "eat_norm_machine_32"),
    ]:
        np.testing.assert_allclose(np.asarray(got)[0], reference[name], rtol=0, atol=2e-4)


def naive_fbank(wave, config):
    """The definition of Kaldi's filter bank, one frame at a time in float64."""
    wave = np.asarray(wave, np.float64) * config.scale
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    window = hann**0.85 if config.window == "povey" else hann
    mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    low, step = mel(20), (mel(8000) - mel(20)) / 129
    rows = []
    for start in range(0, len(wave) - 399, 160):
        frame = wave[start : start + 400] - wave[start : start + 400].mean()
        emphasized = np.append(0.03 * frame[0], frame[1:] - 0.97 * frame[:-1]) * window
        power = np.abs(np.fft.fft(emphasized, 512)) ** 2
        row = []
        for band in range(128):
            left = low + band * step
            energy = 0.0
            for k in range(256):
                z = mel(31.25 * k)
                energy += power[k] * max(0, min((z - left) / step, (left + 2 * step - z) / step))
            row.append(np.log(max(energy, 2.0**-23)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equals_a_float64_loop_over_frames(config):
    wave = (np.random.default_rng(0).standard_normal(1000) * 0.1).astype(np.float32)
    # float32 against float64: 3e-4 before normalization for real sounds.
    np.testing.assert_allclose(
        np.asarray(fbank(wave[None], config))[0], naive_fbank(wave, config), rtol=0, atol=3e-4
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padded_rows_equal_the_clip_alone_followed_by_zeros(config):
    rng = np.random.default_rng(1)
    wave = rng.standard_normal((3, 4000)).astype(np.float32) * 0.1  # garbage behind the lengths
    lengths = np.array([4000, 2117, 400])
    batch = np.asarray(fbank(wave, config, lengths))
    for row, clip, length in zip(batch, wave, lengths, strict=True):
        alone = np.asarray(fbank(clip[None, :length], config))[0]
        # 1e-4: another order of summation for the clip's mean and another FFT batch.
        np.testing.assert_allclose(row[: len(alone)], alone, rtol=0, atol=1e-4)
        assert not row[len(alone) :].any()


def test_nothing_behind_a_clip_reaches_it():
    wave = np.random.default_rng(4).standard_normal((1, 2000)).astype(np.float32) * 0.1
    spoiled = wave.copy()
    spoiled[:, 1500:] = np.nan
    lengths = np.array([1500])
    np.testing.assert_array_equal(fbank(spoiled, BEATS, lengths), fbank(wave, BEATS, lengths))


def test_eat_pads_behind_the_clip_before_it_normalizes():
    wave = np.random.default_rng(5).standard_normal((1, 4000)).astype(np.float32) * 0.1
    padded = np.asarray(eat_frontend(wave, 32, np.array([2000])))[0]
    alone = np.asarray(eat_frontend(wave[:, :2000], 32))[0]
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-5)  # float32, another batch of FFTs
    np.testing.assert_allclose(padded[frame_count(2000) :], 4.268 / 9.138, rtol=1e-6)


def test_eat_frames_are_the_next_multiple_of_32():
    # 2, 6, 8, 10, 12 and 18 s as EAT's code takes them; then around 32 frames (5360 samples)
    published = {2: 224, 6: 608, 8: 800, 10: 1024, 12: 1216, 18: 1824}
    assert {seconds: eat_frames(seconds * 16_000) for seconds in published} == published
    lengths = np.array([0, 399, 400, 5360, 5519, 5520])
    np.testing.assert_array_equal(eat_frames(lengths), [0, 0, 32, 32, 32, 64])
    np.testing.assert_array_equal(eat_frames(jnp.asarray(lengths)), [0, 0, 32, 32, 32, 64])


def test_int16_equals_float():
    pcm = np.random.default_rng(2).integers(-20000, 20000, (2, 2000), dtype=np.int16)
    np.testing.assert_array_equal(
        fbank(pcm, BEATS), fbank(pcm.astype(np.float32) / np.float32(32768), BEATS)
    )


def test_frame_count_drops_incomplete_frames():
    assert [frame_count(n) for n in (0, 399, 400, 559, 560, 160_000)] == [0, 0, 1, 1, 2, 998]
    np.testing.assert_array_equal(frame_count(jnp.array([0, 399, 400, 560])), [0, 0, 1, 2])


def test_too_short_a_wave_is_refused():
    with pytest.raises(ValueError, match="at least 400 samples"):
        fbank(np.zeros((1, 399), np.float32), BEATS)


def test_gradient_is_finite_on_silence():
    gradient = jax.grad(lambda wave: beats_frontend(wave).sum())(jnp.zeros((1, 800)))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_mean_of_each_clip_is_taken_off_and_its_padding_stays_silent(dtype):
    lengths = np.array([300, 120, 1])
    inside = np.arange(300)[None] < lengths[:, None]
    sound = np.random.default_rng(0).integers(-900, 900, (3, 300)) * inside
    expected = np.where(inside, sound - (sound.sum(1) / lengths)[:, None], 0) / 32768
    for offset in (0, 7000):
        wave = (sound + offset * inside).astype(np.int16)
        wave = wave if dtype == np.int16 else wave / np.float32(32768)
        # 1e-6: sums of 300 float32 values below 0.3.
        np.testing.assert_allclose(without_offset(wave, lengths), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(without_offset(wave[:1]), expected[:1], rtol=0, atol=1e-6)
