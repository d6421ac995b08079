"""From recordings to the model file: an autoencoder for each machine and section, all at once.

Every machine does exactly the steps it would do alone, from the same start, whichever others there
are. Frames lie on the device once. A vector is five successive frames of one clip, named by its
first frame; a batch is a row of such names, and a short one is filled with `ABSENT`.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asdjax.baseline import network
from asdjax.baseline.network import BANDS, FRAMES, SHORTEST_SAMPLES, name_of
from asdjax.data.audio import AudioInfo
from asdjax.data.batches import Audio, load_batches, plan_batches
from asdjax.devices import alone
from asdjax.frontend.two_channel import one_wave
from asdjax.models import weights_file
from asdjax.models.lora import summary
from asdjax.models.system import Embedder
from asdjax.models.weights_file import Header, Params
from asdjax.report import console
from asdjax.train import interrupt
from asdjax.train.checkpoint import Checkpoints
from asdjax.train.config import Job
from asdjax.train.log import Log
from asdjax.types import (
    HELD_OUT,
    ORDER,
    SAMPLE_RATE_HZ,
    Clip,
    InputError,
    check,
    counted,
    random_numbers,
)

HELD_OUT_SHARE = 0.1  # of a machine's vectors, drawn at random; they only measure
LEAST_VECTORS = 3  # one is held out, and a batch of one is not trained on
CLIPS = 32  # whose log-mel is computed in one call
ABSENT = -1  # fills a short batch, and batches after a machine's last


@dataclass(frozen=True)
class FitAutoencoders:
    """How the autoencoders are trained: Adam on the mean squared error.

    Args:
      epochs: the weights after the last are used.
      batch: vectors in a step (512 in the baselines of 2020 to 2022).
      learning_rate: constant.
      seed: of initial weights, held-out vectors and the order of the others.
      save_every: epochs between checkpoints.
    """

    epochs: int = 100
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 13711  # the official one
    save_every: int = 10

    without_effect = ("save_every",)  # fields on which the trained weights do not depend
    heads = supplemental = ()  # no classes, and the clips of the machines alone

    def __post_init__(self):
        least = {"epochs": 1, "save_every": 1, "batch": 2, "seed": 0}
        check(
            self,
            *((n, f">= {low}", getattr(self, n) >= low) for n, low in least.items()),
            ("learning_rate", "> 0", 0 < self.learning_rate < math.inf),
        )

    def fit(self, job: Job) -> None:
        """Train and write the model file; resumes a training that was stopped."""
        if not alone():
            raise InputError("autoencoders are trained by one process; start it on one host only")
        frames, machines = read_vectors(job.clips, job.infos, job.audio)
        train(self, frames, machines, job)

    def embedder(self, encoders: Sequence[Any], audio: Audio, trained: Params) -> Embedder:
        """Return what gives a clip's errors, by the autoencoder of its machine."""
        return network.make_embedder(trained)

    def normal_scores(
        self, model: Path, group: tuple[str, str], scorer: Any, year: int | None, scores: np.ndarray
    ) -> np.ndarray:
        """Return the scores of normal sounds to which a threshold is fitted.

        From 2023 on they are the baseline's of mini-batches, which scatter less than those of clips
        `scores [n]`: its threshold lies close to the average score.
        """
        if (year or 0) < 2023:
            return scores
        return weights_file.load(model).arrays[f"{name_of(group)}.batches.{scorer.kind}"]


# Frames and vectors of the training clips


class Frames(NamedTuple):
    """The log-mel frames of all training clips."""

    mel: np.ndarray  # [F, 128] float32
    target: np.ndarray  # [F] bool, of clips of the target domain


