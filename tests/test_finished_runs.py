"""A run is left alone only if it is finished; asked to, it is made again from the start."""

import shutil
from pathlib import Path

import pytest
from machines import tiny_backbone
from trainings import quick_compiles, small_system, two_machines

from asdjax import pipeline

FIRST = "scores/knn/anomaly_score_fan_section_00_test.csv"


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compiles(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Return a system that trains, and its recordings."""
    root = tmp_path_factory.mktemp("asked")
    weights = tiny_backbone(root / "tiny.safetensors")
    return small_system(weights, steps=2), two_machines(root / "data")


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
    files = (path for path in out.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
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
    # Embeddings and weights are whole or not there at all.
    kept = {"model.safetensors", *(name for name in after if name.endswith(".npz"))}
    assert {name for name in kept if after[name] != before[name]} == set()
    assert "already finished" not in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["scores", "figures"])
def test_a_run_killed_after_its_embeddings_goes_on(asked, out, finished, stage, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    shutil.rmtree(out / "embeddings")
    (out / "config.json").unlink()
    with monkeypatch.context() as patch:
        where = (pipeline, "write_scores") if stage == "scores" else (pipeline.figures, "write")
        patch.setattr(*where, killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(*asked, out)
    assert not (out / "results.csv").exists()
    assert not (out / "skipped.csv").exists()
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
    assert "already" not in capsys.readouterr().err.replace("0 of 2 machines are already", "")
