"""Ensembles of finished runs: what is written, what depends on what, and what is refused."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from machines import tone_machine
from scipy import stats
from scored_runs import MACHINES, SYSTEM, fan, finish, make_clips, make_run, spoil

from asdjax import __main__ as command_line
from asdjax.metrics import score_files
from asdjax.metrics.official import official_scores
from asdjax.scoring.combine import Ensemble
from asdjax.scoring.knn import Knn
from asdjax.scoring.score import threshold
from asdjax.stages import folder, stages
from asdjax.stages.ensemble import ensemble
from asdjax.types import Embeddings, InputError, Scores


@pytest.fixture
def members(tmp_path) -> list[Path]:
    return [make_run(tmp_path / name, make_clips(), seed) for seed, name in enumerate("abc")]


def read(out: Path) -> dict[tuple[str, str], float]:
    return {(f.machine, n): v for f in files(out) for n, v in zip(f.names, f.values, strict=True)}


def files(out: Path) -> list[Scores]:
    return score_files.load(out / "scores")


def record(out: Path) -> dict:
    return json.loads((out / "ensemble.json").read_text())


def left_out(member: Path, machine: str) -> np.ndarray:
    path = member / f"scores/leave_one_out_{machine}_section_00_train.csv"
    return np.array([float(row.split(",")[1]) for row in path.read_text().split()])


def test_the_score_stage_keeps_leave_one_out_scores(real, tmp_path):
    path = real[0] / fan("leave_one_out")
    rows = [row.split(",") for row in path.read_text().split()]
    made = folder.load(real[0])
    train = [c for c in made.groups["fan", "section_00"] if c.split == "train"]
    assert [name for name, _ in rows] == [c.name for c in train]
    values = folder.load_embeddings(real[0], made, ("fan", "section_00")).select("train").values
    unit = values / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    distance = 1 - unit @ unit.T + 9 * np.eye(len(train))
    # 1e-6: float32 cosines near 1.
    np.testing.assert_allclose([float(v) for _, v in rows], distance.min(0), rtol=0, atol=1e-6)
    assert len(files(real[0])) == 2  # of test clips alone


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> list[Path]:
    """Three runs of frozen/logmel on the same tones; tests must not change them."""
    root = tmp_path_factory.mktemp("real")
    for seed, machine in enumerate(("fan", "pump")):
        tone_machine(root / "data", machine, seed)
    stages.run(replace(SYSTEM, scorer=Knn(k=1)), root / "data", root / "a")
    for name, scorer in (("b", Knn(2, references="domain")), ("c", Knn(standardize="machine"))):
        stages.score(shutil.copytree(root / "a", root / name), scorer)
    return [root / name for name in "abc"]


def test_three_scorers_become_one_system(real, tmp_path, capsys):
    out = tmp_path / "out"
    metrics = ensemble(real, Ensemble(), out)
    assert ("ALL", "official_score", 1.0) in metrics  # the tones are far from everything else
    shown = capsys.readouterr()
    assert "no statistics of test clips used, no labels used" in " ".join(shown.out.split())
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == {
        "ensemble.json",
        "finished.json",
        "results.csv",
        *(
            f"scores/ensemble/{kind}_{machine}_section_00_{split}.csv"
            for kind, split in (
                ("anomaly_score", "test"),
                ("decision_result", "test"),
                ("leave_one_out", "train"),
            )
            for machine in ("fan", "pump")
        ),
    }
    described = record(out)
    assert [m["path"] for m in described["members"]] == list(map(str, real))
    systems = [m["system"] for m in described["members"]]
    assert systems == [json.loads((run / "config.json").read_text())["system"] for run in real]
    assert len({json.dumps(system) for system in systems}) == 3
    (finished,) = json.loads((out / "finished.json").read_text()).values()
    assert len(set(finished["key"]["members"])) == 3  # the scores of each
    assert described["weights"] == [1 / 3] * 3
    assert (described["transductive"], described["labels_used"]) == (False, False)


@pytest.mark.parametrize("transductive", [False, True])
def test_scores_and_decisions_are_weighted_zscores(members, tmp_path, transductive, capsys):
    config = Ensemble(weights=(2, 5, 3), transductive=transductive)
    ensemble(members, config, tmp_path / "out")
    said = capsys.readouterr()
    assert "weights divided by their sum, 10" in said.err
    assert ("no statistics" in said.out) != transductive
    assert "weights as given" in " ".join(said.out.split())
    assert record(tmp_path / "out")["transductive"] == transductive
    got = {f.machine: f for f in files(tmp_path / "out")}
    for machine in ("fan", "pump"):
        names = got[machine].names
        test = [np.array([read(m)[machine, name] for name in names]) for m in members]
        normal = [left_out(m, machine) for m in members]
        by = test if transductive else normal
        want, train = (
            np.average([stats.zmap(x, r) for x, r in zip(of, by, strict=True)], 0, [2, 5, 3])
            for of in (test, normal)
        )
        # 1e-12: the order of float64 sums.
        np.testing.assert_allclose(got[machine].values, want, rtol=0, atol=1e-12)
        limit, _ = threshold(train, challenge=True)  # the runs are of 2024
        np.testing.assert_array_equal(got[machine].decisions, want > limit)


@pytest.mark.parametrize("settings", [{}, {"normalize": "rank"}, {"combine": "minimum"}])
def test_a_score_does_not_depend_on_other_test_clips(members, tmp_path, settings):
    for transductive in (False, True):
        config = Ensemble(**settings, transductive=transductive)
        ensemble(members, config, tmp_path / "before")
        changed = shutil.copytree(members[0], tmp_path / f"changed_{transductive}")
        rows = (changed / fan("anomaly_score")).read_text().split()
        kept = {("fan", row.split(",")[0]) for row in rows[:5]}
        rows[5:] = [f"{row.split(',')[0]},{0.3 * i}" for i, row in enumerate(rows[5:])]
        (changed / fan("anomaly_score")).write_text("\n".join(rows) + "\n")
        finish(changed)
        ensemble([changed, *members[1:]], config, tmp_path / "after")
        before, after = read(tmp_path / "before"), read(tmp_path / "after")
        assert before != after
        differ = {key for key in before if before[key] != after[key]}
        assert bool(differ & kept) == transductive
        assert all(machine == "fan" for machine, _ in differ)


def test_minimum_and_rank(members, tmp_path):
    config = Ensemble(normalize="rank", combine="minimum")
    ensemble(members, config, tmp_path / "out")
    scores = read(tmp_path / "out")
    parts = [(read(m), {name: left_out(m, name) for name in ("fan", "pump")}) for m in members]
    for (machine, name), value in scores.items():
        ranks = [
            stats.percentileofscore(normal[machine], test[machine, name], kind="mean") / 100
            for test, normal in parts
        ]
        assert value == pytest.approx(min(ranks), abs=1e-14)  # division by 100
    assert record(tmp_path / "out")["weights"] is None


def test_order_of_runs_does_not_matter(members, tmp_path):
    ensemble(members, Ensemble(weights=(0.5, 0.3, 0.2)), tmp_path / "one")
    ensemble(members[::-1], Ensemble(weights=(0.2, 0.3, 0.5)), tmp_path / "other")
    one, other = read(tmp_path / "one"), read(tmp_path / "other")
    assert one.keys() == other.keys()
    # 1e-14: the order of three float64 terms of size 1.
    np.testing.assert_allclose([*one.values()], [other[k] for k in one], rtol=0, atol=1e-14)


def groups_of(year: int | None) -> tuple[tuple[tuple[str, str], ...], tuple]:
    section = "id" if year == 2020 else "section"
    groups = (("fan", f"{section}_01"), ("fan", f"{section}_02"), ("pump", f"{section}_00"))
    return groups, (None,) if year == 2020 else ("source", "target")


def total(metrics: list) -> float:
    """Return the official score; 2020: the mean of the two totals."""
    values = {m.metric: m.value for m in metrics if m.machine == "ALL"}
    without = (values["amean_auc"] + values["amean_pauc"]) / 2
    return values.get("official_score", without)


@pytest.mark.parametrize(("year", "normalize"), [(2024, "rank"), (2020, "zscore")])
def test_search_equals_trying_every_ensemble(tmp_path, year, normalize, monkeypatch):
    """Every weight vector as an ensemble of its own, evaluated by the official evaluator."""
    groups, domains = groups_of(year)
    clips = make_clips(groups, domains)
    members = [make_run(tmp_path / name, clips, seed, year) for seed, name in enumerate("abc")]
    found = ensemble(members, Ensemble(search=True, step=0.25, normalize=normalize), tmp_path / "s")
    monkeypatch.setattr(stages.console, "results_table", lambda *_: None)
    tried = {}
    for units in product(range(5), repeat=3):
        if sum(units) == 4:
            config = Ensemble(weights=units, normalize=normalize)
            tried[units] = total(ensemble(members, config, tmp_path / "each"))
    best = max(tried.values())
    # 1e-12: equal but for the order of float64 sums.
    equal = [units for units, value in tried.items() if value > best - 1e-12]
    first = min(equal, key=lambda units: (sum(u * u for u in units), [-u for u in units]))
    assert len(set(tried.values())) > 5
    assert record(tmp_path / "s")["weights"] == [u / 4 for u in first]
    assert total(found) == pytest.approx(best, abs=1e-12)
    assert record(tmp_path / "s")["searched"] == pytest.approx(best, abs=1e-12)


def test_systems_of_low_score_are_left_out_on_request(members, tmp_path, capsys):
    clips = {g: [c for c in make_clips([g]) if c.split == "test"] for g in MACHINES}
    scores = [read(member) for member in members]
    rows = [
        [np.array([own[g[0], c.name] for c in clips[g]])[None] for g in clips] for own in scores
    ]
    official = [official_scores(clips, own, 2024)[0] for own in rows]
    kept = [score >= np.mean(official) for score in official]
    assert 0 < sum(kept) < 3
    ensemble(members, Ensemble(keep="score"), tmp_path / "out")
    shown = capsys.readouterr()
    assert shown.err.count("left out") == 3 - sum(kept)
    assert "systems chosen on the labels" in " ".join(shown.out.split())
    described = record(tmp_path / "out")
    assert described["kept"] == kept
    assert described["labels_used"]
    assert described["weights"] == [k / sum(kept) for k in kept]
    others = [member for member, stays in zip(members, kept, strict=True) if stays]
    if len(others) > 1:
        ensemble(others, Ensemble(), tmp_path / "others")
        assert read(tmp_path / "out") == read(tmp_path / "others")
    heavy = tuple(8.0 if stays else 1.0 for stays in kept)  # the mean is by weight
    ensemble(members, Ensemble(heavy, keep="score"), tmp_path / "heavy")
    mean = np.average(official, weights=heavy)
    assert record(tmp_path / "heavy")["kept"] == [score >= mean for score in official]


def test_systems_of_low_accuracy_are_left_out_on_request(members, tmp_path, monkeypatch):
    """Of the first, embeddings say nothing of machine and section; of the others they say all."""
    rng = np.random.default_rng(0)

    def embeddings(out, run, group):
        values = rng.standard_normal((len(run.groups[group]), 4))
        if out != members[0]:
            values = values / 100 + np.eye(4)[int(group[0] == "fan")]
        return Embeddings(run.groups[group], values.astype(np.float32))

    monkeypatch.setattr(folder, "load_embeddings", embeddings)
    ensemble(members, Ensemble(keep="accuracy"), tmp_path / "out")
    described = record(tmp_path / "out")
    assert described["kept"] == [False, True, True]
    assert described["weights"] == [0, 0.5, 0.5]
    assert not described["labels_used"]
    ensemble(members[1:], Ensemble(), tmp_path / "others")
    assert read(tmp_path / "out") == read(tmp_path / "others")
    other = copied(members[0], tmp_path / "other", "anomaly_score", "leave_one_out")
    with pytest.raises(InputError, match=r"no embeddings to tell the accuracy of .*other"):
        ensemble([*members, other], Ensemble(keep="accuracy"), tmp_path / "none")


def test_a_search_says_that_labels_were_used(members, tmp_path, capsys):
    ensemble(members, Ensemble(search=True, step=0.5), tmp_path / "out")
    assert record(tmp_path / "out")["labels_used"]
    assert "weights chosen on the labels of these clips" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_search_takes_the_machines_that_have_labels(tmp_path, capsys):
    clips = [replace(c, label=None) if c.group[0] == "pump" else c for c in make_clips()]
    members = [make_run(tmp_path / name, clips, seed) for seed, name in enumerate("ab")]
    metrics = ensemble(members, Ensemble(search=True), tmp_path / "out")
    assert {m.machine for m in metrics} == {"fan", "ALL"}
    assert "no official numbers of pump/section_00" in capsys.readouterr().err
    assert {f.machine for f in files(tmp_path / "out")} == {"fan", "pump"}


def test_runs_without_labels_are_combined_but_not_searched(tmp_path):
    clips = [c if c.split == "train" else replace(c, label=None) for c in make_clips()]
    members = [make_run(tmp_path / name, clips, seed) for seed, name in enumerate("ab")]
    assert ensemble(members, Ensemble(), tmp_path / "out") == []
    assert len(files(tmp_path / "out")) == 2
    with pytest.raises(InputError, match=r"this needs labels(.|\n)*pump/section_00"):
        ensemble(members, Ensemble(search=True), tmp_path / "out")
    assert len(files(tmp_path / "out")) == 2  # an error leaves what was there


def test_what_is_combined_is_kept_until_something_changes(members, tmp_path, capsys):
    out = tmp_path / "out"

    def combined_again(config=Ensemble(), **settings) -> bool:  # noqa: B008
        before = (out / "ensemble.json").stat().st_mtime_ns
        again = ensemble(members, config, out, **settings)
        changed = (out / "ensemble.json").stat().st_mtime_ns != before
        assert ("already combined" in capsys.readouterr().err) != changed
        assert again
        return changed

    first = ensemble(members, Ensemble(), out)
    capsys.readouterr()
    (out / "results.csv").unlink()
    assert not combined_again()
    assert (out / "results.csv").is_file()
    assert ensemble(members, Ensemble(), out) == first
    capsys.readouterr()
    assert combined_again(force=True)
    assert combined_again(Ensemble(normalize="rank"))
    assert combined_again()
    spoil(members[1] / fan("leave_one_out"), ",0.25", ",0.5")
    finish(members[1])
    assert combined_again()
    for member in members:  # other labels
        clips = json.loads((member / "clips.json").read_text())
        first = next(clip for clip in clips if clip["split"] == "test")
        first["label"] = 1 - first["label"]
        (member / "clips.json").write_text(json.dumps(clips))
    assert combined_again()
    (out / "ensemble.json").write_text("{")
    assert combined_again()


def test_a_refused_ensemble_writes_nothing(members, tmp_path):
    with pytest.raises(InputError, match="two or more different runs"):
        ensemble(members[:1], Ensemble(), tmp_path / "out")
    with pytest.raises(InputError, match="expected 2 weights, one per run, got 3"):
        ensemble(members[:2], Ensemble(weights=(1, 1, 1)), tmp_path / "out")
    with pytest.raises(InputError, match="a holds a run; give the ensemble a folder of its own"):
        ensemble(members, Ensemble(), members[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("transductive", [False, True])
def test_scores_that_do_not_vary_set_no_scale(members, tmp_path, transductive):
    path = members[1] / fan("anomaly_score" if transductive else "leave_one_out")
    path.write_text("".join(f"{row.split(',')[0]},0.5\n" for row in path.read_text().split()))
    finish(members[1])
    for normalize in ("zscore", "rank"):
        with pytest.raises(InputError, match="do not vary") as refused:
            ensemble(members, Ensemble(normalize=normalize, transductive=transductive), tmp_path)
        assert f"  {members[1]}: fan/section_00" in str(refused.value)
    ensemble(members, Ensemble(transductive=not transductive), tmp_path / "out")


def copied(member: Path, to: Path, *kinds: str) -> Path:
    """Return a folder with some of a run's score files, as another program would write them."""
    to.mkdir()
    for kind in kinds:
        for path in (member / "scores").glob(f"{kind}*.csv"):
            shutil.copy(path, to)
    return to


