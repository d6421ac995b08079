"""The supervised contrastive loss, and the one-stage training (OS-SCL) that adds it to a margin.

In one-stage supervised contrastive learning a small head maps the embedding to a perturbed one;
the classification loss and `contrastive_loss` both take that one, and their sum is minimized. The
perturbation itself is a module of `asdjax.models`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from asdjax.losses.margin import unit
from asdjax.types import check

BASE_TEMPERATURE = 0.07  # the losses are scaled by temperature / this, as Khosla et al. train
LOWEST = float(jnp.finfo(jnp.float32).min)  # of a clip to itself; minus infinity has no gradient


@dataclass(frozen=True)
class Contrastive:
    """The contrastive term of OS-SCL, added to a classification loss.

    Args:
      temperature: cosines are divided by it; small ones look at the nearest clips alone.

    Source: Huang, Fang, He, "Noise Supervised Contrastive Learning and Feature-Perturbed for
      Anomalous Sound Detection", ICASSP 2025. Their temperature is 0.02; 0.04 is that of the XJU
      report of 2025.
    """

    temperature: float = 0.04

    has_classes = False

    def __post_init__(self):
        check(self, ("temperature", "> 0", 0 < self.temperature < math.inf))

    def head(
        self, width: int, counts: Sequence[int], *, train: bool, rngs: nnx.Rngs
    ) -> ContrastiveHead:
        """Return the module of `asdjax.losses.Loss`; it has no centers."""
        return ContrastiveHead(self.temperature)


class ContrastiveHead(nnx.Module):
    """The contrastive loss, which has no centers and no classes.

    Source: Huang et al. 2025 (OS-SCL): of a mixed clip only its own class counts.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature

    def __call__(self, embedding, label, weight):
        return contrastive_loss(embedding, label[:, 0], temperature=self.temperature), None


def contrastive_loss(embedding: jax.Array, label: jax.Array, *, temperature: float) -> jax.Array:
    """Return how much nearer than its own class the rest of the batch is to each row.

    The mean, over the other rows of the same label, of the cross-entropy of choosing that row among
    all other rows by cosine / temperature; times temperature / 0.07.

    Args:
      embedding: `[B, E]`, any length, any float type. One row per clip; of a clip in several views
        each is a row with the clip's label.
      label: `[B]` classes. Of a clip mixed from two, that of the clip itself, whatever its share:
        this is the noise of noise-supervised contrastive learning.
      temperature: as in `Contrastive`.

    Returns:
      `[B]` float32, >= 0; 0, without gradient, for a row that is alone in its class.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (the mean
      outside the logarithm); the factor as in their published code; labels and the single view as
      huangswt/OS-SCL:utils.py.
    """
    if embedding.ndim != 2 or label.shape != embedding.shape[:1]:
        raise ValueError(
            f"expected embedding [B, E] and label [B], got {embedding.shape} and {label.shape}"
        )
    rows = unit(embedding)
    itself = jnp.eye(len(rows), dtype=bool)
    cosine = jnp.einsum("be,ce->bc", rows, rows, precision=jax.lax.Precision.HIGHEST)
    logits = jnp.where(itself, LOWEST, cosine / temperature)
    entropy = jax.nn.logsumexp(logits, axis=1, keepdims=True) - logits
    positive = (label[:, None] == label[None]) & ~itself
    total = jnp.where(positive, entropy, 0.0).sum(1)
    return temperature / BASE_TEMPERATURE * total / jnp.maximum(positive.sum(1), 1)
