"""How far the official scores of systems depend on which clips were recorded: the bootstrap.

Systems are scored on the same draws of the test clips, so what makes clips hard for all of them
cancels in their differences.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile
intervals).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from asdjax.metrics.official import TOTAL, official_scores
from asdjax.types import Clip

LEVEL = 0.95

Group = tuple[str, str]  # machine type and section


class Comparison(NamedTuple):
    """A system on a machine, or on all of them: its score, and how much more that is.

    Args:
      machine: or `TOTAL`.
      score, low, high: the official score and its 95 % interval over clips.
      more, more_low, more_high: the score minus that of the first system, and the interval of that.
      used: what of the test clips the scores were made with: "statistics", "labels", both or "".
    """

    machine: str
    system: str
    score: float
    low: float
    high: float
    more: float
    more_low: float
    more_high: float
    used: str = ""


def compare(
    clips: Mapping[Group, Sequence[Clip]],
    systems: Mapping[str, Mapping[Group, np.ndarray]],
    year: int | None,
    times: int,
    seed: int = 0,
) -> list[Comparison]:
    """Return every system on every machine and on all, in the order of both.

    Args:
      clips: labelled test clips of machine types and sections that can have official numbers.
      systems: scores `[n]` of each group's clips.
      year: as `official.evaluate` takes it.
      times: how many draws.
    """
    rng = np.random.default_rng(seed)
    rows = {group: draws(own, times, rng) for group, own in clips.items()}
    parts = [(m, list(groups)) for m, groups in groupby(sorted(clips), key=lambda g: g[0])]
    found = []
    for machine, groups in (*parts, (TOTAL, sorted(clips))):
        taken = {group: clips[group] for group in groups}
        values = [
            official_scores(taken, [scores[g][rows[g]] for g in groups], year)
            for scores in systems.values()
        ]
        for name, own in zip(systems, values, strict=True):
            more = own - values[0]
            found.append(
                Comparison(machine, name, own[0], *_interval(own), more[0], *_interval(more))
            )
    return found


def draws(clips: Sequence[Clip], times: int, rng: np.random.Generator) -> np.ndarray:
    """Return `[1 + times, n]`: indices of all clips, then of clips drawn with replacement.

    A clip is drawn for one of its own domain and label, so every draw has as many of each.
    """
    rows = np.tile(np.arange(len(clips)), (1 + times, 1))
    strata = np.array([f"{clip.domain} {clip.label}" for clip in clips])
    for stratum in np.unique(strata):
        (own,) = np.nonzero(strata == stratum)
        rows[1:, own] = rng.choice(own, (times, len(own)))
    return rows


def _interval(values: np.ndarray) -> np.ndarray:
    """Return both ends of the interval of `values [1 + times]`, the first of which is no draw."""
    return np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
