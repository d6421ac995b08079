"""The official baseline's training: an autoencoder for each machine and section, all at once.

Every machine does exactly the steps it would do alone, from the same start, whichever others there
are.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from asdjax import params as weights
from asdjax.devices import alone
from asdjax.models.autoencoder import mahalanobis, precision_of
from asdjax.models.lora import summary
from asdjax.params import Header, Params
from asdjax.report import console
from asdjax.train import interrupt
from asdjax.train.autoencoder_step import (
    ABSENT,
    Batches,
    Measured,
    State,
    held_out_errors,
    make_epoch,
    measure_batches,
    start,
    together,
)
from asdjax.train.checkpoint import Checkpoints
from asdjax.train.frames import Group, Vectors
from asdjax.train.log import Log
from asdjax.types import InputError

HELD_OUT = 0.1  # of a machine's vectors, drawn at random; they only measure


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

    def __post_init__(self):
        if min(self.epochs, self.save_every) < 1 or self.batch < 2 or self.learning_rate <= 0:
            raise InputError(
                "expected epochs and save_every >= 1, batch >= 2 and a learning rate above 0, got "
                f"{self}"
            )


def train(
    how: FitAutoencoders,
    frames: np.ndarray,
    machines: Mapping[Group, Vectors],
    out: Path,
    model: Path,
    described: dict,
    reported: str = "",
    anew: bool = False,
) -> None:
    """Train and write the autoencoders of all machines; go on where an earlier call was stopped.

    Args:
      frames, machines: of `cut_vectors`.
      out: the run's folder; gets `checkpoints/` and a line of `log.jsonl` for each epoch.
      model: the file for what `finish` returns of each machine, its names behind `name_of` it.
      described: what the result depends on, stored with each checkpoint and compared on resuming.
      reported: parameter counts of the report, to be printed beside ours.
      anew: do not go on; remove what an earlier training left.

    Raises:
      InputError: a loss that is not finite, a checkpoint of another training, several processes.
        SystemExit(0) after SIGTERM, when the state is saved.
    """
    if not alone():
        raise InputError("autoencoders are trained by one process; start it on one host only")
    if anew:
        model.unlink(missing_ok=True)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    parts = {group: _split(own, how.seed) for group, own in machines.items()}
    epoch, check = together(make_epoch(how.learning_rate)), together(held_out_errors)
    frames = jax.device_put(frames)
    held = make_batches([own for _, own in parts.values()], how.batch)
    with Checkpoints(out / "checkpoints", described) as checkpoints:
        checkpoints.refuse_others()
        size = len(_shuffled(parts, how, 0)[0].first)
        states = [start(how.seed, how.learning_rate, size) for _ in parts]
        _tell_counts(states, reported)
        first = 0
        if checkpoints.latest() is not None:
            states, first = checkpoints.restore(jax.tree.map(_abstract, states))
            console.note(f"going on after epoch {first} of {how.epochs}")
        with (
            closing(Log(out / "log.jsonl", first)) as log,
            interrupt.caught() as stop,
            console.progress("training", how.epochs - first, "epochs") as advance,
        ):
            for done in range(first + 1, how.epochs + 1):
                batches = _shuffled(parts, how, done)
                states = epoch(frames, list(zip(states, batches, strict=True)))
                errors = check(frames, list(zip(states, held, strict=True)))
                log.write(done, _losses(parts, states, batches, errors, held))
                advance(1)
                stopping = stop.asked(agree=True)
                if stopping or done % how.save_every == 0 or done == how.epochs:
                    checkpoints.save(done, states)
                if stopping:
                    break
            checkpoints.wait()
            stop.leave()
    batches = _shuffled(parts, how, how.epochs)
    measure = together(measure_batches)
    trained = measure(frames, list(zip(states, batches, strict=True)))
    found = measure(frames, list(zip(states, held, strict=True)))
    made: Params = {}
    for group, *of_machine in zip(parts, states, batches, trained, held, found, strict=True):
        own = finish("/".join(group), *of_machine)
        made |= {f"{name_of(group)}.{name}": value for name, value in own.items()}
    weights.save(model, made, Header("autoencoders", described))


def _tell_counts(states: Sequence[State], reported: str) -> None:
    """Print the layers and the numbers of one autoencoder, and how many there are."""
    trainable = states[0].trainable
    count = weights.count(trainable)
    console.note(f"{len(states)} autoencoders of {count:,} numbers, one for each machine")
    console.training_table(summary({}, trainable), (count, count), reported)


def name_of(group: Group) -> str:
    """Return what the names of a machine's weights begin with."""
    return "_".join(group)


