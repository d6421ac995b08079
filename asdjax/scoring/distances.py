"""Cosine distances of all pairs, in float64 on the host.

Scores divide by and subtract distances of 1e-5, which are differences of numbers near 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from asdjax.scoring.folds import SMALLEST

HELD = 2**25  # float32 values at once: 128 MiB
TARGET = 1  # as a domain


class Bank(NamedTuple):
    """What the test clips of one machine, or a part of their embeddings, are compared with."""

    references: np.ndarray  # [R, E] rows of length 1, float64: normal training clips
    domain: np.ndarray  # [R] int32, `TARGET` for the target domain
    synthetic: np.ndarray  # [N, E], further rows of the target domain, which are nobody's neighbors
    queries: np.ndarray  # [Q, E], test clips


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Return rows `[n, E]` of length 1, float64; zeros stay zeros."""
    values = np.array(values, np.float64)
    length = np.sqrt(np.einsum("ij,ij->i", values, values))
    values /= np.maximum(length, SMALLEST)[:, None]
    return values


def distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return 1 - cos `[n, m]` float32 of rows of length 1, to 1e-6 of their value above 1e-9."""
    return np.maximum(1 - rows @ others.T, 0).astype(np.float32)
