"""The official scores of many systems at once equal those of one after the other."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from asdjax.metrics.official import evaluate
from asdjax.metrics.search import official_scores
from asdjax.types import Clip, Scores

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
