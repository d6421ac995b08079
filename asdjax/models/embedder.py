"""Embedders: a pure function from waves to one vector per clip, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from asdjax import params as weights
from asdjax.frontend.fbank import BEATS, fbank, frame_mask
from asdjax.models.autoencoder import score_clips
from asdjax.models.backbone import Backbone
from asdjax.models.lora import fold
from asdjax.models.pooling import masked_mean
from asdjax.models.system import Base, Branch, Input, Trained, named, of_branch, take_apart
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
    """`apply(own, wave [B, N], lengths [B]) -> [B, E] float32`, to be jitted by the caller.

    `own = select(params, (machine, section))` are the weights for clips of one machine.
    """

    params: Params
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]
    select: Callable[[Params, tuple[str, str]], Params] = lambda params, group: params


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


def trained_embedder(bases: Sequence[Base], config: Trained, trained: Params) -> Embedder:
    """Return the embedder of a trained system; adapters are folded into the weights.

    Args:
      bases: what its branches began with.
      trained: trainable weights and statistics, as training saves them; heads are left out.

    Raises:
      InputError: `trained` is not of such a system.
    """
    structures, weights_of = zip(*(b.config.for_features(b.params) for b in bases), strict=True)
    kept = {name: value for name, value in trained.items() if not name.startswith("heads.")}
    params = _folded(named(weights_of) | kept, config)
    plain = replace(config, branches=tuple(map(_without_adapter, config.branches)))
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


def autoencoder_embedder(trained: Params) -> Embedder:
    """Return the embedder of the baseline's autoencoders, of which every machine has its own.

    Args:
      trained: names begin with `<machine>_<section>.`, as training saves them.
    """
    kept = {name: value for name, value in trained.items() if ".batches." not in name}

    def select(params: Params, group: tuple[str, str]) -> Params:
        begin = "_".join(group) + "."
        return {n.removeprefix(begin): value for n, value in params.items() if n.startswith(begin)}

    return Embedder(kept, score_clips, select)


def _folded(params: Params, config: Trained) -> Params:
    """Fold the adapters of every branch."""
    for i, branch in enumerate(config.branches):
        own = {name: value for name, value in params.items() if name.startswith(of_branch(i))}
        others = {name: value for name, value in params.items() if name not in own}
        adapter = getattr(branch, "adapter", None)
        params = others | (fold(own, adapter) if adapter else own)
    return params


def _without_adapter(branch: object) -> object:
    return replace(branch, adapter=None) if isinstance(branch, Branch) else branch


def logmel_statistics(wave, lengths):
    """Return `[B, 256]`: mean and standard deviation over the clip's frames of each band."""
    mel = fbank(wave, BEATS, lengths)
    inside = frame_mask(lengths, mel.shape[1])
    mean = masked_mean(mel, inside)
    variance = masked_mean(jnp.square(mel - mean[:, None]), inside)
    return jnp.concatenate([mean, jnp.sqrt(variance)], -1)
