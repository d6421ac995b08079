import numpy as np
import pytest
import soundfile
from scipy.signal import resample

from asdjax.data import audio, content
from asdjax.data.content import bandwidth

RATE_HZ = 16_000
RNG = np.random.default_rng(3)
NOISE = RNG.standard_normal(RATE_HZ) * 0.1  # 1 s
OTHER = RNG.standard_normal(RATE_HZ) * 0.1
STEP = 2**-15  # of 16 bits


@pytest.fixture
def check(tmp_path):
    """Return `check(samples, channel, ...) -> (AudioInfo or None, reason)` of a file with these."""

    def check(samples, channel="mean", subtype="PCM_16"):
        path = tmp_path / "a.wav"
        soundfile.write(path, samples, RATE_HZ, subtype)
        infos, problems = audio.verify([path], channel)
        return infos.get(path), problems.get(path, "")

    return check


def stereo(left, right):
    return np.stack([left, right], 1)


@pytest.mark.parametrize("constant", [0.0, 0.25, -1.0])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
def test_a_constant_is_no_sound(check, constant, subtype):
    assert f"got a constant {constant:g}; remove" in check(np.full(800, constant), 0, subtype)[1]


def test_one_step_of_the_sample_format_is_sound_and_less_is_not(check):
    """Of the mean of two channels, which halves one step."""
    flicker = (np.arange(800) % 7 == 0) * STEP
    assert check(flicker)[1] == ""
    assert "cancel in their mean" in check(stereo(NOISE[:800], flicker - NOISE[:800]))[1]
    assert "a constant 0" in check(stereo(0 * flicker, 0 * flicker))[1]


def test_what_is_left_of_channels_that_cancel_is_refused_with_a_channel_to_choose(check):
    opposite = check(stereo(NOISE, 1e-3 * OTHER - NOISE))[1]
    assert "channels that cancel in their mean (one is turned over)" in opposite
    assert opposite.endswith("--audio.channel 0")
    assert check(stereo(NOISE, 1e-3 * OTHER - NOISE), 0)[1] == ""


@pytest.mark.parametrize(
    ("right", "remarks"),
    [
        (NOISE, ()),  # in phase
        (OTHER, ()),  # unrelated
        (0.6 * OTHER - 0.2 * NOISE, ()),  # partly opposite
        (0.6 * OTHER - NOISE, ("channel 1 is turned over against the others",)),
        (-0.5 * NOISE, ("channel 1 is turned over against the others",)),
        (0 * NOISE + 0.01, ("channel 1 carries no sound",)),
        ((np.arange(RATE_HZ) % 3 - 1) * STEP, ("channel 1 carries no sound",)),
    ],
)
def test_odd_channels_are_told(check, right, remarks):
    info, problem = check(stereo(NOISE, right))
    assert problem == ""
    assert info.remarks == remarks
    assert check(stereo(NOISE, right), 0)[0].remarks == ()  # the other one is not used


@pytest.mark.parametrize("channels", [3, 4, 8])
def test_one_of_many_channels_that_is_turned_over_is_told(check, channels):
    own = 0.02 * np.random.default_rng(5).standard_normal((RATE_HZ, channels))
    samples = NOISE[:, None] * np.where(np.arange(channels) == 2, -1, 1)[None] + own
    assert check(samples)[0].remarks == ("channel 2 is turned over against the others",)
    assert check(np.abs(np.sign(samples)) * own)[0].remarks == ()


def test_a_dead_channel_that_is_chosen_is_refused(check):
    problem = check(stereo(0 * NOISE, NOISE), 0)[1]
    assert problem.endswith("check the microphone, or choose another channel")


@pytest.mark.parametrize(
    ("peak", "sound"), [(1.5, True), (9.9, True), (10.1, False), (32767, False)]
)
def test_float_samples_in_other_units_are_refused(check, peak, sound):
    problem = check(NOISE / np.abs(NOISE).max() * peak, subtype="FLOAT")[1]
    assert problem == "" if sound else "divide them by a constant" in problem


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8", "ALAW", "ULAW"])
def test_sound_that_is_clipped_or_missing_in_a_part_is_told(check, subtype):
    early = np.arange(RATE_HZ) < 0.2 * RATE_HZ
    clipped = np.where(early, np.clip(90 * NOISE, -1, 32767 / 32768), NOISE)
    for samples, remarks in (
        (clipped, ("full scale (clipped?) in a part",)),
        (np.maximum(clipped, -0.9), ("full scale (clipped?) in a part",)),
        (np.where(early, 0.25, NOISE), ("no sound in a part",)),
        (NOISE / np.abs(NOISE).max(), ()),  # reaches full scale once
        (0.9 * np.sign(NOISE), ()),
    ):
        assert check(samples, 0, subtype)[0].remarks == remarks


