import contextlib
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdjax.data import audio
from asdjax.data.audio import AudioInfo, kept_in_memory
from asdjax.types import InputError

PCM = np.random.default_rng(1).integers(-32768, 32767, (1600, 2), dtype=np.int16)


def tone(frequency_hz: float, rate_hz: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * frequency_hz * np.arange(int(rate_hz * seconds)) / rate_hz)


def header(info: AudioInfo) -> AudioInfo:
    return replace(info, digest="", sound="", bandwidth_hz=0, level_db=0.0, remarks=())


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_16_bit_files_at_16_khz_keep_their_integers(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, PCM, 16_000)
    for channel in (0, 1):
        wave = audio.read(path, channel)
        assert wave.dtype == np.int16
        np.testing.assert_array_equal(wave, PCM[:, channel])
    soundfile.write(path, PCM[:, 1], 16_000)
    assert audio.read(path, "mean").dtype == np.int16  # of one channel: nothing to average
    np.testing.assert_array_equal(audio.read(path, "mean"), PCM[:, 1])


def test_the_mean_of_channels_is_float_of_full_scale_one(tmp_path):
    soundfile.write(tmp_path / "a.wav", PCM, 16_000)
    wave = audio.read(tmp_path / "a.wav", "mean")
    assert wave.dtype == np.float32
    # float32 holds sums of two 16-bit integers exactly, and halving and 1 / 32768 too
    np.testing.assert_array_equal(wave, PCM.astype(np.float64).mean(axis=1) / 32768)


