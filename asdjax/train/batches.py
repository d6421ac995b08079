"""Which clips each training step sees, and how they reach the devices.

The host decides by number (`Selection`), from seed and step alone, so that every process, a resumed
training and both data paths see the same batches. Resident: the whole training set lies on every
device as int16; a step is sent numbers and gathers. Streaming: threads decode ahead and a step is
sent waves. Both train alike, bit for bit, but where nothing is done to waves and what the front
ends make of a clip takes no more memory: that is resident in place of its wave, computed once and
not in each step, and the two differ by rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.data.audio import AudioInfo, free_memory, read_batch
from asdjax.data.batches import Audio, padded_samples, stays_int16
from asdjax.devices import copied, own_share, put_copies, split
from asdjax.frontend.fbank import to_float
from asdjax.frontend.two_channel import one_wave
from asdjax.models.system import Input
from asdjax.train.config import Train
from asdjax.types import NOISE, ORDER, SAMPLE_RATE_HZ, SYNTHETIC, Clip, random_numbers

NO_CLIP = 2**31 - 1  # in place of a clip's number: zeros
SHARES = 256  # 16-bit samples times shares in such steps are exact in float32, in whatever order
READ_AT_ONCE = 64  # clips decoded together while the resident set is read
AHEAD = 2  # batches on their way to the device while it computes
FREE_SHARE = 1 / 3  # of the free memory that a resident set may take


class Batch(NamedTuple):
    """What one step sees, over all devices."""

    # [B, N] int16 or float32, or what the front ends have made of it
    wave: jax.Array | tuple[Input, ...]
    lengths: jax.Array  # [B] int32, valid samples
    label: jax.Array  # [B, label kinds] int32
    copied: jax.Array | None = None  # [B] bool: copies of a clip, to be warped in time
    noise: jax.Array | None = None  # [B, N], to be added; zeros where there is none


class Selection(NamedTuple):
    """Clips of a batch: their numbers `[B]` int32, or (wave, lengths, label) read for these."""

    clip: Any
    partner: Any = None  # mixed with `clip`; `NO_CLIP` for none
    share: Any = None  # [B] float32, of `clip` in that mixture
    copied: Any = None  # [B] bool
    noise: Any = None  # `NO_CLIP` for none

    def read(self, read: Callable[[Any], tuple]) -> Selection:
        """Return the clips themselves; `read` gives wave, lengths and labels of numbers."""
        partner, noise = (None if x is None else read(x) for x in (self.partner, self.noise))
        return self._replace(clip=read(self.clip), partner=partner, noise=noise)

    def join(self) -> Batch:
        """Return the batch of clips that were read; a mixture is as long as the longer part."""
        wave, lengths, label = self.clip
        if self.partner is not None:
            other, other_lengths, _ = self.partner
            share = self.share[:, None]
            wave = share * to_float(wave) + (1 - share) * to_float(other)
            lengths = jnp.maximum(lengths, other_lengths)
        noise = None if self.noise is None else self.noise[0]
        return Batch(wave, lengths, label, self.copied, noise)


Select = Callable[[int], Selection]  # of a step number


def training_batches(
    clips: Sequence[Clip], label: np.ndarray, noise: Sequence[Clip], how: Train
) -> tuple[Select, str]:
    """Return what the steps of a training select, and a line for the console, "" for none.

    Args:
      clips: those trained on.
      label: `[n, label kinds]`, their classes.
      noise: clips to be added to them, numbered behind them.
      how: batch, seed, balance and supplement.
    """
    entries = balance(label, how.balance, how.seed) if how.balance else None
    numbers = shuffled(len(entries.clip if entries else clips), how.batch, how.seed)
    choose = choose_noise(clips, noise, how.supplement.noise, how.seed) if noise else None

    def select(step: int) -> Selection:
        found = entries.select(numbers(step)) if entries else Selection(numbers(step))
        return found._replace(noise=choose(step, found.clip)) if choose else found

    return select, entries.note(len(clips)) if entries else ""


def validation_batches(count: int, batch: int) -> Select:
    """Return all clips in turn, then from the first again."""
    return lambda step: Selection((step * batch + np.arange(batch, dtype=np.int32)) % count)


def shuffled(count: int, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """Return `numbers(step) [batch]`: each once in every turn over the set, newly shuffled."""

    @lru_cache(maxsize=2)  # a batch may lie across the end of a turn
    def turn_of(turn: int) -> np.ndarray:
        return random_numbers(seed, ORDER, turn).permutation(count).astype(np.int32)

    def numbers(step: int) -> np.ndarray:
        turn, position = np.divmod(step * batch + np.arange(batch), count)
        turns = range(turn[0], turn[-1] + 1)
        return np.concatenate([turn_of(t)[position[turn == t]] for t in turns])

    return numbers


class Entries(NamedTuple):
    """What a turn over the set goes through: the clips, then the synthetic ones; `[n + m]`."""

    clip: np.ndarray  # int32
    partner: np.ndarray  # int32, another clip of the class; `NO_CLIP` for none
    share: np.ndarray  # float32, of `clip` in the mixture
    copied: np.ndarray  # bool: a copy of the only clip of a class
    classes: int  # that have synthetic clips

    def select(self, numbers: np.ndarray) -> Selection:
        return Selection(*(x[numbers] for x in self[:4]))

    def note(self, clips: int) -> str:
        """Return a line for the console on how many of these are synthetic."""
        copies = int(self.copied.sum())
        warped = f", {copies} of them warped copies of a class's only clip" if copies else ""
        return (
            f"balance: {len(self.clip) - clips} synthetic training clips of {self.classes} rare "
            f"classes beside {clips} real ones{warped}"
        )


def balance(label: np.ndarray, ratio: float, seed: int) -> Entries:
    """Bring each class up to `ratio` times the largest by clips on lines between two of its own.

    A synthetic clip is s a + (1 - s) b of two clips of the class, all drawn with equal chances, s
    in steps of 1/256. Of a class of one clip there are copies, which the step warps in time, each
    time anew.

    Args:
      label: `[n, label kinds]`; a class is what agrees in all kinds.
      ratio: in (0, 1].
      seed: of the draw.

    Source: Chawla et al. 2002, "SMOTE", section 4.2, on training clips as in Midea's submission
      (Yin et al. 2024, section 2.2), which says neither how many nor of what. Chawla takes b from
      the 5 nearest neighbors of a. Here any clip of the class is one: a distance between waves says
      more of their phases than of their sound, and most rare classes have few clips.
    """
    own = np.unique(label, axis=0, return_inverse=True)[1].reshape(-1)
    counts, rng = np.bincount(own), random_numbers(seed, SYNTHETIC)
    wanted = np.maximum((ratio * counts.max()).astype(int) - counts, 0)
    clips = np.arange(len(own), dtype=np.int32)
    drawn = [(clips, np.full_like(clips, NO_CLIP), np.ones(len(clips), np.float32))]
    for one in np.flatnonzero(wanted):
        drawn.append(_between(clips[own == one], wanted[one], rng))
    clip, partner, share = map(np.concatenate, zip(*drawn, strict=True))
    copied = (partner == NO_CLIP) & (np.arange(len(clip)) >= len(clips))
    return Entries(clip, partner, share, copied, int((wanted > 0).sum()))


def _between(
    rows: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of different rows and the share of the first; of a single row copies."""
    if len(rows) == 1:
        return rows.repeat(count), np.full(count, NO_CLIP, np.int32), np.ones(count, np.float32)
    first = rng.integers(len(rows), size=count)
    second = (first + rng.integers(1, len(rows), size=count)) % len(rows)
    share = rng.integers(1, SHARES, size=count) / np.float32(SHARES)
    return rows[first], rows[second], share.astype(np.float32)


