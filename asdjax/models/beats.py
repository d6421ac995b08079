"""BEATs: a transformer over 16 x 16 patches of the log-mel, with gated relative position bias.

Base size: 90 311 792 parameters, 12 layers, width 768; 8 tokens per 160 ms, so 496 for 10 s.
Token j is mel band group j % 8 of time patch j // 8. Built with `train`, the model drops values and
layers at the rates of its configuration, which checkpoints carry.

Source: Chen et al. 2023, "BEATs: Audio Pre-Training with Acoustic Tokenizers" (arXiv 2212.09058),
code `microsoft/unilm:beats` (MIT), restated from its formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from asdjax.frontend.fbank import FRAME_SAMPLES, HOP_SAMPLES, beats_frontend, frame_count
from asdjax.models.attention import Implementation, attention
from asdjax.models.dropout import Dropout
from asdjax.params import Params
from asdjax.types import InputError

MEL_BANDS = 128
LARGEST = 100_000  # of any number in a configuration: more is a damaged or hostile file


def _gated(x):
    value, gate = jnp.split(x, 2, axis=-1)
    return value * jax.nn.silu(gate)


ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_accurate": jax.nn.gelu,
    "gelu_fast": jax.nn.gelu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
    "glu": _gated,  # fc1 is then twice as wide
}


@dataclass(frozen=True)
class BeatsConfig:
    """The `cfg` of a BEATs checkpoint: same names, same defaults for absent fields."""

    input_patch_size: int = -1  # always in the file
    embed_dim: int = 512  # width of a patch before the projection
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = False
    relative_position_embedding: bool = False
    num_buckets: int = 320
    max_distance: int = 1280
    gru_rel_pos: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    dropout_input: float = 0.0
    encoder_layerdrop: float = 0.0
    layer_wise_gradient_decay_ratio: float = 1.0
    finetuned_model: bool = False
    predictor_dropout: float = 0.1
    predictor_class: int = 527

    def __post_init__(self):
        whole = {
            "input_patch_size": (self.input_patch_size, MEL_BANDS),
            "encoder_attention_heads": (self.encoder_attention_heads, self.encoder_embed_dim),
            "conv_pos_groups": (self.conv_pos_groups, self.encoder_embed_dim),
        }
        problems = [
            f"{name}: expected a divisor of {total}, got {part}"
            for name, (part, total) in whole.items()
            if part < 1 or total % part
        ]
        problems += [
            f"{f.name}: expected 1 to {LARGEST}, got {getattr(self, f.name)}"
            for f in fields(self)
            if type(f.default) is int and not 1 <= getattr(self, f.name) <= LARGEST
        ]
        if self.encoder_layers > 256:
            problems.append(f"encoder_layers: expected at most 256, got {self.encoder_layers}")
        if self.activation_fn not in ACTIVATIONS:
            problems.append(
                f"activation_fn: expected one of {', '.join(ACTIVATIONS)}, got {self.activation_fn}"
            )
        if self.layer_norm_first and self.deep_norm:
            problems.append("layer_norm_first and deep_norm exclude each other, got both")
        if problems:
            raise InputError("not a BEATs configuration:\n  " + "\n  ".join(problems))

    @classmethod
    def base(cls, **changes: Any) -> BeatsConfig:
        """Return the structure of BEATs iter3 and iter3+ (pre-trained)."""
        published = {
            "input_patch_size": 16,
            "deep_norm": True,
            "relative_position_embedding": True,
            "max_distance": 800,
            "gru_rel_pos": True,
            "dropout_input": 0.1,
            "encoder_layerdrop": 0.05,
        }
        return cls(**published | changes)

    @classmethod
    def from_checkpoint(cls, cfg: dict) -> BeatsConfig:
        """Take the known fields of a checkpoint's `cfg`; unknown ones are left out."""
        known = [(f.name, type(f.default), cfg[f.name]) for f in fields(cls) if f.name in cfg]
        for name, kind, value in known:
            if not isinstance(value, str if kind is str else (bool, int, float)):
                raise InputError(f"cfg field {name}: expected {kind.__name__}, got {value!r}")
        try:
            return cls(**{name: kind(value) for name, kind, value in known})
        except (ValueError, OverflowError) as error:  # nan or inf for a whole number
            raise InputError(f"not a BEATs configuration: {error}") from error

    # What every structure of a backbone has (`asdjax.models.backbone.Structure`).

    extra_tokens = 0  # BEATs has no class token

    @property
    def width(self) -> int:
        return self.encoder_embed_dim

    @property
    def layers_count(self) -> int:
        return self.encoder_layers

    @property
    def has_classes(self) -> bool:
        return self.finetuned_model

    @property
    def shortest_samples(self) -> int:
        return FRAME_SAMPLES + HOP_SAMPLES * (self.input_patch_size - 1)

    def build(self, **how: Any) -> Beats:
        return Beats(self, **how)

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        return beats_frontend(wave)

    @property
    def bands(self) -> int:
        return MEL_BANDS // self.input_patch_size

    def token_count(self, samples: int) -> int:
        return frame_count(samples) // self.input_patch_size * self.bands

    def token_padding(self, samples: int, lengths: jax.Array) -> jax.Array:
        return token_padding(lengths, samples, frame_count(samples), self.token_count(samples))

    def for_features(self, params: Params) -> tuple[BeatsConfig, Params]:
        kept = {name: value for name, value in params.items() if not name.startswith("predictor.")}
        return replace(self, finetuned_model=False), kept

    def without_dropout(self) -> BeatsConfig:
        rates = "dropout", "attention_dropout", "activation_dropout", "dropout_input"
        return replace(self, encoder_layerdrop=0.0, **dict.fromkeys(rates, 0.0))


