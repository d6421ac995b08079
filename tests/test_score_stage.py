"""Another back end for a finished run, by name, through the command line and from Python."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from machines import tone_machine

import asdjax
from asdjax import __main__ as command_line
from asdjax import pipeline, runs
from asdjax.config import SystemConfig
from asdjax.models.embedder import LogMel
from asdjax.scoring.score import Centers, Knn, Mahalanobis, Mixture, changed
from asdjax.types import InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A complete run; tests must not change it."""
    root = tmp_path_factory.mktemp("machines")
    for seed, machine in enumerate(("fan", "pump")):
        tone_machine(root / "data", machine, seed)
    asdjax.run(SystemConfig(LogMel(), Knn(k=2)), root / "data", root / "run")
    return root / "run"


@pytest.mark.parametrize(
    ("words", "scorer"),
    [
        (["--k", "1", "--banks", "domain", "--standardize", "True"], Knn(1, "domain", True)),
        (["--scorer", "knn", "--banks", "domain"], Knn(2, "domain")),
        (["--scorer", "centers", "--count", "2", "--seed", "5"], Centers(2, seed=5)),
        (
            ["--scorer", "mixture", "--components", "2", "--covariance", "diagonal"],
            Mixture(2, "diagonal"),
        ),
        (["--scorer", "mahalanobis", "--banks", "pooled"], Mahalanobis("pooled")),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_a_finished_run_gets_another_back_end(finished, tmp_path, monkeypatch, words, scorer):
    out = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["asdjax", "score", str(out), *words])
    command_line.main()
    made = runs.load(out)
    assert made.system.scorer == scorer
    name = "scores/anomaly_score_fan_section_00_test.csv"
    assert (out / name).read_text() != (finished / name).read_text()
    for group in made.groups:
        assert np.isfinite(runs.load_left_out(out, made, group)).all()
    if not getattr(scorer, "standardize", False):  # which loses how far the tone is from all noise
        assert ("ALL", "official_score", 1.0) in pipeline.report(out)


def test_the_recorded_back_end_is_used_again_and_changed_field_by_field(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    pipeline.score(out, scorer="centers", count=3)
    pipeline.score(out, seed=1)
    assert runs.load(out).system.scorer == Centers(3, seed=1)
    with pytest.raises(
        InputError, match=r"settings of Centers \(count, starts, seed\), got k; .* are knn, mix"
    ):
        pipeline.score(out, k=3)
    assert runs.load(out).system.scorer == changed(Centers(3), None, {"seed": 1})