def read_vectors(
    clips: Sequence[Clip], infos: Mapping[Path, AudioInfo], audio: Audio
) -> tuple[Frames, dict[str, np.ndarray]]:
    """Return the frames of all clips and, as `cut_vectors`, the vectors of each machine.

    Raises:
      InputError: `audio` cuts clips to less than one vector; a machine with fewer than three.
    """
    if audio.samples is not None and audio.samples < SHORTEST_SAMPLES:
        raise InputError(
            f"expected audio.seconds of {SHORTEST_SAMPLES / SAMPLE_RATE_HZ} or more, the length of "
            f"five frames, got {audio.seconds}; give a longer --audio.seconds"
        )
    mels: list[np.ndarray] = [np.zeros(0)] * len(clips)
    plans = plan_batches([infos[clip.path] for clip in clips], audio, CLIPS)
    with console.progress("log-mel", len(clips)) as advance:
        for plan, wave, lengths in load_batches(clips, plans, audio):
            wave = one_wave(wave, lengths, audio.channel)
            mel = np.asarray(network.clip_log_mel(wave, lengths))
            counts = network.frame_count(lengths)
            for row, frames, count in zip(plan.rows, mel, counts, strict=False):
                mels[row] = frames[:count].copy()
            advance(len(plan.rows))
    return cut_vectors(mels, clips)


def cut_vectors(
    mels: Sequence[np.ndarray], clips: Sequence[Clip]
) -> tuple[Frames, dict[str, np.ndarray]]:
    """Return all frames and the vectors, `[V] int32`, of each machine and section.

    Args:
      mels: `[T, 128]` of each clip.

    Raises:
      InputError: machines with fewer than three vectors.
    """
    lengths = np.array([len(mel) for mel in mels])
    ends = np.cumsum(lengths)
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for clip, begin, end in zip(clips, ends - lengths, ends, strict=True):
        parts[name_of(clip.group)].append(np.arange(begin, end - FRAMES + 1, dtype=np.int32))
    machines = {name: np.concatenate(own) for name, own in parts.items()}
    if few := [name for name, own in machines.items() if len(own) < LEAST_VECTORS]:
        raise InputError(
            f"expected {LEAST_VECTORS} or more vectors of five frames from the training clips of a "
            f"machine, got fewer from {', '.join(few)}; add clips, or take the machine out of the "
            "folder"
        )
    target = np.repeat([clip.domain == "target" for clip in clips], lengths)
    return Frames(np.concatenate(mels), target), machines


