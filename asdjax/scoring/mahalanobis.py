"""Mahalanobis distance under a covariance that is well-conditioned however few clips there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring.folds import (
    Fitted,
    Machines,
    Note,
    fit_sets,
    name,
    reference_sets,
    smallest,
)
from asdjax.types import check, counted

LEAST_SHRINKAGE = 1e-3  # a float32 factor of a matrix of condition 1,000 E keeps two digits or more
SMALLEST_SPREAD = 1e-10  # of the mean square: float32 rounding of values that are equal
TINY = 1e-30


@dataclass(frozen=True)
class Mahalanobis:
    """Distance to the mean of the normal clips, in deviations along every direction.

    The embedding is taken as it is, with its length. Its covariance is drawn towards a sphere by as
    much as Ledoit and Wolf estimate to be best, so that it can be inverted also with fewer clips
    than dimensions. That of ten target clips is then nearly a sphere as wide as these clips spread,
    and what is small along a direction that source clips never take is not known of the target.
    One clip, or equal ones, have no spread: only the very same embedding is near them, so with
    "domain" the other domain decides.

    Args:
      references: "pooled": one mean and covariance of all training clips of a machine; "domain": of
        source and target clips separately, the smaller distance counts.

    Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
      matrices", 2004, section 3.
    """

    references: Literal["pooled", "domain"] = "domain"

    def __post_init__(self):
        check(self)

    def fit(self, train: Machines, note: Note) -> Fitted:
        """Fit as `asdjax.scoring.folds.Fitted` says; training clips by fits without their fold.

        `note` says which covariances could not have been inverted as they are.
        """
        sets = reference_sets(train, self.references)
        longest, width = max(len(machine.values) for machine in train), train[0].values.shape[1]
        held = 4 * width * (width + longest)
        (score, left_out), shrinkage = fit_sets(train, sets, held, fit_covariance, distance)
        lines = []
        for (g, rows), share in zip(sets, shrinkage, strict=True):
            moving = int((np.ptp(train[g].values[rows], 0) > 0).sum())
            if min(len(rows) - 1, moving) < width:
                part = len(rows) < len(train[g].clips)
                domain = f"{train[g].clips[rows[0]].domain} " if part else ""
                clips = (
                    f"{counted(len(rows), f'{domain}clip')}, {moving} of {width} dimensions vary"
                )
                lines.append(f"{name(train[g])} ({clips}: {share:.0%})")
        if lines:
            note(
                f"fewer clips than a covariance needs, shrunk towards a sphere: {'; '.join(lines)}"
            )
        return lambda test: smallest(score(test), sets), lambda: smallest(left_out(), sets)


def fit_covariance(values, weight):
    """Return mean `[E]`, scale and factor `[E, E]` of the covariance of rows, and the shrinkage."""
    mean, scale, covariance, shrinkage = ledoit_wolf(values, weight)
    return (mean, scale, jnp.linalg.cholesky(covariance)), shrinkage


def distance(known, query):
    """Return the distances `[q]` of `query [q, E]` by what `fit_covariance` returns."""
    mean, scale, factor = known
    centered = (query - mean[None]) / scale
    white = jax.scipy.linalg.solve_triangular(factor, centered.T, lower=True)
    return jnp.sqrt(jnp.square(white).sum(0))


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
    # Rows without a spread of their own get the sphere of `scale`.
    return mean, scale, covariance + jnp.eye(size) - sphere, shrinkage
