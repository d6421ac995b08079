"""Runs beside each other: what the command prints, writes and refuses."""

from pathlib import Path

import pytest
from scored_runs import make_clips, make_flipped, make_run

from asdjax.__main__ import dispatch
from asdjax.files import read_csv
from asdjax.scoring.combine import Ensemble
from asdjax.stages.compare import compare
from asdjax.stages.ensemble import ensemble
from asdjax.types import InputError


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [make_run(tmp_path / name, make_clips(), seed) for seed, name in enumerate("ab")]


def official(path: Path) -> dict[str, float]:
    """Return the score of each machine and of all, from `results.csv`."""
    rows = read_csv(path / "results.csv")[1:]
    values = {(machine, metric): float(value) for machine, metric, value in rows}
    machines = {machine for machine, metric in values if metric == "auc_source"}
    areas = "auc_source", "auc_target", "pauc"
    found = {m: 3 / sum(1 / values[m, name] for name in areas) for m in machines}
    return found | {"ALL": values["ALL", "official_score"]}


def test_the_table_and_the_csv_have_the_official_scores(runs, tmp_path, capsys):
    ensemble(runs, Ensemble(), tmp_path / "both")
    out = tmp_path / "compared.csv"
    paths = [*runs, tmp_path / "both"]
    dispatch(["compare", *map(str, paths), "--out", str(out), "--times", "200"])
    heading, *values = read_csv(out)
    rows = [dict(zip(heading, row, strict=True)) for row in values]
    assert {row["machine"] for row in rows} == {"fan", "pump", "ALL"}
    for row in rows:
        score, more = float(row["score"]), float(row["more"])
        assert float(row["low"]) < score < float(row["high"])
        first = next(r for r in rows if r["machine"] == row["machine"])
        assert more == pytest.approx(score - float(first["score"]), abs=1e-12)
        assert float(row["more_low"]) <= more <= float(row["more_high"])
    both = {row["machine"]: float(row["score"]) for row in rows if row["system"] == str(paths[2])}
    assert both == pytest.approx(official(paths[2]), abs=1e-12)
    shown = capsys.readouterr().out
    assert f"{100 * both['ALL']:.2f}" in shown
    assert "95 % intervals over clips" in shown


def test_systems_that_used_test_clips_are_marked(runs, tmp_path, capsys):
    ensemble(runs, Ensemble(search=True, transductive=True), tmp_path / "both")
    found = compare([*runs, tmp_path / "both"], times=100)
    marks = {row.system: row.used for row in found}
    assert marks == {
        str(runs[0]): "",
        str(runs[1]): "",
        str(tmp_path / "both"): "statistics and labels",
    }
    assert "(statistics and labels" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="two or more different runs"):
        compare(runs[:1])
    with pytest.raises(InputError, match="--times: expected 100 or more, got 3"):
        compare(runs, times=3)
    other = make_run(tmp_path / "other", make_flipped(make_clips()), 1)
    with pytest.raises(InputError, match="labels or domains differ"):
        compare([*runs, other])
    with pytest.raises(InputError, match="expected a run's folder, got"):
        compare([*runs, tmp_path / "none"])
    domainless = make_clips(domains=("source",))
    bare = [make_run(tmp_path / name, domainless, seed, 2024) for seed, name in enumerate("xy")]
    with pytest.raises(InputError, match="this needs labels; give the runs --ground-truth"):
        compare(bare)
