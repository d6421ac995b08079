"""HuBERT, wav2vec 2.0, WavLM and UniSpeech-SAT: convolutions over the wave, then a transformer.

Base size: 94 370 944 parameters of HuBERT, 12 layers, width 768; a token for each 20 ms, so 499 for
10 s. Seven convolutions without padding turn the wave into frames; in the base models the first is
normalized over the time of each channel, in most large ones all are over their channels. WavLM adds
a relative bias, which the input of each attention gates. Built with `train`, the model drops values
and layers at the rates of its configuration, which checkpoints carry.

A clip gives the tokens that it gives alone, whatever row it is in: what lies behind its end is in
no norm, in no convolution of its frames, and attended to by none. (The reference normalizes the
base models' first convolution over the whole row, so there padding changes every token.)

Sources: Hsu et al. 2021, "HuBERT" (arXiv 2106.07447); Baevski et al. 2020, "wav2vec 2.0" (arXiv
2006.11477); Chen et al. 2022, "WavLM" (arXiv 2110.13900); Chen et al. 2022, "UniSpeech-SAT" (arXiv
2110.05752). Names and layouts as `huggingface/transformers` (Apache-2.0) has them, restated from
its formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from asdjax.frontend.fbank import to_float
from asdjax.models import layers
from asdjax.models.attention import Implementation, attention_bytes
from asdjax.models.transformer import Encoder, Transformer
from asdjax.models.weights_file import Params
from asdjax.types import check

KINDS = "hubert", "wav2vec2", "wavlm", "unispeech-sat"
VARIANCE = 1e-7  # that the reference adds to the variance of a wave


@dataclass(frozen=True)
class SpeechConfig:
    """The `config.json` of a checkpoint, with its names and defaults, and its preprocessor's.

    Args:
        kind: `model_type`, one of `KINDS`.
        conv_dim, conv_kernel, conv_stride: channels, taps and stride of each convolution.
        feat_extract_norm: "group" (the first over time) or "layer" (each over its channels).
        feat_proj_layer_norm: a norm before the projection.
        do_stable_layer_norm: norms stand before attention and feed-forward ("large style").
        num_buckets, max_bucket_distance: of the relative bias of WavLM.
        do_normalize: each wave has mean 0 and variance 1 (`preprocessor_config.json`).
    """

    kind: str = "hubert"
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_proj_layer_norm: bool = True
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    layer_norm_eps: float = 1e-5
    num_buckets: int = 320
    max_bucket_distance: int = 800
    feat_proj_dropout: float = 0.0
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    layerdrop: float = 0.1
    do_normalize: bool = True

    # No fields, but what every structure of a backbone has:
    kinds = KINDS  # in the header of weight files
    extra_tokens = 0
    bands = 1  # a token is all of a moment
    has_classes = False

    def __post_init__(self):
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        width, most = self.hidden_size, layers.LARGEST
        divisors = dict.fromkeys(("num_attention_heads", "num_conv_pos_embedding_groups"), width)
        counts = "hidden_size", "intermediate_size", "num_conv_pos_embeddings", "num_buckets"
        same = len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) > 0
        check(
            self,
            ("kind", f"one of {', '.join(KINDS)}", self.kind in KINDS),
            ("conv_dim", "as many as conv_kernel and conv_stride", same),
            *(
                (name, f"whole numbers from 1 to {most}", all(1 <= n <= most for n in values))
                for name in ("conv_dim", "conv_kernel", "conv_stride")
                for values in (getattr(self, name),)
            ),
            ("feat_extract_norm", "group or layer", self.feat_extract_norm in ("group", "layer")),
            *((name, f"1 to {most}", 1 <= getattr(self, name) <= most) for name in counts),
            ("num_buckets", "a multiple of 4", self.num_buckets % 4 == 0),
            (
                "max_bucket_distance",
                f"above {self.num_buckets // 4}",
                self.num_buckets // 4 < self.max_bucket_distance <= most,
            ),
            ("num_hidden_layers", "1 to 256", 1 <= self.num_hidden_layers <= 256),
            *layers.divisor_rules(self, divisors),
            ("layer_norm_eps", "a number in (0, 1)", 0 < self.layer_norm_eps < 1),
            *((name, "a rate in [0, 1)", 0 <= getattr(self, name) < 1) for name in RATES),
        )

    @classmethod
    def base(cls, **changes: Any) -> SpeechConfig:
        """Return the structure of HuBERT-base; the other base models are alike."""
        return cls(**changes)

    @classmethod
    def large(cls, **changes: Any) -> SpeechConfig:
        """Return the structure of HuBERT-large."""
        sizes = {"hidden_size": 1024, "intermediate_size": 4096}
        counts = {"num_hidden_layers": 24, "num_attention_heads": 16}
        style = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
        return cls(**sizes | counts | style | changes)

    # What every structure of a backbone has (`asdjax.models.backbone.Structure`).

    @property
    def transformer(self) -> Transformer:
        wavlm = self.kind == "wavlm"
        return Transformer(
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_hidden_layers,
            norm_first=self.do_stable_layer_norm,
            epsilon=self.layer_norm_eps,
            taps=self.num_conv_pos_embeddings,
            groups=self.num_conv_pos_embedding_groups,
            buckets=self.num_buckets if wavlm else 0,
            max_distance=self.max_bucket_distance,
            gate="input" if wavlm else None,
            dropout=self.hidden_dropout,
            attention_dropout=self.attention_dropout,
            activation_dropout=self.activation_dropout,
            layer_drop=self.layerdrop,
            first_stays=wavlm,
        )

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def layers_count(self) -> int:
        return self.num_hidden_layers

    @property
    def shortest_samples(self) -> int:
        samples = 1
        for taps, stride in zip(self.conv_kernel[::-1], self.conv_stride[::-1], strict=True):
            samples = (samples - 1) * stride + taps
        return samples

    def build(self, **how: Any) -> Speech:
        return Speech(self, **how)

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Return the wave `[B, N, 1]`; with `lengths` `[B, N, 2]`: and 1 where a clip is.

        With `do_normalize` each clip has mean 0 and variance 1; behind its end there are zeros.
        """
        wave = to_float(wave)
        inside = jnp.ones_like(wave)
        if lengths is not None:
            inside = (jnp.arange(wave.shape[1])[None] < lengths[:, None]).astype(jnp.float32)
        if self.do_normalize:
            count = jnp.maximum(inside.sum(1, keepdims=True), 1)
            wave = wave - (wave * inside).sum(1, keepdims=True) / count
            variance = (jnp.square(wave) * inside).sum(1, keepdims=True) / count
            wave = wave * lax.rsqrt(variance + VARIANCE)
        wave = wave * inside
        return wave[..., None] if lengths is None else jnp.stack([wave, inside], -1)

    def token_count(self, samples: int) -> int:
        return self.frames(samples)[-1]

    def frames(self, samples) -> list:
        """Return how many frames each convolution gives of a clip of `samples` (int or array)."""
        found = []
        for taps, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = (samples - taps) // stride + 1
            found.append(samples)
        return found

    def clip_bytes(self, samples: int, attention: Implementation = "auto") -> float:
        tokens, heads = self.token_count(samples), self.num_attention_heads
        scores = attention_bytes(tokens, heads, self.width, self.kind == "wavlm", attention)
        counts = zip(self.conv_dim, self.frames(samples), strict=True)
        frames = 3 * 4 * max(channels * count for channels, count in counts)
        return frames + scores + layers.token_bytes(self.width, self.intermediate_size) * tokens

    def token_padding(self, samples: int, lengths: jax.Array) -> jax.Array:
        """Return `[B, L]` bool, True for tokens that samples behind a clip's end are in."""
        valid = self.frames(jnp.asarray(lengths))[-1]
        return jnp.arange(self.token_count(samples))[None] >= valid[:, None]

    def for_features(self, params: Params) -> tuple[SpeechConfig, Params]:
        return self, params

    def without_dropout(self) -> SpeechConfig:
        return replace(self, **dict.fromkeys(RATES, 0.0))


