"""From clips to equally shaped batches of waves, decoded by threads ahead of the device.

Batches of 16-bit PCM files stay int16 until they are on the device: half the memory and half the
copying of float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asdjax.data.audio import TWO_SAMPLES, AudioInfo, read_batch
from asdjax.types import BOTH, SAMPLE_RATE_HZ, Clip, check

BUCKET_SAMPLES = SAMPLE_RATE_HZ  # clips are padded to whole seconds: one compiled step per length
LONG_SAMPLES = 10 * SAMPLE_RATE_HZ  # of longer clips fewer go into a batch


@dataclass(frozen=True)
class Audio:
    """How a file becomes a wave.

    Args:
      seconds: length of every wave; None takes each clip whole, padded to a full second (the
        padding is masked where the model knows masks).
      fit: how a shorter clip reaches `seconds`: zeros behind ("pad") or repetition ("tile"); a
        longer one is always cut. "crop" refuses shorter ones.
      channel: 0 is the near microphone of DCASE 2026; "mean" averages; None takes channel 0 of the
        challenge's files and the mean of other files. Three use channels 0 and 1, near and far,
        together: "wiener" takes out of near what a filter predicts from far, "magnitude" subtracts
        the magnitudes of their spectra, "residual" half the embedding of far from that of near (and
        trains on near). The filter is that of the wave that is read: of whole clips where training
        crops them at random.
    """

    seconds: float | None = None
    fit: Literal["pad", "tile", "crop"] = "pad"
    channel: int | Literal["mean", "wiener", "magnitude", "residual"] | None = None

    def __post_init__(self):
        seconds = 0.025 if self.seconds is None else self.seconds
        framed = self.channel in ("wiener", "magnitude") and self.seconds is not None
        least = TWO_SAMPLES / SAMPLE_RATE_HZ if framed else 0.025
        check(self, ("seconds", f"in [{least:g}, 3600] or none", least <= seconds <= 3600))

    @property
    def both(self) -> bool:
        """Return whether two microphones are used together: waves are `[B, N, 2]` when read."""
        return self.channel in BOTH

    @property
    def samples(self) -> int | None:
        """Return the samples of every wave; None where each clip has its own."""
        return None if self.seconds is None else round(self.seconds * SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class BatchPlan:
    """Which clips go into one batch."""

    rows: np.ndarray  # [b] int, positions in the list of clips
    samples: int
    size: int  # rows of the batch; those behind the clips are silent


def plan_batches(
    infos: Sequence[AudioInfo], audio: Audio, batch: int, devices: int = 1
) -> list[BatchPlan]:
    """Group clips of equal padded length and sample type into batches.

    Args:
      batch: the most clips in one; of longer ones than 10 s fewer, by the square of their length,
        with which the memory of attention grows.
      devices: over which a batch is split: sizes are multiples.
    """

    def size(samples: int) -> int:
        clips = max(batch * LONG_SAMPLES**2 // max(samples, LONG_SAMPLES) ** 2, 1)
        return -(-clips // devices) * devices

    buckets: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for row, info in enumerate(infos):
        buckets[padded_samples(info, audio), stays_int16(info, audio)].append(row)
    return [
        BatchPlan(np.array(rows[start : start + size(samples)]), samples, size(samples))
        for (samples, _), rows in sorted(buckets.items())
        for start in range(0, len(rows), size(samples))
    ]


def load_batches(
    clips: Sequence[Clip], plans: Sequence[BatchPlan], audio: Audio
) -> Iterator[tuple[BatchPlan, np.ndarray, np.ndarray]]:
    """Yield `(plan, wave [size, N], lengths [size])` in order, decoded ahead by threads.

    Of two microphones used together the wave is `[size, N, 2]`.

    A last batch that is not full is filled with silent rows of full length; only the first
    `len(plan.rows)` rows mean anything.
    """

    def load(plan: BatchPlan):
        paths = [clips[row].path for row in plan.rows]
        wave, lengths = read_batch(paths, plan.samples, audio.fit, audio.channel)
        missing = plan.size - len(paths)
        wave = np.pad(wave, ((0, missing), *[(0, 0)] * (wave.ndim - 1)))
        return plan, wave, np.pad(lengths, (0, missing), constant_values=plan.samples)

    if len(plans) == 1:  # nothing to read ahead, and grain takes most of a second to import
        yield load(plans[0])
        return
    import grain

    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    yield from grain.MapDataset.source(list(plans)).map(load).to_iter_dataset(ahead)


def padded_samples(info: AudioInfo, audio: Audio) -> int:
    """Return the length of a clip's row, 16 kHz."""
    if audio.seconds is not None:
        return audio.samples
    samples = -(-info.samples * SAMPLE_RATE_HZ // info.rate_hz)
    return -(-samples // BUCKET_SAMPLES) * BUCKET_SAMPLES


def stays_int16(info: AudioInfo, audio: Audio) -> bool:
    """Return whether reading a clip gives int16 (`audio.read`)."""
    one_channel = info.channels == 1 or audio.channel != "mean"
    return info.subtype == "PCM_16" and info.rate_hz == SAMPLE_RATE_HZ and one_channel
