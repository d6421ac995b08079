"""The stage `ensemble`: the scores of several finished runs become those of one system.

DIR/scores/ensemble/*.csv   the challenge's anomaly score and decision files
DIR/ensemble.json           members, weights, and whether labels or test statistics were used
DIR/results.csv             machine,metric,value
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asdjax import pipeline, runs
from asdjax.config import digest, to_json
from asdjax.files import write_json
from asdjax.members import Member, load_members
from asdjax.metrics import official, score_files
from asdjax.metrics.official import Metric
from asdjax.metrics.search import official_scores
from asdjax.report import console
from asdjax.runs import Group, Run
from asdjax.scoring.ensemble import Ensemble, combine, normalize, search, varies
from asdjax.scoring.score import threshold
from asdjax.types import Clip, InputError
from asdjax.version import __version__

SCORES, RECORD, RESULTS = "scores/ensemble", "ensemble.json", "results.csv"


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
    out, found = Path(out), load_members([Path(path) for path in members])
    weights = config.shares(len(found))
    refuse_run(out)
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
    marks = {"transductive": config.transductive, "labels_used": config.search}
    return pipeline.report_numbers(out, made, score_files.load(out / SCORES), title, marks)


def refuse_run(out: Path) -> None:
    """Raise an InputError if a folder holds a run, whose scores an ensemble would mix with."""
    if (out / "config.json").exists():
        raise InputError(f"{out} holds a run; give the ensemble a folder of its own")


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
    runs.clear(out, RECORD, RESULTS, SCORES)
    for machine in machines.values():
        values, left_out = combine(machine.test, used), combine(machine.left_out, used)
        pipeline.write_scores(out / SCORES, machine.clips, values, threshold(left_out), made.year)
    described = {
        "asdjax": __version__,
        "config": to_json(config),
        "members": [member.describe() for member in members],
        "weights": None if used is None else used.tolist(),
        "transductive": config.transductive,
        "labels_used": config.search,
        "searched": best,
        "year": made.year,
        "key": key,
    }
    write_json(out / RECORD, described)
    console.note(f"scores: {out / SCORES}")


def _digest_of(members: Sequence[Member], config: Ensemble) -> str:
    """Return a digest of what the ensemble depends on; labels too, which a search uses."""
    first = members[0]
    labels = [(*key, *told) for key, told in first.labels.items()]
    return digest(config, [m.sha256 for m in members], labels, first.run.year, __version__)


def _finished(out: Path, key: str) -> bool:
    try:
        return json.loads((out / RECORD).read_text())["key"] == key
    except (OSError, ValueError, KeyError):
        return False


def _normalized(members: Sequence[Member], config: Ensemble) -> dict[Group, Normalized]:
    """Return the members' scores of each machine and section on one scale.

    Raises:
      InputError: reference scores that do not vary, all at once.
    """
    made, split = members[0].run, "test" if config.transductive else "train"
    references = {g: [m.of(made.select(g, split)) for m in members] for g in made.groups}
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
        test, normal = (made.select(group, name) for name in ("test", "train"))
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
