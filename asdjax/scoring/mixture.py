"""Gaussian mixtures of unit-length embeddings, fitted by expectation maximization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from asdjax.scoring.folds import (
    Fitted,
    Machines,
    Note,
    fit_sets,
    name,
    reference_sets,
    unit_rows,
)
from asdjax.scoring.kmeans import kmeans
from asdjax.types import check

STARTS = 10  # of the k-means that expectation maximization starts from
TOLERANCE = 1e-3  # of the mean log-likelihood, as in scikit-learn
MOST_STEPS = 100
FEW = 10 * float(jnp.finfo(jnp.float32).eps)  # clips of a component that has lost all


@dataclass(frozen=True)
class Mixture:
    """Negative log-likelihood under a mixture of Gaussians of the normal clips of a machine.

    One mixture of all training clips, of both domains: ten target clips in a thousand get the
    density of ten in a thousand, and a component of their own only if they lie apart.

    Args:
      components: Gaussians; starting from k-means.
      covariance: "full", or "diagonal" ones.
      floor: added to the variances. The squared lengths are 1, so that variances are at most
        1 / E on average. With fewer clips per component than dimensions the floor decides most of
        them.
      seed: of the k-means starts.

    Source: full covariances and the floor: Wilkinghoff, "Sub-cluster AdaCos", IJCNN 2021, with as
      many components as sub-clusters, which start there from the centers of the loss, and whose
      score is that of the likeliest component. IOA-CAS, DCASE 2024 Task 2, names a GMM of the
      embeddings without its settings.
    """

    components: int = 16
    covariance: Literal["full", "diagonal"] = "full"
    floor: float = 1e-3
    seed: int = 0

    def __post_init__(self):
        check(
            self,
            ("components", ">= 1", self.components >= 1),
            ("floor", "> 0", 0 < self.floor < math.inf),
            ("seed", "in [0, 2**32)", 0 <= self.seed < 2**32),
        )

    def fit(self, train: Machines, note: Note) -> Fitted:
        """Fit as `asdjax.scoring.folds.Fitted` says; training clips by fits without their fold.

        `note` says which machines have too few clips for their covariances, and which fits did not
        converge.
        """
        train = unit_rows(train)
        sets = reference_sets(train, "pooled")  # one of each machine
        longest, width = max(len(machine.values) for machine in train), train[0].values.shape[1]
        rows = width if self.covariance == "full" else 1  # of a covariance
        held = 4 * self.components * width * (rows + longest)
        fitted = fit_sets(train, sets, held, fit_mixture, negative_log_likelihood, self)
        (score, left_out), converged = fitted
        least = self.components * (rows + 1)
        if few := [f"{name(m)} ({len(m.clips)} clips)" for m in train if len(m.clips) < least]:
            note(
                f"singular without the floor {self.floor:g}: {self.components} {self.covariance} "
                f"covariances of {width} dimensions from {', '.join(few)}"
            )
        if moving := [name(m) for m, done in zip(train, converged, strict=True) if not done]:
            note(f"mixtures that did not converge in {MOST_STEPS} steps: {', '.join(moving)}")
        return lambda test: score(unit_rows(test)), left_out


def fit_mixture(values, weight, config: Mixture):
    """Return the mixture of rows `[n, E]` of weight 1, and whether its fit converged."""
    _, label, _ = kmeans(values, weight, config.seed, config.components, STARTS)
    start = jax.nn.one_hot(label, config.components)
    gaussians, steps = expectation_maximization(values, weight, start, config)
    return gaussians, steps < MOST_STEPS


def negative_log_likelihood(gaussians, query, config: Mixture):
    """Return `[q]` negative log-likelihoods of queries `[q, E]`."""
    return -jax.nn.logsumexp(log_joint(query, gaussians), 1)


def expectation_maximization(values, weight, responsible, config: Mixture):
    """Fit a mixture from a first guess of which component each row is of.

    Args:
      values, weight: `[n, E]`, and `[n]` of 0 and 1, the rows that count.
      responsible: `[n, K]`, the guess, with rows that sum to 1.
      config: the kind of covariance and its floor.

    Returns:
      Log weights `[K]`, means `[K, E]` and factors of the covariances, `[K, E, E]` lower triangular
      or `[K, E]` deviations; how many steps were taken.
    """

    def step(state):
        responsible, before, _, steps = state
        joint = log_joint(values, _maximize(values, responsible, config))
        likelihood = jax.nn.logsumexp(joint, 1, keepdims=True)
        mean = (weight * likelihood[:, 0]).sum() / jnp.maximum(weight.sum(), 1)
        responsible = jnp.exp(joint - likelihood) * weight[:, None]
        return responsible, mean, jnp.abs(mean - before), steps + 1

    def moves(state):
        return (state[2] >= TOLERANCE) & (state[3] < MOST_STEPS)

    state = responsible * weight[:, None], -jnp.inf, jnp.inf, 0
    responsible, _, _, steps = jax.lax.while_loop(moves, step, state)
    return _maximize(values, responsible, config), steps


def _maximize(values, responsible, config: Mixture):
    """Return the mixture that is likeliest if `responsible [n, K]` rows are of each component."""
    size = responsible.sum(0) + FEW
    means = _einsum("nk,ne->ke", responsible, values) / size[:, None]
    away = (values[None] - means[:, None]) * jnp.sqrt(responsible.T)[:, :, None]  # [K, n, E]
    if config.covariance == "diagonal":
        factors = jnp.sqrt(jnp.square(away).sum(1) / size[:, None] + config.floor)
    else:
        covariances = _einsum("kne,knf->kef", away, away) / size[:, None, None]
        factors = jnp.linalg.cholesky(covariances + config.floor * jnp.eye(values.shape[1])[None])
    return jnp.log(size / size.sum()), means, factors


def log_joint(values, gaussians):
    """Return `[n, K]`: the log density of each row `[n, E]` together with each component."""
    log_weights, means, factors = gaussians
    away = values[None] - means[:, None]  # [K, n, E]
    if factors.ndim == 2:
        square = jnp.square(away / factors[:, None]).sum(2)
        deviations = factors
    else:
        white = jax.scipy.linalg.solve_triangular(factors, away.mT, lower=True)  # [K, E, n]
        square = jnp.square(white).sum(1)
        deviations = jnp.diagonal(factors, axis1=1, axis2=2)
    volume = jnp.log(deviations).sum(1) + means.shape[1] / 2 * math.log(2 * math.pi)
    return (log_weights - volume)[None] - square.T / 2


def _einsum(how, *arrays):
    return jnp.einsum(how, *arrays, precision=jax.lax.Precision.HIGHEST)
