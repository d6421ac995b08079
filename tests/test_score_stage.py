"""Another scorer for a finished run, through the command line and from Python."""

import dataclasses
import shutil
import sys
import typing
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from machines import tone_machine

import asdjax
from asdjax import __main__ as command_line
from asdjax.artifact import record
from asdjax.config import SystemConfig
from asdjax.metrics import score_files
from asdjax.models.logmel import LogMel
from asdjax.scoring.centers import Centers
from asdjax.scoring.density import Density
from asdjax.scoring.knn import Knn
from asdjax.scoring.mahalanobis import Mahalanobis
from asdjax.scoring.mixture import Mixture
from asdjax.scoring.oversampling import Smote
from asdjax.stages import folder, stages
from asdjax.types import InputError

FAN = "scores/anomaly_score_fan_section_00_test.csv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A complete run; tests must not change it."""
    root = tmp_path_factory.mktemp("machines")
    for seed, machine in enumerate(("fan", "pump")):
        tone_machine(root / "data", machine, seed)
    asdjax.run(SystemConfig((LogMel(),), Knn(k=2)), root / "data", root / "run")
    return root / "run"


def test_embeddings_are_scored_from_their_file(finished):
    """No copy is made of the rows of one split, which follow each other."""
    made = folder.load(finished)
    for group in made.groups:
        whole = folder.load_embeddings(finished, made, group)
        assert isinstance(whole.values, np.memmap)
        with np.load(made.embeddings(finished, group).path) as file:
            np.testing.assert_array_equal(whole.values, file["values"])
        for split in ("train", "test"):
            part = whole.select(split)
            assert np.shares_memory(part.values, whole.values)
            rows = [i for i, clip in enumerate(whole.clips) if clip.split == split]
            np.testing.assert_array_equal(part.values, whole.values[rows])
            assert part.clips == made.select(group, split)


