"""One training step, from int16 waves to updated weights, as one jitted function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from asdjax.devices import over
from asdjax.frontend import augment
from asdjax.frontend.augment import Augment
from asdjax.frontend.fbank import without_offset
from asdjax.frontend.warp import time_warp
from asdjax.models.layers import keys_for
from asdjax.models.system import STATISTICS, Input, Network, Parts, System
from asdjax.models.weights_file import Params, flatten, merge
from asdjax.train.batches import Batch
from asdjax.train.config import Train
from asdjax.train.optimizer import updates_done


class FrontEnds(NamedTuple):
    """The front ends of all encoders: `apply(wave, lengths) -> inputs`, over a mesh."""

    apply: Callable[[jax.Array, jax.Array], tuple[Input, ...]]
    mesh: jax.sharding.Mesh


class TrainState(NamedTuple):
    """Everything that changes from step to step, and all that a checkpoint holds."""

    trainable: Params
    statistics: Params
    optimizer: optax.OptState
    average: Params  # moving averages of both; {} without
    key: jax.Array  # constant: each step derives its own from it
    step: jax.Array  # [] int32, micro-batches done; also where the order of clips stands


def make_front_ends(
    networks: Sequence[Network], mesh: jax.sharding.Mesh, padded: bool
) -> FrontEnds:
    """Return the front ends over a mesh, one for each encoder.

    Args:
      padded: some clips are shorter than their row, so that tokens have to be masked; else there is
        no padding.
    """

    def front_ends(wave, lengths):
        lengths = lengths if padded else None
        wave = without_offset(wave, lengths)
        return tuple(one.front_end(wave, lengths) for one in networks)

    # Clips do not see each other: shard_map says so, where `jit` alone would gather the batch of
    # waves for the FFT on every device (jax 0.10).
    rows = jax.P("data")
    apply = jax.shard_map(front_ends, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return FrontEnds(apply, mesh)


def make_step(
    parts: Parts,
    front_ends: FrontEnds,
    take: Callable[[tuple, tuple], Batch],
    config: Train,
    optimizer: optax.GradientTransformation,
    samples: int,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Return `step(state, frozen, store, batch) -> (state, metrics)`, jitted; `state` is donated.

    Args:
      parts: of the system built for training.
      take: makes a batch from what is kept on the devices and what the host sends (`batches`).
      samples: length of a training clip; longer ones are cut as `config.augment` says.

    Returns:
      Metrics are `[]` float32: loss, accuracy, norms of the gradient and of the embeddings.
    """

    @partial(jax.jit, donate_argnames="state")
    def step(state: TrainState, frozen: Params, store: tuple, batch: tuple):
        augment_key, key = jax.random.split(jax.random.fold_in(state.key, state.step))
        keys = keys_for(list(parts.keys), key)
        taken = _with_noise(take(store, batch), config, augment_key)
        given = _augmented(taken, front_ends.apply, config.augment, samples, augment_key)

        def loss_of(trainable):
            system = merge(parts.graph, keys, state.statistics, trainable, frozen)
            with over(front_ends.mesh):
                embedding = system(given.inputs)
            loss, accuracy = classify(system, embedding, given)
            length = jnp.sqrt(jnp.square(embedding).sum(-1)).mean()
            metrics = {"loss": loss, "accuracy": accuracy, "embedding_norm": length}
            return loss, (metrics, flatten(nnx.state(system, STATISTICS)))

        gradient, (metrics, statistics) = jax.grad(loss_of, has_aux=True)(state.trainable)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        change, tuned = optimizer.update(gradient, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, change)
        average = state.average
        if config.ema:
            before, after = updates_done(state.optimizer), updates_done(tuned)
            decay = config.ema
            if config.ema_ramp:
                decay = jnp.minimum(decay, after / (9.0 + after))
            share = jnp.where(after > before, 1.0 - decay, 0.0)
            average = optax.incremental_update(trainable | statistics, average, share)
        step = state.step + 1
        return TrainState(trainable, statistics, tuned, average, state.key, step), metrics

    return step


