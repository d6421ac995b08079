"""Both data paths give the same batches, as asked for."""

import os
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from asdjax.data.audio import AudioInfo, probe
from asdjax.data.loader import Audio
from asdjax.devices import data_mesh, split
from asdjax.train import source
from asdjax.train.batch import SILENCE, Asked
from asdjax.train.passes import one_after_another, order
from asdjax.types import Clip

SAMPLES = [16000, 12000, 16000, 9000, 20000, 16000, 8000]  # an odd number on two devices
LABEL = np.arange(14, dtype=np.int32).reshape(7, 2)
PADDED = Audio(channel=0)


def waves():
    rng = np.random.default_rng(0)
    return [rng.integers(-32768, 32768, n, np.int16) for n in SAMPLES]


def write(folder: Path, waves) -> list[Path]:
    paths = [folder / f"{i}.wav" for i in range(len(waves))]
    for path, wave in zip(paths, waves, strict=True):
        soundfile.write(path, wave, 16000, "PCM_16" if wave.dtype == np.int16 else "FLOAT")
    return paths


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("int16"), waves())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The same sound; one file has it as floating point numbers."""
    fourth = waves()[3] / np.float32(32768)
    return write(tmp_path_factory.mktemp("mixed"), [*waves()[:3], fourth, *waves()[4:]])


def listed(paths, audio=PADDED, whole=False):
    clips = [Clip(path, "fan", "section_00", "train") for path in paths]
    return source.make_clips(clips, list(map(probe, paths)), LABEL, audio, whole)


def batches(made, first, count):
    """Return what the step sees of `count` passes."""
    sent = made.batches(first)
    taken = [jax.jit(made.take)(made.store, each) for each in islice(sent, count)]
    sent.close()
    return taken


def both(clips, ask):
    mesh = data_mesh()
    return [source.resident(clips, ask, mesh, lambda n: None), source.streaming(clips, ask, mesh)]


def shuffled(count, batch, seed):
    numbers = order(count, batch, seed)
    return lambda step: Asked(numbers(step))


# Both paths


@pytest.mark.parametrize("first", [0, 3])
def test_resident_and_streaming_clips_are_identical(files, first):
    clips, _ = listed(files)
    rows = shuffled(7, 4, seed=1)
    kept, streamed = (batches(made, first, 4) for made in both(clips, rows))
    for step, (one, other) in enumerate(zip(kept, streamed, strict=True), first):
        for a, b in zip(one[:3], other[:3], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.label, LABEL[rows(step).clip])
        assert one[3:] == other[3:] == (None, None)


def test_a_row_is_the_file_followed_by_zeros(files):
    clips, samples = listed(files)
    assert samples == 32000  # the longest has 1.25 s
    for made in both(clips, one_after_another(7, 2)):
        for row, batch in enumerate(batches(made, 0, 4)[:3]):
            assert batch.wave.dtype == np.int16
            for i, clip in enumerate((2 * row, 2 * row + 1)):
                np.testing.assert_array_equal(batch.wave[i, : SAMPLES[clip]], waves()[clip])
                assert not batch.wave[i, SAMPLES[clip] :].any()
                assert batch.lengths[i] == SAMPLES[clip]


def test_what_is_sent_lies_spread_over_the_devices(files):
    clips, _ = listed(files)
    kept, streamed = both(clips, shuffled(7, 4, 0))
    (rows,) = islice(kept.batches(0), 1)
    (sent,) = islice(streamed.batches(0), 1)
    mesh = data_mesh()
    assert all(x.sharding.is_equivalent_to(split(mesh), x.ndim) for x in (rows.clip, *sent.clip))
    assert all(x.sharding.is_fully_replicated for x in kept.store)
    assert streamed.store == ()


def test_reading_tells_of_every_clip_once(files):
    counts = []
    source.resident(listed(files)[0], shuffled(7, 2, 0), data_mesh(), counts.append)
    assert sum(counts) == 7


def test_one_file_of_floats_makes_all_float_with_full_scale_one(files, mixed):
    (ints, _), (floats, _) = listed(files), listed(mixed)
    assert (ints.dtype, floats.dtype) == (np.int16, np.float32)
    rows = one_after_another(7, 2)  # the third batch has no file of floats in it
    for whole, parts in zip(both(ints, rows), both(floats, rows), strict=True):
        for a, b in zip(batches(whole, 0, 3), batches(parts, 0, 3), strict=True):
            assert b.wave.dtype == np.float32
            np.testing.assert_array_equal(np.asarray(a.wave) / np.float32(32768), b.wave)


def test_the_size_of_a_set_is_that_of_its_rows(files, mixed):
    assert listed(files)[0].nbytes == 7 * 32000 * 2
    assert listed(mixed)[0].nbytes == 7 * 32000 * 4


# Mixtures and noise

ASKED = Asked(
    clip=np.array([0, 6, 3, 4], np.int32),
    partner=np.array([2, SILENCE, 1, 4], np.int32),
    share=np.array([0.25, 1, 255 / 256, 0.5], np.float32),
    copied=np.array([False, True, False, False]),
    noise=np.array([SILENCE, 7, 9, 8], np.int32),
)


def naive(row):
    """Return a clip of the list with noise behind it, as a row of float64 with full scale 1."""
    every = [*waves(), *(waves()[i] for i in (2, 5, 1))]
    found = np.zeros(32000) if row == SILENCE else every[row] / 32768.0
    return np.pad(found, (0, 32000 - len(found)))


@pytest.mark.parametrize("kind", ["files", "mixed"])
def test_partners_are_mixed_and_noise_is_beside_alike_on_both_paths(request, kind):
    paths = request.getfixturevalue(kind)
    clips, _ = listed(paths)
    more = [Clip(paths[i], "fan", "section_00", "supplemental") for i in (2, 5, 1)]
    clips = source.beside(clips, more, [probe(clip.path) for clip in more])
    assert len(clips.label) == len(clips.clips) == 10  # no row of zeros fills the second device
    kept, streamed = (batches(made, 0, 1)[0] for made in both(clips, lambda step: ASKED))
    for a, b in zip(kept, streamed, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert kept.wave.dtype == np.float32
    for i in range(4):
        share = np.float64(ASKED.share[i])
        first, second = naive(ASKED.clip[i]), naive(ASKED.partner[i])
        # Exact: 16-bit samples times shares in steps of 1/256 need 24 bits.
        np.testing.assert_array_equal(kept.wave[i], share * first + (1 - share) * second)
        scale = 32768 if kept.noise.dtype == np.int16 else 1
        np.testing.assert_array_equal(kept.noise[i] / np.float32(scale), naive(ASKED.noise[i]))
    np.testing.assert_array_equal(kept.lengths, [16000, 8000, 12000, 20000])  # the longer one's
    np.testing.assert_array_equal(kept.label, LABEL[ASKED.clip])
    np.testing.assert_array_equal(kept.copied, ASKED.copied)


def test_noise_of_floats_makes_all_float(files, mixed):
    clips, more = listed(files)[0], Clip(mixed[3], "fan", "section_00", "supplemental")
    assert source.beside(clips, [more], [probe(more.path)]).dtype == np.float32
    assert source.beside(clips, [more], [probe(files[0])]).dtype == np.int16


# Lengths


@pytest.mark.parametrize(
    ("audio", "lengths"),
    [
        (Audio(0.5, "pad", 0), [8000] * 7),
        (Audio(0.75, "pad", 0), [12000, 12000, 12000, 9000, 12000, 12000, 8000]),
        (Audio(0.75, "tile", 0), [12000] * 7),
    ],
)
def test_clips_are_cut_and_filled_as_audio_says(files, audio, lengths):
    clips, samples = listed(files, audio)
    wave, found = clips.read(np.arange(7))
    assert wave.shape == (7, samples) == (7, round(audio.seconds * 16000))
    np.testing.assert_array_equal(found, lengths)


@pytest.mark.parametrize("fit", ["pad", "tile", "crop"])
def test_random_crops_are_taken_from_whole_clips(files, fit):
    audio = Audio(0.5, fit, 0)
    clips, samples = listed(files, audio, whole=True)
    assert samples == 8000
    wave, lengths = clips.read(np.arange(7))
    assert wave.shape == (7, 32000)
    for row, expected in enumerate(waves()):
        np.testing.assert_array_equal(wave[row, : len(expected)], expected)
    np.testing.assert_array_equal(lengths, [32000] * 7 if fit == "tile" else SAMPLES)


def info(samples, rate_hz=16000):
    return AudioInfo(samples, rate_hz, 1, "PCM_16")


@pytest.mark.parametrize(
    ("lengths", "audio", "samples", "expected"),
    [
        ([16000, 16000], PADDED, 16000, False),
        ([16000, 15999], PADDED, 16000, True),
        ([20000, 9000], Audio(0.5), 8000, False),  # both are cut
        ([20000, 7000], Audio(0.5), 8000, True),
        ([20000, 7000], Audio(0.5, "tile"), 8000, False),
    ],
)
def test_rows_are_masked_only_where_a_clip_is_followed_by_zeros(lengths, audio, samples, expected):
    assert source.padded([info(n) for n in lengths], audio, samples) == expected


def test_padding_is_counted_at_16_khz():
    assert not source.padded([info(44100, rate_hz=44100)], PADDED, 16000)
    assert source.padded([info(22050, rate_hz=44100)], PADDED, 16000)


# Memory


def test_a_third_of_the_free_memory_of_a_host_is_shared_by_its_devices(monkeypatch):
    monkeypatch.setattr(source, "free_memory", lambda: 6000)
    assert source.fits(1000)  # twice, on two devices
    assert not source.fits(1001)


def test_an_accelerator_tells_of_its_own_memory(monkeypatch):
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 4000, "bytes_in_use": 1000}

    monkeypatch.setattr(source.jax, "local_devices", lambda: [Device(), Device()])
    for host, largest in ((6000, 1000), (1500, 500)):  # a set is read there first
        monkeypatch.setattr(source, "free_memory", lambda host=host: host)
        assert source.fits(largest)
        assert not source.fits(largest + 1)


def test_free_memory_is_a_part_of_all():
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < source.free_memory() <= whole