@pytest.mark.parametrize(("subtype", "step"), [("PCM_24", 2**-23), ("PCM_U8", 2**-7), ("FLOAT", 0)])
def test_other_sample_formats_are_read_as_float(tmp_path, subtype, step):
    wave = tone(440, 16_000).astype(np.float32) * 0.9
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype=subtype)
    got = audio.read(tmp_path / "a.wav", 0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wave, rtol=0, atol=step)  # one step of the file's numbers


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 48_000])
def test_resampling_keeps_a_tone_its_level_time_and_length(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", 0.5 * tone(1000, rate_hz), rate_hz)
    wave = audio.read(tmp_path / "a.wav", 0)
    assert wave.dtype == np.float32
    assert len(wave) == 8000
    # 2 steps of 16 bits for rounding and filter ripple; away from the ends, where the tone starts
    middle = slice(500, -500)
    np.testing.assert_allclose(wave[middle], 0.5 * tone(1000, 16_000)[middle], atol=2 / 32768)


def test_resampling_does_not_fold_what_lies_above_8_khz(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.5 * tone(12_000, 44_100), 44_100)
    wave = audio.read(tmp_path / "a.wav", 0)[500:-500]
    assert np.abs(wave).max() < 2 / 32768  # same budget as above: nothing of it is left


def test_resampling_does_not_clip_what_goes_beyond_full_scale(tmp_path):
    """A filtered square overshoots: integers would cut that off."""
    square = np.where(np.arange(48_000) // 240 % 2, 32_767, -32_768).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", square, 48_000)
    assert np.abs(audio.read(tmp_path / "a.wav", 0)).max() > 1.05


def test_a_missing_channel_names_the_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", PCM, 16_000)
    with pytest.raises(
        InputError, match=r"a\.wav: expected a channel 2 .* got a file of 2 channels"
    ):
        audio.read(tmp_path / "a.wav", 2)


@pytest.mark.parametrize(
    ("samples", "how", "expected"),
    [
        (5, "pad", [1, 2, 3, 0, 0]),
        (7, "tile", [1, 2, 3, 1, 2, 3, 1]),
        (3, "crop", [1, 2, 3]),
        (2, "crop", [1, 2]),
        (2, "pad", [1, 2]),
        (2, "tile", [1, 2]),
    ],
)
def test_fit_length(samples, how, expected):
    for dtype in (np.int16, np.float32):
        wave = audio.fit_length(np.array([1, 2, 3], dtype), samples, how)
        assert wave.dtype == dtype
        assert wave.tolist() == expected


def test_fit_length_cannot_crop_to_more_nor_repeat_nothing():
    with pytest.raises(ValueError, match="cannot crop 3 samples to 4"):
        audio.fit_length(np.zeros(3), 4, "crop")
    with pytest.raises(ValueError, match="cannot tile 0 samples"):
        audio.fit_length(np.zeros(0), 4, "tile")


def test_a_batch_is_int16_only_if_all_files_are(tmp_path):
    paths = [tmp_path / f"{number}.wav" for number in range(9)]
    for number, path in enumerate(paths):
        soundfile.write(path, PCM[: 400 + 200 * number, 0], 16_000)
    wave, lengths = audio.read_batch(paths, 1000, "pad", 0)
    assert wave.dtype == np.int16
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [400, 600, 800] + [1000] * 6
    for row, length in zip(wave, lengths, strict=True):
        np.testing.assert_array_equal(row, np.where(np.arange(1000) < length, PCM[:1000, 0], 0))

    soundfile.write(paths[4], PCM[:, 0] / 32768, 16_000, subtype="FLOAT")
    floats, _ = audio.read_batch(paths, 1000, "pad", 0)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, wave / np.float32(32768))

    _, lengths = audio.read_batch(paths, 1000, "tile", 0)
    assert lengths.tolist() == [1000] * 9


def test_a_batch_tells_all_files_it_cannot_read(tmp_path):
    soundfile.write(tmp_path / "short.wav", PCM[:10], 16_000)
    paths = [tmp_path / "absent.wav", tmp_path / "short.wav"]
    with pytest.raises(InputError) as caught:
        audio.read_batch(paths, 100, "crop", 0)
    assert f"{paths[0]}: expected a wav or FLAC" in str(caught.value)
    assert f"{paths[1]}: cannot crop 10 samples" in str(caught.value)


def data_size(path: Path, size: int) -> None:
    """Overwrite the size in the header of a wav's data chunk."""
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(content)


def break_file(path: Path, fault: str) -> None:
    wave = PCM[:, 0] / np.float32(32768)
    if fault == "nan":
        soundfile.write(path, np.where(np.arange(1600) % 400 == 0, np.nan, wave), 16_000, "FLOAT")
    elif fault == "infinite":
        soundfile.write(path, np.where(np.arange(1600) == 7, -np.inf, wave), 16_000, "FLOAT")
    elif fault in ("zeros", "short", "short at 44.1 kHz"):
        length = {"zeros": 1600, "short": 399, "short at 44.1 kHz": 1102}[fault]
        rate_hz = 44_100 if "44.1" in fault else 16_000
        soundfile.write(path, 0 * wave if fault == "zeros" else wave[:length], rate_hz)
    elif fault == "text":
        path.write_text("not a recording\n" * 100)
    else:
        soundfile.write(path, wave, 16_000)
        content = path.read_bytes()
        if fault == "unfinished":
            data_size(path, 0)
        else:
            path.write_bytes(content[: {"empty": 0, "no samples": 30, "cut off": 2000}[fault]])


FAULTS = {
    "empty": "got 0 bytes",
    "text": "a file that begins with b'not '",
    "no samples": "a wav without a chunk",
    "cut off": "expected 3200 bytes of samples as the header says, got 1956",
    "unfinished": "got 0 before 3200 bytes",
    "nan": "got NaN or infinite",
    "infinite": "got NaN or infinite",
    "zeros": "got a constant 0",
    "short": "expected at least 400 samples at 16000 Hz (0.025 s), got 399",
    "short at 44.1 kHz": "got 399",  # 1102 / 44100 s
}


def test_verify_finds_every_broken_file_and_only_those(tmp_path):
    good = [tmp_path / "good.wav", tmp_path / "stereo.wav", tmp_path / "good.flac"]
    soundfile.write(good[0], PCM[:400, 0], 16_000)
    soundfile.write(good[1], PCM, 44_100)
    soundfile.write(good[2], PCM[:, 0], 16_000)
    broken = {tmp_path / f"{fault}.wav": message for fault, message in FAULTS.items()}
    for path in broken:
        break_file(path, path.stem)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(good[2].read_bytes()[:2000])
    broken[cut] = "cannot be decoded"
    broken[tmp_path / "absent.wav"] = "No such file"

    calls = []
    paths = [*broken, *good]
    infos, problems = audio.verify(paths, 0, advance=lambda: calls.append(1))
    assert {path: header(info) for path, info in infos.items()} == {
        good[0]: AudioInfo(400, 16_000, 1, "PCM_16"),
        good[1]: AudioInfo(1600, 44_100, 2, "PCM_16"),
        good[2]: AudioInfo(1600, 16_000, 1, "PCM_16"),
    }
    assert problems.keys() == broken.keys()
    for path, message in broken.items():
        assert message in problems[path]
        assert ";" in problems[path]  # and what to do
    assert len(calls) == len(paths)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])  # as ffmpeg and sox write into a pipe
