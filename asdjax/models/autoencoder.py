"""The official baseline's autoencoder: five frames of a log-mel through a bottleneck of 8.

640 -> 4 x 128 -> 8 -> 4 x 128 -> 640; every dense layer but the last has batch norm and ReLU behind
it. 267,928 trained numbers, 269,992 with the running statistics. The weights are one flat dict and
the network is functions of it, so that `jax.vmap` makes an ensemble of it: one for each machine.

Source: nttcslab/dcase2023_task2_baseline_ae (Harada et al. 2023, "First-shot anomaly sound
  detection for machine condition monitoring"); layers start as PyTorch's do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.frontend.baseline import BANDS, HOP_SAMPLES, frame_count, log_mel
from asdjax.params import Params

FRAMES = 5  # successive frames in a vector
WIDTHS = (FRAMES * BANDS, 128, 128, 128, 128, 8, 128, 128, 128, 128, FRAMES * BANDS)
LAYERS = len(WIDTHS) - 1
MOMENTUM = 0.01  # share of a batch in the running statistics
EPSILON = 1e-3
SHORTEST_SAMPLES = (FRAMES - 1) * HOP_SAMPLES  # a clip that has one vector
SINGULAR = 1e-6  # smallest / largest eigenvalue; float32, in which the baseline inverts, has 1e-7


@dataclass(frozen=True)
class Autoencoder:
    """The official baseline's scores of a clip, by an autoencoder of its machine, `[3]`.

    Mean squared error; Mahalanobis square of the mean residual by the source's and by the target's
    covariance.
    """


def initialize(key: jax.Array) -> tuple[Params, Params]:
    """Return trainable weights and statistics; a dense layer's are uniform, ± 1 / sqrt(inputs)."""
    trainable, statistics = {}, {}
    for i, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        shapes, bound = {"kernel": (inputs, outputs), "bias": (outputs,)}, 1 / math.sqrt(inputs)
        for j, (name, shape) in enumerate(shapes.items()):
            own = jax.random.fold_in(key, 2 * i + j)
            drawn = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
            trainable[f"layers.{i}.{name}"] = drawn
        if i < LAYERS - 1:
            trainable[f"norms.{i}.scale"] = jnp.ones(outputs)
            trainable[f"norms.{i}.bias"] = jnp.zeros(outputs)
            statistics[f"norms.{i}.mean"] = jnp.zeros(outputs)
            statistics[f"norms.{i}.variance"] = jnp.ones(outputs)
    return trainable, statistics


def reconstruct(trainable: Params, statistics: Params, x):
    """Return `[B, 640]` from vectors `[B, 640]`, by the running statistics."""
    for i in range(LAYERS):
        x = _dense(trainable, i, x)
        if i < LAYERS - 1:
            mean, variance = (statistics[f"norms.{i}.{name}"] for name in ("mean", "variance"))
            x = _norm(trainable, i, x - mean[None], variance)
    return x


def reconstruct_training(trainable: Params, statistics: Params, x, valid):
    """Return `[B, 640]` by the statistics of this batch, and the running ones after it.

    Args:
      x: `[B, 640]` vectors.
      valid: `[B]` float, 1 for a vector and 0 for a row that fills a short batch; two or more
        vectors. The running variance is unbiased (n - 1), that of the batch is not: as PyTorch's.
    """
    count, weight, updated = valid.sum(), valid[:, None], {}
    for i in range(LAYERS):
        x = _dense(trainable, i, x)
        if i == LAYERS - 1:
            break
        mean = (weight * x).sum(0) / count
        deviation = x - mean[None]
        variance = (weight * jnp.square(deviation)).sum(0) / count
        batch = {"mean": mean, "variance": variance * count / (count - 1)}
        for name, value in batch.items():
            old = statistics[f"norms.{i}.{name}"]
            updated[f"norms.{i}.{name}"] = (1 - MOMENTUM) * old + MOMENTUM * value
        x = _norm(trainable, i, deviation, variance)
    return x, updated


