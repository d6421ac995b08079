"""The official numbers of DCASE Task 2, 2020-2026, as `(machine, metric, value)` rows.

    rows of a section    2020: auc, pauc
                         2021: {auc,pauc,precision,recall,f1}_{source,target}
                         2022-: auc_all, {auc,precision,recall,f1}_{source,target}, pauc
    rows of a machine    {amean,hmean,hmean_source,hmean_target}_{auc,pauc,precision,recall,f1}
    rows of "ALL"        the same over everything, official_score, and since 2022 its ..._ci95

A domain's AUC takes its normal clips against the anomalies of that domain in 2021, of both domains
since 2022, when pAUC became one number per section. The official score is the harmonic mean of a
section's AUC and pAUC values over all sections, each once: four in 2021, three since.

A section is called `ToyTank` from 2023 on (`ToyTank/section_00` if the machine has several),
`ToyCar/section_03` in 2021 and 2022, and `fan/id_01` in 2020. Without decisions there are no rows
for precision, recall and F1; a mean of theirs needs decisions in all its sections.

2020 has no official total: only `amean_auc` and `amean_pauc` (over a machine's IDs), and for
"ALL" the mean of those over the machines. The 2022 evaluator slices a machine's source and
target harmonic means wrongly (of sections 03, 04, 05, "source" is 03 alone); the rows
hmean_source_* and hmean_target_* of a 2022 machine are the right ones and so differ from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from asdjax.metrics.auc import auc, aucs, pauc, paucs, replicate_half_width
from asdjax.metrics.pairing import Table, pair
from asdjax.types import ANOMALY, NORMAL, Clip, InputError, Scores

EPS = sys.float_info.epsilon  # the evaluators' floor below harmonic means and divisors
MEASURES = ("auc", "pauc", "precision", "recall", "f1")
DOMAINS = ("source", "target")
TOTAL = "ALL"


class Metric(NamedTuple):
    machine: str
    metric: str
    value: float


def evaluate(scores: Sequence[Scores], clips: Sequence[Clip], year: int | None) -> list[Metric]:
    """Return every number of the edition's evaluator, machines in ASCII order, then "ALL".

    Args:
      scores: score files, rows named after the clips; from 2023 on full names will do too.
      clips: train and unlabelled clips among them do not count.
      year: the edition. None: the rule of 2023 where clips have domains, else that of 2020.
    Raises:
      InputError: names that do not match, a class or a domain missing in a section.
    """
    check_year(year)
    # In 2022 the published full names of ToyCar and ToyTrain contradict the labels.
    tables = pair(scores, clips, full_names=year is None or year >= 2023)
    rule = _rule_of(tables, year)
    if problems := {group: found for group, t in tables.items() if (found := _lacks(t, rule))}:
        lines = [f"{'/'.join(group)}: {', '.join(found)}" for group, found in problems.items()]
        head = f"cannot evaluate by the rule of {rule}; add labelled clips or leave the machine out"
        raise InputError(head + ":\n  " + "\n  ".join(lines))
    sections = {group: _section(table, rule) for group, table in tables.items()}
    metrics = []
    for machine, groups in groupby(sections, key=lambda group: group[0]):
        own = {section: sections[machine, section] for _, section in groups}
        plain = len(own) == 1 and (year is None or year >= 2023)
        for section, values in own.items():
            metrics += _rows(machine if plain else f"{machine}/{section}", values)
        metrics += _rows(machine, _means(list(own.values()), rule))
    return metrics + _rows(TOTAL, _totals(tables, sections, rule))


def check_year(year: int | None) -> None:
    """Refuse a year without an edition; None is none in particular."""
    if year is not None and not 2020 <= year <= 2026:
        raise InputError(f"expected a year from 2020 to 2026, got {year}")


def lacking(clips: Sequence[Clip], year: int | None) -> dict[tuple[str, str], str]:
    """Return why a machine type and section has no official numbers, for those that cannot have.

    Args: as `evaluate`; no scores are needed.
    """
    groups: dict[tuple[str, str], list[Clip]] = {clip.group: [] for clip in clips}
    for clip in clips:
        if clip.split == "test" and clip.label is not None:
            groups[clip.group].append(clip)
    tables = {group: _label_table(labelled) for group, labelled in groups.items() if labelled}
    rule = _rule_of(tables, year)
    lacks = {group: _lacks(table, rule) for group, table in tables.items()}
    reasons = {group: lacks.get(group, ["no labelled test clip"]) for group in groups}
    return {group: ", ".join(found) for group, found in reasons.items() if found}


def _label_table(clips: Sequence[Clip]) -> Table:
    """Return the table of labelled clips that no system has scored: every score is 0."""
    label = np.array([clip.label for clip in clips])
    domain = np.array([clip.domain or "" for clip in clips])
    return Table(label, domain, score=np.zeros(len(clips)), decision=None)


def _rule_of(tables: Mapping[tuple[str, str], Table], year: int | None) -> int:
    """Return the edition whose rule applies; arguments as `evaluate`, after `pair`."""
    with_domains = any((table.domain != "").any() for table in tables.values())
    return year or (2023 if with_domains else 2020)


def harmonic_mean(values: Sequence[float]) -> float:
    """Return n / sum(1 / max(v, EPS)): the official score is this of its AUCs and pAUCs."""
    return float(len(values) / np.sum(1 / np.maximum(values, EPS)))


def _rows(name: str, values: Mapping[str, float]) -> list[Metric]:
    return [Metric(name, metric, float(value)) for metric, value in values.items()]


def _clip_sets(table: Table, rule: int) -> tuple[dict[str, np.ndarray], ...]:
    """Return the clips `[n] bool` that AUC, pAUC and decisions use, by the suffix of their rows."""
    section = {"": np.ones(len(table.label), dtype=bool)}
    if rule == 2020:
        return section, section, section
    domains = {f"_{domain}": table.domain == domain for domain in DOMAINS}
    if rule == 2021:
        return domains, domains, domains
    anomaly = table.label == ANOMALY
    ranked = {suffix: mask | anomaly for suffix, mask in domains.items()}
    return {"_all": section[""], **ranked}, section, domains


def _lacks(table: Table, rule: int) -> list[str]:
    """Return what a section lacks: a domain of a clip where the rule needs one, or a class."""
    if rule > 2020 and (count := np.count_nonzero(table.domain == "")):
        return [f"{count} clips have no domain"]
    problems = []
    for suffix, mask in _clip_sets(table, rule)[0].items():
        normal, anomaly = (np.count_nonzero(table.label[mask] == c) for c in (NORMAL, ANOMALY))
        if not (normal and anomaly):
            counts = f"{normal} normal and {anomaly} anomalous clips"
            problems.append(f"auc{suffix} needs both, has {counts}")
    return problems


def _section(table: Table, rule: int) -> dict[str, float]:
    """Return the numbers of one section by metric name, in the evaluator's order."""
    label, score, decision = table.label, table.score, table.decision
    ranked, partial, decided = _clip_sets(table, rule)
    values = {f"auc{s}": auc(label[m], score[m]) for s, m in ranked.items()}
    values |= {f"pauc{s}": pauc(label[m], score[m]) for s, m in partial.items()}
    if decision is not None:
        part = {s: _decided(label[m], decision[m]) for s, m in decided.items()}
        values |= {f"{name}{s}": part[s][name] for name in MEASURES[2:] for s in part}
    return values


