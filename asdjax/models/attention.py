"""Multi-head attention with an optional gated bias, shared by the transformer backbones.

Scores and softmax are float32 whatever the inputs are. On a CPU the heads run one after the other
so that a head's scores stay in the cache: 8 clips of 496 tokens with 12 heads and a gated bias took
54 ms on two cores, against 132 ms for all heads at once, 162 ms for `jax.nn.dot_product_attention`
and 73 ms for PyTorch's fused kernel; the gradient gains as much. The batch axis is never looped
over, so a batch sharded over devices stays sharded.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from asdjax.models.dropout import kept, scale_of
from asdjax.types import InputError

Implementation = Literal["auto", "xla", "cudnn"]


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
        dropped: rate of dropout on the weights after the softmax, drawn from `key`.
        implementation: "auto" is what follows here; "xla" and "cudnn" are those of
            `jax.nn.dot_product_attention`, without dropout. cuDNN is a fused kernel of NVIDIA
            cards for bfloat16; it saves little with a gated bias, which has to be made whole.

    Returns:
        `[B, L, D]` in the dtype of `v`.
    """
    if gate is not None and bias is None:
        raise ValueError("attention: gate multiplies bias, but no bias was given")
    if implementation != "auto":
        if key is not None:
            raise InputError(
                f"attention {implementation!r} has no dropout, which this checkpoint's rates ask "
                'for; use attention "auto" or set dropout to False'
            )
        return _library(q, k, v, bias, gate, padding, heads, implementation)
    compute = partial(_compute, heads=heads, dropped=dropped)
    return lax.platform_dependent(
        *(q, k, v, bias, gate, padding, key),
        cpu=partial(compute, at_once=False),
        default=partial(compute, at_once=True),
    )


def _library(q, k, v, bias, gate, padding, heads, implementation):
    """Attend with `jax.nn.dot_product_attention`, whose arrays are `[B, L, H, d]`."""
    batch, tokens, _ = q.shape
    whole = batch, heads, tokens, tokens
    if bias is not None:
        bias = bias[None] if gate is None else gate[..., None] * bias[None]
        bias = jnp.broadcast_to(bias, whole).astype(q.dtype)
    seen = None if padding is None else jnp.broadcast_to(~padding[:, None, None], whole)
    q, k, v = (x.reshape(batch, tokens, heads, -1) for x in (q, k, v))
    y = jax.nn.dot_product_attention(q, k, v, bias, seen, implementation=implementation)
    return y.reshape(batch, tokens, -1)


def _compute(q, k, v, bias, gate, padding, key=None, *, heads, dropped=0.0, at_once):
    scale = (q.shape[-1] // heads) ** -0.5
    by_head = None if gate is None else gate.swapaxes(0, 1)
    keys = None if key is None else jax.random.split(key, heads)
    return _attend(heads, dropped, at_once, q * scale, k, v, bias, by_head, padding, keys)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(heads, dropped, at_once, q, k, v, bias, gate, padding, keys):
    """Attend with heads at once or one after the other.

    The gradient is written out: it needs fewer passes over the scores than the derived one, keeps
    one array of their size, in the dtype of `v`, and multiplies in that dtype.

    Args:
        q, k, v, padding: as in `attention`, q scaled.
        bias, gate, keys: `[H, L, L]`, `[H, B, L]`, `[H]`; or None.
    """
    one = partial(_forward, dropped, padding)
    return _joined(_each(lambda *x: one(*x)[0], heads, at_once, (q, k, v), (bias, gate, keys)))


def _attend_forward(heads, dropped, at_once, q, k, v, bias, gate, padding, keys):
    one = partial(_forward, dropped, padding)
    out, weight, keep = _each(one, heads, at_once, (q, k, v), (bias, gate, keys))
    out = _joined(out)
    return out, (padding, (q, k, v, out), (bias, gate, weight, keep))


def _attend_backward(heads, dropped, at_once, saved, slope):
    padding, wide, tall = saved
    one = partial(_backward, dropped, padding)
    *to_qkv, to_bias, to_gate = _each(one, heads, at_once, (*wide, slope), tall)
    return *map(_joined, to_qkv), to_bias, to_gate, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _each(function, heads, at_once, wide, tall):
    """Return what `function` gives for each head, stacked.

    Args:
        wide: arrays `[B, L, D]`, of which a head sees `[B, L, d]`.
        tall: arrays whose first axis is the head; or None.
    """

    def cut(x, head):
        width = x.shape[-1] // heads
        return lax.dynamic_slice_in_dim(x, head * width, width, 2)

    if at_once:
        parts = [x.reshape(*x.shape[:2], heads, -1).transpose(2, 0, 1, 3) for x in wide]
        return jax.vmap(function)(*parts, *tall)
    return lax.map(
        lambda part: function(*(cut(x, part[0]) for x in wide), *part[1]),
        (jnp.arange(heads), tall),
    )


def _joined(x):
    """Return `[B, L, D]` from `[H, B, L, d]`."""
    return x.transpose(1, 2, 0, 3).reshape(*x.shape[1:3], -1)


def _forward(dropped, padding, q, k, v, bias, gate, key):
    """Return the output of a head `[B, L, d]`, its weights `[B, L, L]` and which are kept.

    q, k and v are `[B, L, d]`, `bias [L, L]`, `gate [B, L]`, `padding [B, L]`.
    """
    scores = jnp.einsum("bid,bjd->bij", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + (bias[None] if gate is None else gate[..., None] * bias[None])
    if padding is not None:
        scores = jnp.where(padding[:, None], jnp.finfo(jnp.float32).min, scores)
    weight = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    keep = None if key is None else kept(weight.shape, dropped, key)
    return jnp.matmul(_dropped(weight, keep, dropped), v), weight, keep


def _backward(dropped, padding, q, k, v, out, slope, bias, gate, weight, keep):
    """Return the gradients of q, k, v, bias and gate of a head from that of its output."""
    to_v = jnp.einsum("bij,bid->bjd", _dropped(weight, keep, dropped), slope)
    to_weight = jnp.einsum("bid,bjd->bij", slope, v, preferred_element_type=jnp.float32)
    # The sum over j of weight * to_weight is the sum over channels of slope * out.
    mean = (slope.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    to_scores = weight * (_dropped(to_weight, keep, dropped) - mean)
    if padding is not None:
        to_scores = jnp.where(padding[:, None], 0.0, to_scores)
    to_bias = to_gate = None
    if bias is not None:
        to_bias = (to_scores if gate is None else gate[..., None] * to_scores).sum(0)
        to_gate = None if gate is None else (to_scores * bias[None]).sum(-1)
    to_scores = to_scores.astype(q.dtype)
    to_q = jnp.matmul(to_scores, k)
    to_k = jnp.einsum("bij,bid->bjd", to_scores, q)
    return to_q, to_k, to_v, to_bias, to_gate


def _dropped(x, keep, rate):
    return x if keep is None else jnp.where(keep, x * scale_of(rate), 0.0).astype(x.dtype)
