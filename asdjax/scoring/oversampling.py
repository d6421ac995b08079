"""Synthetic embeddings of the target domain, which has far fewer clips than the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asdjax.scoring.folds import unit
from asdjax.types import check


@dataclass(frozen=True)
class Smote:
    """Target embeddings between two target clips that are near each other.

    A synthetic row is t + u (t' - t), u uniform in [0, 1), t' one of the nearest neighbors of the
    target row t. Source clips only say how many are wanted.

    Args:
      ratio: target clips, real and synthetic, per source clip.
      neighbors: how many nearest target clips of a target clip a synthetic one may lie towards.
      seed: of the random choice.

    Source: Chawla et al. 2002, "SMOTE", section 4.2, as imbalanced-learn computes it.
    """

    ratio: float = 0.2
    neighbors: int = 2
    seed: int = 0

    name = "SMOTE"

    def __post_init__(self):
        check(
            self,
            ("ratio", "in (0, 1]", 0 < self.ratio <= 1),
            ("neighbors", ">= 1", self.neighbors >= 1),
            ("seed", "in [0, 2**32)", 0 <= self.seed < 2**32),
        )

    def lacks(self, sources: int, targets: int) -> str:
        """Return why nothing can be made of so many clips, "" where something can."""
        if targets <= self.neighbors:
            least = self.neighbors + 1
            return f"{targets} target clips; {self.neighbors} neighbors need at least {least}"
        if int(self.ratio * sources) <= targets:
            ratio = f"ratio {self.ratio:g} is reached"
            return f"{targets} target and {sources} source clips: {ratio}"
        return ""

    def rows(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return synthetic rows `[m, E]` of rows of length 1, `[s, E]` and `[t, E]`."""
        from imblearn.over_sampling import SMOTE

        smote = SMOTE(
            sampling_strategy={True: int(self.ratio * len(source))},
            k_neighbors=self.neighbors,
            random_state=self.seed,
        )
        values = np.concatenate([source, target])
        is_target = np.arange(len(values)) >= len(source)
        return smote.fit_resample(values, is_target)[0][len(values) :]


@dataclass(frozen=True)
class MemMixup:
    """Target embeddings moved a little towards source clips: the way that a domain shift may go.

    A synthetic row is share t + (1 - share) s, for each target row t and each of the source rows s
    nearest to it.

    Args:
      share: of the target row.
      supports: how many nearest source rows; where there are fewer, all.

    Source: Saengthong and Shinozaki 2025, "Deep generic representations for domain-generalized
        anomalous sound detection" (GenRep, arXiv 2409.05035): 0.9, and 990 of 990 source clips.
    """

    share: float = 0.9
    supports: int = 990

    name = "MemMixup"

    def __post_init__(self):
        check(
            self,
            ("share", "in (0, 1)", 0 < self.share < 1),
            ("supports", ">= 1", self.supports >= 1),
        )

    def lacks(self, sources: int, targets: int) -> str:
        """Return why nothing can be made of so many clips, "" where something can."""
        return "" if sources and targets else f"{targets} target and {sources} source clips"

    def rows(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return synthetic rows `[m, E]` of rows of length 1, `[s, E]` and `[t, E]`."""
        nearest = np.argsort(-target @ source.T, 1, kind="stable")[:, : self.supports]
        mixed = (
            np.float32(self.share) * target[:, None] + np.float32(1 - self.share) * source[nearest]
        )
        return mixed.reshape(-1, target.shape[1])


def oversample(
    values: np.ndarray, domains: Sequence[str | None], config: Smote | MemMixup
) -> tuple[np.ndarray, str]:
    """Return synthetic target clips of one machine, and why there are none.

    Args:
      values: `[n, E]` float32, rows of length 1: the nearest rows are then those of largest cosine.
      domains: "source", "target" or None of each row.
      config: how many, and from what.

    Returns:
      `[m, E]` float32, rows of length 1 (m may be 0), and a note: "" or why m is 0.
    """
    source, target = (
        values[np.array([domain == of for domain in domains], bool)] for of in ("source", "target")
    )
    why = config.lacks(len(source), len(target))
    if not len(source) + len(target):
        why = "its training clips have no domains"
    elif not (np.isfinite(source).all() and np.isfinite(target).all()):
        why = "its embeddings are not finite"
    return (values[:0], why) if why else (unit(config.rows(source, target)), "")