@pytest.mark.parametrize(
    ("words", "scorer"),
    [
        (
            ["knn", "--k", "2", "--references", "domain", "--standardize", "machine"],
            Knn(2, "domain", "machine"),
        ),
        (
            ["knn", "--k", "1", "oversample:smote", "--oversample.ratio", "1"],
            Knn(1, oversample=Smote(1.0)),
        ),
        (["centers", "--count", "2", "--seed", "5"], Centers(2, seed=5)),
        (["mixture", "--components", "2", "--covariance", "diagonal"], Mixture(2, "diagonal")),
        (["mahalanobis", "--references", "pooled"], Mahalanobis("pooled")),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_finished_run_gets_another_scorer(finished, tmp_path, monkeypatch, words, scorer):
    out = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["asdjax", "score", str(out), *words])
    command_line.main()
    made = folder.load(out)
    assert made.system.scorer == scorer
    assert (out / FAN).read_text() != (finished / FAN).read_text()
    for group in made.groups:
        left_out = folder.load_left_out(out / "scores", group)
        assert np.isfinite(list(left_out.values())).all()
    if not getattr(scorer, "standardize", None):  # which loses how far the tone is from all noise
        assert ("ALL", "official_score", 1.0) in stages.report(out)


def test_the_recorded_scorer_is_used_again(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    stages.score(out, Centers(3, seed=1))
    once = (out / FAN).read_text()
    assert once != (finished / FAN).read_text()
    (out / FAN).unlink()
    stages.score(out)
    assert folder.load(out).system.scorer == Centers(3, seed=1)
    assert (out / FAN).read_text() == once


def test_fields_that_are_not_given_are_the_defaults_whatever_the_run_has(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    for words, scorer in (
        (
            ["--standardize", "all", "oversample:smote", "--oversample.ratio", "1"],
            Knn(standardize="all", oversample=Smote(1)),
        ),
        (["--k", "3"], Knn(3)),
        (["normalize:density"], Knn(normalize=Density())),
    ):
        command_line.dispatch(["score", str(out), "knn", *words])
        assert folder.load(out).system.scorer == scorer


def test_every_scorer_of_a_system_has_a_subcommand_with_its_options(finished, capsys):
    kinds = typing.get_args(typing.get_type_hints(SystemConfig)["scorer"])
    assert len(kinds) >= 5
    with pytest.raises(SystemExit) as ended:
        command_line.dispatch(["score", "--help"])
    listed, mistakes = capsys.readouterr()
    assert (ended.value.code, mistakes) == (0, "")
    for kind in kinds:
        name = kind.__name__.lower()
        assert f"  {name} " in listed
        with pytest.raises(SystemExit) as ended:
            command_line.dispatch(["score", "run", name, "--help"])
        shown = capsys.readouterr().out
        assert ended.value.code == 0
        for field in dataclasses.fields(kind):
            assert f"{field.name.replace('_', '-')}" in shown


def test_a_run_lists_only_the_scorers_that_fit_it(finished, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.dispatch(["score", str(finished), "--help"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    assert "  mahalanobis " in listed
    assert "  reconstruction " not in listed


def test_an_unknown_scorer_is_refused_and_changes_nothing(finished, capsys):
    before = folder.load(finished).system.scorer
    with pytest.raises(SystemExit) as ended:
        command_line.dispatch(["score", str(finished), "nearest"])
    assert ended.value.code == 2
    assert "  knn " in capsys.readouterr().err
    assert folder.load(finished).system.scorer == before


def test_a_scorer_that_fails_leaves_the_numbers_of_the_one_before(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "embeddings" / "pump_section_00.npz").unlink()
    kept = ["config.json", "results.csv", *(p.relative_to(out) for p in out.glob("scores/*"))]
    before = {name: (out / name).read_bytes() for name in kept}
    with pytest.raises(InputError, match=r"pump_section_00\.npz is not there"):
        stages.score(out, Mixture(2))
    assert {name: (out / name).read_bytes() for name in kept} == before


def test_scores_of_other_embeddings_are_not_reported(finished, tmp_path):
    """A run that was killed after it embedded anew."""
    out = shutil.copytree(finished, tmp_path / "run")
    made = folder.load(out)
    group = ("fan", "section_00")
    product, old = made.embeddings(out, group), folder.load_embeddings(out, made, group)
    folder.save_embeddings(product.path, dataclasses.replace(old, values=old.values[::-1]))
    record(product)
    with pytest.raises(InputError, match=f"give `asdjax score {out}`"):
        stages.report(out)
    stages.score(out)
    assert stages.report(out)


def test_a_scorer_that_is_none_is_named(finished, capsys):
    with pytest.raises(SystemExit):
        command_line.dispatch(["score", str(finished), "knnn"])
    assert "this run has no scorer 'knnn'" in capsys.readouterr().err


def test_scores_that_a_kill_cut_short_are_neither_reported_nor_evaluated(
    finished, tmp_path, monkeypatch
):
    out, write = shutil.copytree(finished, tmp_path / "run"), score_files.write_csv

    def killed(path, rows):
        if path.name.startswith("decision_result_pump"):
            raise KeyboardInterrupt
        write(path, rows)

    monkeypatch.setattr(score_files, "write_csv", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.score(out, Knn(k=1))
    with pytest.raises(InputError, match=f"scores is not complete.*give `asdjax score {out}`"):
        stages.report(out)
    with pytest.raises(InputError, match=r"no decision_result_pump_section_00_test\.csv; add it"):
        stages.evaluate(out / "scores", data=finished.parent / "data")


@pytest.mark.parametrize("listed", [True, False])
def test_a_machine_without_a_threshold_needs_no_decisions(finished, tmp_path, listed):
    """It had a single training clip, which cannot be compared with another."""
    scores = shutil.copytree(finished / "scores", tmp_path / "scores")
    (scores / "decision_result_pump_section_00_test.csv").unlink()
    if not listed:
        limits = folder.load_thresholds(scores)
        del limits["pump", "section_00"]
        folder.save_thresholds(scores, limits)
    refused = (
        pytest.raises(InputError, match="no decision_result_pump") if listed else nullcontext()
    )
    with refused:
        stages.evaluate(scores, data=finished.parent / "data")
