"""Mahalanobis distance under a covariance that is well-conditioned however few clips there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring.banks import Bank, banks, name, smallest
from asdjax.scoring.folds import fitted_scores
from asdjax.types import Embeddings, check_choices

LEAST_SHRINKAGE = 1e-3  # a float32 factor of a matrix of condition 1,000 E keeps two digits or more
SMALLEST_SPREAD = 1e-10  # of the mean square: float32 rounding of values that are equal
TINY = 1e-30


@dataclass(frozen=True)
class Mahalanobis:
    """Distance to the mean of the normal clips, in deviations along every direction.

    The embedding is taken as it is, with its length. Its covariance is drawn towards a sphere by as
    much as Ledoit and Wolf estimate to be best, so that it can be inverted also with fewer clips
    than numbers. A bank of ten target clips is then nearly a sphere as wide as these clips spread,
    and what is small along a direction that source clips never take is not known of the target.
    A bank of one clip, or of equal ones, has no spread: only the very same embedding is near it, so
    with "domain" the other domain decides.

    Args:
      banks: "pooled": one mean and covariance of all training clips of a machine; "domain": of
        source and target clips separately, the smaller distance counts.

    Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
      matrices", 2004, section 3.
    """

    banks: Literal["pooled", "domain"] = "domain"

    def __post_init__(self):
        check_choices(self)


def score(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    config: Mahalanobis,
    note: Callable[[str], object],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score as `asdjax.scoring.score.score` says; training clips by fits without their fold."""
    fitted = banks(train, config.banks)
    clips, numbers = max(len(machine.values) for machine in train), train[0].values.shape[1]
    held = 4 * numbers * (numbers + clips)
    found, left, shrinkage = fitted_scores(train, test, fitted, held, distance)
    _note_singular(train, fitted, shrinkage, note)
    return smallest(found, fitted), smallest(left, fitted)


def distance(values, weight, query):
    """Return the distances `[q]` of `query [q, E]` to rows `[n, E]`, and the shrinkage."""
    mean, scale, covariance, shrinkage = ledoit_wolf(values, weight)
    factor = jnp.linalg.cholesky(covariance)
    centered = (query - mean[None]) / scale
    white = jax.scipy.linalg.solve_triangular(factor, centered.T, lower=True)
    return jnp.sqrt(jnp.square(white).sum(0)), shrinkage


def ledoit_wolf(values, weight):
    """Return the mean of rows and their covariance, shrunk towards a sphere of equal volume.

    Args:
      values: `[n, E]` float32.
      weight: `[n]` of 0 and 1, the rows that count.

    Returns:
      The mean `[E]`; the root of the mean variance; the covariance `[E, E]` over the mean variance,
      so that its trace is E; the shrinkage, in [0.001, 1]: 1 is a sphere.
    """
    count, size = jnp.maximum(weight.sum(), 1), values.shape[1]
    mean = (weight[:, None] * values).sum(0) / count
    centered = weight[:, None] * (values - mean[None])
    variance = jnp.square(centered).sum() / (count * size)
    rounding = SMALLEST_SPREAD * (weight[:, None] * jnp.square(values)).sum() / (count * size)
    scale = jnp.sqrt(jnp.maximum(jnp.maximum(variance, rounding), TINY))
    centered = centered / scale
    sample = jnp.matmul(centered.T, centered, precision=jax.lax.Precision.HIGHEST) / count
    sphere = jnp.trace(sample) / size * jnp.eye(size)
    # Squared Frobenius norms: how far the sample is from the sphere, and from the truth.
    apart = jnp.square(sample - sphere).sum()
    error = jnp.square(jnp.square(centered).sum(1)).sum() / count - jnp.square(sample).sum()
    best = jnp.where(apart > 0, error / count / jnp.maximum(apart, TINY), 1.0)
    shrinkage = jnp.clip(best, LEAST_SHRINKAGE, 1.0)
    covariance = (1 - shrinkage) * sample + shrinkage * sphere
    # Without a spread of its own a bank gets the sphere of `scale`.
    return mean, scale, covariance + jnp.eye(size) - sphere, shrinkage


def _note_singular(
    train: Sequence[Embeddings],
    fitted: Sequence[Bank],
    shrinkage: np.ndarray,
    note: Callable[[str], object],
) -> None:
    """Tell of which banks the covariance could not have been inverted as it is."""
    lines = []
    for (g, rows), share in zip(fitted, shrinkage, strict=True):
        values = train[g].values[rows]
        moving = int((np.ptp(values, 0) > 0).sum())
        if min(len(rows) - 1, moving) < values.shape[1]:
            domain = f"{train[g].clips[rows[0]].domain} " if len(rows) < len(train[g].clips) else ""
            told = f"{len(rows)} {domain}clips, {moving} of {values.shape[1]} numbers vary"
            lines.append(f"{name(train[g])} ({told}: {share:.0%} sphere)")
    if lines:
        note(f"singular covariances made regular: {'; '.join(lines)}")
