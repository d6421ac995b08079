"""The stage `embed`: one vector per clip, by a jitted step over all local devices.

Of the clips of a machine a few batches are in memory. Vectors go into a file as they are computed,
so that a run that is killed goes on where it was.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from asdjax.artifact import Product, is_finished, make
from asdjax.config import SystemConfig
from asdjax.data.audio import AudioInfo
from asdjax.data.batches import load_batches, padded_samples, plan_batches
from asdjax.devices import copied, data_mesh, split
from asdjax.files import full_disk, write_json
from asdjax.models.system import Architecture, Embedder, of_two_microphones
from asdjax.models.weights_file import Params, load
from asdjax.report import console
from asdjax.stages.folder import MODEL, PART, Group, Run, save_embeddings
from asdjax.stages.options import Options
from asdjax.train.batches import padded
from asdjax.types import Clip, Embeddings, InputError

IN_FLIGHT = 2  # batches given to the device: one it computes, one that waits
SAVED_S = 5  # after so long, vectors that are computed are sure to be kept


def embedder(run: Run, out: Path) -> Embedder:
    """Return a run's embedder, which is trained in `out` if it trains.

    Raises:
      InputError: weights that are missing or do not fit; a system that is not trained in `out`.
    """
    refuse_untrained(run, out)
    trained = load(out / MODEL).arrays if run.system.train is not None else {}
    return embedder_of(run.system, trained)


def embedder_of(system: SystemConfig, trained: Params) -> Embedder:
    """Return the embedder of a system with these trained weights, {} if it does not train."""
    if system.train is not None:
        return system.train.embedder(system.encoders, system.audio, trained)
    networks = tuple(encoder.network(system.audio.samples) for encoder in system.encoders)
    return Architecture(networks).embedder({})


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

    def build(product: Product, clips: Sequence[Clip]) -> None:
        part = Part(product, len(clips), anew=options.force)
        if count := len(clips) - len(part.missing):
            console.note(f"{count} of {len(clips)} clips of {product.name} were embedded before")
            advance(count)

        def put(rows: np.ndarray, vectors: np.ndarray) -> None:
            part.put(part.missing[rows], vectors)
            advance(len(rows))

        if left := [clips[row] for row in part.missing]:
            known = [[run.infos[clip.path] for clip in some] for some in (left, clips)]
            compute()(left, known[0], put, known[1])
        save_embeddings(product.path, Embeddings(clips, part.finished()))

    present = 0
    with console.progress("embedding", sum(len(run.groups[g]) for g in groups)) as advance:
        for group in groups:
            product, clips = run.embeddings(out, group), run.groups[group]
            write = functools.partial(build, product, clips)
            done = make(product, write, force=options.force, reuse=options.reuse, alone=True)
            shutil.rmtree(_part_of(product), ignore_errors=True)
            if done != "built":
                present += 1
                advance(len(clips))
    if present:
        console.note(f"{present} of {len(groups)} machines were embedded before")


class Part:
    """The rows of a machine's embeddings that are computed so far, in a memory-mapped file.

    Which rows they are is written after them, every `SAVED_S` seconds.

    Args:
      product: the embeddings; rows that are of another key are forgotten.
      count: of its clips.
      anew: forget all rows.
    """

    def __init__(self, product: Product, count: int, anew: bool):
        self.folder, self.count = _part_of(product), count
        self._values, self._waiting, self._saved = None, [], time.monotonic()
        try:
            known = json.loads((self.folder / "key.json").read_text()) == product.key
            done, values = (self._open(name, "r+") for name in ("done", "values"))
            if known and not anew and len(done) == len(values) == count:
                self._done, self._values = done, values
        except (OSError, ValueError):  # nothing yet, or damaged
            pass
        if self._values is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._done = self._open("done", "w+", bool, (count,))
            write_json(self.folder / "key.json", product.key)
        self.missing = np.flatnonzero(~self._done)

    def put(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Keep vectors `[b, E]` of rows `[b]`."""
        if self._values is None:
            self._values = self._open("values", "w+", np.float32, (self.count, vectors.shape[1]))
        self._values[rows] = vectors
        self._waiting.append(rows)
        if time.monotonic() - self._saved > SAVED_S:
            self._save()

    def finished(self) -> np.ndarray:
        """Return all rows, `[n, E]`; they stay in the file."""
        self._save()
        return self._values

    def _save(self) -> None:
        self._values.flush()
        for rows in self._waiting:
            self._done[rows] = True
        self._done.flush()
        self._waiting, self._saved = [], time.monotonic()

    def _open(self, name: str, mode: str, *how) -> np.memmap:
        path = self.folder / f"{name}.npy"
        if mode == "r+":  # which would make a file longer that was cut off
            np.load(path, mmap_mode="r")
        opened = np.lib.format.open_memmap(path, mode, *how)
        if mode == "w+" and hasattr(os, "posix_fallocate"):  # a full disk is an error here alone
            with full_disk(path), path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return opened


