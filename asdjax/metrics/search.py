"""The official score of many systems at once: what a search for the best of them compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from asdjax.metrics import official
from asdjax.metrics.auc import aucs, paucs
from asdjax.metrics.pairing import Table
from asdjax.types import Clip


def official_scores(
    clips: Mapping[tuple[str, str], Sequence[Clip]], scores: Sequence[np.ndarray], year: int | None
) -> np.ndarray:
    """Return `[W]`: the official score of each of W systems, all at once.

    The rules of 2020 have none; there it is the mean of `amean_auc` and `amean_pauc` of "ALL".

    Args:
      clips: per machine and section the labelled test clips.
      scores: in the same order `[W, n]`, a row per system.
      year: as `official.evaluate` takes it.
    """
    tables = {group: official.label_table(labelled) for group, labelled in clips.items()}
    rule = official.rule_of(tables, year)
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
    ranked, partial, _ = official.clip_sets(table, rule)
    whole = [mask for suffix, mask in ranked.items() if suffix != "_all"]
    return [
        *(aucs(table.label[mask], scores[:, mask]) for mask in whole),
        *(paucs(table.label[mask], scores[:, mask]) for mask in partial.values()),
    ]
