"""Distance to the centers of the source domain and to every target clip."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from asdjax.scoring.folds import (
    SMALLEST,
    Fitted,
    Machines,
    Note,
    ReferenceSet,
    fit_sets,
    name,
    smallest,
    unit_rows,
)
from asdjax.scoring.kmeans import kmeans
from asdjax.scoring.knn import nearest
from asdjax.types import check


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
        check(
            self,
            ("count", ">= 1", self.count >= 1),
            ("starts", ">= 1", self.starts >= 1),
            ("seed", "in [0, 2**32)", 0 <= self.seed < 2**32),
        )

    def fit(self, train: Machines, note: Note) -> Fitted:
        """Fit as `asdjax.scoring.folds.Fitted` says.

        The score of a source clip of the training is by centers without its fold, that of a target
        clip is by the centers and the other target clips.
        """
        train = unit_rows(train)
        sources, targets = [], []
        for g, machine in enumerate(train):
            target = np.array([clip.domain == "target" for clip in machine.clips], bool)
            sources += [ReferenceSet(g, np.flatnonzero(~target))] if not target.all() else []
            targets += [ReferenceSet(g, np.flatnonzero(target))] if target.any() else []
        few = [(name(train[g]), len(rows)) for g, rows in sources if len(rows) <= self.count]
        if few:
            clips = ", ".join(f"{machine} ({count} clips)" for machine, count in few)
            note(f"every source clip is one of the {self.count} centers of {clips}")
        parts = []
        if sources:
            longest = max(len(machine.values) for machine in train)
            width = train[0].values.shape[1]
            held = self.starts * (longest + self.count) * (self.count + width)
            parts.append(fit_sets(train, sources, held, find_centers, distance, self)[0])
        parts.append(nearest(train, targets))
        sets = sources + targets

        def score(test: Machines) -> list[np.ndarray]:
            test = unit_rows(test)
            return smallest([one for scored, _ in parts for one in scored(test)], sets)

        def left_out() -> list[np.ndarray]:
            return smallest([one for _, scored in parts for one in scored()], sets)

        return score, left_out


def find_centers(values, weight, config: Centers):
    """Return centers `[K, E]` of rows `[n, E]` of weight 1, and their inertia."""
    centers, _, inertia = kmeans(values, weight, config.seed, config.count, config.starts)
    return centers, inertia


def distance(centers, query, config: Centers):
    """Return the cosine distances `[q]` of queries `[q, E]` to the nearest of centers `[K, E]`."""
    length = jnp.sqrt(jnp.square(centers).sum(1))
    unit = centers / jnp.maximum(length, SMALLEST)[:, None]
    # Half the squared chord of unit rows is 1 - cos, but keeps the digits of small distances.
    chord = jnp.square(query[:, None] - unit[None]).sum(-1) / 2
    zero = (query == 0).all(1)[:, None] | (length < SMALLEST)[None]
    return jnp.where(zero, 1.0, chord).min(1)
