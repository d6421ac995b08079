"""Near and far microphones from files to scores: what is read, computed, told and refused."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.signal
import soundfile
from machines import tone_machine
from trainings import small_system, two_machines

from asdjax.config import SystemConfig
from asdjax.data import audio, synthetic
from asdjax.data.batches import Audio
from asdjax.frontend.two_channel import near_alone
from asdjax.models.logmel import LogMel
from asdjax.models.spectral import Bands
from asdjax.models.system import Architecture
from asdjax.stages import folder, stages
from asdjax.train.batches import make_clip_set
from asdjax.types import Clip, InputError


def with_far(root: Path, far=None) -> Path:
    """Add a second channel to all recordings of a folder: noise, or what `far(near)` gives."""
    rng = np.random.default_rng(0)
    for path in sorted(root.rglob("*.wav")):
        near, rate = soundfile.read(path, dtype="int16")
        second = rng.integers(-500, 500, len(near)) if far is None else far(near)
        soundfile.write(path, np.stack([near, second], 1).astype(np.int16), rate, "PCM_16")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    tone_machine(root, "fan")
    return with_far(root)


def embeddings(out: Path) -> np.ndarray:
    made = folder.load(out)
    return np.array(folder.load_embeddings(out, made, ("fan", "section_00")).values)


def run(data: Path, out: Path, channel) -> np.ndarray:
    stages.run(SystemConfig((LogMel(),), audio=Audio(channel=channel)), data, out)
    return embeddings(out)


@pytest.mark.parametrize("how", ["wiener", "magnitude"])
def test_a_run_embeds_what_is_left_of_near(how, data, tmp_path):
    found = run(data, tmp_path / "run", how)
    made = folder.load(tmp_path / "run")
    paths = [clip.path for clip in made.groups["fan", "section_00"]]
    wave, lengths = audio.read_batch(paths, 16000, "pad", how)
    assert wave.dtype == np.int16
    assert wave.shape == (len(paths), 16000, 2)
    embedder = Architecture((LogMel().network(),)).embedder({})
    left = jax.jit(near_alone, static_argnames="how")(wave, lengths, how=how)
    expected = jax.jit(embedder.apply)({}, left, lengths)
    # 1e-3: the logarithm of quiet bands enlarges what float32 rounds otherwise in another batch
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_the_residual_is_near_without_half_of_far(data, tmp_path):
    near, far, found = (run(data, tmp_path / str(c), c) for c in (0, 1, "residual"))
    # 1e-5: float32, other programs
    np.testing.assert_allclose(found, near - 0.5 * far, rtol=0, atol=1e-5)


def test_training_reads_what_is_left_of_near(data):
    paths = sorted(data.rglob("train/*.wav"))
    clips = [Clip(path, "fan", "section_00", "train") for path in paths]
    infos, _ = audio.verify(paths, "wiener")
    label = np.zeros((len(clips), 1), np.int32)
    how = {"whole": False}
    known, samples = make_clip_set(clips, infos, label, Audio(0.5, channel="wiener"), **how)
    wave, lengths = known.read(np.arange(len(clips)))
    both, _ = audio.read_batch(paths, samples, "pad", "wiener")
    # 1e-6: float32, another batch
    np.testing.assert_allclose(wave, near_alone(both, lengths), rtol=0, atol=1e-6)
    assert wave.dtype == known.dtype == np.float32
    near, _ = make_clip_set(clips, infos, label, Audio(0.5, channel="residual"), **how)
    np.testing.assert_array_equal(near.read(np.arange(3))[0], both[:3, :, 0] / 32768)


@pytest.mark.parametrize("source", ["resident", "streaming"])
def test_a_network_trains_on_it_and_scores(source, tmp_path):
    root = with_far(two_machines(tmp_path / "data"))
    system = small_system(encoders=(Bands("spectrogram", 8, 20),), source=source)
    system = replace(system, audio=Audio(0.5, channel="wiener"))
    results = stages.run(system, root, tmp_path / "run")
    assert "official_score" in {metric.metric for metric in results}


def test_waves_of_less_than_a_frame_are_refused():
    with pytest.raises(InputError, match=r"Audio\.seconds: expected in \[0.064, 3600\]"):
        Audio(seconds=0.05, channel="wiener")


def test_files_of_one_channel_are_all_refused(tmp_path):
    tone_machine(tmp_path / "data", "fan")
    with pytest.raises(InputError, match="expected two channels, near and far, for 'wiener'") as e:
        run(tmp_path / "data", tmp_path / "run", "wiener")
    assert "none of 21 files can be used" in str(e.value)
    names = [path.name for path in (tmp_path / "data").rglob("*.wav")]
    assert all(name in str(e.value) for name in names)


def test_the_same_sound_in_both_channels_is_refused(tmp_path):
    tone_machine(tmp_path / "data", "fan")
    with_far(tmp_path / "data", lambda near: near // 2)  # up to the level, and rounding
    with pytest.raises(InputError, match="got the same sound in both channels"):
        run(tmp_path / "data", tmp_path / "run", "wiener")


@pytest.mark.parametrize(
    ("far", "told"),
    [
        (lambda near: np.random.default_rng(1).normal(0, 20000, len(near)).clip(-32768, 32767), 1),
        (np.zeros_like, 0),
    ],
    ids=["swapped", "dead"],
)
def test_odd_far_microphones_are_told(far, told, tmp_path, capsys):
    tone_machine(tmp_path / "data", "fan")
    with_far(tmp_path / "data", far)
    run(tmp_path / "data", tmp_path / "run", "wiener")
    lines = (
        "is louder than 0, the near microphone (swapped?); near has to be",
        "carries no sound: nothing is taken",
    )
    printed = " ".join(capsys.readouterr().err.split())
    assert lines[1 - told] in printed
    assert lines[told] not in printed


def test_a_far_microphone_that_is_louder_in_some_clips_is_not_told(tmp_path, capsys):
    """A machine that runs slowly may be below the noise, which both microphones hear."""
    tone_machine(tmp_path / "data", "fan")
    rng = np.random.default_rng(1)
    with_far(
        tmp_path / "data",
        lambda near: (near // 2 if near.std() > 900 else 2 * near) + rng.normal(0, 90, len(near)),
    )
    run(tmp_path / "data", tmp_path / "run", "wiener")
    assert "swapped" not in capsys.readouterr().err


def test_the_near_channel_of_synthetic_machines_is_that_of_one_microphone():
    for plan in synthetic.plan_machine("fan", 2, 1, 1):
        one, two = (synthetic.render(plan, seconds=1.0, microphones=n) for n in (1, 2))
        np.testing.assert_array_equal(two[:, 0], one)


def test_synthetic_far_noise_has_the_common_share_that_is_asked_for(monkeypatch):
    """By Welch's coherence, the share in each frequency, without the machine, which both hear."""
    silent = replace(synthetic.MACHINES["fan"], generate=silence)
    monkeypatch.setitem(synthetic.MACHINES, "fan", silent)
    plan = synthetic.Plan("fan", "train", "source", 0)
    share = {}
    for common in (0.0, 0.5, 0.9, 1.0):
        clip = synthetic.render(plan, seconds=30.0, microphones=2, common=common, leak=0)
        coherence = scipy.signal.coherence(*clip.T, nperseg=2048)[1]
        power = scipy.signal.welch(clip[:, 1], nperseg=2048)[1]
        share[common] = (coherence * power).sum() / power.sum()
    # 0.05: 470 frames, and a way of 64 samples that a frame does not hold as a whole
    np.testing.assert_allclose(list(share.values()), list(share), rtol=0, atol=0.05)


@pytest.mark.parametrize("common", [1.0, 0.0])
def test_wiener_gains_where_noise_is_common_and_costs_little_where_it_is_not(common, tmp_path):
    """Of a fan in noise, without a leak of the machine to the far microphone."""
    how = {"machines": ["fan"], "train_source": 30, "test_per_cell": 10, "seconds": 2.0}
    data = synthetic.make(tmp_path / "data", **how, microphones=2, common=common, leak=0.0)
    score = {}
    for channel in (0, "wiener"):
        results = stages.run(
            SystemConfig((LogMel(),), audio=Audio(channel=channel)), data, tmp_path / str(channel)
        )
        (score[channel],) = (
            m.value for m in results if m.metric == "auc_all" and m.machine == "fan"
        )
    gain = score["wiener"] - score[0]
    # 40 test clips: one of 20 x 20 pairs is 0.0025
    assert gain > 0.05 if common else gain > -0.05


def silence(own, rng, fault, samples, **point):
    return np.zeros(samples, np.float32)
