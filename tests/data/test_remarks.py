from dataclasses import replace
from pathlib import Path

import pytest

from asdjax.data import remarks
from asdjax.data.audio import AudioInfo
from asdjax.data.batches import Audio
from asdjax.types import ANOMALY, NORMAL, Clip, InputError


def once(clips):
    """Return `remarks.once` of clips whose content is their sound."""
    infos = {c.path: AudioInfo(1600, 16_000, 1, "PCM_16", sound=c.content) for c in clips}
    return remarks.once(clips, infos)


def clip(name: str, split="train", machine="fan", **of) -> Clip:
    of.setdefault("label", NORMAL if split == "train" else None)
    return Clip(Path(machine) / split / name, machine, "section_00", split, **of)


def test_notes_tell_what_reading_changes_per_machine():
    formats = [(16_000, 1)] * 3 + [(44_100, 2)] * 2 + [(8_000, 1)]
    clips = [clip(f"{number}.wav") for number in range(7)]  # the last is broken
    infos = {
        one.path: AudioInfo(1600, rate_hz, channels, "PCM_16")
        for one, (rate_hz, channels) in zip(clips, formats, strict=False)
    }
    assert remarks.formats(clips, infos, "mean") == [
        "1 of 7 clips of fan: 8000 Hz, 1 channel; resampled to 16000 Hz",
        "2 of 7 clips of fan: 44100 Hz, 2 channels; resampled to 16000 Hz, mean of channels",
    ]
    assert remarks.formats(clips[3:5], infos, 0)[0].endswith(
        "resampled to 16000 Hz, channel 0 taken"
    )
    assert remarks.formats(clips[:3], infos, 0) == []


@pytest.mark.parametrize(
    ("audio", "lines"),
    [
        (Audio(None), []),
        (
            Audio(2.0, "tile"),
            [
                "fan: of 5 clips, 2 repeated and 1 cut to 2 s (--audio.seconds)",
                "valve: of 1 clip, 1 repeated to 2 s (--audio.seconds)",
            ],
        ),
        (
            Audio(2.0, "pad"),
            [
                "fan: of 5 clips, 2 padded with zeros and 1 cut to 2 s (--audio.seconds)",
                "valve: of 1 clip, 1 padded with zeros to 2 s (--audio.seconds)",
            ],
        ),
        (Audio(1.0, "crop"), ["fan: of 5 clips, 3 cut to 1 s (--audio.seconds)"]),
    ],
)
def test_the_user_is_told_which_clips_are_made_longer_or_shorter(audio, lines):
    """Lengths count at 16 kHz: 2 s of 44.1 kHz are 2 s."""
    infos = [(32000, 16000), (88200, 44100), (16000, 16000), (16000, 16000), (40000, 16000)]
    infos = {Path(f"{i}"): AudioInfo(*info, 1, "PCM_16") for i, info in enumerate(infos)}
    clips = [Clip(path, "fan", "section_00", "train") for path in infos]
    infos[Path("v")] = AudioInfo(16000, 16000, 1, "PCM_16")
    clips.append(Clip(Path("v"), "valve", "section_00", "test"))
    assert remarks.lengths(clips, infos, audio) == lines


def test_a_dead_channel_is_told_per_machine():
    clips = [clip("a.wav"), clip("b.wav"), clip("c.wav", machine="pump")]
    plain = AudioInfo(1600, 16_000, 1, "PCM_16")
    odd = replace(plain, channels=2, remarks=("channel 1 carries no sound",))
    infos = {clips[0].path: odd, clips[1].path: plain, clips[2].path: plain}
    assert remarks.formats(clips, infos, "mean")[1:] == [
        "1 of 2 clips of fan: channel 1 carries no sound; choose with --audio.channel: a.wav"
    ]


