"""The stage `ensemble`: the scores of several finished runs become those of one system.

DIR/scores/ensemble/*.csv   the challenge's anomaly score and decision files
DIR/ensemble.json           members, weights, and whether labels or test statistics were used
DIR/results.csv             machine,metric,value
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from asdjax import pipeline, runs
from asdjax.config import digest, to_json
from asdjax.files import write_json
from asdjax.metrics import official, score_files
from asdjax.metrics.auc import aucs, paucs
from asdjax.metrics.official import Metric
from asdjax.metrics.pairing import Table
from asdjax.report import console
from asdjax.runs import Group, Run
from asdjax.scoring.ensemble import Ensemble, combine, normalize, search, varies
from asdjax.scoring.score import threshold
from asdjax.types import Clip, InputError, preview
from asdjax.version import __version__

Key = tuple[str, str, str, str]  # machine, section, split and name of a clip
SCORES, RECORD, RESULTS = "scores/ensemble", "ensemble.json", "results.csv"


@dataclass(frozen=True)
class Member:
    """A finished run: scores of its test clips, leave-one-out scores of its training clips."""

    path: Path
    run: Run
    scores: Mapping[Key, float]

    def of(self, clips: Sequence[Clip]) -> np.ndarray:
        """Return the scores `[n]` of clips."""
        return np.array([self.scores[_key(clip)] for clip in clips])

    @cached_property
    def sha256(self) -> str:
        return digest(sorted(self.scores.items()))


@dataclass(frozen=True)
class Normalized:
    """The members' scores of one machine and section on one scale."""

    clips: tuple[Clip, ...]  # test clips
    test: np.ndarray  # [m, n]
    left_out: np.ndarray  # [m, r], of its training clips


def ensemble(
    members: Sequence[Path], config: Ensemble, out: Path, force: bool = False
) -> list[Metric]:
    """Combine finished runs; return the official numbers, an empty list where labels are missing.

    What an earlier call made from the same scores with the same settings is kept.

    Args:
      members: two or more folders of runs on the same recordings; weights are in their order.
      config: how to combine.
      out: the ensemble's own folder; made if absent.
      force: combine again what an earlier call did.
    Raises:
      InputError: the runs do not fit together, or a search finds no labels.
    """
    out, found = Path(out), _load_members([Path(path) for path in members])
    weights = config.shares(len(found))
    if (out / "config.json").exists():
        raise InputError(f"{out} holds a run; give the ensemble a folder of its own")
    made, key = found[0].run, _digest_of(found, config)
    if not force and _finished(out, key):
        console.note(f"already combined: {out / SCORES}")
    else:
        _combine(found, config, weights, out, key)
    statistics = "statistics" if config.transductive else "no statistics"
    labels = "weights as given" if config.weights else "no labels used"
    if config.search:
        labels = "weights chosen on the labels of these clips"
    title = f"{out}, {statistics} of test clips used, {labels}"
    return pipeline.report_numbers(out, made, score_files.load(out / SCORES), title)


def _combine(
    members: Sequence[Member], config: Ensemble, weights: np.ndarray, out: Path, key: str
) -> None:
    """Write the score files, then `ensemble.json`, which tells that they are complete."""
    made, best = members[0].run, None
    machines = _normalized(members, config)
    if config.search:
        weights, best = _search(machines, made, config.step)
    elif config.weights and not math.isclose(sum(config.weights), 1):
        console.note(f"weights divided by their sum, {sum(config.weights):g}")
    used = None if config.combine == "minimum" else weights
    if used is not None:
        shares = zip(used, members, strict=True)
        console.note("weights: " + ", ".join(f"{w:.3g} {m.path}" for w, m in shares))
    runs.clear(out, RECORD, RESULTS, "scores")
    for machine in machines.values():
        values, left_out = combine(machine.test, used), combine(machine.left_out, used)
        lowest = left_out.min()  # `threshold` takes scores >= 0, as distances are
        limit = lowest + threshold(left_out - lowest)
        pipeline.write_scores(out / SCORES, machine.clips, values, limit, made.year)
    described = {
        "asdjax": __version__,
        "config": to_json(config),
        "members": [_describe(member) for member in members],
        "weights": None if used is None else used.tolist(),
        "transductive": config.transductive,
        "labels_used": config.search,
        "searched": best,
        "year": made.year,
        "key": key,
    }
    write_json(out / RECORD, described)
    console.note(f"scores: {out / SCORES}")


