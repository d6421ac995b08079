"""A run is left alone only if it is finished; asked to, it is made again from the start."""

import shutil
from pathlib import Path

import pytest
from machines import tone_machine
from trainings import small_system

from asdjax import pipeline
from asdjax.recipes import RECIPES

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
    pipeline.run(*asked, out)
    return out


@pytest.fixture
def out(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def times(out: Path) -> dict[str, int]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files}


def test_a_finished_run_is_left_alone(asked, out, capsys):
    before = times(out)
    results = pipeline.run(*asked, out)
    assert {name for name, t in times(out).items() if t != before[name]} == {"results.csv"}
    assert {(m.machine, m.metric) for m in results} >= {("ALL", "official_score")}
    assert "already finished" in capsys.readouterr().err


def test_a_run_without_its_last_file_is_scored_and_reported_again(asked, out, finished, capsys):
    """What `report` writes last tells that the scores before it are whole."""
    (out / "skipped.csv").unlink()
    (out / FIRST).write_text("half")
    shutil.rmtree(out / "figures")
    before = times(out)
    pipeline.run(*asked, out)
    after = times(out)
    assert after.keys() == times(finished).keys()
    assert (out / FIRST).read_text() == (finished / FIRST).read_text()
    # Embeddings are whole or not there at all.
    assert {n for n in after if n.endswith(".npz") and after[n] != before[n]} == set()
    assert "already finished" not in capsys.readouterr().err


LOST = FIRST, "scores/leave_one_out_pump_section_00_train.csv", "figures"


@pytest.mark.parametrize("lost", LOST)
def test_what_was_removed_of_a_finished_run_is_made_again(asked, out, finished, lost):
    path = out / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    pipeline.run(*asked, out)
    assert times(out).keys() == times(finished).keys()


@pytest.mark.parametrize("stage", ["embed_groups", "write_scores", "figures"])
def test_a_run_killed_before_its_last_file_goes_on(asked, out, finished, stage, monkeypatch):
    """What an earlier run of another system left must not pass for its own."""

    def killed(*_, **settings):
        raise KeyboardInterrupt

    (out / "config.json").unlink()
    with monkeypatch.context() as patch:
        where = (pipeline.figures, "write") if stage == "figures" else (pipeline, stage)
        patch.setattr(*where, killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(*asked, out)
    assert not (out / "results.csv").exists()
    assert not (out / "skipped.csv").exists()
    if stage == "embed_groups":
        return  # and then all is done as above
    pipeline.run(*asked, out)
    assert times(out).keys() == times(finished).keys()
    for name in (FIRST, "results.csv"):
        assert (out / name).read_text() == (finished / name).read_text()


def test_with_force_everything_is_done_again(asked, out, capsys):
    before = times(out)
    pipeline.run(*asked, out, force=True)
    after = times(out)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] == before[name]} == set()
    assert "already finished" not in capsys.readouterr().err


@pytest.mark.parametrize("force", [False, True])
def test_force_reaches_the_training(asked, tmp_path, force, monkeypatch):
    def train_run(*_, **told):
        assert told["force"] == force
        raise KeyboardInterrupt  # as no test of training

    (tmp_path / "tiny.safetensors").write_bytes(b"read by the training alone")
    monkeypatch.setattr(pipeline, "train_run", train_run)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(
            small_system(tmp_path / "tiny.safetensors"), asked[1], tmp_path / "run", force=force
        )
