"""The smallest of several scores, each in deviations of the normal training clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asdjax.scoring.centers import Centers
from asdjax.scoring.combine import varies
from asdjax.scoring.density import Density
from asdjax.scoring.folds import Fitted, Machines, Note
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

    def fit(self, train: Machines, note: Note) -> Fitted:
        """Fit as `asdjax.scoring.folds.Fitted` says."""
        scored, of_training = zip(
            *(scorer.fit(train, note) for scorer in self.scorers), strict=True
        )
        of_training = [one() for one in of_training]
        scales = [list(map(_scale, own)) for own in of_training]

        def score(test: Machines) -> list[np.ndarray]:
            each = [
                [
                    (x - mean) / deviation
                    for x, (mean, deviation) in zip(one(test), own, strict=True)
                ]
                for one, own in zip(scored, scales, strict=True)
            ]
            return _smallest(each)

        return score, lambda: _smallest([list(map(_left_out, own)) for own in of_training])


def _smallest(each: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Return the smallest scores `[n]` of each machine over scorers."""
    return [np.min(of, 0).astype(np.float32) for of in zip(*each, strict=True)]


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
