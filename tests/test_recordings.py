"""What a run takes of a folder: copies once, one channel rule, no clip beyond the memory."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx
from machines import one_encoder, tiny_eat, tone_machine
from scored_runs import finish, make_clips, make_run

from asdjax.__main__ import dispatch
from asdjax.config import SystemConfig
from asdjax.data.audio import AudioInfo
from asdjax.data.batches import Audio
from asdjax.files import read_csv
from asdjax.models import pretrained
from asdjax.recipes import RECIPES
from asdjax.stages import folder, recordings, stages
from asdjax.stages.options import Options
from asdjax.types import SAMPLE_RATE_HZ, Clip, InputError

LOGMEL = RECIPES["frozen/logmel"].config
OWN = "{split}_{label}_{index:02d}{domain}.wav"


def prepare(data: Path, system: SystemConfig = LOGMEL, **options) -> folder.Run:
    return recordings.prepare(system, data, Options(**options))


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


# --- types of products


@pytest.mark.parametrize(
    ("flags", "asked", "found", "told"),
    [
        ({"amx_bf16"}, "auto", "bfloat16", "products in bfloat16"),
        ({"avx512f"}, "auto", "float32", "products in float32"),
        (set(), "bfloat16", "bfloat16", "slower than float32 on this processor"),
        ({"bf16"}, "bfloat16", "bfloat16", ""),
        (set(), "float32", "float32", ""),
    ],
)
def test_auto_is_decided_by_the_processor_and_recorded(
    tmp_path, capsys, monkeypatch, flags, asked, found, told
):
    monkeypatch.setattr(pretrained, "processor_flags", lambda: flags)
    tone_machine(tmp_path / "data", "fan", name=OWN)
    weights = str(tiny_eat(tmp_path / "tiny.safetensors"))
    (encoder,) = one_encoder(weights, pooling="mean", embedding=None, dtype=asked)
    made = prepare(tmp_path / "data", SystemConfig((encoder,)))
    assert made.encoding["encoders"][0]["dtype"] == found
    said_of_it = said(capsys)
    assert told in said_of_it
    assert ("bfloat16" in said_of_it or "float32" in said_of_it) == bool(told)
    network = encoder.network()
    module = network.build(train=False, adapted=False, rngs=nnx.Rngs(0))
    tokens = module.backbone(jnp.zeros((1, 32, 128)), None, None)
    rounded = tokens.astype(jnp.bfloat16).astype(jnp.float32)
    assert np.array_equal(rounded, tokens) == (found == "bfloat16")


# --- copies


def test_copies_of_training_clips_are_left_out_and_told(tmp_path, capsys):
    tone_machine(tmp_path, "fan", name=OWN)
    plain = prepare(tmp_path)
    train = sorted((tmp_path / "fan" / "train").iterdir())
    for path in train:
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path, dtype="int16"))
    shutil.copy(train[0], train[0].with_stem(f"{train[0].stem} (1)"))
    capsys.readouterr()
    assert prepare(tmp_path).clips == plain.clips
    assert "fan: 10 copies of others that are trained on, counted once" in said(capsys)
    dispatch(["data", "verify", str(tmp_path)])
    assert "fan: 10 copies of others that are trained on, counted once" in said(capsys)


def test_equal_recordings_that_are_normal_and_anomaly_are_refused(tmp_path):
    tone_machine(tmp_path, "fan", name=OWN)
    test = tmp_path / "fan" / "test"
    shutil.copy(next(test.glob("*anomaly*")), test / "test_normal_99.wav")
    for check in (prepare, lambda data: dispatch(["data", "verify", str(data)])):
        with pytest.raises(InputError, match="equal in every sample, got 1 pair with two; remove"):
            check(tmp_path)


# --- channels


def stereo(data: Path, change) -> None:
    """Give every recording a second channel, `change` of the first."""
    for path in data.rglob("*.wav"):
        wave, rate_hz = soundfile.read(path)
        soundfile.write(path, np.stack([wave, change(wave)], 1), rate_hz, "FLOAT")


@pytest.mark.parametrize("name", [OWN, "section_00_{domain}_{split}_{label}_{index:04d}.wav"])
def test_verify_looks_at_the_channels_that_a_run_uses(tmp_path, name):
    """The mean of own recordings, channel 0 of the challenge's."""
    tone_machine(tmp_path, "fan", name=name)
    stereo(tmp_path, lambda wave: np.where(np.arange(len(wave)) == 5, np.nan, wave))
    for check in (prepare, lambda data: dispatch(["data", "verify", str(data)])):
        if name == OWN:
            with pytest.raises(InputError, match="none of 21 files can be used"):
                check(tmp_path)
        else:
            check(tmp_path)


