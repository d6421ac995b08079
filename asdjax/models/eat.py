"""EAT: a plain vision transformer over 16 x 16 patches of the log-mel, with a class token.

Base size: 85 254 144 parameters, 12 blocks, width 768; large: 24 blocks, width 1024. Besides them a
fixed table of positions, which never trains. Token 0 is the class token, token 1 + j is mel band
group j % 8 of time patch j // 8: 1 + 512 tokens for 10 s. Norms stand after each residual sum, and
one before the first block; nothing normalizes the final features. Built with `train`, the model
drops values and branches at the rates of its configuration (0 in the published ones).

Source: Chen et al. 2024, "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer"
(arXiv 2401.03497), code `cwx-worst-one/EAT` (MIT), restated from its formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asdjax.frontend.fbank import FRAME_SAMPLES, HOP_SAMPLES, eat_frames, eat_frontend
from asdjax.models import layers
from asdjax.models.attention import Implementation, SelfAttention, attention_bytes
from asdjax.models.weights_file import Params
from asdjax.types import InputError, check


@dataclass(frozen=True)
class EatConfig:
    """The structure of an EAT checkpoint, by default that of the pre-trained base model.

    Args:
        max_length: time patches that the table of positions has rows for.
        head_norm_eps: of the norm before the class head: 1e-6 in the authors' fairseq model, 1e-5
            in their Hugging Face model.
        num_classes: of the class head; 0 for a model without.
        attention_dropout: of attention weights.
        encoder_dropout: behind each attention.
        activation_dropout: behind both layers of each MLP.
        post_mlp_drop: behind each MLP, once more.
        dropout_input: of the input of the first block.
        start_drop_path_rate, end_drop_path_rate: probability that a clip skips a branch of the
            first and of the last block, linear between them. The authors fine-tune with 0 and 0.1.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    mlp_ratio: float = 4.0
    max_length: int = 768
    norm_eps: float = 1e-6
    head_norm_eps: float = 1e-6
    num_classes: int = 0
    attention_dropout: float = 0.0
    encoder_dropout: float = 0.0
    activation_dropout: float = 0.0
    post_mlp_drop: float = 0.0
    dropout_input: float = 0.0
    start_drop_path_rate: float = 0.0
    end_drop_path_rate: float = 0.0

    # No fields, but what every structure of a backbone has:
    kind = "eat"  # in the header of weight files
    kinds = (kind,)
    extra_tokens = 1  # the class token

    def __post_init__(self):
        width, most = self.embed_dim, layers.LARGEST
        check(
            self,
            ("embed_dim", f"1 to {most}", 1 <= width <= most),
            ("embed_dim", "a multiple of 4", width % 4 == 0),
            ("depth", "1 to 256", 1 <= self.depth <= 256),
            *layers.divisor_rules(self, {"num_heads": width, "patch_size": layers.MEL_BANDS}),
            ("mlp_ratio", "a number in (0, 100]", 0 < self.mlp_ratio <= 100),
            ("max_length", f"1 to {most}", 1 <= self.max_length <= most),
            ("norm_eps", "a number in (0, 1)", 0 < self.norm_eps < 1),
            ("head_norm_eps", "a number in (0, 1)", 0 < self.head_norm_eps < 1),
            ("num_classes", f"0 to {most}", 0 <= self.num_classes <= most),
            *((name, "a rate in [0, 1)", 0 <= getattr(self, name) < 1) for name in RATES),
        )

    @classmethod
    def base(cls, **changes: Any) -> EatConfig:
        """Return the structure of EAT-base (pre-trained)."""
        return cls(**changes)

    @classmethod
    def large(cls, **changes: Any) -> EatConfig:
        """Return the structure of EAT-large (pre-trained)."""
        return cls(**{"embed_dim": 1024, "depth": 24, "num_heads": 16} | changes)

    # What every structure of a backbone has (`asdjax.models.backbone.Structure`).

    @property
    def width(self) -> int:
        return self.embed_dim

    @property
    def layers_count(self) -> int:
        return self.depth

    @property
    def has_classes(self) -> bool:
        return self.num_classes > 0

    @property
    def shortest_samples(self) -> int:
        return FRAME_SAMPLES + HOP_SAMPLES * (self.patch_size - 1)

    def build(self, **how: Any) -> Eat:
        return Eat(self, **how)

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Return the input `[B, T, 128]`; T is the frame count rounded up to a multiple of 32.

        Frames behind a clip's end are padding: the model sees them, up to the clip's own T.

        Raises:
            InputError: more frames than the table of positions has rows for.
        """
        frames, most = eat_frames(wave.shape[1]), self._most_frames
        if frames > most:
            raise InputError(
                f"expected at most {most} frames ({most // 100} s), the positions this model "
                f"knows, got {frames}; cut the clip"
            )
        return eat_frontend(wave, frames, lengths)

    @property
    def bands(self) -> int:
        return layers.MEL_BANDS // self.patch_size

    def token_count(self, samples: int) -> int:
        return self.extra_tokens + self._patches(samples)

    def clip_bytes(self, samples: int, attention: Implementation = "auto") -> float:
        if eat_frames(samples) > self._most_frames:
            return math.inf
        tokens, hidden = self.token_count(samples), int(self.mlp_ratio * self.width)
        scores = attention_bytes(tokens, self.num_heads, self.width, False, attention)
        return scores + layers.token_bytes(self.width, hidden) * tokens

    @property
    def _most_frames(self) -> int:
        return self.patch_size * self.max_length

    def token_padding(self, samples: int, lengths: jax.Array) -> jax.Array:
        """Return `[B, L]` bool, True where a patch lies behind the clip's own T (see `frontend`).

        So a clip gives the same tokens in a row of any length, and a clip as long as its row has no
        padded token: the published model attends to the frames that padding added.
        """
        valid = self.extra_tokens + self._patches(jnp.asarray(lengths))
        return jnp.arange(self.token_count(samples))[None] >= valid[:, None]

    def for_features(self, params: Params) -> tuple[EatConfig, Params]:
        head = "head.", "head_norm."
        kept = {name: value for name, value in params.items() if not name.startswith(head)}
        return replace(self, num_classes=0), kept

    def without_dropout(self) -> EatConfig:
        return replace(self, **dict.fromkeys(RATES, 0.0))

    def _patches(self, samples):
        """Return how many patches a clip of `samples` (int or array) has."""
        return eat_frames(samples) // self.patch_size * self.bands


RATES = tuple(field.name for field in fields(EatConfig) if "drop" in field.name)


class Eat(nnx.Module):
    """Normalized log-mel `[B, T, 128]` in, tokens `[B, 1 + n, D]` out, n = 8 floor(T / 16).

    Args:
        config: the structure.
        dtype: of matrix products and what is between them; parameters, sums of products, and the
            statistics of norms and softmax are float32.
        train: drop values and branches, from the random keys (`layers.Key`) that each step puts in.
        remat: what of each block is computed again for the gradient instead of being kept.
        attention: implementation of `asdjax.models.attention.attention`.
    """

    def __init__(
        self,
        config: EatConfig,
        *,
        dtype: Any = jnp.float32,
        train: bool = False,
        remat: layers.Remat = "nothing",
        attention: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        config = config if train else config.without_dropout()
        patch, width = config.patch_size, config.embed_dim
        self.config, self.remat = config, remat
        self.patch_embed = layers.linear(patch * patch, width, dtype=dtype, rngs=rngs)
        self.positions = layers.Fixed(position_table(width, config.bands, config.max_length))
        self.class_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.norm = layers.LayerNorm(width, config.norm_eps, dtype=dtype)
        self.input_dropout = layers.Dropout(config.dropout_input)
        block = partial(Block, config, attention=attention, dtype=dtype, rngs=rngs)
        ends = config.start_drop_path_rate, config.end_drop_path_rate
        rates = np.linspace(*ends, config.depth).tolist()
        self.layers = nnx.List([block(drop_path=rate) for rate in rates])
        if config.num_classes:
            self.head_norm = layers.LayerNorm(width, config.head_norm_eps)
            self.head = layers.linear(width, config.num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, mel: jax.Array, padding: jax.Array | None = None, layer: layers.Which = None
    ) -> jax.Array:
        """Return float32 tokens `[B, 1 + n, D]`.

        Args:
            mel: normalized log-mel `[B, T, 128]`; frames beyond whole patches are dropped.
            padding: `[B, 1 + n]` bool, True = a token nobody attends to
                (`EatConfig.token_padding`); None attends to everything.
            layer: 0 gives the input of the first block, i the output of block i (from 1), "mean"
                the mean of all outputs, None the final features, which are the last block's output.
        """
        x = self.encoder_input(self.embed_patches(mel))
        return layers.through(self.layers, x, padding, which=layer, remat=self.remat)

    def embed_patches(self, mel: jax.Array) -> jax.Array:
        """Return `[B, n, D]`: patches through their embedding."""
        return self.patch_embed(layers.cut_patches(mel, self.config.patch_size))

    def encoder_input(self, patches: jax.Array) -> jax.Array:
        """Return `[B, 1 + n, D]`: positions added, class token (without a position) first, norm."""
        batch, count, width = patches.shape
        x = patches.astype(jnp.float32) + self.positions[...][None, :count]
        first = jnp.broadcast_to(self.class_token[...], (batch, 1, width))
        return self.input_dropout(self.norm(jnp.concatenate([first, x], axis=1)))

    def classify(self, tokens: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Return class probabilities `[B, C]` of a fine-tuned model, from its class token alone."""
        logits = self.head(self.head_norm(tokens[:, 0]))
        return jax.nn.sigmoid(logits.astype(jnp.float32))


