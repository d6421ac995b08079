"""Approximate search in large reference sets: candidates by few directions, then their distances.

The rows of a set, of length 1, are kept in their main directions alone: 64 bytes of 32 directions
for 1,024 bytes of 256 values. A search goes through these and takes the true distances of the
nearest candidates. So a score is never too small; it is too large where the nearest reference was
no candidate. How often, `Shortlist.recall` measures on the user's own queries: it is high where
references have main directions, and low in white noise.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring.blocks import PADDING, largest
from asdjax.scoring.chords import distances_of_rows, mean_of_found, normalized
from asdjax.scoring.knn import BLOCK_BYTES, knn_scores
from asdjax.types import InputError

SAMPLE = 2**14  # references that the directions are from
MEASURED = 100  # queries of which `recall` is measured


class Shortlist(NamedTuple):
    """A reference set, and its rows in few directions."""

    references: np.ndarray  # [R, E]
    middle: np.ndarray  # [1, E], mean of the rows of length 1
    axes: np.ndarray  # [E, d], their main directions around it
    rows: np.ndarray  # [R, d] float16

    def scores(self, queries: np.ndarray, k: int = 1, candidates: int = 64) -> np.ndarray:
        """Return the mean cosine distance of queries `[Q, E]` to `k` nearest candidates, `[Q]`.

        Args:
          candidates: references of each query whose distances are computed; more find more.

        Raises:
          ValueError: fewer candidates than neighbors.
        """
        candidates = min(candidates, len(self.rows))
        if not 1 <= k <= candidates:
            raise ValueError(f"expected 1 <= k <= {candidates} candidates, got {k}")
        if not len(queries):
            return np.zeros(0, np.float32)
        near = _project(queries, self.middle, self.axes)
        row = np.asarray(_candidates(near[None], self.rows[None], candidates))[0]
        distance = distances_of_rows(queries, np.arange(len(queries)), self.references, row)
        return mean_of_found(np.sort(distance, 1)[:, :k]).astype(np.float32)

    def recall(self, queries: np.ndarray, k: int = 1, candidates: int = 64) -> float:
        """Return the share of queries whose approximate score is the exact one.

        It is measured on 100 queries at most, spread over those given, by an exact search.

        Raises:
          InputError: no queries. ValueError: as `scores`.
        """
        if not len(queries):
            raise InputError("expected queries to measure the recall of, got none")
        some = queries[:: -(-len(queries) // MEASURED)]
        exact = knn_scores([some], [self.references], k)[0]
        found = self.scores(some, k, candidates)
        return float(np.mean(found <= exact * (1 + 1e-4) + 1e-12))  # both are right to 1e-5


def make_shortlist(references: np.ndarray, width: int = 32) -> Shortlist:
    """Return the rows of a set in their main directions, which are those of a sample of them.

    Args:
      references: `[R, E]` float32, which may be memory-mapped (`knn.open_references`).
      width: d, how many directions.

    Raises:
      InputError: a set without rows, more directions than values.
    """
    count, values = references.shape
    if not count or not 1 <= width <= values:
        raise InputError(f"expected 1 to {values} directions of rows, got {width} of {count} rows")
    some = np.asarray(normalized(references[:: -(-count // SAMPLE)]), np.float64)
    middle = some.mean(0, keepdims=True)
    _, directions = np.linalg.eigh((some - middle).T @ (some - middle))
    axes = directions[:, ::-1][:, :width].astype(np.float32)
    middle = middle.astype(np.float32)
    rows = np.empty((count, width), np.float16)
    block = max(BLOCK_BYTES // (4 * values), 1)
    for start in range(0, count, block):
        part = _project(references[start : start + block], middle, axes)
        rows[start : start + block] = part
    return Shortlist(references, middle, axes, rows)


@jax.jit
def _project(rows, middle, axes):
    return jnp.matmul(normalized(rows) - middle, axes, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="count")
def _candidates(query, rows, count: int):
    """Return the places `[G, Q, count]` of the rows `[G, R, d]` that are nearest to `[G, Q, d]`."""

    def similarity(block):
        def similar(rows):
            rows = rows.astype(jnp.float32)
            product = jnp.einsum("gqe,gre->gqr", block, rows, precision=jax.lax.Precision.HIGHEST)
            return product - 0.5 * jnp.square(rows).sum(-1)[:, None]

        return similar

    nobody = jnp.full(query.shape[:2], PADDING, jnp.int32)
    every = jnp.broadcast_to(jnp.arange(rows.shape[1], dtype=jnp.int32), rows.shape[:2])
    return largest(similarity, query, rows, nobody, every, count, numbered=True)[1]
