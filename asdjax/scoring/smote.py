"""SMOTE: synthetic embeddings of the target domain, which has far fewer clips than the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asdjax.scoring.folds import unit
from asdjax.types import check


@dataclass(frozen=True)
class Smote:
    """Synthetic target embeddings between real ones.

    Args:
      ratio: target clips, real and synthetic, per source clip.
      neighbors: how many nearest target clips of a target clip a synthetic one may lie towards.
      seed: of the random choice.
    """

    ratio: float = 0.2
    neighbors: int = 2
    seed: int = 0

    def __post_init__(self):
        check(
            self,
            ("ratio", "in (0, 1]", 0 < self.ratio <= 1),
            ("neighbors", ">= 1", self.neighbors >= 1),
            ("seed", "in [0, 2**32)", 0 <= self.seed < 2**32),
        )


def oversample(
    values: np.ndarray, domains: Sequence[str | None], config: Smote
) -> tuple[np.ndarray, str]:
    """Return synthetic target clips of one machine, and why there are none.

    A synthetic row is t + u (t' - t), u uniform in [0, 1), t' one of the nearest neighbors of the
    target row t, then normalized. Source rows only say how many are wanted.

    Args:
      values: `[n, E]` float32, rows of length 1: the nearest rows are then those of largest cosine.
      domains: "source", "target" or None of each row.
      config: how many, and from what.

    Returns:
      `[m, E]` float32, rows of length 1 (m may be 0), and a note: "" or why m is 0.

    Source: Chawla et al. 2002, "SMOTE", section 4.2, as imbalanced-learn computes it.
    """
    known = np.array([domain in ("source", "target") for domain in domains], bool)
    target = np.array([domain == "target" for domain in domains], bool)[known]
    values = values[known]
    count, sources = int(target.sum()), int((~target).sum())
    wanted = int(config.ratio * sources - count)
    why = ""
    if not len(target):
        why = "its training clips have no domains"
    elif not np.isfinite(values).all():
        why = "its embeddings are not finite"
    elif count <= config.neighbors:
        least = config.neighbors + 1
        why = f"{count} target clips; {config.neighbors} neighbors need at least {least}"
    elif wanted < 1:
        why = f"{count} target and {sources} source clips: ratio {config.ratio:g} is reached"
    if why:
        return values[:0], why
    from imblearn.over_sampling import SMOTE

    smote = SMOTE(
        sampling_strategy={True: count + wanted},
        k_neighbors=config.neighbors,
        random_state=config.seed,
    )
    return unit(smote.fit_resample(values, target)[0][len(values) :]), ""