@pytest.mark.parametrize("gain_db", [0, -20, -40])
def test_the_level_is_the_usual_range_of_the_samples(check, gain_db):
    """Of a tone of full scale 0 dB, whatever one knock in it does."""
    tone = 10 ** (gain_db / 20) * np.sin(2 * np.pi * 100 * np.arange(RATE_HZ) / RATE_HZ)
    tone[777] = 1.0
    # Half a step of 16 bits at either end of 0.01.
    assert check(tone)[0].level_db == pytest.approx(gain_db, abs=0.03)
    gated = np.where(np.arange(RATE_HZ) % 4000 < 1700, tone, 0)  # less than half of the time
    assert check(gated)[0].level_db == pytest.approx(gain_db, abs=0.03)


def test_long_files_are_looked_at_in_blocks_that_change_nothing(check, monkeypatch):
    samples = stereo(NOISE, 0.6 * OTHER - NOISE)
    whole = check(samples)[0]
    for block in (2 * RATE_HZ, 9999, 1000):
        monkeypatch.setattr(audio, "_BLOCK", block)
        assert (check(samples)[0].digest, check(samples)[0].sound) == (whole.digest, whole.sound)
        assert check(samples)[0].remarks == whole.remarks
    for bad in (0, 9000, RATE_HZ - 1):
        samples = np.where(np.arange(RATE_HZ) == bad, np.nan, NOISE)
        assert "NaN or infinite" in check(samples, subtype="FLOAT")[1]
    late = np.where(np.arange(RATE_HZ) < 15_000, 0.25, NOISE)  # sound in the last block alone
    assert check(late)[1] == ""


def test_equal_sound_has_one_digest_in_any_sample_type_and_equal_channels(check):
    sound = {
        check(samples, channel, subtype)[0].sound
        for samples, channel in (
            (NOISE, 0),
            (stereo(NOISE, NOISE), "mean"),
            (stereo(NOISE, OTHER), 0),
        )
        for subtype in ("PCM_16", "PCM_24", "FLOAT")
        for samples in [np.round(samples * 32767) / 32768]
    }
    assert len(sound) == 1
    other = check(np.round(OTHER * 32767) / 32768)[0].sound
    finer = check(NOISE, 0, "PCM_24")[0].sound
    assert len(sound | {other, finer}) == 3


@pytest.mark.parametrize("rate_hz", [1, 10, 64, 500, 2000, 3200, 4000, 7999])
def test_any_rate_is_looked_at(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", NOISE, rate_hz)
    infos, problems = audio.verify([tmp_path / "a.wav"], 0)
    assert problems == {}
    assert infos[tmp_path / "a.wav"].bandwidth_hz == rate_hz // 2


# --- bandwidth


def frames(wave, rate_hz=RATE_HZ):
    size = 1024 * rate_hz // RATE_HZ
    return wave[: 4 * size].reshape(4, size).astype(np.float32)


def low_passed(edge_hz: float, rate_hz: int = RATE_HZ, seconds: int = 1) -> np.ndarray:
    """Return noise up to `edge_hz` and nothing above, by the spectrum of the whole."""
    spectrum = np.fft.rfft(RNG.standard_normal(rate_hz * seconds))
    spectrum[int(edge_hz * seconds) :] = 0
    return np.fft.irfft(spectrum) + 1e-5 * RNG.standard_normal(rate_hz * seconds)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("edge_hz", [3400, 4000, 5500, 7000])
def test_sharp_edges_are_found(rate_hz, edge_hz):
    found = bandwidth(frames(low_passed(edge_hz, rate_hz), rate_hz), rate_hz)
    assert abs(found - edge_hz) <= content.BAND_HZ


def sloped(db: float) -> np.ndarray:
    """Return noise whose power falls by some dB in each octave."""
    spectrum = np.fft.rfft(NOISE)
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-db / 6.02)
    return np.fft.irfft(spectrum)


def test_sound_of_a_lower_rate_has_its_bandwidth():
    up = resample(RNG.standard_normal(8000), 16_000)
    assert bandwidth(frames(up + 1e-4 * RNG.standard_normal(16_000)), RATE_HZ) == 4000


@pytest.mark.parametrize(
    "wave",
    [
        NOISE,
        sloped(24.0),
        np.sin(2 * np.pi * 5000 / RATE_HZ * np.arange(RATE_HZ)) + 1e-3 * NOISE,  # a lone tone
        low_passed(1000),  # what machines do below 3 kHz
    ],
)
def test_smooth_or_low_spectra_have_no_edge(wave):
    assert bandwidth(frames(wave), RATE_HZ) == 8000


def test_lower_rates_end_at_their_half_and_short_clips_have_no_edge():
    assert bandwidth(frames(NOISE, 8000), 8000) == 4000
    assert bandwidth(np.zeros((0, 0), np.float32), 16_000) == 8000
