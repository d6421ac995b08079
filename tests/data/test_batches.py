"""Batches: every clip once, equal shapes, int16 where the file is."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdjax.data.audio import AudioInfo, probe, read
from asdjax.data.batches import Audio, load_batches, plan_batches
from asdjax.types import Clip, InputError


@pytest.fixture
def clips(tmp_path) -> list[Clip]:
    """Three 1 s files of 16-bit PCM, one of 1.5 s, one float file, one at 8 kHz."""
    rng = np.random.default_rng(0)
    made = []
    for i, (seconds, rate, subtype) in enumerate(
        [(1, 16000, "PCM_16")] * 3
        + [(1.5, 16000, "PCM_16"), (1, 16000, "FLOAT"), (1, 8000, "PCM_16")]
    ):
        path = tmp_path / f"clip_{i}.wav"
        soundfile.write(path, rng.uniform(-0.5, 0.5, int(seconds * rate)), rate, subtype)
        made.append(Clip(path, "fan", "section_00", "train"))
    return made


def load(clips, audio, batch=2):
    plans = plan_batches([probe(clip.path) for clip in clips], audio, batch)
    return list(load_batches(clips, plans, audio))


def test_every_clip_comes_once_in_batches_of_one_shape_and_type(clips):
    batches = load(clips, Audio(channel=0))
    rows = np.concatenate([plan.rows for plan, _, _ in batches])
    assert sorted(rows) == list(range(6))
    shapes = sorted((wave.shape, wave.dtype.name) for _, wave, _ in batches)
    assert shapes == [
        ((2, 16000), "float32"),  # the float file and the resampled one
        ((2, 16000), "int16"),
        ((2, 16000), "int16"),
        ((2, 32000), "int16"),  # 1.5 s, padded to a full second
    ]
    for plan, wave, lengths in batches:
        for row, samples, length in zip(plan.rows, wave, lengths, strict=False):
            alone = read(clips[row].path, 0)
            np.testing.assert_array_equal(samples[: len(alone)], alone)
            assert length == len(alone)
            assert not samples[length:].any()


def test_rows_that_fill_a_batch_are_silent_and_of_full_length(clips):
    _, wave, lengths = load(clips[:1], Audio(channel=0), batch=3)[0]
    assert wave.shape == (3, 16000)
    assert not wave[1:].any()
    assert list(lengths) == [16000] * 3


@pytest.mark.parametrize("fit", ["pad", "tile"])
def test_a_fixed_length_pads_or_repeats_and_cuts(clips, fit):
    batches = load(clips[2:4], Audio(seconds=1.25, fit=fit, channel=0))
    _, wave, lengths = batches[0]
    short, long = read(clips[2].path, 0), read(clips[3].path, 0)
    assert list(lengths) == ([16000, 20000] if fit == "pad" else [20000, 20000])
    tail = np.zeros(4000, np.int16) if fit == "pad" else short[:4000]
    np.testing.assert_array_equal(wave[0], np.concatenate([short, tail]))
    np.testing.assert_array_equal(wave[1], long[:20000])


def test_a_file_that_vanished_is_named(clips):
    plans = plan_batches([probe(clips[0].path)], Audio(channel=0), 1)
    gone = [Clip(Path("gone.wav"), "fan", "section_00", "train")]
    with pytest.raises(InputError, match=r"gone\.wav"):
        list(load_batches(gone, plans, Audio(channel=0)))


def test_a_length_below_one_frame_is_refused():
    with pytest.raises(InputError, match=r"seconds: expected in \[0\.025, 3600\]"):
        Audio(seconds=0.01)


@pytest.mark.parametrize("devices", [1, 3])
def test_batches_of_long_clips_need_no_more_memory_than_those_of_10_s(devices):
    lengths = [5] * 40 + [10] * 33 + [25] * 9 + [90, 180, 3600]
    infos = [AudioInfo(16_000 * n, 16_000, 1, "PCM_16") for n in lengths]
    plans = plan_batches(infos, Audio(channel=0), 32, devices)
    sizes = {}
    for plan in plans:
        assert len(plan.rows) <= plan.size
        sizes.setdefault(plan.samples // 16_000, plan.size)
    whole = {5: 32, 10: 32, 25: 5, 90: 1, 180: 1, 3600: 1}  # 32 / 2.5^2
    assert sizes == {n: -(-size // devices) * devices for n, size in whole.items()}
    assert sorted(np.concatenate([plan.rows for plan in plans])) == list(range(len(lengths)))
