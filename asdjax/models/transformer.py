"""The transformer of BEATs and of the speech models.

Positions come from a grouped convolution over the tokens and, in some models, from a relative bias
of the attention that each query gates.

Sources: Baevski et al. 2020, "wav2vec 2.0" (arXiv 2006.11477), section 2, for the convolution; Chi
et al. 2021, "XLM-E" (arXiv 2106.16138), for the gate, as WavLM (arXiv 2110.13900, equations 4 to 6)
and BEATs (arXiv 2212.09058) have it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from asdjax.models import layers
from asdjax.models.attention import Implementation, SelfAttention


def _gated(x):
    value, gate = jnp.split(x, 2, axis=-1)
    return value * jax.nn.silu(gate)


ACTIVATIONS = {
    "gelu": layers.gelu,
    "gelu_accurate": jax.nn.gelu,
    "gelu_fast": jax.nn.gelu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
    "glu": _gated,  # fc1 is then twice as wide
}


@dataclass(frozen=True)
class Transformer:
    """The structure of an encoder.

    Args:
        width, hidden, heads, count: D, width of the feed-forward layers, H, number of layers.
        activation: a name of `ACTIVATIONS`.
        norm_first: norms before attention and feed-forward, and one behind the last layer; else
            after their residual sums, and one before the first layer.
        deep_norm: DeepNorm (arXiv 2203.00555): Xavier gains at the start, and a factor of the
            residual branch.
        epsilon: of the norms.
        taps, groups: of the convolution over tokens.
        buckets, max_distance: of the relative bias; no buckets: no bias.
        gate: what gates the bias of each query: the projected query, the input of the attention,
            or nothing.
        dropout: of the input of the first layer, and behind attention and feed-forward.
        attention_dropout: of attention weights.
        activation_dropout: within the feed-forward layers.
        layer_drop: probability that a layer is skipped.
        first_stays: the first layer is never skipped.
    """

    width: int
    hidden: int
    heads: int
    count: int
    activation: str = "gelu"
    norm_first: bool = False
    deep_norm: bool = False
    epsilon: float = 1e-5
    taps: int = 128
    groups: int = 16
    buckets: int = 0
    max_distance: int = 800
    gate: Literal["query", "input"] | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    layer_drop: float = 0.0
    first_stays: bool = False


class Encoder(nnx.Module):
    """What a model with this transformer inherits: from projected tokens to final ones.

    Args:
        shape: the structure.
        dtype: of matrix products, convolutions and what is between them; parameters, sums of
            products, and the statistics of norms and softmax are float32.
        remat: what of each layer is computed again for the gradient instead of being kept.
        attention: implementation of `asdjax.models.attention.attention`.
        gradient_decay: factor of the gradient from each layer to the one before it.
    """

    def __init__(
        self,
        shape: Transformer,
        *,
        dtype: Any,
        remat: layers.Remat,
        attention: Implementation,
        gradient_decay: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.shape, self.remat, self.gradient_decay = shape, remat, gradient_decay
        self.pos_conv = PositionConv(shape, dtype=dtype, rngs=rngs)
        self.norm = layers.LayerNorm(shape.width, shape.epsilon, dtype=dtype)
        self.dropout = layers.Dropout(shape.dropout)
        if shape.buckets:
            start = 0.02 * jax.random.normal(rngs.params(), (shape.buckets, shape.heads))
            self.relative_bias = nnx.Param(start)
        shapes = [shape] * shape.count
        if shape.first_stays:
            shapes[0] = replace(shape, layer_drop=0.0)
        layer = partial(Layer, attention=attention, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([layer(one) for one in shapes])

    def encode(self, x: jax.Array, padding: jax.Array | None, layer: layers.Which) -> jax.Array:
        """Return float32 tokens `[B, L, D]` from projected ones.

        Args:
            padding: `[B, L]` bool, True = padding; None attends to everything.
            layer: 0 gives the input of the first layer, i the output of layer i (from 1), "mean"
                the mean of all outputs, None the final features. These equal the last layer's
                output, except that a `norm_first` model applies its final norm to them.
        """
        x = self.encoder_input(x, padding)
        bias = self.position_bias(x.shape[1])
        how = {"which": layer, "remat": self.remat, "decay": self.gradient_decay}
        x = layers.through(self.layers, x, bias, padding, **how)
        return self.norm(x).astype(jnp.float32) if self.shape.norm_first and layer is None else x

    def encoder_input(self, x: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Return `[B, L, D]`: padded tokens zeroed, convolutional positions added, norm."""
        if padding is not None:
            x = jnp.where(padding[..., None], 0.0, x)
        positions = self.pos_conv(x)
        return self.dropout(x + positions if self.shape.norm_first else self.norm(x, positions))

    def position_bias(self, tokens: int) -> jax.Array | None:
        """Return the relative bias before gating, `[H, L, L]` (query, key); None without one."""
        if not self.shape.buckets:
            return None
        offset = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
        bucket = relative_bucket(offset, self.shape.buckets, self.shape.max_distance)
        return self.relative_bias[...].T[:, bucket]


