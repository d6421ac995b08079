"""The whole path from recordings to official numbers, on machines whose right answer is known."""

import csv
import errno
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from machines import tone_machine

import asdjax
from asdjax.artifact import is_finished
from asdjax.config import SystemConfig
from asdjax.data.audio import read
from asdjax.data.batches import Audio
from asdjax.metrics import score_files
from asdjax.models.logmel import LogMel, front_end
from asdjax.models.pretrained import Pretrained
from asdjax.recipes import RECIPES
from asdjax.scoring.knn import Knn
from asdjax.stages import embed as embedding
from asdjax.stages import folder, stages
from asdjax.types import InputError
from weights_convert.beats import convert_file

LOGMEL = SystemConfig((LogMel(),), Knn(k=1))  # raw log-mel: a tone turns it far from all noise


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("machines")
    tone_machine(root, "fan", seed=1)
    tone_machine(root, "pump", seed=2)
    return root


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory) -> Path:
    """A complete run of frozen/logmel; tests must not change it."""
    out = tmp_path_factory.mktemp("run") / "run"
    asdjax.run(LOGMEL, made, out)
    return out


@pytest.fixture
def data(made, tmp_path) -> Path:
    """A copy of the machines that a test may spoil."""
    return shutil.copytree(made, tmp_path / "data")


def frozen(weights: Path, **fields) -> Pretrained:
    return Pretrained(str(weights), pooling="mean", embedding=None, **fields)


def values(path: Path) -> dict[tuple[str, str], float]:
    with path.open() as file:
        heading, *rows = csv.reader(file)
    assert heading == ["machine", "metric", "value"]
    return {(machine, metric): float(value) for machine, metric, value in rows}


def times(out: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (out / "embeddings").glob("*.npz")}


def test_loud_tones_are_found(finished):
    results = values(finished / "results.csv")
    for machine in ("fan", "pump"):
        for metric in ("auc_source", "auc_target", "pauc"):
            assert results[machine, metric] == 1
        assert results[machine, "recall_source"] == 1  # 1 kHz tone: far beyond every threshold
    assert results["ALL", "official_score"] == 1


def test_a_run_leaves_the_files_it_promises(finished, made):
    assert {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()} == {
        "clips.json",
        "config.json",
        "finished.json",
        "embeddings/fan_section_00.npz",
        "embeddings/pump_section_00.npz",
        "figures/histograms.png",
        "figures/roc.png",
        "figures/top_clips.png",
        "results.csv",
        "scores/anomaly_score_fan_section_00_test.csv",
        "scores/anomaly_score_pump_section_00_test.csv",
        "scores/decision_result_fan_section_00_test.csv",
        "scores/decision_result_pump_section_00_test.csv",
        "scores/leave_one_out_fan_section_00_train.csv",
        "scores/leave_one_out_pump_section_00_train.csv",
        "scores/thresholds.csv",
        "skipped.csv",
    }
    rows = (finished / "scores/anomaly_score_fan_section_00_test.csv").read_text().split()
    names = {path.name for path in (made / "fan" / "test").iterdir()}
    assert {row.split(",")[0] for row in rows} == names
    assert folder.load(finished).system == replace(LOGMEL, audio=Audio(channel=0))


def test_embeddings_are_those_of_each_clip_alone(finished):
    made = folder.load(finished)
    clips = made.groups["fan", "section_00"]
    rows = folder.load_embeddings(finished, made, ("fan", "section_00")).values
    for clip, row in zip(clips, rows, strict=True):
        wave = read(clip.path, 0)[None]
        alone = np.asarray(front_end(wave, np.array([wave.shape[1]])).x)[0]
        # 1e-4: batched, padded to a second and split over two devices; float32 log energies.
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-4)


def test_evaluating_the_score_files_gives_the_results_of_the_run(finished, made, tmp_path):
    asdjax.evaluate(finished / "scores", data=made, out=tmp_path / "again.csv")
    assert values(tmp_path / "again.csv") == values(finished / "results.csv")


