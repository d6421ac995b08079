"""Sound in pieces is the sound as a whole."""

import io

import numpy as np
import pytest
import soundfile
from scipy.signal import chirp

from asdjax.data import audio, stream
from asdjax.types import InputError

RATE = 16000


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("samples", "hop"), [(10, 10), (10, 4), (7, 1)])
@pytest.mark.parametrize("length", [0, 3, 9, 10, 11, 14, 30, 33])
def test_windows_are_those_of_the_whole_sound(length, samples, hop, last):
    sound = np.arange(length, dtype=np.int16)
    want = [(i, sound[i : i + samples]) for i in range(0, length - samples + 1, hop)]
    done = want[-1][0] + samples if want else 0
    if last and length > done:  # what is left is in one more, which ends with the sound
        want.append((max(length - samples, 0), sound[-samples:]))
    for sizes in (1, 3, 8, 50):
        pieces = [sound[i : i + sizes] for i in range(0, length, sizes)]
        got = list(stream.cut(iter(pieces), samples, hop, last))
        assert [one.start for one in got] == [start for start, _ in want]
        for one, (_, wave) in zip(got, want, strict=True):
            np.testing.assert_array_equal(one.wave, wave)


def test_hops_beyond_a_window_are_refused():
    for hop in (0, 11):
        with pytest.raises(InputError, match="expected a hop of up to a window"):
            list(stream.cut([np.zeros(30)], 10, hop))


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
@pytest.mark.parametrize("channel", ["mean", 1, "wiener"])
def test_a_file_in_windows_is_the_file(tmp_path, rate, channel):
    t = np.arange(25 * rate) / rate
    near = 0.3 * chirp(t, 50, 25, 3000)
    path = tmp_path / "long.wav"
    soundfile.write(path, np.stack([near, 0.5 * np.roll(near, 9)], 1), rate, "PCM_16")
    whole = audio.to_float(audio.read(path, channel))
    got = list(stream.of_file(path, channel, 10 * RATE, 10 * RATE))
    assert [one.start for one in got] == [0, 10 * RATE, len(whole) - 10 * RATE]
    for one in got:
        assert one.wave.shape == (10 * RATE, *whole.shape[1:])
        want = whole[one.start : one.start + 10 * RATE]
        # 1e-6: the resampler sums float32 in pieces
        np.testing.assert_allclose(audio.to_float(one.wave), want, rtol=0, atol=1e-6)
    if rate == RATE and channel != "mean":
        assert got[0].wave.dtype == np.int16


@pytest.mark.parametrize("form", ["s16", "s32", "f32"])
@pytest.mark.parametrize("cut_off", [0, 3])
def test_pcm_is_what_a_file_of_it_holds(form, cut_off):
    rng = np.random.default_rng(0)
    sound = (0.1 * rng.standard_normal((3 * RATE, 2))).astype(np.float32)
    scale = {"s16": 2**15, "s32": 2**31, "f32": 1}[form]
    dtype = {"s16": "<i2", "s32": "<i4", "f32": "<f4"}[form]
    data = (sound.astype(np.float64) * scale).astype(dtype).tobytes()[: -cut_off or None]
    got = list(stream.of_pcm(io.BytesIO(data), RATE, 2, form, 1, RATE, RATE // 2))
    assert [one.start for one in got] == [0, RATE // 2, RATE, 3 * RATE // 2, 2 * RATE][: len(got)]
    assert len(got) == (5 if cut_off == 0 else 4)
    for one in got:
        want = sound[one.start : one.start + RATE, 1]
        np.testing.assert_allclose(audio.to_float(one.wave), want, rtol=0, atol=2**-15)


def test_a_window_comes_as_soon_as_its_samples_are_there():
    class Pipe(io.RawIOBase):
        given = 0

        def read(self, size):
            if Pipe.given >= 2 * RATE * 2:
                raise AssertionError("a window waited for sound behind it")
            Pipe.given += 2000
            return bytes(2000)

    windows = stream.of_pcm(Pipe(), RATE, 1, "s16", 0, RATE, RATE)
    assert next(windows).start == 0
    assert Pipe.given <= 2 * (RATE + stream.PIECE_S * RATE)


def test_a_file_that_is_cut_off_is_refused_where_it_ends(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile([0.1, -0.1], 20 * RATE), RATE, "PCM_16")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError):
        list(stream.of_file(path, 0, 10 * RATE, 10 * RATE))
