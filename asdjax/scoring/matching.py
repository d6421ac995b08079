"""Scores by the nearest reference at normalized distances, of all machines and parts at once.

What is made of the distances is computed on the device, for many settings in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring import density, domain_scale
from asdjax.scoring.blocks import PADDING
from asdjax.scoring.density import Density, Factor, Kind, Lists, Setting, neighbors
from asdjax.scoring.distances import HELD, TARGET, Bank, distances
from asdjax.scoring.domain_scale import DomainScale

TOGETHER = 4  # banks
ROWS = 64  # numbers of clips are rounded up to a multiple: fewer programs


def scores(
    banks: Sequence[Bank], asked: Sequence[tuple[Density | DomainScale | None, bool]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the scores of clips by several settings.

    Args:
      banks: with one reference or more.
      asked: of each its normalization, None for plain distances, and whether neighbors are of the
        same domain, as they are of `DomainScale`.

    Returns:
      For each bank `[S, Q]` float32, scores of its test clips, and `[S, R]`, those of its
      references in banks without them; inf where no other clip is left.
    """
    tests = [np.zeros((len(asked), len(bank.queries)), np.float32) for bank in banks]
    left_out = [np.zeros((len(asked), len(bank.references)), np.float32) for bank in banks]
    rows: dict[Kind | None, list[int]] = {}  # None: the scale of domains
    for i, (one, _) in enumerate(asked):
        rows.setdefault(None if isinstance(one, DomainScale) else density.kind(one), []).append(i)
    most = max(len(bank.references) for bank in banks)
    settings = {
        kind: None if kind is None else density.settings([asked[i] for i in own], most)
        for kind, own in rows.items()
    }
    for some in _chunks(banks, max(map(_length, settings.values()))):
        found = _scores([banks[g] for g in some], settings)
        for kind, of_tests, of_references in found:
            for g, of_test, of_bank in zip(some, of_tests, of_references, strict=True):
                tests[g][rows[kind]] = of_test[:, : tests[g].shape[1]]
                left_out[g][rows[kind]] = of_bank[:, : left_out[g].shape[1]]
    return tests, left_out