def read_results(out: Path) -> set[tuple[str, str, float]]:
    rows = [row.split(",") for row in (out / "results.csv").read_text().split("\n")[1:] if row]
    return {(machine, metric, float(value)) for machine, metric, value in rows}


def test_score_files_of_another_system_count_as_its_run_does(members, tmp_path):
    other = copied(members[2], tmp_path / "other", "anomaly_score", "leave_one_out")
    ensemble(members, Ensemble(), tmp_path / "runs")
    ensemble([*members[:2], other], Ensemble(), tmp_path / "mixed")
    assert read(tmp_path / "mixed") == read(tmp_path / "runs")
    for one, two in zip(files(tmp_path / "mixed"), files(tmp_path / "runs"), strict=True):
        np.testing.assert_array_equal(one.decisions, two.decisions)
    assert record(tmp_path / "mixed")["members"][2] == {"path": str(other), "system": None}


def test_without_scores_of_training_clips_it_is_transductive_or_refused(members, tmp_path, capsys):
    other = copied(members[2], tmp_path / "other", "anomaly_score")
    mixed = [*members[:2], other]
    with pytest.raises(InputError, match=r"clips in .*other.*fan_section_00_train.*--tran"):
        ensemble(mixed, Ensemble(), tmp_path / "out")
    assert not (tmp_path / "out" / "scores").exists()
    metrics = ensemble(mixed, Ensemble(transductive=True), tmp_path / "out")
    assert ("ALL", "transductive", 1.0) in read_results(tmp_path / "out")
    assert "no decisions: not all" in " ".join(capsys.readouterr().err.split())
    assert all(file.decisions is None for file in files(tmp_path / "out"))
    assert "official_score" in {metric.metric for metric in metrics}
    ensemble(members, Ensemble(transductive=True), tmp_path / "runs")
    assert read(tmp_path / "out") == read(tmp_path / "runs")