class Beats(nnx.Module):
    """Normalized log-mel `[B, T, 128]` in, tokens `[B, L, D]` out, L = 8 floor(T / 16).

    Args:
        config: the structure.
        dtype: of matrix products and convolutions; parameters, norms, softmax and residual sums
            are float32.
        train: drop values and layers, from the random keys (`asdjax.models.dropout.Key`) that each
            step puts in.
        remat: keep only the input of each layer for the backward pass and compute the layer again.
        attention: implementation of `asdjax.models.attention.attention`.
    """

    def __init__(
        self,
        config: BeatsConfig,
        *,
        dtype: Any = jnp.float32,
        train: bool = False,
        remat: bool = False,
        attention: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        config = config if train else for_use(config)
        patch, width = config.input_patch_size, config.encoder_embed_dim
        linear = partial(_linear, dtype=dtype, rngs=rngs)
        norm = partial(_norm, rngs=rngs)
        self.config, self.remat = config, remat
        self.patch_embed = linear(patch * patch, config.embed_dim, use_bias=config.conv_bias)
        self.patch_norm = norm(config.embed_dim)
        if config.embed_dim != width:
            self.proj = linear(config.embed_dim, width)
        self.input_dropout = Dropout(config.dropout_input)
        self.pos_conv = PositionConv(config, dtype=dtype, rngs=rngs)
        self.norm = norm(width)
        self.dropout = Dropout(config.dropout)
        if config.relative_position_embedding:
            shape = config.num_buckets, config.encoder_attention_heads
            self.relative_bias = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        layer = partial(Layer, config, attention=attention, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([layer() for _ in range(config.encoder_layers)])
        if config.finetuned_model:
            self.predictor = linear(width, config.predictor_class)

    def __call__(
        self, mel: jax.Array, padding: jax.Array | None = None, layer: int | None = None
    ) -> jax.Array:
        """Return float32 tokens `[B, L, D]`.

        Args:
            mel: normalized log-mel `[B, T, 128]`; frames beyond whole patches are dropped.
            padding: `[B, L]` bool, True = padding (`token_padding`); None attends to everything.
            layer: 0 gives the input of the first layer, i the output of layer i (from 1), None
                the final features. These equal the last layer's output, except that a
                `layer_norm_first` model applies its final norm to them.
        """
        x = self.encoder_input(self.embed_patches(mel), padding)
        bias = self.position_bias(x.shape[1])
        for block in list(self.layers)[:layer]:
            x = self._through(block, x, bias, padding)
        if self.config.layer_norm_first and layer is None:
            x = self.norm(x)
        return x.astype(jnp.float32)

    def _through(self, block: Layer, x, bias, padding):
        x = scale_gradient(x, self.config.layer_wise_gradient_decay_ratio)
        return recomputed(block, x, bias, padding) if self.remat else block(x, bias, padding)

    def embed_patches(self, mel: jax.Array) -> jax.Array:
        """Return `[B, L, D]`: patches through their embedding, norm and projection."""
        x = self.patch_norm(self.patch_embed(cut_patches(mel, self.config.input_patch_size)))
        if self.config.embed_dim != self.config.encoder_embed_dim:
            x = self.proj(x)
        return self.input_dropout(x)

    def encoder_input(self, x: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Return `[B, L, D]`: padded tokens zeroed, convolutional positions added, norm."""
        if padding is not None:
            x = jnp.where(padding[..., None], 0.0, x)
        x = x.astype(jnp.float32) + self.pos_conv(x)
        return self.dropout(x if self.config.layer_norm_first else self.norm(x))

    def position_bias(self, tokens: int) -> jax.Array | None:
        """Return the relative bias before gating, `[H, L, L]` (query, key); None without one."""
        if not self.config.relative_position_embedding:
            return None
        offset = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
        bucket = relative_bucket(offset, self.config.num_buckets, self.config.max_distance)
        return self.relative_bias[...].T[:, bucket]

    def classify(self, tokens: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Return class probabilities `[B, C]` of a fine-tuned model from its final features.

        The reference averages logits over tokens; averaging tokens first is the same number.
        """
        if padding is None:
            return jax.nn.sigmoid(self.predictor(tokens.mean(1)))
        total = jnp.where(padding[..., None], 0.0, tokens).sum(1)
        count = jnp.maximum((~padding).sum(1, keepdims=True), 1)
        return jax.nn.sigmoid(self.predictor(total / count))


class PositionConv(nnx.Module):
    """GELU of a grouped convolution over tokens, weight-normalized for each tap of its kernel.

    `gain [K]` and `direction [K, D / groups, D]` are the parameters, as in PyTorch, so that
    training them behaves alike.
    """

    def __init__(self, config: BeatsConfig, *, dtype: Any, rngs: nnx.Rngs):
        width, self.groups, self.dtype = config.encoder_embed_dim, config.conv_pos_groups, dtype
        shape = config.conv_pos, width // self.groups, width
        scale = (4 / (config.conv_pos * width)) ** 0.5
        direction = scale * jax.random.normal(rngs.params(), shape)
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
        kernel = self.kernel().astype(self.dtype)
        taps = kernel.shape[0]
        # One convolution per group: on CPU 1.4 times as fast as one with feature_group_count, and
        # the kernel's gradient 7 to 20 times.
        y = [
            lax.conv_general_dilated(
                x_group,
                kernel_group,
                window_strides=(1,),
                padding=[(taps // 2, taps - 1 - taps // 2)],  # an even kernel drops the last output
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
            for x_group, kernel_group in zip(
                jnp.split(x.astype(self.dtype), self.groups, axis=-1),
                jnp.split(kernel, self.groups, axis=-1),
                strict=True,
            )
        ]
        bias = self.bias[...].astype(self.dtype)[None, None]
        return ACTIVATIONS["gelu"](jnp.concatenate(y, axis=-1) + bias)


class Layer(nnx.Module):
    """Attention and feed-forward, each with a residual sum and a norm after (or before) it."""

    def __init__(
        self,
        config: BeatsConfig,
        *,
        attention: Implementation = "auto",
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        width, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        linear = partial(_linear, gain=_deep_gain(config), dtype=dtype, rngs=rngs)
        self.config = config
        self.attn = Attention(config, attention, dtype=dtype, rngs=rngs)
        self.attn_norm = _norm(width, rngs=rngs)
        self.fc1 = linear(width, hidden * (2 if config.activation_fn == "glu" else 1))
        self.fc2 = linear(hidden, width)
        self.ffn_norm = _norm(width, rngs=rngs)
        self.attn_dropout, self.ffn_dropout = Dropout(config.dropout), Dropout(config.dropout)
        self.activation_dropout = Dropout(config.activation_dropout)
        self.skip = Dropout(config.encoder_layerdrop)

    def __call__(self, x, bias, padding):
        """Return `[B, L, D]`; `bias [H, L, L]` or None, `padding [B, L]` or None."""
        return self.skip.choose(x.astype(jnp.float32), self._compute(x, bias, padding))

    def _compute(self, x, bias, padding):
        if self.config.layer_norm_first:
            x = x.astype(jnp.float32)
            x = x + self.attn_dropout(self.attn(self.attn_norm(x), bias, padding))
            return x + self.feed_forward(self.ffn_norm(x))
        y = self.attn_dropout(self.attn(x, bias, padding))
        x = self.attn_norm(self._scaled(x) + y)
        return self.ffn_norm(self._scaled(x) + self.feed_forward(x))

    def feed_forward(self, x):
        hidden = ACTIVATIONS[self.config.activation_fn](self.fc1(x))
        return self.ffn_dropout(self.fc2(self.activation_dropout(hidden)))

    def _scaled(self, x):
        """Return the residual branch: DeepNorm multiplies it by (2 layers)^(1/4)."""
        alpha = (2 * self.config.encoder_layers) ** 0.25 if self.config.deep_norm else 1.0
        return alpha * x.astype(jnp.float32)


class Attention(nnx.Module):
    """Self-attention whose relative bias each query gates by itself."""

    def __init__(
        self,
        config: BeatsConfig,
        implementation: Implementation = "auto",
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.implementation = implementation
        linear = partial(_linear, width, width, dtype=dtype, rngs=rngs)
        self.q = linear(gain=1.0 if config.deep_norm else None)
        self.k = linear(gain=1.0 if config.deep_norm else None)
        self.v = linear(gain=_deep_gain(config))
        self.out = linear(gain=_deep_gain(config))
        self.dropout = Dropout(config.attention_dropout)
        self.gated = config.gru_rel_pos
        if self.gated:
            self.gate = _linear(width // self.heads, 8, dtype=dtype, rngs=rngs)
            self.gate_scale = nnx.Param(jnp.ones(self.heads))

    def __call__(self, x, bias, padding):
        q = self.q(x)
        gate = self.bias_gate(q) if self.gated and bias is not None else None
        y = attention(
            q,
            self.k(x),
            self.v(x),
            heads=self.heads,
            bias=bias,
            gate=gate,
            padding=padding,
            dropped=self.dropout.rate,
            key=self.dropout.drawn(),
            implementation=self.implementation,
        )
        return self.out(y)

    def bias_gate(self, q):
        """Return `[B, H, L]`, around 2, from the projected, unscaled queries `[B, L, D]`."""
        by_head = q.reshape(*q.shape[:2], self.heads, -1)
        parts = self.gate(by_head).astype(jnp.float32).reshape(*by_head.shape[:3], 2, 4)
        update, reset = jnp.moveaxis(jax.nn.sigmoid(parts.sum(-1)), (3, 2), (0, 2))
        return update * (reset * self.gate_scale[...][None, :, None] - 1.0) + 2.0


def for_use(config: BeatsConfig) -> BeatsConfig:
    """Return the configuration without what only training does."""
    return replace(config.without_dropout(), layer_wise_gradient_decay_ratio=1.0)


def recomputed(block: nnx.Module, *args: jax.Array | None) -> jax.Array:
    """Return `block(*args)`, which the backward pass computes again instead of keeping values."""
    graph, state = nnx.split(block)
    return jax.checkpoint(lambda state, *args: nnx.merge(graph, state)(*args))(state, *args)


def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """Return `x`; the gradient that flows back through it is multiplied by `factor`."""
    return x if factor == 1 else x * factor + lax.stop_gradient(x - x * factor)


def cut_patches(mel: jax.Array, patch: int) -> jax.Array:
    """Return `[B, L, patch * patch]`: square patches, time-major; in a patch, time is first."""
    batch, frames, bands = mel.shape
    times = frames // patch
    grid = mel[:, : times * patch].reshape(batch, times, patch, bands // patch, patch)
    return grid.swapaxes(2, 3).reshape(batch, -1, patch * patch)


def token_padding(lengths: jax.Array, samples: int, frames: int, tokens: int) -> jax.Array:
    """Return `[B, L]` bool, True = padding, from the valid samples `lengths [B]` of each clip.

    The reference cuts the samples into `frames` equal chunks and these into `tokens` equal chunks
    (remainders dropped) and marks a chunk that is padding throughout. Tokens count as consecutive
    in time there although 8 share one time patch, so the last patch can be padded in some bands
    only. With padding only at the end, a chunk is padding if its first sample is.
    """
    first_sample = jnp.arange(tokens) * (frames // tokens) * (samples // frames)
    return first_sample[None] >= lengths[:, None]


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


def _norm(width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Return a norm in float32, in and out, under every compute type."""
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)


def _linear(inputs: int, outputs: int, *, gain: float | None = None, **kwargs: Any) -> nnx.Linear:
    """Return a linear layer: Xavier-normal with `gain`, else N(0, 0.02)."""
    if gain is None:
        init = nnx.initializers.normal(0.02)
    else:
        init = nnx.initializers.variance_scaling(gain**2, "fan_avg", "normal")
    return nnx.Linear(inputs, outputs, kernel_init=init, **kwargs)


def _deep_gain(config: BeatsConfig) -> float | None:
    """Return DeepNorm's Xavier gain of v, out, fc1 and fc2; None for a model without."""
    return (8 * config.encoder_layers) ** -0.25 if config.deep_norm else None