class Block(nnx.Module):
    """Attention and MLP, each followed by its residual sum and a norm."""

    def __init__(
        self, config: EatConfig, *, drop_path: float, attention: Implementation, dtype, rngs
    ):
        width, hidden = config.embed_dim, int(config.mlp_ratio * config.embed_dim)
        dense = partial(layers.linear, dtype=dtype, rngs=rngs)
        self.attn = SelfAttention(
            width,
            config.num_heads,
            dropped=config.attention_dropout,
            implementation=attention,
            dtype=dtype,
            rngs=rngs,
        )
        self.attn_norm = layers.LayerNorm(width, config.norm_eps, dtype=dtype)
        self.fc1, self.fc2 = dense(width, hidden), dense(hidden, width)
        self.ffn_norm = layers.LayerNorm(width, config.norm_eps, dtype=dtype)
        self.attn_dropout = layers.Dropout(config.encoder_dropout)
        self.activation_dropout = layers.Dropout(config.activation_dropout)
        self.output_dropout = layers.Dropout(config.activation_dropout)
        self.ffn_dropout = layers.Dropout(config.post_mlp_drop)
        self.attn_path, self.ffn_path = layers.Dropout(drop_path), layers.Dropout(drop_path)

    def __call__(self, x, padding):
        """Return `[B, L, D]` of the same; `padding [B, L]` or None."""
        y = self.attn_dropout(self.attn(x, padding))
        x = self.attn_norm(x, self.attn_path.per_clip(y))
        return self.ffn_norm(x, self.ffn_path.per_clip(self.feed_forward(x)))

    def feed_forward(self, x):
        hidden = layers.gelu(self.fc1(x))
        y = layers.dear(self.fc2(self.activation_dropout(hidden)))
        return self.ffn_dropout(self.output_dropout(y))


def position_table(width: int, bands: int, times: int) -> jax.Array:
    """Return sines and cosines `[times * bands, width]` float32 of both indices of a patch.

    Row `time * bands + band` is `[sin(band w), cos(band w), sin(time w), cos(time w)]` with
    `w_i = 10000^(-i / m)`, m = width / 4: the band fills the first half. Published checkpoints
    carry theirs, of which this differs by the rounding of float32 angles (8e-5).
    """
    speed = (10000.0 ** (-np.arange(width // 4) / (width // 4))).astype(np.float32)

    def waves(count):
        angle = jnp.arange(count)[:, None] * speed[None]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)

    by_band, by_time = jnp.tile(waves(bands), (times, 1)), jnp.repeat(waves(times), bands, axis=0)
    return jnp.concatenate([by_band, by_time], axis=1)
