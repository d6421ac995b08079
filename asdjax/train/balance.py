"""SMOTE for training clips: rare classes get synthetic clips between their own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from asdjax.train.batch import SILENCE, Asked

SHARES = 256  # 16-bit samples times shares in such steps are exact in float32, in whatever order


class Entries(NamedTuple):
    """What a pass over the set goes through: the clips, then the synthetic ones; `[n + m]`."""

    clip: np.ndarray  # int32
    partner: np.ndarray  # int32, another clip of the class; `SILENCE` for none
    share: np.ndarray  # float32, of `clip` in the mixture
    copied: np.ndarray  # bool: a copy of the only clip of a class
    classes: int  # that have synthetic clips

    def ask(self, numbers: np.ndarray) -> Asked:
        """Return the clips of a batch of entries."""
        return Asked(*(x[numbers] for x in self[:4]))

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
    counts, rng = np.bincount(own), np.random.default_rng(seed)
    wanted = np.maximum((ratio * counts.max()).astype(int) - counts, 0)
    clips = np.arange(len(own), dtype=np.int32)
    drawn = [(clips, np.full_like(clips, SILENCE), np.ones(len(clips), np.float32))]
    for one in np.flatnonzero(wanted):
        drawn.append(_between(clips[own == one], wanted[one], rng))
    clip, partner, share = map(np.concatenate, zip(*drawn, strict=True))
    copied = (partner == SILENCE) & (np.arange(len(clip)) >= len(clips))
    return Entries(clip, partner, share, copied, int((wanted > 0).sum()))


def _between(
    rows: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of different rows and the share of the first; of a single row copies."""
    if len(rows) == 1:
        return rows.repeat(count), np.full(count, SILENCE, np.int32), np.ones(count, np.float32)
    first = rng.integers(len(rows), size=count)
    second = (first + rng.integers(1, len(rows), size=count)) % len(rows)
    share = rng.integers(1, SHARES, size=count) / np.float32(SHARES)
    return rows[first], rows[second], share.astype(np.float32)
