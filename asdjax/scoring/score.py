"""From embeddings to anomaly scores and decisions of every machine.

Statistics come from normal training clips alone: nothing of a test clip enters the score of
another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from asdjax.scoring.balance import Smote, oversample, unit
from asdjax.scoring.knn import PADDING, knn_scores
from asdjax.types import Embeddings, InputError


@dataclass(frozen=True)
class Knn:
    """Mean cosine distance to the nearest normal training clips.

    Args:
      k: neighbors averaged.
      banks: "pooled" searches all training clips of a machine; "domain" searches source and target
        clips separately and takes the smaller distance.
      standardize: first subtract the training mean of the machine and divide by its deviation. The
        cosine then compares directions from the mean, and how far a clip lies from it is lost: an
        extreme clip may score lower than one near the mean.
      smote: synthetic clips added to the target clips of the bank; None adds none.
    """

    k: int = 1
    banks: Literal["pooled", "domain"] = "pooled"
    standardize: bool = False
    smote: Smote | None = None

    def __post_init__(self):
        if self.k < 1:
            raise InputError(f"expected k >= 1 neighbors, got {self.k}")


def score(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    config: Knn,
    note: Callable[[str], object] = lambda _: None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score the test clips of every machine and, leave-one-out, its training clips.

    Args:
      train, test: one entry per machine and section, in the same order; `train` holds normal clips.
      config: how to score.
      note: called with a line for each machine that gets no synthetic clips, and why.

    Returns:
      Two lists of `[n]` float32, larger = more anomalous: test scores; the score each training clip
      gets when it is left out of the bank (inf where no other clip remains). The latter never see
      synthetic clips: one that was made from the clip itself lies near it. So with SMOTE they tend
      to be larger than the scores of normal test clips, and a threshold from them is high.
    """
    if config.standardize:
        test = [_standardize(t, by) for t, by in zip(test, train, strict=True)]
        train = [_standardize(t, t) for t in train]
    searches = [(g, rows) for g, t in enumerate(train) for rows in _banks(t, config.banks)]
    banks = [train[g].values[rows] for g, rows in searches]
    grown = _grow(train, searches, config.smote, note) if config.smote else banks
    found = knn_scores([test[g].values for g, _ in searches], grown, config.k)
    own = [_own(len(train[g].values), rows) for g, rows in searches]
    left = knn_scores([train[g].values for g, _ in searches], banks, config.k, own)
    groups = [g for g, _ in searches]
    return _nearest_bank(found, groups), _nearest_bank(left, groups)


def threshold(train_scores: np.ndarray) -> float:
    """Return the 90th percentile of a gamma distribution fitted to scores of normal clips.

    Args:
      train_scores: `[n]` leave-one-out scores of the training clips; infinite ones are ignored.
        Where the fit fails (fewer than 2 or more than 30 % of them above its threshold: the
        likelihood of three parameters has poor local optima), the percentile of the scores
        themselves is returned, and infinity (no decision is "anomaly") where there is no score.

    Source: the official baselines (shape, location and scale all free; Dohi et al. 2022). The
      baseline fits scores of clips up to 2022 and of mini-batches from 2023 on; a nearest-neighbor
      score has no mini-batches, so clips are used for every year.
    """
    from scipy.stats import FitError, gamma

    finite = np.asarray(train_scores, np.float64)[np.isfinite(train_scores)]
    if not len(finite):
        return np.inf
    if len(np.unique(finite)) >= 3:  # as many as there are free parameters
        unit = finite.mean()  # the optimizer's tolerances are absolute; a gamma scales
        with contextlib.suppress(FitError), np.errstate(all="ignore"):
            fitted = float(unit * gamma.ppf(0.9, *gamma.fit(finite / unit)))
            if 0.02 <= (finite > fitted).mean() <= 0.3:
                return fitted
    return float(np.quantile(finite, 0.9))


def _standardize(embeddings: Embeddings, by: Embeddings) -> Embeddings:
    mean, deviation = by.values.mean(0), by.values.std(0)
    # A dimension that is constant up to rounding has no scale of its own.
    deviation = np.where(deviation > 1e-5 * np.abs(mean), deviation, 1.0)
    return replace(embeddings, values=(embeddings.values - mean) / deviation)


def _banks(train: Embeddings, banks: str) -> list[np.ndarray]:
    """Return the training rows of each bank: one, or one per domain that has clips."""
    domains = np.array([clip.domain or "" for clip in train.clips])
    if banks == "pooled":
        return [np.arange(len(domains))]
    return [np.flatnonzero(domains == domain) for domain in np.unique(domains)]


def _grow(
    train: Sequence[Embeddings],
    searches: Sequence[tuple[int, np.ndarray]],
    config: Smote,
    note: Callable[[str], object],
) -> list[np.ndarray]:
    """Return the banks; those with target clips have the machine's synthetic rows as well."""
    made = [_synthetic(machine, config, note) for machine in train]
    grown = []
    for g, rows in searches:
        target = any(train[g].clips[i].domain == "target" for i in rows)
        bank = train[g].values[rows]
        grown.append(np.concatenate([bank, made[g]]) if target else bank)
    return grown


def _synthetic(train: Embeddings, config: Smote, note: Callable[[str], object]) -> np.ndarray:
    domains = [clip.domain for clip in train.clips]
    made, why = oversample(unit(train.values), domains, config)
    if why:
        note(f"SMOTE skipped for {'/'.join(train.clips[0].group)}: {why}")
    return made


def _nearest_bank(scores: list[np.ndarray], groups: list[int]) -> list[np.ndarray]:
    """Return per group the smallest score over its banks."""
    per_group = {g: [s for s, of in zip(scores, groups, strict=True) if of == g] for g in groups}
    return [np.min(per_group[g], 0) for g in sorted(per_group)]


def _own(count: int, rows: np.ndarray) -> np.ndarray:
    """Return `[count]`: where each training clip stands in the bank of `rows`, or -1."""
    own = np.full(count, PADDING)
    own[rows] = np.arange(len(rows))
    return own
