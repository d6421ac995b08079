"""Where the clips of a step come from: two data paths behind one interface, in the same order.

Resident: the whole training set lies on every device as int16; a step is sent row numbers and
gathers. Streaming: threads decode ahead and a step is sent waves. The order depends on seed and
step alone, so it needs no state of its own and both paths train alike, bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.data.audio import AudioInfo, read_batch
from asdjax.data.decode import free_memory
from asdjax.data.loader import Audio, padded_samples, stays_int16
from asdjax.devices import copied, own_share, put_copies, split
from asdjax.train.batch import SILENCE, Asked, Batch, collect, join
from asdjax.train.passes import Ask
from asdjax.types import SAMPLE_RATE_HZ, Clip

READ_AT_ONCE = 64  # clips decoded together while the resident set is read
AHEAD = 2  # batches on their way to the device while it computes
FREE_SHARE = 1 / 3  # of the free memory that a resident set may take


class Source(NamedTuple):
    """Batches of one set of clips.

    `store` stays on the devices; `batches(first)` yields what each pass from `first` on is sent;
    `take(store, sent)` makes the batch, inside the jitted step.
    """

    store: tuple[jax.Array, ...]
    batches: Callable[[int], Iterator[tuple[jax.Array, ...]]]
    take: Callable[[tuple, tuple], Batch]


class Clips(NamedTuple):
    """What both paths read from."""

    clips: Sequence[Clip]
    label: np.ndarray  # [n, heads] int32
    audio: Audio
    samples: int  # of every row; shorter clips are padded as `audio` says
    dtype: type  # int16 only where all files allow it

    @property
    def nbytes(self) -> int:
        return len(self.clips) * self.samples * np.dtype(self.dtype).itemsize

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return waves `[b, samples]` and lengths `[b]` of some rows."""
        paths = [self.clips[row].path for row in rows]
        wave, lengths = read_batch(paths, self.samples, self.audio.fit, self.audio.channel)
        if wave.dtype != self.dtype:
            wave = wave.astype(np.float32) / 32768
        return wave, lengths

    def read_some(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return waves, lengths and labels `[b, heads]` of rows, of which some are `SILENCE`."""
        found = np.flatnonzero(rows != SILENCE)
        wave, lengths = np.zeros((len(rows), self.samples), self.dtype), np.zeros_like(rows)
        label = np.zeros((len(rows), self.label.shape[1]), self.label.dtype)
        if len(found):
            wave[found], lengths[found] = self.read(rows[found])
            label[found] = self.label[rows[found]]
        return wave, lengths, label


def make_clips(
    clips: Sequence[Clip], infos: Sequence[AudioInfo], label: np.ndarray, audio: Audio, whole: bool
) -> tuple[Clips, int]:
    """Decide sample type and length of all rows; return the length of a training clip as well.

    Args:
      whole: keep all of clips that are longer than `audio.seconds`, to crop from them at random.
    """
    samples = max(padded_samples(info, audio) for info in infos)
    dtype = np.int16 if all(stays_int16(info, audio) for info in infos) else np.float32
    if whole:
        fit = "pad" if audio.fit == "crop" else audio.fit
        own = replace(audio, seconds=None, fit=fit)
        longest = max(samples, *(padded_samples(info, own) for info in infos))
        return Clips(clips, label, own, longest, dtype), samples
    return Clips(clips, label, audio, samples, dtype), samples


def beside(listed: Clips, more: Sequence[Clip], infos: Sequence[AudioInfo]) -> Clips:
    """Return the clips with others numbered behind them, read alike; their labels mean nothing."""
    stays = all(stays_int16(info, listed.audio) for info in infos)
    return listed._replace(
        clips=[*listed.clips, *more],
        label=np.pad(listed.label, ((0, len(more)), (0, 0))),
        dtype=listed.dtype if stays else np.float32,
    )


def padded(infos: Sequence[AudioInfo], audio: Audio, samples: int) -> bool:
    """Tell whether some clip is followed by zeros in a row of `samples`."""
    shortest = min(info.samples * SAMPLE_RATE_HZ // info.rate_hz for info in infos)
    return audio.fit != "tile" and shortest < samples


def resident(clips: Clips, ask: Ask, mesh: jax.sharding.Mesh, advance: Callable) -> Source:
    """Read the whole set onto every device; each process reads its share of the files.

    Args:
      advance: told how many clips were read.
    """
    count = len(clips.clips)
    own = own_share(count, mesh)
    mine = np.arange(own.start, own.stop)  # beyond the last clip there is none to read
    wave = np.zeros((len(mine), clips.samples), clips.dtype)
    lengths = np.zeros(len(mine), np.int32)
    real = int((mine < count).sum())
    for start in range(0, real, READ_AT_ONCE):
        part = slice(start, min(start + READ_AT_ONCE, real))
        wave[part], lengths[part] = clips.read(mine[part])
        advance(part.stop - part.start)
    everywhere = jax.jit(lambda *x: x, out_shardings=copied(mesh))
    spread = [jax.make_array_from_process_local_data(split(mesh), x) for x in (wave, lengths)]
    label = put_copies(clips.label, mesh)
    store = (*everywhere(*spread), label)

    def batches(first: int) -> Iterator[tuple[jax.Array, ...]]:
        step = first
        while True:
            yield jax.tree.map(partial(to_devices, mesh=mesh), ask(step))
            step += 1

    def take(store, asked: Asked) -> Batch:
        def read(rows):
            return tuple(jnp.take(x, rows, axis=0, mode="fill", fill_value=0) for x in store)

        return join(collect(read, asked))

    return Source(store, batches, take)


def streaming(clips: Clips, ask: Ask, mesh: jax.sharding.Mesh) -> Source:
    """Decode batches ahead in threads; each process decodes its rows of every batch."""
    import grain

    class Sent:
        """Batches by number, for grain."""

        def __init__(self, first: int):
            self.first = first

        def __len__(self) -> int:
            return 2**31

        def __getitem__(self, number: int):
            asked = ask(self.first + number)
            own = own_share(len(asked.clip), mesh)
            return collect(clips.read_some, jax.tree.map(lambda rows: rows[own], asked))

    def batches(first: int) -> Iterator[tuple[jax.Array, ...]]:
        threads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        sending: deque[tuple[jax.Array, ...]] = deque()
        for parts in grain.MapDataset.source(Sent(first)).to_iter_dataset(threads):
            send = partial(jax.make_array_from_process_local_data, split(mesh))
            sending.append(jax.tree.map(send, parts))
            if len(sending) > AHEAD:
                yield sending.popleft()

    return Source((), batches, lambda store, parts: join(parts))


def to_devices(rows: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """Spread what every process knows as a whole over the devices."""
    return jax.make_array_from_callback(rows.shape, split(mesh), lambda index: rows[index])


def fits(nbytes: int) -> bool:
    """Tell whether a set of this size may stay on each device, here and in the other processes."""
    device = jax.local_devices()[0]
    memory = device.memory_stats() if device.platform != "cpu" else None
    if memory and "bytes_limit" in memory:
        free = memory["bytes_limit"] - memory["bytes_in_use"]
    else:  # each of a host's devices keeps its own copy
        free = free_memory()
        nbytes = nbytes * len(jax.local_devices())
    enough = nbytes <= FREE_SHARE * min(free, free_memory())  # it passes through the host
    if jax.process_count() > 1:  # one path for all, or they would wait for each other for ever
        from jax.experimental.multihost_utils import process_allgather

        enough = process_allgather(np.array(enough)).all()
    return bool(enough)
