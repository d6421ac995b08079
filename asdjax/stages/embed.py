"""The stage `embed`: one vector per clip, by a jitted step over all local devices."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from asdjax.artifact import is_finished, make
from asdjax.config import SystemConfig
from asdjax.data.batches import load_batches, plan_batches
from asdjax.devices import copied, data_mesh, split
from asdjax.models.system import Architecture, Embedder
from asdjax.models.weights_file import load
from asdjax.report import console
from asdjax.stages.folder import MODEL, Group, Run, save_embeddings
from asdjax.stages.options import Options
from asdjax.types import Clip, Embeddings, InputError

IN_FLIGHT = 2  # batches given to the device: one it computes, one that waits


def embedder(run: Run, out: Path) -> Embedder:
    """Return a run's embedder, which is trained in `out` if it trains.

    Raises:
      InputError: weights that are missing or do not fit; a system that is not trained in `out`.
    """
    system = run.system
    if system.train is None:
        return Architecture(
            tuple(e.network(system.audio.samples) for e in system.encoders)
        ).embedder({})
    refuse_untrained(run, out)
    return system.train.embedder(system.encoders, system.audio, load(out / MODEL).arrays)


def refuse_untrained(run: Run, out: Path) -> None:
    """Raise an InputError if a system that trains is not trained in `out`."""
    if run.system.train is not None and not is_finished(run.model(out)):
        raise InputError(f"{out} holds no model of this system and data; train it with `run`")


def own_groups(groups: Mapping[Group, Sequence[Clip]]) -> list[Group]:
    """Return the machines and sections that this process embeds, of all processes.

    Those with most clips come first, each to the process that has fewest clips so far.
    """
    loads = np.zeros(jax.process_count(), int)
    own = []
    for group in sorted(groups, key=lambda group: -len(groups[group])):
        process = int(loads.argmin())
        loads[process] += len(groups[group])
        if process == jax.process_index():
            own.append(group)
    return [group for group in groups if group in own]


def embed(run: Run, out: Path, groups: Collection[Group], options: Options) -> None:
    """Write the embeddings of some machines and sections that are not finished yet."""
    largest = max(map(len, run.groups.values()))
    compute = functools.cache(lambda: make_embed(embedder(run, out), run.system, largest))

    def build(path: Path, clips: Sequence[Clip]) -> None:
        values = compute()(clips, [run.infos[clip.path] for clip in clips], advance)
        save_embeddings(path, Embeddings(clips, values))

    present = 0
    with console.progress("embedding", sum(len(run.groups[g]) for g in groups)) as advance:
        for group in groups:
            product, clips = run.embeddings(out, group), run.groups[group]
            write = functools.partial(build, product.path, clips)
            done = make(product, write, force=options.force, reuse=options.reuse, alone=True)
            if done != "built":
                present += 1
                advance(len(clips))
    if present:
        console.note(f"{present} of {len(groups)} machines were embedded before")


def make_embed(embedder: Embedder, config: SystemConfig, most_clips: int) -> Callable:
    """Return `embed(clips, infos, advance) -> [n, E] float32`, jitted over all local devices.

    It compiles once per clip length and sample type. The device works on one batch while threads
    decode the next.

    Args:
      most_clips: in one call; batches need not be larger.
    """
    mesh = data_mesh()
    batch = min(config.batch, most_clips)
    params = jax.device_put(embedder.params, copied(mesh))
    # Clips do not see each other: shard_map says so, where `jit` alone would gather the batch of
    # waves for the FFT on every device (jax 0.10).
    rows, whole = jax.P("data"), jax.P()
    apply = jax.shard_map(
        embedder.apply, mesh=mesh, in_specs=(whole, rows, rows), out_specs=rows, check_vma=False
    )
    step = jax.jit(apply)

    def embed(clips, infos, advance) -> np.ndarray:
        own = embedder.select(params, clips[0].group)
        computing: deque[tuple[np.ndarray, jax.Array]] = deque()
        found: list[tuple[np.ndarray, np.ndarray]] = []

        def collect() -> None:
            rows, vectors = computing.popleft()
            found.append((rows, _wait(vectors)[: len(rows)]))
            advance(len(rows))

        plans = plan_batches(infos, config.audio, batch, mesh.size)
        for plan, wave, lengths in load_batches(clips, plans, config.audio):
            vectors = step(own, *jax.device_put((wave, lengths), split(mesh)))
            computing.append((plan.rows, vectors))
            if len(computing) == IN_FLIGHT:
                collect()
        while computing:
            collect()
        values = np.zeros((len(clips), found[0][1].shape[1]), np.float32)
        for rows, vectors in found:
            values[rows] = vectors
        return values

    return embed


def _wait(computing: jax.Array) -> np.ndarray:
    """Return the result on the host when it is there, but let Ctrl-C through at once."""
    while not computing.is_ready():
        time.sleep(0.001)
    return np.asarray(computing)
