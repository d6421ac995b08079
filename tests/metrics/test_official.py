"""The evaluator's own numbers, a naive oracle for every edition, and properties of the rules."""

import csv
import statistics
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from asdjax.metrics import score_files
from asdjax.metrics.official import evaluate, harmonic_mean, official_scores
from asdjax.types import Clip, InputError, Scores

EPS = sys.float_info.epsilon
SIDES = ("source", "target")
MEASURES = ("auc", "pauc", "precision", "recall", "f1")


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def sample(golden) -> Path:
    return golden / "evaluator_sample"


def sample_clips(sample: Path) -> list[Clip]:
    """Join the sample's three ground-truth csv by name."""
    clips = []
    for machine in ("ToyTank", "shaker"):
        tables = (
            dict(
                read_rows(
                    sample / f"ground_truth_{what}/ground_truth_{machine}_section_00_test.csv"
                )
            )
            for what in ("data", "domain", "attributes")
        )
        label, domain, full = tables
        clips += [
            Clip(
                path=Path(machine) / "test" / name,
                machine=machine,
                section="section_00",
                split="test",
                domain=SIDES[int(domain[name])],
                label=int(label[name]),
                full_name=full[name],
            )
            for name in label
        ]
    return clips


@pytest.mark.parametrize("year", [2023, 2024, 2025, 2026, None])
def test_official_evaluator_is_reproduced_in_every_row(sample, year):
    expected = read_rows(sample / "official_long.csv")[1:]
    metrics = evaluate(score_files.load(sample / "scores"), sample_clips(sample), year)
    assert [m[:2] for m in metrics] == [(machine, metric) for machine, metric, _ in expected]
    # 1e-9 relative, for the interval (1e-4) too: only the order of float64 sums may differ
    for metric, (_, _, value) in zip(metrics, expected, strict=True):
        assert metric.value == pytest.approx(float(value), rel=1e-9, abs=0), metric


def test_full_names_give_the_same_numbers(sample):
    clips = sample_clips(sample)
    full = {(clip.machine, clip.name): clip.full_name for clip in clips}
    released = score_files.load(sample / "scores")
    for suffix in ("", ".wav"):
        renamed = [
            Scores(
                s.machine,
                s.section,
                tuple(full[s.machine, name] + suffix for name in s.names),
                s.values,
                s.decisions,
            )
            for s in released
        ]
        assert evaluate(renamed, clips, 2023) == evaluate(released, clips, 2023)


def test_full_names_are_refused_before_2023(sample):
    """The full names published for 2022 contradict the labels of two machines."""
    clips = [replace(clip, full_name=f"full_{clip.name}") for clip in sample_clips(sample)]
    files = score_files.load(sample / "scores")
    files = [replace(s, names=tuple(f"full_{name}" for name in s.names)) for s in files]
    assert len(evaluate(files, clips, 2023)) > 0
    with pytest.raises(InputError, match="unknown: full_section"):
        evaluate(files, clips, 2022)


# A naive oracle: every definition written out with loops over clips, no arrays, no masks.


def naive_auc(rows: list[tuple]) -> float:
    """rows: (label, domain, score, decision)."""
    pairs = [(a[2], n[2]) for a, n in product(rows, rows) if a[0] == 1 and n[0] == 0]
    return sum(1.0 if a > n else 0.5 if a == n else 0.0 for a, n in pairs) / len(pairs)


