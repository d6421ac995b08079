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
from asdjax.models import layers
from asdjax.models.attention import Implementation, SelfAttention, attention_bytes
from asdjax.models.pooling import mean_token
from asdjax.models.weights_file import Params
from asdjax.types import InputError, check


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
        width, most, names = self.encoder_embed_dim, layers.LARGEST, ", ".join(ACTIVATIONS)
        divisors = {
            "input_patch_size": layers.MEL_BANDS,
            "encoder_attention_heads": width,
            "conv_pos_groups": width,
        }
        counts = [field.name for field in fields(self) if type(field.default) is int]
        one_norm = not (self.layer_norm_first and self.deep_norm)
        check(
            self,
            *layers.divisor_rules(self, divisors),
            *((name, f"1 to {most}", 1 <= getattr(self, name) <= most) for name in counts),
            ("encoder_layers", "at most 256", self.encoder_layers <= 256),
            ("activation_fn", f"one of {names}", self.activation_fn in ACTIVATIONS),
            ("deep_norm", "False (layer_norm_first and deep_norm exclude each other)", one_norm),
        )

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

    kind = "beats"  # in the header of weight files
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
        return layers.MEL_BANDS // self.input_patch_size

    def token_count(self, samples: int) -> int:
        return frame_count(samples) // self.input_patch_size * self.bands

    def clip_bytes(self, samples: int, attention: Implementation = "auto") -> float:
        tokens, heads = self.token_count(samples), self.encoder_attention_heads
        biased = self.relative_position_embedding
        scores = attention_bytes(tokens, heads, self.width, biased, attention)
        return scores + layers.token_bytes(self.width, self.encoder_ffn_embed_dim) * tokens

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
        dtype: of matrix products, convolutions and what is between them; parameters, sums of
            products, and the statistics of norms and softmax are float32.
        train: drop values and layers, from the random keys (`layers.Key`) that each step puts in.
        remat: what of each layer is computed again for the gradient instead of being kept.
        attention: implementation of `asdjax.models.attention.attention`.
    """

    def __init__(
        self,
        config: BeatsConfig,
        *,
        dtype: Any = jnp.float32,
        train: bool = False,
        remat: layers.Remat = "nothing",
        attention: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if not train:
            config = replace(config.without_dropout(), layer_wise_gradient_decay_ratio=1.0)
        points, width = config.input_patch_size**2, config.encoder_embed_dim
        dense = partial(layers.linear, dtype=dtype, rngs=rngs)
        self.config, self.remat = config, remat
        self.patch_embed = dense(points, config.embed_dim, use_bias=config.conv_bias)
        self.patch_norm = layers.LayerNorm(config.embed_dim, dtype=dtype)
        if config.embed_dim != width:
            self.proj = dense(config.embed_dim, width)
        self.input_dropout = layers.Dropout(config.dropout_input)
        self.pos_conv = PositionConv(config, dtype=dtype, rngs=rngs)
        self.norm = layers.LayerNorm(width, dtype=dtype)
        self.dropout = layers.Dropout(config.dropout)
        if config.relative_position_embedding:
            shape = config.num_buckets, config.encoder_attention_heads
            self.relative_bias = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        layer = partial(Layer, config, attention=attention, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([layer() for _ in range(config.encoder_layers)])
        if config.finetuned_model:
            self.predictor = dense(width, config.predictor_class)

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
            x = layers.scale_gradient(x, self.config.layer_wise_gradient_decay_ratio)
            x = layers.recomputed(self.remat, block, x, bias, padding)
        x = self.norm(x) if self.config.layer_norm_first and layer is None else x
        return x.astype(jnp.float32)

    def embed_patches(self, mel: jax.Array) -> jax.Array:
        """Return `[B, L, D]`: patches through their embedding, norm and projection."""
        patches = layers.cut_patches(mel, self.config.input_patch_size)
        x = self.patch_norm(self.patch_embed(patches))
        if self.config.embed_dim != self.config.encoder_embed_dim:
            x = self.proj(x)
        return self.input_dropout(x)

    def encoder_input(self, x: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Return `[B, L, D]`: padded tokens zeroed, convolutional positions added, norm."""
        if padding is not None:
            x = jnp.where(padding[..., None], 0.0, x)
        positions = self.pos_conv(x)
        first = self.config.layer_norm_first
        return self.dropout(x + positions if first else self.norm(x, positions))

    def position_bias(self, tokens: int) -> jax.Array | None:
        """Return the relative bias before gating, `[H, L, L]` (query, key); None without one."""
        if not self.config.relative_position_embedding:
            return None
        offset = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
        bucket = relative_bucket(offset, self.config.num_buckets, self.config.max_distance)
        return self.relative_bias[...].T[:, bucket]

    def classify(self, tokens: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Return class probabilities `[B, C]` of a fine-tuned model from its final features.

        The reference averages logits over tokens; averaging tokens first gives the same.
        """
        mean = mean_token(tokens, None if padding is None else ~padding)
        return jax.nn.sigmoid(self.predictor(mean))


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
        given = x.astype(self.dtype), self.kernel().astype(self.dtype)
        y = lax.platform_dependent(*given, cpu=self._by_group, default=self._at_once)
        return ACTIVATIONS["gelu"](y + layers.along(self.bias[...].astype(self.dtype), y))

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

    def __init__(self, config: BeatsConfig, *, attention: Implementation = "auto", dtype, rngs):
        width, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        # DeepNorm: Xavier gains at the start, and a factor of the residual branch.
        gain = (8 * config.encoder_layers) ** -0.25 if config.deep_norm else None
        self.alpha = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0
        self.norm_first, self.activation = config.layer_norm_first, config.activation_fn
        self.attn = SelfAttention(
            width,
            config.encoder_attention_heads,
            gated=config.gru_rel_pos,
            dropped=config.attention_dropout,
            gains=(1.0 if config.deep_norm else None, gain),
            implementation=attention,
            dtype=dtype,
            rngs=rngs,
        )
        self.attn_norm = layers.LayerNorm(width, dtype=dtype)
        dense = partial(layers.linear, gain=gain, dtype=dtype, rngs=rngs)
        self.fc1 = dense(width, hidden * (2 if config.activation_fn == "glu" else 1))
        self.fc2 = dense(hidden, width)
        self.ffn_norm = layers.LayerNorm(width, dtype=dtype)
        self.attn_dropout = layers.Dropout(config.dropout)
        self.ffn_dropout = layers.Dropout(config.dropout)
        self.activation_dropout = layers.Dropout(config.activation_dropout)
        self.skip = layers.Dropout(config.encoder_layerdrop)

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
