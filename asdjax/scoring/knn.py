"""Cosine distance to the nearest normal clips: one blocked kernel for all machines at once.

Memory is bounded by `BLOCK_VALUES` similarities whatever the number of queries and references.
Distances are float32 and exact (full-precision products also where TF32 would be the default).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

BLOCK_VALUES = 2**22  # similarities held at once: 16 MiB, so that a CPU keeps them in its cache
QUERY_BLOCK = 2048
SMALLEST = 1e-24  # squared length below which a row counts as zero
PADDING = -1  # identity of a row that does not exist


def knn_scores(
    queries: Sequence[np.ndarray],
    banks: Sequence[np.ndarray],
    k: int = 1,
    own: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Return the mean cosine distance (1 - cos) of each query to its `k` nearest references.

    Groups (machines) whose banks are of similar size are scored in one call, padded to the largest.

    Args:
      queries: per group `[Q_g, E]`.
      banks: per group `[R_g, E]`, R_g >= 1, normal clips only; fewer than `k` rows: all are
        averaged.
      own: per group `[Q_g]`, the bank row that is the query itself and is left out of its
        neighbors, or -1; None leaves nothing out.

    Returns:
      Per group `[Q_g]` float32 in [0, 2], larger = more anomalous; inf where `own` leaves none.
    """
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    buckets: dict[int, list[int]] = defaultdict(list)
    for group, bank in enumerate(banks):
        if len(queries[group]):
            buckets[len(bank).bit_length()].append(group)
    scores = [np.zeros(len(query), np.float32) for query in queries]
    for groups in buckets.values():
        query, bank = stack([queries[g] for g in groups]), stack([banks[g] for g in groups])
        bank_id = stack([np.arange(len(banks[g]), dtype=np.int32) for g in groups], PADDING)
        query_id = np.full(query.shape[:2], PADDING, np.int32)
        if own is not None:
            query_id = stack([own[g].astype(np.int32) for g in groups], PADDING)
        distance = np.asarray(knn_distance(query, bank, query_id, bank_id, k))
        for group, row in zip(groups, distance, strict=True):
            scores[group] = row[: len(queries[group])]
    return scores


@partial(jax.jit, static_argnames="k")
def knn_distance(query, bank, query_id, bank_id, k: int = 1):
    """Return mean cosine distances `[G, Q]` to the `k` nearest rows of each group's bank.

    Args:
      query, bank: `[G, Q, E]` and `[G, R, E]`; normalized here, a zero row has distance 1 to all.
      query_id, bank_id: `[G, Q]` and `[G, R]` int32; a query does not see the bank row of equal
        identity, and nobody sees bank rows of identity `PADDING`.
    """
    groups, count, _ = query.shape
    references = bank.shape[1]
    rows = min(count, QUERY_BLOCK)
    columns = min(references, max(BLOCK_VALUES // (groups * rows), 1))

    def nearest(start):
        query_block = _unit(_cut(query, start, rows))
        own = _cut(query_id, start, rows)

        def closer(best, begin):
            # The last block is moved back to full size; what earlier blocks had is hidden.
            first = jnp.minimum(begin, references - columns)
            identity = _cut(bank_id, first, columns)
            old = (first + jnp.arange(columns) < begin)[None]
            hidden = (own[:, :, None] == identity[:, None]) | (old | (identity == PADDING))[:, None]
            near = cosine(query_block, _cut(bank, first, columns))
            found = _largest(jnp.where(hidden, -jnp.inf, near), k)
            return _largest(jnp.concatenate([best, found], -1), k), None

        best = jnp.full((groups, rows, k), -jnp.inf)
        return jax.lax.scan(closer, best, jnp.arange(0, references, columns))[0]

    starts = jnp.minimum(jnp.arange(0, count, rows), count - rows)
    blocks = jax.lax.map(nearest, starts)  # [n, G, rows, k]
    best = jnp.concatenate([*blocks[:-1], blocks[-1][:, -((count - 1) % rows + 1) :]], 1)
    found = jnp.isfinite(best)
    total = jnp.where(found, jnp.maximum(1.0 - best, 0.0), 0.0).sum(-1)
    return jnp.where(found.any(-1), total / jnp.maximum(found.sum(-1), 1), jnp.inf)


def cosine(query, bank):
    """Return `[G, Q, R]` from unit queries and any bank; scaling products spares a copy of it."""
    length = jax.lax.rsqrt(jnp.maximum(jnp.square(bank).sum(-1), SMALLEST))
    product = jnp.einsum("gqe,gre->gqr", query, bank, precision=jax.lax.Precision.HIGHEST)
    return product * length[:, None]


def _cut(x, start, size: int):
    """Return `[G, size, ...]` from `[G, R, ...]`."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, 1)


def _largest(values, k: int):
    """Return the k largest of the last axis (all, where there are fewer)."""
    if k == 1:
        return values.max(-1, keepdims=True)  # a plain reduction is far cheaper than a partial sort
    return jax.lax.top_k(values, min(k, values.shape[-1]))[0]


def _unit(x):
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), SMALLEST))


def stack(arrays: Sequence[np.ndarray], fill=0) -> np.ndarray:
    """Pad arrays `[n_g, ...]` to one `[G, n, ...]`."""
    if len(arrays) == 1:
        return arrays[0][None]  # no copy of a large bank
    longest = max(len(array) for array in arrays)
    stacked = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in enumerate(arrays):
        stacked[row, : len(array)] = array
    return stacked
