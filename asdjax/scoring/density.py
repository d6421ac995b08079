"""Distances relative to how densely the references lie: local density normalization and VarMin.

The clips of a machine are not equally alike everywhere: a distance that is large in one operating
condition is small in another, and target clips, which are few, lie far from everything. So each
reference j gets a local scale c_j, its distance to its own nearest references, and a clip at
distances d_j from the references gets the score

    min_j d_j / c_j^a  ("ratio")    or    min_j d_j - a c_j  ("difference").

With x = ln d and m = ln c, or x = d and m = c, both are min_j x_j - a m_j, which is computed here.
Where a is fitted, a times the mean m of the training clips is added: for one bank that changes no
rank, and the scores of several parts of an embedding, each with an a of its own, stay distances
that can be averaged.

Training clips are left out exactly: each gets the score that it would get as a test clip of a bank
without it, in which also the scales and a are others. The lists of nearest references say where:
the scale of a reference changes only with a clip that is in its list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring.blocks import PADDING
from asdjax.scoring.distances import TARGET
from asdjax.types import check

COPY = 1e-12  # distance up to which a clip is a copy of another, which says nothing of density
PERCENTILE = 4  # of the ratios of a bank, below which one is an exit
SPARSE = 0.5  # ratio below which the neighbors of a reference are too far apart to look for exits
LEAST_VARIANCE = 1e-10  # of m, as a share of the square of its mean: less is rounding
ROUNDING = 1e-6  # of sums of squares in float32
MOST_STRENGTH = 4.0  # a of a few clips has no bounds, and that of many is about 1


@dataclass(frozen=True)
class Density:
    """Local density normalization (LDN) of the distance to the nearest reference.

    Args:
      neighbors: K, how many nearest other references the local scale of a reference is from. Copies
        of it do not count; where there are fewer, all are taken.
      target_neighbors: K of references of the target domain; None: as of the others.
      form: "ratio" divides distances by local scales, "difference" subtracts scales.
      strength: "full": a = 1; "variance": a = Cov(x, m) / Var(m) over the training clips with their
        nearest other references, so that the variance of x - a m is smallest (VarMin); 0 where the
        scales are equal, and in [-4, 4], which a few clips alone exceed.
      decay: the weight of each further neighbor, as a share of that of the one before.
      scale: the weighted "mean" of the distances to neighbors, or their "sum".
      exits: cluster exit detection: of the K neighbors those before the first jump of the distance.
        For banks of thousands: each training clip is left out by a pass over all lists.

    With `references="domain"` neighbors are of the same domain; a clip that is alone in its domain
    takes its neighbors from all. A synthetic clip (`Knn.oversample`) has the scale of the target
    clip nearest to it: its distance to that one says nothing of density.

    Source: Wilkinghoff et al. 2025, "Local density-based anomaly score normalization for domain
        generalization" (arXiv 2509.10951): both forms, K, weights; Matsumoto et al. 2025 (DCASE
        workshop), equation 5, and Wilkinghoff, Yadav and Tan 2026 (arXiv 2603.04605), section IV.C,
        in logarithms: "variance"; Saengthong and Shinozaki 2025 (GenRep25, DCASE Challenge Task 2):
        K = 16 and 9 by domain, sums; Wilkinghoff et al. 2026, "Mind the gap" (arXiv 2602.18777):
        exits, but for what a sparse region is, which is ours.
    """

    neighbors: int = 1
    target_neighbors: int | None = None
    form: Literal["ratio", "difference"] = "ratio"
    strength: Literal["full", "variance"] = "full"
    decay: float = 1.0
    scale: Literal["mean", "sum"] = "mean"
    exits: bool = False

    def __post_init__(self):
        target = 1 if self.target_neighbors is None else self.target_neighbors
        check(
            self,
            ("neighbors", ">= 1", self.neighbors >= 1),
            ("target_neighbors", ">= 1 or none", target >= 1),
            ("decay", "in (0, 1]", 0 < self.decay <= 1),
            ("neighbors", ">= 3 with exits", not self.exits or min(self.counts) >= 3),
            ("exits", "strength full", not self.exits or self.strength == "full"),
        )

    @property
    def counts(self) -> tuple[int, int]:
        """Return K of references of the target domain, and of others."""
        return self.target_neighbors or self.neighbors, self.neighbors

    def count(self, domain: str) -> int:
        """Return K of references of a domain."""
        return self.counts[0 if domain == "target" else 1]


class Kind(NamedTuple):
    """What of a `Density` programs are compiled for."""

    ratio: bool
    exits: bool


class Setting(NamedTuple):
    """The rest of it, or of several with a leading axis."""

    weight: np.ndarray  # [2, M] of the neighbors of a reference: of the target domain, of others
    total: np.ndarray  # [] bool, scales are sums
    fitted: np.ndarray  # [] bool, a is by variance
    strength: np.ndarray  # [] a, where it is not
    by_domain: np.ndarray  # [] bool


def kind(asked: Density | None) -> Kind:
    return Kind(asked.form == "ratio", asked.exits) if asked else Kind(ratio=False, exits=False)


class Factor(NamedTuple):
    """What is taken off: scores are min_j x_j - a m_j + shift."""

    a: jax.Array  # [] of a bank, or [R] of banks without each reference
    shift: jax.Array  # a times the mean m of the training clips where a is fitted, else 0


def settings(asked: Sequence[tuple[Density | None, bool]], clips: int) -> Setting:
    """Return settings of one kind as arrays.

    Args:
      asked: of each its `Density`, None for plain distances, and whether neighbors are of the same
        domain.
      clips: no bank has more; so many neighbors are all.
    """
    counts = [[min(n, clips) for n in (one or Density()).counts] for one, _ in asked]
    most = max(map(max, counts)) + 2  # two may be left out
    rows = []
    for (given, by_domain), own in zip(asked, counts, strict=True):
        one = given or Density()
        weight = np.zeros((2, most), np.float32)
        for row, count in zip(weight, own, strict=True):
            row[:count] = one.decay ** np.arange(count)
        flags = one.scale == "sum", one.strength == "variance"
        strength = np.float32(given is not None)
        rows.append(Setting(weight, *map(np.array, flags), strength, np.array(by_domain)))
    return Setting(*map(np.stack, zip(*rows, strict=True)))


class Lists(NamedTuple):
    """The nearest other references of each reference, copies left out."""

    value: jax.Array  # [R, M] rising, inf where there are fewer
    id: jax.Array  # [R, M] int32, PADDING where there are fewer


class Neighbors(NamedTuple):
    """What the scales of one setting are made from."""

    every: Lists  # of all domains
    own: Lists  # those that count: of the same domain, or `every`
    domain: jax.Array  # [R] int32
    setting: Setting
    kind: Kind


def lists(distance, domain, domains, length: int) -> tuple[Lists, Lists]:
    """Return the nearest references of rows: of all domains, and of their own.

    Where a row's domain has none, those of all domains stand for them.

    Args:
      distance: `[B, R]`, inf to references that do not exist or are the row itself.
      domain, domains: `[B]` and `[R]` int32, of the rows and of the references.
      length: M.
    """
    distance = jnp.where(distance <= COPY, jnp.inf, distance)
    every = _nearest(distance, length)
    own = _nearest(jnp.where(domain[:, None] == domains[None], distance, jnp.inf), length)
    return every, Lists(*map(partial(jnp.where, jnp.isinf(own.value[:, :1])), every, own))


def _nearest(distance, length: int) -> Lists:
    found, place = jax.lax.top_k(-distance, min(length, distance.shape[1]))
    missing = ((0, 0), (0, length - found.shape[1]))
    value = -jnp.pad(found, missing, constant_values=-jnp.inf)
    return Lists(value, jnp.where(jnp.isinf(value), PADDING, jnp.pad(place, missing)))


def neighbors(every: Lists, own: Lists, domain, setting: Setting, kind: Kind) -> Neighbors:
    """Return what the scales of a setting are made from, of the results of `lists`."""
    own = Lists(*map(partial(jnp.where, setting.by_domain), own, every))
    return Neighbors(every, own, domain, setting, kind)


def scale(near: Neighbors, reference, *gone, exit_bound=None):
    """Return m of references `[R]` in banks without some clips; 0 where no other clip is left.

    Args:
      reference: ids `[R]`.
      gone: ids `[R]` each, PADDING for none.
      exit_bound: that of the bank; None: without exits.
    """
    value, weight = _that_count(near, reference, *gone)
    if exit_bound is not None:
        weight = jnp.where(_rank(weight) < _before_exit(value, weight, exit_bound), weight, 0.0)
    return _local(value, weight, near)


def exit_bound(near: Neighbors):
    """Return the 4th percentile of the smoothed ratios of all references of a bank, 0 of none."""
    ratios = _smoothed(*_that_count(near, jnp.arange(len(near.domain))))
    return jnp.nan_to_num(jnp.nanpercentile(ratios, PERCENTILE))


def _that_count(near: Neighbors, reference, *gone):
    """Return the rising distances `[R, M]` to the neighbors of `scale`, and their weights."""
    own, every = _known(near, reference)
    for one in gone:
        own, every = _without(own, one), _without(every, one)
    value = jnp.where(_empty(own), every.value, own.value)
    return value, jnp.where(jnp.isinf(value), 0.0, _weights(near)[reference])


def _known(near: Neighbors, reference) -> tuple[Lists, Lists]:
    """Return the lists of references `[R]`: those that count, and of all domains."""
    return Lists(*(x[reference] for x in near.own)), Lists(*(x[reference] for x in near.every))


def _empty(of: Lists):
    return jnp.isinf(of.value[:, :1])


def _weights(near: Neighbors):
    """Return the weights `[R, M]` of the neighbors of each reference."""
    return jnp.where((near.domain == TARGET)[:, None], *near.setting.weight[:, None])


def _without(of: Lists, gone) -> Lists:
    """Return lists without a clip each: what is behind it moves up."""
    found = of.id == gone[:, None]
    place = jnp.where(found.any(-1), found.argmax(-1), found.shape[-1])[:, None]
    return Lists(
        *(
            jnp.where(_rank(x) < place, x, jnp.pad(x[:, 1:], ((0, 0), (0, 1)), constant_values=end))
            for x, end in zip(of, (jnp.inf, PADDING), strict=True)
        )
    )


def _rank(x):
    """Return places along the last axis."""
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def _local(value, weight, near: Neighbors):
    """Return m `[R]` from rising distances to neighbors and their weights, `[R, M]`."""
    weight = jnp.where(jnp.isinf(value), 0.0, weight)
    total = jnp.where(weight > 0, weight * value, 0.0).sum(-1)
    return _m(total, weight.sum(-1), near)


def _m(total, weight, near: Neighbors):
    """Return m of weighted sums and of sums of weights; 0 where there are no weights."""
    some = weight > 0
    local = jnp.where(near.setting.total, total, total / jnp.where(some, weight, 1.0))
    return jnp.where(some, coordinate(local, near.kind), 0.0)


def _scale_without_each(own: Lists, every: Lists, weight, near: Neighbors):
    """Return m `[R, M]` of references in banks without each clip of `own`.

    What is behind the clip moves up, so the sums are those of what is before it, and of what is
    behind it with the weights of one place before.
    """
    value = jnp.where(jnp.isinf(own.value), 0.0, own.value)
    there = jnp.where(jnp.isinf(own.value), 0.0, 1.0)
    earlier = jnp.pad(weight[:, :-1], ((0, 0), (1, 0)))
    sums = []
    for x in (value * there, there):  # sums of positive numbers alone, so that small ones count
        before = _product(weight * x, jnp.triu(jnp.ones((x.shape[-1],) * 2), 1))
        behind = _product(earlier * x, jnp.tril(jnp.ones((x.shape[-1],) * 2), -1))
        sums.append(before + behind)
    several = _m(*sums, near)
    instead = _local(_without(every, own.id[:, 0]).value, weight, near)
    return jnp.where(there[:, 1:2] > 0, several, instead[:, None])


def coordinate(distance, kind: Kind):
    """Return x of distances, or m of local scales."""
    return jnp.log(jnp.maximum(distance, COPY)) if kind.ratio else distance


def _smoothed(value, weight):
    """Return the mean `[R, M - 2]` of each two ratios that follow one another, nan behind the last.

    The ratio r_n = d_n / d_(n+1) of rising distances is small where a gap follows neighbor n.
    """
    count = (weight > 0).sum(-1, keepdims=True)
    ratio = value[:, :-1] / jnp.maximum(value[:, 1:], COPY)
    smooth = (ratio[:, :-1] + ratio[:, 1:]) / 2
    return jnp.where(_rank(smooth) < count - 2, smooth, jnp.nan)


def _before_exit(value, weight, bound):
    """Return how many neighbors, `[R, 1]` of rising distances `[R, M]`, lie before the exit.

    It is behind the first whose smoothed ratio is below the bound; where none is, behind the last
    that has one. It is behind the second where a smoothed ratio is below `SPARSE`, or where there
    are fewer than three neighbors.
    """
    count, smooth = (weight > 0).sum(-1), _smoothed(value, weight)
    exits, sparse = smooth < bound, (smooth < SPARSE).any(-1) | (count < 3)
    first = jnp.where(exits.any(-1), exits.argmax(-1) + 1, count - 2)
    return jnp.where(sparse, jnp.minimum(count, 2), first)[:, None]


def _product(x, places):
    """Return sums over some places of `[R, M]`: a tenth of the time of cumsum."""
    return jnp.matmul(x, places, precision=jax.lax.Precision.HIGHEST)


def factors(near: Neighbors) -> tuple[Factor, Factor]:
    """Return the factor of the whole bank, and those of the banks without each reference."""
    count, a = len(near.domain), near.setting.strength
    fixed = Factor(a, jnp.zeros(())), Factor(jnp.full(count, a), jnp.zeros(count))
    return jax.lax.cond(near.setting.fitted, lambda: _fitted(near), lambda: fixed)


def _fitted(near: Neighbors):
    """Return factors with a = Cov(x, m) / Var(m) over all training clips, and all but each of them.

    Left out, a clip is no longer one of the pairs; it is not the nearest of another one, which
    takes its second; and it is no neighbor of the nearest of another one. So a few terms of the
    sums over pairs change.
    """
    clip = jnp.arange(len(near.domain))
    first, second = near.every.id[:, 0], near.every.id[:, 1]
    x, x_second = (coordinate(near.every.value[:, i], near.kind) for i in (0, 1))
    m = scale(near, first, clip)
    middle = [jnp.where(first != PADDING, one, 0.0).sum() for one in (x, m)]
    middle = [total / jnp.maximum((first != PADDING).sum(), 1) for total in middle]

    def terms(x, m, there):
        """Return what a pair adds to the sums; from the means, which keeps digits."""
        x, m = (jnp.where(there, one - mid, 0.0) for one, mid in zip((x, m), middle, strict=True))
        return jnp.stack(jnp.broadcast_arrays(there * 1.0, x, m, x * m, m * m), -1)

    own = terms(x, m, first != PADDING)
    replaced = terms(x_second, scale(near, second, clip, first), second != PADDING) - own
    change = (-own).at[_drop(first)].add(replaced, mode="drop")
    # Neighbors that count of the nearest; where its domain has no other clip, those of all.
    lists = [_without(one, clip) for one in _known(near, first)]
    counting = Lists(*map(partial(jnp.where, _empty(lists[0])), lists[1], lists[0]))
    other = _scale_without_each(counting, lists[1], _weights(near)[first], near)
    moved = terms(x[:, None], other, (first != PADDING)[:, None]) - own[:, None]
    change = change.at[_drop(counting.id)].add(moved, mode="drop")

    def factor(sums) -> Factor:
        count, x, m, both, square = jnp.moveaxis(sums, -1, 0)
        count = jnp.maximum(count, 1.0)
        variance = square / count - jnp.square(m / count)
        least = LEAST_VARIANCE * jnp.square(middle[1]) + ROUNDING * square / count
        varies = variance > jnp.maximum(least, jnp.finfo(jnp.float32).tiny)
        covariance = both / count - x * m / jnp.square(count)
        a = jnp.where(varies, covariance / jnp.where(varies, variance, 1.0), 0.0)
        a = jnp.clip(a, -MOST_STRENGTH, MOST_STRENGTH)
        return Factor(a, a * (middle[1] + m / count))

    total = own.sum(0)
    return factor(total), factor(total[None] + change)


def _drop(identity):
    """Return ids, PADDING as one that an update drops (-1 would be the last)."""
    return jnp.where(identity == PADDING, jnp.iinfo(jnp.int32).max, identity)


def least(x, m, factor: Factor):
    """Return min_j x_j - a m_j + shift `[Q]` of clips, from x `[R, Q]`, inf without a reference."""
    return (x - factor.a * m[:, None]).min(0) + factor.shift


def least_of_others(near: Neighbors, x, clip, m, factor: Factor):
    """Return for clips `[B]` the least over references that they are no neighbors of.

    These have the same scale in the banks without the clip.

    Args:
      x: `[R, B]` of the distances of these clips, inf from the clip itself.
      clip: `[B]`, their ids.
      m: `[R]`, in the whole bank.
      factor: `[R]`, in the banks without each reference.
    """
    count = (_weights(near) > 0).sum(-1, keepdims=True)
    reach = jnp.take_along_axis(near.own.value, count, -1)  # of the first that is no neighbor
    whole = (near.own.id == near.every.id).all(-1)[:, None]
    counts = whole | (near.domain[:, None] == near.domain[clip][None])
    is_neighbor = counts & (x > coordinate(COPY, near.kind)) & (x < coordinate(reach, near.kind))
    x = jnp.where(is_neighbor, jnp.inf, x - factor.a[clip][None] * m[:, None])
    return x.min(0) + factor.shift[clip]


def least_of_neighbors(near: Neighbors, factor: Factor):
    """Return `[R]`, the least over references that a clip may be a neighbor of.

    Their scales are those of the bank without it.
    """
    m = _scale_without_each(near.own, near.every, _weights(near), near)
    a, shift = (one[near.own.id] for one in factor)
    x = coordinate(near.own.value, near.kind) - a * m + shift
    return jnp.full(len(factor.a), jnp.inf).at[_drop(near.own.id)].min(x, mode="drop")


def least_with_exits(near: Neighbors, x, clip):
    """Return the least `[B]` over all references where each clip changes what an exit is.

    Args:
      x, clip: as of `least_of_others`.
    """
    rows = jnp.arange(len(near.domain))

    def without(given):
        gone, x = given
        own, every = (_without_row(one, gone) for one in (near.own, near.every))
        bank = near._replace(own=own, every=every)
        m = scale(bank, rows, exit_bound=exit_bound(bank))
        return least(x[:, None], m, Factor(near.setting.strength, 0.0))[0]

    return jax.lax.map(without, (clip, x.T))


def _without_row(of: Lists, gone) -> Lists:
    """Return the lists of a bank without a clip, whose own list is empty then."""
    others = _without(of, jnp.full(len(of.id), gone))
    own = (jnp.arange(len(of.id)) == gone)[:, None]
    return Lists(jnp.where(own, jnp.inf, others.value), jnp.where(own, PADDING, others.id))


def score(least, kind: Kind):
    return jnp.exp(least) if kind.ratio else least
