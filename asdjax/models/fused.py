"""Attention without scores in memory, as Pallas kernels for NVIDIA GPUs (Triton) and TPUs (Mosaic).

`fused` gives what `attention.attend` defines, for all heads, with a gradient of its own. A program
of a kernel has a block of queries (or of keys) of one clip, and goes over the keys (or queries)
block by block: softmax by running maximum and sum, computed again in the backward pass from the two
that are kept for each query. Arrays are indexed as they come, `[B, L, H d]`, without transposes.

On a GPU a program has one head, and the gradients of queries, of keys and of the bias are kernels
of their own, so that what nobody asks for is not computed. On a TPU a program has two heads, for
blocks are 128 wide there, and one kernel computes all gradients. Clips are the last axis of the
grid: a TPU loads a block of the bias once for all clips, and sums its gradient where it lies.

Sources: Dao et al. 2022, "FlashAttention" (arXiv 2205.14135), algorithms 1 and 4; Milakov and
Gimelshein 2018, "Online normalizer calculation for softmax" (arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from asdjax.models.layers import dear, random_words, survivors, survivors_scale

Platform = Literal["cuda", "tpu"]
PLATFORMS: dict[Platform, str] = {"cuda": "gpu", "tpu": "tpu"}  # and the backend of JAX
Arrays = dict[str, jax.Array]  # and references to them, in kernels
DEPTH = 64  # d, the only one that the kernels take
LOWEST = float(jnp.finfo(jnp.float32).min)  # the score of a padded key
WHOLE = 640  # tokens that a TPU takes as one block
MOST = 8192  # tokens; a TPU's fast memory holds no stripe of the bias of more
VMEM = 64 * 2**20  # bytes of a TPU's fast memory that a program may take


class How(NamedTuple):
    """How to compute it; fixed when a program is compiled."""

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


def refused(q: jax.Array, heads: int, platform: Platform) -> str:
    """Return what the kernels expect instead of queries `[B, L, H d]`; "" if they take them."""
    depth, tokens = q.shape[-1] // heads, q.shape[1]
    if depth != DEPTH:
        return f"heads of {DEPTH} channels, got {depth}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"bfloat16 or float32, got {q.dtype}"
    if platform == "tpu" and heads % 2:
        return f"an even number of heads, got {heads}"
    return f"at most {MOST} tokens, got {tokens}" if tokens > MOST else ""


@cache
def uncompiled(platform: Platform) -> str:
    """Return why this device has no kernels, of a small one compiled for it; "" if it has."""
    how, wide = How(platform, 2, 128), jax.ShapeDtypeStruct((1, 128, 2 * DEPTH), jnp.bfloat16)
    try:
        jax.jit(partial(_attend, how)).lower(dict.fromkeys("qkv", wide)).compile()
    except Exception as error:  # whatever the compiler of a device says
        return f"they do not compile here ({' '.join(str(error).split())[:200]})"
    return ""


def fused(
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    bias: jax.Array | None,
    gate: jax.Array | None,
    padding: jax.Array | None,
    key: jax.Array | None,
    how: How,
) -> jax.Array:
    """Return what `attention.attention` says, of queries that are not `refused`.

    Under a mesh that the compiler splits arrays over, each device attends to its own clips: XLA
    cannot split a kernel. Inside `jax.shard_map` they are split already.
    """
    batch, extra = len(qkv[0]), how.length - how.tokens
    if extra:
        qkv = [jnp.pad(x, ((0, 0), (0, extra), (0, 0))) for x in qkv]
        bias = None if bias is None else jnp.pad(bias, ((0, 0), (0, extra), (0, extra)))
        gate = None if gate is None else jnp.pad(gate, ((0, 0), (0, 0), (0, extra)))
        padding = None if padding is None else jnp.pad(padding, ((0, 0), (0, extra)))
    given = dict(zip("qkv", qkv, strict=True))
    if bias is not None:
        given["bias"] = bias
    if gate is not None:
        given["gate"] = gate.reshape(batch, -1, how.together, how.length)
    if padding is not None:
        given["padding"] = padding[:, None].astype(jnp.int32)
    if key is not None:  # its two words, and the number of the first clip
        given["words"] = jnp.append(random_words(key), jnp.uint32(0))
    return _over_devices(partial(_attend, how), given)[:, : how.tokens]


def _over_devices(attend: Callable[[Arrays], jax.Array], given: Arrays) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if "data" not in mesh.axis_names or "data" in mesh.manual_axes:
        return attend(given)
    rows, whole = jax.P("data"), jax.P()
    specs = {name: whole if name in ("bias", "words") else rows for name in given}

    def own(given):
        if "words" in given:  # dropout depends on a clip's place in the whole batch
            first = lax.axis_index("data") * len(given["q"])
            given |= {"words": given["words"].at[2].set(first.astype(jnp.uint32))}
        return attend(given)

    return jax.shard_map(own, mesh=mesh, in_specs=(specs,), out_specs=rows, check_vma=False)(given)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: How, given: Arrays) -> jax.Array:
    return _call(how, _forward, given)["out"]


def _attend_forward(how, given):
    made = {name: dear(x) for name, x in _call(how, _forward, given).items()}
    return made["out"], given | made


def _attend_backward(how, saved, slope):
    given = saved | {"slope": slope}
    if how.on_tpu:
        made = _call(how, _backward, given)
        for name in {"to_q", "to_gate"} & made.keys():  # summed over blocks of keys
            whole = made[name][0] if how.blocks == 1 else made[name].sum(0)
            made[name] = whole.astype(slope.dtype if name == "to_q" else jnp.float32)
    else:
        made = _call(how, _backward_queries, given)
        given["mean"] = made.pop("mean")
        del given["out"]
        made |= _call(how, _backward_keys, given)
        if "bias" in given:
            made |= _call(how, _backward_bias, given)
    names = saved.keys() - {"out", "stats"}
    return ({name: made.get(f"to_{name}") for name in names},)


_attend.defvjp(_attend_forward, _attend_backward)


# Calls: what a program sees of each array


@partial(jax.jit, static_argnums=(0, 1))  # traced once for all layers
def _call(how: How, kernel: Callable, given: Arrays) -> Arrays:
    """Return what `kernel(how, given, made)` makes."""
    makes, products = MADE[kernel]
    batch, scores = len(given["q"]), len(given["q"]) * how.heads * how.tokens**2
    ins = {name: _input(how, kernel, name, x.shape) for name, x in given.items()}
    made = {name: _output(how, name, given) for name in makes if _asked(name, given)}
    shapes = {name: shape for name, (shape, _) in made.items()}
    moved = sum(x.size * x.dtype.itemsize for x in [*given.values(), *shapes.values()])
    if how.on_tpu:
        last = "arbitrary" if kernel is _backward else "parallel"
        params = pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", last), vmem_limit_bytes=VMEM
        )
    else:
        params = plgpu.CompilerParams(num_warps=4, num_stages=2)
    return pl.pallas_call(
        partial(kernel, how),
        grid=(
            how.heads // how.together,
            how.blocks,
            how.blocks if kernel is _backward_bias else batch,
        ),
        in_specs=(ins,),
        out_specs={name: spec for name, (_, spec) in made.items()},
        out_shape=shapes,
        cost_estimate=pl.CostEstimate(
            flops=2 * products * DEPTH * scores, transcendentals=scores, bytes_accessed=moved
        ),
        compiler_params=params,
        interpret=how.interpret,
        name=f"attention{kernel.__name__}",
    )(given)


def _asked(name: str, given: Arrays) -> bool:
    return name.removeprefix("to_") in given or not name.startswith("to_")


def _input(how: How, kernel: Callable, name: str, shape: tuple[int, ...]) -> pl.BlockSpec:
    """Return what a program sees of an array: all tokens of its clip and heads.

    Of the bias a TPU's program sees the rows or columns of its block alone, for it is large.
    """
    group, length, block = how.together, how.length, how.block
    if name == "words":
        return pl.BlockSpec(memory_space=pltpu.SMEM) if how.on_tpu else pl.BlockSpec()
    if name == "bias":
        if not how.on_tpu:
            return pl.BlockSpec((1, length, length), lambda h, i, b: (h, 0, 0))
        if kernel is _forward:
            return pl.BlockSpec((group, block, length), lambda h, i, b: (h, i, 0))
        return pl.BlockSpec((group, length, block), lambda h, i, b: (h, 0, i))
    clips = shape[0] if kernel is _backward_bias else None
    clip = (lambda b: 0) if kernel is _backward_bias else (lambda b: b)
    if name == "padding":
        return pl.BlockSpec((clips, 1, length), lambda h, i, b: (clip(b), 0, 0))
    if len(shape) == 4:
        return pl.BlockSpec((clips, None, shape[2], length), lambda h, i, b: (clip(b), h, 0, 0))
    return pl.BlockSpec((clips, length, group * DEPTH), lambda h, i, b: (clip(b), 0, h))


def _output(how: How, name: str, given: Arrays) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
    """Return the shape of what is made, and what of it a program makes."""
    group, length, block, blocks = how.together, how.length, how.block, how.blocks
    q, numbers = given["q"], {"stats": 2 * group, "mean": group, "to_gate": group}

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    if name == "to_bias":
        if how.on_tpu:
            spec = pl.BlockSpec((group, length, block), lambda h, i, b: (h, 0, i))
        else:
            spec = pl.BlockSpec((1, block, block), lambda h, i, j: (h, i, j))
        return shape(how.heads, length, length), spec
    if name in numbers:
        rows = numbers[name]
        sizes = len(q), how.heads // group, rows, length
        if how.on_tpu and name == "to_gate":
            spec = pl.BlockSpec((None, None, None, rows, length), lambda h, i, b: (i, b, h, 0, 0))
            return shape(blocks, *sizes), spec
        return shape(*sizes), pl.BlockSpec((None, None, rows, block), lambda h, i, b: (b, h, 0, i))
    if how.on_tpu and name == "to_q":
        spec = pl.BlockSpec((None, None, length, group * DEPTH), lambda h, i, b: (i, b, 0, h))
        return shape(blocks, *q.shape, dtype=q.dtype if blocks == 1 else jnp.float32), spec
    spec = pl.BlockSpec((None, block, group * DEPTH), lambda h, i, b: (b, i, h))
    return shape(*q.shape, dtype=q.dtype), spec


# Kernels. `own` is the first query (or key) of a program, `at` that of a turn; `clip` is the number
# of the group of heads and of the clip.


def _forward(how: How, given: Arrays, made: Arrays) -> None:
    own, clip = pl.program_id(1) * how.block, (pl.program_id(0), pl.program_id(2))
    for head in range(how.together):
        q, gate = _wide(how, given["q"], head, own), _gate(how, given, head, own)

        def turn(j, state, head=head, q=q, gate=gate):
            top, total, sums = state
            at = j * how.block
            k, v = (_wide(how, given[name], head, at) for name in "kv")
            bias = _bias(how, given, head, own, at, "rows")
            scores = _scores(how, q, k, bias, gate, _hidden(how, given, at), at)
            new = jnp.maximum(top, scores.max(1, keepdims=True))
            weight, shrink = jnp.exp(scores - new), jnp.exp(top - new)
            total = shrink * total + weight.sum(1, keepdims=True)
            keep = _kept(how, given, clip, head, own, at)
            weight = weight if keep is None else jnp.where(keep, weight, 0.0)
            return new, total, shrink * sums + _product(weight.astype(v.dtype), v, (1, 0))

        one = jnp.zeros((how.block, 1), jnp.float32)
        start = one + LOWEST, one, jnp.zeros((how.block, DEPTH), jnp.float32)
        top, total, sums = _turns(how, turn, start)
        _keep_wide(how, made["out"], head, own, sums * (_scale(how) / total))
        _keep_numbers(how, made["stats"], 2 * head, own, top)
        _keep_numbers(how, made["stats"], 2 * head + 1, own, total)


def _backward(how: How, given: Arrays, made: Arrays) -> None:
    """All gradients, of a block of keys (TPU)."""
    own, clip = pl.program_id(1) * how.block, (pl.program_id(0), pl.program_id(2))
    if "to_bias" in made:

        @pl.when(clip[1] == 0)
        def _():
            made["to_bias"][...] = jnp.zeros_like(made["to_bias"])

    for head in range(how.together):
        k, v = (_wide(how, given[name], head, own) for name in "kv")
        hidden = _hidden(how, given, own)

        def turn(i, state, head=head, k=k, v=v, hidden=hidden):
            at = i * how.block
            to_k, to_v = state
            q, slope, out = (_wide(how, given[name], head, at) for name in ("q", "slope", "out"))
            mean = (slope.astype(jnp.float32) * out.astype(jnp.float32)).sum(1, keepdims=True)
            gate, bias = _gate(how, given, head, at), _bias(how, given, head, at, own, "columns")
            weight = _weight(how, given, head, at, _scores(how, q, k, bias, gate, hidden, own))
            keep = _kept(how, given, clip, head, at, own)
            to_scores = _slopes(how, weight, slope, v, mean, keep, hidden)
            if gate is not None:
                ref = made["to_gate"]
                _keep_numbers(how, ref, head, at, (to_scores * bias).sum(1, keepdims=True))
            if bias is not None:
                place = head, _stretch(how, at), slice(None)
                made["to_bias"][place] += to_scores if gate is None else gate * to_scores
            low = to_scores.astype(q.dtype)
            _keep_wide(how, made["to_q"], head, at, DEPTH**-0.5 * _product(low, k, (1, 0)))
            to_k += _product(low, q, (0, 0))
            to_v += _product(_dropped(how, weight, keep).astype(slope.dtype), slope, (0, 0))
            return to_k, to_v

        zero = jnp.zeros((how.block, DEPTH), jnp.float32)
        to_k, to_v = _turns(how, turn, (zero, zero))
        _keep_wide(how, made["to_k"], head, 0, DEPTH**-0.5 * to_k)
        _keep_wide(how, made["to_v"], head, 0, to_v)


def _backward_queries(how: How, given: Arrays, made: Arrays) -> None:
    """The gradients of a block of queries and of its gates (GPU)."""
    own, clip = pl.program_id(1) * how.block, (pl.program_id(0), pl.program_id(2))
    q, slope, out = (_wide(how, given[name], 0, own) for name in ("q", "slope", "out"))
    mean = (slope.astype(jnp.float32) * out.astype(jnp.float32)).sum(1, keepdims=True)
    gate = _gate(how, given, 0, own)

    def turn(j, state):
        to_q, to_gate = state
        at = j * how.block
        k, v = (_wide(how, given[name], 0, at) for name in "kv")
        bias, hidden = _bias(how, given, 0, own, at, "rows"), _hidden(how, given, at)
        weight = _weight(how, given, 0, own, _scores(how, q, k, bias, gate, hidden, at))
        keep = _kept(how, given, clip, 0, own, at)
        to_scores = _slopes(how, weight, slope, v, mean, keep, hidden)
        if gate is not None:
            to_gate += (to_scores * bias).sum(1, keepdims=True)
        return to_q + _product(to_scores.astype(k.dtype), k, (1, 0)), to_gate

    zero = jnp.zeros((how.block, DEPTH), jnp.float32)
    to_q, to_gate = _turns(how, turn, (zero, jnp.zeros_like(mean)))
    _keep_wide(how, made["to_q"], 0, own, DEPTH**-0.5 * to_q)
    _keep_numbers(how, made["mean"], 0, own, mean)
    if gate is not None:
        _keep_numbers(how, made["to_gate"], 0, own, to_gate)


def _backward_keys(how: How, given: Arrays, made: Arrays) -> None:
    """The gradients of a block of keys and values (GPU)."""
    own, clip = pl.program_id(1) * how.block, (pl.program_id(0), pl.program_id(2))
    k, v = (_wide(how, given[name], 0, own) for name in "kv")

    def turn(i, state):
        to_k, to_v = state
        weight, to_scores, keep, q, slope = _tile(how, given, k, v, clip, i * how.block, own)
        to_k += _product(to_scores.astype(q.dtype), q, (0, 0))
        to_v += _product(_dropped(how, weight, keep).astype(slope.dtype), slope, (0, 0))
        return to_k, to_v

    zero = jnp.zeros((how.block, DEPTH), jnp.float32)
    to_k, to_v = _turns(how, turn, (zero, zero))
    _keep_wide(how, made["to_k"], 0, own, DEPTH**-0.5 * to_k)
    _keep_wide(how, made["to_v"], 0, own, to_v)


def _backward_bias(how: How, given: Arrays, made: Arrays) -> None:
    """The gradient of a block of the bias, the sum over all clips (GPU)."""
    rows, columns = (pl.program_id(axis) * how.block for axis in (1, 2))
    head = pl.program_id(0)
    shared = {name: given[name] for name in ("bias", "words") if name in given}

    def turn(clip, total):
        own = shared | {n: OfClip(ref, clip) for n, ref in given.items() if n not in shared}
        clip = head, clip
        k, v = (_wide(how, own[name], 0, columns) for name in "kv")
        _, to_scores, *_ = _tile(how, own, k, v, clip, rows, columns)
        gate = _gate(how, own, 0, rows)
        return total + (to_scores if gate is None else gate * to_scores)

    zero = jnp.zeros((how.block, how.block), jnp.float32)
    total = lax.fori_loop(0, given["q"].shape[0], turn, zero)
    inside = _inside(how, rows) & _inside(how, columns).reshape(1, -1)
    plgpu.store(made["to_bias"], total[None], mask=inside[None])


def _tile(how, given, k, v, clip, rows, columns):
    """Return the weights of a block, the gradient of its scores, and what both came from."""
    q, slope = (_wide(how, given[name], 0, rows) for name in ("q", "slope"))
    gate, bias = _gate(how, given, 0, rows), _bias(how, given, 0, rows, columns, "columns")
    hidden, mean = _hidden(how, given, columns), _numbers(how, given["mean"], 0, rows)
    weight = _weight(how, given, 0, rows, _scores(how, q, k, bias, gate, hidden, columns))
    keep = _kept(how, given, clip, 0, rows, columns)
    return weight, _slopes(how, weight, slope, v, mean, keep, hidden), keep, q, slope


MADE = {  # by each kernel, and how many products of L x L x d for a head that takes
    _forward: (("out", "stats"), 2),
    _backward: (("to_q", "to_k", "to_v", "to_gate", "to_bias"), 5),
    _backward_queries: (("to_q", "to_gate", "mean"), 3),
    _backward_keys: (("to_k", "to_v"), 4),
    _backward_bias: (("to_bias",), 2),
}


# Arithmetic of a block: queries are rows, keys are columns


def _product(x, y, axes: tuple[int, int]):
    """Return the float32 product of two blocks, summed over these axes."""
    return lax.dot_general(
        x, y, ((axes[:1], axes[1:]), ((), ())), preferred_element_type=jnp.float32
    )


def _scores(how, q, k, bias, gate, hidden, columns):
    scores = DEPTH**-0.5 * _product(q, k, (1, 1))
    if bias is not None:
        scores += bias if gate is None else gate * bias
    if hidden is not None:
        scores = jnp.where(hidden, LOWEST, scores)
    if how.blocks * how.block > how.tokens:
        scores = jnp.where(_inside(how, columns).reshape(1, -1), scores, -jnp.inf)
    return scores


def _weight(how, given, head, rows, scores):
    """Return the softmax, from what was kept of it."""
    top, total = (_numbers(how, given["stats"], 2 * head + i, rows) for i in range(2))
    return jnp.exp(scores - top) / jnp.maximum(total, 1.0)  # a query beyond the end has 0


def _slopes(how, weight, slope, v, mean, keep, hidden):
    """Return the gradient of the scores; `mean` is the sum of slope * out for each query."""
    to_scores = weight * (_dropped(how, _product(slope, v, (1, 1)), keep) - mean)
    return to_scores if hidden is None else jnp.where(hidden, 0.0, to_scores)


def _dropped(how, x, keep):
    return x if keep is None else jnp.where(keep, _scale(how) * x, 0.0)


def _scale(how):
    return survivors_scale(how.rate) if how.rate else 1.0


def _kept(how, given, clip, head, rows, columns):
    """Return which weights of a block dropout keeps; None without."""
    if not how.rate:
        return None
    words = given["words"]
    group, clip = (number.astype(jnp.uint32) for number in clip)
    head, clip = group * how.together + head, clip + words[2]
    rows = rows + lax.broadcasted_iota(jnp.int32, (how.block, 1), 0)
    columns = columns + lax.broadcasted_iota(jnp.int32, (1, how.block), 1)
    rows = (clip * how.heads + head) * how.tokens + rows.astype(jnp.uint32)
    return survivors(how.rate, (words[0], words[1]), rows, columns.astype(jnp.uint32))


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


def _wide(how, ref, head, at):
    """Return a block of `[L, g d]` for a head, `[block, d]`."""
    if how.on_tpu:
        return ref[_stretch(how, at), head * DEPTH : (head + 1) * DEPTH]
    return _load(ref, pl.ds(at, how.block), slice(None), mask=_inside(how, at))


def _keep_wide(how, ref, head, at, value):
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


def _keep_numbers(how, ref, row, at, value):
    if not how.on_tpu:
        inside = _inside(how, at).reshape(1, -1)
        plgpu.store(ref.at[pl.ds(row, 1)], value.reshape(1, -1), mask=inside)
    elif ref.shape[1] == how.block:
        ref[row : row + 1] = value.T
    else:
        ref[row : row + 1, pl.ds(at, how.block)] = value.T


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
    inside = _inside(how, rows) & _inside(how, columns).reshape(1, -1)
    return _load(given["bias"], *place, mask=inside[None])[0]