def choose_noise(
    clips: Sequence[Clip], noise: Sequence[Clip], probability: float, seed: int
) -> Callable[[int, np.ndarray], np.ndarray]:
    """Return `choose(step, rows) -> numbers [B]` of noise for some clips.

    Noise clips are numbered behind the `clips`. A clip gets one of its machine and section, all
    with equal chances, or `NO_CLIP`: where it is spared, or its machine has none.
    """
    groups = {group: i for i, group in enumerate(dict.fromkeys(clip.group for clip in noise))}
    member = np.array([groups[clip.group] for clip in noise])
    numbers = len(clips) + np.argsort(member, kind="stable")  # noise of a machine side by side
    counts = np.append(np.bincount(member), 0)  # the last is that of machines without
    first = np.cumsum(counts) - counts
    own = np.array([groups.get(clip.group, len(groups)) for clip in clips])

    def choose(step: int, rows: np.ndarray) -> np.ndarray:
        chance, which = random_numbers(seed, NOISE, step).random((2, len(rows)))
        count = counts[own[rows]]
        place = first[own[rows]] + (which * count).astype(int)
        given = (chance < probability) & (count > 0)
        return np.where(given, numbers[np.where(given, place, 0)], NO_CLIP).astype(np.int32)

    return choose


class Source(NamedTuple):
    """Batches of one set of clips.

    `store` stays on the devices; `batches(first)` yields what each step from `first` on is sent;
    `take(store, sent)` makes the batch, inside the jitted step.
    """

    store: tuple  # of arrays, the first of waves or `Input`s
    batches: Callable[[int], Iterator[tuple[jax.Array, ...]]]
    take: Callable[[tuple, tuple], Batch]


