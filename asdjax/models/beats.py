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
from flax import nnx

from asdjax.frontend.fbank import FRAME_SAMPLES, HOP_SAMPLES, beats_frontend, frame_count
from asdjax.models import layers
from asdjax.models.attention import Implementation, attention_bytes
from asdjax.models.pooling import mean_token
from asdjax.models.transformer import ACTIVATIONS, Encoder, Transformer
from asdjax.models.weights_file import Params
from asdjax.types import InputError, check


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
    kinds = (kind,)
    extra_tokens = 0  # BEATs has no class token

    @property
    def transformer(self) -> Transformer:
        return Transformer(
            self.encoder_embed_dim,
            self.encoder_ffn_embed_dim,
            self.encoder_attention_heads,
            self.encoder_layers,
            activation=self.activation_fn,
            norm_first=self.layer_norm_first,
            deep_norm=self.deep_norm,
            taps=self.conv_pos,
            groups=self.conv_pos_groups,
            buckets=self.num_buckets if self.relative_position_embedding else 0,
            max_distance=self.max_distance,
            gate="query" if self.gru_rel_pos else None,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            activation_dropout=self.activation_dropout,
            layer_drop=self.encoder_layerdrop,
        )

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


class Beats(Encoder):
    """Normalized log-mel `[B, T, 128]` in, tokens `[B, L, D]` out, L = 8 floor(T / 16).

    Args:
        config: the structure.
        train: drop values and layers, from the random keys (`layers.Key`) that each step puts in.
        dtype, remat, attention: as of `Encoder`.
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
        self.config = config
        self.patch_embed = dense(points, config.embed_dim, use_bias=config.conv_bias)
        self.patch_norm = layers.LayerNorm(config.embed_dim, dtype=dtype)
        if config.embed_dim != width:
            self.proj = dense(config.embed_dim, width)
        self.input_dropout = layers.Dropout(config.dropout_input)
        decay = config.layer_wise_gradient_decay_ratio
        how = {"dtype": dtype, "remat": remat, "attention": attention, "rngs": rngs}
        super().__init__(config.transformer, gradient_decay=decay, **how)
        if config.finetuned_model:
            self.predictor = dense(width, config.predictor_class)

    def __call__(
        self, mel: jax.Array, padding: jax.Array | None = None, layer: layers.Which = None
    ) -> jax.Array:
        """Return float32 tokens `[B, L, D]`.

        Args:
            mel: normalized log-mel `[B, T, 128]`; frames beyond whole patches are dropped.
            padding, layer: as of `Encoder.encode`; padding is `token_padding`.
        """
        return self.encode(self.embed_patches(mel), padding, layer)

    def embed_patches(self, mel: jax.Array) -> jax.Array:
        """Return `[B, L, D]`: patches through their embedding, norm and projection."""
        patches = layers.cut_patches(mel, self.config.input_patch_size)
        x = self.patch_norm(self.patch_embed(patches))
        if self.config.embed_dim != self.config.encoder_embed_dim:
            x = self.proj(x)
        return self.input_dropout(x)

    def classify(self, tokens: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Return class probabilities `[B, C]` of a fine-tuned model from its final features.

        The reference averages logits over tokens; averaging tokens first gives the same.
        """
        mean = mean_token(tokens, None if padding is None else ~padding)
        return jax.nn.sigmoid(self.predictor(mean))


def token_padding(lengths: jax.Array, samples: int, frames: int, tokens: int) -> jax.Array:
    """Return `[B, L]` bool, True = padding, from the valid samples `lengths [B]` of each clip.

    The reference cuts the samples into `frames` equal chunks and these into `tokens` equal chunks
    (remainders dropped) and marks a chunk that is padding throughout. Tokens count as consecutive
    in time there although 8 share one time patch, so the last patch can be padded in some bands
    only. With padding only at the end, a chunk is padding if its first sample is.
    """
    first_sample = jnp.arange(tokens) * (frames // tokens) * (samples // frames)
    return first_sample[None] >= lengths[:, None]
