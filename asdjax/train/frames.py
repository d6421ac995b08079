"""The log-mel frames of all training clips, in one array, and the vectors that can be cut from it.

A vector is five successive frames of one clip: a stretch of the array. So an epoch gathers its
batches on the device from frames that are stored once, not five times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from asdjax.data.audio import AudioInfo
from asdjax.data.loader import Audio, load_batches, plan_batches
from asdjax.frontend.baseline import frame_count, log_mel
from asdjax.models.autoencoder import FRAMES, SHORTEST_SAMPLES
from asdjax.types import SAMPLE_RATE_HZ, Clip, InputError

BATCH = 32  # clips whose log-mel is computed in one call
LEAST_VECTORS = 3  # one is held out, and batches of one are not trained on
Group = tuple[str, str]  # machine and section


class Vectors(NamedTuple):
    """The vectors of a machine's training clips, in order."""

    first: np.ndarray  # [V] int32, where in the array of all frames each begins
    target: np.ndarray  # [V] bool, of clips of the target domain


def read_frames(
    clips: Sequence[Clip],
    infos: Sequence[AudioInfo],
    audio: Audio,
    advance: Callable[[int], object] = lambda _: None,
) -> list[np.ndarray]:
    """Return the log-mel `[T, 128]` float32 of each clip.

    Raises:
      InputError: `audio` cuts clips to less than one vector of five frames.
    """
    if audio.samples is not None and audio.samples < SHORTEST_SAMPLES:
        raise InputError(
            f"expected audio.seconds of {SHORTEST_SAMPLES / SAMPLE_RATE_HZ} or more, the length of "
            f"five frames, got {audio.seconds}; give a longer --audio.seconds"
        )
    found: list[np.ndarray] = [np.zeros(0)] * len(clips)
    for plan, wave, lengths in load_batches(clips, plan_batches(infos, audio, BATCH), audio, BATCH):
        mel = np.asarray(log_mel(wave, lengths))
        for row, frames, length in zip(plan.rows, mel, lengths, strict=False):
            found[row] = frames[: frame_count(length)].copy()
        advance(len(plan.rows))
    return found


def cut_vectors(
    mels: Sequence[np.ndarray], clips: Sequence[Clip]
) -> tuple[np.ndarray, dict[Group, Vectors]]:
    """Return all frames `[F, 128]` and, for each machine and section, its vectors.

    Raises:
      InputError: machines with fewer than three vectors.
    """
    begins = np.cumsum([0, *map(len, mels)])
    counts = np.array([len(mel) - FRAMES + 1 for mel in mels])
    rows: dict[Group, list[int]] = {}
    for row, clip in enumerate(clips):
        rows.setdefault(clip.group, []).append(row)
    made = {}
    for group, own in rows.items():
        first = [begins[row] + np.arange(counts[row], dtype=np.int32) for row in own]
        target = np.array([clips[row].domain == "target" for row in own])
        made[group] = Vectors(np.concatenate(first, dtype=np.int32), target.repeat(counts[own]))
    _refuse_few(made)
    return np.concatenate(mels), made


def _refuse_few(made: Mapping[Group, Vectors]) -> None:
    few = ["/".join(group) for group, own in made.items() if len(own.first) < LEAST_VECTORS]
    if few:
        raise InputError(
            f"expected {LEAST_VECTORS} or more vectors of five frames from the training clips of a "
            f"machine, got fewer from {', '.join(few)}; add clips, or take the machine out of the "
            "folder"
        )
