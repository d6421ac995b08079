"""The official baselines from recordings to decisions, through the stages."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from scipy.stats import gamma

from asdjax import __main__ as command_line
from asdjax.baseline import Autoencoder, FitAutoencoders, Reconstruction
from asdjax.baseline.network import clip_log_mel, reconstruct, vectors
from asdjax.config import SystemConfig, from_json, to_json
from asdjax.data.batches import Audio
from asdjax.files import read_csv
from asdjax.metrics import score_files
from asdjax.models import weights_file
from asdjax.models.logmel import LogMel
from asdjax.recipes import RECIPES
from asdjax.scoring.knn import Knn
from asdjax.scoring.score import threshold
from asdjax.stages import folder, stages
from asdjax.types import InputError

MSE, MAHALA = "baseline/mse", "baseline/mahala"
FAN, PUMP = ("fan", "section_00"), ("pump", "section_00")


def system(recipe, **train):
    few = {"epochs": 25, "batch": 16, "learning_rate": 1e-2}  # 325 steps: the statistics settle
    return replace(RECIPES[recipe].config, train=FitAutoencoders(**few | train))


def machine(root, name, train, test, samples):
    """Write clips of noise, whose anomalies have a tone."""
    rng = np.random.default_rng(len(name))
    tone = 0.3 * np.sin(2 * np.pi * 1000 / 16_000 * np.arange(samples))
    listed = [(f"train/{n}", 0) for n in train] + [(f"test/{n}", "anomaly" in n) for n in test]
    for path, odd in listed:
        wave = 0.02 * rng.standard_normal(samples) + odd * tone
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name / path, wave, 16_000, "PCM_16")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return two machines of the 2023 layout; the clips of one are shorter than those of other."""
    root = tmp_path_factory.mktemp("data")
    train = [f"section_00_source_train_normal_{i:04d}_a_1.wav" for i in range(5)]
    train += ["section_00_target_train_normal_0000_a_2.wav"]
    test = [
        f"section_00_{domain}_test_{label}_{i:04d}_a_1.wav"
        for domain in ("source", "target")
        for label in ("normal", "anomaly")
        for i in range(2)
    ]
    machine(root, "fan", train, test, 20_000)
    machine(root, "pump", train, test, 12_345)
    return root


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Return the folder of a finished run of `baseline/mse`."""
    out = tmp_path_factory.mktemp("mse")
    stages.run(system(MSE), data, out, year=2023)
    return out


def embeddings(out, group):
    return folder.load_embeddings(out, folder.load(out), group).values


def scores(out, name):
    return next(s for s in score_files.load(out / folder.SCORES) if s.machine == name)


def test_a_clip_has_three_numbers_by_the_autoencoder_of_its_machine(made):
    fan, pump = embeddings(made, FAN), embeddings(made, PUMP)
    assert fan.shape == pump.shape == (14, 3)
    assert (fan > 0).all()
    names = weights_file.load(made / folder.MODEL).arrays
    assert {name.split(".")[0] for name in names} == {"fan_section_00", "pump_section_00"}


def test_a_clip_scores_what_its_frames_score(made, data):
    clip = folder.load(made).groups[PUMP][3]
    wave, _ = soundfile.read(clip.path, dtype="int16")
    loaded = weights_file.load(made / folder.MODEL).arrays
    own = {n.removeprefix("pump_section_00."): v for n, v in loaded.items() if "pump" in n}
    x = vectors(clip_log_mel(wave[None], np.array([len(wave)]))[0])
    assert x.shape == (21, 640)  # 1 + 12,345 // 512 frames, less 4
    residual = np.float64(x - reconstruct(own, x))
    rows = residual.reshape(-1, 128)
    precisions = (np.float64(own[f"precision.{domain}"]) for domain in ("source", "target"))
    expected = [np.mean(residual**2), *((rows @ p @ rows.T).mean() for p in precisions)]
    # float32 sums of products that cancel
    np.testing.assert_allclose(embeddings(made, PUMP)[3], expected, rtol=1e-3)


def test_the_scores_are_the_error_or_the_smaller_distance(made, data, tmp_path):
    values = embeddings(made, FAN)
    is_test = [clip.split == "test" for clip in folder.load(made).groups[FAN]]
    np.testing.assert_allclose(scores(made, "fan").values, values[is_test, 0])
    out = tmp_path / "mahala"
    stages.run(system(MAHALA), data, out, year=2023, reuse=(made,))
    np.testing.assert_allclose(scores(out, "fan").values, values[is_test, 1:].min(1))
    assert (out / folder.MODEL).read_bytes() == (made / folder.MODEL).read_bytes()
    assert not (out / "log.jsonl").exists()  # nothing was trained
    left_out = folder.load_left_out(out / folder.SCORES, FAN)
    np.testing.assert_allclose(list(left_out.values()), values[~np.array(is_test), 1:].min(1))


def test_an_error_tells_a_tone_from_noise(made):
    values = [
        float(value)
        for name, metric, value in read_csv(made / "results.csv")[1:]
        if metric == "auc_source"
    ]
    assert values == [1.0, 1.0]


@pytest.mark.parametrize(("year", "of"), [(2022, "clips"), (2023, "batches"), (None, "clips")])
def test_thresholds_are_from_batches_since_2023_and_from_clips_before(
    made, year, of, tmp_path, monkeypatch
):
    out, fitted = shutil.copytree(made, tmp_path / "run"), []
    run = replace(folder.load(out), year=year)
    folder.save(out, run)
    monkeypatch.setattr(stages, "threshold", lambda values, _: fitted.append(values) or (0.0, ""))
    stages.score(out)
    model = weights_file.load(made / folder.MODEL).arrays
    for group, found in zip(run.groups, fitted, strict=True):
        expected = {
            "clips": list(folder.load_left_out(out / folder.SCORES, group).values()),
            "batches": model[f"{group[0]}_section_00.batches.mse"],
        }
        np.testing.assert_array_equal(found, expected[of])


def test_a_run_gets_the_other_of_its_two_scores_and_no_other_scorer(made, tmp_path, monkeypatch):
    out = shutil.copytree(made, tmp_path / "run")
    monkeypatch.setattr(
        sys, "argv", ["asdjax", "score", str(out), "reconstruction", "--kind", "mahalanobis"]
    )
    command_line.main()
    is_test = [clip.split == "test" for clip in folder.load(made).groups[FAN]]
    expected = embeddings(made, FAN)[is_test, 1:].min(1)
    np.testing.assert_allclose(scores(out, "fan").values, expected)
    with pytest.raises(InputError, match=r"expected Autoencoder, .* and Reconstruction together"):
        stages.score(out, Knn())
    assert folder.load(out).system.scorer == Reconstruction("mahalanobis")
    np.testing.assert_allclose(scores(out, "fan").values, expected)


def test_the_numbers_that_train_are_told_beside_the_reports(data, tmp_path, capsys):
    reported = RECIPES[MSE].reported
    stages.train(system(MSE, epochs=1), data, tmp_path, year=2023, reported=reported)
    told = capsys.readouterr()
    assert "2 autoencoders of 267,928 parameters" in told.err
    assert f"(the report: {reported.parameters})" in told.err
    assert "layers.*.kernel" in told.out


def test_the_threshold_is_that_of_the_official_code_where_its_fit_succeeds():
    values = 30 + np.random.default_rng(0).gamma(4.0, 0.5, 500)
    expected = gamma.ppf(0.9, *gamma.fit(values))
    limit, _ = threshold(values, challenge=True)
    np.testing.assert_allclose(limit, expected, rtol=1e-3)  # two optimizations


def test_own_recordings_without_domains_train_and_score(tmp_path):
    train, test = [f"{i}.wav" for i in range(4)], ["normal_0.wav", "anomaly_0.wav"]
    machine(tmp_path / "data", "press", train, test, 9_000)
    stages.run(system(MAHALA, epochs=1), tmp_path / "data", tmp_path / "run")
    (group,) = folder.load(tmp_path / "run").groups
    values = embeddings(tmp_path / "run", group)
    np.testing.assert_array_equal(values[:, 1], values[:, 2])


def test_a_clip_without_a_single_vector_is_refused_by_name(tmp_path):
    machine(tmp_path / "data", "press", ["0.wav", "1.wav"], ["normal_0.wav"], 2_047)
    with pytest.raises(InputError, match=r"0\.wav.*2048"):
        stages.run(system(MSE), tmp_path / "data", tmp_path / "run")


def test_cutting_clips_to_less_than_a_vector_is_refused(data, tmp_path):
    short = replace(system(MSE), audio=Audio(seconds=0.1))
    with pytest.raises(InputError, match=r"audio\.seconds of 0\.128 or more, .* got 0\.1; give a"):
        stages.train(short, data, tmp_path)


def test_a_run_of_other_settings_is_not_reused(made, data, tmp_path):
    stages.train(system(MSE, epochs=1), data, tmp_path, year=2023, reuse=(made,))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_how_often_a_training_is_saved_makes_it_no_other(made, data, capsys):
    stages.train(system(MSE, save_every=7), data, made, year=2023)
    assert "already trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields",
    [
        {"train": None},
        {"encoders": (LogMel(),), "train": FitAutoencoders()},
        {"encoders": (LogMel(),), "train": None},
        {"encoders": (Autoencoder(), Autoencoder())},
        {"scorer": Knn()},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(fields):
    given = {"encoders": (Autoencoder(),), "scorer": Reconstruction(), "train": FitAutoencoders()}
    with pytest.raises(InputError, match=r"^expected"):
        SystemConfig(**given | fields)


def test_an_unknown_score_is_refused():
    with pytest.raises(InputError, match="kind: expected 'mse' or 'mahalanobis', got 'mean'"):
        Reconstruction("mean")


@pytest.mark.parametrize("recipe", [MSE, MAHALA])
def test_recipes_are_the_official_settings_and_survive_json(recipe):
    config = RECIPES[recipe].config
    assert from_json(to_json(config)) == config
    assert config.train == FitAutoencoders(epochs=100, batch=256, learning_rate=1e-3, seed=13711)