def _chunks(banks: Sequence[Bank], length: int) -> list[list[int]]:
    """Return which banks of equal rounded size are computed together.

    As many as may be held, at most 4. All chunks of a size are of as many banks, of which some may
    be there twice: more programs would take longer to compile.
    """
    sizes: dict[tuple[int, ...], list[int]] = {}
    for g, bank in enumerate(banks):
        clips = bank.references, bank.synthetic, bank.queries
        sizes.setdefault(tuple(_rounded(len(rows)) for rows in clips), []).append(g)
    chunks = []
    for (references, synthetic, queries), groups in sizes.items():
        held = references * max(references, synthetic, queries, length**2)
        count = min(max(HELD // held, 1), TOGETHER, len(groups))
        groups += groups[-1:] * (-len(groups) % count)
        chunks += [groups[start : start + count] for start in range(0, len(groups), count)]
    return chunks


def _rounded(count: int) -> int:
    return -(-count // ROWS) * ROWS


def _length(setting: Setting | None) -> int:
    """Return how many neighbors of each reference have to be known."""
    return 1 if setting is None else setting.weight.shape[-1]


class Chunk:
    """The references of banks of equal rounded size, padded.

    Args:
      banks: the banks.
      held: keep the distances of references where they are few; else they are computed each time.
    """

    def __init__(self, banks: Sequence[Bank], held: bool = True):
        self.references, domains, self.synthetic, _ = zip(*banks, strict=True)
        self.banks = banks
        self.count, self.added = (_rounded(len(x[0])) for x in (self.references, self.synthetic))
        self.domain = _padded(domains, (self.count,), PADDING)
        self.size = max(HELD // (len(banks) * self.count) // ROWS, 1) * ROWS  # of a block
        self.size = min(self.size, self.count)
        self._held = list(self._blocks()) if held and self.size == self.count else None

    def blocks(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yield ids `[size]` of references, and the distances `[G, R, size]` of all to them."""
        return self._held or self._blocks()

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, self.count, self.size):
            some = [rows[start : start + self.size] for rows in self.references]
            block = _between(self.references, some, (self.count, self.size))
            own = np.arange(self.count)[start:][: self.size]
            block[:, own, own - start] = np.inf
            yield np.minimum(start + np.arange(self.size), self.count - 1), block

    def away(self, queries: Sequence[np.ndarray], width: int) -> Iterator[np.ndarray]:
        """Yield the distances `[G, R + N, width]` of all from some clips, `[Q, E]` of each bank."""
        most = max(map(len, queries))
        for start in range(0, max(most, 1), width):
            some = [rows[start : start + width] for rows in queries]
            parts = [_between(self.references, some, (self.count, width))]
            if self.added:
                parts.append(_between(self.synthetic, some, (self.added, width)))
            yield np.concatenate(parts, 1)

    def width(self, asked: int) -> int:
        """Return how many of some clips are compared at once."""
        most = HELD // (len(self.banks) * (self.count + self.added)) // ROWS
        return min(max(most, 1) * ROWS, max(asked, ROWS))

    def near(self, length: int) -> tuple[Lists, Lists]:
        """Return `density.lists` of all references."""
        found = [
            _lists(block, self.domain[:, rows], self.domain, length)
            for rows, block in self.blocks()
        ]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows, 1)[:, : self.count], *found)

    def usual(self) -> list[tuple[dict[int, float], np.ndarray]]:
        """Return `domain_scale.fit` of each bank."""
        apart = [None] * len(self.banks) if self._held is None else self._held[0][1]
        return [domain_scale.fit(*one) for one in zip(self.banks, apart, strict=True)]

    def grown(self, m):
        """Return m `[S, G, R]` with that of synthetic rows behind: of the nearest target clip."""
        if not self.added:
            return m
        to_synthetic = _between(self.references, self.synthetic, (self.count, self.added))
        parent = np.where(self.domain[..., None] == TARGET, to_synthetic, np.inf).argmin(1)
        return jnp.concatenate([m, jnp.take_along_axis(m, parent[None], -1)], -1)


class Scales(NamedTuple):
    """What a score by one setting needs of a bank beside distances."""

    m: np.ndarray  # [R + N], of padding any
    factor: Factor
    kind: Kind


def fit(
    banks: Sequence[Bank], asked: tuple[Density | DomainScale, bool]
) -> list[Scales | dict[int, float]]:
    """Return what `tests` needs of each bank for one setting; queries are not looked at."""
    one, _ = asked
    banks = [bank._replace(queries=bank.queries[:0]) for bank in banks]
    if isinstance(one, DomainScale):
        return [domain_scale.fit(bank, None)[0] for bank in banks]
    kind = density.kind(one)
    setting = density.settings([asked], max(len(bank.references) for bank in banks))
    found: list = [None] * len(banks)
    for some in _chunks(banks, _length(setting)):
        chunk = Chunk([banks[g] for g in some])
        known = *chunk.near(_length(setting)), chunk.domain, setting
        m, factor, _ = _of_kind(*known, kind)
        m = np.asarray(chunk.grown(m))[0]
        for i, g in enumerate(some):
            found[g] = Scales(m[i], Factor(*(np.asarray(x)[0, i] for x in factor)), kind)
    return found


def tests(bank: Bank, fitted: Scales | dict[int, float]) -> np.ndarray:
    """Return the scores `[Q]` float32 of a bank's queries, by what `fit` gives for it."""
    chunk, found = Chunk([bank], held=False), []
    for block in chunk.away([bank.queries], chunk.width(_rounded(len(bank.queries)))):
        if isinstance(fitted, dict):
            found.append(domain_scale.scores(chunk.domain[0], fitted, block[0]))
        else:
            m, factor, kind = fitted
            given = m[None, None], Factor(*(x[None, None] for x in factor))
            found.append(np.asarray(_tests(block, *given, kind))[0, 0])
    return np.concatenate(found)[: len(bank.queries)].astype(np.float32)


def _of_kind(every, own, domain, settings, kind: Kind):
    """Return m `[S, G, R]`, factors `[S, G]`, and `[S, G, R]` in banks without each reference."""
    known = every, own, domain, settings
    bounds = _exit_bounds(*known, kind) if kind.exits else None
    m = _scales(*known, bounds, kind)
    no_shift = np.zeros_like(settings.strength)
    if settings.fitted.any():
        return m, *_factors(*known, kind)
    fixed = [np.broadcast_to(x[:, None, None], m.shape) for x in (settings.strength, no_shift)]
    return m, Factor(*(x[..., 0] for x in fixed)), Factor(*fixed)  # and nothing to compile


def _scores(
    banks: Sequence[Bank], settings: Mapping[Kind | None, Setting | None]
) -> Iterator[tuple[Kind | None, Sequence[np.ndarray], Sequence[np.ndarray]]]:
    """Yield kinds with `[S, Q]` and `[S, R]` of banks of equal rounded size, padded."""
    chunk, queries = Chunk(banks), [bank.queries for bank in banks]
    asked = _rounded(len(queries[0]))
    width = chunk.width(asked)
    held = list(chunk.away(queries, width)) if width >= asked else None
    near = chunk.near(max(map(_length, settings.values())))
    for kind, setting in settings.items():
        away = held or chunk.away(queries, width)
        if setting is None:
            usual, left_out = zip(*chunk.usual(), strict=True)
            found = [
                [domain_scale.scores(*one) for one in zip(chunk.domain, usual, block, strict=True)]
                for block in away
            ]
            yield kind, np.concatenate(found, -1)[:, None], [one[None] for one in left_out]
            continue
        known = *_first(near, _length(setting)), chunk.domain, setting
        m, factor, factors = _of_kind(*known, kind)
        left_out = [
            np.asarray(_left_out(*known, m, factors, block, rows, kind))
            for rows, block in chunk.blocks()
        ]
        m = chunk.grown(m)
        found = np.concatenate([np.asarray(_tests(b, m, factor, kind)) for b in away], -1)
        yield kind, found.swapaxes(0, 1), np.concatenate(left_out, -1).swapaxes(0, 1)


def _first(near: tuple[Lists, Lists], length: int) -> tuple[Lists, Lists]:
    """Return the first neighbors of lists."""
    return jax.tree.map(lambda x: x[..., :length], near)


def _padded(arrays: Sequence[np.ndarray], shape: tuple[int, ...], fill: float) -> np.ndarray:
    """Return arrays of several sizes as one `[G, *shape]`."""
    padded = np.full((len(arrays), *shape), fill, arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = array
    return padded


def _between(rows, others, shape: tuple[int, int]) -> np.ndarray:
    """Return the distances `[G, *shape]` of rows of each bank to others, inf where none is."""
    return _padded([distances(*pair) for pair in zip(rows, others, strict=True)], shape, np.inf)


@partial(jax.jit, static_argnames="length")
def _lists(distance, domain, domains, length: int) -> tuple[Lists, Lists]:
    """Return `density.lists` of the columns of `[G, R, B]`."""
    rows = jnp.swapaxes(distance, 1, 2)
    return jax.vmap(partial(density.lists, length=length))(rows, domain, domains)


@partial(jax.jit, static_argnames="kind")
def _exit_bounds(every, own, domain, settings, kind: Kind):
    """Return `[S, G]`."""

    def of_bank(setting, every, own, domain):
        return density.exit_bound(neighbors(every, own, domain, setting, kind))

    return _of_each(of_bank, (settings,), every, own, domain)


@partial(jax.jit, static_argnames="kind")
def _scales(every, own, domain, settings, bounds, kind: Kind):
    """Return m `[S, G, R]`."""

    def of_bank(setting, bound, every, own, domain):
        near = neighbors(every, own, domain, setting, kind)
        return density.scale(near, jnp.arange(len(domain)), exit_bound=bound)

    return _of_each(of_bank, (settings, bounds), every, own, domain)


@partial(jax.jit, static_argnames="kind")
def _factors(every, own, domain, settings, kind: Kind):
    """Return factors `[S, G]`, and `[S, G, R]` in banks without each reference."""

    def of_bank(setting, every, own, domain):
        return density.factors(neighbors(every, own, domain, setting, kind))

    return _of_each(of_bank, (settings,), every, own, domain)


@partial(jax.jit, static_argnames="kind")
def _left_out(every, own, domain, settings, m, factors, distance, clip, kind: Kind):
    """Return the scores `[S, G, B]` of the references `clip [B]`, at distances `[G, R, B]`."""

    def of_neighbors(setting, factor, every, own, domain):
        near = neighbors(every, own, domain, setting, kind)
        return density.least_of_neighbors(near, factor)

    # The distances of one bank stay in the cache while all settings pass over them.
    def of_bank(bank):
        every, own, domain, distance, *rows = bank
        x = density.coordinate(distance, kind)

        def of_setting(row):
            setting, *of = row
            near = neighbors(every, own, domain, setting, kind)
            if kind.exits:
                return density.least_with_exits(near, x, clip)
            return density.least_of_others(near, x, clip, *of)

        return jax.lax.map(of_setting, (settings, *rows))

    by_bank = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (m, factors))
    known = every, own, domain, distance, *by_bank
    least = jax.lax.map(of_bank, known).swapaxes(0, 1)
    if not kind.exits:
        near = _of_each(of_neighbors, (settings, factors), every, own, domain)
        least = jnp.minimum(least, near[:, :, clip])
    return density.score(least, kind)


@partial(jax.jit, static_argnames="kind")
def _tests(distance, m, factor: Factor, kind: Kind):
    """Return the scores `[S, G, Q]` of test clips at distances `[G, R + N, Q]`."""
    x = density.coordinate(distance, kind)
    found = jax.lax.map(lambda row: jax.vmap(density.least)(x, *row), (m, factor))
    return density.score(found, kind)


def _of_each(function: Callable, settings: tuple, *banks):
    """Return what a function gives for each setting and bank.

    Args:
      settings: a `Setting` of several, and arrays `[S, G, ...]`.
      banks: `[G, ...]`.
    """

    def of_setting(row):
        setting, *others = row
        return jax.vmap(partial(function, setting))(*others, *banks)

    return jax.lax.map(of_setting, settings)
