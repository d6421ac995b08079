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

BLOCK_VALUES = 2**25  # similarities held at once: 128 MiB
QUERY_BLOCK = 2048
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
      banks: per group `[R_g, E]`, normal clips only; fewer than `k` rows: all are averaged.
      own: per group `[Q_g]`, the bank row that is the query itself and is left out of its
        neighbors, or -1; None leaves nothing out.

    Returns:
      Per group `[Q_g]` float32 in [0, 2], larger = more anomalous; inf where no reference is left.
    """
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    buckets: dict[int, list[int]] = defaultdict(list)
    for group, bank in enumerate(banks):
        if len(queries[group]):
            buckets[len(bank).bit_length()].append(group)
    scores = [np.zeros(len(query), np.float32) for query in queries]
    for groups in buckets.values():
        query, bank = _stack([queries[g] for g in groups]), _stack([banks[g] for g in groups])
        bank_id = _stack([np.arange(len(banks[g]), dtype=np.int32) for g in groups], PADDING)
        query_id = np.full(query.shape[:2], PADDING, np.int32)
        if own is not None:
            query_id = _stack([own[g].astype(np.int32) for g in groups], PADDING)
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
    rows = min(count, QUERY_BLOCK)
    columns = max(min(bank.shape[1], BLOCK_VALUES // (groups * rows)), 1)
    references = _blocks(_unit(bank), columns, 0), _blocks(bank_id, columns, PADDING)

    def nearest(block):
        query, query_id = block

        def closer(best, reference):
            bank, bank_id = reference
            cosine = jnp.einsum("gqe,gre->gqr", query, bank, precision=jax.lax.Precision.HIGHEST)
            same = query_id[:, :, None] == bank_id[:, None, :]
            hidden = same | (bank_id == PADDING)[:, None, :]
            found = _largest(jnp.where(hidden, -jnp.inf, cosine), k)
            return _largest(jnp.concatenate([best, found], -1), k), None

        best = jnp.full((*query_id.shape, k), -jnp.inf)
        return jax.lax.scan(closer, best, references)[0]

    best = jax.lax.map(nearest, (_blocks(_unit(query), rows, 0), _blocks(query_id, rows, PADDING)))
    best = jnp.moveaxis(best, 0, 1).reshape(groups, -1, k)[:, :count]
    found = jnp.isfinite(best)
    total = jnp.where(found, 1.0 - best, 0.0).sum(-1)
    return jnp.where(found.any(-1), total / jnp.maximum(found.sum(-1), 1), jnp.inf)


def _largest(values, k: int):
    """Return the k largest of the last axis (all, where there are fewer)."""
    if k == 1:
        return values.max(-1, keepdims=True)  # a plain reduction is far cheaper than a partial sort
    return jax.lax.top_k(values, min(k, values.shape[-1]))[0]


def _unit(x):
    x = jnp.asarray(x, jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def _blocks(x, size: int, fill):
    """Cut `[G, R, ...]` into `[n, G, size, ...]`, the last block filled up."""
    missing = -x.shape[1] % size
    x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _stack(arrays: Sequence[np.ndarray], fill=0) -> np.ndarray:
    """Pad arrays `[n_g, ...]` to one `[G, n, ...]`."""
    longest = max(len(array) for array in arrays)
    stacked = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in enumerate(arrays):
        stacked[row, : len(array)] = array
    return stacked
