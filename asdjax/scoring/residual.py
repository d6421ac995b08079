"""What the principal components of the normal clips leave of an embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from asdjax.scoring.folds import (
    Fitted,
    Machines,
    Note,
    fit_sets,
    reference_sets,
    smallest,
    unit_rows,
)
from asdjax.types import check

TINY = 1e-6  # of the largest variance: less is rounding


@dataclass(frozen=True)
class Residual:
    """Distance of the embedding, of length 1, to the principal subspace of the normal clips.

    Args:
      variance: share of the variance that the components kept have.
      references: "pooled": one subspace of all training clips of a machine; "domain": of source and
        target clips separately, the smaller distance counts.

    Source: the reconstruction residual of Zhou and Wang 2026, "Scoring backends matter more than
        pooling" (arXiv 2606.19269).
    """

    variance: float = 0.95
    references: Literal["pooled", "domain"] = "pooled"

    def __post_init__(self):
        check(self, ("variance", "in (0, 1)", 0 < self.variance < 1))

    def fit(self, train: Machines, note: Note) -> Fitted:
        """Fit as `asdjax.scoring.folds.Fitted` says; training clips by fits without their fold."""
        sets, train = reference_sets(train, self.references), unit_rows(train)
        longest, width = max(len(machine.values) for machine in train), train[0].values.shape[1]
        held = 4 * min(longest, width) * (longest + width)
        fitted = fit_sets(train, sets, held, fit_subspace, distance, self.variance)
        (score, left_out), _ = fitted
        return (
            lambda test: smallest(score(unit_rows(test)), sets),
            lambda: smallest(left_out(), sets),
        )


def fit_subspace(values, weight, variance: float):
    """Return the mean `[E]` and the components `[K, E]` of rows, and how many are not zero.

    Args:
      values: `[n, E]` float32.
      weight: `[n]` of 0 and 1, the rows that count.
      variance: share of it that the components kept have, at least.
    """
    count = jnp.maximum(weight.sum(), 1)
    mean = (weight[:, None] * values).sum(0) / count
    centered = weight[:, None] * (values - mean[None])
    few = centered.shape[0] < centered.shape[1]  # rows: the smaller matrix has the same variances
    pair = (centered, centered.T) if few else (centered.T, centered)
    power, axes = jnp.linalg.eigh(_times(*pair))
    power, axes = jnp.maximum(power[::-1], 0), axes.T[::-1]  # falling
    before = jnp.cumsum(power) - power  # of the components in front of each
    kept = (before < variance * power.sum()) & (power > TINY * power[0])
    if few:
        axes = _times(axes, centered) / jnp.sqrt(jnp.where(kept, power, 1.0))[:, None]
    components = jnp.where(kept[:, None], axes, 0.0)
    return (mean, components), kept.sum()


def distance(known, query, variance: float):
    """Return the distances `[q]` of `query [q, E]` to a subspace of `fit_subspace`."""
    mean, components = known
    left = query - mean[None]
    left = left - _times(_times(left, components.T), components)
    return jnp.sqrt(jnp.square(left).sum(1))


def _times(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
