"""Which clips each step sees, and that both ways to the devices give the same batches."""

import os
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from asdjax.data.audio import AudioInfo, probe
from asdjax.data.batches import Audio
from asdjax.devices import data_mesh, split
from asdjax.train import batches as sources
from asdjax.train.batches import (
    NO_CLIP,
    Selection,
    balance,
    fits,
    make_clip_set,
    padded,
    resident,
    shuffled,
    streaming,
    training_batches,
    validation_batches,
)
from asdjax.train.config import Supplement, Train
from asdjax.types import Clip

# The order


def test_every_clip_comes_once_in_each_turn_over_the_set():
    rows = shuffled(10, 4, seed=0)
    turns = np.concatenate([rows(step) for step in range(15)]).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(turns), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(each) for each in turns}) == 6  # shuffled anew: 10! orders


def test_the_order_is_a_function_of_seed_and_step_alone():
    once, again = shuffled(10, 4, 5), shuffled(10, 4, 5)
    forward = [once(step) for step in range(20)]
    backward = [again(step) for step in reversed(range(20))][::-1]
    np.testing.assert_array_equal(forward, backward)
    other = shuffled(10, 4, 6)
    assert any((other(step) != rows).any() for step, rows in enumerate(forward))


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_the_size_of_a_batch_only_cuts_the_same_row_of_clips(batch):
    rows = shuffled(10, batch, 0)
    joined = np.concatenate([rows(step) for step in range(30 // batch)])
    whole = np.concatenate([shuffled(10, 10, 0)(step) for step in (0, 1, 2)])
    np.testing.assert_array_equal(joined, whole)
    assert rows(0).dtype == np.int32


def test_validation_takes_one_clip_after_the_other_and_fills_its_last_batch():
    select = validation_batches(5, 4)
    np.testing.assert_array_equal([select(0).clip, select(1).clip], [[0, 1, 2, 3], [4, 0, 1, 2]])
    assert select(0)[1:] == (None,) * 4


# Balance and noise

CLIPS = [Clip(Path(f"{i}.wav"), m, "section_00", "train") for i, m in enumerate("aaaaabbc")]
NOISE = [Clip(Path(f"n{i}.wav"), m, "section_00", "supplemental") for i, m in enumerate("bab")]
LABEL = np.array([[0], [0], [0], [0], [0], [1], [1], [2]], np.int32)


def test_without_balance_and_noise_only_clips_are_selected():
    select, line = training_batches(CLIPS, LABEL, [], Train(batch=4, seed=3))
    assert line == ""
    for step in range(4):
        np.testing.assert_array_equal(select(step).clip, shuffled(8, 4, 3)(step))
        assert select(step)[1:] == (None,) * 4


def test_a_turn_over_a_balanced_set_has_every_entry_once():
    how = Train(batch=5, balance=1.0, seed=3)
    select, line = training_batches(CLIPS, LABEL, [], how)
    assert line.startswith("balance: 7 synthetic training clips of 2 rare classes beside 8 real")
    seen = [select(step) for step in range(3)]  # 15 entries: 5 of each class
    clip = np.concatenate([selected.clip for selected in seen])
    np.testing.assert_array_equal(np.bincount(LABEL[clip, 0]), [5, 5, 5])
    entries = balance(LABEL, 1.0, 3)
    for name in ("partner", "share", "copied"):
        every = np.concatenate([getattr(selected, name) for selected in seen])
        np.testing.assert_array_equal(np.sort(every), np.sort(getattr(entries, name)))
    assert all(selected.noise is None for selected in seen)


def test_noise_is_of_the_same_machine_of_any_of_its_clips_and_as_often_as_set():
    how = Train(batch=8, supplement=Supplement(noise=0.25), seed=1)
    select, _ = training_batches(CLIPS, LABEL, NOISE, how)
    again, _ = training_batches(CLIPS, LABEL, NOISE, how)
    drawn = {machine: [] for machine in "abc"}
    for step in range(400):
        selected = select(step)
        for clip, noise in zip(selected.clip, selected.noise, strict=True):
            drawn[CLIPS[clip].machine].append(noise)
    np.testing.assert_array_equal(selected.noise, again(399).noise)  # whatever came before
    assert set(drawn["a"]) == {9, NO_CLIP}  # numbered behind the 8 clips
    assert set(drawn["b"]) == {8, 10, NO_CLIP}
    assert set(drawn["c"]) == {NO_CLIP}  # has none, is left alone
    # Of 2,000 and 800 draws: 4 standard errors.
    assert np.mean(np.array(drawn["a"]) == 9) == pytest.approx(0.25, abs=0.039)
    assert np.mean(np.array(drawn["b"]) == 8) == pytest.approx(0.125, abs=0.047)


def test_noise_does_not_change_the_order_of_clips():
    how = Train(batch=4, supplement=Supplement(noise=1))
    with_noise = training_batches(CLIPS, LABEL, NOISE, how)
    without = training_batches(CLIPS, LABEL, [], Train(batch=4))
    for step in range(5):
        np.testing.assert_array_equal(with_noise[0](step).clip, without[0](step).clip)


# Both ways to the devices

SAMPLES = [16000, 12000, 16000, 9000, 20000, 16000, 8000]  # an odd number on two devices
LABELS = np.arange(14, dtype=np.int32).reshape(7, 2)
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


def listed(paths, audio=PADDED, whole=False, noise=()):
    """Return the set of some files, and of noise behind them, and the length of a clip."""
    clips, more = (
        [Clip(path, "fan", "section_00", split) for path in some]
        for some, split in ((paths, "train"), (noise, "supplemental"))
    )
    infos = {path: probe(path) for path in (*paths, *noise)}
    return make_clip_set(clips, infos, LABELS, audio, whole=whole, noise=more)


def batches(made, first, count):
    """Return what the step sees of `count` passes."""
    sent = made.batches(first)
    taken = [jax.jit(made.take)(made.store, each) for each in islice(sent, count)]
    sent.close()
    return taken


def both(clips, select):
    mesh = data_mesh()
    return [resident(clips, select, mesh, lambda n: None), streaming(clips, select, mesh)]


def in_order(count, batch, seed):
    numbers = shuffled(count, batch, seed)
    return lambda step: Selection(numbers(step))


@pytest.mark.parametrize("first", [0, 3])
def test_resident_and_streaming_clips_are_identical(files, first):
    clips, _ = listed(files)
    rows = in_order(7, 4, seed=1)
    kept, streamed = (batches(made, first, 4) for made in both(clips, rows))
    for step, (one, other) in enumerate(zip(kept, streamed, strict=True), first):
        for a, b in zip(one[:3], other[:3], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.label, LABELS[rows(step).clip])
        assert one[3:] == other[3:] == (None, None)


def test_a_row_is_the_file_followed_by_zeros(files):
    clips, samples = listed(files)
    assert samples == 32000  # the longest has 1.25 s
    for made in both(clips, validation_batches(7, 2)):
        for row, batch in enumerate(batches(made, 0, 4)[:3]):
            assert batch.wave.dtype == np.int16
            for i, clip in enumerate((2 * row, 2 * row + 1)):
                np.testing.assert_array_equal(batch.wave[i, : SAMPLES[clip]], waves()[clip])
                assert not batch.wave[i, SAMPLES[clip] :].any()
                assert batch.lengths[i] == SAMPLES[clip]


def test_what_is_sent_lies_spread_over_the_devices(files):
    clips, _ = listed(files)
    kept, streamed = both(clips, in_order(7, 4, 0))
    (rows,) = islice(kept.batches(0), 1)
    (sent,) = islice(streamed.batches(0), 1)
    mesh = data_mesh()
    assert all(x.sharding.is_equivalent_to(split(mesh), x.ndim) for x in (rows.clip, *sent.clip))
    assert all(x.sharding.is_fully_replicated for x in kept.store)
    assert streamed.store == ()


def test_reading_tells_of_every_clip_once(files):
    counts = []
    resident(listed(files)[0], in_order(7, 2, 0), data_mesh(), counts.append)
    assert sum(counts) == 7


def test_one_file_of_floats_makes_all_float_with_full_scale_one(files, mixed):
    (ints, _), (floats, _) = listed(files), listed(mixed)
    assert (ints.dtype, floats.dtype) == (np.int16, np.float32)
    rows = validation_batches(7, 2)  # the third batch has no file of floats in it
    for whole, parts in zip(both(ints, rows), both(floats, rows), strict=True):
        for a, b in zip(batches(whole, 0, 3), batches(parts, 0, 3), strict=True):
            assert b.wave.dtype == np.float32
            np.testing.assert_array_equal(np.asarray(a.wave) / np.float32(32768), b.wave)


def test_the_size_of_a_set_is_that_of_its_rows(files, mixed):
    assert listed(files)[0].nbytes == 7 * 32000 * 2
    assert listed(mixed)[0].nbytes == 7 * 32000 * 4


# Mixtures and noise

SELECTED = Selection(
    clip=np.array([0, 6, 3, 4], np.int32),
    partner=np.array([2, NO_CLIP, 1, 4], np.int32),
    share=np.array([0.25, 1, 255 / 256, 0.5], np.float32),
    copied=np.array([False, True, False, False]),
    noise=np.array([NO_CLIP, 7, 9, 8], np.int32),
)


def naive(row):
    """Return a clip of the list with noise behind it, as a row of float64 with full scale 1."""
    every = [*waves(), *(waves()[i] for i in (2, 5, 1))]
    found = np.zeros(32000) if row == NO_CLIP else every[row] / 32768.0
    return np.pad(found, (0, 32000 - len(found)))


@pytest.mark.parametrize("kind", ["files", "mixed"])
def test_partners_are_mixed_and_noise_is_beside_alike_on_both_paths(request, kind):
    paths = request.getfixturevalue(kind)
    clips, _ = listed(paths, noise=[paths[i] for i in (2, 5, 1)])
    assert len(clips.label) == len(clips.clips) == 10  # no row of zeros fills the second device
    kept, streamed = (batches(made, 0, 1)[0] for made in both(clips, lambda step: SELECTED))
    for a, b in zip(kept, streamed, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert kept.wave.dtype == np.float32
    for i in range(4):
        share = np.float64(SELECTED.share[i])
        first, second = naive(SELECTED.clip[i]), naive(SELECTED.partner[i])
        # Exact: 16-bit samples times shares in steps of 1/256 need 24 bits.
        np.testing.assert_array_equal(kept.wave[i], share * first + (1 - share) * second)
        scale = 32768 if kept.noise.dtype == np.int16 else 1
        np.testing.assert_array_equal(kept.noise[i] / np.float32(scale), naive(SELECTED.noise[i]))
    np.testing.assert_array_equal(kept.lengths, [16000, 8000, 12000, 20000])  # the longer one's
    np.testing.assert_array_equal(kept.label, LABELS[SELECTED.clip])
    np.testing.assert_array_equal(kept.copied, SELECTED.copied)


def test_noise_of_floats_makes_all_float(files, mixed):
    assert listed(files, noise=[mixed[3]])[0].dtype == np.float32
    assert listed(files, noise=[files[0]])[0].dtype == np.int16


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
    assert padded([info(n) for n in lengths], audio, samples) == expected


def test_padding_is_counted_at_16_khz():
    assert not padded([info(44100, rate_hz=44100)], PADDED, 16000)
    assert padded([info(22050, rate_hz=44100)], PADDED, 16000)


# Memory


def test_a_third_of_the_free_memory_of_a_host_is_shared_by_its_devices(monkeypatch):
    monkeypatch.setattr(sources, "free_memory", lambda: 6000)
    assert fits(1000)  # twice, on two devices
    assert not fits(1001)


def test_an_accelerator_tells_of_its_own_memory(monkeypatch):
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 4000, "bytes_in_use": 1000}

    monkeypatch.setattr(sources.jax, "local_devices", lambda: [Device(), Device()])
    for host, largest in ((6000, 1000), (1500, 500)):  # a set is read there first
        monkeypatch.setattr(sources, "free_memory", lambda host=host: host)
        assert fits(largest)
        assert not fits(largest + 1)


def test_free_memory_is_a_part_of_all():
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < sources.free_memory() <= whole
