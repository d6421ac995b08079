"""Embedders: a pure function from waves to one vector per clip, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from asdjax import params as weights
from asdjax.frontend.fbank import BEATS, fbank, frame_mask
from asdjax.models.backbone import Backbone
from asdjax.models.lora import fold
from asdjax.models.pooling import masked_mean
from asdjax.models.system import FineTuned, Input, named, of_branch, take_apart
from asdjax.params import Params
from asdjax.types import InputError


@dataclass(frozen=True)
class LogMel:
    """Time mean and standard deviation of a 128-band log-mel, `[256]`: needs no weights."""


@dataclass(frozen=True)
class Pretrained:
    """One vector of a frozen backbone, `[D]`.

    Args:
      weights: a name of `asdjax weights list` or a converted `.safetensors` file.
      layer: which layer's output; None is the last.
      pooling: the mean over the tokens of patches, or the class token (EAT).
      dtype: of the matrix products; parameters, norms and the mean stay float32.
    """

    weights: str = "beats-iter3"
    layer: int | None = None
    pooling: Literal["mean", "cls"] = "mean"
    dtype: Literal["float32", "bfloat16"] = "float32"


class Embedder(NamedTuple):
    """`apply(params, wave [B, N], lengths [B]) -> [B, E] float32`, to be jitted by the caller."""

    params: Params
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]


def logmel_embedder() -> Embedder:
    return Embedder({}, lambda params, wave, lengths: logmel_statistics(wave, lengths))


def backbone_embedder(backbone: Backbone, config: Pretrained) -> Embedder:
    extra = backbone.config.extra_tokens
    if config.pooling == "cls" and not extra:
        raise InputError('pooling "cls": BEATs has no class token; use "mean"')

    def apply(params, wave, lengths):
        tokens = backbone.apply(params, wave, lengths, config.layer)
        if config.pooling == "cls":
            return tokens[:, 0]
        padding = backbone.token_padding(wave.shape[1], lengths)
        return masked_mean(tokens[:, extra:], ~padding[:, extra:, None])

    return Embedder(backbone.params, apply)


def finetuned_embedder(
    backbones: Sequence[Backbone], config: FineTuned, trained: Params
) -> Embedder:
    """Return the embedder of a trained system; adapters are folded into the weights.

    Args:
      backbones: those it was trained from, one per branch.
      trained: trainable weights and statistics, as training saves them; heads are left out.

    Raises:
      InputError: `trained` is not of such a system.
    """
    each = [backbone.config.for_features(backbone.params) for backbone in backbones]
    structures, bases = zip(*each, strict=True)
    kept = {name: value for name, value in trained.items() if not name.startswith("heads.")}
    params = _folded(named(bases) | kept, config)
    plain = replace(config, branches=tuple(replace(b, adapter=None) for b in config.branches))
    parts = take_apart(plain, structures, train=False)
    if problems := weights.misfits(params, parts.statistics | parts.trainable | parts.frozen):
        raise InputError(f"the trained weights do not fit the system{problems}")

    def apply(params, wave, lengths):
        samples = wave.shape[1]
        inputs = [
            Input(s.frontend(wave, lengths), s.token_padding(samples, lengths)) for s in structures
        ]
        return weights.merge(parts.graph, params)(inputs)

    return Embedder(params, apply)


def _folded(params: Params, config: FineTuned) -> Params:
    """Fold the adapters of every branch."""
    for i, branch in enumerate(config.branches):
        own = {name: value for name, value in params.items() if name.startswith(of_branch(i))}
        others = {name: value for name, value in params.items() if name not in own}
        params = others | (fold(own, branch.adapter) if branch.adapter else own)
    return params


def logmel_statistics(wave, lengths):
    """Return `[B, 256]`: mean and standard deviation over the clip's frames of each band."""
    mel = fbank(wave, BEATS, lengths)
    inside = frame_mask(lengths, mel.shape[1])
    mean = masked_mean(mel, inside)
    variance = masked_mean(jnp.square(mel - mean[:, None]), inside)
    return jnp.concatenate([mean, jnp.sqrt(variance)], -1)
