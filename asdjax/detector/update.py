"""More healthy sound for a detector, without training: its clips, its limits, and what has drifted.

New clips are scored by the detector as it is, then they join the clips that others are compared
with. The limit of alarms is found again from the scores of old and new clips.

If the new scores lie above the old ones as a whole, the machine, the microphone or the room has
changed slowly: that is drift, which the new clips teach. If a few lie far above, they may be faults
that are not healthy at all: they are named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asdjax.data import healthy
from asdjax.detector.alarms import Healthy, Rule, calibrate
from asdjax.detector.detector import Detector, Machine, Verdict, date_of
from asdjax.scoring.folds import unit
from asdjax.types import NORMAL, Embeddings, InputError, counted, preview

MOST = 2000  # clips of a machine
MOST_SCORES = 20_000  # of a machine, the latest, that set its limit
DRIFTED = 1.0  # deviations of the median of new scores: the upper quartile of the old ones


def update(
    detector: Detector,
    sources: Sequence[Path],
    machine: str = "",
    retire: str = "",
    most: int = MOST,
    skip_bad: bool = False,
) -> tuple[Detector, list[str]]:
    """Return a detector that also knows new healthy recordings, and lines for the user.

    Args:
      detector: the detector.
      sources: folders or files, as of `asdjax.data.healthy.recordings`.
      machine: whose they are, where the detector knows several and no folder is called so.
      retire: a date, YYYY-MM-DD: clips recorded before it are left out; "": none.
      most: clips of a machine that are kept; of more, those that cover all others best.
      skip_bad: leave broken files out.

    Raises:
      InputError: recordings that cannot be used, or no date.
    """
    if retire and not re.fullmatch(r"\d{4}-\d\d-\d\d", retire):
        raise InputError(f"expected a date YYYY-MM-DD, got {retire!r}")
    paths = list(healthy.recordings(sources))
    judged = detector.judge_files(paths, machine, skip_bad)
    lines = [*judged.lines, *(f"left out: {p}: {why}" for p, why in judged.broken.items())]
    machines = []
    for one in detector.machines:
        rows = [i for i, clip in enumerate(judged.clips) if clip.group == one.group]
        given, known = len(rows), {clip.content for clip in one.normal.clips}
        first = {judged.clips[i].content: i for i in reversed(rows)}
        rows = sorted(i for content, i in first.items() if content not in known)
        if len(rows) < given:
            copies = counted(given - len(rows), "clip")
            lines.append(f"{one.name}: {copies} left out, of which it has an equal one")
        if rows:
            new = Embeddings(
                tuple(replace(judged.clips[i], split="train", label=NORMAL) for i in rows),
                judged.values[rows],
            )
            verdicts = [judged.verdicts[i] for i in rows]
            grown, told = _grown(one, new, verdicts, retire, most)
            lines += told
        machines.append(grown if rows else one)
    return replace(detector, machines=tuple(machines)), lines


def _grown(
    machine: Machine, new: Embeddings, verdicts: Sequence[Verdict], retire: str, most: int
) -> tuple[Machine, list[str]]:
    lines = [f"{machine.name}: {counted(len(new.clips), 'clip')} joined"]
    order = sorted(range(len(new.clips)), key=lambda i: healthy.natural(new.clips[i].path))
    new, verdicts = new.take(order), [verdicts[i] for i in order]
    kept = [i for i, date in enumerate(machine.dates) if date >= retire]
    if len(kept) < len(machine.dates):
        lines.append(
            f"{machine.name}: {counted(len(machine.dates) - len(kept), 'clip')} of before {retire} "
            "retired"
        )
    clips = [machine.normal.take(kept), new]
    values = np.concatenate([one.values for one in clips])
    every = (*clips[0].clips, *new.clips)
    dates = [*(machine.dates[i] for i in kept), *(date_of(clip.path) for clip in new.clips)]
    if len(every) > most:
        chosen, radius = centers(values, most)
        lines.append(
            f"{machine.name}: {most:,} of {len(every):,} clips kept; of those left out "
            f"none is farther than {radius:.3g} (cosine distance) from a kept one"
        )
        values, every, dates = (
            values[chosen],
            [every[i] for i in chosen],
            [dates[i] for i in chosen],
        )
    known, rule = machine.healthy, machine.rule
    if rule is not None:
        lines += _changes(machine.name, rule, verdicts)
        known = _joined(known, verdicts)
        rule = calibrate(known, machine.every, rule.asked, rule.confirm)
        lines += rule.lines(machine.name)
    normal = Embeddings(tuple(every), values)
    made = replace(machine, normal=normal, healthy=known, rule=rule, dates=tuple(dates))
    return made, lines


def _joined(known: Healthy, verdicts: Sequence[Verdict]) -> Healthy:
    """Return scores of old and new clips; new blocks are as long as the old ones."""
    length = max(len(known.scores) // len(np.unique(known.blocks)), 1)
    later = known.blocks.max() + 1 + np.arange(len(verdicts)) // length
    blocks = np.concatenate([known.blocks, later]).astype(np.int32)
    scores = np.concatenate([known.scores, [one.score for one in verdicts]]).astype(np.float32)
    conditions = (*known.conditions, *(one.condition for one in verdicts))
    return Healthy(scores[-MOST_SCORES:], conditions[-MOST_SCORES:], blocks[-MOST_SCORES:])


def _changes(name: str, rule: Rule, verdicts: Sequence[Verdict]) -> list[str]:
    """Return lines on drift, and on new clips that may be no healthy ones."""
    deviations = np.array([rule.deviation(one.score, one.condition) for one in verdicts])
    median = float(np.median(deviations))
    if median > DRIFTED:
        return [
            f"{name}: drift: the median of the new scores is {median:.2g} deviations above that of "
            "the old ones (1 is their upper quartile), so all of the sound has changed; if a watch "
            "still alarms after this update, fit again"
        ]
    above = [one for one in verdicts if one.above]
    if not above:
        return []
    above.sort(key=lambda one: -one.score)
    return [
        f"{name}: {counted(len(above), 'new clip')} above the old threshold, while the median has "
        f"not moved: listen to them, a fault among them would no longer be found: "
        f"{preview([one.file for one in above], 5)}"
    ]


def centers(values: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Return which rows cover all others best, and the largest distance to one of them.

    Farthest-first traversal: each center is the row that is farthest from those before it, which
    covers within twice the smallest radius that is possible.

    Args:
      values: `[n, E]`; distances are 1 - cos.
      count: how many, at most n.

    Returns:
      `[count]` int, rising; the largest distance of a row to its nearest center.

    Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance".
    """
    if not 1 <= count <= len(values):
        raise InputError(f"expected to keep 1 to {len(values)} clips, got {count}")
    rows = unit(np.asarray(values, np.float64))
    first = int((rows @ rows.mean(0)).argmax())  # nearest to the middle
    chosen, distance = [first], 1 - rows @ rows[first]
    while len(chosen) < count:
        distance[chosen[-1]] = -1.0
        chosen.append(int(distance.argmax()))
        np.minimum(distance, 1 - rows @ rows[chosen[-1]], out=distance)
    rest = np.delete(distance, chosen)
    return np.sort(chosen), float(max(rest.max(initial=0.0), 0.0))