def score_clips(weights: Params, wave, lengths):
    """Return `[B, 3]`, as `Autoencoder` says.

    Args:
      weights: of one machine: trainable weights, statistics, `precision.source` and
        `precision.target`.
      wave: `[B, N]` float32 in [-1, 1] or int16, 16 kHz.
      lengths: `[B]` valid samples, `SHORTEST_SAMPLES` or more.
    """

    def one(mel, frames):
        error, row = clip_residual(weights, weights, mel, frames)
        precisions = (weights[f"precision.{domain}"] for domain in ("source", "target"))
        return jnp.stack([error, *(mahalanobis(row, precision) for precision in precisions)])

    return jax.vmap(one)(log_mel(wave, lengths), frame_count(lengths))


def vectors(mel):
    """Return `[T - 4, 640]` from `[T, 128]`: each frame with the four that follow it."""
    count = mel.shape[0] - FRAMES + 1
    return jnp.concatenate([mel[i : i + count] for i in range(FRAMES)], -1)


def clip_residual(trainable: Params, statistics: Params, mel, frames):
    """Return a clip's mean squared error `[]` and the mean row `[128]` of its residual frames.

    Args:
      mel: `[T, 128]`, T >= 5.
      frames: `[]` int, how many of them are the clip's, 5 or more.
    """
    x = vectors(mel)
    inside = (jnp.arange(len(x)) < frames - FRAMES + 1)[:, None]
    residual = jnp.where(inside, x - reconstruct(trainable, statistics, x), 0.0)
    return mean_residual(residual, frames - FRAMES + 1)


def mean_residual(residual, count):
    """Return the mean square `[]` and the mean row `[128]` of `count` vectors `[B, 640]`, others 0.

    Each vector has five rows, one per frame.
    """
    error = jnp.square(residual).sum() / (count * WIDTHS[0])
    return error, residual.reshape(-1, BANDS).sum(0) / (count * FRAMES)


def mahalanobis(row, precision):
    """Return `[...]`: the Mahalanobis square of mean residual rows `[..., 128]`.

    The baseline takes the mean of *all* entries of D P D^T, D being the residual rows of a clip:
    with the mean row r that is r P r^T, not the mean square of the rows' distances (the diagonal).

    Args:
      precision: `[128, 128]`, of `precision_of`.
    """
    product = jnp.matmul(row, precision, precision=jax.lax.Precision.HIGHEST)
    return (product * row).sum(-1)


def scatter(residual, weight):
    """Return `[128, 128]`: the sum of products of residual rows, centered by their own mean.

    Args:
      residual: `[B, 640]`, five rows in each.
      weight: `[B]` float, 1 for those that count. Centering within a batch is the baseline's.
    """
    rows, weight = residual.reshape(-1, BANDS), jnp.repeat(weight, FRAMES)[:, None]
    mean = (weight * rows).sum(0) / jnp.maximum(weight.sum(), 1.0)
    centered = weight * (rows - mean[None])
    return jnp.matmul(centered.T, centered, precision=jax.lax.Precision.HIGHEST)


def precision_of(total: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Return the inverse `[128, 128]` float32 of a covariance, and the ridge it needed.

    Args:
      total: `[128, 128]`, the sum of `scatter` over batches.
      count: of *vectors*, by which (less 1) the baseline divides, though each has five rows.

    Returns:
      The ridge is 0 unless the covariance is singular (few clips, silent bands); it is then what
      lifts the smallest eigenvalue to `SINGULAR` times the largest. The baseline has none: it would
      stop, or score rounding errors. The inverse is taken in float64, the baseline's in float32.
    """
    covariance = np.asarray(total, np.float64) / max(count - 1, 1)
    smallest, *_, largest = np.linalg.eigvalsh(covariance)
    needed = SINGULAR * largest if largest > 0 else 1.0
    ridge = max(needed - smallest, 0.0) if smallest < needed else 0.0
    inverse = np.linalg.inv(covariance + ridge * np.eye(BANDS))
    return inverse.astype(np.float32), ridge


def _dense(trainable: Params, i: int, x):
    kernel = trainable[f"layers.{i}.kernel"]
    product = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)  # as PyTorch: no TF32
    return product + trainable[f"layers.{i}.bias"][None]


def _norm(trainable: Params, i: int, deviation, variance):
    """Scale deviations from the mean to variance 1, then learned scale and bias; ReLU."""
    factor = trainable[f"norms.{i}.scale"] * jax.lax.rsqrt(variance + EPSILON)
    return jax.nn.relu(deviation * factor[None] + trainable[f"norms.{i}.bias"][None])
