"""Multi-head attention with an optional gated bias, and the self-attention layer of the backbones.

`attend` is attention of one head, as defined. The rest computes it for every head, faster: see
`_attend_heads`, and `fused.py` for accelerators. Scores and softmax are float32 whatever the inputs
are. The batch axis is never looped over, so a batch sharded over devices stays sharded.
"""

from __future__ import annotations

import warnings
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from asdjax.devices import first_row
from asdjax.models.fused import PLATFORMS, Fused, Platform, fused, refused, uncompiled
from asdjax.models.layers import Dropout, along, dear, keep_only, linear, random_words, survivors
from asdjax.types import InputError

Implementation = Literal["auto", "plain", "cudnn"]


class Head(NamedTuple):
    """What attention of one head is computed from."""

    q: jax.Array  # [B, L, d], divided by sqrt(d)
    k: jax.Array  # [B, L, d]
    v: jax.Array  # [B, L, d]
    bias: jax.Array | None = None  # [L, L] float32: query, key
    gate: jax.Array | None = None  # [B, L] float32: multiplies the bias of each query
    padding: jax.Array | None = None  # [B, L] bool, True = a key nobody attends to
    keep: jax.Array | None = None  # [B, L, L] bool, False = a weight that dropout sets to 0


def attend(
    head: Head, rate: float = 0.0, by_halves: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return softmax(q k^T + gate * bias) v, `[B, L, d]`, and the softmax in two parts.

    These are the exponentials `[B, L, L]` in the dtype of `v`, and their sums `[B, L, 1]` float32:
    to divide by them after the product with `v` takes one pass less over the exponentials, and as
    one more column of that product the sums take none.

    Args:
        rate: of the dropout that `head.keep` was drawn for.
        by_halves: how the largest score of a query is found; for CPUs.
    """
    scores = jnp.einsum("bid,bjd->bij", head.q, head.k, preferred_element_type=jnp.float32)
    if head.bias is not None:
        scores = scores + _gated(head.bias, head.gate)
    if head.padding is not None:
        scores = jnp.where(head.padding[:, None], jnp.finfo(jnp.float32).min, scores)
    largest = (_largest_by_halves if by_halves else _largest)(lax.stop_gradient(scores))
    weight = jnp.exp(scores - largest).astype(head.v.dtype)
    if head.keep is None:
        ones = jnp.ones((*head.v.shape[:-1], 1), head.v.dtype)
        out = _product(weight, jnp.concatenate([head.v, ones], -1))
        out, total = out[..., :-1], out[..., -1:]
    else:
        out = _product(_dropped(weight, head.keep, rate), head.v)
        total = weight.astype(jnp.float32).sum(-1, keepdims=True)
    return (out / total).astype(head.v.dtype), weight, total


def _product(weight, values):
    return jnp.matmul(weight, values, preferred_element_type=jnp.float32)


def _largest(scores: jax.Array) -> jax.Array:
    return scores.max(-1, keepdims=True)


def _largest_by_halves(scores: jax.Array) -> jax.Array:
    """Return the maximum of the last axis, of halves and of their halves.

    On a CPU, XLA takes the maximum of rows one value at a time where the fusion that
    `arithmetic.py` switches off does not do it.
    """
    while (size := scores.shape[-1]) > 32:
        half = -(-size // 2)  # the middle of an odd size is in both
        scores = jnp.maximum(scores[..., :half], scores[..., size - half :])
    return _largest(scores)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    heads: int,
    bias: jax.Array | None = None,
    gate: jax.Array | None = None,
    padding: jax.Array | None = None,
    dropped: float = 0.0,
    key: jax.Array | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Return softmax(q k^T / sqrt(d) + gate * bias) v for each head, heads concatenated.

    Args:
        q, k, v: `[B, L, D]`; head h holds channels `h d .. h d + d - 1`, d = D / heads.
        bias: `[H, L, L]` float32, added to the scores of every clip; row = query, column = key.
        gate: `[B, H, L]` float32, multiplies the bias of each query; needs `bias`.
        padding: `[B, L]` bool, True = a key nobody attends to. Padded queries are computed like
            any other; in a clip that is all padding every key counts alike (not nan).
        dropped: rate of dropout on the weights after the softmax, drawn from `key`: the same on
            every device. Without a key nothing is dropped.
        implementation: "auto" takes the kernels of `fused.py` on NVIDIA GPUs and TPUs, and "plain"
            on CPUs and for what the kernels do not take; "plain" is this file's everywhere; "cudnn"
            is that of `jax.nn.dot_product_attention`, a fused kernel of NVIDIA cards for bfloat16,
            without dropout. It saves little with a gated bias, which has to be made whole.

    Returns:
        `[B, L, D]` in the dtype of `v`.
    """
    if gate is not None and bias is None:
        raise ValueError("attention: gate multiplies bias, but no bias was given")
    if implementation == "cudnn":
        if key is not None:
            _refuse_dropout()
        bias = None if bias is None else _gated(bias, gate)
        return _library((q, k, v), bias, padding, heads)
    given, dropped = ((q, k, v), bias, gate, padding, key), 0.0 if key is None else dropped
    loop, at_once = (partial(_plain, How(heads, dropped, way)) for way in (False, True))
    kernels = {
        platform: partial(fused, how=Fused(platform, heads, q.shape[1], dropped))
        for platform in PLATFORMS
        if implementation == "auto" and _takes(platform, q, heads)
    }
    return lax.platform_dependent(*given, cpu=loop, **kernels, default=at_once)


def _takes(platform: Platform, q: jax.Array, heads: int) -> bool:
    """Return whether a platform has kernels for queries; if it is this one and not, say so once."""
    reason = _missing(platform, q, heads)
    if reason and PLATFORMS[platform] == jax.default_backend():
        _note(f"attention is computed without the fused kernels, which is slower: {reason}")
    return not reason


def _missing(platform, q, heads) -> str:
    """Return why a platform has no kernels for queries; "" if it has."""
    if reason := refused(q, heads, platform):
        return f"the kernels take {reason}"
    return uncompiled(platform) if PLATFORMS[platform] == jax.default_backend() else ""


@cache
def _note(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def _refuse_dropout():
    raise InputError(
        "attention 'cudnn' has no dropout, which this checkpoint's rates ask for; use attention "
        '"auto" or set dropout to False'
    )


def _library(qkv, bias, padding, heads):
    """Attend with `jax.nn.dot_product_attention`; its arrays are `[B, L, H, d]`.

    cuDNN has gradients of even numbers of tokens alone (jax 0.10.2), and EAT has 513: one more is
    added that nobody attends to.
    """
    batch, tokens, _ = qkv[0].shape
    odd = tokens % 2
    length = tokens + odd
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, odd), (0, 0))).reshape(batch, length, heads, -1) for x in qkv
    )
    whole, there = (batch, heads, length, length), None
    if odd:
        there = jnp.full(batch, tokens, jnp.int32)
        bias = None if bias is None else jnp.pad(bias, ((0, 0), (0, 0), (0, 1), (0, 1)))
        padding = None if padding is None else jnp.pad(padding, ((0, 0), (0, 1)))
    bias = None if bias is None else jnp.broadcast_to(bias, whole).astype(q.dtype)
    mask = None if padding is None else jnp.broadcast_to(~padding[:, None, None], whole)
    y = jax.nn.dot_product_attention(
        q, k, v, bias, mask, key_value_seq_lengths=there, implementation="cudnn"
    )
    return y[:, :tokens].reshape(batch, tokens, -1)


