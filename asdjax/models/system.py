"""A system that learns: branches, and heads that classify machines by what the branches give.

A branch is a front end and a network that makes one vector of what it gives. A pre-trained backbone
is followed by pooling and a projection: tokens `[B, L, D]` -> `[B, P]` -> a dense layer `[B, E]`; a
spectral network gives `[B, E]` itself. The embedding is that of all branches, one behind the other.
The centers of a head are the second dense layer of the reports, from the embedding to the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from asdjax import params as weights
from asdjax.models.attention import Implementation
from asdjax.models.backbone import Listener, Structure
from asdjax.models.bands import Bands
from asdjax.models.dropout import Key
from asdjax.models.heads import FixedCenters, Perturbation, Scale, Task, make_head
from asdjax.models.lora import Lora, adapt, is_adapter
from asdjax.models.pooling import Pooling, make_pool, pool_width
from asdjax.models.spectral import ConvNet1d, ResNet
from asdjax.params import Params
from asdjax.types import InputError, check_choices

Spectral = ConvNet1d | ResNet | Bands


@dataclass(frozen=True)
class Branch:
    """A pre-trained backbone and how it becomes one vector.

    Args:
      weights: a name of `asdjax weights list` or a converted `.safetensors` file to start from.
      adapter: LoRA; None trains every weight of the backbone.
      pooling: from tokens to one vector: the mean of the patches, the class token (EAT), or
        attentive statistics of the patches.
      embedding: width of its part of the embedding.
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
    embedding: int = 128
    dropout: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    attention: Implementation = "auto"

    def __post_init__(self):
        check_choices(self)
        if self.embedding < 2:
            raise InputError(f"expected an embedding of at least 2 numbers, got {self.embedding}")


@dataclass(frozen=True)
class Trained:
    """Branches, trained together as `train` says.

    Args:
      branches: one, or several whose embeddings stand one behind the other.
      perturbation: hidden width of a feature-perturbation head (OS-SCL) behind them, whose output
        is then the embedding; 0 for none.
    """

    branches: tuple[Branch | Spectral, ...] = (Branch(),)
    perturbation: int = 0

    def __post_init__(self):
        if not self.branches:
            raise InputError("expected at least one branch, got none")
        if self.perturbation < 0:
            raise InputError(f"expected perturbation >= 0 (0: none), got {self.perturbation}")

    def part(self, branch: int | None) -> slice:
        """Return where a branch's part of the embedding lies; None: all of it."""
        widths = [one.embedding for one in self.branches]
        if branch is None:
            return slice(0, sum(widths))
        start = sum(widths[:branch])
        return slice(start, start + widths[branch])


@dataclass(frozen=True)
class Scratch:
    """The `Listener` of a spectral network, which begins without weights, for waves of one length.

    Args:
      config: the network.
      samples: of every wave.
    """

    config: Spectral
    samples: int

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        return self.config.frontend(wave, lengths)

    def token_padding(self, samples: int, lengths: jax.Array) -> None:
        return None

    def for_features(self, params: Params) -> tuple[Scratch, Params]:
        return self, params


class Base(Protocol):
    """What a branch begins with: a `Backbone`, or a network without weights (`Untrained`)."""

    config: Listener
    params: Params


class Untrained(NamedTuple):
    """The `Base` of a spectral network: no weights, `{}`."""

    config: Scratch
    params: Params


class Input(NamedTuple):
    """What a branch sees of the clips."""

    x: jax.Array  # [B, ...], from its front end
    padding: jax.Array | None = None  # [B, L] bool, True = no token


STATISTICS = nnx.Any(nnx.BatchStat, Scale, FixedCenters)  # what a step changes without a gradient


class Encoder(nnx.Module):
    """A branch of a backbone: its input in, `[B, E]` out."""

    def __init__(self, config: Branch, structure: Structure, *, train: bool, rngs: nnx.Rngs):
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
        width = pool_width(config.pooling, structure.width)
        self.project = nnx.Linear(width, config.embedding, rngs=rngs)

    def __call__(self, given: Input) -> jax.Array:
        tokens = self.backbone(given.x, given.padding)[:, self.first :]
        inside = None if given.padding is None else ~given.padding[:, self.first :]
        return self.project(self.pool(tokens, inside))


class SpectralEncoder(nnx.Module):
    """A branch of a spectral network: its input in, `[B, E]` out."""

    def __init__(self, listener: Scratch, *, train: bool, rngs: nnx.Rngs):
        self.network = listener.config.build(listener.samples, train=train, rngs=rngs)

    def __call__(self, given: Input) -> jax.Array:
        return self.network(given.x)


class System(nnx.Module):
    """Front ends' outputs in, embedding out; `heads` has the losses."""

    def __init__(
        self,
        config: Trained,
        structures: Sequence[Listener],
        tasks: Sequence[Task] = (),
        *,
        train: bool,
        rngs: nnx.Rngs,
    ):
        how = {"train": train, "rngs": rngs}
        self.branches = nnx.List(
            [
                Encoder(branch, one, **how)
                if isinstance(branch, Branch)
                else SpectralEncoder(one, **how)
                for branch, one in zip(config.branches, structures, strict=True)
            ]
        )
        width = config.part(None).stop
        hidden = config.perturbation
        self.perturbation = Perturbation(width, hidden, **how) if hidden else None
        self.heads = nnx.List([make_head(task, config.part(task.branch), **how) for task in tasks])

    def __call__(self, inputs: Sequence[Input]) -> jax.Array:
        """Return `[B, E]` float32, of all branches, from the input of each."""
        each = zip(self.branches, inputs, strict=True)
        embedding = jnp.concatenate([branch(given) for branch, given in each], -1)
        return embedding if self.perturbation is None else self.perturbation(embedding)


class Parts(NamedTuple):
    """A system taken apart: its graph and, by name, what its four kinds of values look like."""

    graph: nnx.GraphDef
    keys: dict  # random keys that each training step puts in
    statistics: dict
    trainable: dict
    frozen: dict


def take_apart(
    config: Trained, structures: Sequence[Listener], tasks: Sequence[Task] = (), *, train: bool
) -> Parts:
    """Return the parts of a system, as shapes; refuses an adapter that does not fit."""
    system = partial(System, config, structures, tasks, train=train)
    return _split(nnx.eval_shape(lambda: system(rngs=nnx.Rngs(0))), config)


def initialize(
    config: Trained,
    structures: Sequence[Listener],
    tasks: Sequence[Task],
    bases: Sequence[Params],
    seed: int,
) -> tuple[Params, Params, Params]:
    """Return statistics, trainable and frozen weights before the first step.

    Args:
      bases: the weights of each branch's backbone, under its own names; {} where there is none.
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


def _split(system: System, config: Trained) -> Parts:
    return Parts(*weights.split(system, Key, STATISTICS, _trains(config)))


def _trains(config: Trained):
    """Return the filter of what gets gradients: all, or of a backbone with LoRA the adapters."""
    branches = enumerate(config.branches)
    adapted = {("branches", i, "backbone") for i, b in branches if getattr(b, "adapter", None)}

    def frozen(path: tuple, value: object) -> bool:
        return path[:3] in adapted

    return nnx.Any(nnx.LoRAParam, nnx.All(nnx.Param, nnx.Not(frozen)))


def _from_base(name: str) -> bool:
    return ".backbone." in name and not is_adapter(name)