# --- test clips in a format that no training clip has


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ({}, None),
        ({"rate_hz": 32_000}, "32000 Hz"),
        ({"subtype": "PCM_24"}, "PCM_24"),
        ({"bandwidth_hz": 4000}, "sound up to 4000 Hz"),
        ({"bandwidth_hz": 7750}, None),  # the next band
        ({"rate_hz": 22_050, "subtype": "FLOAT"}, "22050 Hz, FLOAT"),
        ({"samples": 8000}, None),
        ({"samples": 7000}, "less than half as long"),
        ({"samples": 99_000}, "more than twice as long"),
        ({"level_db": -49.0}, None),
        ({"level_db": -51.0}, "more than 20 dB quieter"),
        ({"level_db": -9.0}, "more than 20 dB louder"),
        ({"remarks": ("no sound in a part",)}, "no sound in a part"),
    ],
)
def test_a_test_clip_is_unlike_when_no_training_clip_of_its_machine_is_like_it(change, how):
    plain = AudioInfo(16_000, 16_000, 1, "PCM_16", bandwidth_hz=8000, level_db=-30.0)
    clips = [clip("a.wav"), clip("t.wav", "test"), clip("b.wav", machine="pump")]
    infos = {clips[0].path: plain, clips[1].path: replace(plain, **change)}
    infos[clips[2].path] = infos[clips[1].path]  # of another machine: no help
    expected = {str(clips[1].path): how} if how else {}
    assert remarks.unlike_training(clips, infos) == expected
    like = replace(clips[1], path=Path("fan/train/like.wav"), split="train")
    infos[like.path] = infos[clips[1].path]
    assert remarks.unlike_training([*clips, like], infos) == {}


# --- copies


def test_copies_are_trained_on_once_and_told():
    clips = [
        clip("a (1).wav", content="A"),
        clip("a.flac", content="A"),
        clip("a.wav", content="A"),
        clip("b.wav", content="B"),
        clip("t.wav", "test", content="T"),
        clip("w.wav", "test", content="A"),
        clip("u.wav", "test", content="T"),
        clip("v.wav", "test", content="B"),
        clip("p.wav", machine="pump", content="B"),
    ]
    kept, lines = once(clips)
    assert [one.name for one in kept] == [
        "a.wav",
        "b.wav",
        *["t.wav", "w.wav", "u.wav", "v.wav", "p.wav"],
    ]
    assert lines == [
        "fan: 2 copies of others that are trained on, counted once: a.flac = a.wav, "
        "a (1).wav = a.wav",
        "fan: 2 test clips found in training, too: v.wav = b.wav, w.wav = a.wav",
        "fan: 1 copy of other test clips, all scored and counted: u.wav = t.wav",
        "pump: 1 copy of clips of another machine: p.wav = b.wav",
    ]


def test_what_is_known_of_a_copy_is_kept():
    first, other = clip("a.wav", content="A"), clip("a (1).wav", content="A", attributes="x")
    (kept,), _ = once([first, replace(other, domain="target")])
    assert kept == replace(first, attributes="x", domain="target")


@pytest.mark.parametrize("change", [{"attributes": "y"}, {"domain": "target"}])
def test_copies_that_are_described_in_two_ways_are_refused(change):
    first = clip("a.wav", content="A", attributes="x", domain="source")
    other = replace(first, path=first.path.with_name("b.wav"))
    assert len(once([first, other])[0]) == 1
    what, value = next(iter(change.items()))
    with pytest.raises(InputError, match=rf"fan/train/b\.wav {value}") as caught:
        once([first, replace(other, **change)])
    assert f"has the {what} {getattr(first, what)}" in str(caught.value)


def test_equal_clips_of_other_kinds_are_no_copies():
    clips = [
        clip("a.wav", content="A"),
        clip("a.wav", "supplemental", content="A", supplement="clean"),
        clip("b.wav", "supplemental", content="A", supplement="noise"),
        replace(clip("c.wav", content="A"), section="section_01"),
    ]
    kept, lines = once(clips)
    assert kept == clips
    assert lines == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_recording_may_not_be_normal_and_an_anomaly(split):
    first = clip("a.wav", split, content="A", label=NORMAL)
    other = clip("b.wav", "test", content="A")
    for label in (None, NORMAL):
        assert len(once([first, replace(other, label=label)])[0]) == 2
    with pytest.raises(InputError, match=rf"{split}/a\.wav is normal, fan/test/b\.wav an anomaly"):
        once([first, replace(other, label=ANOMALY)])
