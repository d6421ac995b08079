"""The most similar references of each query, for all machines at once in blocks.

Memory is bounded by `BLOCK_VALUES` similarities whatever the number of queries and references.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

BLOCK_VALUES = 2**22  # similarities held at once: 16 MiB, so that a CPU keeps them in its cache
QUERY_BLOCK = 2048
PADDING = -1  # identity of a row that does not exist, place of a reference that was not found

# queries [G, q, E] -> a function of references [G, r, E] -> similarities [G, q, r]
Similarity = Callable[[jax.Array], Callable[[jax.Array], jax.Array]]


def largest(
    similarity: Similarity, query, reference, query_id, reference_id, k: int, numbered: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Return the `k` largest similarities of each query, and whose they are.

    Args:
      query, reference: `[G, Q, E]` and `[G, R, E]`.
      query_id, reference_id: `[G, Q]` and `[G, R]` int32; the reference of a query's own identity
        is not found, nor are references of identity `PADDING`.
      numbered: whether to tell whose; without it one block is one reduction where k = 1.

    Returns:
      `[G, Q, k]`, falling, -inf where there are fewer; `[G, Q, k]` int32 places of these references
      or `PADDING`, None unless `numbered`.
    """
    groups, count, _ = query.shape
    references = reference.shape[1]
    rows = min(count, QUERY_BLOCK)
    columns = min(references, max(BLOCK_VALUES // (groups * rows), 1))

    def of_queries(start):
        similar = similarity(_cut(query, start, rows))
        own = _cut(query_id, start, rows)

        def better(best, begin):
            # The last block is moved back to full size; what earlier blocks had is hidden.
            first = jnp.minimum(begin, references - columns)
            identity = _cut(reference_id, first, columns)
            old = (first + jnp.arange(columns) < begin)[None]
            hidden = (own[:, :, None] == identity[:, None]) | (old | (identity == PADDING))[:, None]
            values = jnp.where(hidden, -jnp.inf, similar(_cut(reference, first, columns)))
            found, place = _top(values, k, numbered)
            both = jnp.concatenate([best[0], found], -1)
            if not numbered:
                return _top(both, k, numbered), None
            whose = jnp.concatenate([best[1], first + place], -1)
            best, place = _top(both, k, numbered)
            return (best, jnp.take_along_axis(whose, place, -1)), None

        none = jnp.full((groups, rows, k), -jnp.inf)
        nobody = jnp.full((groups, rows, k), PADDING) if numbered else None
        return jax.lax.scan(better, (none, nobody), jnp.arange(0, references, columns))[0]

    starts = jnp.minimum(jnp.arange(0, count, rows), count - rows)
    blocks = jax.lax.map(of_queries, starts)  # [n, G, rows, k]
    last = -((count - 1) % rows + 1)
    return jax.tree.map(lambda x: jnp.concatenate([*x[:-1], x[-1][:, last:]], 1), blocks)


def _cut(x, start, size: int):
    """Return `[G, size, ...]` from `[G, R, ...]`."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, 1)


def _top(values, k: int, numbered: bool):
    """Return the k largest of the last axis (all, where there are fewer), and their places."""
    if k == 1 and not numbered:
        return values.max(-1, keepdims=True), None  # far cheaper than a partial sort
    found, place = jax.lax.top_k(values, min(k, values.shape[-1]))
    return found, place if numbered else None