def test_an_ensemble_may_be_a_member_and_keeps_its_marks(members, tmp_path, capsys):
    ensemble(members[:2], Ensemble(transductive=True, search=True), tmp_path / "two")
    ensemble([members[2], tmp_path / "two"], Ensemble(), tmp_path / "out")
    assert record(tmp_path / "out")["transductive"]
    assert record(tmp_path / "out")["labels_used"]
    capsys.readouterr()
    ensemble([members[2], tmp_path / "two"], Ensemble(), tmp_path / "out")  # as it was
    shown = " ".join(capsys.readouterr().out.split())
    assert "labels of these clips used by a system" in shown
    described = tmp_path / "two" / "ensemble.json"
    text = described.read_text()
    for changed, told in (
        ("{", "is damaged"),
        (text.replace("2024", "2023"), "year 2023, the run"),
    ):
        described.write_text(changed)
        with pytest.raises(InputError, match=told):
            ensemble([members[2], tmp_path / "two"], Ensemble(), tmp_path / "new")
    described.write_text(text)
    with pytest.raises(InputError, match="expected a run of asdjax among them, got score files"):
        ensemble([tmp_path / "two", tmp_path / "out"], Ensemble(), tmp_path / "three")


def test_scores_of_training_clips_that_are_given_twice_are_refused(members, tmp_path):
    other = copied(members[2], tmp_path / "other", "anomaly_score", "leave_one_out")
    path = other / Path(fan("leave_one_out")).name
    text = path.read_text()
    path.write_text(text + text.split("\n")[0] + "\n")
    with pytest.raises(InputError, match="expected one number for each clip"):
        ensemble([members[0], other], Ensemble(), tmp_path / "out")
    path.write_text(text)
    (other / "more").mkdir()
    shutil.copy(path, other / "more")
    with pytest.raises(InputError, match="expected scores of the same clips once"):
        ensemble([members[0], other], Ensemble(), tmp_path / "out")


