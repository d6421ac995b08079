"""Frozen embedders: a pure function from waves to one vector per clip, and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from asdjax.frontend.fbank import BEATS, fbank, frame_mask
from asdjax.models.backbone import Backbone
from asdjax.params import Params


@dataclass(frozen=True)
class LogMel:
    """Time mean and standard deviation of a 128-band log-mel, `[256]`: needs no weights."""


@dataclass(frozen=True)
class Pretrained:
    """Mean over the tokens of a frozen backbone, `[D]`.

    Args:
      weights: a name of `asdjax weights list` or a converted `.safetensors` file.
      layer: which layer's output; None is the last.
      dtype: of the matrix products; parameters, norms and the mean stay float32.
    """

    weights: str = "beats-iter3"
    layer: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class Embedder(NamedTuple):
    """`apply(params, wave [B, N], lengths [B]) -> [B, E] float32`, to be jitted by the caller."""

    params: Params
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]


def logmel_embedder() -> Embedder:
    return Embedder({}, lambda params, wave, lengths: logmel_statistics(wave, lengths))


def backbone_embedder(backbone: Backbone, layer: int | None) -> Embedder:
    def apply(params, wave, lengths):
        tokens = backbone.apply(params, wave, lengths, layer)
        padding = backbone.token_padding(wave.shape[1], lengths)
        return masked_mean(tokens.astype(jnp.float32), ~padding[..., None])

    return Embedder(backbone.params, apply)


def logmel_statistics(wave, lengths):
    """Return `[B, 256]`: mean and standard deviation over the clip's frames of each band."""
    mel = fbank(wave, BEATS, lengths)
    inside = frame_mask(lengths, mel.shape[1])
    mean = masked_mean(mel, inside)
    variance = masked_mean(jnp.square(mel - mean[:, None]), inside)
    return jnp.concatenate([mean, jnp.sqrt(variance)], -1)


def masked_mean(x, inside):
    """Average `x [B, L, D]` over L where `inside [B, L, 1]`; 0 where nothing is."""
    total = jnp.where(inside, x, 0.0).sum(1)
    return total / jnp.maximum(inside.sum(1), 1)
