"""A system that learns: branches, and heads that classify machines by what the branches give.

A branch is a front end, a backbone, pooling and a projection: tokens `[B, L, D]` -> `[B, P]` -> a
dense layer `[B, E]`. The embedding is that of all branches, one behind the other. The centers of a
head are the second dense layer of the reports, from the embedding to the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asdjax import params as weights
from asdjax.losses.adacos import AdaCos, adacos_loss, initial_scale, next_scale
from asdjax.losses.margin import Margin, class_cosines, cosines, margin_loss
from asdjax.models.attention import Implementation
from asdjax.models.backbone import Structure
from asdjax.models.dropout import Key
from asdjax.models.lora import Lora, adapt, is_adapter
from asdjax.models.pooling import Pooling, make_pool, pool_width
from asdjax.params import Params
from asdjax.types import InputError, check_choices


@dataclass(frozen=True)
class Branch:
    """A backbone and how it becomes one vector.

    Args:
      weights: a name of `asdjax weights list` or a converted `.safetensors` file to start from.
      adapter: LoRA; None trains every weight of the backbone.
      pooling: from tokens to one vector: the mean of the patches, the class token (EAT), or
        attentive statistics of the patches.
      dropout: drop values and layers in training at the rates that the checkpoint carries. (Its
        decay of gradients from layer to layer, 1 in the pre-trained files, holds either way.)
      dtype: of the matrix products; parameters, norms, pooling, margins stay float32.
      remat: compute each layer again in the backward pass instead of keeping its values: less
        memory, about a third more time.
      attention: "auto"; or a kernel of `jax.nn.dot_product_attention`, "cudnn" for EAT in bfloat16
        on NVIDIA cards.
    """

    weights: str = "beats-iter3"
    adapter: Lora | None = None
    pooling: Pooling = "statistics"
    dropout: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    attention: Implementation = "auto"

    def __post_init__(self):
        check_choices(self)


@dataclass(frozen=True)
class FineTuned:
    """Branches, trained together as `train` says, and their embedding.

    Args:
      branches: one, or several whose embeddings stand one behind the other.
      embedding: width of the embedding of each branch.
    """

    branches: tuple[Branch, ...] = (Branch(),)
    embedding: int = 128

    def __post_init__(self):
        if not self.branches:
            raise InputError("expected at least one branch, got none")
        if self.embedding < 2:
            raise InputError(f"expected an embedding of at least 2 numbers, got {self.embedding}")


class Task(NamedTuple):
    """What one head tells apart, and how much of the loss that is."""

    loss: Margin | AdaCos
    counts: np.ndarray  # [C] int, centers of each class
    labels: int = 0  # which of a clip's labels are its classes
    weight: float = 1.0  # of its loss in the sum over heads
    branch: int | None = None  # whose part of the embedding it sees; None sees all


class Input(NamedTuple):
    """What a branch sees of the clips."""

    mel: jax.Array  # [B, T, F], from its front end
    padding: jax.Array | None = None  # [B, L] bool, True = no token


class Scale(nnx.Variable):
    """The dynamic scale of AdaCos, `[]` float32."""


class FixedCenters(nnx.Variable):
    """Centers that stay at their random start."""


STATISTICS = nnx.Any(nnx.BatchStat, Scale, FixedCenters)  # what a step changes without a gradient


class Head(nnx.Module):
    """Centers of classes and the loss that pulls embeddings to them.

    Args:
      task: which loss and classes.
      embedding: width of what it sees.
      train: let a dynamic scale follow the batch.
    """

    def __init__(self, task: Task, embedding: int, *, train: bool, rngs: nnx.Rngs):
        self.loss, self.counts, self.train = task.loss, tuple(map(int, task.counts)), train
        self.labels, self.weight, self.branch = task.labels, task.weight, task.branch
        shape = len(self.counts), max(self.counts), embedding
        centers = jax.random.normal(rngs.params(), shape) * embedding**-0.5
        fixed = isinstance(self.loss, AdaCos) and not self.loss.trained
        self.centers = (FixedCenters if fixed else nnx.Param)(centers)
        if isinstance(self.loss, AdaCos):
            self.scale = Scale(jnp.float32(initial_scale(*shape[:2])))

    def seen(self, embedding):
        """Return the part of the whole embedding `[B, n E]` that this head judges."""
        if self.branch is None:
            return embedding
        width = self.centers.shape[-1]
        return embedding[:, self.branch * width : (self.branch + 1) * width]

    def __call__(self, embedding, label, weight):
        """Return the loss of each clip `[B]` and its cosine to each class `[B, C]`, float32.

        Args:
          embedding: `[B, n E]`, of the whole system.
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