def test_streamed_wavs_are_whole(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, PCM, 16_000)
    data_size(path, size)
    assert audio.verify([path], 0)[1] == {}
    np.testing.assert_array_equal(audio.read(path, 0), PCM[:, 0])


def test_chunks_of_odd_size_before_the_samples_are_skipped(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, PCM, 16_000)
    content = path.read_bytes()
    at = content.index(b"data")
    path.write_bytes(content[:at] + b"note" + struct.pack("<I", 3) + b"abc\0" + content[at:-100])
    assert "got 6300" in audio.verify([path], 0)[1][path]  # 1600 * 2 * 2 bytes - 100


def test_an_interruption_starts_no_further_file(tmp_path, monkeypatch):
    started, release = [], threading.Event()

    def check(path, *_):
        started.append(path)
        if len(started) == 2:  # keeps the only thread busy until the interruption was handled
            release.wait()
        return AudioInfo(1600, 16_000, 1, "PCM_16")

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(audio, "_check", check)
    monkeypatch.setattr(audio, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    paths = [tmp_path / f"{number}.wav" for number in range(9)]
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt) as caught:  # the traceback keeps verify's frame alive
        audio.verify(paths, 0, advance=interrupt)
    release.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert len(started) <= 2
    assert caught.traceback


def test_only_the_chosen_channel_must_exist_and_sound(tmp_path):
    one_side, mono = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(one_side, PCM * np.int16([1, 0]), 16_000)
    soundfile.write(mono, PCM[:, 0], 16_000)
    paths = [one_side, mono]
    assert audio.verify(paths, 0)[1] == audio.verify(paths, "mean")[1] == {}
    problems = audio.verify(paths, 1)[1]
    assert problems[one_side].endswith("or choose another channel")
    assert "expected a channel 1" in problems[mono]


def test_a_cut_off_wav_is_refused_by_read_too(tmp_path):
    break_file(tmp_path / "a.wav", "cut off")
    with pytest.raises(InputError, match=r"a\.wav: .*the file is cut off"):
        audio.read(tmp_path / "a.wav", 0)


def test_probing_reads_headers_and_tells_what_is_no_recording(tmp_path):
    sound, text = tmp_path / "a.flac", tmp_path / "b.wav"
    soundfile.write(sound, PCM, 22_050)
    break_file(text, "text")
    infos, problems = audio.probe_all([sound, text])
    assert infos == {sound: AudioInfo(1600, 22_050, 2, "PCM_16")}  # and no digest
    assert problems.keys() == {text}
    assert "a file that begins with" in problems[text]
    assert audio.probe(sound) == infos[sound]
    with pytest.raises(InputError, match="expected a wav or FLAC"):
        audio.probe(text)


def digest_of(path: Path) -> str:
    infos, problems = audio.verify([path], 0)
    assert problems == {}
    return infos[path].digest


def test_equal_samples_have_one_digest_whatever_the_file(tmp_path):
    files = ["a.wav", "b.flac", "sub/a.wav", "tagged.wav"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with soundfile.SoundFile(tmp_path / name, "w", 16_000, 2, "PCM_16") as file:
            if name.startswith("tagged"):
                file.title = "press 2"
            file.write(PCM)
    os.utime(tmp_path / "b.flac", (1e9, 1e9))
    assert (tmp_path / "tagged.wav").read_bytes() != (tmp_path / "a.wav").read_bytes()
    assert len({digest_of(tmp_path / name) for name in files}) == 1


def test_other_sound_rate_channels_or_sample_type_have_other_digests(tmp_path):
    changed = PCM.copy()
    changed[800, 1] += 1  # one sample by one step, and not in the channel that is taken
    contents = {
        "sound": (PCM, 16_000, "PCM_16"),
        "one sample": (changed, 16_000, "PCM_16"),
        "rate": (PCM, 16_001, "PCM_16"),
        "swapped channels": (PCM[:, ::-1], 16_000, "PCM_16"),
        "one channel": (PCM.reshape(-1), 16_000, "PCM_16"),  # the same bytes in the same order
        "longer": (np.pad(PCM, ((0, 1), (0, 0))), 16_000, "PCM_16"),
        "sample type": (PCM / 32768, 16_000, "FLOAT"),
    }
    for name, (samples, rate_hz, subtype) in contents.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, rate_hz, subtype)
    digests = [digest_of(tmp_path / f"{name}.wav") for name in contents]
    assert len(set(digests)) == len(contents)