def test_scores_of_other_clips_are_refused(members, tmp_path):
    other = copied(members[2], tmp_path / "other", "anomaly_score", "leave_one_out")
    for kind, told in (("anomaly_score", "missing in the scores"), ("leave_one_out", "or none")):
        path = other / Path(fan(kind)).name
        rows = path.read_text().split()
        path.write_text("\n".join(rows[1:]) + "\n")
        with pytest.raises(InputError, match=told) as refused:
            ensemble([members[0], other], Ensemble(), tmp_path / "out")
        assert rows[0].split(",")[0] in str(refused.value)
        path.write_text("\n".join(rows) + "\n")


def test_2021_has_a_score_file_per_domain(tmp_path):
    clips = make_clips((("fan", "section_03"),))
    members = [make_run(tmp_path / name, clips, seed, 2021) for seed, name in enumerate("ab")]
    metrics = ensemble(members, Ensemble(search=True), tmp_path / "out")
    assert "official_score" in {m.metric for m in metrics}
    assert [f.domain for f in files(tmp_path / "out")] == ["source", "target"]


def test_command_line(members, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--weights", "0.25", "0.25", "0.5", "--normalize", "rank", "--transductive"]
    command_line.dispatch(["ensemble", *map(str, members), "--out", str(out), *words])
    assert "official score" in capsys.readouterr().out
    config = record(out)["config"]
    assert (config["weights"], config["normalize"]) == ([0.25, 0.25, 0.5], "rank")
    assert config["transductive"]
    words = ["--search", "--step", "0.5", "--force"]
    command_line.dispatch(["ensemble", *map(str, members), "--out", str(out), *words])
    assert record(out)["labels_used"]
    for words in (
        ["--weights", "-1", "1"],
        ["--search", "--combine", "minimum"],
        ["--step", "0.3"],
    ):
        with pytest.raises(InputError, match=r"weights|step"):
            command_line.dispatch(["ensemble", *map(str, members), "--out", str(out), *words])