class PositionConv(nnx.Module):
    """GELU of a grouped convolution over tokens, weight-normalized for each tap of its kernel.

    `gain [K]` and `direction [K, D / groups, D]` are the parameters, as in PyTorch, so that
    training them behaves alike.
    """

    def __init__(self, shape: Transformer, *, dtype: Any, rngs: nnx.Rngs):
        width, self.groups, self.dtype = shape.width, shape.groups, dtype
        scale = (4 / (shape.taps * width)) ** 0.5
        sizes = shape.taps, width // self.groups, width
        direction = scale * jax.random.normal(rngs.params(), sizes)
        self.gain = nnx.Param(jnp.sqrt(jnp.square(direction).sum((1, 2))))
        self.direction = nnx.Param(direction)
        self.bias = nnx.Param(jnp.zeros(width))

    def kernel(self) -> jax.Array:
        """Return the convolution kernel `[K, D / groups, D]`."""
        direction = self.direction[...]
        norm = jnp.sqrt(jnp.square(direction).sum((1, 2)))
        return (self.gain[...] / norm)[:, None, None] * direction

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[B, L, D]` from `[B, L, D]`; zeros beyond both ends."""
        given = x.astype(self.dtype), self.kernel().astype(self.dtype)
        y = lax.platform_dependent(*given, cpu=self._by_group, default=self._at_once)
        return layers.gelu(y + layers.along(self.bias[...].astype(self.dtype), y))

    def _at_once(self, x, kernel):
        taps = kernel.shape[0]
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1,),
            padding=[(taps // 2, taps - 1 - taps // 2)],  # an even kernel drops the last output
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=x.shape[-1] // kernel.shape[1],
        )

    def _by_group(self, x, kernel):
        """On a CPU 1.4 times as fast, and the kernel's gradient 7 to 20 times."""
        split = partial(jnp.split, indices_or_sections=self.groups, axis=-1)
        return jnp.concatenate(list(map(self._at_once, split(x), split(kernel))), axis=-1)


class Layer(nnx.Module):
    """Attention and feed-forward, each with a residual sum and a norm after (or before) it."""

    def __init__(self, shape: Transformer, *, attention: Implementation = "auto", dtype, rngs):
        width, hidden = shape.width, shape.hidden
        gain = (8 * shape.count) ** -0.25 if shape.deep_norm else None
        self.alpha = (2 * shape.count) ** 0.25 if shape.deep_norm else 1.0
        self.norm_first, self.activation = shape.norm_first, shape.activation
        self.attn = SelfAttention(
            width,
            shape.heads,
            gate=shape.gate,
            dropped=shape.attention_dropout,
            gains=(1.0 if shape.deep_norm else None, gain),
            implementation=attention,
            dtype=dtype,
            rngs=rngs,
        )
        norm = partial(layers.LayerNorm, width, shape.epsilon, dtype=dtype)
        self.attn_norm = norm()
        dense = partial(layers.linear, gain=gain, dtype=dtype, rngs=rngs)
        self.fc1 = dense(width, hidden * (2 if shape.activation == "glu" else 1))
        self.fc2 = dense(hidden, width)
        self.ffn_norm = norm()
        self.attn_dropout = layers.Dropout(shape.dropout)
        self.ffn_dropout = layers.Dropout(shape.dropout)
        self.activation_dropout = layers.Dropout(shape.activation_dropout)
        self.skip = layers.Dropout(shape.layer_drop)

    def __call__(self, x, bias, padding):
        """Return `[B, L, D]` of the same; `bias [H, L, L]`, `padding [B, L]` or None."""
        return self.skip.choose(x, self._compute(x, bias, padding))

    def _compute(self, x, bias, padding):
        if self.norm_first:
            x = x + self.attn_dropout(self.attn(self.attn_norm(x), padding, bias))
            return x + self.feed_forward(self.ffn_norm(x))
        y = self.attn_dropout(self.attn(x, padding, bias))
        x = self.attn_norm(x, y, self.alpha)
        return self.ffn_norm(x, self.feed_forward(x), self.alpha)

    def feed_forward(self, x):
        hidden = ACTIVATIONS[self.activation](self.fc1(x))
        return self.ffn_dropout(layers.dear(self.fc2(self.activation_dropout(hidden))))


def relative_bucket(offset: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Return the bucket of each offset (key minus query index): exact near 0, then logarithmic."""
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    far = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    bucket = np.where(
        distance < exact, distance, np.minimum(half - 1, exact + (far * (half - exact)).astype(int))
    )
    return bucket + half * (offset > 0)
