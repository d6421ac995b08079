"""Training, from labelled clips to `RUN/model.safetensors`, in order of execution."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.devices import agree, data_mesh, leads, own_share, put_copies
from asdjax.files import write_json
from asdjax.models import weights_file
from asdjax.models.lora import summary
from asdjax.models.system import Architecture
from asdjax.models.weights_file import Header, Params
from asdjax.report import console
from asdjax.train import interrupt
from asdjax.train.batches import (
    READ_AT_ONCE,
    ClipSet,
    Source,
    fits,
    make_clip_set,
    padded,
    resident,
    streaming,
    training_batches,
    validation_batches,
)
from asdjax.train.checkpoint import Checkpoints
from asdjax.train.config import Job, Train
from asdjax.train.log import Log
from asdjax.train.optimizer import learning_rates, make_optimizer
from asdjax.train.plan import beside, make_plan, refuse_for_waves
from asdjax.train.step import TrainState, make_front_ends, make_step, make_validate
from asdjax.types import InputError

STEPS = 2**31  # of the random stream of the steps, beside that of the initial weights
IN_FLIGHT = 2  # micro-batches given to the device: one it computes, one that waits


def train(how: Train, job: Job) -> None:
    """Train and write what was trained; resume where an earlier call was stopped.

    Raises:
      InputError: an adapter that does not fit, a checkpoint of another training, a loss that is not
        finite. SystemExit(143) after SIGTERM, when the state is saved.
    """
    lead = leads()
    note = console.note if lead else lambda line: None
    agree({"recipe, settings, recordings and weights": f"{job.key} {how}"})

    # The clips: some train, some validate, some are noise for the others.
    noise = [clip for clip in job.clips if clip.supplement == "noise"]
    clips = [clip for clip in job.clips if clip.supplement != "noise"]
    plan = make_plan(how, clips)
    for line in (*plan.notes, *beside(job.reported, plan, clips)):
        note(line)
    how = plan.how

    # The system, and what of it trains.
    networks = job.networks
    refuse_for_waves(how.augment, networks)
    mesh = data_mesh(jax.devices())
    system = Architecture(networks, plan.tasks, how.perturbation)
    parts = system.parts(train=True)
    if lead:
        trainable = weights_file.count(parts.trainable)
        counts = weights_file.count(parts.frozen) + trainable, trainable
        trained = summary(parts.frozen, parts.trainable)
        console.training_table(trained, counts, job.reported.parameters)
    optimizer = make_optimizer(how.optimizer, parts.trainable, how.steps, how.accumulate, how.unit)
    rate, *of_branches = learning_rates(how.optimizer, how.steps, how.unit)
    rates = {"learning_rate": rate}
    rates |= {f"learning_rate_{i}": own for i, own in enumerate(of_branches)}
    if job.anew and lead:  # not before it is known that the system can be built
        job.model.unlink(missing_ok=True)
        shutil.rmtree(job.out / "checkpoints", ignore_errors=True)
    agree({"--force": str(job.anew)})  # nobody looks for checkpoints earlier

    with Checkpoints(job.out / "checkpoints", job.key) as checkpoints:
        agree({"--out": str(checkpoints.latest())})
        checkpoints.refuse_others()

        # The state: of the last checkpoint, else the start.
        *begun, frozen = system.initialize(how.seed)
        state, frozen = put_copies((start(*begun, optimizer, how), frozen), mesh)
        used = system.parts(train=False)
        networks = tuple(network._replace(params={}) for network in networks)
        del begun, system  # all weights once more, when all train
        first = 0
        if checkpoints.latest() is not None:
            state, first = checkpoints.restore(state)
            note(f"resuming after step {first} of {how.micro_batches}")

        # The data: the same order whether it is kept on the devices or streamed.
        make = partial(_source, clips, plan, how, job, networks, mesh, note)
        training, samples, some_padded = make(np.flatnonzero(~plan.held_out), noise=noise)
        step = make_step(
            parts,
            make_front_ends(networks, mesh, some_padded),
            training.take,
            how,
            optimizer,
            samples,
        )
        validate = None
        if plan.held_out.any():
            held, _, some_padded = make(np.flatnonzero(plan.held_out), cut=samples)
            front_ends = make_front_ends(networks, mesh, some_padded)
            right = make_validate(used, front_ends, held.take, samples)
            validate = partial(_validate, right, held, int(plan.held_out.sum()), how.batch)

        # The micro-batches.
        log = Log(job.out / "log.jsonl", first) if lead else None
        looked_at, waited = first, 0.0
        pending: deque[dict] = deque()
        with (
            closing(log) if log else nullcontext(),
            closing(training.batches(first)) as batches,
            interrupt.caught() as stop,
            console.training_progress(how.micro_batches, first, lead) as show,
        ):
            began = time.perf_counter()
            for done in range(first + 1, how.micro_batches + 1):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                state, metrics = step(state, frozen, training.store, batch)
                pending.append(metrics)
                if len(pending) > IN_FLIGHT:
                    jax.block_until_ready(pending[-1 - IN_FLIGHT])
                if done == first + 1:
                    jax.block_until_ready(metrics)
                    note(f"first step, with compilation: {time.perf_counter() - began:.0f} s")
                    began, waited, looked_at = time.perf_counter(), 0.0, done
                logging = done % how.log_every == 0 or done == how.micro_batches
                stopping = stop.asked(agree=logging)
                planned = done % how.save_every == 0 or done == how.micro_batches
                if not (logging or planned or stopping):
                    continue
                values = _collect(pending, done, checkpoints)
                updates = (done - 1) // how.accumulate
                values |= {name: float(rate(updates)) for name, rate in rates.items()}
                if done > looked_at:  # not at the first one, which compiles
                    elapsed = time.perf_counter() - began
                    values["clips_per_second"] = (done - looked_at) * how.batch / elapsed
                    values["waiting"] = waited / elapsed
                # Not where a signal came: such a step would compete for the best.
                checked = validate(state, frozen) if planned and validate else {}
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
            state, chosen = checkpoints.restore(state, checkpoints.best())
            note(f"best on held-out clips: step {chosen}")
    if lead:
        write_json(job.out / "labels.json", dict(enumerate(plan.classes)))
        trained = state.average or state.trainable | state.statistics
        weights_file.save(job.model, trained, Header("trained", job.key))


def start(statistics: Params, trainable: Params, optimizer, how: Train) -> TrainState:
    """Return the state before the first step; copies, for the first step donates its input."""
    state = TrainState(
        trainable=trainable,
        statistics=statistics,
        optimizer=optimizer.init(trainable),
        average=trainable | statistics if how.ema else {},
        key=jax.random.fold_in(jax.random.key(how.seed), STEPS),
        step=jnp.zeros((), jnp.int32),
    )
    return jax.tree.map(jnp.copy, state)


def _source(
    clips, plan, how, job, networks, mesh, note, rows, *, noise=(), cut: int | None = None
) -> tuple[Source, int, bool]:
    """Return batches of some rows, the samples of a training clip, and if some are shorter.

    Args:
      cut: the samples that validation takes of its clips; None: these clips train.
    """
    training = cut is None
    chosen, label = [clips[i] for i in rows], plan.label[rows]
    whole = how.augment.crop == "random"
    found, samples = make_clip_set(chosen, job.infos, label, job.audio, whole=whole, noise=noise)
    if training:
        select, line = training_batches(chosen, label, noise, how)
        if line:
            note(line)
    else:
        select = validation_batches(len(rows), how.batch)
    shorter = padded([job.infos[c.path] for c in chosen], job.audio, samples)
    if how.source == "resident" or (how.source == "auto" and fits(found.nbytes)):
        changed = training and (how.augment.changes_waves or how.balance or noise)
        made = None
        if not changed:
            made = _front_ends_once(networks, shorter, found, samples if training else cut, how)
        own = len(found.clips[own_share(len(found.clips), mesh)])
        with console.progress("reading", own, visible=leads()) as advance:
            source = resident(found, select, mesh, advance, made)
    else:
        source = streaming(found, select, mesh)
    return source, samples, shorter


def _front_ends_once(
    networks, shorter: bool, found: ClipSet, samples: int, how: Train
) -> tuple[Callable, int] | None:
    """Return what makes of waves what is kept in their place, and of how many at once.

    Of no more than a step takes on each device. None where waves take less memory.
    """
    mesh = data_mesh(jax.local_devices())
    apply = make_front_ends(networks, mesh, shorter).apply

    @jax.jit
    def front_ends(wave, lengths):
        return apply(wave[:, :samples], jnp.minimum(lengths, samples))

    each = min(how.batch // len(jax.devices()), max(READ_AT_ONCE // mesh.size, 1))
    rows = each * mesh.size
    wave = jax.ShapeDtypeStruct((rows, found.samples), found.dtype)
    made = jax.eval_shape(front_ends, wave, jax.ShapeDtypeStruct((rows,), np.int32))
    nbytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made))
    return (front_ends, rows) if nbytes <= rows * found.nbytes // len(found.clips) else None


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
    """Wait for the micro-batches up to `done`; return the means of what they measured.

    Raises:
      InputError: a number that is not finite, with the step and where the last good state is.
    """
    measured = jax.device_get(list(pending))
    pending.clear()
    for step, metrics in enumerate(measured, done + 1 - len(measured)):
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
    return {name: float(np.mean([m[name] for m in measured])) for name in measured[0]}