def make_batches(
    machines: Sequence[Vectors], size: int, order: tuple[int, int] | None = None
) -> list[Batches]:
    """Return the batches of each machine, as arrays of the same shape.

    Args:
      size: vectors in a batch; the last may be shorter.
      order: seeds by which a machine's vectors are shuffled; None leaves them in turn. A last batch
        of one shuffled vector is left out, for it has no variance.
    """
    most = max(-(-len(own.first) // size) for own in machines)
    made = []
    for own in machines:
        turn = np.arange(len(own.first))
        if order is not None:
            turn = np.random.default_rng(order).permutation(len(turn))
        first, target = (np.zeros(most * size, dtype) for dtype in (np.int32, bool))
        first[:] = ABSENT
        first[: len(turn)], target[: len(turn)] = own.first[turn], own.target[turn]
        whole, rest = divmod(len(turn), size)
        count = np.int32(whole + (rest > (order is not None)))
        made.append(Batches(first.reshape(most, size), target.reshape(most, size), count))
    return made


def finish(
    name: str, state: State, batches: Batches, trained: Measured, held: Batches, found: Measured
) -> dict[str, np.ndarray]:
    """Return what scores a machine's clips: weights, inverse covariances, values of batches.

    Args:
      name: of the machine, for a note about a singular covariance.
      state, batches, trained: after the last epoch, and what was measured in its batches.
      held, found: the same of held-out vectors.

    Returns:
      Beside the weights `precision.source` and `precision.target` `[128, 128]` (without target
      clips both are the source's), and what the thresholds from 2023 on are from, one value per
      batch: `batches.mse` (batches trained on: their loss in the last epoch, by their own
      statistics) and `batches.mahalanobis`. The baseline shuffles once more for the latter.
    """
    inside = (batches.first != ABSENT) & (np.arange(len(batches.first)) < batches.count)[:, None]
    precisions = {}
    for domain, own in {"source": ~batches.target, "target": batches.target}.items():
        if count := int((inside & own).sum()):
            precisions[domain], ridge = precision_of(getattr(trained, domain), count)
            if ridge:
                console.note(
                    f"{name}: the covariance of the {domain} residuals is singular; "
                    f"{ridge:.2g} was added to its diagonal"
                )
    either = next(iter(precisions.values()))
    precisions = {domain: precisions.get(domain, either) for domain in ("source", "target")}
    rows = np.concatenate([trained.row[: batches.count], found.row[: held.count]])
    lengths = [mahalanobis(rows, precision) for precision in precisions.values()]
    errors = [state.losses[: batches.count], found.error[: held.count]]
    made = {f"precision.{domain}": value for domain, value in precisions.items()}
    made |= {"batches.mse": np.concatenate(errors), "batches.mahalanobis": np.minimum(*lengths)}
    return jax.device_get(state.trainable | state.statistics | made)


def _split(own: Vectors, seed: int) -> tuple[Vectors, Vectors]:
    """Return the vectors to train on and those held out."""
    order = np.random.default_rng(seed).permutation(len(own.first))
    held = math.ceil(HELD_OUT * len(order))
    parts = order[held:], order[:held]
    return tuple(Vectors(own.first[rows], own.target[rows]) for rows in parts)


def _shuffled(
    parts: Mapping[Group, tuple[Vectors, Vectors]], how: FitAutoencoders, epoch: int
) -> list[Batches]:
    return make_batches([own for own, _ in parts.values()], how.batch, (how.seed, epoch))


def _losses(parts, states, batches, errors, held) -> dict[str, float]:
    """Return the mean loss of the batches of each machine, those trained on and those held out.

    Raises:
      InputError: one that is not finite.
    """
    values = {}
    for group, state, own, error, other in zip(parts, states, batches, errors, held, strict=True):
        values[f"loss/{name_of(group)}"] = float(np.mean(state.losses[: own.count]))
        values[f"held_out_loss/{name_of(group)}"] = float(np.mean(error[: other.count]))
    if wrong := [name for name, value in values.items() if not np.isfinite(value)]:
        raise InputError(
            f"training stopped: {', '.join(wrong)} not finite; give a smaller "
            "--train.learning-rate, with another --out"
        )
    return values


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