def test_a_turned_over_channel_is_refused_with_the_channel_to_choose(tmp_path):
    tone_machine(tmp_path, "fan", name=OWN)
    stereo(tmp_path, lambda wave: -wave)
    with pytest.raises(InputError, match=r"cancel in their mean \(one is turned over\); choose"):
        prepare(tmp_path)
    assert prepare(tmp_path, replace(LOGMEL, audio=Audio(channel=0))).clips


# --- test clips in another format


def test_a_run_knows_its_odd_test_clips(tmp_path):
    tone_machine(tmp_path, "fan", name=OWN)
    odd = next((tmp_path / "fan" / "test").iterdir())
    soundfile.write(odd, *soundfile.read(odd), "PCM_24")
    made = prepare(tmp_path)
    assert made.unlike == {str(odd): "PCM_24"}
    folder.save(tmp_path / "run", made)
    assert folder.load(tmp_path / "run").unlike == made.unlike


def test_odd_test_clips_are_told_with_the_results_and_written_there(tmp_path, capsys):
    out = make_run(tmp_path, make_clips(), seed=0)
    made = folder.load(out)
    odd = [clip for clip in made.clips if clip.split == "test" and clip.machine == "fan"][:3]
    folder.save(out, replace(made, unlike={str(clip.path): "48000 Hz" for clip in odd}))
    finish(out)
    stages.report(out)
    assert "3 test clips of fan: 48000 Hz; no training clip is like that: s" in said(capsys)
    rows = read_csv(out / "results.csv")
    assert [row for row in rows if row[1] == "unlike training"] == [["fan", "unlike training", "3"]]


# --- length and memory


def run_of(system: SystemConfig, *seconds: float) -> folder.Run:
    clips = [Clip(Path(f"{i}.wav"), "fan", "section_00", "test") for i in range(len(seconds))]
    lengths = [round(n * SAMPLE_RATE_HZ) for n in seconds]
    infos = {c.path: AudioInfo(n, 16_000, 1, "PCM_16") for c, n in zip(clips, lengths, strict=True)}
    return folder.Run(system, Path("data"), tuple(clips), None, ("",), {}, {}, infos=infos)


@pytest.fixture
def memory(monkeypatch):
    """Return a function that sets the free bytes of a device."""
    return lambda size: monkeypatch.setattr(recordings, "device_memory", lambda: size)


def test_clips_beyond_the_memory_are_refused_with_the_limit(memory):
    memory(2 * LOGMEL.encoders[0].clip_bytes(100 * SAMPLE_RATE_HZ))
    recordings.refuse_long(run_of(LOGMEL, 2, 100, 159))
    with pytest.raises(InputError) as caught:
        recordings.refuse_long(run_of(LOGMEL, 2, 3600, 900))
    message = str(caught.value)
    assert message.startswith("2 recordings too long: with 0.1 GiB of memory this system can")
    assert message.endswith("--audio.seconds\n  1.wav: 3600 s\n  2.wav: 900 s")
    most = int(message.split(" can take ")[1].split()[0])
    recordings.refuse_long(run_of(LOGMEL, most))
    with pytest.raises(InputError):
        recordings.refuse_long(run_of(LOGMEL, most + 1))
    short = replace(LOGMEL, audio=Audio(seconds=10.0))
    recordings.refuse_long(run_of(short, 3600))  # which is cut


def test_clips_beyond_the_positions_of_a_backbone_are_refused(tmp_path, memory):
    """EAT's table of 8 patches of 16 frames: 1.28 s."""
    memory(10**12)
    weights = str(tiny_eat(tmp_path / "eat.safetensors"))
    system = replace(LOGMEL, encoders=one_encoder(weights, pooling="mean", embedding=None))
    recordings.refuse_long(run_of(system, 1))
    with pytest.raises(InputError, match=r"system can take 1 s of each.*\n  0\.wav: 4 s"):
        recordings.refuse_long(run_of(system, 4))
