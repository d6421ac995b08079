"""Cosine distances of nearly parallel rows, in full precision.

The embeddings of a steady machine are nearly parallel: their cosine distances are 1e-5 to 1e-3, and
`1 - cos` in float32 has steps of 6e-8. Half the squared chord of unit rows, |u - v|^2 / 2, equals
1 - cos and keeps its digits when it is computed from the difference.

1. A search on the device finds candidates. Rows are moved by a point in their midst, so that their
   products round what is between them, not 1.
2. The distances of the candidates are computed from differences in float64.
3. Another reference may be nearer only where the last candidate is no farther than the nearest by
   more than the search can err. There (many copies of a clip) all references are compared.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring.blocks import PADDING, largest

SMALLEST = 1e-24  # squared length below which a row counts as zero
SPARE = 7  # candidates besides the k nearest
MIDST = 1024  # references whose mean is the point in their midst
EPSILON = 2.0**-22  # relative error of a product or sum: float32, or its parts on a TPU
HELD = 2**22  # float64 values of candidates at once: 32 MiB


def chord_distances(query, reference, query_id, reference_id, k: int, wanted) -> np.ndarray:
    """Return the cosine distances to the `k` nearest references, to 1e-6 of their value.

    Args:
      query, reference, query_id, reference_id, k: numpy arrays, as `knn_distance` takes them.
      wanted: `[G, Q]` bool, the queries.

    Returns:
      `[wanted.sum(), k]` float64, rising; inf where there are fewer references.
    """
    count = min(k + SPARE, reference.shape[1])
    candidates = find(query, reference, query_id, reference_id, count)
    row, farthest, away, spread = map(np.asarray, candidates)
    found = [np.zeros((0, k))]
    for g in np.flatnonzero(wanted.any(1)):
        there = reference_id[g] != PADDING
        own = np.flatnonzero(wanted[g])
        distance = distances_of_rows(query[g], own, reference[g], row[g, own])
        nearest = np.sort(distance, 1)[:, :k]
        most = np.where(np.isfinite(nearest), nearest, 0).max(1)
        error = search_error(farthest[g, own], away[g, own], spread[g], most, query.shape[-1])
        open_ = (most > 0) & (most > farthest[g, own] - error)
        for i in np.flatnonzero(open_):
            others = np.flatnonzero(there & (reference_id[g] != query_id[g, own[i]]))
            every = distances_of_rows(query[g], own[i : i + 1], reference[g], others[None])
            nearest[i] = np.sort(every[0])[:k]
        found.append(np.full((len(own), k), np.inf))
        found[-1][:, : nearest.shape[1]] = nearest
    return np.concatenate(found)


def mean_of_found(distance: np.ndarray) -> np.ndarray:
    """Return the mean of the finite values of each row `[n, k]`; inf where there is none."""
    finite = np.isfinite(distance)
    with np.errstate(invalid="ignore"):
        mean = np.where(finite, distance, 0).sum(1) / finite.sum(1)
    return np.where(finite.any(1), mean, np.inf)


@partial(jax.jit, static_argnames="count")
def find(query, reference, query_id, reference_id, count: int):
    """Return candidates for the nearest references of each query.

    Args:
      query, reference, query_id, reference_id: as of `asdjax.scoring.blocks.largest`.
      count: candidates.

    Returns:
      `[G, Q, count]` int32, their places, `PADDING` for none; `[G, Q]`, the cosine distance of the
      last (inf: there are no others); `[G, Q]`, squared distances of queries from the midst; `[G]`,
      that of the reference that is farthest from it.
    """
    exists = (reference_id != PADDING)[:, :MIDST, None]
    some = jnp.where(exists, normalized(reference[:, :MIDST]), 0)
    midst = some.sum(1, keepdims=True) / jnp.maximum(exists.sum(1, keepdims=True), 1)

    def moved(rows):
        rows = normalized(rows) - midst
        return rows, jnp.square(rows).sum(-1)

    def similarity(block):
        block, size = moved(block)

        def similar(others):
            others, own_size = moved(others)
            product = jnp.einsum("gqe,gre->gqr", block, others, precision=jax.lax.Precision.HIGHEST)
            return product - 0.5 * (size[:, :, None] + own_size[:, None])

        return similar

    best, row = largest(similarity, query, reference, query_id, reference_id, count, numbered=True)
    farthest = -best[..., -1]
    spread = jnp.max(moved(reference)[1], 1, where=reference_id != PADDING, initial=0)
    return row, farthest, moved(query)[1], spread


def search_error(farthest, away, spread, most, width: int) -> np.ndarray:
    """Return by how much a reference that is no candidate can be nearer than the last candidate.

    A unit row is rounded by at most 2^-22 of its length 1, so a chord by twice that; the sum of E
    products of rows that lie S and X from the midst, and their squares, by (E + 4) EPSILON
    (S^2 + X^2). A reference as near as `most` lies no farther than X + sqrt(2 most) from the midst,
    so that others, however far they are, do not count.

    Args:
      farthest, away, spread: of `find`, of queries `[n]` and of their group.
      most: `[n]`, the distance of the k-th nearest candidate.
      width: E.
    """
    near = np.square(np.sqrt(away) + np.sqrt(2 * most))
    by_sums = (width + 4) * EPSILON * (np.minimum(spread, near) + away)
    return by_sums + 2 * EPSILON * np.sqrt(2 * np.clip(farthest, 0, 2))


def normalized(rows):
    """Return rows `[..., E]` of length 1, float32; zeros stay zeros."""
    length = jnp.square(rows).sum(-1, keepdims=True)
    return rows * jax.lax.rsqrt(jnp.maximum(length, SMALLEST))


def distances_of_rows(query, own, reference, row) -> np.ndarray:
    """Return the distances `[n, c]` of the queries `own` to the references `row [n, c]`."""
    distance = np.full(row.shape, np.inf)
    step = max(HELD // (row.shape[1] * query.shape[1]), 1)
    for start in range(0, len(own), step):
        part = slice(start, start + step)
        ours, our_size = _exact_unit(query[own[part]][:, None])
        theirs, their_size = _exact_unit(reference[row[part]])
        chord = np.square(ours - theirs).sum(-1) / 2
        zero = (our_size < SMALLEST) | (their_size < SMALLEST)
        distance[part] = np.where(row[part] == PADDING, np.inf, np.where(zero, 1.0, chord))
    return distance


def _exact_unit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows `[n, c, E]` of length 1, float64, and their squared lengths `[n, c]`."""
    rows = rows.astype(np.float64)
    size = np.einsum("nce,nce->nc", rows, rows)
    rows /= np.sqrt(np.maximum(size, SMALLEST))[..., None]
    return rows, size
