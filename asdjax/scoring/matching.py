"""Scores by the nearest reference at normalized distances, of all machines and parts at once.

What is made of the distances is computed on the device, for many settings in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring import density, domain_scale
from asdjax.scoring.blocks import PADDING
from asdjax.scoring.density import Density, Kind, Lists, Setting, neighbors
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


def _scores(
    banks: Sequence[Bank], settings: Mapping[Kind | None, Setting | None]
) -> Iterator[tuple[Kind | None, Sequence[np.ndarray], Sequence[np.ndarray]]]:
    """Yield kinds with `[S, Q]` and `[S, R]` of banks of equal rounded size, padded."""
    references, domains, synthetic, queries = zip(*banks, strict=True)
    count, added, asked = (_rounded(len(rows[0])) for rows in (references, synthetic, queries))
    length = max(map(_length, settings.values()))
    domain = _padded(domains, (count,), PADDING)
    size = min(max(HELD // (len(banks) * count) // ROWS, 1) * ROWS, count)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids `[size]` of references, and the distances `[G, R, size]` of all to them."""
        for start in range(0, count, size):
            some = [rows[start : start + size] for rows in references]
            block, own = _between(references, some, (count, size)), np.arange(count)[start:][:size]
            block[:, own, own - start] = np.inf
            yield np.minimum(start + np.arange(size), count - 1), block

    width = max(HELD // (len(banks) * (count + added)) // ROWS, 1) * ROWS
    width = min(width, max(asked, ROWS))

    def away() -> Iterator[np.ndarray]:
        """Yield the distances `[G, R + N, width]` of all from some test clips."""
        for start in range(0, max(asked, 1), width):
            some = [rows[start : start + width] for rows in queries]
            parts = [_between(references, some, (count, width))]
            if added:
                parts.append(_between(synthetic, some, (added, width)))
            yield np.concatenate(parts, 1)

    held = list(blocks()) if size == count else None  # else they are computed twice
    held_away = list(away()) if width >= asked else None
    found = [_lists(block, domain[:, rows], domain, length) for rows, block in held or blocks()]
    near = jax.tree.map(lambda *rows: jnp.concatenate(rows, 1)[:, :count], *found)
    if added:
        to_synthetic = _between(references, synthetic, (count, added))
        parent = np.where(domain[..., None] == TARGET, to_synthetic, np.inf).argmin(1)
    for kind, setting in settings.items():
        if setting is None:
            apart = [None] * len(banks) if held is None else held[0][1]
            pairs = [domain_scale.fit(*one) for one in zip(banks, apart, strict=True)]
            usual, left_out = zip(*pairs, strict=True)
            tests = [
                [domain_scale.scores(*one) for one in zip(domain, usual, block, strict=True)]
                for block in held_away or away()
            ]
            yield kind, np.concatenate(tests, -1)[:, None], [one[None] for one in left_out]
            continue
        known = *_first(near, _length(setting)), domain, setting
        bounds = _exit_bounds(*known, kind) if kind.exits else None
        m, (strength, strengths) = _scales(*known, bounds, kind), _strengths(*known, kind)
        left_out = [
            np.asarray(_left_out(*known, m, strengths, block, rows, kind))
            for rows, block in held or blocks()
        ]
        if added:
            m = jnp.concatenate([m, jnp.take_along_axis(m, parent[None], -1)], -1)
        tests = [np.asarray(_tests(block, m, strength, kind)) for block in held_away or away()]
        tests = np.concatenate(tests, -1)
        yield kind, tests.swapaxes(0, 1), np.concatenate(left_out, -1).swapaxes(0, 1)


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
def _strengths(every, own, domain, settings, kind: Kind):
    """Return a `[S, G]`, and `[S, G, R]` in banks without each reference."""

    def of_bank(setting, every, own, domain):
        return density.strengths(neighbors(every, own, domain, setting, kind))

    return _of_each(of_bank, (settings,), every, own, domain)


@partial(jax.jit, static_argnames="kind")
def _left_out(every, own, domain, settings, m, strengths, distance, clip, kind: Kind):
    """Return the scores `[S, G, B]` of the references `clip [B]`, at distances `[G, R, B]`."""

    def of_neighbors(setting, strengths, every, own, domain):
        near = neighbors(every, own, domain, setting, kind)
        return density.least_of_neighbors(near, strengths)

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

    known = every, own, domain, distance, m.swapaxes(0, 1), strengths.swapaxes(0, 1)
    least = jax.lax.map(of_bank, known).swapaxes(0, 1)
    if not kind.exits:
        near = _of_each(of_neighbors, (settings, strengths), every, own, domain)
        least = jnp.minimum(least, near[:, :, clip])
    return density.score(least, kind)


@partial(jax.jit, static_argnames="kind")
def _tests(distance, m, strength, kind: Kind):
    """Return the scores `[S, G, Q]` of test clips at distances `[G, R + N, Q]`."""
    x = density.coordinate(distance, kind)
    found = jax.lax.map(lambda row: jax.vmap(density.least)(x, *row), (m, strength))
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