def test_what_is_embedded_is_kept_until_something_changes(data, tmp_path, capsys):
    out = tmp_path / "run"
    stages.embed(LOGMEL, data, out)
    first = times(out)
    stages.embed(SystemConfig((LogMel(),), Knn(k=3)), data, out)  # another scorer: nothing to do
    assert times(out) == first
    clip = next((data / "pump" / "test").iterdir())
    more = clip.with_name("section_00_source_test_normal_9999_spd_0.wav")
    soundfile.write(more, read(clip, 0)[:4000], 16000, "PCM_16")
    stages.embed(LOGMEL, data, out)
    assert f"test clips of pump section_00: 1 new ({more.name})" in capsys.readouterr().err
    second = times(out)
    assert second["fan_section_00"] == first["fan_section_00"]
    assert second["pump_section_00"] != first["pump_section_00"]
    stages.embed(LOGMEL, data, out, force=True)
    assert times(out)["fan_section_00"] != first["fan_section_00"]


def test_scores_never_mix_two_systems(made, tmp_path, monkeypatch):
    out, load_batches = tmp_path / "run", embedding.load_batches
    asdjax.run(LOGMEL, made, out)

    def interrupted(clips, *rest):
        if clips[0].machine == "pump":
            raise KeyboardInterrupt
        yield from load_batches(clips, *rest)

    monkeypatch.setattr(embedding, "load_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asdjax.run(replace(LOGMEL, audio=Audio(seconds=0.3)), made, out, force=True)
    with pytest.raises(InputError, match="is not there, or not of this system"):
        stages.score(out)


def test_weights_audio_settings_and_version_are_part_of_an_embedding(finished, monkeypatch):
    run = folder.load(finished)
    fan = "fan", "section_00"
    products = [run.embeddings(finished, fan)]
    products.append(replace(run, weights=("other",)).embeddings(finished, fan))
    audio = replace(run.system.audio, seconds=0.3)
    other = replace(run, system=replace(run.system, audio=audio))
    products.append(other.embeddings(finished, fan))
    monkeypatch.setattr(folder, "__version__", "other")
    products.append(run.embeddings(finished, fan))
    assert [is_finished(product) for product in products] == [True, False, False, False]


def test_decisions_depend_on_training_clips_alone(finished, tmp_path, monkeypatch):
    out, fitted = shutil.copytree(finished, tmp_path / "run"), []

    def limit(train_scores, challenge):
        assert challenge
        fitted.append(train_scores)
        return np.median(train_scores), ""

    monkeypatch.setattr(stages, "threshold", limit)
    stages.score(out)
    assert [len(scores) for scores in fitted] == [9, 9]  # there are 12 test clips
    fan, _ = score_files.load(out / "scores")
    np.testing.assert_array_equal(fan.decisions, fan.values > np.median(fitted[0]))


@pytest.mark.parametrize(
    ("name", "channel"), [(None, 0), ("{label}_{split}_{domain}{index}.wav", "mean")]
)
def test_the_default_channel_is_the_first_of_the_challenge_and_the_mean_of_others(
    tmp_path, name, channel
):
    tone_machine(tmp_path / "data", "fan", name=name)
    stages.embed(LOGMEL, tmp_path / "data", tmp_path / "run")
    assert folder.load(tmp_path / "run").system.audio.channel == channel


def test_a_given_year_wins_and_supplemental_clips_are_left_out(tmp_path):
    data = tmp_path / "dcase2025t2" / "dev_data" / "raw"
    tone_machine(data, "fan")
    extra = data / "fan" / "supplemental" / "section_00_machine_0001_.wav"
    extra.parent.mkdir()
    shutil.copy(next((data / "fan" / "train").iterdir()), extra)
    stages.embed(LOGMEL, data, tmp_path / "run")
    run = folder.load(tmp_path / "run")
    assert run.year == 2025
    assert {clip.split for clip in run.clips} == {"train", "test"}
    stages.embed(LOGMEL, data, tmp_path / "run", year=2022)
    assert folder.load(tmp_path / "run").year == 2022


def test_crop_refuses_clips_that_are_too_short(made, tmp_path):
    audio = Audio(seconds=0.6, fit="crop")
    with pytest.raises(InputError, match="none of 42 files can be used"):
        stages.embed(replace(LOGMEL, audio=audio), made, tmp_path / "run")


def test_another_scorer_is_recorded_and_used(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    stages.score(out, Knn(k=2, standardize="machine"))
    assert folder.load(out).system.scorer == Knn(k=2, standardize="machine")
    name = "scores/anomaly_score_fan_section_00_test.csv"
    assert (out / name).read_text() != (finished / name).read_text()


def test_a_frozen_backbone_from_a_converted_checkpoint(made, golden, tmp_path):
    weights = tmp_path / "tiny.safetensors"
    convert_file(golden / "beats_tiny.pt", weights)
    system = SystemConfig((frozen(weights),), Knn(), batch=8)
    assert asdjax.run(system, made, tmp_path / "run")
    run = folder.load(tmp_path / "run")
    clips = run.groups["fan", "section_00"]
    rows = folder.load_embeddings(tmp_path / "run", run, ("fan", "section_00")).values
    backbone = asdjax.load_backbone(weights)
    wave = np.pad(read(clips[0].path, 0), (0, 8000))[None]
    lengths = np.array([8000])
    inside = ~np.asarray(backbone.token_padding(16000, lengths))[0]
    tokens = np.asarray(backbone(wave, lengths))[0][inside]
    # 1e-4: what the stages of the model keep of float32 against float64.
    np.testing.assert_allclose(rows[0], tokens.mean(0), rtol=0, atol=1e-4)


def test_every_broken_file_is_told_at_once_and_nothing_is_written(data, tmp_path):
    train, test = sorted((data / "fan" / "train").iterdir()), sorted((data / "pump/test").iterdir())
    train[0].write_bytes(b"")
    train[1].write_bytes(train[2].read_bytes()[:5000])
    train[3].write_text("not a recording")
    soundfile.write(test[0], np.full(8000, np.nan), 16000, "FLOAT")
    soundfile.write(test[1], np.zeros(8000), 16000, "PCM_16")
    soundfile.write(test[2], np.ones(399) * 0.1, 16000, "PCM_16")
    broken = [train[0], train[1], train[3], *test[:3]]
    with pytest.raises(InputError, match="6 of 42 files cannot be used") as refused:
        asdjax.run(LOGMEL, data, tmp_path / "run")
    assert all(str(path) in str(refused.value) for path in broken)
    assert not (tmp_path / "run").exists()

    results = asdjax.run(LOGMEL, data, tmp_path / "run", skip_bad=True)
    assert ("ALL", "official_score", 1.0) in results
    listed = (tmp_path / "run" / "skipped.csv").read_text()
    assert all(str(path) in listed for path in broken)


def test_stereo_of_another_rate_among_the_clips_is_converted(data, tmp_path, capsys):
    clip = next((data / "fan" / "train").iterdir())
    wave = np.random.default_rng(0).standard_normal((22050, 2)) * 0.02
    soundfile.write(clip, wave, 44100, "PCM_16")
    assert asdjax.run(LOGMEL, data, tmp_path / "run")
    said = capsys.readouterr().err
    assert "1 of 21 clips of fan: 44100 Hz, 2 channels; resampled to 16000 Hz, channel 0" in said


def test_nothing_that_can_be_used_is_refused(data, tmp_path):
    for path in data.rglob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no clip that can be used"):
        asdjax.run(LOGMEL, data, tmp_path / "run", skip_bad=True)
    assert not (tmp_path / "run").exists()


def test_a_machine_without_test_clips_is_refused(data, tmp_path):
    shutil.rmtree(data / "fan" / "test")
    with pytest.raises(InputError, match=r"fan/section_00 .*no test clip"):
        asdjax.run(LOGMEL, data, tmp_path / "run")


def test_machines_that_cannot_be_evaluated_do_not_spoil_the_others(tmp_path, capsys):
    tone_machine(tmp_path / "data", "mixer", name="{label}_{split}_{domain}{index}.wav")
    tone_machine(tmp_path / "data", "press", name="{split}_{domain}_{label[0]}{index}.wav")
    results = asdjax.run(LOGMEL, tmp_path / "data", tmp_path / "run")
    assert ("mixer", "amean_auc", 1.0) in results
    assert "press" not in {metric.machine.split("/")[0] for metric in results}
    assert (
        "no official numbers of press/section_00: no labelled test clip" in capsys.readouterr().err
    )
    assert (tmp_path / "run/scores/anomaly_score_press_section_00_test.csv").is_file()


def test_a_second_run_leaves_nothing_of_the_first(data, tmp_path):
    out = tmp_path / "run"
    asdjax.run(LOGMEL, data, out)
    shutil.rmtree(data / "pump")
    for i, path in enumerate(sorted((data / "fan" / "test").iterdir())):
        path.rename(path.with_name(f"section_00_{i:04d}.wav"))  # no labels any more
    assert asdjax.run(LOGMEL, data, out, force=True) == []
    assert [path.name for path in (out / "embeddings").iterdir()] == ["fan_section_00.npz"]
    assert not (out / "results.csv").exists()
    assert not (out / "figures" / "roc.png").exists()
    assert {path.name for path in (out / "scores").iterdir()} == {
        "anomaly_score_fan_section_00_test.csv",
        "decision_result_fan_section_00_test.csv",
        "leave_one_out_fan_section_00_train.csv",
        "thresholds.csv",
    }


def test_a_damaged_file_of_embeddings_is_made_again(made, tmp_path):
    out = tmp_path / "run"
    stages.embed(LOGMEL, made, out)
    path = out / "embeddings" / "fan_section_00.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not there, or not of this system"):
        stages.score(out)
    assert asdjax.run(LOGMEL, made, out)


def test_names_with_signs_of_other_languages_and_markup(data, tmp_path):
    (data / "fan").rename(data / "Pümpe 1 [alt]")
    clip = next((data / "Pümpe 1 [alt]" / "test").iterdir())
    clip.rename(clip.with_name(clip.stem + "_a$b_{$.wav"))
    assert asdjax.run(LOGMEL, data, tmp_path / "oc[/x]")


def test_a_layer_the_backbone_lacks_is_refused(made, golden, tmp_path):
    weights = tmp_path / "tiny.safetensors"
    convert_file(golden / "beats_tiny.pt", weights)
    with pytest.raises(InputError, match=r'expected layer 0\.\.3 or "mean", got 99'):
        asdjax.run(SystemConfig((frozen(weights, layer=99),)), made, tmp_path / "run")


def test_a_machine_without_target_clips_is_scored_by_the_others(data, tmp_path, capsys):
    for clip in (data / "fan" / "train").glob("*target*"):
        clip.unlink()
    assert ("ALL", "official_score", 1.0) in asdjax.run(LOGMEL, data, tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "fan/section_00: no target clip among 6 training clips" in said


def test_an_interruption_keeps_what_is_finished(made, tmp_path, monkeypatch):
    out, load_batches = tmp_path / "run", embedding.load_batches

    def interrupted(clips, *rest):
        if clips[0].machine == "pump":
            raise KeyboardInterrupt
        yield from load_batches(clips, *rest)

    monkeypatch.setattr(embedding, "load_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asdjax.run(LOGMEL, made, out)
    first = times(out)
    assert set(first) == {"fan_section_00"}
    monkeypatch.undo()
    assert asdjax.run(LOGMEL, made, out)
    assert times(out)["fan_section_00"] == first["fan_section_00"]


def test_a_full_disk_leaves_no_half_file(made, tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"fan_section_00\.npz is full: free some space"):
        asdjax.run(LOGMEL, made, tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    kept = {"values.npy", "done.npy", "key.json"}  # what is computed, for the next call
    assert {f.name for f in files if f.parent.suffix == ".part"} == kept
    assert {f.name for f in files if f.parent.suffix != ".part"} == {"clips.json", "config.json"}


def test_an_own_folder_has_auc_per_machine_and_no_official_score(tmp_path):
    tone_machine(tmp_path / "data", "mixer", name="{label}_{split}_{domain}{index}.wav")
    results = asdjax.run(LOGMEL, tmp_path / "data", tmp_path / "run")
    assert ("ALL", "amean_auc", 1.0) in results
    assert "official_score" not in {metric.metric for metric in results}


def test_an_evaluation_part_without_labels_gets_scores_and_later_numbers(data, tmp_path):
    truth = tmp_path / "truth"
    for machine in ("fan", "pump"):
        files = {"data": [], "domain": []}
        for i, path in enumerate(sorted((data / machine / "test").iterdir())):
            files["data"].append(f"section_00_{i:04d}.wav,{int('anomaly' in path.name)}")
            files["domain"].append(f"section_00_{i:04d}.wav,{int('target' in path.name)}")
            path.rename(path.with_name(f"section_00_{i:04d}.wav"))
        for kind, rows in files.items():
            path = truth / f"ground_truth_{kind}" / f"ground_truth_{machine}_section_00_test.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(rows) + "\n")
    assert asdjax.run(LOGMEL, data, tmp_path / "run") == []
    assert not (tmp_path / "run" / "results.csv").exists()
    scores = tmp_path / "run" / "scores"
    alone = asdjax.evaluate(scores, ground_truth=truth)
    assert ("ALL", "official_score", 1.0) in alone
    assert asdjax.evaluate(scores, data=data, ground_truth=truth) == alone
    kept = times(tmp_path / "run")
    assert asdjax.run(LOGMEL, data, tmp_path / "run", ground_truth=truth) == alone
    assert times(tmp_path / "run") == kept  # labels are not part of an embedding


def test_2020_has_machine_ids_and_no_decisions(tmp_path):
    name = "{label}_id_01_{speed}{index:07d}.wav"
    tone_machine(tmp_path / "data", "fan", name=name)
    results = asdjax.run(LOGMEL, tmp_path / "data", tmp_path / "run")
    assert ("fan/id_01", "auc", 1.0) in results
    files = sorted(path.name for path in (tmp_path / "run" / "scores").iterdir())
    assert files == [
        "anomaly_score_fan_id_01.csv",
        "leave_one_out_fan_id_01_train.csv",
        "thresholds.csv",
    ]


def test_2021_has_a_test_folder_and_score_files_per_domain(tmp_path):
    name = "section_03_{domain}_{split}_{label}_{index:04d}.wav"
    tone_machine(tmp_path / "data", "fan", name=name)
    test = tmp_path / "data" / "fan" / "test"
    for domain in ("source", "target"):
        (test.parent / f"{domain}_test").mkdir()
        for path in test.glob(f"*_{domain}_*"):
            path.rename(test.parent / f"{domain}_test" / path.name)
    test.rmdir()
    results = asdjax.run(LOGMEL, tmp_path / "data", tmp_path / "run")
    assert ("fan/section_03", "pauc_target", 1.0) in results
    files = sorted(path.name for path in (tmp_path / "run" / "scores").glob("*_test.csv"))
    assert files == [
        f"{kind}_fan_section_03_{domain}_test.csv"
        for kind in ("anomaly_score", "decision_result")
        for domain in ("source", "target")
    ]


def test_real_recordings_to_official_numbers(real_machines, tmp_path):
    results = asdjax.run(RECIPES["frozen/logmel"].config, real_machines, tmp_path / "run")
    numbers = {(m.machine, m.metric): m.value for m in results}
    # The labels of 8 clips a cell move an AUC in steps of 1/128; chance and shift set its value.
    for machine in ("ToyCar", "valve"):
        assert (numbers[machine, "auc_source"] * 128) % 1 == pytest.approx(0, abs=1e-9)
    assert 0 < numbers["ALL", "official_score"] < 1
