"""A run is left alone only if it is finished; asked to, it is made again from the start."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from machines import tiny_eat, tone_machine
from trainings import small_system

from asdjax.recipes import RECIPES
from asdjax.scoring.knn import Knn
from asdjax.stages import stages
from asdjax.train.config import Train
from asdjax.types import InputError

SYSTEM = RECIPES["frozen/logmel"].config
FIRST = "scores/anomaly_score_fan_section_00_test.csv"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Return a system and its recordings."""
    data = tmp_path_factory.mktemp("machines")
    tone_machine(data, "fan", seed=1)
    tone_machine(data, "pump", seed=2)
    return SYSTEM, data


@pytest.fixture(scope="module")
def finished(asked, tmp_path_factory) -> Path:
    """A complete run; tests must not change it."""
    out = tmp_path_factory.mktemp("run") / "run"
    stages.run(*asked, out)
    return out


@pytest.fixture
def out(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def times(out: Path) -> dict[str, int]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files}


def test_a_finished_run_is_left_alone(asked, out, capsys):
    before = times(out)
    results = stages.run(*asked, out)
    again = {"config.json", "clips.json", "results.csv", "skipped.csv"}
    assert {name for name, t in times(out).items() if t != before[name]} == again
    assert {(m.machine, m.metric) for m in results} >= {("ALL", "official_score")}
    assert "already scored" in capsys.readouterr().err


def test_the_same_recordings_elsewhere_and_later_are_the_same(asked, out, tmp_path, capsys):
    system, data = asked
    copied = tmp_path / "elsewhere" / "copied"
    for path in (data, out):
        shutil.copytree(path, copied / path.name, copy_function=shutil.copyfile)  # new times
    before = times(copied / "run")
    stages.run(system, copied / data.name, copied / "run")
    changed = {name for name, t in times(copied / "run").items() if t != before[name]}
    assert not [name for name in changed if name.endswith((".npz", ".png"))]
    assert not [name for name in changed if name.startswith("scores")]
    assert "2 of 2 machines were embedded before" in capsys.readouterr().err


def test_other_recordings_of_equal_name_size_and_time_are_others(asked, out, finished, tmp_path):
    system, data = asked
    copied = shutil.copytree(data, tmp_path / "data")
    # Anomalies and normal clips swap their sound, but neither size nor time of change.
    test = copied / "fan" / "test"
    for normal in sorted(test.glob("*normal*")):
        anomaly = next(test.glob(f"*{normal.name.split('_')[2]}_test_anomaly*{normal.stem[-10:]}*"))
        sounds, stat = (anomaly.read_bytes(), normal.read_bytes()), normal.stat()
        for path, sound in zip((normal, anomaly), sounds, strict=True):
            path.write_bytes(sound)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = times(out)
    with pytest.raises(InputError, match=r"test clips of fan section_00: 12 of other content"):
        stages.run(system, copied, out)
    assert times(out) == before
    results = {(m.machine, m.metric): m.value for m in stages.run(system, copied, out, force=True)}
    assert (results["fan", "auc_source"], results["pump", "auc_source"]) == (0, 1)
    assert (out / FIRST).read_text() != (finished / FIRST).read_text()


def test_a_run_without_its_last_file_is_scored_and_reported_again(asked, out, finished, capsys):
    """Half a file is not the file that was finished."""
    (out / "skipped.csv").unlink()
    (out / FIRST).write_text("half")
    shutil.rmtree(out / "figures")
    before = times(out)
    stages.run(*asked, out)
    after = times(out)
    assert after.keys() == times(finished).keys()
    assert (out / FIRST).read_text() == (finished / FIRST).read_text()
    # Embeddings are whole or not there at all.
    assert {n for n in after if n.endswith(".npz") and after[n] != before[n]} == set()
    assert "already scored" not in capsys.readouterr().err


LOST = FIRST, "scores/leave_one_out_pump_section_00_train.csv", "figures"


@pytest.mark.parametrize("lost", LOST)
def test_what_was_removed_of_a_finished_run_is_made_again(asked, out, finished, lost):
    path = out / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    stages.run(*asked, out)
    assert times(out).keys() == times(finished).keys()


@pytest.mark.parametrize("stage", ["embed", "write_scores", "figures"])
def test_a_run_killed_before_its_last_file_goes_on(asked, out, finished, stage, monkeypatch):
    """What an earlier run of another system left must not pass for its own."""

    def killed(*_, **settings):
        raise KeyboardInterrupt

    system, data = asked
    stages.run(replace(system, scorer=Knn(k=3)), data, out)
    (out / "config.json").unlink()
    with monkeypatch.context() as patch:
        where = {"figures": (stages.figures, "write"), "embed": (stages.embedding, "embed")}
        patch.setattr(*where.get(stage, (stages, stage)), killed)
        with pytest.raises(KeyboardInterrupt):
            stages.run(*asked, out)
    assert (out / "results.csv").exists() == (stage == "figures")
    assert not (out / "figures").exists()
    stages.run(*asked, out)
    assert times(out).keys() == times(finished).keys()
    for name in (FIRST, "results.csv"):
        assert (out / name).read_text() == (finished / name).read_text()


def test_with_force_everything_is_done_again(asked, out, capsys):
    before = times(out)
    stages.run(*asked, out, force=True)
    after = times(out)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] == before[name]} == set()
    assert "already" not in capsys.readouterr().err.replace("0 of 2 machines were already", "")


@pytest.mark.parametrize("force", [False, True])
def test_force_reaches_the_training(asked, tmp_path, force, monkeypatch):
    def fit(self, job):
        assert job.anew == force
        raise KeyboardInterrupt  # this is no test of training

    monkeypatch.setattr(Train, "fit", fit)
    system = small_system(tiny_eat(tmp_path / "tiny.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        stages.run(system, asked[1], tmp_path / "run", force=force)
