"""Pseudo labels: the training clips of a machine without attributes, clustered by embedding.

Clips near each other by cosine probably have the same unknown operating condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from asdjax.scoring.folds import unit
from asdjax.types import InputError, check

K_MEANS_STARTS = 10  # the best of as many random starts (k-means++) is kept
ALIKE = 1e-5  # height of merges of rows that differ by rounding alone: 1e-7 times sqrt(clips)


@dataclass(frozen=True)
class Pseudo:
    """How many clusters the clips of a machine without attributes are put into, and how.

    A machine not listed gets the number of largest mean silhouette. A threshold on distances would
    have to be found anew for every training, since each has a scale of distances of its own; the
    silhouette compares distances with each other and has none.

    Args:
      method: "agglomerative" is Ward linkage, without any chance; "kmeans" keeps the best of 10
        random starts.
      counts: (machine type, number of clusters), each machine once; 1 leaves it one class.
      by_domain: clusters of the source and of the target clips of machines not listed, each domain
        by itself; None: of all clips together.
      most: clusters tried for machines not listed: 2 to so many.
      seed: of k-means.

    Raises:
      InputError: a number out of range, or a machine listed twice.
    """

    method: Literal["agglomerative", "kmeans"] = "agglomerative"
    counts: tuple[tuple[str, int], ...] = ()
    by_domain: tuple[int, int] | None = None
    most: int = 30
    seed: int = 0

    def __post_init__(self):
        once = len(dict(self.counts)) == len(self.counts)
        check(
            self,
            ("counts", "each machine once", once),
            ("counts", "1 cluster or more of a machine", all(n >= 1 for _, n in self.counts)),
            ("by_domain", "two numbers >= 1 or none", min(self.by_domain or (1, 1)) >= 1),
            ("most", ">= 2", self.most >= 2),
            ("seed", "in [0, 2**32)", 0 <= self.seed < 2**32),
        )


class Clusters(NamedTuple):
    """The clusters of one machine's clips."""

    labels: np.ndarray  # [n] int, 0 is the largest cluster; of equal ones that with the first clip
    count: int
    silhouettes: dict[int, float]  # of every number of clusters tried, -1 to 1; none of 1 cluster

    @property
    def silhouette(self) -> float:
        """Of these clusters; nan for one cluster, which has none."""
        return self.silhouettes.get(self.count, np.nan)


def cluster(values: np.ndarray, count: int | None, config: Pseudo) -> Clusters:
    """Cluster the clips of one machine by the directions of their embeddings.

    Args:
      values: `[n, E]`, n >= 1; a row of zeros has no direction and is far from all others.
      count: number of clusters; None takes the number with the largest mean silhouette, and 1
        where there is nothing to choose from: fewer than 2 different rows, or 2 clips.
      config: the method and, for `count` None, the largest number tried.

    Raises:
      InputError: embeddings that are not finite, or fewer different ones than clusters.

    Source: agglomerative clustering as in AITHU, DCASE 2024 Task 2, section 2.4, which does not
      state the linkage and takes the number by eye from a UMAP picture; Ward 1963; Rousseeuw 1987.
    """
    if strange := (~np.isfinite(values).all(1)).sum():
        raise InputError(f"expected finite embeddings, got {strange} of {len(values)} that are not")
    from scipy.cluster.hierarchy import cut_tree, linkage
    from sklearn.cluster import KMeans

    rows = unit(values.astype(np.float64))
    tree = linkage(rows, "ward") if len(rows) > 1 else np.zeros((0, 4))
    different = 1 + int((tree[:, 2] > ALIKE).sum())
    if count is not None and count > different:
        raise InputError(
            f"expected at most {different} clusters, as many as {len(rows)} clips have different "
            f"embeddings, got {count}; give a smaller number"
        )
    most = min(config.most, different, len(rows) - 1)
    tried = [k for k in (range(2, most + 1) if count is None else [count]) if k > 1]
    if config.method == "kmeans":
        fits = [KMeans(k, n_init=K_MEANS_STARTS, random_state=config.seed) for k in tried]
        partitions = {k: fit.fit(rows).labels_ for k, fit in zip(tried, fits, strict=True)}
    else:
        partitions = dict(zip(tried, cut_tree(tree, tried).T, strict=True)) if tried else {}
    silhouettes = {k: silhouette(rows, labels) for k, labels in partitions.items()}
    best = max(silhouettes, key=silhouettes.get, default=1)
    labels = by_size(partitions.get(best, np.zeros(len(rows), int)))
    return Clusters(labels, best, silhouettes)


def cluster_domains(values: np.ndarray, domains: Sequence[str | None], config: Pseudo) -> Clusters:
    """Cluster source and target clips of one machine, each by themselves, as `config.by_domain`.

    Args:
      values: `[n, E]`.
      domains: of each clip; one without a domain is with the source.

    Raises:
      InputError: as `cluster`.
    """
    target = np.array([domain == "target" for domain in domains])
    labels, count = np.zeros(len(values), int), 0
    for rows, number in zip((~target, target), config.by_domain, strict=True):
        if rows.any():
            labels[rows] = count + cluster(values[rows], number, config).labels
            count += number
    return Clusters(by_size(labels), count, {})


def silhouette(rows: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette of clusters under the cosine distance: 1 = apart, below 0 = mixed.

    Of a clip with the mean distance a to the others of its cluster and the smallest mean distance
    b to another cluster it is (b - a) / max(a, b), and 0 for a cluster of one clip. The mean
    distance to a cluster of unit rows is 1 minus the product with their mean, so no table of
    distances between clips is needed.

    Args:
      rows: `[n, E]` float64 of length 1 or 0.
      labels: `[n]`, two or more different ones.

    Source: Rousseeuw 1987, "Silhouettes", equations 1 to 4.
    """
    _, cluster, size = np.unique(labels, return_inverse=True, return_counts=True)
    member = cluster[:, None] == np.arange(len(size))  # [n, C]
    total = size - rows @ (member.T.astype(float) @ rows).T  # [n, C] sums of distances
    own = size[cluster]
    # A row of zeros is at distance 0 from itself, though its product with itself is 0.
    inside = (total[member] - (1 - np.square(rows).sum(1))) / np.maximum(own - 1, 1)
    outside = np.where(member, np.inf, total / size).min(1)
    larger = np.maximum(np.maximum(inside, outside), 1e-12)  # all rows alike: 0, not rounding
    return float(np.where(own > 1, (outside - inside) / larger, 0).mean())


def by_size(labels: np.ndarray) -> np.ndarray:
    """Return labels `[n]` as 0, 1, ... from the largest cluster down, ties by their first clip."""
    _, first, cluster, size = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    return np.argsort(np.lexsort((first, -size)))[cluster]
