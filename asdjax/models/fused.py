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

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from asdjax.devices import first_row
from asdjax.models.fused_kernels import (
    DEPTH,
    MADE,
    Arrays,
    Fused,
    Platform,
    backward,
    backward_bias,
    backward_keys,
    backward_queries,
    forward,
)
from asdjax.models.layers import dear, random_words

PLATFORMS: dict[Platform, str] = {"cuda": "gpu", "tpu": "tpu"}  # and the backend of JAX
MOST = 8192  # tokens in bfloat16, half as many in float32: what a TPU's fast memory can hold
VMEM = 64 * 2**20  # bytes of a TPU's fast memory that a program may take


def refused(q: jax.Array, heads: int, platform: Platform) -> str:
    """Return what the kernels expect instead of queries `[B, L, H d]`; "" if they take them."""
    depth, tokens = q.shape[-1] // heads, q.shape[1]
    if depth != DEPTH:
        return f"heads of {DEPTH} channels, got {depth}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"bfloat16 or float32, got {q.dtype}"
    if platform == "tpu" and heads % 2:
        return f"an even number of heads, got {heads}"
    most = MOST if q.dtype == jnp.bfloat16 else MOST // 2
    return f"at most {most} tokens of {q.dtype}, got {tokens}" if tokens > most else ""


@cache
def uncompiled(platform: Platform) -> str:
    """Return why this device has no kernels, of small ones compiled for it; "" if it has."""
    how, shape = Fused(platform, 2, 128, 0.1), jax.ShapeDtypeStruct
    given = dict.fromkeys("qkv", shape((1, 128, 2 * DEPTH), jnp.bfloat16))
    given["bias"] = shape((2, 128, 128), jnp.float32)
    fixed = shape((1, 128), bool), jax.eval_shape(lambda: jax.random.key(0))
    gate = shape((1, 2, 128), jnp.float32)

    def loss(given, gate, padding, key):
        qkv = tuple(given[name] for name in "qkv")
        return fused(qkv, given["bias"], gate, padding, key, how).astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(loss, (0, 1))).lower(given, gate, *fixed).compile()
    except Exception as error:  # whatever the compiler of a device says
        return f"they do not compile here ({' '.join(str(error).split())[:200]})"
    return ""


def fused(
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    bias: jax.Array | None,
    gate: jax.Array | None,
    padding: jax.Array | None,
    key: jax.Array | None,
    how: Fused,
) -> jax.Array:
    """Return what `attention.attention` says, of queries that are not `refused`.

    XLA cannot split a kernel: where the batch is spread over devices, call it `by_device`.
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
        given["words"] = jnp.append(random_words(key), first_row(batch))
    return _attend(how, given)[:, : how.tokens]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: Fused, given: Arrays) -> jax.Array:
    return _call(how, forward, given)["out"]


def _attend_forward(how, given):
    made = {name: dear(x) for name, x in _call(how, forward, given).items()}
    return made["out"], given | made


def _attend_backward(how, saved, slope):
    given = saved | {"slope": slope}
    if how.on_tpu:
        made = _call(how, backward, given)
        for name in {"to_q", "to_gate"} & made.keys():  # summed over blocks of keys
            whole = made[name][0] if how.blocks == 1 else made[name].sum(0)
            made[name] = whole.astype(slope.dtype if name == "to_q" else jnp.float32)
    else:
        made = _call(how, backward_queries, given)
        given["mean"] = made.pop("mean")
        del given["out"]
        made |= _call(how, backward_keys, given)
        if "bias" in given:
            made |= _call(how, backward_bias, given)
    names = saved.keys() - {"out", "stats"}
    return ({name: made.get(f"to_{name}") for name in names},)


_attend.defvjp(_attend_forward, _attend_backward)


# Calls: what a program sees of each array


@partial(jax.jit, static_argnums=(0, 1))  # traced once for all layers
def _call(how: Fused, kernel: Callable, given: Arrays) -> Arrays:
    """Return what `kernel(how, given, made)` makes."""
    makes, products = MADE[kernel]
    batch, scores = len(given["q"]), len(given["q"]) * how.heads * how.tokens**2
    ins = {name: _input(how, kernel, name, x.shape) for name, x in given.items()}
    made = {name: _output(how, name, given) for name in makes if _asked(name, given)}
    shapes = {name: shape for name, (shape, _) in made.items()}
    moved = sum(x.size * x.dtype.itemsize for x in [*given.values(), *shapes.values()])
    if how.on_tpu:
        last = "arbitrary" if kernel is backward else "parallel"
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
            how.blocks if kernel is backward_bias else batch,
        ),
        in_specs=(ins,),
        out_specs={name: spec for name, (_, spec) in made.items()},
        out_shape=shapes,
        cost_estimate=pl.CostEstimate(
            flops=2 * products * DEPTH * scores, transcendentals=scores, bytes_accessed=moved
        ),
        compiler_params=params,
        interpret=how.interpret,
        name=f"attention_{kernel.__name__}",
    )(given)


def _asked(name: str, given: Arrays) -> bool:
    return name.removeprefix("to_") in given or not name.startswith("to_")


def _input(how: Fused, kernel: Callable, name: str, shape: tuple[int, ...]) -> pl.BlockSpec:
    """Return what a program sees of an array: all tokens of its clip and heads.

    Of the bias a TPU's program sees the rows or columns of its block alone, for it is large.
    """
    group, length, block = how.together, how.length, how.block
    if name == "words":
        return pl.BlockSpec(memory_space=pltpu.SMEM) if how.on_tpu else pl.BlockSpec()
    if name == "bias":
        if not how.on_tpu:
            return pl.BlockSpec((1, length, length), lambda h, i, b: (h, 0, 0))
        if kernel is forward:
            return pl.BlockSpec((group, block, length), lambda h, i, b: (h, i, 0))
        return pl.BlockSpec((group, length, block), lambda h, i, b: (h, 0, i))
    clips = shape[0] if kernel is backward_bias else None
    clip = (lambda b: 0) if kernel is backward_bias else (lambda b: b)
    if name == "padding":
        return pl.BlockSpec((clips, 1, length), lambda h, i, b: (clip(b), 0, 0))
    if len(shape) == 4:
        return pl.BlockSpec((clips, None, shape[2], length), lambda h, i, b: (clip(b), h, 0, 0))
    return pl.BlockSpec((clips, length, group * DEPTH), lambda h, i, b: (clip(b), 0, h))


def _output(how: Fused, name: str, given: Arrays) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
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