RATES = "feat_proj_dropout", "hidden_dropout", "attention_dropout", "activation_dropout"
RATES = *RATES, "layerdrop"


class Speech(Encoder):
    """A wave in (`SpeechConfig.frontend`), tokens `[B, L, D]` out; L counts steps of 320 samples.

    Args:
        config: the structure.
        train: drop values and layers, from the random keys (`layers.Key`) that each step puts in.
        dtype, remat, attention: as of `Encoder`.
    """

    def __init__(
        self,
        config: SpeechConfig,
        *,
        dtype: Any = jnp.float32,
        train: bool = False,
        remat: layers.Remat = "nothing",
        attention: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        config = config if train else config.without_dropout()
        self.config, self.convs, inputs = config, nnx.List(), 1
        sizes = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
        for i, (outputs, taps, stride) in enumerate(sizes):
            norm = None if i and config.feat_extract_norm == "group" else config.feat_extract_norm
            how = {"bias": config.conv_bias, "norm": norm, "dtype": dtype, "rngs": rngs}
            self.convs.append(FrameConv(inputs, outputs, taps, stride, **how))
            inputs = outputs
        norm = layers.LayerNorm(inputs, config.layer_norm_eps, dtype=dtype)
        self.frame_norm = norm if config.feat_proj_layer_norm else None
        self.proj = layers.linear(inputs, config.hidden_size, dtype=dtype, rngs=rngs)
        self.proj_dropout = layers.Dropout(config.feat_proj_dropout)
        how = {"dtype": dtype, "remat": remat, "attention": attention, "rngs": rngs}
        super().__init__(config.transformer, **how)

    def __call__(
        self, wave: jax.Array, padding: jax.Array | None = None, layer: layers.Which = None
    ) -> jax.Array:
        """Return float32 tokens `[B, L, D]`.

        Args:
            wave: `[B, N, 1]`, or `[B, N, 2]` with what is inside of each clip.
            padding, layer: as of `Encoder.encode`.
        """
        return self.encode(self.project(self.frames(wave)), padding, layer)

    def frames(self, wave: jax.Array) -> jax.Array:
        """Return the output of the convolutions, `[B, L, C]`."""
        first, *others = self.convs
        inside = None
        if wave.shape[-1] == 2:
            lengths = wave[..., 1].sum(1).astype(jnp.int32)
            counts = self.config.frames(lengths)[0]
            inside = jnp.arange(self.config.frames(wave.shape[1])[0])[None] < counts[:, None]
        x = first(wave[..., :1], inside)
        for conv in others:
            x = conv(x)
        return x

    def project(self, frames: jax.Array) -> jax.Array:
        """Return `[B, L, D]`: the norm of the frames, projected."""
        x = frames if self.frame_norm is None else self.frame_norm(frames)
        return self.proj_dropout(self.proj(x))


class FrameConv(nnx.Module):
    """A convolution along time without padding, a norm, and GELU.

    Args:
        norm: "group": each channel over the time of its clip (a group norm of as many groups as
            channels); "layer": each frame over its channels; None.

    Source: Wu and He 2018, "Group normalization" (arXiv 1803.08494), equations 1 to 4.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        taps: int,
        stride: int,
        *,
        bias: bool,
        norm: Literal["group", "layer"] | None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        start = jax.random.normal(rngs.params(), (taps, inputs, outputs))
        self.kernel = nnx.Param((2 / (taps * inputs)) ** 0.5 * start)
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.over_time, self.stride, self.dtype = norm == "group", stride, dtype
        self.norm = layers.LayerNorm(outputs, dtype=dtype) if norm else None

    def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
        """Return `[B, M, outputs]` from `[B, N, inputs]`.

        Args:
            inside: `[B, M]` bool, the frames that count for a norm over time; None: all.
        """
        if self.over_time:
            return layers.gelu(self._over_time(x, inside))
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (self.stride,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        if self.bias is not None:
            y = y + layers.along(self.bias[...].astype(y.dtype), y)
        return layers.gelu(y if self.norm is None else self.norm(y))

    def _over_time(self, x, inside):
        """Return the convolution, normalized over time.

        Windows without their mean give channels without theirs, so a bias cancels, and one pass
        over the widest values of the model (500 MB for 8 clips of 10 s) tells their variance.
        """
        taps, inputs, outputs = self.kernel.shape
        count = (x.shape[1] - taps) // self.stride + 1
        last = self.stride * (count - 1) + 1
        rows = [x[:, tap : tap + last : self.stride] for tap in range(taps)]
        rows = jnp.concatenate(rows, -1).astype(jnp.float32)  # [B, M, taps inputs]
        weight = jnp.ones((len(x), count)) if inside is None else inside.astype(jnp.float32)
        weight = (weight / jnp.maximum(weight.sum(1, keepdims=True), 1))[..., None]
        rows = rows - (weight * rows).sum(1, keepdims=True)
        kernel = self.kernel[...].reshape(taps * inputs, outputs)
        y = layers.dense(rows.astype(self.dtype), kernel, None).astype(jnp.float32)
        gain = lax.rsqrt((weight * jnp.square(y)).sum(1, keepdims=True) + self.norm.epsilon)
        gain = gain * layers.along(self.norm.scale[...], gain)
        return (y * gain + layers.along(self.norm.bias[...], y)).astype(self.dtype)