def attention_bytes(
    tokens: int, heads: int, width: int, biased: bool, implementation: Implementation
) -> int:
    """Return the memory of one clip that grows with the square of its tokens, at most.

    It is that of scores, which the kernels of GPUs and TPUs never write, and of a bias. This is
    kept twice, with what its positions are counted by; cuDNN has it with the gate in it, too.
    """
    here, q = jax.default_backend(), jax.ShapeDtypeStruct((1, tokens, width), jnp.bfloat16)
    if implementation == "cudnn":
        scores = heads if biased else 0
    elif implementation == "auto" and any(
        here == backend and not _missing(platform, q, heads)
        for platform, backend in PLATFORMS.items()
    ):
        scores = 0
    else:
        scores = 3 * (1 if here == "cpu" else heads)
    return 4 * tokens**2 * (scores + (2 * heads + 4 if biased else 0))


class How(NamedTuple):
    """How to compute all heads; fixed when a program is compiled."""

    heads: int
    rate: float  # of dropout
    at_once: bool  # all heads in one product, or one head after the other


def _plain(how: How, qkv, bias, gate, padding, key):
    q, k, v = qkv
    words = None if key is None else random_words(key)
    by_head = bias, None if gate is None else gate.swapaxes(0, 1), jnp.arange(how.heads)
    return _attend_heads(
        how, (q * (q.shape[-1] // how.heads) ** -0.5, k, v), by_head, padding, words
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_heads(how: How, qkv, by_head, padding, words):
    """Return what `attend` gives for each head, heads concatenated.

    On a CPU the heads are computed one after the other, so that a head's scores stay in the cache:
    8 clips of 496 tokens with 12 heads and a gated bias took 54 ms on two cores, against 132 ms for
    all heads at once, 162 ms for `jax.nn.dot_product_attention` and 73 ms for PyTorch's fused
    kernel; the gradient gains as much. The gradient is written out: it needs fewer passes over the
    scores than the derived one, keeps one array of their size, in the dtype of `v`, and multiplies
    in that dtype.

    Args:
        qkv: q (scaled), k and v, `[B, L, D]`.
        by_head: bias `[H, L, L]` or None, gate `[H, B, L]` or None, and numbers of heads `[H]`.
        padding: `[B, L]` or None.
        words: `[2]`, of the random key of dropout; or None.
    """

    def one(qkv, extras):
        return attend(_draw(how, padding, words, qkv, extras), how.rate, not how.at_once)[0]

    return _concatenate(_each_head(one, how, qkv, by_head))


def _attend_heads_forward(how, qkv, by_head, padding, words):
    def one(qkv, extras):
        head = _draw(how, padding, words, qkv, extras)
        return *attend(head, how.rate, not how.at_once), head.keep

    out, weight, total, keep = _each_head(one, how, qkv, by_head)
    out = _concatenate(out)
    return out, (qkv, by_head[:2], padding, out, weight, total, keep)


def _attend_heads_backward(how, saved, slope):
    qkv, (bias, gate), padding, out, weight, total, keep = saved

    def one(wide, by_head):
        *qkv, out, slope = wide
        bias, gate, weight, total, keep = by_head
        return _gradient(Head(*qkv, bias, gate, padding, keep), how.rate, weight, total, out, slope)

    wide, by_head = (*qkv, out, slope), (bias, gate, weight, total, keep)
    *to_qkv, to_bias, to_gate = _each_head(one, how, wide, by_head)
    return tuple(map(_concatenate, to_qkv)), (to_bias, to_gate, None), None, None


_attend_heads.defvjp(_attend_heads_forward, _attend_heads_backward)


def _draw(how, padding, words, qkv, extras) -> Head:
    """Return a head with what its dropout keeps; `extras` are its bias, gate and number."""
    bias, gate, head = extras
    keep = None if words is None else kept_weights(how, words, head, qkv[0].shape)
    return Head(*qkv, bias, gate, padding, keep)


def kept_weights(how: How, words: jax.Array, head: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return `[B, L, L]` bool: which weights of a head dropout keeps, as `fused.py` has it."""
    batch, tokens, _ = shape
    clip, query, key = (
        lax.broadcasted_iota(jnp.uint32, sizes, axis)
        for axis, sizes in enumerate([(batch, 1, 1), (1, tokens, 1), (1, 1, tokens)])
    )
    clip = clip + first_row(batch)
    rows = (clip * how.heads + head.astype(jnp.uint32)) * tokens + query
    return survivors(how.rate, words, rows, key)


def _gradient(head: Head, rate, weight, total, out, slope):
    """Return the gradients of q, k, v, bias and gate.

    Args:
        weight, total, out: the softmax in two parts and the output, as `attend` gives them.
        slope: the gradient of the output, `[B, L, d]`.
    """
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
    share = slope.astype(jnp.float32) / total
    # The sum over j of softmax * gradient is the sum over channels of slope * out.
    mean = (share * out.astype(jnp.float32)).sum(-1, keepdims=True)
    share = share.astype(slope.dtype)
    to_v = einsum("bij,bid->bjd", _dropped(weight, head.keep, rate), share)
    to_weight = einsum("bid,bjd->bij", share, head.v)
    to_scores = weight * (_dropped(to_weight, head.keep, rate) - mean)
    if head.padding is not None:
        to_scores = jnp.where(head.padding[:, None], 0.0, to_scores)
    to_bias = to_gate = None
    if head.bias is not None:
        to_bias = (to_scores if head.gate is None else head.gate[..., None] * to_scores).sum(0)
        to_gate = None if head.gate is None else (to_scores * head.bias[None]).sum(-1)
    to_scores = to_scores.astype(head.q.dtype)
    to_q = einsum("bij,bjd->bid", to_scores, head.k)
    to_k = einsum("bij,bid->bjd", to_scores, head.q)
    to_qkv = (x.astype(head.q.dtype) for x in (to_q, to_k, to_v))
    return *to_qkv, to_bias, to_gate


def _each_head(function, how, wide, by_head):
    """Return what `function(wide, by_head)` gives for each head, stacked.

    Args:
        wide: arrays `[B, L, D]`, of which a head gets `[B, L, d]`.
        by_head: arrays whose first axis is the head; or None.
    """
    if how.at_once:
        wide = [x.reshape(*x.shape[:2], how.heads, -1).transpose(2, 0, 1, 3) for x in wide]
        return jax.vmap(function)(wide, by_head)

    def one(part):
        head, by_head = part
        width = wide[0].shape[-1] // how.heads
        return function(
            [lax.dynamic_slice_in_dim(x, head * width, width, 2) for x in wide], by_head
        )

    return lax.map(one, (jnp.arange(how.heads), by_head))


def _concatenate(x):
    """Return `[B, L, D]` from `[H, B, L, d]`."""
    return x.transpose(1, 2, 0, 3).reshape(*x.shape[1:3], -1)


def _gated(bias, gate):
    """Return gate * bias, with an axis of clips in front: of length 1 without a gate."""
    return bias[None] if gate is None else gate[..., None] * bias[None]


def _dropped(x, keep, rate):
    return x if keep is None else keep_only(x, keep, rate)


class SelfAttention(nnx.Module):
    """Self-attention with separate projections, so that adapters can choose among them.

    Args:
        width, heads: D and H.
        gate: what the gate that each query scales the bias by is computed from, by head: the
            projected query (BEATs) or the input (WavLM); None: no gate.
        dropped: rate of dropout on the weights after the softmax.
        gains: Xavier gains of q and k, and of v and out; None starts them N(0, 0.02).
        implementation: as of `attention`.
        dtype: of matrix products.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        gate: Literal["query", "input"] | None = None,
        dropped: float,
        gains: tuple[float | None, float | None] = (None, None),
        implementation: Implementation = "auto",
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        if dropped and implementation == "cudnn":
            _refuse_dropout()
        project = partial(linear, width, width, dtype=dtype, rngs=rngs)
        self.q, self.k = project(gain=gains[0]), project(gain=gains[0])
        self.v, self.out = project(gain=gains[1]), project(gain=gains[1])
        self.dropout = Dropout(dropped)
        if gate:
            self.gate = linear(width // heads, 8, dtype=dtype, rngs=rngs)
            self.gate_scale = nnx.Param(jnp.ones(heads))
        self.heads, self.gate_of, self.implementation = heads, gate, implementation

    def __call__(
        self, x: jax.Array, padding: jax.Array | None, bias: jax.Array | None = None
    ) -> jax.Array:
        """Return `[B, L, D]` of the same; padding and bias as of `attention`."""
        q, k, v = (dear(project(x)) for project in (self.q, self.k, self.v))
        gate = None
        if self.gate_of and bias is not None:
            gate = self._bias_gate(q if self.gate_of == "query" else x)
        y = attention(
            q,
            k,
            v,
            heads=self.heads,
            bias=bias,
            gate=gate,
            padding=padding,
            dropped=self.dropout.rate,
            key=self.dropout.drawn(),
            implementation=self.implementation,
        )
        return dear(self.out(y))

    def _bias_gate(self, q):
        """Return `[B, H, L]`, around 2, from unscaled queries (or what else gates) `[B, L, D]`.

        The reference sums four channels of `gate` each. They are summed first, and the two products
        with the queries are written as sums: their gradient joins that of the queries in one pass.
        """
        by_head = q.reshape(*q.shape[:2], self.heads, -1).astype(jnp.float32)
        kernel, bias = (
            x.reshape(*x.shape[:-1], 2, 4).sum(-1)
            for x in (self.gate.whole_kernel(), self.gate.bias[...])
        )
        logits = ((by_head * along(kernel[:, i], by_head)).sum(-1) + bias[i] for i in range(2))
        update, reset = (jax.nn.sigmoid(x.swapaxes(1, 2)) for x in logits)
        return update * (reset * self.gate_scale[...][None, :, None] - 1.0) + 2.0
