"""Encoders side by side: one embedding of a clip, and in training the heads that judge it.

An encoder turns waves into one vector per clip. Its configuration makes a `Network`: a front end, a
module, and the weights it starts from. A frozen system is its encoders as they are. A trained one
has heads, whose class centers are the last dense layer of the reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asdjax.frontend.fbank import without_offset
from asdjax.frontend.two_channel import near_alone
from asdjax.losses import Loss
from asdjax.losses.margin import unit
from asdjax.models.layers import BatchNorm, InitialKeys, Key
from asdjax.models.lora import Lora, fold
from asdjax.models.weights_file import Params, merge, misfits, split
from asdjax.types import InputError

FAR = 0.5  # of the embedding of the far microphone that is taken off
STATISTICS = nnx.BatchStat  # trained or drawn without a gradient: norms, scales, fixed centers


class Input(NamedTuple):
    """What an encoder's front end makes of a batch of clips."""

    x: jax.Array  # [B, ...]
    padding: jax.Array | None = None  # [B, L] bool, True = no token
    mean: jax.Array | None = None  # [B, 1, 1] of x, which hides parts of it; None: 0


class Network(NamedTuple):
    """An encoder, ready to be built.

    `front_end(wave [B, N], lengths [B] or None) -> Input` is pure, and sees clips without their
    mean (`without_offset`); without lengths nothing is padding. `build(train=, adapted=, rngs=)`
    makes the module, `Input -> [B, width]` float32; without `adapted` it has no adapters, for
    weights into which they are folded.
    """

    front_end: Callable[[jax.Array, jax.Array | None], Input]
    build: Callable[..., nnx.Module]
    width: int
    params: Params = {}  # noqa: RUF012  pretrained weights by their names in the module
    adapter: Lora | None = None  # what of the pretrained weights trains; None: all of them
    wave: bool = False  # it is given waves `[B, N, 1 or 2]`, which have no frequencies to mask
    only_trains: tuple[str, ...] = ()  # beginnings of names that the module for use does not have


class Alone(nnx.Module):
    """A network that gives the embedding by itself, as one encoder of a system."""

    def __init__(self, network: nnx.Module):
        self.network = network

    def __call__(self, given: Input) -> jax.Array:
        return self.network(given.x)


def spectral_network(config: Any, samples: int, own_mean: bool = False) -> Network:
    """Return the network of an encoder that is trained from scratch, for rows of `samples`.

    Args:
      config: has `frontend(wave)`, `build(samples, train=, rngs=)` and the width `embedding`.
      own_mean: the mean of the front end's output `[B, T, F]` is not about 0.
    """

    def front_end(wave: jax.Array, lengths: jax.Array | None = None) -> Input:
        x = config.frontend(wave)
        return Input(x, mean=x.mean((1, 2), keepdims=True) if own_mean else None)

    def build(*, train: bool, adapted: bool, rngs: nnx.Rngs) -> Alone:
        return Alone(config.build(samples, train=train, rngs=rngs))

    return Network(front_end, build, config.embedding)


class Task(NamedTuple):
    """What one head tells apart, and how much of the loss that is."""

    loss: Loss
    counts: tuple[int, ...]  # centers of each class; () for a loss without centers
    labels: int = 0  # which of a clip's labels are its classes
    weight: float = 1.0  # of its loss in the sum over heads
    branch: int | None = None  # the encoder whose part of the embedding it sees; None: all of it


class Parts(NamedTuple):
    """A system taken apart: its graph and, by name, its four kinds of values."""

    graph: nnx.GraphDef
    keys: dict  # random keys, new in each training step
    statistics: dict
    trainable: dict
    frozen: dict


class Embedder(NamedTuple):
    """`apply(own, wave [B, N], lengths) -> [B, E] float32`, to be jitted by the caller.

    `lengths [B]` are the valid samples, None where nothing is padding.
    `own = select(params, (machine, section))` are the weights for clips of one machine.
    """

    params: Params
    apply: Callable[[Params, jax.Array, jax.Array | None], jax.Array]
    select: Callable[[Params, tuple[str, str]], Params] = lambda params, group: params


def of_two_microphones(apply: Callable, how: int | str) -> Callable:
    """Return what an embedder applies, for waves `[B, N, 2]` of a near and a far microphone, too.

    Args:
      how: "residual": the embedding of near without half that of far; else as of `near_alone`.

    Source of the residual: a system of DCASE 2026 Task 2.
    """

    def applied(params, wave, lengths):
        if wave.ndim == 2:
            return apply(params, wave, lengths)
        if how == "residual":
            near, far = (apply(params, wave[..., i], lengths) for i in (0, 1))
            return near - FAR * far
        return apply(params, near_alone(wave, lengths, how), lengths)

    return applied