class Encoder(nnx.Module):
    """One branch: its input in, `[B, E]` out."""

    def __init__(
        self, config: Branch, structure: Structure, embedding: int, *, train: bool, rngs: nnx.Rngs
    ):
        if config.pooling == "cls" and not structure.extra_tokens:
            raise InputError('pooling "cls": BEATs has no class token; use "mean" or "statistics"')
        structure = structure if config.dropout else structure.without_dropout()
        self.first = 0 if config.pooling == "cls" else structure.extra_tokens
        self.backbone = structure.build(
            dtype=jnp.dtype(config.dtype),
            train=train,
            remat=train and config.remat,
            attention=config.attention,
            rngs=rngs,
        )
        if config.adapter is not None:
            adapt(self.backbone, config.adapter, train=train, rngs=rngs)
        self.pool = make_pool(config.pooling, structure.width, train=train, rngs=rngs)
        self.project = nnx.Linear(pool_width(config.pooling, structure.width), embedding, rngs=rngs)

    def __call__(self, given: Input) -> jax.Array:
        tokens = self.backbone(given.mel, given.padding)[:, self.first :]
        inside = None if given.padding is None else ~given.padding[:, self.first :]
        return self.project(self.pool(tokens, inside))


class System(nnx.Module):
    """Front ends' outputs in, embedding out; `heads` has the losses."""

    def __init__(
        self,
        config: FineTuned,
        structures: Sequence[Structure],
        tasks: Sequence[Task] = (),
        *,
        train: bool,
        rngs: nnx.Rngs,
    ):
        each = zip(config.branches, structures, strict=True)
        make = partial(Encoder, embedding=config.embedding, train=train, rngs=rngs)
        self.branches = nnx.List([make(branch, structure) for branch, structure in each])
        whole = len(structures) * config.embedding
        widths = [whole if task.branch is None else config.embedding for task in tasks]
        self.heads = nnx.List(
            [
                Head(task, width, train=train, rngs=rngs)
                for task, width in zip(tasks, widths, strict=True)
            ]
        )

    def __call__(self, inputs: Sequence[Input]) -> jax.Array:
        """Return `[B, branches E]` float32 from the input of each branch."""
        each = zip(self.branches, inputs, strict=True)
        return jnp.concatenate([branch(given) for branch, given in each], -1)


class Parts(NamedTuple):
    """A system taken apart: its graph and, by name, what its four kinds of values look like."""

    graph: nnx.GraphDef
    keys: dict  # random keys that each training step puts in
    statistics: dict
    trainable: dict
    frozen: dict


def take_apart(
    config: FineTuned, structures: Sequence[Structure], tasks: Sequence[Task] = (), *, train: bool
) -> Parts:
    """Return the parts of a system, as shapes; refuses an adapter that does not fit."""
    system = partial(System, config, structures, tasks, train=train)
    return _split(nnx.eval_shape(lambda: system(rngs=nnx.Rngs(0))), config)


def initialize(
    config: FineTuned,
    structures: Sequence[Structure],
    tasks: Sequence[Task],
    bases: Sequence[Params],
    seed: int,
) -> tuple[Params, Params, Params]:
    """Return statistics, trainable and frozen weights before the first step.

    Args:
      bases: the weights of each branch's backbone, under its own names.
      seed: of everything the checkpoints do not have.
    """

    @jax.jit
    def made(key):
        system = System(config, structures, tasks, train=False, rngs=nnx.Rngs(key))
        _, _, statistics, trainable, _ = _split(system, config)
        # The backbones' own starts are left out here, so that they are never computed.
        added = {n: v for n, v in trainable.items() if not _from_base(n)}
        return statistics, added

    statistics, added = made(jax.random.key(seed))
    parts = take_apart(config, structures, tasks, train=False)
    given = named(bases) | added
    return (
        statistics,
        {name: given[name] for name in parts.trainable},
        {name: given[name] for name in parts.frozen},
    )


def of_branch(branch: int) -> str:
    """Return what the names of a branch's weights begin with."""
    return f"branches.{branch}."


def named(bases: Sequence[Params]) -> Params:
    """Return the backbones' weights under their names in the system."""
    return {
        f"{of_branch(i)}backbone.{name}": value
        for i, base in enumerate(bases)
        for name, value in base.items()
    }


def _split(system: System, config: FineTuned) -> Parts:
    return Parts(*weights.split(system, Key, STATISTICS, _trains(config)))


def _trains(config: FineTuned):
    """Return the filter of what gets gradients: all, or of a backbone with LoRA the adapters."""
    adapted = {("branches", i, "backbone") for i, b in enumerate(config.branches) if b.adapter}

    def frozen(path: tuple, value: object) -> bool:
        return path[:3] in adapted

    return nnx.Any(nnx.LoRAParam, nnx.All(nnx.Param, nnx.Not(frozen)))


def _from_base(name: str) -> bool:
    return ".backbone." in name and not is_adapter(name)
