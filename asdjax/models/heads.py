"""What judges embeddings in training: centers of classes or contrast, and what may stand before."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asdjax.losses.adacos import AdaCos, adacos_loss, initial_scale, next_scale
from asdjax.losses.contrastive import Contrastive, contrastive_loss
from asdjax.losses.margin import Margin, class_cosines, cosines, margin_loss, unit
from asdjax.models.norm import batch_norm


class Task(NamedTuple):
    """What one head tells apart, and how much of the loss that is."""

    loss: Margin | AdaCos | Contrastive
    counts: np.ndarray  # [C] int, centers of each class; a contrastive loss has none
    labels: int = 0  # which of a clip's labels are its classes
    weight: float = 1.0  # of its loss in the sum over heads
    branch: int | None = None  # whose part of the embedding it sees; None sees all


class Scale(nnx.Variable):
    """The dynamic scale of AdaCos, `[]` float32."""


class FixedCenters(nnx.Variable):
    """Centers that stay at their random start."""


class Head(nnx.Module):
    """Centers of classes and the loss that pulls embeddings to them.

    Args:
      task: which loss and classes.
      part: of the whole embedding, that it sees.
      train: let a dynamic scale follow the batch.
    """

    def __init__(self, task: Task, part: slice, *, train: bool, rngs: nnx.Rngs):
        self.loss, self.counts, self.train = task.loss, tuple(map(int, task.counts)), train
        self.labels, self.weight, self.branch = task.labels, task.weight, task.branch
        self.first, width = part.start, part.stop - part.start
        shape = len(self.counts), max(self.counts), width
        centers = jax.random.normal(rngs.params(), shape) * width**-0.5
        fixed = isinstance(self.loss, AdaCos) and not self.loss.trained
        self.centers = (FixedCenters if fixed else nnx.Param)(centers)
        if isinstance(self.loss, AdaCos):
            self.scale = Scale(jnp.float32(initial_scale(sum(self.counts))))

    def seen(self, embedding):
        """Return the part of the whole embedding that this head judges."""
        return embedding[:, self.first : self.first + self.centers.shape[-1]]

    def __call__(self, embedding, label, weight):
        """Return the loss of each clip `[B]` and its cosine to each class `[B, C]`, float32.

        Args:
          embedding: `[B, E]`, of the whole system.
          label, weight: `[B, M]`, classes of a clip and how much of it they are.
        """
        embedding, counts = self.seen(embedding), np.array(self.counts)
        if isinstance(self.loss, Margin):
            kind, margin, scale = self.loss.kind, self.loss.margin, self.loss.scale
            constants = {"kind": kind, "margin": margin, "scale": scale, "counts": counts}
            return margin_loss(embedding, self.centers[...], label, weight, **constants)
        arguments = embedding, self.centers[...], label, weight
        if self.train and self.loss.dynamic:
            cosine = cosines(embedding, self.centers[...])
            self.scale[...] = next_scale(cosine, label, weight, self.scale[...], counts=counts)
        loss, cosine = adacos_loss(*arguments, scale=self.scale[...], counts=counts)
        return loss, class_cosines(cosine, counts)


class ContrastiveHead(nnx.Module):
    """The contrastive loss of whole embeddings; it has no centers and tells no classes.

    Source: Huang et al. 2025 (OS-SCL): of a mixed clip only its own class counts.
    """

    def __init__(self, task: Task):
        self.loss, self.labels, self.weight, self.branch = task.loss, task.labels, task.weight, None

    def __call__(self, embedding, label, weight):
        """Return the loss of each clip `[B]`, and None; arguments as of `Head`."""
        temperature = self.loss.temperature
        return contrastive_loss(embedding, label[:, 0], temperature=temperature), None


def make_head(task: Task, part: slice, *, train: bool, rngs: nnx.Rngs) -> Head | ContrastiveHead:
    """Return the head of a task; `part` of the embedding and `train` as of `Head`."""
    if isinstance(task.loss, Contrastive):
        return ContrastiveHead(task)
    return Head(task, part, train=train, rngs=rngs)


class Perturbation(nnx.Module):
    """Two layers `[B, E] -> [B, hidden] -> [B, E]` that disturb embeddings, and unit length.

    Each is a linear layer, ReLU and batch normalization, in this order.

    Source: Huang et al. 2025 (OS-SCL), feature-perturbation head (128-64-128 there).
    """

    def __init__(self, width: int, hidden: int, *, train: bool, rngs: nnx.Rngs):
        self.down, self.up = (
            nnx.Linear(width, hidden, rngs=rngs),
            nnx.Linear(hidden, width, rngs=rngs),
        )
        self.down_norm, self.up_norm = (
            batch_norm(n, train=train, rngs=rngs) for n in (hidden, width)
        )

    def __call__(self, embedding: jax.Array) -> jax.Array:
        hidden = self.down_norm(jax.nn.relu(self.down(embedding)))
        return unit(self.up_norm(jax.nn.relu(self.up(hidden))))