def naive_pauc(rows: list[tuple]) -> float:
    """Integrate the ROC polygon segment by segment up to FPR 0.1."""
    normals, anomalies = [[r[2] for r in rows if r[0] == c] for c in (0, 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted({r[2] for r in rows}, reverse=True):
        fpr = sum(s >= threshold for s in normals) / len(normals)
        points.append((fpr, sum(s >= threshold for s in anomalies) / len(anomalies)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        end = min(x1, 0.1)
        if x0 < end:
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return 0.5 * (1 + (area - 0.005) / (0.1 - 0.005))


def naive_decisions(rows: list[tuple]) -> dict[str, float]:
    tp = sum(r[0] == 1 and r[3] == 1 for r in rows)
    fp = sum(r[0] == 0 and r[3] == 1 for r in rows)
    fn = sum(r[0] == 1 and r[3] == 0 for r in rows)
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def naive_hmean(values) -> float:
    return statistics.harmonic_mean([max(v, EPS) for v in values])


def naive_half_width(rows: list[tuple]) -> float:
    from scipy import stats

    widths = []
    for measure in (naive_auc, naive_pauc):
        points = [measure(rows[:i] + rows[i + 1 :]) for i in range(len(rows))]
        t = stats.t.ppf(0.975, len(rows) - 1)
        widths.append(t * statistics.stdev(points) / len(rows) ** 0.5)
    return sum(widths) / 2


def naive_section(rows: list[tuple], year: int) -> dict[str, float]:
    """Return the named values of one section."""
    of = {side: [r for r in rows if r[1] == side] for side in SIDES}
    if year == 2020:
        return {"auc": naive_auc(rows), "pauc": naive_pauc(rows)}
    values = {}
    if year == 2021:
        values |= {f"auc_{side}": naive_auc(of[side]) for side in SIDES}
        values |= {f"pauc_{side}": naive_pauc(of[side]) for side in SIDES}
    else:
        values["auc_all"] = naive_auc(rows)
        for side in SIDES:
            normals = [r for r in of[side] if r[0] == 0]
            values[f"auc_{side}"] = naive_auc(normals + [r for r in rows if r[0] == 1])
        values["pauc"] = naive_pauc(rows)
    for name in MEASURES[2:]:
        values |= {f"{name}_{side}": naive_decisions(of[side])[name] for side in SIDES}
    return values


def naive_means(sections: list[dict[str, float]], year: int) -> dict[str, float]:
    if year == 2020:
        return {f"amean_{m}": statistics.fmean(v[m] for v in sections) for m in ("auc", "pauc")}
    means = {}
    for kind, sides in [
        ("amean", SIDES),
        ("hmean", SIDES),
        ("hmean_source", SIDES[:1]),
        ("hmean_target", SIDES[1:]),
    ]:
        for m in MEASURES:
            key = "pauc" if m == "pauc" and year > 2021 else None
            values = [v[key or f"{m}_{side}"] for v in sections for side in sides]
            means[f"{kind}_{m}"] = (statistics.fmean if kind == "amean" else naive_hmean)(values)
    return means


def naive_evaluate(rows: dict[tuple[str, str], list[tuple]], year: int) -> list[tuple]:
    """Return (machine, metric, value) rows of the whole data set."""
    sections = {group: naive_section(rows[group], year) for group in sorted(rows)}
    result, machine_means = [], []
    for machine in sorted({machine for machine, _ in rows}):
        own = {section: v for (m, section), v in sections.items() if m == machine}
        for section, values in own.items():
            name = machine if year >= 2023 else f"{machine}/{section}"
            result += [(name, key, value) for key, value in values.items()]
        machine_means.append(naive_means(list(own.values()), year))
        result += [(machine, key, value) for key, value in machine_means[-1].items()]
    if year == 2020:
        total = {k: statistics.fmean(m[k] for m in machine_means) for k in machine_means[0]}
    else:
        total = naive_means(list(sections.values()), year)
        wanted = [f"auc_{s}" for s in SIDES]
        wanted += [f"pauc_{s}" for s in SIDES] if year == 2021 else ["pauc"]
        total["official_score"] = naive_hmean(v[k] for v in sections.values() for k in wanted)
    if year >= 2022:
        total["official_score_ci95"] = naive_half_width([r for part in rows.values() for r in part])
    return result + [("ALL", key, value) for key, value in total.items()]


def made(year: int, seed: int = 0) -> dict[tuple[str, str], list[tuple]]:
    """Return (label, domain, score, decision) rows with many ties, unbalanced, per section."""
    rng = np.random.default_rng([year, seed])
    machines = ("fan", "ToyCar", "3DPrinter")
    sections = {2020: ("id_01", "id_03"), 2021: ("section_03", "section_04", "section_05")}
    sections[2022] = sections[2021]
    groups = list(product(machines, sections.get(year, ("section_00",))))
    if year == 2020:
        groups.append(("fan", "id_05"))  # machines with different numbers of IDs
    table = {}
    for group in groups:
        kinds = [(0, "source")] * rng.integers(2, 9) + [(1, "source")] * rng.integers(2, 9)
        kinds += [(0, "target")] * rng.integers(2, 9) + [(1, "target")] * rng.integers(2, 9)
        table[group] = [
            (label, domain, float(rng.integers(0, 7)) + label, int(rng.integers(0, 2)))
            for label, domain in kinds
        ]
    return table


def as_input(rows: dict[tuple[str, str], list[tuple]], year: int | None, decided: bool = True):
    """Return shuffled score files (2021: one per domain) and clips of `made` rows."""
    rng = np.random.default_rng(1)
    scores, clips = [], []
    for (machine, section), part in rows.items():
        names = [f"{section}_{r[1]}_{i:04}.wav" for i, r in enumerate(part)]
        clips += [
            Clip(
                path=Path(machine, name),
                machine=machine,
                section=section,
                split="test",
                domain=None if year == 2020 else r[1],
                label=r[0],
            )
            for name, r in zip(names, part, strict=True)
        ]
        for side in SIDES if year == 2021 else (None,):
            order = [i for i in rng.permutation(len(part)) if side in (None, part[i][1])]
            values = np.array([part[i][2] for i in order])
            decisions = np.array([part[i][3] for i in order]) if decided and year != 2020 else None
            name = tuple(names[i] for i in order)
            scores.append(Scores(machine, section, name, values, decisions, side))
    return scores[::-1], clips


def assert_same(metrics, expected):
    assert [tuple(m[:2]) for m in metrics] == [tuple(e[:2]) for e in expected]
    for metric, (_, _, value) in zip(metrics, expected, strict=True):
        # float64 sums of a few hundred terms in another order
        assert metric.value == pytest.approx(value, rel=1e-10, abs=1e-14), metric


@pytest.mark.parametrize("year", range(2020, 2027))
@pytest.mark.parametrize("seed", range(3))
def test_every_edition_equals_the_naive_oracle(year, seed):
    rows = made(year, seed)
    assert_same(evaluate(*as_input(rows, year), year), naive_evaluate(rows, year))


def test_without_a_year_clips_without_domains_follow_2020():
    rows = made(2023)
    scores, clips = as_input(rows, 2020)  # no domains, one section per machine
    metrics = evaluate(scores, clips, None)
    expected = [(m.removesuffix("/section_00"), k, v) for m, k, v in naive_evaluate(rows, 2020)]
    assert_same(metrics, expected)


def test_own_folder_with_decisions_gets_them_over_all_clips():
    rows = {("pump", "section_00"): made(2023)["fan", "section_00"]}
    (scores,), clips = as_input(rows, 2020)
    decisions = np.array([rows["pump", "section_00"][int(n[-8:-4])][3] for n in scores.names])
    decided = Scores("pump", "section_00", scores.names, scores.values, decisions)
    metrics = {m[:2]: m.value for m in evaluate([decided], clips, None)}
    for name, value in naive_decisions(rows["pump", "section_00"]).items():
        for row in [("pump", name), ("pump", f"amean_{name}"), ("ALL", f"amean_{name}")]:
            assert metrics[row] == pytest.approx(value, abs=1e-15)


def test_domain_rule_of_2021_and_2022_by_hand():
    """Scores rise: source normal, source anomaly, target normal, target anomaly."""
    rows = {
        ("fan", "section_03"): [
            (0, "source", 0.0, 0),
            (1, "source", 1.0, 1),
            (0, "target", 2.0, 1),
            (1, "target", 3.0, 1),
        ]
    }
    old = {m[:2]: m.value for m in evaluate(*as_input(rows, 2021), 2021)}
    new = {m[:2]: m.value for m in evaluate(*as_input(rows, 2022), 2022)}
    name = "fan/section_03"
    assert (old[name, "auc_source"], old[name, "auc_target"]) == (1, 1)
    assert (new[name, "auc_source"], new[name, "auc_target"]) == (1, 0.5)
    assert new[name, "auc_all"] == 0.75
    # Up to FPR 0.1 half the anomalies are found: (0.05 - 0.005) / 0.095 = 9 / 19
    assert new[name, "pauc"] == pytest.approx(14 / 19, abs=1e-15)
    assert old["ALL", "official_score"] == pytest.approx(1, abs=1e-15)
    assert new["ALL", "official_score"] == pytest.approx(3 / (1 + 2 + 19 / 14), abs=1e-15)
    for metrics in (old, new):  # decisions stay within their domain in both
        assert metrics[name, "precision_source"] == 1
        assert metrics[name, "precision_target"] == 0.5
        assert metrics[name, "recall_target"] == 1


@pytest.mark.parametrize("year", [2020, 2021, 2022, 2024])
def test_monotone_transform_changes_nothing(year):
    scores, clips = as_input(made(year), year)
    moved = [
        Scores(s.machine, s.section, s.names, np.exp(s.values) - 5, s.decisions, s.domain)
        for s in scores
    ]
    assert evaluate(moved, clips, year) == evaluate(scores, clips, year)


@pytest.mark.parametrize("year", [2020, 2021])
def test_swapped_labels_mirror_the_auc(year):
    rows = made(year)
    swapped = {g: [(1 - r[0], *r[1:]) for r in part] for g, part in rows.items()}
    metrics, mirrored = (evaluate(*as_input(r, year), year) for r in (rows, swapped))
    pairs = [
        (a.value, b.value)
        for a, b in zip(metrics, mirrored, strict=True)
        if a.metric in ("auc", "auc_source", "auc_target", "amean_auc")
    ]
    assert len(pairs) > 6
    for value, mirror in pairs:
        assert value + mirror == pytest.approx(1, abs=1e-14)


def test_an_auc_of_zero_keeps_a_score_of_about_n_eps():
    rows = made(2023)
    count = 3 * len(rows)
    group = next(iter(rows))
    rows[group] = [(r[0], r[1], 99.0 if r[:2] == (0, "source") else r[2], 0) for r in rows[group]]
    metrics = {m[:2]: m.value for m in evaluate(*as_input(rows, 2023), 2023)}
    assert metrics[group[0], "auc_source"] == 0
    assert metrics["ALL", "official_score"] == pytest.approx(count * EPS, rel=1e-12)
    # no clip of this machine was called anomalous: the same floor, over both domains
    assert metrics[group[0], "hmean_f1"] == pytest.approx(EPS, rel=1e-12)
    assert metrics["ALL", "hmean_recall"] == pytest.approx(count / 3 * EPS, rel=1e-12)


PUBLISHED = {  # baseline systems: AUC source, AUC target, pAUC of each machine; official score
    "2024 MSE": (
        (0.7912, 0.6500, 0.6916, 0.7658, 0.8602, 0.6224, 0.7504, 0.6596, 0.7070),
        (0.4796, 0.4824, 0.5374, 0.5266, 0.4388, 0.4598, 0.6948, 0.4152, 0.6352),
        (
            *(0.494211, 0.554737, 0.501053, 0.500000, 0.502105),
            *(0.516316, 0.527368, 0.511579, 0.555789),
        ),
        0.5650830191796572,
    ),
    "2026 MAHALA": (
        (0.7276, 0.4398, 0.6034, 0.6766, 0.6980),
        (0.5428, 0.3940, 0.4376, 0.8720, 0.4510),
        (0.592632, 0.527895, 0.505789, 0.638947, 0.494737),
        0.5476277174340481,
    ),
}


@pytest.mark.parametrize("system", PUBLISHED)
def test_published_totals_are_the_harmonic_mean_of_published_values(system):
    *columns, score = PUBLISHED[system]
    # The table has six digits; the mean is at most as far off as its farthest value.
    assert harmonic_mean(np.concatenate(columns)) == pytest.approx(score, abs=1e-6)


def test_no_decisions_no_rows_for_them():
    rows = made(2024)
    expected = [
        row
        for row in naive_evaluate(rows, 2024)
        if not any(name in row[1] for name in ("precision", "recall", "f1"))
    ]
    assert_same(evaluate(*as_input(rows, 2024, decided=False), 2024), expected)


def test_a_mean_of_decisions_needs_them_everywhere():
    scores, clips = as_input(made(2024), 2024)
    scores[0] = Scores(scores[0].machine, "section_00", scores[0].names, scores[0].values)
    names = {m[:2] for m in evaluate(scores, clips, 2024)}
    assert (scores[0].machine, "f1_source") not in names
    assert (scores[1].machine, "hmean_f1") in names
    assert ("ALL", "hmean_f1") not in names
    assert ("ALL", "hmean_auc") in names


def test_a_2023_machine_with_two_sections_names_them():
    rows = made(2022)
    names = {m.machine for m in evaluate(*as_input(rows, 2023), 2023)}
    assert names == {"ALL", *(m for m, _ in rows), *("/".join(group) for group in rows)}


def test_one_class_is_refused_for_every_set_at_once():
    rows = made(2021)
    groups = list(rows)
    rows[groups[0]] = [r for r in rows[groups[0]] if r[:2] != (1, "target")]
    rows[groups[4]] = [r for r in rows[groups[4]] if r[:2] != (0, "source")]
    with pytest.raises(InputError) as error:
        evaluate(*as_input(rows, 2021), 2021)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 2
    assert "/".join(groups[0]) in lines[1]
    assert "auc_target needs both" in lines[1]
    assert " 0 anomalous" in lines[1]
    assert "/".join(groups[4]) in lines[0]
    assert "auc_source needs both, has 0 normal" in lines[0]


def test_since_2022_a_domain_may_lack_anomalies_of_its_own():
    rows = made(2022)
    group = next(iter(rows))
    rows[group] = [r for r in rows[group] if r[:2] != (1, "target")]
    assert_same(evaluate(*as_input(rows, 2022), 2022), naive_evaluate(rows, 2022))


def test_hidden_domains_are_refused_where_the_rule_needs_them():
    scores, clips = as_input(made(2023), 2020)
    with pytest.raises(InputError, match=r"(?s)rule of 2024.*fan/section_00: \d+ clips have no"):
        evaluate(scores, clips, 2024)


def test_unknown_year_is_refused():
    with pytest.raises(InputError, match="2020 to 2026, got 2019"):
        evaluate([], [], 2019)


# Many systems at once

SYSTEMS = 6


def make_clips(machine: str, section: str, domains: tuple) -> list[Clip]:
    return [
        Clip(Path(f"{section}_{domain}_{label}_{i}.wav"), machine, section, "test", domain, label)
        for domain, label, i in product(domains, (0, 1), range(8))
    ]


def official_score(clips: list[Clip], scores: list[Scores], year: int | None) -> float:
    """Return the official score; 2020: the mean of the two totals."""
    values = {m.metric: m.value for m in evaluate(scores, clips, year) if m.machine == "ALL"}
    without = (values["amean_auc"] + values["amean_pauc"]) / 2
    return values.get("official_score", without)


@pytest.mark.parametrize("year", [2020, 2021, 2022, 2024, None])
def test_many_official_scores_at_once_are_the_evaluators(year):
    kind, domains = ("id", (None,)) if year == 2020 else ("section", ("source", "target"))
    groups = (("fan", f"{kind}_01"), ("fan", f"{kind}_02"), ("pump", f"{kind}_00"))
    own = {group: make_clips(*group, domains) for group in groups}
    clips = [clip for of in own.values() for clip in of]
    rng = np.random.default_rng(0)
    scores = [rng.integers(0, 9, (SYSTEMS, len(of))) / 4 for of in own.values()]  # with ties
    want = []
    for i in range(SYSTEMS):
        files = [
            Scores(*group, tuple(clip.name for clip in of), values[i])
            for (group, of), values in zip(own.items(), scores, strict=True)
        ]
        want.append(official_score(clips, files, year))
    # 1e-12: the order of float64 sums.
    np.testing.assert_allclose(official_scores(own, scores, year), want, rtol=0, atol=1e-12)
    assert len(set(want)) == SYSTEMS
