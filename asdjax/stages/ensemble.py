"""The stage `ensemble`: the scores of several finished runs become those of one system.

OUT/scores/ensemble/*.csv   the challenge's anomaly score and decision files
OUT/ensemble.json           members, weights, and whether labels or test statistics were used
OUT/results.csv             machine,metric,value
OUT/finished.json           what the scores depend on (`artifact.py`)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from asdjax.artifact import Product, make
from asdjax.config import to_json
from asdjax.files import content_of, write_json
from asdjax.metrics import official, score_files
from asdjax.metrics.official import Metric, official_scores
from asdjax.report import console
from asdjax.scoring.combine import Ensemble, combine, normalize, search, varies
from asdjax.scoring.score import threshold
from asdjax.stages import folder, stages
from asdjax.stages.folder import RECORD, SCORES, Group, Run
from asdjax.stages.lock import locked
from asdjax.types import Clip, Domain, InputError, preview
from asdjax.version import __version__

ENSEMBLE = "scores/ensemble"

Key = tuple[str, str, str, str]  # machine, section, split and name of a clip


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
    def labels(self) -> dict[Key, tuple[int | None, Domain | None]]:
        """Return label and domain of every clip, in the order of the run's clips."""
        return {_key(clip): (clip.label, clip.domain) for clip in self.run.clips}

    @cached_property
    def contents(self) -> dict[Key, str]:
        return {_key(clip): clip.content for clip in self.run.clips}


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

    Args:
      members: two or more folders of runs on the same recordings; weights are in their order.
      config: how to combine.
      out: the ensemble's own folder; made if absent.
      force: combine again what an earlier call did.

    Raises:
      InputError: the runs do not fit together, or a search finds no labels.
    """
    with locked(Path(out)):
        return combine_members(members, config, Path(out), force)


def combine_members(
    members: Sequence[Path], config: Ensemble, out: Path, force: bool
) -> list[Metric]:
    """Do what `ensemble` does, in a folder that is locked."""
    found = load_members([Path(path) for path in members])
    weights = config.shares(len(found))
    refuse_run(out)
    run = found[0].run
    key = {
        "asdjax": __version__,
        "ensemble": to_json(config),
        "members": [content_of(sorted(member.scores.items())) for member in found],
        "labels": content_of(list(found[0].labels.items())),  # a search uses them
        "year": run.year,
    }
    product = Product(out, ENSEMBLE, key, beside=(RECORD,))
    done = make(product, lambda: _combine(found, config, weights, out), force=force, alone=True)
    console.note(f"{'already combined' if done == 'kept' else 'scores'}: {product.path}")
    statistics = "statistics" if config.transductive else "no statistics"
    labels = "weights as given" if config.weights else "no labels used"
    if config.search:
        labels = "weights chosen on the labels of these clips"
    title = f"{out}, {statistics} of test clips used, {labels}"
    marks = {"transductive": config.transductive, "labels_used": config.search}
    return stages.report_numbers(out, run, score_files.load(product.path), title, marks)


def refuse_run(out: Path) -> None:
    """Raise an InputError if a folder holds a run, whose scores an ensemble would mix with."""
    if (out / "config.json").exists():
        raise InputError(f"{out} holds a run; give the ensemble a folder of its own")


def load_members(paths: Sequence[Path]) -> list[Member]:
    """Read finished runs and compare their clips, labels and rules.

    Args:
      paths: two or more folders of runs.

    Raises:
      InputError: all runs that cannot be read, and all that differ from the first in recordings,
        labels or year.
    """
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        raise InputError(f"expected two or more different runs, got {preview(paths) or 'none'}")
    members, problems = [], []
    for path in paths:
        try:
            members.append(_load(path))
        except InputError as error:
            problems.append(str(error))
    for other in members[1:]:
        problems += _differences(members[0], other)
    if problems:
        raise InputError("cannot combine these runs:\n  " + "\n  ".join(problems))
    return members


def _load(path: Path) -> Member:
    run = folder.load_scored(path)
    scores = {
        (file.machine, file.section, "test", name): value
        for file in score_files.load(path / SCORES)
        for name, value in zip(file.names, file.values.tolist(), strict=True)
    }
    for group in run.groups:
        values = folder.load_left_out(path, run, group).tolist()
        scores |= zip(map(_key, run.select(group, "train")), values, strict=True)
    return Member(path, run, scores)


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
    shared = first.labels.keys() & other.labels.keys()
    if differ := {key for key in shared if first.contents[key] != other.contents[key]}:
        problems.append(
            f"{other.path}: recordings of other content than those of {first.path}, in "
            f"{other.run.data} and {first.run.data}: {_show(differ)}"
        )
    if differ := {key for key in shared if first.labels[key] != other.labels[key]}:
        problems.append(
            f"{other.path}: labels or domains differ from {first.path}: {_show(differ)}; "
            "give both runs the same --ground-truth"
        )
    return problems


def _combine(members: Sequence[Member], config: Ensemble, weights: np.ndarray, out: Path) -> None:
    """Write the score files and `ensemble.json`."""
    run, best = members[0].run, None
    machines = _normalized(members, config)
    if config.search:
        weights, best = _search(machines, run, config.step)
    elif config.weights and not math.isclose(sum(config.weights), 1):
        console.note(f"weights divided by their sum, {sum(config.weights):g}")
    used = None if config.combine == "minimum" else weights
    if used is not None:
        shares = zip(used, members, strict=True)
        console.note("weights: " + ", ".join(f"{w:.3g} {m.path}" for w, m in shares))
    folder.clear(out, RECORD, "results.csv", ENSEMBLE)
    for machine in machines.values():
        values, left_out = combine(machine.test, used), combine(machine.left_out, used)
        limit, line = threshold(left_out, run.challenge)
        if line:
            console.note(f"{'/'.join(machine.clips[0].group)}: {line}")
        stages.write_scores(out / ENSEMBLE, machine.clips, values, limit, run.year)
    described = {
        "asdjax": __version__,
        "config": to_json(config),
        "members": [
            {"path": str(member.path), "system": to_json(member.run.system)} for member in members
        ],
        "weights": None if used is None else used.tolist(),
        "transductive": config.transductive,
        "labels_used": config.search,
        "searched": best,
        "year": run.year,
    }
    write_json(out / RECORD, described)


def _normalized(members: Sequence[Member], config: Ensemble) -> dict[Group, Normalized]:
    """Return the members' scores of each machine and section on one scale.

    Raises:
      InputError: reference scores that do not vary, all at once.
    """
    run, split = members[0].run, "test" if config.transductive else "train"
    references = {g: [m.of(run.select(g, split)) for m in members] for g in run.groups}
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
        test, normal = (run.select(group, name) for name in ("test", "train"))
        pairs = list(zip(members, found, strict=True))
        scaled = (
            np.stack([normalize(m.of(clips), r, config.normalize) for m, r in pairs])
            for clips in (test, normal)
        )
        machines[group] = Normalized(test, *scaled)
    return machines


def _search(
    machines: Mapping[Group, Normalized], run: Run, step: float
) -> tuple[np.ndarray, float]:
    """Return the best weights `[m]` by `official_scores` of the labelled test clips, and theirs."""
    lacking = official.lacking(run.clips, run.year)
    if not (usable := {g: m for g, m in machines.items() if g not in lacking}):
        reasons = "\n  ".join(f"{'/'.join(group)}: {why}" for group, why in lacking.items())
        raise InputError(f"a search needs labels; give the runs --ground-truth:\n  {reasons}")
    rows = {g: [c.label is not None for c in m.clips] for g, m in usable.items()}
    clips = {g: [c for c in m.clips if c.label is not None] for g, m in usable.items()}
    weights, best = search(
        [machine.test[:, rows[group]] for group, machine in usable.items()],
        lambda scores: official_scores(clips, scores, run.year),
        step,
    )
    console.note(f"best of the grid on the labels of the test clips: {100 * best:.2f}")
    return weights, best


def _key(clip: Clip) -> Key:
    return (*clip.group, clip.split, clip.name)


def _show(keys: Iterable[Key]) -> str:
    return preview("/".join(key) for key in sorted(keys))