class Architecture(NamedTuple):
    """The parts a system is built from.

    Args:
      networks: of its encoders; their embeddings are concatenated.
      tasks: of the heads; none for use.
      perturbation: hidden width of a feature-perturbation head (OS-SCL), whose output is then the
        embedding; 0 for none.
    """

    networks: tuple[Network, ...]
    tasks: tuple[Task, ...] = ()
    perturbation: int = 0

    def part(self, branch: int | None) -> slice:
        """Return where an encoder's part of the embedding lies; None: all of it."""
        ends = np.cumsum([0, *(network.width for network in self.networks)]).tolist()
        return slice(0, ends[-1]) if branch is None else slice(ends[branch], ends[branch + 1])

    def parts(self, *, train: bool, adapted: bool = True) -> Parts:
        """Return the parts of the system as shapes; refuses an adapter that does not fit."""
        build = partial(System, self, train=train, adapted=adapted)
        return self._split(nnx.eval_shape(lambda: build(rngs=InitialKeys(0))))

    def initialize(self, seed: int) -> tuple[Params, Params, Params]:
        """Return statistics, trainable and frozen weights before the first step.

        Args:
          seed: of everything that no checkpoint has.
        """
        given = self._pretrained()

        @jax.jit
        def start(key):
            parts = self._split(System(self, train=False, rngs=InitialKeys(key)))
            # Pretrained weights are left out here, so that their random start is never computed.
            added = {n: v for n, v in parts.trainable.items() if n not in given}
            return parts.statistics, added

        statistics, added = start(jax.random.key(seed))
        values, parts = given | added, self.parts(train=False)
        trainable, frozen = (
            {name: values[name] for name in kind} for kind in (parts.trainable, parts.frozen)
        )
        return statistics, trainable, frozen

    def embedder(self, trained: Params) -> Embedder:
        """Return the embedder of the system, with adapters folded into the weights.

        Args:
          trained: trainable weights and statistics, as training saves them; {} for a frozen system.

        Raises:
          InputError: `trained` is not of such a system.
        """
        unused = (
            "heads.",
            *(
                f"branches.{i}.{name}"
                for i, network in enumerate(self.networks)
                for name in network.only_trains
            ),
        )
        kept = {name: value for name, value in trained.items() if not name.startswith(unused)}
        params = self._folded(self._pretrained() | kept)
        plain = self._replace(tasks=())
        parts = plain.parts(train=False, adapted=False)
        expected = parts.statistics | parts.trainable | parts.frozen
        if problems := misfits(params, expected):
            raise InputError(f"the trained weights do not fit the system{problems}")

        return Embedder(params, self.apply_of(parts))

    def apply_of(self, parts: Parts) -> Callable[[Params, jax.Array, jax.Array | None], jax.Array]:
        """Return what an `Embedder` applies, of the parts of this system built for use."""

        def apply(params, wave, lengths):
            wave = without_offset(wave, lengths)
            inputs = [network.front_end(wave, lengths) for network in self.networks]
            return merge(parts.graph, params)(inputs)

        return apply

    def _pretrained(self) -> Params:
        return {
            f"branches.{i}.{name}": value
            for i, network in enumerate(self.networks)
            for name, value in network.params.items()
        }

    def _folded(self, params: Params) -> Params:
        for i, network in enumerate(self.networks):
            if network.adapter is not None:
                own = {n: v for n, v in params.items() if n.startswith(f"branches.{i}.")}
                params = {n: v for n, v in params.items() if n not in own}
                params |= fold(own, network.adapter)
        return params

    def _split(self, system: System) -> Parts:
        """Split a system; of a pretrained encoder with an adapter only the adapter trains."""
        adapted = {i for i, network in enumerate(self.networks) if network.adapter is not None}
        fixed = {n for n in self._pretrained() if int(n.split(".")[1]) in adapted}

        def frozen(path: tuple, value: object) -> bool:
            return ".".join(map(str, path)) in fixed

        trains = nnx.All(nnx.Param, nnx.Not(frozen))
        return Parts(*split(system, Key, STATISTICS, trains))


class System(nnx.Module):
    """Inputs of all encoders in, embedding `[B, E]` out; `heads` has the losses."""

    def __init__(self, of: Architecture, *, train: bool, adapted: bool = True, rngs: nnx.Rngs):
        how = {"train": train, "rngs": rngs}
        self.branches = nnx.List([one.build(adapted=adapted, **how) for one in of.networks])
        width = of.part(None).stop
        self.perturbation = Perturbation(width, of.perturbation, **how) if of.perturbation else None
        self.tasks = of.tasks
        self.bounds = tuple((p.start, p.stop) for p in (of.part(t.branch) for t in of.tasks))
        self.heads = nnx.List(
            [
                task.loss.head(stop - start, task.counts, **how)
                for task, (start, stop) in zip(of.tasks, self.bounds, strict=True)
            ]
        )

    def __call__(self, inputs) -> jax.Array:
        """Return `[B, E]` float32 from the `Input` of each encoder."""
        each = zip(self.branches, inputs, strict=True)
        embedding = jnp.concatenate([branch(given) for branch, given in each], -1)
        return embedding if self.perturbation is None else self.perturbation(embedding)

    def judge(self, embedding: jax.Array, label: jax.Array, weight: jax.Array) -> Iterator[tuple]:
        """Yield of each head its task, losses `[B]`, cosines `[B, C]` or None, and labels `[B, M]`.

        Args:
          embedding: `[B, E]`.
          label, weight: `[B, label kinds, M]` and `[B, M]`, classes of a clip and their shares.
        """
        for head, task, (start, stop) in zip(self.heads, self.tasks, self.bounds, strict=True):
            own = label[:, task.labels]
            yield task, *head(embedding[:, start:stop], own, weight), own


class Perturbation(nnx.Module):
    """Two layers `[B, E] -> [B, hidden] -> [B, E]` that disturb embeddings, and unit length.

    Each is a linear layer, ReLU and batch normalization, in this order.

    Source: Huang et al. 2025 (OS-SCL), feature-perturbation head (128-64-128 there).
    """

    def __init__(self, width: int, hidden: int, *, train: bool, rngs: nnx.Rngs):
        self.down = nnx.Linear(width, hidden, rngs=rngs)
        self.up = nnx.Linear(hidden, width, rngs=rngs)
        self.down_norm = BatchNorm(hidden, train=train, rngs=rngs)
        self.up_norm = BatchNorm(width, train=train, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        hidden = self.down_norm(jax.nn.relu(self.down(embedding)))
        return unit(self.up_norm(jax.nn.relu(self.up(hidden))))
