"""The official baseline's scores, of which its embedder gives all there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asdjax.types import Embeddings, check_choices


@dataclass(frozen=True)
class Reconstruction:
    """How badly a machine's autoencoder reconstructs a clip.

    Args:
      kind: the mean squared error, or the Mahalanobis square of the mean residual: the smaller of
        those by the covariances of source and target ("selective Mahalanobis").
    """

    kind: Literal["mse", "mahalanobis"] = "mse"

    def __post_init__(self):
        check_choices(self)


def score(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    config: Reconstruction,
    note: Callable[[str], object],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the scores of test and training clips; see `asdjax.scoring.score.score`.

    The autoencoder has seen the training clips: their scores are not left out, as in the baseline.
    """
    column = slice(0, 1) if config.kind == "mse" else slice(1, 3)
    return tuple([own.values[:, column].min(1) for own in part] for part in (test, train))
