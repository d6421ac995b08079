"""Training, from labelled clips to `RUN/model.safetensors`, in order of execution."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from asdjax import params as weights
from asdjax.data.audio import AudioInfo
from asdjax.data.loader import Audio
from asdjax.devices import agree, data_mesh, leads, own_share, put_copies
from asdjax.files import write_json
from asdjax.models.lora import summary
from asdjax.models.system import Base, Trained, initialize, take_apart
from asdjax.params import Header, Params
from asdjax.report import console
from asdjax.train import interrupt, source
from asdjax.train.checkpoint import Checkpoints
from asdjax.train.config import Train
from asdjax.train.log import Log
from asdjax.train.optimizer import learning_rate, make_optimizer
from asdjax.train.passes import one_after_another, training_passes
from asdjax.train.plan import Plan
from asdjax.train.source import Source
from asdjax.train.step import TrainState, make_hear, make_step, make_validate
from asdjax.types import Clip, InputError

STEPS = 2**31  # of the random stream of the passes, beside that of the initial weights
IN_FLIGHT = 2  # passes given to the device: one it computes, one that waits


def train(
    config: Trained,
    how: Train,
    bases: Sequence[Base],
    plan: Plan,
    clips: Sequence[Clip],
    infos: Sequence[AudioInfo],
    audio: Audio,
    out: Path,
    model: Path,
    described: dict,
    reported: str = "",
    anew: bool = False,
    noise: Sequence[tuple[Clip, AudioInfo]] = (),
) -> None:
    """Train and write what was trained; go on where an earlier call was stopped.

    Args:
      config, how: the system and its training.
      bases: what the branches begin with.
      plan: of these clips (`make_plan`).
      clips, infos: normal training clips and what is known of their files.
      audio: how a file becomes a wave.
      out: the run's folder; gets `checkpoints/`, `log.jsonl` and `labels.json`.
      model: the file for what was trained, with its statistics.
      described: what the result depends on, stored with each checkpoint and compared on resuming.
      reported: parameter counts of the report, to be printed beside ours.
      anew: do not go on; remove what an earlier training left.
      noise: clips that are added to those of their machine, as `how.supplement` says.

    Raises:
      InputError: an adapter that does not fit, a checkpoint of another run, a loss that is not
        finite. SystemExit(0) after SIGTERM, when the state is saved.
    """
    lead = leads()
    note = console.note if lead else _ignore
    agree({"recipe, settings, recordings and weights": f"{described} {how}"})

    # The system, and what of it trains.
    each = [base.config.for_features(base.params) for base in bases]
    structures, begin_with = zip(*each, strict=True)
    mesh = data_mesh(jax.devices())
    building = config, structures, plan.tasks
    parts, used = take_apart(*building, train=True), take_apart(*building, train=False)
    if lead:
        console.training_table(summary(parts.frozen, parts.trainable), _counts(parts), reported)
    optimizer = make_optimizer(how.optimizer, parts.trainable, how.steps, how.accumulate, how.unit)
    rate = learning_rate(how.optimizer.schedule, how.steps, how.unit)
    if anew and lead:  # not before it is known that the system can be built
        _remove(out / "checkpoints", model)
    agree({"--force": str(anew)})  # nobody looks for checkpoints earlier

    with Checkpoints(out / "checkpoints", described) as checkpoints:
        agree({"--out": str(checkpoints.latest())})
        checkpoints.refuse_others()

        # The state: of the last checkpoint, else the start.
        *begun, frozen = initialize(*building, begin_with, how.seed)
        state, frozen = put_copies((start(*begun, optimizer, how), frozen), mesh)
        del begun, each, begin_with  # all weights once more, when all train
        first = 0
        if checkpoints.latest() is not None:
            state, first = checkpoints.restore(jax.tree.map(_abstract, state))
            note(f"going on after step {first} of {how.passes}")

        # The data: the same order whether it is kept on the devices or streamed.
        make = partial(_source, clips, infos, plan, audio, how, mesh, note)
        training, samples, padded = make(np.flatnonzero(~plan.held_out), noise=noise)
        hear = make_hear(structures, mesh, padded)
        step = make_step(parts, hear, training.take, how, optimizer, samples)
        validate = _nothing_held_out
        if plan.held_out.any():
            held, _, padded = make(np.flatnonzero(plan.held_out), training=False)
            hear = make_hear(structures, mesh, padded)
            right = make_validate(used, hear, held.take, samples)
            validate = partial(_validate, right, held, int(plan.held_out.sum()), how.batch)

        # The passes.
        log = Log(out / "log.jsonl", first) if lead else None
        looked_at, waited = first, 0.0
        pending: deque[dict] = deque()
        with (
            closing(log) if log else nullcontext(),
            closing(training.batches(first)) as batches,
            interrupt.caught() as stop,
            console.training_progress(how.passes, first, lead) as show,
        ):
            began = time.perf_counter()
            for done in range(first + 1, how.passes + 1):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                state, metrics = step(state, frozen, training.store, batch)
                pending.append(metrics)
                if len(pending) > IN_FLIGHT:
                    jax.block_until_ready(pending[-1 - IN_FLIGHT])
                if done == first + 1:
                    jax.block_until_ready(metrics)
                    note(f"first pass, with compilation: {time.perf_counter() - began:.0f} s")
                    began, waited, looked_at = time.perf_counter(), 0.0, done
                logging = done % how.log_every == 0 or done == how.passes
                stopping = stop.asked(agree=logging)
                planned = done % how.save_every == 0 or done == how.passes
                if not (logging or planned or stopping):
                    continue
                values = _collect(pending, done, checkpoints)
                values["learning_rate"] = float(rate((done - 1) // how.accumulate))
                if done > looked_at:  # not at the first pass, which compiles
                    elapsed = time.perf_counter() - began
                    values["clips_per_second"] = (done - looked_at) * how.batch / elapsed
                    values["waiting"] = waited / elapsed
                # Not where a signal came: such a step would compete for the best.
                checked = validate(state, frozen) if planned else {}
                if log:
                    log.write(done, values | checked)
                    show(done, values)
                if planned or stopping:
                    checkpoints.save(done, state, checked.get("held_out_accuracy"))
                began, waited, looked_at = time.perf_counter(), 0.0, done
                if stopping:
                    break
            checkpoints.wait()
            stop.leave()

        # What was trained.
        if how.select == "best":
            state, chosen = checkpoints.restore(jax.tree.map(_abstract, state), checkpoints.best())
            note(f"best on held-out clips: step {chosen}")
    if lead:
        write_json(out / "labels.json", plan.described)  # before the model, which ends the training
        header = Header("trained", described, source_sha256=described["weights_sha256"])
        weights.save(model, state.average or state.trainable | state.statistics, header)


def start(statistics: Params, trainable: Params, optimizer, how: Train) -> TrainState:
    """Return the state before the first pass; copies, for the first step gives its input up."""
    state = TrainState(
        trainable=trainable,
        statistics=statistics,
        optimizer=optimizer.init(trainable),
        average=trainable | statistics if how.ema else {},
        key=jax.random.fold_in(jax.random.key(how.seed), STEPS),
        step=jnp.zeros((), jnp.int32),
    )
    return jax.tree.map(jnp.copy, state)


def _remove(checkpoints: Path, model: Path) -> None:
    model.unlink(missing_ok=True)
    if checkpoints.is_dir():
        shutil.rmtree(checkpoints)


def _source(
    clips, infos, plan, audio, how, mesh, note, rows, *, training: bool = True, noise=()
) -> tuple[Source, int, bool]:
    """Return batches of some rows, the samples of a training clip, and if some are shorter."""
    chosen, known = [clips[i] for i in rows], [infos[i] for i in rows]
    whole = how.augment.crop == "random"
    listed, samples = source.make_clips(chosen, known, plan.label[rows], audio, whole)
    if training:
        added, of_noise = [clip for clip, _ in noise], [info for _, info in noise]
        ask, line = training_passes(chosen, listed.label, added, how)
        listed = source.beside(listed, added, of_noise)
        if line:
            note(line)
    else:
        ask = one_after_another(len(rows), how.batch)
    resident = how.source == "resident" or (how.source == "auto" and source.fits(listed.nbytes))
    if resident:
        own = len(listed.clips[own_share(len(listed.clips), mesh)])
        with console.progress("reading", own, visible=leads()) as advance:
            made = source.resident(listed, ask, mesh, advance)
    else:
        made = source.streaming(listed, ask, mesh)
    return made, samples, source.padded(known, audio, samples)


def _validate(right, held: Source, count: int, batch: int, state: TrainState, frozen) -> dict:
    """Return class accuracy and spread of the embeddings of held-out normal clips.

    The spread is 1 - length of the mean unit embedding: 0 when all are alike, near 1 when they
    point everywhere.
    """
    found = []
    batches = held.batches(0)
    average = state.average or state.trainable | state.statistics
    trained, statistics = ({n: average[n] for n in part} for part in state[:2])
    for _ in range(-(-count // batch)):
        found.append(right(trained, statistics, frozen, held.store, next(batches)))
    batches.close()
    right_ones, unit = zip(*found, strict=True)
    accuracy, unit = (np.concatenate(list(map(_whole, x)))[:count] for x in (right_ones, unit))
    spread = 1 - np.linalg.norm(unit.mean(0))
    return {"held_out_accuracy": float(accuracy.mean()), "held_out_spread": float(spread)}


def _whole(x: jax.Array) -> np.ndarray:
    """Return an array that is spread over the devices of all processes."""
    if jax.process_count() == 1:
        return np.asarray(x)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(x, tiled=True))


def _collect(pending: deque[dict], done: int, checkpoints: Checkpoints) -> dict[str, float]:
    """Wait for the passes up to `done`; return the means of what they measured.

    Raises:
      InputError: a number that is not finite, with the pass and where the last good state is.
    """
    passes = jax.device_get(list(pending))
    pending.clear()
    for step, metrics in enumerate(passes, done + 1 - len(passes)):
        if all(math.isfinite(value) for value in metrics.values()):
            continue
        checkpoints.wait()
        latest = checkpoints.latest()
        kept = "none" if latest is None else f"step {latest}"
        shown = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
        raise InputError(
            f"training stopped: not finite at step {step} ({shown}). Last good checkpoint: {kept}. "
            "Give a smaller --train.optimizer.schedule.peak or a --train.optimizer.clip, with "
            "another --out"
        )
    return {name: float(np.mean([m[name] for m in passes])) for name in passes[0]}


def _counts(parts) -> tuple[int, int]:
    """Return total and trainable numbers of a system."""
    trainable = weights.count(parts.trainable)
    return weights.count(parts.frozen) + trainable, trainable


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _ignore(text: str) -> None:
    """Say nothing: for the processes that do not lead."""


def _nothing_held_out(state: TrainState, frozen: Params) -> dict:
    return {}