def write_at_one_time(path: Path, samples: np.ndarray) -> None:
    """Write a wav and set its time of change to a fixed one, as version control and `cp -p` do."""
    soundfile.write(path, samples, 16_000)
    os.utime(path, (1.7e9, 1.7e9))


@pytest.mark.parametrize("kept", [True, False])
def test_other_content_under_the_same_name_size_and_time_has_another_digest(tmp_path, kept):
    """Also while decoded files are kept; and the digest is of what is read."""
    path, copy = tmp_path / "a.wav", tmp_path / "copy.wav"
    with kept_in_memory(10**6) if kept else contextlib.nullcontext():
        for samples in (PCM, PCM[::-1], PCM):
            write_at_one_time(path, samples)
            soundfile.write(copy, samples, 16_000)
            assert digest_of(path) == digest_of(path) == digest_of(copy)
            np.testing.assert_array_equal(audio.read(path, 0), samples[:, 0])


# --- decoded files kept in memory: what the file holds, within their bytes


@pytest.fixture
def kept_paths(tmp_path):
    rng = np.random.default_rng(0)
    made = [tmp_path / f"{i}.wav" for i in range(3)]
    for path in made:
        soundfile.write(path, rng.uniform(-0.5, 0.5, 1000), 16000, "PCM_16")
    return made


@pytest.fixture
def opened_files(monkeypatch):
    """Return the list of files that are really opened."""
    found, original = [], audio.opened

    def opening(path):
        found.append(path)
        return original(path)

    monkeypatch.setattr(audio, "opened", opening)
    return found


def test_a_file_is_decoded_once(kept_paths, opened_files):
    plain = [audio.read(path, 0) for path in kept_paths]
    opened_files.clear()
    with kept_in_memory(10**6):
        assert audio.verify(kept_paths, 0)[1] == {}
        for _ in range(2):
            waves, lengths = audio.read_batch(kept_paths, 1200, "pad", 0)
    assert sorted(opened_files) == kept_paths
    for wave, samples in zip(waves, plain, strict=True):
        np.testing.assert_array_equal(wave, np.pad(samples, (0, 200)))
    assert list(lengths) == [1000] * 3


def test_afterwards_nothing_is_kept(kept_paths, opened_files):
    with kept_in_memory(10**6):
        audio.read(kept_paths[0], 0)
    audio.read(kept_paths[0], 0)
    assert opened_files == [kept_paths[0]] * 2


def test_a_file_that_changed_is_decoded_again(kept_paths):
    with kept_in_memory(10**6):
        before = audio.read(kept_paths[0], 0)
        soundfile.write(kept_paths[0], np.full(500, 0.25), 16000, "PCM_16")
        after = audio.read(kept_paths[0], 0)
    assert len(before) == 1000
    np.testing.assert_array_equal(after, np.full(500, 8192))


def test_what_is_kept_cannot_be_changed(kept_paths):
    with kept_in_memory(10**6):
        samples = audio.read(kept_paths[0], 0)
        with pytest.raises(ValueError, match="read-only"):
            samples[0] = 0


def test_no_more_bytes_are_kept_than_given(kept_paths, opened_files):
    with kept_in_memory(4500):  # two files of 2000 bytes
        for path in kept_paths * 2:
            audio.read(path, 0)
    assert opened_files == [*kept_paths, kept_paths[2]]


def test_real_recordings_are_sound_and_stay_16_bit(real_machines):
    paths = sorted((real_machines / "valve" / "test").glob("*.wav"))
    infos, problems = audio.verify(paths, 0)
    assert problems == {}
    assert {info.bandwidth_hz for info in infos.values()} == {8000}
    assert {header(info) for info in infos.values()} == {
        AudioInfo(160_000, 16_000, 1, "PCM_16")
    }  # 10 s, as the README
    assert len({info.digest for info in infos.values()}) == len(paths)
    wave, lengths = audio.read_batch(paths[:4], 176_000, "pad", 0)
    assert (wave.shape, wave.dtype) == ((4, 176_000), np.int16)
    assert lengths.tolist() == [160_000] * 4
