"""From embeddings to anomaly scores and decisions of every machine, by any scorer.

Statistics come from normal training clips alone: nothing of a test clip enters the score of
another one.
"""

from __future__ import annotations

import contextlib

import numpy as np

from asdjax.scoring import Scorer
from asdjax.scoring.folds import Machines, Note, name
from asdjax.types import InputError

ROWS = 2**14  # of embeddings that are looked at together


def score(
    train: Machines, test: Machines, scorer: Scorer, note: Note = lambda _: None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score the test clips of every machine and, left out, its training clips.

    Args:
      train, test: one entry per machine and section, in the same order; `train` holds normal clips.
      scorer: how to score; its method `fit` knows.
      note: called with a line for what a user should know, such as too few clips.

    Returns:
      Two lists of `[n]` float32, larger = more anomalous: test scores; the score each training clip
      gets without being in its reference set (inf where no other clip remains).

    Raises:
      InputError: embeddings that are not finite.
    """
    refuse_not_finite(train, test)
    scored, left_out = scorer.fit(train, note)
    return scored(test), left_out()


def refuse_not_finite(train: Machines, test: Machines) -> None:
    """Raise an InputError with all machines whose embeddings are not finite."""
    bad = []
    for machine in (*train, *test):
        if wrong := _not_finite(machine.values):
            clips = f"{wrong} of {len(machine.clips)} {machine.clips[0].split} clips"
            bad.append(f"{name(machine)} ({clips})")
    if bad:
        raise InputError(
            f"expected finite embeddings, got others of {', '.join(bad)}; a training that diverged "
            "gives such: lower its learning rate"
        )


def _not_finite(values: np.ndarray) -> int:
    """Return how many rows have a value that is not finite; a part of them at a time."""
    parts = (values[start : start + ROWS] for start in range(0, len(values), ROWS))
    return sum(int((~np.isfinite(part)).any(1).sum()) for part in parts)


FEW = 10  # training clips of which a threshold is no more than a guess
GAP, GAP_OF_FEW = 0.1, 1.63  # between two distributions; the second over sqrt(n)


def threshold(normal_scores: np.ndarray, challenge: bool) -> tuple[float | None, str]:
    """Return the score above which a clip is an anomaly, and what a user should know of it.

    The challenge's rule is the 90th percentile of a gamma distribution fitted to the scores. One
    odd training clip moves it far up, and its likelihood has poor local optima. So a fit that the
    scores contradict is not used: fewer than 2 or more than 30 % of them above the threshold, or
    their distribution farther from the gamma than chance allows (Kolmogorov-Smirnov, 1 %).

    Elsewhere it is `m + (2 + 12 / n) (q - m)` with median m and upper quartile q of n scores, which
    odd clips cannot move far while they are fewer than a quarter. Expected false alarms: about a
    tenth of the normal clips, 9 % where scores are Gaussian and 12 % where they are exponential; 12
    and 16 % with 5 training clips, 13 and 19 % with 2. The second term is for the quartiles of few
    scores, which vary.

    Args:
      normal_scores: `[n]` scores of normal sounds, by preference left out of what they are compared
        with; infinite ones are ignored.
      challenge: whether the rule of the challenge applies.

    Returns:
      The threshold, None where there is no score; a note, "" if there is nothing to say.

    Source: the official baselines (shape, location and scale all free; Dohi et al. 2022). The
      baseline fits scores of clips up to 2022 and of mini-batches from 2023 on. So do our baselines
      (`FitAutoencoders.normal_scores`); other scores have no mini-batches, and clips are used.
    """
    finite = np.asarray(normal_scores, np.float64)[np.isfinite(normal_scores)]
    if not len(finite):
        return None, "no decisions: no training clip can be compared with another"
    note = ""
    if challenge:
        fitted = _gamma_threshold(finite)
        if fitted is not None:
            return fitted, ""
        note = "a gamma distribution does not fit the scores of the training clips: threshold by "
        note += "their median and upper quartile"
    middle, upper = np.quantile(finite, (0.5, 0.75))
    if np.ptp(finite) == 0:
        note = f"the {len(finite)} scores of training clips are equal: above them is an anomaly"
    elif len(finite) < FEW:
        note = f"decisions by {len(finite)} scores of training clips, a rough guess"
    return float(middle + (2 + 12 / len(finite)) * (upper - middle)), note


def _gamma_threshold(scores: np.ndarray) -> float | None:
    """Return the 90th percentile of the fit, None where there is none that the scores support."""
    from scipy.stats import FitError, gamma, kstest

    if len(np.unique(scores)) < 3:  # as many as there are free parameters
        return None
    unit = np.abs(scores).mean()  # the optimizer's tolerances are absolute; a gamma scales
    with contextlib.suppress(FitError), np.errstate(all="ignore"):
        fit = gamma.fit(scores / unit)
        limit = float(unit * gamma.ppf(0.9, *fit))
        gap = kstest(scores / unit, gamma(*fit).cdf).statistic
        least = max(GAP, GAP_OF_FEW / np.sqrt(len(scores)))
        if 0.02 <= (scores > limit).mean() <= 0.3 and gap <= least:
            return limit
    return None
