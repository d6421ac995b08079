"""One score from those of several systems: normalized, then summed with weights, or the smallest.

Scores of different systems have different scales. The scale of a system on a machine
comes from its leave-one-out scores of the normal training clips, so nothing of a test clip enters
the score of another one. With `transductive` it comes from the test clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from asdjax.types import InputError, check

MOST_VECTORS = 250_000  # tried by a search; seven systems in steps of 0.05 are 230,230
BLOCK_VECTORS = 1000  # tried at once: a few MB for a machine's 200 test clips
EQUAL = 1e-12  # official scores that are closer differ by rounding alone
SMALLEST_SPREAD = 1e-6  # of the largest value: a few roundings of float32 scores


@dataclass(frozen=True)
class Ensemble:
    """How the scores of several systems become one.

    Args:
      weights: one per system, divided by their sum; none: equal.
      normalize: "zscore" subtracts the mean of the reference scores and divides by their deviation.
        "rank" takes the share of reference scores that are smaller: robust, but a test score above
        all of them gets 1 however far above it lies, so it cannot order the most anomalous clips.
      combine: "sum" weighs and adds; "minimum" takes the smallest, so every system must agree.
      transductive: the reference scores are those of the machine's test clips, not leave-one-out
        scores of its normal training clips. A clip's score then depends on other test clips.
      search: take the weights that give the best official score on the labels of the test clips.
      step: of the search; every weight is a multiple of it.
      keep: which systems are combined: "all"; by "accuracy" or "score" those that reach the mean of
        all systems, weighted as they are. The accuracy is the share of training clips whose nearest
        other clip, by the system's embeddings, is of their class (machine and attributes). The
        score is the official one, on the labels of the test clips.

    Source: AITHU, DCASE 2024 Task 2, section 3 (zero mean and unit deviation, a
      weighted sum, weights by grid search on the development set); IOA-CAS, DCASE 2024 Task 2,
      section 4 (models with low accuracy are left out; it does not say what accuracy is).
    """

    weights: tuple[float, ...] = ()
    normalize: Literal["zscore", "rank"] = "zscore"
    combine: Literal["sum", "minimum"] = "sum"
    transductive: bool = False
    search: bool = False
    step: float = 0.1
    keep: Literal["all", "accuracy", "score"] = "all"

    def __post_init__(self):
        positive = all(math.isfinite(w) and w >= 0 for w in self.weights) and any(self.weights)
        divides = 0 < self.step <= 1 and abs(1 / self.step - round(1 / self.step)) < 1e-6
        weighted = self.weights or self.search
        check(
            self,
            ("weights", ">= 0, not all 0", positive or not self.weights),
            ("weights", "none with search", not (self.weights and self.search)),
            ("combine", "'sum' with weights or search", self.combine == "sum" or not weighted),
            ("step", "a number that divides 1, such as 0.1", divides),
        )

    @property
    def uses_labels(self) -> bool:
        return self.search or self.keep == "score"

    def shares(self, count: int) -> np.ndarray:
        """Return the weights `[m]` of `count` systems, which sum to one.

        Raises:
          InputError: another number of weights was given.
        """
        if self.weights and len(self.weights) != count:
            raise InputError(f"expected {count} weights, one per run, got {len(self.weights)}")
        weights = np.array(self.weights or [1.0] * count)
        return weights / weights.sum()


def accuracy(values: np.ndarray, labels: Sequence[str]) -> float:
    """Return the share of embeddings `[n, E]` whose nearest other one (cosine) has their label."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(metric="cosine").fit(values).kneighbors(n_neighbors=1)[1][:, 0]
    label = np.asarray(labels)
    return float(np.mean(label[found] == label))


def varies(reference: np.ndarray) -> bool:
    """Return whether scores `[r]` differ by more than rounding, so that they can set a scale."""
    return np.ptp(reference) > SMALLEST_SPREAD * np.abs(reference).max()


def normalize(scores: np.ndarray, reference: np.ndarray, how: str) -> np.ndarray:
    """Return scores `[n]` on a scale that all systems share.

    Args:
      scores: of one system on one machine and section.
      reference: `[r]`, scores of the same system and machine that vary.
      how: as `Ensemble.normalize`.

    Returns:
      `[n]` float64, larger = more anomalous. "zscore": deviations (divisor r) above the mean;
      "rank": in [0, 1], the share of smaller reference scores, equal ones counted half.
    """
    if how == "zscore":
        return (scores - reference.mean()) / reference.std()
    ordered = np.sort(reference)
    smaller, not_larger = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return (smaller + not_larger) / (2 * len(ordered))


def combine(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return one score per clip, `[n]`; larger = more anomalous.

    Args:
      values: `[m, n]`, normalized scores of m systems.
      weights: `[m]`; None takes the smallest of the systems.
    """
    return values.min(axis=0) if weights is None else weighted_sums(weights[None], values)[0]


def weighted_sums(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return `[W, n]`: the sum of `values [m, n]` for each of the vectors `weights [W, m]`.

    Added one system after the other: a matrix product may round a row otherwise in a batch than
    alone, and a search must see the very scores (and their ties) that are written.
    """
    total = np.zeros((len(weights), values.shape[1]))
    for weight, value in zip(weights.T, values, strict=True):
        total += weight[:, None] * value
    return total


def search(
    values: Sequence[np.ndarray],
    quality: Callable[[list[np.ndarray]], np.ndarray],
    step: float,
) -> tuple[np.ndarray, float]:
    """Return the weights `[m]` of the highest quality among all of `grid`, and that quality.

    Of equally good ones (up to rounding) the first of the grid wins, so the most equal weights.

    Args:
      values: per machine `[m, n]`, normalized scores of its labelled test clips.
      quality: takes combined scores `[W, n]` per machine, returns `[W]`, larger = better.
      step: as `Ensemble.step`.
    Raises:
      InputError: more vectors than can be tried.
    """
    vectors = grid(len(values[0]), step)
    found = np.concatenate(
        [
            quality([weighted_sums(vectors[start : start + BLOCK_VECTORS], v) for v in values])
            for start in range(0, len(vectors), BLOCK_VECTORS)
        ]
    )
    best = int(np.argmax(found >= found.max() - EQUAL))
    return vectors[best], float(found[best])


def grid(count: int, step: float) -> np.ndarray:
    """Return all weights `[W, m]` of `count` systems that are multiples of `step` and sum to one.

    The most equal (the smallest sum of squares) first; of equal sums that one first whose first
    weight is larger, then whose second is, and so on.

    Raises:
      InputError: more than `MOST_VECTORS`.
    """
    steps = round(1 / step)
    if (vectors := math.comb(steps + count - 1, count - 1)) > MOST_VECTORS:
        raise InputError(
            f"expected at most {MOST_VECTORS} combinations of weights, got {vectors} of {count} "
            f"runs in steps of {step}; give fewer runs or a larger step"
        )
    # A vector is a row of `steps` units with count - 1 bars between the systems.
    bars = np.array(list(combinations(range(steps + count - 1), count - 1)), dtype=int)
    units = np.diff(bars.reshape(vectors, -1), axis=1, prepend=-1, append=steps + count - 1) - 1
    order = np.lexsort((*-units.T[::-1], np.square(units).sum(axis=1)))
    return units[order] / steps
