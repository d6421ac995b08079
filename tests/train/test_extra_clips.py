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
from machines import tiny_backbone
from trainings import lines, quick_compiles, small_system, two_machines

from asdjax import pipeline, runs
from asdjax.embedding import prepare
from asdjax.frontend.augment import Augment
from asdjax.models.system import Input
from asdjax.train.batch import SILENCE, Batch
from asdjax.train.config import HeadConfig, Train
from asdjax.train.passes import training_passes
from asdjax.train.plan import make_plan
from asdjax.train.step import _hear_augmented, _with_noise
from asdjax.train.supplement import Supplement
from asdjax.training import training_of
from asdjax.types import InputError

BOTH = Supplement(clean=True, noise=0.5)


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compiles(tmp_path_factory.mktemp("compiled")):
        yield


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
def system(tmp_path_factory):
    weights = tiny_backbone(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    system = small_system(weights, balance=1.0, supplement=BOTH, save_every=3, log_every=1)
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
        pipeline.run(system, data, out)
    return out, " ".join(told.getvalue().split())


@pytest.fixture(scope="module")
def finished(ran):
    return ran[0]


@pytest.fixture(scope="module")
def told(ran):
    return ran[1]


def test_both_data_paths_train_alike(finished, system, data, tmp_path):
    streaming = replace(system, train=replace(system.train, source="streaming"))
    pipeline.train(streaming, data, tmp_path)
    assert lines(tmp_path) == lines(finished)
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_the_passes_of_that_training_have_all_kinds_of_clips(system, data):
    made, _ = prepare(system, data)
    clips = [clip for clip in made.clips if clip.split == "train"] + [*made.supplement[:2]]
    label = make_plan(system.train, clips).label
    ask, _ = training_passes(clips, label, made.supplement[2:], system.train)
    asked = [ask(step) for step in range(system.train.steps)]
    for name in ("partner", "noise"):
        assert any((getattr(each, name) != SILENCE).any() for each in asked), name
    assert any(each.copied.any() for each in asked)
    assert any((each.clip >= 24).any() for each in asked)  # clean


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(finished, system, data, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step_6")
    (out / "model.safetensors").unlink()
    pipeline.train(system, data, out)
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_supplemental_clips_are_kept_apart_from_all_that_is_scored(finished, system, data):
    made = runs.load(finished)
    assert {clip.split for clip in made.clips} == {"train", "test"}
    kinds = [clip.supplement for clip in made.supplement]
    assert kinds == ["clean"] * 2 + ["noise"] * 3
    plain = prepare(replace(system, train=replace(system.train, supplement=Supplement())), data)[0]
    assert made.clips == plain.clips
    for group, clips in plain.groups.items():
        assert runs.load_embeddings(finished, made, group).clips == clips
    scored = list((finished / "scores").rglob("*.csv"))
    assert scored
    assert not any("machine_0" in path.read_text() for path in scored)


def test_what_a_training_depends_on_counts_supplemental_files(system, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    before = training_of(prepare(system, tmp_path / "data")[0])
    next((tmp_path / "data" / "pump" / "supplemental").iterdir()).touch()
    assert training_of(prepare(system, tmp_path / "data")[0]) != before


def test_the_console_tells_what_is_used(told):
    assert "2 clean supplemental clips of fan" in told
    assert "3 noise supplemental clips of pump" in told
    # fan: spd_0 6, spd_1 5, spd_9 1, clean 2; pump: 6 and 6.
    assert "balance: 10 synthetic training clips of 3 rare classes beside 26 real ones" in told
    assert "5 of them warped copies" in told


def test_asked_for_but_not_there(system, tmp_path):
    two_machines(tmp_path)
    with pytest.raises(InputError, match=r"supplemental, as train.supplement asks for, got none"):
        prepare(system, tmp_path)
    (tmp_path / "fan" / "supplemental").mkdir()
    with pytest.raises(InputError, match="got none"):
        prepare(system, tmp_path)


def test_broken_supplemental_files_are_told_or_left_out(system, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    broken = tmp_path / "data" / "pump" / "supplemental" / "section_00_noise_0001_.wav"
    broken.write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"(?s)1 of 45 files.*section_00_noise_0001_"):
        prepare(system, tmp_path / "data")
    made, infos = prepare(system, tmp_path / "data", skip_bad=True)
    assert len(made.supplement) == 4
    assert made.skipped.keys() == {str(broken.resolve())}
    assert infos.keys() == {clip.path for clip in (*made.clips, *made.supplement)}


# The step

WAVE = np.random.default_rng(2).integers(1, 1000, (4, 64)).astype(np.int16)
LENGTHS = np.array([64, 64, 40, 16], np.int32)
CLIPS = np.where(np.arange(64)[None] < LENGTHS[:, None], WAVE, 0)
LABELS = np.zeros((4, 1), np.int32)


def heard(batch, how):
    key = jax.random.key(0)
    hear = lambda wave, lengths: (Input(wave[:, :, None], None),)  # noqa: E731
    return np.asarray(_hear_augmented(batch, hear, how, 64, key).inputs[0].x)[..., 0]


def test_copies_are_warped_and_nothing_else():
    copied = jnp.array([True, False, True, False])
    batch = Batch(*map(jnp.asarray, (CLIPS, LENGTHS, LABELS)), copied=copied)
    got, whole = heard(batch, Augment()), CLIPS / np.float32(32768)
    np.testing.assert_array_equal((got != whole).any(1), copied)
    always = heard(batch, Augment(warp=1.0))
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
    ratio = ((CLIPS[1] / 32768) ** 2).sum() / (added[1] ** 2).sum()
    assert 10 * np.log10(ratio) == pytest.approx(6, abs=1e-3)  # float32