def _describe(member: Member) -> dict[str, str]:
    return {
        "path": str(member.path),
        "system_sha256": digest(member.run.system),
        "weights_sha256": member.run.weights_sha256,
        "scores_sha256": member.sha256,
    }


def _digest_of(members: Sequence[Member], config: Ensemble) -> str:
    """Return a digest of what the ensemble depends on; labels too, which a search uses."""
    made = members[0].run
    labels = [(*_key(clip), clip.label, clip.domain) for clip in made.clips]
    return digest(config, [m.sha256 for m in members], labels, made.year, __version__)


def _finished(out: Path, key: str) -> bool:
    try:
        return json.loads((out / RECORD).read_text())["key"] == key
    except (OSError, ValueError, KeyError):
        return False


def _load_members(paths: Sequence[Path]) -> list[Member]:
    """Read the runs and compare their clips; InputError with all that is wrong."""
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        raise InputError(f"expected two or more different runs, got {preview(paths) or 'none'}")
    members, problems = [], []
    for path in paths:
        try:
            members.append(_load_member(path))
        except InputError as error:
            problems.append(str(error))
    for other in members[1:]:
        problems += _differences(members[0], other)
    if problems:
        raise InputError("cannot combine these runs:\n  " + "\n  ".join(problems))
    return members


def _load_member(path: Path) -> Member:
    made = runs.load(path)
    if not any((path / "scores").rglob(f"{score_files.SCORE}_*.csv")):
        raise InputError(f"expected scores in {path / 'scores'}: give `asdjax score {path}`")
    scores = {
        (file.machine, file.section, "test", name): value
        for file in score_files.load(path / "scores")
        for name, value in zip(file.names, file.values.tolist(), strict=True)
    }
    clips = {_key(clip) for clip in made.clips if clip.split == "test"}
    if differ := scores.keys() ^ clips:
        raise InputError(
            f"{path}: scores and test clips of the run differ: {_show(differ)}; "
            f"give `asdjax score {path}` again"
        )
    for group in made.groups:
        normal = _part(made, group, "train")
        values = runs.load_left_out(path, made, group).tolist()
        scores |= zip(map(_key, normal), values, strict=True)
    return Member(path, made, scores)


def _differences(first: Member, other: Member) -> list[str]:
    """Return in what two runs are not of the same recordings, labels and rules."""
    problems = []
    if other.run.year != first.run.year:
        years = f"year {other.run.year}, {first.path} has {first.run.year}"
        problems.append(f"{other.path}: {years}; give both runs the same --year")
    if missing := first.scores.keys() - other.scores.keys():
        problems.append(f"{other.path} lacks clips of {first.path}: {_show(missing)}")
    if extra := other.scores.keys() - first.scores.keys():
        problems.append(f"{other.path} has clips that {first.path} lacks: {_show(extra)}")
    labels = [{_key(c): (c.label, c.domain) for c in m.run.clips} for m in (first, other)]
    shared = labels[0].keys() & labels[1].keys()
    if differ := {key for key in shared if labels[0][key] != labels[1][key]}:
        problems.append(
            f"{other.path}: labels or domains differ from {first.path}: {_show(differ)}; "
            "give both runs the same --ground-truth"
        )
    return problems


