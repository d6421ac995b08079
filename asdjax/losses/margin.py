"""Softmax over scaled cosines, with a margin on the true class; several centers per class.

ArcFace is also known as AAM-softmax (additive angular margin), AM-softmax as CosFace. Everything
but the head is a pure function of embeddings, centers and labels, in float32 whatever comes in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asdjax.types import check

SMALLEST_SQUARE = 1e-24  # squared length below which a vector counts as zero
SMALLEST_SINE = 1e-3  # below 5e-4 rad all float32 cosines are 1, and the slope of the sine explodes
LARGEST_MARGIN = {"softmax": math.inf, "am-softmax": 2.0, "arcface": math.pi / 2}


@dataclass(frozen=True)
class Margin:
    """Cosine softmax with a margin.

    Args:
      kind: arcface (AAM-softmax) adds to the angle of the true class, am-softmax takes from its
        cosine, softmax leaves it as it is.
      margin: in radians for arcface, in [0, pi/2); in units of the cosine for am-softmax, in
        [0, 2); not used by softmax.
      scale: cosines are multiplied by it before the softmax.
      subcenters: centers per class; the nearest one counts (sub-center ArcFace when above 1).
      subcenters_without_attributes: the same for a class whose machine has no attributes; None: as
        subcenters.
    """

    kind: Literal["softmax", "am-softmax", "arcface"] = "arcface"
    margin: float = 0.5
    scale: float = 30.0
    subcenters: int = 1
    subcenters_without_attributes: int | None = None

    has_classes = True

    def __post_init__(self):
        largest, other = LARGEST_MARGIN.get(self.kind, math.inf), self.subcenters_without_attributes
        unit = " radians, not degrees" if self.kind == "arcface" else ""
        check(
            self,
            ("margin", f"in [0, {largest:.4g}){unit}", 0 <= self.margin < largest),
            ("scale", "> 0", 0 < self.scale < math.inf),
            ("subcenters", ">= 1", self.subcenters >= 1),
            ("subcenters_without_attributes", ">= 1 or none", other is None or other >= 1),
        )

    def center_counts(self, without_attributes: np.ndarray) -> np.ndarray:
        """Return how many centers each class has, `[C]` int, from `[C]` bool."""
        other = self.subcenters_without_attributes
        other = self.subcenters if other is None else other
        return np.where(without_attributes, other, self.subcenters)

    def head(self, width: int, counts: Sequence[int], *, train: bool, rngs: nnx.Rngs) -> MarginHead:
        """Return the module of `asdjax.losses.Loss` that has the centers."""
        return MarginHead(self, width, counts, rngs=rngs)


class MarginHead(nnx.Module):
    """Centers of classes, and the margin loss that pulls embeddings to them."""

    def __init__(self, config: Margin, width: int, counts: Sequence[int], *, rngs: nnx.Rngs):
        self.config, self.counts = config, tuple(counts)
        self.centers = nnx.Param(random_centers(width, self.counts, rngs))

    def __call__(self, embedding, label, weight):
        config, counts = self.config, np.array(self.counts)
        how = {"kind": config.kind, "margin": config.margin, "scale": config.scale}
        return margin_loss(embedding, self.centers[...], label, weight, **how, counts=counts)


def random_centers(width: int, counts: Sequence[int], rngs: nnx.Rngs) -> jax.Array:
    """Return `[C, K, width]`, of length about 1; K is the largest count."""
    shape = len(counts), max(counts), width
    return jax.random.normal(rngs.params(), shape) * width**-0.5


def margin_loss(
    embedding: jax.Array,
    centers: jax.Array,
    label: jax.Array,
    weight: jax.Array,
    *,
    kind: str,
    margin: float,
    scale: float,
    counts: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return each row's cross-entropy, and its class cosines without margin.

    A row's loss is sum over m of weight[m] * cross-entropy of label[m], each with the margin on
    class label[m] alone.

    Args:
      embedding: `[B, E]`, any length, any float type.
      centers: `[C, K, E]`, any length.
      label, weight: `[B, M]`. A label out of 0..C-1 makes the loss inf.
      kind, margin, scale: as in `Margin`.
      counts: `[C]`, how many of the K sub-centers a class has; None: all.

    Returns:
      `[B]` and `[B, C]`, float32.

    Source: ArcFace (Deng et al., CVPR 2019, equation 3); CosFace (Wang et al., CVPR 2018, the large
      margin cosine loss); Sub-center ArcFace (Deng et al., ECCV 2020: the largest cosine of a class
      counts).
    """
    check_shapes(embedding, centers, label, weight)
    cosine = class_cosines(cosines(embedding, centers), counts)
    true = scale * with_margin(of_label(cosine, label), kind, margin)  # [B, M]
    logits = jnp.where(is_label(label, len(centers)), true[:, :, None], scale * cosine[:, None])
    entropy = jax.nn.logsumexp(logits, axis=2) - true
    return (weight.astype(jnp.float32) * entropy).sum(1), cosine