def _decided(label: np.ndarray, decision: np.ndarray) -> dict[str, float]:
    """Return precision, recall and F1 of decisions `[n]`, 0 where undefined."""
    hits = np.sum((label == ANOMALY) & (decision == ANOMALY))
    precision = hits / max(np.sum(decision == ANOMALY), EPS)
    recall = hits / max(np.sum(label == ANOMALY), EPS)
    f1 = 2 * precision * recall / max(precision + recall, EPS)
    return {"precision": precision, "recall": recall, "f1": f1}


def _means(sections: Sequence[Mapping[str, float]], rule: int) -> dict[str, float]:
    """Return the means over sections and domains; one pAUC per section counts for each domain."""
    suffixes = tuple(f"_{domain}" for domain in DOMAINS) if rule > 2020 else ("",)
    kinds = {"amean": (np.mean, suffixes)}
    if rule > 2020:
        kinds["hmean"] = harmonic_mean, suffixes
        kinds |= {f"hmean{suffix}": (harmonic_mean, (suffix,)) for suffix in suffixes}
    means = {}
    for kind, (mean, used) in kinds.items():
        for name in MEASURES:
            values = [v.get(name + suffix, v.get(name)) for v in sections for suffix in used]
            if None not in values:
                means[f"{kind}_{name}"] = mean(values)
    return means


def _totals(
    tables: Mapping[tuple[str, str], Table],
    sections: Mapping[tuple[str, str], Mapping[str, float]],
    rule: int,
) -> dict[str, float]:
    if rule == 2020:
        machines = groupby(sections, key=lambda group: group[0])
        means = [_means([sections[group] for group in groups], rule) for _, groups in machines]
        return _means([{k.removeprefix("amean_"): v for k, v in m.items()} for m in means], rule)
    totals = _means(list(sections.values()), rule)
    scored = ("auc_source", "auc_target", "pauc", "pauc_source", "pauc_target")
    values = [values[name] for values in sections.values() for name in scored if name in values]
    totals["official_score"] = harmonic_mean(values)
    if rule >= 2022:
        label = np.concatenate([table.label for table in tables.values()])
        score = np.concatenate([table.score for table in tables.values()])
        totals["official_score_ci95"] = replicate_half_width(label, score)
    return totals


def official_scores(
    clips: Mapping[tuple[str, str], Sequence[Clip]], scores: Sequence[np.ndarray], year: int | None
) -> np.ndarray:
    """Return `[W]`: the official score of each of W systems, all at once, to search for the best.

    The rules of 2020 have none; there it is the mean of `amean_auc` and `amean_pauc` of "ALL".

    Args:
      clips: per machine and section the labelled test clips.
      scores: in the same order `[W, n]`, a row per system.
      year: as `evaluate` takes it.
    """
    tables = {group: _label_table(labelled) for group, labelled in clips.items()}
    rule = _rule_of(tables, year)
    areas = {
        group: _areas(table, values, rule)
        for (group, table), values in zip(tables.items(), scores, strict=True)
    }
    if rule == 2020:
        machines = {machine: [] for machine, _ in areas}
        for (machine, _), found in areas.items():
            machines[machine] += found
        return np.mean([np.mean(found, axis=0) for found in machines.values()], axis=0)
    every = np.maximum([area for found in areas.values() for area in found], EPS)
    return len(every) / np.sum(1 / every, axis=0)


def _areas(table: Table, scores: np.ndarray, rule: int) -> list[np.ndarray]:
    """Return the AUCs and pAUCs `[W]` of a section that count for the official score."""
    ranked, partial, _ = _clip_sets(table, rule)
    by_domain = [mask for suffix, mask in ranked.items() if suffix != "_all"]
    return [
        *(aucs(table.label[mask], scores[:, mask]) for mask in by_domain),
        *(paucs(table.label[mask], scores[:, mask]) for mask in partial.values()),
    ]
