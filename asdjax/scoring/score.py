"""From embeddings to anomaly scores and decisions of every machine, by any scorer.

Statistics come from normal training clips alone: nothing of a test clip enters the score of
another one.
"""

from __future__ import annotations

import contextlib

import numpy as np

from asdjax.scoring import Scorer
from asdjax.scoring.folds import Machines, Note, TestAndLeftOut, name
from asdjax.types import InputError


def score(
    train: Machines, test: Machines, scorer: Scorer, note: Note = lambda _: None
) -> TestAndLeftOut:
    """Score the test clips of every machine and, left out, its training clips.

    Args:
      train, test: one entry per machine and section, in the same order; `train` holds normal clips.
      scorer: how to score; its method `score` does it.
      note: called with a line for what a user should know, such as too few clips.

    Returns:
      Two lists of `[n]` float32, larger = more anomalous: test scores; the score each training clip
      gets without being in its reference set (inf where no other clip remains).

    Raises:
      InputError: embeddings that are not finite.
    """
    bad = []
    for machine in (*train, *test):
        if wrong := int((~np.isfinite(machine.values)).any(1).sum()):
            clips = f"{wrong} of {len(machine.clips)} {machine.clips[0].split} clips"
            bad.append(f"{name(machine)} ({clips})")
    if bad:
        raise InputError(
            f"expected finite embeddings, got others of {', '.join(bad)}; a training that diverged "
            "gives such: lower its learning rate"
        )
    return scorer.score(train, test, note)


def threshold(train_scores: np.ndarray) -> float:
    """Return the 90th percentile of a gamma distribution fitted to scores of normal clips.

    Args:
      train_scores: `[n]` scores of normal sounds; infinite ones are ignored.
        Where the fit fails (fewer than 2 or more than 30 % of them above its threshold: the
        likelihood of three parameters has poor local optima), the percentile of the scores
        themselves is returned, and infinity (no decision is "anomaly") where there is no score.

    Source: the official baselines (shape, location and scale all free; Dohi et al. 2022). The
      baseline fits scores of clips up to 2022 and of mini-batches from 2023 on. So do our baselines
      (`FitAutoencoders.normal_scores`); other scores have no mini-batches, and clips are used.
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
