"""Epochs of autoencoders of several machines, computed at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asdjax.frontend.baseline import BANDS
from asdjax.models.autoencoder import (
    FRAMES,
    WIDTHS,
    initialize,
    mean_residual,
    reconstruct,
    reconstruct_training,
    scatter,
)
from asdjax.params import Params

ABSENT = -1  # first frame of a vector that fills a short batch


class State(NamedTuple):
    """What changes while one machine's autoencoder is trained."""

    trainable: Params
    statistics: Params
    optimizer: optax.OptState
    losses: jax.Array  # [S] of the last epoch's batches, by the statistics of each batch


class Batches(NamedTuple):
    """The vectors of each batch of a machine, by the frames they begin with."""

    first: np.ndarray  # [S, B] int32, `ABSENT` in what fills a short batch
    target: np.ndarray  # [S, B] bool, of clips of the target domain
    count: np.ndarray  # [] int32, batches to do; behind them the arrays may hold anything


class Measured(NamedTuple):
    """What is found in a machine's batches by the running statistics."""

    error: jax.Array  # [S] mean squared error
    row: jax.Array  # [S, 128] mean row of the residual frames
    source: jax.Array  # [128, 128], sum of the source vectors' `scatter` in each batch
    target: jax.Array  # [128, 128]


def start(seed: int, learning_rate: float, size: int) -> State:
    """Return the state before the first of epochs of up to `size` batches."""
    trainable, statistics = initialize(jax.random.key(seed))
    return State(trainable, statistics, optax.adam(learning_rate).init(trainable), jnp.zeros(size))


def make_epoch(learning_rate: float) -> Callable[[jax.Array, State, Batches], State]:
    """Return `epoch(frames [F, 128], state, batches) -> state` of one machine."""
    adam = optax.adam(learning_rate)  # eps 1e-8 as PyTorch's

    def epoch(frames, state: State, batches: Batches) -> State:
        def step(i, state):
            x, valid = gather(frames, batches.first[i])

            def loss_of(trainable):
                found, statistics = reconstruct_training(trainable, state.statistics, x, valid)
                error = (valid * jnp.square(found - x).mean(-1)).sum() / valid.sum()
                return error, statistics

            (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(
                state.trainable
            )
            change, optimizer = adam.update(gradient, state.optimizer)
            trainable = optax.apply_updates(state.trainable, change)
            return State(trainable, statistics, optimizer, state.losses.at[i].set(loss))

        return jax.lax.fori_loop(0, batches.count, step, state)

    return epoch


def held_out_errors(frames, state: State, batches: Batches) -> jax.Array:
    """Return the mean squared error `[S]` of each batch of one machine."""

    def one(i, found):
        x, valid = gather(frames, batches.first[i])
        residual = x - reconstruct(state.trainable, state.statistics, x)
        return found.at[i].set(mean_residual(residual * valid[:, None], valid.sum())[0])

    return jax.lax.fori_loop(0, batches.count, one, jnp.zeros(len(batches.first)))


def measure_batches(frames, state: State, batches: Batches) -> Measured:
    """Measure the batches of one machine; nothing is learned."""

    def one(i, found: Measured) -> Measured:
        x, valid = gather(frames, batches.first[i])
        residual = x - reconstruct(state.trainable, state.statistics, x)
        error, row = mean_residual(residual * valid[:, None], valid.sum())
        target = batches.target[i]
        return Measured(
            found.error.at[i].set(error),
            found.row.at[i].set(row),
            found.source + scatter(residual, valid * ~target),
            found.target + scatter(residual, valid * target),
        )

    size, square = len(batches.first), jnp.zeros((BANDS, BANDS))
    nothing = Measured(jnp.zeros(size), jnp.zeros((size, BANDS)), square, square)
    return jax.lax.fori_loop(0, batches.count, one, nothing)


def gather(frames, first):
    """Return vectors `[B, 640]` and which are there, `[B]` float, from frames `[F, 128]`."""
    stretch = jax.lax.GatherDimensionNumbers(
        offset_dims=(1, 2), collapsed_slice_dims=(), start_index_map=(0,)
    )
    found = jax.lax.gather(frames, first[:, None], stretch, (FRAMES, BANDS), mode="clip")
    return found.reshape(len(first), WIDTHS[0]), (first != ABSENT).astype(frames.dtype)


def together(function: Callable) -> Callable[[jax.Array, Sequence[tuple]], list]:
    """Return `run(frames, machines)`: the results of `function(frames, *machine)` for each machine.

    On an accelerator it is one program for all of them (`jax.vmap`): a step of one machine is too
    small for it. A CPU is the other way round: XLA multiplies a stack of matrices there at half the
    speed of single ones. So each machine runs by itself, as many at a time as there are cores.
    """
    one = jax.jit(function)
    every = jax.jit(jax.vmap(lambda frames, machine: function(frames, *machine), (None, 0)))

    def run(frames: jax.Array, machines: Sequence[tuple]) -> list[Any]:
        if jax.default_backend() == "cpu":
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(pool.map(lambda m: jax.block_until_ready(one(frames, *m)), machines))
        stacked = every(frames, jax.tree.map(lambda *x: jnp.stack(x), *machines))
        return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(machines))]

    return run
