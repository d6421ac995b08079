"""A system that learns: backbone, pooling, projection, and heads that classify machines.

BEATs tokens `[B, L, D]` -> pooling `[B, P]` -> dense layer: the embedding `[B, E]` -> heads. The
centers of a head are the second dense layer of the reports, from the embedding to the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asdjax import params as weights
from asdjax.losses.adacos import AdaCos, adacos_loss, initial_scale, next_scale
from asdjax.losses.margin import Margin, class_cosines, cosines, margin_loss
from asdjax.models.beats import Beats, BeatsConfig, without_dropout
from asdjax.models.dropout import Key
from asdjax.models.lora import Lora, adapt, is_adapter
from asdjax.models.pooling import Pooling, make_pool, pool_width
from asdjax.params import Params
from asdjax.types import InputError, check_choices

BACKBONE = "backbone."  # what the names of its weights begin with


@dataclass(frozen=True)
class FineTuned:
    """A backbone, trained as `train` says, and its embedding.

    Args:
      weights: a name of `asdjax weights list` or a converted `.safetensors` file to start from.
      adapter: LoRA; None trains every weight of the backbone.
      pooling: from tokens to one vector: their mean, the class token, or attentive statistics.
      embedding: width of the embedding.
      dropout: drop values and layers in training at the rates that the checkpoint carries. (Its
        decay of gradients from layer to layer, 1 in the pre-trained files, holds either way.)
      dtype: of the matrix products; parameters, norms, pooling, margins stay float32.
      remat: compute each layer again in the backward pass instead of keeping its values: less
        memory, about a third more time.
    """

    weights: str = "beats-iter3"
    adapter: Lora | None = None
    pooling: Pooling = "statistics"
    embedding: int = 128
    dropout: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self):
        check_choices(self)
        if self.embedding < 2:
            raise InputError(f"expected an embedding of at least 2 numbers, got {self.embedding}")


class Scale(nnx.Variable):
    """The dynamic scale of AdaCos, `[]` float32."""


class FixedCenters(nnx.Variable):
    """Centers that stay at their random start."""


STATISTICS = nnx.Any(nnx.BatchStat, Scale, FixedCenters)  # what a step changes without a gradient


class Head(nnx.Module):
    """Centers of classes and the loss that pulls embeddings to them.

    Args:
      loss: which, and its constants.
      counts: `[C] int`, centers of each class.
      embedding: E.
      train: let a dynamic scale follow the batch.
    """

    def __init__(
        self,
        loss: Margin | AdaCos,
        counts: np.ndarray,
        embedding: int,
        *,
        train: bool,
        rngs: nnx.Rngs,
    ):
        self.loss, self.counts, self.train = loss, tuple(map(int, counts)), train
        shape = len(counts), int(max(counts)), embedding
        centers = jax.random.normal(rngs.params(), shape) * embedding**-0.5
        fixed = isinstance(loss, AdaCos) and not loss.trained
        self.centers = (FixedCenters if fixed else nnx.Param)(centers)
        if isinstance(loss, AdaCos):
            self.scale = Scale(jnp.float32(initial_scale(len(counts), int(max(counts)))))

    def __call__(self, embedding, label, weight):
        """Return the loss of each clip `[B]` and its cosine to each class `[B, C]`, float32.

        Args:
          embedding: `[B, E]`.
          label, weight: `[B, M]`, classes of a clip and how much of it they are.
        """
        counts = np.array(self.counts)
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


class System(nnx.Module):
    """Normalized log-mel in, embedding out; `heads` has the losses."""

    def __init__(
        self,
        config: FineTuned,
        structure: BeatsConfig,
        heads: Sequence[tuple[Margin | AdaCos, np.ndarray]] = (),
        *,
        train: bool,
        rngs: nnx.Rngs,
    ):
        if config.pooling == "cls":
            raise InputError('pooling "cls": BEATs has no class token; use "mean" or "statistics"')
        width = structure.encoder_embed_dim
        structure = structure if config.dropout else without_dropout(structure)
        self.backbone = Beats(
            structure,
            dtype=jnp.dtype(config.dtype),
            train=train,
            remat=train and config.remat,
            rngs=rngs,
        )
        if config.adapter is not None:
            adapt(self.backbone, config.adapter, train=train, rngs=rngs)
        self.pool = make_pool(config.pooling, width, train=train, rngs=rngs)
        self.project = nnx.Linear(pool_width(config.pooling, width), config.embedding, rngs=rngs)
        head = partial(Head, embedding=config.embedding, train=train, rngs=rngs)
        self.heads = nnx.List([head(loss, counts) for loss, counts in heads])

    def __call__(self, mel, padding=None) -> jax.Array:
        """Return `[B, E]` float32 from `mel [B, T, 128]`; `padding [B, L]`, True = no token."""
        tokens = self.backbone(mel, padding)
        return self.project(self.pool(tokens, None if padding is None else ~padding))


class Parts(NamedTuple):
    """A system taken apart: its graph and, by name, what its four kinds of values look like."""

    graph: nnx.GraphDef
    keys: dict  # random keys that each training step puts in
    statistics: dict
    trainable: dict
    frozen: dict


def take_apart(
    config: FineTuned,
    structure: BeatsConfig,
    heads: Sequence[tuple[Margin | AdaCos, np.ndarray]] = (),
    *,
    train: bool,
) -> Parts:
    """Return the parts of a system, as shapes; refuses an adapter that does not fit."""
    system = partial(System, config, structure, heads, train=train)
    return _split(nnx.eval_shape(lambda: system(rngs=nnx.Rngs(0))), config)


def initialize(
    config: FineTuned,
    structure: BeatsConfig,
    heads: Sequence[tuple[Margin | AdaCos, np.ndarray]],
    base: Params,
    seed: int,
) -> tuple[Params, Params, Params]:
    """Return statistics, trainable and frozen weights before the first step.

    Args:
      base: the backbone's weights, under its own names.
      seed: of everything the checkpoint does not have.
    """

    @jax.jit
    def made(key):
        system = System(config, structure, heads, train=False, rngs=nnx.Rngs(key))
        _, _, statistics, trainable, _ = _split(system, config)
        # The backbone's own start is left out here, so that it is never computed.
        added = {n: v for n, v in trainable.items() if not _from_base(n)}
        return statistics, added

    statistics, added = made(jax.random.key(seed))
    parts = take_apart(config, structure, heads, train=False)
    given = {BACKBONE + name: value for name, value in base.items()} | added
    return (
        statistics,
        {name: given[name] for name in parts.trainable},
        {name: given[name] for name in parts.frozen},
    )


def without_predictor(structure: BeatsConfig, base: Params) -> tuple[BeatsConfig, Params]:
    """Return a backbone's structure and weights without the class head of its pre-training."""
    kept = {name: value for name, value in base.items() if not name.startswith("predictor.")}
    return replace(structure, finetuned_model=False), kept


def _split(system: System, config: FineTuned) -> Parts:
    return Parts(*weights.split(system, Key, STATISTICS, _trains(config)))


def _trains(config: FineTuned):
    """Return the filter of what gets gradients: all weights, or adapters, pooling and heads."""
    if config.adapter is None:
        return nnx.Param
    return nnx.Any(nnx.LoRAParam, nnx.All(nnx.Param, nnx.Not(nnx.PathContains("backbone"))))


def _from_base(name: str) -> bool:
    return name.startswith(BACKBONE) and not is_adapter(name)
