"""Distance to the nearest normal clips, as a configuration and over all machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from asdjax.scoring.balance import Smote, oversample
from asdjax.scoring.banks import Bank, banks, name, smallest, unit
from asdjax.scoring.knn import PADDING, knn_scores
from asdjax.types import Embeddings, InputError, check_choices


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
        check_choices(self)
        if self.k < 1:
            raise InputError(f"expected k >= 1 neighbors, got {self.k}")


def score(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    config: Knn,
    note: Callable[[str], object],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score as `asdjax.scoring.score.score` says.

    Training scores never see synthetic clips: one that was made from the clip itself lies near it.
    So with SMOTE they tend to be larger than the scores of normal test clips, and a threshold from
    them is high. `note` is called for each machine that gets no synthetic clips, and why.
    """
    if config.standardize:
        test = [_standardize(t, by) for t, by in zip(test, train, strict=True)]
        train = [_standardize(t, t) for t in train]
    searched = banks(train, config.banks)
    grown = _grow(train, searched, config.smote, note) if config.smote else None
    found, left = search(train, test, searched, config.k, grown)
    return smallest(found, searched), smallest(left, searched)


def search(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    searched: Sequence[Bank],
    k: int = 1,
    grown: Sequence[np.ndarray] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return per bank the distances of its machine's test clips, and of its training clips.

    A training clip does not see itself. `grown`: rows that test clips see in place of the banks.
    """
    rows = [train[g].values[rows] for g, rows in searched]
    found = knn_scores([test[g].values for g, _ in searched], grown or rows, k)
    own = [_own(len(train[g].values), rows) for g, rows in searched]
    return found, knn_scores([train[g].values for g, _ in searched], rows, k, own)


def _standardize(embeddings: Embeddings, by: Embeddings) -> Embeddings:
    mean, deviation = by.values.mean(0), by.values.std(0)
    # A dimension that is constant up to rounding has no scale of its own.
    deviation = np.where(deviation > 1e-5 * np.abs(mean), deviation, 1.0)
    return replace(embeddings, values=(embeddings.values - mean) / deviation)


def _grow(
    train: Sequence[Embeddings],
    searched: Sequence[Bank],
    config: Smote,
    note: Callable[[str], object],
) -> list[np.ndarray]:
    """Return the rows of the banks; those with target clips have the synthetic rows as well."""
    made = [_synthetic(machine, config, note) for machine in train]
    grown = []
    for g, rows in searched:
        target = any(train[g].clips[i].domain == "target" for i in rows)
        bank = train[g].values[rows]
        grown.append(np.concatenate([bank, made[g]]) if target else bank)
    return grown


def _synthetic(train: Embeddings, config: Smote, note: Callable[[str], object]) -> np.ndarray:
    domains = [clip.domain for clip in train.clips]
    made, why = oversample(unit(train.values), domains, config)
    if why:
        note(f"SMOTE skipped for {name(train)}: {why}")
    return made


def _own(count: int, rows: np.ndarray) -> np.ndarray:
    """Return `[count]`: where each training clip stands in the bank of `rows`, or -1."""
    own = np.full(count, PADDING)
    own[rows] = np.arange(len(rows))
    return own
