"""The kernels of `fused.py`, their arithmetic and what they load.

A kernel takes `(how, given, made)`: references to arrays by name, those it reads and those it
writes. What a program sees of an array says `fused.py`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from asdjax.models.layers import survivors, survivors_scale

Platform = Literal["cuda", "tpu"]
Arrays = dict[str, jax.Array]  # and references to them
DEPTH = 64  # d, the only one that the kernels take
LOWEST = float(jnp.finfo(jnp.float32).min)  # the score of a padded key
WHOLE = 640  # tokens that a TPU takes as one block


class Fused(NamedTuple):
    """How to compute attention with kernels; fixed when a program is compiled."""

    platform: Platform
    heads: int
    tokens: int  # L
    rate: float = 0.0  # of dropout
    interpret: bool = False  # on a CPU, for tests

    @property
    def on_tpu(self) -> bool:
        return self.platform == "tpu"

    @property
    def together(self) -> int:
        """Return g, the heads of a program."""
        return 2 if self.on_tpu else 1

    @property
    def length(self) -> int:
        """Return L and what is added to it: blocks of a TPU are whole."""
        whole = not self.on_tpu or self.tokens <= WHOLE
        return self.tokens if whole else -(-self.tokens // 128) * 128

    @property
    def block(self) -> int:
        """Return the queries of a program, and the keys of a turn; and the other way round."""
        if not self.on_tpu:
            return 64
        return self.length if self.length <= WHOLE else 128

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block)


# Kernels. `own` is the first query (or key) of a program, `at` that of a turn.


class Place(NamedTuple):
    """Which program it is, and which of its heads is computed."""

    group: jax.Array  # of heads
    clip: jax.Array
    head: int = 0


class Queries(NamedTuple):
    """A block of queries in a backward pass."""

    at: jax.Array  # the first
    q: jax.Array  # [block, d]
    slope: jax.Array  # [block, d], the gradient of the output
    mean: jax.Array  # [block, 1], the sum of slope * out
    gate: jax.Array | None  # [block, 1]


class Keys(NamedTuple):
    """A block of keys."""

    at: jax.Array  # the first
    k: jax.Array  # [block, d]
    v: jax.Array  # [block, d]
    hidden: jax.Array | None  # [1, block], True = padding


class Tile(NamedTuple):
    """What the gradients of a block of queries and a block of keys are made of."""

    weight: jax.Array  # [block, block], after dropout, in the dtype of values
    to_scores: jax.Array  # the gradient of the scores, float32
    bias: jax.Array | None


def forward(how: Fused, given: Arrays, made: Arrays) -> None:
    own = pl.program_id(1) * how.block
    for head in range(how.together):
        place = Place(pl.program_id(0), pl.program_id(2), head)
        q, gate = _wide(how, given["q"], head, own), _gate(how, given, head, own)

        def turn(j, state, place=place, q=q, gate=gate):
            top, total, sums = state
            keys = _keys(how, given, place.head, j * how.block)
            bias = _bias(how, given, place.head, own, keys.at, "rows")
            scores = _scores(how, q, gate, keys, bias)
            new = jnp.maximum(top, scores.max(1, keepdims=True))
            weight, shrink = jnp.exp(scores - new), jnp.exp(top - new)
            total = shrink * total + weight.sum(1, keepdims=True)
            keep = _kept(how, given, place, own, keys.at)
            weight = weight if keep is None else jnp.where(keep, weight, 0.0)
            return new, total, shrink * sums + _product(weight.astype(keys.v.dtype), keys.v, (1, 0))

        one = jnp.zeros((how.block, 1), jnp.float32)
        start = one + LOWEST, one, jnp.zeros((how.block, DEPTH), jnp.float32)
        top, total, sums = _turns(how, turn, start)
        _store_wide(how, made["out"], head, own, sums * (_scale(how) / total))
        for i, numbers in enumerate((top, total)):
            _store_numbers(how, made["stats"], 2 * head + i, own, numbers)


def backward(how: Fused, given: Arrays, made: Arrays) -> None:
    """All gradients, of a block of keys (TPU)."""
    own = pl.program_id(1) * how.block
    if "to_bias" in made:

        @pl.when(pl.program_id(2) == 0)
        def _():
            made["to_bias"][...] = jnp.zeros_like(made["to_bias"])

    for head in range(how.together):
        place = Place(pl.program_id(0), pl.program_id(2), head)
        keys = _keys(how, given, head, own)

        def turn(i, state, place=place, keys=keys):
            queries = _queries(how, given, place.head, i * how.block)
            tile = _tile(how, given, place, queries, keys)
            at, head = queries.at, place.head
            if queries.gate is not None:
                to_gate = (tile.to_scores * tile.bias).sum(1, keepdims=True)
                _store_numbers(how, made["to_gate"], head, at, to_gate)
            if tile.bias is not None:
                made["to_bias"][head, _stretch(how, at), :] += _to_bias(tile, queries)
            _store_wide(how, made["to_q"], head, at, _to_q(tile, keys))
            return _to_keys(state, tile, queries)

        zero = jnp.zeros((how.block, DEPTH), jnp.float32)
        for name, value in zip(("to_k", "to_v"), _turns(how, turn, (zero, zero)), strict=True):
            _store_wide(how, made[name], head, 0, value)


def backward_queries(how: Fused, given: Arrays, made: Arrays) -> None:
    """The gradients of a block of queries and of its gates (GPU)."""
    own, place = pl.program_id(1) * how.block, Place(pl.program_id(0), pl.program_id(2))
    queries = _queries(how, given, 0, own)

    def turn(j, state):
        to_q, to_gate = state
        keys = _keys(how, given, 0, j * how.block)
        tile = _tile(how, given, place, queries, keys)
        if queries.gate is not None:
            to_gate += (tile.to_scores * tile.bias).sum(1, keepdims=True)
        return to_q + _to_q(tile, keys), to_gate

    zero = jnp.zeros((how.block, DEPTH), jnp.float32)
    to_q, to_gate = _turns(how, turn, (zero, jnp.zeros_like(queries.mean)))
    _store_wide(how, made["to_q"], 0, own, to_q)
    _store_numbers(how, made["mean"], 0, own, queries.mean)
    if queries.gate is not None:
        _store_numbers(how, made["to_gate"], 0, own, to_gate)


def backward_keys(how: Fused, given: Arrays, made: Arrays) -> None:
    """The gradients of a block of keys and values (GPU)."""
    own, place = pl.program_id(1) * how.block, Place(pl.program_id(0), pl.program_id(2))
    keys = _keys(how, given, 0, own)

    def turn(i, state):
        queries = _queries(how, given, 0, i * how.block)
        return _to_keys(state, _tile(how, given, place, queries, keys), queries)

    zero = jnp.zeros((how.block, DEPTH), jnp.float32)
    for name, value in zip(("to_k", "to_v"), _turns(how, turn, (zero, zero)), strict=True):
        _store_wide(how, made[name], 0, own, value)


def backward_bias(how: Fused, given: Arrays, made: Arrays) -> None:
    """The gradient of a block of the bias, the sum over all clips (GPU)."""
    group, rows, columns = (pl.program_id(axis) * n for axis, n in enumerate((1, *[how.block] * 2)))
    shared = {name: given[name] for name in ("bias", "words") if name in given}

    def turn(clip, total):
        own = shared | {n: OfClip(ref, clip) for n, ref in given.items() if n not in shared}
        queries, keys = _queries(how, own, 0, rows), _keys(how, own, 0, columns)
        return total + _to_bias(_tile(how, own, Place(group, clip), queries, keys), queries)

    zero = jnp.zeros((how.block, how.block), jnp.float32)
    total = lax.fori_loop(0, given["q"].shape[0], turn, zero)
    plgpu.store(made["to_bias"], total[None], mask=_both(how, rows, columns)[None])


MADE = {  # by each kernel, and how many products of L x L x d for a head that takes
    forward: (("out", "stats"), 2),
    backward: (("to_q", "to_k", "to_v", "to_gate", "to_bias"), 5),
    backward_queries: (("to_q", "to_gate", "mean"), 3),
    backward_keys: (("to_k", "to_v"), 4),
    backward_bias: (("to_bias",), 2),
}


# Arithmetic of a block: queries are rows, keys are columns


def _product(x, y, axes: tuple[int, int]):
    """Return the float32 product of two blocks, summed over these axes."""
    axes = (axes[:1], axes[1:]), ((), ())
    return lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _scores(how, q, gate, keys: Keys, bias):
    scores = DEPTH**-0.5 * _product(q, keys.k, (1, 1))
    if bias is not None:
        scores += bias if gate is None else gate * bias
    if keys.hidden is not None:
        scores = jnp.where(keys.hidden, LOWEST, scores)
    if how.blocks * how.block > how.tokens:
        scores = jnp.where(_inside(how, keys.at).reshape(1, -1), scores, -jnp.inf)
    return scores


def _tile(how, given, place: Place, queries: Queries, keys: Keys) -> Tile:
    """Return a block of the softmax, from what was kept of it, and its gradient."""
    bias = _bias(how, given, place.head, queries.at, keys.at, "columns")
    scores = _scores(how, queries.q, queries.gate, keys, bias)
    stats = (_numbers(how, given["stats"], 2 * place.head + i, queries.at) for i in range(2))
    top, total = stats
    weight = jnp.exp(scores - top) / jnp.maximum(total, 1.0)  # a query beyond the end has 0
    keep = _kept(how, given, place, queries.at, keys.at)

    def dropped(x):
        return x if keep is None else jnp.where(keep, _scale(how) * x, 0.0)

    slope = _product(queries.slope, keys.v, (1, 1))
    to_scores = weight * (dropped(slope) - queries.mean)
    if keys.hidden is not None:
        to_scores = jnp.where(keys.hidden, 0.0, to_scores)
    return Tile(dropped(weight).astype(queries.slope.dtype), to_scores, bias)


def _to_q(tile: Tile, keys: Keys):
    return DEPTH**-0.5 * _product(tile.to_scores.astype(keys.k.dtype), keys.k, (1, 0))


def _to_keys(sums, tile: Tile, queries: Queries):
    """Return the sums of the gradients of keys and of values, with a block more of queries."""
    to_k, to_v = sums
    to_scores = tile.to_scores.astype(queries.q.dtype)
    to_k += DEPTH**-0.5 * _product(to_scores, queries.q, (0, 0))
    return to_k, to_v + _product(tile.weight, queries.slope, (0, 0))


def _to_bias(tile: Tile, queries: Queries):
    return tile.to_scores if queries.gate is None else queries.gate * tile.to_scores


def _scale(how):
    return survivors_scale(how.rate) if how.rate else 1.0


def _kept(how, given, place: Place, rows, columns):
    """Return which weights of a block dropout keeps; None without."""
    if not how.rate:
        return None
    words = given["words"]
    head = place.group * how.together + place.head
    clip = place.clip.astype(jnp.uint32) + words[2]
    rows = rows + lax.broadcasted_iota(jnp.int32, (how.block, 1), 0)
    columns = columns + lax.broadcasted_iota(jnp.int32, (1, how.block), 1)
    rows = (clip * how.heads + head.astype(jnp.uint32)) * how.tokens + rows.astype(jnp.uint32)
    return survivors(how.rate, words, rows, columns.astype(jnp.uint32))


# Loads and stores. A GPU's blocks may reach beyond the last token: 0 is loaded there.


class OfClip(NamedTuple):
    """What a program that sees all clips loads of one."""

    ref: jax.Array
    clip: jax.Array


def _load(ref, *place, mask):
    """Load from a GPU's memory; 0 where not `mask`."""
    if isinstance(ref, OfClip):  # Triton's references are indexed once
        return _load(ref.ref, pl.ds(ref.clip, 1), *place, mask=mask[None])[0]
    zero = jnp.zeros((), ref.dtype)
    return plgpu.load(ref.at[place], mask=mask, other=zero)


