"""From tokens `[B, L, D]` to one vector per clip: their mean, their first, or attentive statistics.

Everything here is float32 whatever the tokens are, and padded tokens change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from asdjax.models.layers import BatchNorm
from asdjax.types import InputError

Pooling = Literal["mean", "cls", "statistics"]

VARIANCE_FLOOR = 1e-4  # of both standard deviations; also keeps their gradients finite
NOTHING = -1e30  # a logit without weight; finite, so a clip that is all padding gives no nan


def masked_mean(x, inside):
    """Average `x [B, L, D]` over L where `inside [B, L, 1]`; 0 where nothing is."""
    total = jnp.where(inside, x, 0.0).sum(1)
    return total / jnp.maximum(inside.sum(1), 1)


def mean_token(tokens: jax.Array, inside: jax.Array | None) -> jax.Array:
    """Return the mean of the real tokens, `[B, D]`; `inside [B, L]`, None if all are real."""
    tokens = tokens.astype(jnp.float32)
    return tokens.mean(1) if inside is None else masked_mean(tokens, inside[..., None])


def cls_token(tokens: jax.Array, inside: jax.Array | None) -> jax.Array:
    """Return the first token, `[B, D]`, which attention has filled with what the others hold."""
    return tokens[:, 0].astype(jnp.float32)


class AttentiveStatistics(nnx.Module):
    """Mean and standard deviation over tokens, weighted by attention of its own for each channel.

    A token is scored with the clip's plain mean and deviation beside it: `[x, mean, std]` through
    a linear layer to D / 16, ReLU, BatchNorm, tanh and a linear layer to D; a softmax over the real
    tokens weighs channel by channel. BatchNorm follows on the statistics `[B, 2 D]`.

    Deviations are those of the population (1 / n), so that a clip of one token has some.

    Args:
        width: D; below 16 the hidden layer has one channel.
        train: normalize by the batch and update the running statistics (`nnx.BatchStat`), or
            normalize by these.

    Source: Desplanques et al. 2020, "ECAPA-TDNN" (arXiv 2005.07143), section 3.1; its f is tanh
        here, after the ReLU and BatchNorm that follow the other convolutions there, and the hidden
        layer has D / 16 channels, not 128 (both as in ASDKit).
    """

    def __init__(self, width: int, *, train: bool, rngs: nnx.Rngs):
        hidden = max(width // 16, 1)
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (3 * width, hidden)))  # of [x, mean, std]
        self.bias = nnx.Param(jnp.zeros(hidden))
        self.hidden_norm = BatchNorm(hidden, train=train, rngs=rngs)
        self.score = nnx.Linear(hidden, width, rngs=rngs)
        self.norm = BatchNorm(2 * width, train=train, rngs=rngs)

    def __call__(self, tokens: jax.Array, inside: jax.Array | None = None) -> jax.Array:
        """Return float32 `[B, 2 D]`; `inside [B, L]`, None if all tokens are real."""
        x = tokens.astype(jnp.float32)
        if inside is None:
            inside = jnp.ones(x.shape[:2], bool)
        inside = inside[..., None]
        x = jnp.where(inside, x, 0.0)
        # The compiler for TPUs (libtpu 0.0.42) crashes where it fuses these with what follows.
        logits = lax.optimization_barrier(self._logits(x, inside))
        logits = jnp.where(inside, logits, NOTHING)
        statistics = _statistics(x, jax.nn.softmax(logits, axis=1))
        return self.norm(jnp.concatenate(statistics, -1))

    def _logits(self, x, inside):
        """Return `[B, L, D]` from `x [B, L, D]`, 0 where not `inside [B, L, 1]`.

        The mean and deviation are the same for all tokens of a clip, so their two thirds of the
        kernel act once per clip: the same sum as over `[x, mean, std]`, without `[B, L, 3 D]`.
        """
        mean, deviation = _statistics(x, inside / jnp.maximum(inside.sum(1, keepdims=True), 1))
        of_token, of_mean, of_deviation = jnp.split(self.kernel[...], 3)
        clip = mean @ of_mean + deviation @ of_deviation + self.bias[...][None]
        hidden = jax.nn.relu(x @ of_token + clip[:, None])
        return self.score(jnp.tanh(self.hidden_norm(hidden, mask=inside)))


def _statistics(x, weight):
    """Return mean and deviation over L of `x [B, L, D]`; `weight` sums to 1 over L."""
    mean = (weight * x).sum(1)
    variance = (weight * jnp.square(x - mean[:, None])).sum(1)
    return mean, jnp.sqrt(jnp.maximum(variance, VARIANCE_FLOOR))


def make_pool(
    kind: Pooling, width: int, *, train: bool, rngs: nnx.Rngs
) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    """Return what maps `tokens [B, L, D]` and `inside [B, L]` or None to float32 `[B, P]`."""
    if kind not in get_args(Pooling):
        raise InputError(f"expected pooling {', '.join(get_args(Pooling))}, got {kind}")
    if kind == "statistics":
        return AttentiveStatistics(width, train=train, rngs=rngs)
    return {"mean": mean_token, "cls": cls_token}[kind]


def pool_width(kind: Pooling, width: int) -> int:
    """Return P, the width of what `make_pool` gives from tokens of `width`."""
    return 2 * width if kind == "statistics" else width