def _normalized(members: Sequence[Member], config: Ensemble) -> dict[Group, Normalized]:
    """Return the members' scores of each machine and section on one scale.

    Raises:
      InputError: reference scores that do not vary, all at once.
    """
    made, split = members[0].run, "test" if config.transductive else "train"
    references = {g: [m.of(_part(made, g, split)) for m in members] for g in made.groups}
    flat = [
        f"{member.path}: {'/'.join(group)}"
        for group, found in references.items()
        for member, reference in zip(members, found, strict=True)
        if not varies(reference)
    ]
    if flat:
        head = f"scores of {split} clips that do not vary set no scale; leave these runs out"
        raise InputError(head + ":\n  " + "\n  ".join(flat))
    machines = {}
    for group, found in references.items():
        test, normal = (_part(made, group, name) for name in ("test", "train"))
        pairs = list(zip(members, found, strict=True))
        scaled = (
            np.stack([normalize(m.of(clips), r, config.normalize) for m, r in pairs])
            for clips in (test, normal)
        )
        machines[group] = Normalized(test, *scaled)
    return machines


def _search(
    machines: Mapping[Group, Normalized], made: Run, step: float
) -> tuple[np.ndarray, float]:
    """Return the best weights `[m]` by `official_scores` of the labelled test clips, and theirs."""
    lacking = official.lacking(made.clips, made.year)
    if not (usable := {g: m for g, m in machines.items() if g not in lacking}):
        reasons = "\n  ".join(f"{'/'.join(group)}: {why}" for group, why in lacking.items())
        raise InputError(f"a search needs labels; give the runs --ground-truth:\n  {reasons}")
    rows = {g: [c.label is not None for c in m.clips] for g, m in usable.items()}
    clips = {g: [c for c in m.clips if c.label is not None] for g, m in usable.items()}
    weights, best = search(
        [machine.test[:, rows[group]] for group, machine in usable.items()],
        lambda scores: official_scores(clips, scores, made.year),
        step,
    )
    console.note(f"best of the grid on the labels of the test clips: {100 * best:.2f}")
    return weights, best


def official_scores(
    clips: Mapping[Group, Sequence[Clip]], scores: Sequence[np.ndarray], year: int | None
) -> np.ndarray:
    """Return `[W]`: the official score of each of W systems, all at once.

    The rules of 2020 have none; there it is the mean of `amean_auc` and `amean_pauc` of "ALL".

    Args:
      clips: per machine and section the labelled test clips.
      scores: in the same order `[W, n]`, a row per system.
      year: as `official.evaluate` takes it.
    """
    tables = {group: official._labels(labelled) for group, labelled in clips.items()}
    rule = official._rule(tables, year)
    areas = {
        group: _section_areas(table, values, rule)
        for (group, table), values in zip(tables.items(), scores, strict=True)
    }
    if rule == 2020:
        machines = {machine: [] for machine, _ in areas}
        for (machine, _), found in areas.items():
            machines[machine] += found
        return np.mean([np.mean(found, axis=0) for found in machines.values()], axis=0)
    every = np.maximum([area for found in areas.values() for area in found], official.EPS)
    return len(every) / np.sum(1 / every, axis=0)


def _section_areas(table: Table, scores: np.ndarray, rule: int) -> list[np.ndarray]:
    """Return the AUCs and pAUCs `[W]` of a section that count for the official score."""
    ranked, partial, _ = official._sets(table, rule)
    whole = [mask for suffix, mask in ranked.items() if suffix != "_all"]
    return [
        *(aucs(table.label[mask], scores[:, mask]) for mask in whole),
        *(paucs(table.label[mask], scores[:, mask]) for mask in partial.values()),
    ]


def _part(made: Run, group: Group, split: str) -> tuple[Clip, ...]:
    return tuple(clip for clip in made.groups[group] if clip.split == split)


def _key(clip: Clip) -> Key:
    return (*clip.group, clip.split, clip.name)


def _show(keys: Iterable[Key]) -> str:
    return preview("/".join(key) for key in sorted(keys))