def _turns(how, turn, start):
    return turn(0, start) if how.blocks == 1 else lax.fori_loop(0, how.blocks, turn, start)


def _stretch(how, at):
    return slice(None) if how.blocks == 1 else pl.ds(at, how.block)


def _inside(how, at):
    """Return which tokens of a block from `at` there are, `[block, 1]`."""
    return at + lax.broadcasted_iota(jnp.int32, (how.block, 1), 0) < how.tokens


def _both(how, rows, columns):
    """Return which pairs of tokens of two blocks there are, `[block, block]`."""
    return _inside(how, rows) & _inside(how, columns).reshape(1, -1)


def _wide(how, ref, head, at):
    """Return a block of `[L, g d]` for a head, `[block, d]`."""
    if how.on_tpu:
        return ref[_stretch(how, at), head * DEPTH : (head + 1) * DEPTH]
    return _load(ref, pl.ds(at, how.block), slice(None), mask=_inside(how, at))


def _store_wide(how, ref, head, at, value):
    value = value.astype(ref.dtype)
    if not how.on_tpu:
        plgpu.store(ref, value, mask=_inside(how, at))
    elif ref.shape[0] == how.block:
        ref[:, head * DEPTH : (head + 1) * DEPTH] = value
    else:
        ref[pl.ds(at, how.block), head * DEPTH : (head + 1) * DEPTH] = value


