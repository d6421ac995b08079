"""AdaCos and sub-cluster AdaCos: cosine softmax whose scale follows from the data.

The scale starts at `initial_scale` and either stays there (fixed AdaCos) or is replaced at every
step by `next_scale` (dynamic AdaCos). In AdaCos a batch is already scored with the scale that
follows from itself: call `next_scale(cosines(embedding, centers), ...)` first and `adacos_loss`
with its result; under `jax.jit` the cosines are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asdjax.losses.margin import (
    check_shapes,
    class_cosines,
    cosines,
    exists,
    is_label,
    of_label,
    random_centers,
)
from asdjax.types import InputError, check


@dataclass(frozen=True)
class AdaCos:
    """AdaCos, or sub-cluster AdaCos.

    Args:
      subclusters: centers per class, whose probabilities are summed; 1 is AdaCos.
      dynamic: follow the angles of each batch with the scale, or keep the one of the start.
      trained: train the centers, or leave them where they fell at random.
    """

    subclusters: int = 1
    dynamic: bool = True
    trained: bool = True

    has_classes = True

    def __post_init__(self):
        check(self, ("subclusters", ">= 1", self.subclusters >= 1))

    def center_counts(self, without_attributes: np.ndarray) -> np.ndarray:
        """Return how many centers each class has, `[C]` int, from `[C]` bool."""
        return np.full(len(without_attributes), self.subclusters)

    def head(self, width: int, counts: Sequence[int], *, train: bool, rngs: nnx.Rngs) -> AdaCosHead:
        """Return the module of `asdjax.losses.Loss` that has the centers and the scale."""
        return AdaCosHead(self, width, counts, train=train, rngs=rngs)


class AdaCosHead(nnx.Module):
    """Centers of classes and a scale, and the AdaCos loss that pulls embeddings to the centers.

    In training a dynamic scale follows the batch.
    """

    def __init__(
        self, config: AdaCos, width: int, counts: Sequence[int], *, train: bool, rngs: nnx.Rngs
    ):
        self.counts, self.follows = tuple(counts), train and config.dynamic
        # What has no gradient but belongs to the trained weights is a statistic.
        kind = nnx.Param if config.trained else nnx.BatchStat
        self.centers = kind(random_centers(width, self.counts, rngs))
        self.scale = nnx.BatchStat(jnp.float32(initial_scale(sum(self.counts))))

    def __call__(self, embedding, label, weight):
        counts, centers = np.array(self.counts), self.centers[...]
        if self.follows:
            cosine = cosines(embedding, centers)
            self.scale[...] = next_scale(cosine, label, weight, self.scale[...], counts=counts)
        scale = self.scale[...]
        loss, cosine = adacos_loss(embedding, centers, label, weight, scale=scale, counts=counts)
        return loss, class_cosines(cosine, counts)


def initial_scale(centers: int) -> float:
    """Return sqrt(2) ln(C S - 1), the scale of fixed AdaCos and the start of the dynamic one.

    Args:
      centers: C S, of all classes together.

    Raises:
      InputError: fewer than 3 centers, for which this is not a positive number.

    Source: AdaCos (Zhang et al., CVPR 2019, fixed scale); Sub-cluster AdaCos (Wilkinghoff, IJCNN
      2021) for S > 1.
    """
    if centers < 3:
        raise InputError(
            f"expected at least 3 centers for AdaCos, got {centers} of all classes; use more "
            "sub-clusters or another loss"
        )
    return math.sqrt(2) * math.log(centers - 1)


def adacos_loss(
    embedding: jax.Array,
    centers: jax.Array,
    label: jax.Array,
    weight: jax.Array,
    *,
    scale: jax.Array | float,
    counts: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return each row's cross-entropy on its soft label, and the cosines to all centers.

    The probability of a class is the sum of the probabilities of its centers in one softmax over
    all of them.

    Args:
      embedding: `[B, E]`, any length, any float type.
      centers: `[C, S, E]`, any length.
      label, weight: `[B, M]`, the classes of a row and their parts of it. A label out of 0..C-1
        makes the loss inf.
      scale: what the cosines are multiplied by.
      counts: `[C]`, how many of the S sub-clusters a class has; None: all.

    Returns:
      `[B]` and `[B, C, S]`, float32; the class is the largest of their `class_cosines`.

    Source: Sub-cluster AdaCos (Wilkinghoff, IJCNN 2021); AdaCos (Zhang et al., CVPR 2019) at S = 1.
    """
    check_shapes(embedding, centers, label, weight)
    cosine = cosines(embedding, centers)
    logits = jnp.where(exists(cosine, counts)[None], scale * cosine, -jnp.inf)
    of_class = jax.nn.logsumexp(logits, axis=2)  # [B, C]
    log_probability = of_class - jax.nn.logsumexp(of_class, axis=1, keepdims=True)
    return -(weight.astype(jnp.float32) * of_label(log_probability, label)).sum(1), cosine


def next_scale(
    cosine: jax.Array,
    label: jax.Array,
    weight: jax.Array,
    scale: jax.Array | float,
    counts: np.ndarray | None = None,
) -> jax.Array:
    """Return the scale that dynamic AdaCos takes after `scale`, seeing this batch's cosines.

    It is ln B / cos(min(pi/4, median angle)), where B is the batch mean of a row's sum of
    exp(scale * cosine) over the centers of wrong classes, and the angle is that between a row and
    its true class. The median of an even batch is the mean of its two middle values. No gradient
    flows. Nothing bounds the scale from above: it grows step by step while the largest cosines to
    wrong classes exceed cos(min(pi/4, median angle)).

    Args:
      cosine: `[B, C, S]` float32, as of `margin.cosines`; the whole batch, over all devices.
      label, weight: `[B, M]`, as in `adacos_loss`.
      scale: the one before.
      counts: `[C]`, how many of the S sub-clusters a class has; None: all.

    Returns:
      A float32 scalar > 0: `scale` itself where the equation has no positive value (B <= 1: a
      handful of classes far apart, or no wrong class at all).

    Source: AdaCos (Zhang et al., CVPR 2019, dynamic scale). What it leaves open, being about one
      center and one label:
      - The angle to a class is that to its nearest center, as only that one has to fit. (The code
        of Wilkinghoff 2021 adds the angles to all S centers, which for S > 1 is nearly always above
        pi/4, so that the median has no say.)
      - The angle of a mixed row is the mean of its angles by weight.
      - A class is wrong for a row that holds no part of it. (The code of Wilkinghoff 2021 counts
        the true classes in B too; then a well fitted row alone drives the scale up.)
    """
    cosine, scale = jax.lax.stop_gradient((cosine, jnp.asarray(scale, jnp.float32)))
    weight = weight.astype(jnp.float32)
    rows, classes, _ = cosine.shape
    held = (is_label(label, classes) & (weight > 0)[:, :, None]).any(1)  # [B, C]
    counted = ~held[:, :, None] & exists(cosine, counts)[None]
    log_sum = jax.nn.logsumexp(jnp.where(counted, scale * cosine, -jnp.inf)) - math.log(rows)
    angle = (weight * jnp.arccos(of_label(class_cosines(cosine, counts), label))).sum(1)
    proposed = log_sum / jnp.cos(jnp.minimum(math.pi / 4, jnp.median(angle)))
    return jnp.where(log_sum > 0, proposed, scale)
