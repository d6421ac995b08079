"""Synthetic and supplemental clips in a whole training, and that nothing else sees them."""

import io
import shutil
from contextlib import redirect_stderr
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from trainings import assert_trained_alike, lines, small_system, two_machines

from asdjax.frontend.augment import Augment
from asdjax.models.spectral import Bands
from asdjax.models.system import Input
from asdjax.stages import folder, stages
from asdjax.stages.options import Options
from asdjax.stages.recordings import prepare
from asdjax.train.batches import NO_CLIP, Batch, training_batches
from asdjax.train.config import HeadConfig, Supplement, Train
from asdjax.train.plan import make_plan
from asdjax.train.step import _augmented, _with_noise
from asdjax.types import InputError

BOTH = Supplement(clean=True, noise=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two machines, the fan with 2 clean clips, the pump with 3 of noise; one target clip less."""
    root = two_machines(tmp_path_factory.mktemp("data"))
    rng = np.random.default_rng(5)
    for machine, kind, count in (("fan", "machine", 2), ("pump", "noise", 3)):
        folder = root / machine / "supplemental"
        folder.mkdir()
        for i in range(count):
            wave = rng.normal(0, 0.05, 8000)
            soundfile.write(folder / f"section_00_{kind}_{i:04d}_.wav", wave, 16000, "PCM_16")
    (root / "fan" / "train" / "section_00_target_train_normal_0001_spd_1.wav").rename(
        root / "fan" / "train" / "section_00_target_train_normal_0001_spd_9.wav"
    )
    return root


@pytest.fixture(scope="module")
def system():
    encoders = (Bands(embedding=8, bands=16),)
    how = {"balance": 1.0, "supplement": BOTH, "save_every": 3, "log_every": 1}
    system = small_system(encoders=encoders, **how)
    how = replace(
        system.train,
        heads=(HeadConfig(system.train.heads[0].loss, "attributes"),),
        augment=Augment(crop="random", mixup=0.5, mixup_on="wave"),
    )
    return replace(system, train=how)


@pytest.fixture(scope="module")
def ran(system, data, tmp_path_factory):
    """Return the folder of a run that nothing disturbed, and what it told."""
    out, told = tmp_path_factory.mktemp("run") / "run", io.StringIO()
    with redirect_stderr(told):
        stages.run(system, data, out, keep_checkpoints=True)
    return out, " ".join(told.getvalue().split())


@pytest.fixture(scope="module")
def finished(ran):
    return ran[0]


@pytest.fixture(scope="module")
def told(ran):
    return ran[1]


def test_both_data_paths_train_alike(finished, system, data, tmp_path):
    streaming = replace(system, train=replace(system.train, source="streaming"))
    stages.train(streaming, data, tmp_path)
    assert_trained_alike(tmp_path, finished)
    for ours, theirs in zip(lines(tmp_path), lines(finished), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)  # the reason is given there


def test_the_passes_of_that_training_have_all_kinds_of_clips(system, data):
    clips = prepare(system, data, Options()).training_clips
    clips, noise = clips[:-3], clips[-3:]
    assert {clip.supplement for clip in noise} == {"noise"}
    label = make_plan(system.train, clips).label
    select, _ = training_batches(clips, label, noise, system.train)
    selected = [select(step) for step in range(system.train.steps)]
    for name in ("partner", "noise"):
        assert any((getattr(each, name) != NO_CLIP).any() for each in selected), name
    assert any(each.copied.any() for each in selected)
    assert any((each.clip >= 24).any() for each in selected)  # clean


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(finished, system, data, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step_6")
    (out / "model.safetensors").unlink()
    stages.train(system, data, out)
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_supplemental_clips_are_kept_apart_from_all_that_is_scored(finished, system, data):
    made = folder.load(finished)
    assert {clip.split for clip in made.clips} == {"train", "test"}
    kinds = [clip.supplement for clip in made.supplement]
    assert kinds == ["clean"] * 2 + ["noise"] * 3
    without = replace(system, train=replace(system.train, supplement=Supplement()))
    plain = prepare(without, data, Options())
    assert made.clips == plain.clips
    for group, clips in plain.groups.items():
        assert folder.load_embeddings(finished, made, group).clips == clips
    scored = list((finished / "scores").rglob("*.csv"))
    assert scored
    assert not any("machine_0" in path.read_text() for path in scored)


def test_a_training_depends_on_the_sound_of_supplemental_clips(system, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")

    def key():
        return prepare(system, tmp_path / "data", Options()).model(tmp_path).key

    before, file = key(), next((tmp_path / "data" / "pump" / "supplemental").iterdir())
    file.touch()
    assert key() == before
    soundfile.write(file, soundfile.read(file)[0] / 2, 16000, "PCM_16")
    assert key() != before


def test_the_console_tells_what_is_used(told):
    assert "2 clean supplemental clips of fan" in told
    assert "3 noise supplemental clips of pump" in told
    # fan: spd_0 6, spd_1 5, spd_9 1, clean 2; pump: 6 and 6.
    assert "balance: 10 synthetic training clips of 3 rare classes beside 26 real ones" in told
    assert "5 of them warped copies" in told


def test_supplemental_clips_that_are_not_there(system, tmp_path):
    two_machines(tmp_path)
    with pytest.raises(InputError, match=r"supplemental, as train.supplement asks for, got none"):
        prepare(system, tmp_path, Options())
    (tmp_path / "fan" / "supplemental").mkdir()
    with pytest.raises(InputError, match="got none"):
        prepare(system, tmp_path, Options())


def test_broken_supplemental_files_are_told_or_left_out(system, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    broken = tmp_path / "data" / "pump" / "supplemental" / "section_00_noise_0001_.wav"
    broken.write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"(?s)1 of 45 files.*section_00_noise_0001_"):
        prepare(system, tmp_path / "data", Options())
    made = prepare(system, tmp_path / "data", Options(skip_bad=True))
    assert len(made.supplement) == 4
    assert made.skipped.keys() == {str(broken.resolve())}
    assert made.infos.keys() == {clip.path for clip in (*made.clips, *made.supplement)}


# The step

WAVE = np.random.default_rng(2).integers(1, 1000, (4, 64)).astype(np.int16)
LENGTHS = np.array([64, 64, 40, 16], np.int32)
CLIPS = np.where(np.arange(64)[None] < LENGTHS[:, None], WAVE, 0)
LABELS = np.zeros((4, 1), np.int32)


def augmented(batch, how):
    key = jax.random.key(0)

    def front_ends(wave, lengths):
        return (Input(wave[:, :, None]),)

    return np.asarray(_augmented(batch, front_ends, how, 64, key).inputs[0].x)[..., 0]


def test_copies_are_warped_and_nothing_else():
    copied = jnp.array([True, False, True, False])
    batch = Batch(*map(jnp.asarray, (CLIPS, LENGTHS, LABELS)), copied=copied)
    got, whole = augmented(batch, Augment()), CLIPS / np.float32(32768)
    np.testing.assert_array_equal((got != whole).any(1), copied)
    always = augmented(batch, Augment(warp=1.0))
    np.testing.assert_array_equal(always[copied], got[copied])
    assert (always != whole).any(1).all()


def test_noise_is_added_as_the_supplement_says():
    noise = np.zeros_like(CLIPS)
    noise[1] = np.random.default_rng(3).integers(-500, 500, 64)
    batch = Batch(*map(jnp.asarray, (CLIPS, LENGTHS, LABELS)), noise=jnp.asarray(noise))
    how = Train(supplement=Supplement(noise=1.0, snr_db=(6.0, 6.0)))
    got = _with_noise(batch, how, jax.random.key(0))
    assert got.noise is None
    added = np.asarray(got.wave) - CLIPS / np.float64(32768)
    assert not added[[0, 2, 3]].any()
    ratio = (CLIPS[1] / 32768).var() / added[1].var()  # offsets have no power
    assert 10 * np.log10(ratio) == pytest.approx(6, abs=1e-3)  # float32