def _numbers(how, ref, row, at):
    """Return the numbers of a block of queries, `[block, 1]`, from a row of `[rows, L]`."""
    if how.on_tpu:
        return ref[row : row + 1, _stretch(how, at)].T
    return _row(how, ref, row, at).reshape(-1, 1)


def _store_numbers(how, ref, row, at, value):
    if not how.on_tpu:
        inside = _inside(how, at).reshape(1, -1)
        plgpu.store(ref.at[pl.ds(row, 1)], value.reshape(1, -1), mask=inside)
    elif ref.shape[1] == how.block:
        ref[row : row + 1] = value.T
    else:
        ref[row : row + 1, pl.ds(at, how.block)] = value.T


def _queries(how, given, head, at) -> Queries:
    q, slope = (_wide(how, given[name], head, at) for name in ("q", "slope"))
    if "mean" in given:
        mean = _numbers(how, given["mean"], head, at)
    else:
        out = _wide(how, given["out"], head, at).astype(jnp.float32)
        mean = (slope.astype(jnp.float32) * out).sum(1, keepdims=True)
    return Queries(at, q, slope, mean, _gate(how, given, head, at))


def _keys(how, given, head, at) -> Keys:
    k, v = (_wide(how, given[name], head, at) for name in "kv")
    return Keys(at, k, v, _hidden(how, given, at))


def _gate(how, given, head, at):
    return _numbers(how, given["gate"], head, at) if "gate" in given else None


def _hidden(how, given, at):
    """Return which keys of a block are padding, `[1, block]`; None without padding."""
    if "padding" not in given:
        return None
    if how.on_tpu:
        return given["padding"][:, _stretch(how, at)] != 0
    return _row(how, given["padding"], 0, at) != 0


def _row(how, ref, row, at):
    """Return a block of a row of `[rows, L]` on a GPU, `[1, block]`."""
    inside = _inside(how, at).reshape(1, -1)
    return _load(ref, pl.ds(row, 1), pl.ds(at, how.block), mask=inside)


def _bias(how, given, head, rows, columns, own: Literal["rows", "columns"]):
    """Return a block of the bias; a TPU's program has its own rows or columns alone."""
    if "bias" not in given:
        return None
    if how.on_tpu:
        places = slice(None), _stretch(how, columns)
        places = places if own == "rows" else (_stretch(how, rows), slice(None))
        return given["bias"][head, *places]
    place = pl.ds(0, 1), pl.ds(rows, how.block), pl.ds(columns, how.block)
    return _load(given["bias"], *place, mask=_both(how, rows, columns)[None])[0]
