"""From embeddings to anomaly scores and decisions of every machine, by any back end.

Statistics come from normal training clips alone: nothing of a test clip enters the score of
another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from asdjax.scoring import centers, mahalanobis, mixture, neighbors, reconstruction
from asdjax.scoring.banks import refuse_not_finite
from asdjax.scoring.centers import Centers
from asdjax.scoring.mahalanobis import Mahalanobis
from asdjax.scoring.mixture import Mixture
from asdjax.scoring.neighbors import Knn
from asdjax.scoring.reconstruction import Reconstruction
from asdjax.types import Embeddings, InputError

Scorer = Knn | Centers | Mixture | Mahalanobis | Reconstruction
SCORERS = {
    "knn": Knn,
    "centers": Centers,
    "mixture": Mixture,
    "mahalanobis": Mahalanobis,
}
BACK_ENDS: dict[type, Callable] = {
    Knn: neighbors.score,
    Centers: centers.score,
    Mixture: mixture.score,
    Mahalanobis: mahalanobis.score,
    Reconstruction: reconstruction.score,
}


def score(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    config: Scorer,
    note: Callable[[str], object] = lambda _: None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score the test clips of every machine and, left out, its training clips.

    Args:
      train, test: one entry per machine and section, in the same order; `train` holds normal clips.
      config: how to score.
      note: called with a line for what a user should know, such as too few clips.

    Returns:
      Two lists of `[n]` float32, larger = more anomalous: test scores; the score each training clip
      gets from what was made without it (inf where no other clip remains).

    Raises:
      InputError: embeddings that are not finite.
    """
    refuse_not_finite(train, test)
    return BACK_ENDS[type(config)](train, test, config, note)


def changed(scorer: Scorer, name: str | None, changes: Mapping[str, object]) -> Scorer:
    """Return the back end of a name (None: the same one) with some fields replaced.

    Raises:
      InputError: fields that the back end does not have; another back end for an autoencoder.
    """
    if isinstance(scorer, Reconstruction) and name is not None:
        raise InputError(
            f"expected no other back end for an autoencoder, whose embeddings are the scores "
            f"themselves, got {name}; choose one of them by kind: mse or mahalanobis"
        )
    kind = type(scorer) if name is None else SCORERS[name]
    known = [field.name for field in fields(kind)]
    if unknown := [field for field in changes if field not in known]:
        others = [other for other in SCORERS if SCORERS[other] is not kind]
        more = "" if kind is Reconstruction else f"; the other back ends are {', '.join(others)}"
        raise InputError(
            f"expected settings of {kind.__name__} ({', '.join(known)}), got {', '.join(unknown)}"
            f"{more}"
        )
    return replace(scorer if type(scorer) is kind else kind(), **changes)


def threshold(train_scores: np.ndarray) -> float:
    """Return the 90th percentile of a gamma distribution fitted to scores of normal clips.

    Args:
      train_scores: `[n]` scores of normal sounds; infinite ones are ignored.
        Where the fit fails (fewer than 2 or more than 30 % of them above its threshold: the
        likelihood of three parameters has poor local optima), the percentile of the scores
        themselves is returned, and infinity (no decision is "anomaly") where there is no score.

    Source: the official baselines (shape, location and scale all free; Dohi et al. 2022). The
      baseline fits scores of clips up to 2022 and of mini-batches from 2023 on. So do our baselines
      (`training.fitted_scores`); other scores have no mini-batches, and clips are used throughout.
    """
    from scipy.stats import FitError, gamma

    finite = np.asarray(train_scores, np.float64)[np.isfinite(train_scores)]
    if not len(finite):
        return np.inf
    if len(np.unique(finite)) >= 3:  # as many as there are free parameters
        unit = np.abs(finite).mean()  # the optimizer's tolerances are absolute; a gamma scales
        with contextlib.suppress(FitError), np.errstate(all="ignore"):
            fitted = float(unit * gamma.ppf(0.9, *gamma.fit(finite / unit)))
            if 0.02 <= (finite > fitted).mean() <= 0.3:
                return fitted
    return float(np.quantile(finite, 0.9))
