"""Distance to the centers of the source domain and to every target clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from asdjax.scoring import neighbors
from asdjax.scoring.banks import Bank, name, smallest, split_target, unit_rows
from asdjax.scoring.folds import fitted_scores
from asdjax.scoring.kmeans import kmeans
from asdjax.scoring.knn import cosine
from asdjax.types import Embeddings, InputError


@dataclass(frozen=True)
class Centers:
    """Smallest cosine distance to k-means centers of the source clips and to every target clip.

    Few target clips need no centers; many source clips would otherwise hide them by being nearer to
    everything. Clips without a domain count as source clips, so that a machine without domains, or
    without target clips, is scored by its centers alone.

    Args:
      count: centers; a machine with fewer source clips has each as a center.
      starts: of k-means, of which the best is kept.
      seed: of the starts.

    Source: Wilkinghoff, "Design choices for learning embeddings from auxiliary tasks for domain
      generalization in anomalous sound detection", ICASSP 2023 (16 centers). The code of that paper
      gives k-means the target clips too, which the text does not, and takes products with centers
      that are shorter than 1; here they are cosines.
    """

    count: int = 16
    starts: int = 10
    seed: int = 0

    def __post_init__(self):
        if min(self.count, self.starts) < 1:
            raise InputError(
                f"expected 1 or more centers and starts, got {self.count} and {self.starts}"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"expected a seed of 0 to 2**32 - 1, got {self.seed}")


def score(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    config: Centers,
    note: Callable[[str], object],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score as `asdjax.scoring.score.score` says.

    The score of a source clip of the training is by centers without its fold, that of a target clip
    is by the centers and the other target clips.
    """
    train, test = unit_rows(train), unit_rows(test)
    sources, targets = split_target(train)
    _note_few(train, sources, config, note)
    found, left = [], []
    if sources:
        longest = max(len(machine.values) for machine in train)
        held = config.starts * (longest + config.count) * (config.count + train[0].values.shape[1])
        found, left, _ = fitted_scores(train, test, sources, held, distance, config)
    near, near_left = neighbors.search(train, test, targets)
    return smallest(found + near, sources + targets), smallest(left + near_left, sources + targets)


def distance(values, weight, query, config: Centers):
    """Return the cosine distances `[q]` to the centers of rows `[n, E]`, and their inertia."""
    centers, _, inertia = kmeans(values, weight, config.seed, config.count, config.starts)
    return jnp.maximum(1 - cosine(query[None], centers[None])[0].max(1), 0.0), inertia


def _note_few(
    train: Sequence[Embeddings],
    sources: Sequence[Bank],
    config: Centers,
    note: Callable[[str], object],
) -> None:
    few = [(train[g], len(rows)) for g, rows in sources if len(rows) <= config.count]
    if few:
        clips = ", ".join(f"{name(machine)} ({count} clips)" for machine, count in few)
        note(f"every source clip is one of the {config.count} centers of {clips}")
