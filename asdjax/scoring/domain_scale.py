"""Distances relative to what is usual among the clips of each domain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asdjax.scoring.density import COPY
from asdjax.scoring.distances import HELD, TARGET, Bank, distances


@dataclass(frozen=True)
class DomainScale:
    """The distance to the nearest clip of each domain, over the median within that domain.

    The score is min_D d_D / u_D with d_D the distance to the nearest training clip of domain D, and
    u_D the median over these clips of the distance to the nearest other one. Copies do not count;
    a clip that is alone in its domain takes the nearest of all.

    Source: SCOPE (DCASE 2026 Challenge Task 2).
    """


def fit(bank: Bank, apart: np.ndarray | None) -> tuple[dict[int, float], np.ndarray]:
    """Return u of each domain, and the scores of references in banks without them, `[R]`.

    These are float32; inf where no other clip is left.

    Args:
      apart: `[R or more, R or more]`, the distances of references, inf to themselves; None: they
        are too many to be held.
    """
    count = len(bank.domain)
    domains = np.unique(bank.domain)
    blocks = np.array_split(np.arange(count), -(-(count**2) // HELD))
    parts = [_nearest(bank, clips, domains, apart) for clips in blocks]
    to_domain, first, instead, identity = map(np.concatenate, zip(*parts, strict=True))
    of = [np.flatnonzero(bank.domain == one) for one in domains]
    left_out = []
    for clips in blocks:
        nearest = np.where(identity == clips[:, None], instead, first)  # without each clip
        nearest[np.arange(len(clips)), clips] = np.inf
        usual = np.stack([_median(nearest[:, rows]) for rows in of], 1)
        left_out.append((to_domain[clips] / usual).min(1))
    usual = [_median(first[None, rows])[0] for rows in of]
    return dict(zip(domains.tolist(), usual, strict=True)), np.concatenate(left_out)


def scores(domain: np.ndarray, usual: dict[int, float], away: np.ndarray) -> np.ndarray:
    """Return the scores of test clips, `[Q]` float32.

    Args:
      domain: `[R]`, of the references, other numbers where none is.
      usual: u of each domain.
      away: `[R + N, Q]`, distances from references and from synthetic rows of the target domain.
    """
    domain = np.pad(domain, (0, len(away) - len(domain)), constant_values=TARGET)
    return np.min([away[domain == one].min(0) / u for one, u in usual.items()], 0)


def _nearest(bank: Bank, clips, domains, apart) -> tuple[np.ndarray, ...]:
    """Return of references: `[b, D]` distances to the nearest other one of each domain; `[b]`, that
    to the nearest in the own domain, and without this one; and which it is."""
    if apart is None:
        distance = distances(bank.references[clips], bank.references)
        distance[np.arange(len(clips)), clips] = np.inf
    else:
        distance = apart[clips, : len(bank.domain)]
    to_domain = [distance[:, bank.domain == one].min(1) for one in domains]
    every = np.where(distance <= COPY, np.inf, distance)
    own = np.where(bank.domain[clips, None] == bank.domain, every, np.inf)
    own = np.where(np.isinf(own.min(1, keepdims=True)), every, own)
    row, identity = np.arange(len(clips)), own.argmin(1)
    first = own[row, identity]
    for one in (own, every):
        one[row, identity] = np.inf
    instead = own.min(1)
    instead = np.where(np.isinf(instead), every.min(1), instead)
    return np.stack(to_domain, 1), first, instead, identity


def _median(values: np.ndarray) -> np.ndarray:
    """Return the medians of the finite values of rows; 1 where there is none."""
    count, last = np.isfinite(values).sum(1), values.shape[1] - 1
    places = [np.clip(at, 0, last) for at in ((count - 1) // 2, count // 2)]
    values = np.partition(values, np.unique(places), 1)
    middle = [values[np.arange(len(values)), at] for at in places]
    return np.where(count > 0, np.where(count > 0, sum(middle), 2) / 2, 1)