def _part_of(product: Product) -> Path:
    return product.path.with_name(product.path.name + PART)


def make_embed(embedder: Embedder, config: SystemConfig, most_clips: int) -> Callable:
    """Return `embed(clips, infos, put, every=infos)`, jitted over all local devices.

    It calls `put(rows [b], vectors [b, E] float32)` for each batch, and compiles once per clip
    length, sample type, and whether some clips of that length are padded among `every`, the
    machine's whole set, of which some may have been embedded before. The device works on one batch
    while threads decode the next.

    Args:
      most_clips: in one call; batches need not be larger.
    """
    batch = min(config.batch, most_clips)
    compute = make_compute(embedder, config)

    def embed(clips, infos, put, every=None) -> None:
        compute(clips[0].group, file_batches(config, clips, infos, batch, every), put)

    return embed


def file_batches(
    config: SystemConfig,
    clips: Sequence[Clip],
    infos: Sequence[AudioInfo],
    batch: int,
    every: Sequence[AudioInfo] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Yield batches for `make_compute`; `batch` are the most clips in one, `every` as above."""
    plans = plan_batches(infos, config.audio, batch, data_mesh().size)
    lengths_of = [(info, padded_samples(info, config.audio)) for info in every or infos]
    shorter = {n for info, n in lengths_of if padded([info], config.audio, n)}
    for plan, wave, lengths in load_batches(clips, plans, config.audio):
        yield plan.rows, wave, lengths if plan.samples in shorter else None  # spares masks


def make_compute(embedder: Embedder, config: SystemConfig) -> Callable:
    """Return `compute(group, batches, put)`, jitted over all local devices.

    Batches are `(rows [b], wave [B, N] or [B, N, 2], lengths [B] or None)` of one machine, with
    B >= b a multiple of the devices; `put` as of `make_embed`.
    """
    mesh = data_mesh()
    params = jax.device_put(embedder.params, copied(mesh))
    # Clips do not see each other: shard_map says so, where `jit` alone would gather the batch of
    # waves for the FFT on every device (jax 0.10).
    rows, whole = jax.P("data"), jax.P()
    apply = of_two_microphones(embedder.apply, config.audio.channel)
    apply = jax.shard_map(
        apply, mesh=mesh, in_specs=(whole, rows, rows), out_specs=rows, check_vma=False
    )
    step = jax.jit(apply)

    def compute(group: Group, batches: Iterable[tuple], put: Callable) -> None:
        own = embedder.select(params, group)
        computing: deque[tuple[np.ndarray, jax.Array]] = deque()

        def collect() -> None:
            rows, vectors = computing.popleft()
            put(rows, _wait(vectors)[: len(rows)])

        for rows, wave, lengths in batches:
            vectors = step(own, *jax.device_put((wave, lengths), split(mesh)))
            computing.append((rows, vectors))
            if len(computing) == IN_FLIGHT:
                collect()
        while computing:
            collect()

    return compute


def embed_in_memory(
    embed: Callable, clips: Sequence[Clip], infos: Sequence[AudioInfo]
) -> np.ndarray:
    """Return the vectors `[n, E]` float32 of clips in memory, by what `make_embed` returns."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    embed(clips, infos, lambda *batch: found.append(batch))
    return in_order(found)


def in_order(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return what was put, `[n, E]`, by rows."""
    count = sum(len(rows) for rows, _ in found)
    values = np.zeros((count, found[0][1].shape[1]), np.float32)
    for rows, vectors in found:
        values[rows] = vectors
    return values


def _wait(computing: jax.Array) -> np.ndarray:
    """Return the result on the host when it is there, but let Ctrl-C through at once."""
    while not computing.is_ready():
        time.sleep(0.001)
    return np.asarray(computing)