def make_validate(
    parts: Parts, front_ends: FrontEnds, take: Callable[[tuple, tuple], Batch], samples: int
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return `validate(trainable, statistics, frozen, store, batch) -> (accuracy, unit)`, jitted.

    `accuracy [B]` is the share of heads that are right (those of the whole embedding), `unit [B,
    E]` the embedding of length 1.
    `parts` is the system built for use, with its heads.
    """

    @jax.jit
    def validate(trainable, statistics, frozen, store, batch):
        taken = take(store, batch)
        inputs = taken.wave
        if not isinstance(inputs, tuple):
            inputs = front_ends.apply(inputs[:, :samples], jnp.minimum(taken.lengths, samples))
        system = merge(parts.graph, statistics, trainable, frozen)
        with over(front_ends.mesh):
            embedding = system(inputs)
        whole = jnp.ones((len(embedding), 1))
        right = [
            cosine.argmax(-1) == label[:, 0]
            for task, _, cosine, label in system.judge(embedding, taken.label[..., None], whole)
            if task.branch is None and cosine is not None
        ]
        length = jnp.sqrt(jnp.square(embedding).sum(-1, keepdims=True))
        return jnp.stack(right).mean(0), embedding / jnp.maximum(length, 1e-12)

    return validate


class Augmented(NamedTuple):
    inputs: tuple[Input, ...]  # one for each branch
    label: jax.Array  # [B, label kinds, M]
    weight: jax.Array  # [B, M]


def _with_noise(batch: Batch, config: Train, key) -> Batch:
    """Return the batch with its noise in it, at the ratios that `config.supplement` says."""
    if batch.noise is None:
        return batch
    key, bounds = jax.random.fold_in(key, 1), config.supplement.snr_db
    wave = augment.add_noise(batch.wave, batch.noise, batch.lengths, key, bounds)
    return batch._replace(wave=wave, noise=None)


def _augmented(batch: Batch, front_ends: Callable, how: Augment, samples: int, key) -> Augmented:
    """Cut, shift, warp, transform, mask and mix the clips of a batch, in this order.

    Waves are mixed before they are transformed. All encoders get the same waves and mix the same
    clips; each has masks of its own, if what it sees has time and frequency.
    """
    crop, shift, mask, mix = jax.random.split(key, 4)
    label, weight = batch.label[..., None], jnp.ones((len(batch.label), 1))
    blend = partial(augment.mixup, key=mix, probability=how.mixup, alpha=how.mixup_alpha)
    found = batch.wave
    if not isinstance(found, tuple):
        wave, lengths = _changed(batch, how, samples, crop, shift)
        if how.mixup and how.mixup_on == "wave":
            wave, label, weight = blend(wave, label)
            lengths = jnp.where(weight[:, 1] == 0, lengths, jnp.maximum(lengths, lengths[::-1]))
        found = front_ends(wave, lengths)
    inputs = []
    for i, (x, padding, mean) in enumerate(found):
        if how.mask and x.ndim == 3:
            own, hidden = jax.random.fold_in(mask, i), 0.0 if mean is None else mean
            x = augment.spec_augment(x, own, how.mask, how.mask_probability, hidden)
        if how.mixup and how.mixup_on == "input":
            x, label, weight = blend(x, batch.label[..., None])
            if padding is not None:  # a mixed clip is as long as the longer of its two
                alone = weight[:, 1:] == 0
                padding = padding & (padding[::-1] | alone)
        inputs.append(Input(x, padding))
    return Augmented(tuple(inputs), label, weight)


def _changed(batch: Batch, how: Augment, samples: int, crop, shift):
    """Return waves `[B, samples]`, cut, shifted and warped, and their lengths `[B]`."""
    wave, lengths = batch.wave, batch.lengths
    if how.crop == "random":
        wave, lengths = augment.random_crop(wave, lengths, samples, crop)
    else:
        wave, lengths = wave[:, :samples], jnp.minimum(lengths, samples)
    if how.shift:
        wave = augment.time_shift(wave, lengths, shift)
    if how.warp or batch.copied is not None:
        chance = how.warp if batch.copied is None else jnp.where(batch.copied, 1.0, how.warp)
        wave = time_warp(wave, lengths, jax.random.fold_in(shift, 1), chance, how.warp_sigma)
    return wave, lengths


def classify(system: System, embedding, given: Augmented):
    """Return the weighted sum of the heads' mean losses, and the mean accuracy.

    Heads of single branches, and those without classes, have no part in the accuracy. A mixed clip
    counts as right if the class it holds most of is found.

    One backward pass of the sum gives what passes over each branch's weighted loss and then one
    over the whole system's add up to (the multi-backpropagation of Lv et al. 2024, section 2.3):
    a gradient is linear, and all see the same values.
    """
    most = given.weight.argmax(-1)
    loss, right = 0.0, []
    for task, each, cosine, label in system.judge(embedding, given.label, given.weight):
        loss = loss + task.weight * each.mean()
        if task.branch is None and cosine is not None:
            main = jnp.take_along_axis(label, most[:, None], 1)[:, 0]
            right.append((cosine.argmax(-1) == main).mean())
    return loss, jnp.stack(right).mean()