def split(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors to train on and those held out."""
    vectors = random_numbers(seed, HELD_OUT).permutation(vectors)
    held = math.ceil(HELD_OUT_SHARE * len(vectors))
    return vectors[held:], vectors[:held]


def make_batches(
    machines: Mapping[str, np.ndarray], size: int, order: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Return the batches `[S, B] int32` of each machine, S being that of the largest machine.

    Args:
      machines: vectors of each.
      size: vectors in a batch; the last may be shorter.
      order: seeds by which a machine's vectors are shuffled; None leaves them in turn. A last batch
        of one shuffled vector is left out, for it has no variance.
    """
    most = max(-(-len(vectors) // size) for vectors in machines.values())
    batches = {}
    for name, vectors in machines.items():
        if order is not None:
            seed, turn = order
            vectors = random_numbers(seed, ORDER, turn).permutation(vectors)
            vectors = vectors[: len(vectors) - (len(vectors) % size == 1)]
        missing = 0, most * size - len(vectors)
        batches[name] = np.pad(vectors, missing, constant_values=ABSENT).reshape(most, size)
    return batches


def present(batches):
    """Return which of the batches `[S, B]` a machine has, `[S] bool`."""
    return batches[:, 0] != ABSENT


# Epochs of one machine


class State(NamedTuple):
    """What changes while one machine's autoencoder is trained."""

    trainable: Params
    statistics: Params
    optimizer: optax.OptState
    losses: jax.Array  # [S] of the last epoch's batches, by the statistics of each batch


class Residuals(NamedTuple):
    """What remains of a machine's batches, normalized by the running statistics."""

    error: jax.Array  # [S] mean squared error
    row: jax.Array  # [S, 128] mean row of the residual frames
    counts: tuple[jax.Array, jax.Array]  # [] int32, vectors of source and target
    scatters: tuple[jax.Array, jax.Array]  # [128, 128] of source and target, summed over batches


def start(adam: optax.GradientTransformation, seed: int, most: int) -> State:
    """Return the state before the first of epochs of `most` batches or fewer."""
    trainable, statistics = network.initialize(jax.random.key(seed))
    return State(trainable, statistics, adam.init(trainable), jnp.zeros(most))


def train_epoch(adam: optax.GradientTransformation, frames: Frames, state: State, batches) -> State:
    """Return the state of one machine after an epoch of batches `[S, B]`."""

    def step(i, state: State) -> State:
        x, valid = gather(frames, batches[i])

        def loss_of(trainable):
            found, statistics = network.reconstruct_training(trainable | state.statistics, x, valid)
            error = (valid * jnp.square(found - x).mean(-1)).sum() / valid.sum()
            return error, statistics

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), gradient = gradient_of(state.trainable)
        change, optimizer = adam.update(gradient, state.optimizer)
        trainable = optax.apply_updates(state.trainable, change)
        return State(trainable, statistics, optimizer, state.losses.at[i].set(loss))

    return jax.lax.fori_loop(0, present(batches).sum(), step, state)


def measure(frames: Frames, state: State, batches) -> Residuals:
    """Return the residuals of the batches `[S, B]` of one machine; nothing is learned."""
    weights = state.trainable | state.statistics

    def one(totals, batch):
        x, valid = gather(frames, batch)
        residual = x - network.reconstruct(weights, x)
        means = network.mean_residual(residual * valid[:, None], jnp.maximum(valid.sum(), 1.0))
        target = frames.target[batch]
        own = valid * ~target, valid * target
        found = [x.sum().astype(int) for x in own], [network.scatter(residual, x) for x in own]
        return jax.tree.map(jnp.add, totals, found), means

    nothing = [jnp.zeros((), int)] * 2, [jnp.zeros((BANDS, BANDS))] * 2
    totals, means = jax.lax.scan(one, nothing, batches)
    return Residuals(*means, *totals)


def gather(frames: Frames, batch):
    """Return vectors `[B, 640]` of a batch `[B]` and which of them are there, `[B]` float."""
    x = frames.mel[batch[:, None] + jnp.arange(FRAMES)[None]]
    return x.reshape(len(batch), FRAMES * BANDS), (batch != ABSENT).astype(x.dtype)


def for_all(function: Callable) -> Callable[[Frames, Mapping, Mapping], dict[str, Any]]:
    """Return `run(frames, states, batches)`: the result of `function` for each machine.

    On an accelerator it is one program for all of them (`jax.vmap`): a step of one machine is too
    small for it. A CPU is the other way round: XLA multiplies a stack of matrices there at half the
    speed of single ones. So each machine runs by itself, as many at a time as there are cores.
    """
    one, every = jax.jit(function), jax.jit(jax.vmap(function, (None, 0, 0)))

    def run(frames: Frames, states: Mapping, batches: Mapping) -> dict[str, Any]:
        machines = [(states[name], batches[name]) for name in states]
        if jax.default_backend() == "cpu":
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                found = pool.map(lambda own: jax.block_until_ready(one(frames, *own)), machines)
                return dict(zip(states, found, strict=True))
        found = every(frames, *jax.tree.map(lambda *x: jnp.stack(x), *machines))
        return {name: jax.tree.map(lambda x, i=i: x[i], found) for i, name in enumerate(states)}

    return run


# All machines


def train(
    how: FitAutoencoders, frames: Frames, machines: Mapping[str, np.ndarray], job: Job
) -> None:
    """Train and write the autoencoders of all machines; resumes a training that was stopped.

    The model file has what `scoring_weights` returns of each machine, after its name and a dot.

    Args:
      frames, machines: of `read_vectors`.

    Raises:
      InputError: a loss that is not finite, a checkpoint of another training. SystemExit(143) after
        SIGTERM, when the state is saved.
    """
    if job.anew:
        job.model.unlink(missing_ok=True)
        shutil.rmtree(job.out / "checkpoints", ignore_errors=True)
    adam = optax.adam(how.learning_rate)  # eps 1e-8 as PyTorch's
    run_epoch, measure_all = for_all(partial(train_epoch, adam)), for_all(measure)
    check = for_all(lambda *machine: measure(*machine).error)  # XLA removes the rest
    kept, held_out = {}, {}
    for name, vectors in machines.items():
        kept[name], held_out[name] = split(vectors, how.seed)
    held = make_batches(held_out, how.batch)
    frames = jax.device_put(frames)
    with Checkpoints(job.out / "checkpoints", job.key) as checkpoints:
        most = math.ceil(max(map(len, kept.values())) / how.batch)
        initial = start(adam, how.seed, most)
        states = dict.fromkeys(machines, initial)
        count = weights_file.count(initial.trainable)
        console.note(
            f"{counted(len(states), 'autoencoder')} of {count:,} parameters, one for each machine"
        )
        console.training_table(
            summary({}, initial.trainable), (count, count), job.reported.parameters
        )
        first = 0
        if checkpoints.latest() is not None:
            states, first = checkpoints.restore(states)
            console.note(f"resuming after epoch {first} of {how.epochs}")
        with (
            closing(Log(job.out / "log.jsonl", first)) as log,
            interrupt.caught() as stop,
            console.progress("training", how.epochs - first, "epochs") as advance,
        ):
            for done in range(first + 1, how.epochs + 1):
                batches = make_batches(kept, how.batch, (how.seed, done))
                states = run_epoch(frames, states, batches)
                errors = check(frames, states, held)
                log.write(done, mean_losses(states, batches, errors, held))
                advance(1)
                stopping = stop.asked(agree=True)
                if stopping or done % how.save_every == 0 or done == how.epochs:
                    checkpoints.save(done, states)
                if stopping:
                    break
            checkpoints.wait()
            stop.leave()
    batches = make_batches(kept, how.batch, (how.seed, how.epochs))
    on_kept, on_held = (measure_all(frames, states, own) for own in (batches, held))
    saved: Params = {}
    for name in machines:
        own = (part[name] for part in (states, batches, on_kept, held, on_held))
        saved |= {f"{name}.{part}": value for part, value in scoring_weights(name, *own).items()}
    weights_file.save(job.model, saved, Header("autoencoders", job.key))


def mean_losses(states, batches, errors, held) -> dict[str, float]:
    """Return the mean loss of each machine's batches: of those trained on, and of those held out.

    Raises:
      InputError: one that is not finite.
    """
    values = {}
    for name in batches:
        losses = states[name].losses[present(batches[name])]
        values[f"loss/{name}"] = float(losses.mean())
        values[f"held_out_loss/{name}"] = float(errors[name][present(held[name])].mean())
    if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
        raise InputError(
            f"training stopped: {', '.join(wrong)} not finite; give a smaller "
            "--train.learning-rate, with another --out"
        )
    return values


def scoring_weights(
    name: str, state: State, batches, on_kept: Residuals, held, on_held: Residuals
) -> dict[str, np.ndarray]:
    """Return what scores a machine's clips: weights, inverse covariances, values of batches.

    Args:
      name: of the machine, for a note about a singular covariance.
      state, batches, on_kept: after the last epoch, its batches and their residuals.
      held, on_held: batches of held-out vectors and their residuals.

    Returns:
      Beside the weights `precision.source` and `precision.target` `[128, 128]` (without target
      clips both are the source's), and what the thresholds from 2023 on are from, one value per
      batch: `batches.mse` (batches trained on: their loss in the last epoch, by their own
      statistics) and `batches.mahalanobis`. The baseline shuffles once more for the latter.
    """
    precisions = {}
    domains = zip(("source", "target"), on_kept.scatters, map(int, on_kept.counts), strict=True)
    for domain, total, count in domains:
        if count:
            precisions[domain], ridge = network.precision_of(total, count)
            if ridge:
                console.note(
                    f"{name}: the covariance of the {domain} residuals is singular; "
                    f"{ridge:.2g} was added to its diagonal"
                )
    either = next(iter(precisions.values()))
    source, target = (precisions.get(domain, either) for domain in ("source", "target"))
    batches, held = present(batches), present(held)
    rows = np.concatenate([on_kept.row[batches], on_held.row[held]])
    errors = np.concatenate([state.losses[batches], on_held.error[held]])
    distances = np.minimum(network.mahalanobis(rows, source), network.mahalanobis(rows, target))
    values = {"precision.source": source, "precision.target": target}
    values |= {"batches.mse": errors, "batches.mahalanobis": distances}
    return jax.device_get(state.trainable | state.statistics | values)