def cosines(embedding: jax.Array, centers: jax.Array) -> jax.Array:
    """Return the cosine of each embedding `[B, E]` to all centers `[C, K, E]`: `[B, C, K]` float32.

    In [-1, 1]. A zero vector has cosine 0 to everything and gets no gradient.
    """
    product = jnp.einsum(
        "be,cke->bck", unit(embedding), unit(centers), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.clip(product, -1.0, 1.0)


def unit(x: jax.Array) -> jax.Array:
    """Return the vectors of the last axis at length 1, float32; those of length 0 stay as such."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(square, SMALLEST_SQUARE))
    # Without the choice a zero vector would get the gradient 1 / sqrt(SMALLEST_SQUARE).
    return x * jnp.where(square > SMALLEST_SQUARE, inverse, 0.0)


def class_cosines(cosine: jax.Array, counts: np.ndarray | None = None) -> jax.Array:
    """Return the largest cosine over a class's own sub-centers: `[B, C, K]` to `[B, C]`."""
    return jnp.where(exists(cosine, counts)[None], cosine, -jnp.inf).max(2)


def exists(cosine: jax.Array, counts: np.ndarray | None) -> jax.Array:
    """Return `[C, K]` bool: whether a class has this sub-center, for cosines `[B, C, K]`."""
    _, classes, most = cosine.shape
    if counts is None:
        return jnp.ones((classes, most), bool)
    if np.shape(counts) != (classes,):
        raise ValueError(f"expected one count for each of {classes} classes, got {counts}")
    return jnp.arange(most)[None] < jnp.asarray(counts)[:, None]


def with_margin(cosine: jax.Array, kind: str, margin: float) -> jax.Array:
    """Return the cosine of the true class after the margin: never larger, rising in the cosine.

    ArcFace is cos(a + m) = cos a cos m - sin a sin m while a + m < pi. Beyond it is
    cos a - m sin m, as in the code of its authors (insightface), for cos(a + m) would rise again.
    That is no smooth continuation: at a = pi - m the value drops by cos m + m sin m - 1 (0.020 at
    m = 0.2, 0.117 at m = 0.5), a step in the right direction.
    """
    if kind == "softmax":
        return cosine
    if kind == "am-softmax":
        return cosine - margin
    if kind != "arcface":
        raise ValueError(f"expected a kind of {list(LARGEST_MARGIN)}, got {kind!r}")
    # arccos would have an infinite slope at +-1; so has the square root, hence its floor.
    sine = jnp.sqrt(jnp.maximum((1.0 - cosine) * (1.0 + cosine), SMALLEST_SINE**2))
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return jnp.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))


def is_label(label: jax.Array, classes: int) -> jax.Array:
    """Return `[B, M, C]` bool: whether class c is label[b, m]."""
    return label[:, :, None] == jnp.arange(classes)[None, None]


def of_label(value: jax.Array, label: jax.Array) -> jax.Array:
    """Return `[B, M]`: of `value [B, C]` that of each label; -inf for a label that is no class."""
    return jnp.where(is_label(label, value.shape[1]), value[:, None], -jnp.inf).max(2)


def check_shapes(embedding, centers, label, weight) -> None:
    """Raise ValueError unless `[B, E]`, `[C, K, E]`, `[B, M]`, `[B, M]`."""
    shapes = [x.shape for x in (embedding, centers, label, weight)]
    same = shapes[0][:1] == shapes[2][:1] and shapes[0][1:] == shapes[1][2:]
    if list(map(len, shapes)) != [2, 3, 2, 2] or shapes[2] != shapes[3] or not same:
        raise ValueError(
            "expected embedding [B, E], centers [C, K, E], label [B, M] and weight [B, M], got "
            + ", ".join(map(str, shapes))
        )