class ClipSet(NamedTuple):
    """What both data paths read from."""

    clips: Sequence[Clip]
    label: np.ndarray  # [n, label kinds] int32
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
        wave = one_wave(wave, lengths, self.audio.channel)
        if wave.dtype != self.dtype:
            wave = wave.astype(np.float32) / 32768
        return wave, lengths

    def read_some(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return waves, lengths and labels of rows, of which some are `NO_CLIP`."""
        found = np.flatnonzero(rows != NO_CLIP)
        wave, lengths = np.zeros((len(rows), self.samples), self.dtype), np.zeros_like(rows)
        label = np.zeros((len(rows), self.label.shape[1]), self.label.dtype)
        if len(found):
            wave[found], lengths[found] = self.read(rows[found])
            label[found] = self.label[rows[found]]
        return wave, lengths, label


def make_clip_set(
    clips: Sequence[Clip],
    infos: Mapping[Path, AudioInfo],
    label: np.ndarray,
    audio: Audio,
    *,
    whole: bool,
    noise: Sequence[Clip] = (),
) -> tuple[ClipSet, int]:
    """Decide sample type and length of all rows; return the length of a training clip as well.

    Args:
      clips, label: those trained on, and their classes `[n, label kinds]`.
      whole: keep all of clips that are longer than `audio.seconds`, to crop from them at random.
      noise: clips numbered behind the others, read alike; their labels mean nothing.
    """
    known = [infos[clip.path] for clip in clips]
    samples = longest = max(padded_samples(info, audio) for info in known)
    if whole:
        audio = replace(audio, seconds=None, fit="pad" if audio.fit == "crop" else audio.fit)
        longest = max(samples, *(padded_samples(info, audio) for info in known))
    every = [*known, *(infos[clip.path] for clip in noise)]
    whole_numbers = not audio.both and all(stays_int16(info, audio) for info in every)
    dtype = np.int16 if whole_numbers else np.float32
    label = np.pad(label, ((0, len(noise)), (0, 0)))
    return ClipSet([*clips, *noise], label, audio, longest, dtype), samples


def padded(infos: Sequence[AudioInfo], audio: Audio, samples: int) -> bool:
    """Return whether some clip is followed by zeros in a row of `samples`."""
    shortest = min(info.samples * SAMPLE_RATE_HZ // info.rate_hz for info in infos)
    return audio.fit != "tile" and shortest < samples


def resident(
    clips: ClipSet,
    select: Select,
    mesh: jax.sharding.Mesh,
    advance: Callable,
    made: tuple[Callable, int] | None = None,
) -> Source:
    """Read the whole set onto every device; each process reads its share of the files.

    Args:
      advance: called with how many more clips were read.
      made: `(wave [b, N], lengths [b]) -> inputs`, to be kept in place of waves, and b; None keeps
        waves.
    """
    front_ends, at_once = made or (None, READ_AT_ONCE)
    count = len(clips.clips)
    own = own_share(count, mesh)
    mine = np.arange(own.start, own.stop)  # beyond the last clip there is none to read
    kept = None
    for start in range(0, len(mine), at_once):
        rows = mine[start : start + at_once]
        wave, lengths = np.zeros((at_once, clips.samples), clips.dtype), np.zeros(at_once, np.int32)
        there = int((rows < count).sum())
        if there:
            wave[:there], lengths[:there] = clips.read(rows[:there])
        part = (wave if front_ends is None else front_ends(wave, lengths)), lengths
        if kept is None:
            kept = jax.tree.map(lambda x: np.zeros((len(mine), *x.shape[1:]), x.dtype), part)
        for whole, some in zip(*map(jax.tree.leaves, (kept, part)), strict=True):
            whole[start : start + len(rows)] = some[: len(rows)]
        advance(there)
    everywhere = jax.jit(lambda x: x, out_shardings=copied(mesh))
    send = partial(jax.make_array_from_process_local_data, split(mesh))
    store = (*everywhere(jax.tree.map(send, kept)), put_copies(clips.label, mesh))

    def batches(first: int) -> Iterator[tuple[jax.Array, ...]]:
        step = first
        while True:
            yield jax.tree.map(partial(_to_devices, mesh=mesh), select(step))
            step += 1

    def take(store, selection: Selection) -> Batch:
        def read(rows):
            return jax.tree.map(lambda x: jnp.take(x, rows, 0, mode="fill", fill_value=0), store)

        return selection.read(read).join()

    return Source(store, batches, take)


def streaming(clips: ClipSet, select: Select, mesh: jax.sharding.Mesh) -> Source:
    """Decode batches ahead in threads; each process decodes its rows of every batch."""
    import grain

    class Steps:
        """Batches by number, for grain."""

        def __init__(self, first: int):
            self.first = first

        def __len__(self) -> int:
            return 2**31

        def __getitem__(self, number: int):
            selection = select(self.first + number)
            own = own_share(len(selection.clip), mesh)
            return jax.tree.map(lambda rows: rows[own], selection).read(clips.read_some)

    def batches(first: int) -> Iterator[tuple[jax.Array, ...]]:
        threads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        sending: deque[tuple[jax.Array, ...]] = deque()
        for parts in grain.MapDataset.source(Steps(first)).to_iter_dataset(threads):
            send = partial(jax.make_array_from_process_local_data, split(mesh))
            sending.append(jax.tree.map(send, parts))
            if len(sending) > AHEAD:
                yield sending.popleft()

    return Source((), batches, lambda store, selection: selection.join())


def _to_devices(rows: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """Spread what every process knows as a whole over the devices."""
    return jax.make_array_from_callback(rows.shape, split(mesh), lambda index: rows[index])


def device_memory() -> int:
    """Return the free bytes of each device; CPUs share those of the host."""
    device = jax.local_devices()[0]
    memory = device.memory_stats() if device.platform != "cpu" else None
    if memory and "bytes_limit" in memory:
        return memory["bytes_limit"] - memory["bytes_in_use"]
    return free_memory() // len(jax.local_devices())


def fits(nbytes: int) -> bool:
    """Return whether a set of this size may stay on each device, here and in other processes."""
    enough = nbytes <= FREE_SHARE * min(device_memory(), free_memory())  # the host reads it first
    if jax.process_count() > 1:  # one path for all, or they would wait for each other for ever
        from jax.experimental.multihost_utils import process_allgather

        enough = process_allgather(np.array(enough)).all()
    return bool(enough)
