"""Embedders: a pure function from waves to one vector per clip, and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from asdjax import params as weights
from asdjax.frontend.fbank import BEATS, beats_frontend, fbank, frame_mask
from asdjax.models.backbone import Backbone
from asdjax.models.lora import fold
from asdjax.models.pooling import masked_mean
from asdjax.models.system import BACKBONE, FineTuned, take_apart, without_predictor
from asdjax.params import Params
from asdjax.types import InputError


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


def finetuned_embedder(backbone: Backbone, config: FineTuned, trained: Params) -> Embedder:
    """Return the embedder of a trained system; adapters are folded into the weights.

    Args:
      backbone: the one it was trained from.
      trained: trainable weights and statistics, as training saves them; heads are left out.

    Raises:
      InputError: `trained` is not of such a system.
    """
    structure, base = without_predictor(backbone.config, backbone.params)
    named = {BACKBONE + name: value for name, value in base.items()} | trained
    if config.adapter is not None:
        named = fold(named, config.adapter)
    plain = replace(config, adapter=None)
    params = {name: value for name, value in named.items() if not name.startswith("heads.")}
    parts = take_apart(plain, structure, train=False)
    if problems := weights.misfits(params, parts.statistics | parts.trainable):
        raise InputError(f"the trained weights do not fit the system{problems}")

    def apply(params, wave, lengths):
        padding = backbone.token_padding(wave.shape[1], lengths)
        return weights.merge(parts.graph, params)(beats_frontend(wave), padding)

    return Embedder(params, apply)


def logmel_statistics(wave, lengths):
    """Return `[B, 256]`: mean and standard deviation over the clip's frames of each band."""
    mel = fbank(wave, BEATS, lengths)
    inside = frame_mask(lengths, mel.shape[1])
    mean = masked_mean(mel, inside)
    variance = masked_mean(jnp.square(mel - mean[:, None]), inside)
    return jnp.concatenate([mean, jnp.sqrt(variance)], -1)
