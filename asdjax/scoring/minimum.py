"""The smallest of several scores, each in deviations of the normal training clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asdjax.scoring.centers import Centers
from asdjax.scoring.combine import varies
from asdjax.scoring.density import Density
from asdjax.scoring.folds import Machines, Note, TestAndLeftOut
from asdjax.scoring.knn import Knn
from asdjax.scoring.mahalanobis import Mahalanobis
from asdjax.scoring.mixture import Mixture
from asdjax.scoring.residual import Residual
from asdjax.types import check

Single = Knn | Centers | Mixture | Mahalanobis | Residual


@dataclass(frozen=True)
class Minimum:
    """The smallest of several scores of the same embeddings: all must agree on an anomaly.

    Each score is first taken in standard deviations above the mean of the left-out scores of the
    training clips; those of a training clip from the other clips' scores.

    Args:
      scorers: two or more.

    Source: Zhou and Wang 2026, "Scoring backends matter more than pooling" (arXiv 2606.19269), its
        fusion and the four scorers.
    """

    scorers: tuple[Single, ...] = (Knn(), Mahalanobis(), Knn(normalize=Density()), Residual())

    def __post_init__(self):
        check(self, ("scorers", "two or more", len(self.scorers) > 1))

    def score(self, train: Machines, test: Machines, note: Note) -> TestAndLeftOut:
        """Score as `asdjax.scoring.score.score` says."""
        tests, left_outs = [], []
        for scorer in self.scorers:
            found, left_out = scorer.score(train, test, note)
            scales = list(map(_scale, left_out))
            tests.append(
                [(x - mean) / deviation for x, (mean, deviation) in zip(found, scales, strict=True)]
            )
            left_outs.append(list(map(_left_out, left_out)))
        smallest = [
            [np.min(of, 0).astype(np.float32) for of in zip(*one, strict=True)]
            for one in (tests, left_outs)
        ]
        return smallest[0], smallest[1]


def _scale(scores: np.ndarray) -> tuple[float, float]:
    """Return mean and deviation of the finite scores `[n]`; 0 and 1 where they do not vary."""
    finite = np.float64(scores[np.isfinite(scores)])
    if not len(finite):
        return 0.0, 1.0
    return finite.mean(), finite.std() if varies(finite) else 1.0


def _left_out(scores: np.ndarray) -> np.ndarray:
    """Return each of the scores `[n]` in deviations of the others."""
    scales = [_scale(np.delete(scores, i)) for i in range(len(scores))]
    mean, deviation = np.array(scales).T
    return (scores - mean) / deviation
