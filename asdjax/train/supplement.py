"""Supplemental clips of 2025 in training: clean recordings to train on, noise to add.

The data set has either of them for each machine. They only train; no statistic that scores are made
of sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from asdjax.train.batch import SILENCE
from asdjax.types import Clip, InputError

NOISE = 1  # of the random stream that chooses noise, beside that of the order of clips


@dataclass(frozen=True)
class Supplement:
    """What of the supplemental clips is used; by default nothing.

    Args:
      clean: recordings of a machine alone are training clips of it, with the attributes in their
        names; those without are a class of their own where the machine's others have attributes.
      noise: probability, per clip, that noise from beside its machine is added to it.
      snr_db: bounds of the clip's power over the noise's, dB; uniform between them.
    """

    clean: bool = False
    noise: float = 0.0
    snr_db: tuple[float, float] = (0.0, 20.0)

    def __post_init__(self):
        if not 0 <= self.noise <= 1:
            raise InputError(f"expected a probability supplement.noise of 0 to 1, got {self.noise}")
        if len(self.snr_db) != 2 or not -100 <= self.snr_db[0] <= self.snr_db[1] <= 100:
            raise InputError(
                "expected supplement.snr_db as two numbers of -100 to 100 dB, the smaller first, "
                f"got {self.snr_db}"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of clips that are used, as `Clip.supplement` has them."""
        return ("clean",) * self.clean + ("noise",) * (self.noise > 0)


def choose_noise(
    clips: Sequence[Clip], noise: Sequence[Clip], probability: float, seed: int
) -> Callable[[int, np.ndarray], np.ndarray]:
    """Return `choose(step, rows) -> numbers [B]` of noise for some clips.

    What is chosen follows from seed and step alone. Noise clips are numbered behind the `clips`; a
    clip gets one of its machine and section, all with equal chances, or `SILENCE`: where it is
    spared, or its machine has none.
    """
    groups = {group: i for i, group in enumerate(dict.fromkeys(clip.group for clip in noise))}
    member = np.array([groups[clip.group] for clip in noise])
    numbers = len(clips) + np.argsort(member, kind="stable")  # noise of a machine side by side
    counts = np.append(np.bincount(member), 0)  # the last is that of machines without
    first = np.cumsum(counts) - counts
    own = np.array([groups.get(clip.group, len(groups)) for clip in clips])

    def choose(step: int, rows: np.ndarray) -> np.ndarray:
        chance, which = np.random.default_rng((seed, step, NOISE)).random((2, len(rows)))
        count = counts[own[rows]]
        place = first[own[rows]] + (which * count).astype(int)
        given = (chance < probability) & (count > 0)
        return np.where(given, numbers[np.where(given, place, 0)], SILENCE).astype(np.int32)

    return choose
