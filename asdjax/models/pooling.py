"""From tokens `[B, L, D]` to one vector per clip: means of several kinds, the first, statistics.

Everything here is float32 whatever the tokens are, and padded tokens change nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from asdjax.models.layers import BatchNorm
from asdjax.types import InputError, check

Pooling = Literal["mean", "cls", "statistics"]
LOW, HIGH = 0.1, 0.5  # of `Pool.clean`

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


@dataclass(frozen=True)
class Pool:
    """A mean over tokens without weights to train that keeps more than the plain one.

    Token t has the weight w_t, in proportion to (1 + e_t / max e)^deviation with e_t = |x_t - mean|
    (relative-deviation pooling, RDP). The vector is sum w_t x_t or, with a power p, the power mean
    (sum w_t max(x_t, 0)^p)^(1/p) of each value (generalized mean, GeM).

    Args:
      deviation: 0 weighs all tokens alike. Published: BEATs 19 (with power 3: 16), EAT 1; by bands
        4 or 8.
      power: None: none; infinite: the maximum. Published: BEATs 10, EAT 3.
      bands: pool each band of patches over time by itself; the vectors of the bands, the lowest
        first, are concatenated.
      clean: before, set values below 0.1 to 0 and those above 0.5 to their hyperbolic tangent, for
        the spikes of EAT's tokens.

    Source: Wilkinghoff, Yadav and Tan 2026, "Temporal pooling strategies for training-free
        anomalous sound detection" (arXiv 2603.04605), sections III.D to F, IV.B (EAT) and table
        III; Saengthong and Shinozaki 2026 (arXiv 2603.13749): bands.
    """

    deviation: float = 0.0
    power: float | None = None
    bands: bool = False
    clean: bool = False

    def __post_init__(self):
        power = 1.0 if self.power is None else self.power
        check(
            self,
            ("deviation", "a number >= 0", 0 <= self.deviation < math.inf),
            ("power", "> 0 or none", power > 0),
        )

    @classmethod
    def parse(cls, text: str) -> Pool:
        """Return the pooling that is called so: "mean", "RDP 8 power 3, bands", "rdp4,bands,clean".

        Raises:
          ValueError: another word.
        """
        number = r"(\d*\.?\d+|inf)"
        form = rf"(mean|(rdp{number})?(power{number})?)((?:,?(?:bands|clean))*)"
        found = re.fullmatch(form, text.lower().replace(" ", ""))
        if not (text and found):
            raise ValueError(
                f"expected mean, rdp8, power3, rdp8power3, with ,bands or ,clean; got {text}"
            )
        deviation, power, flags = found.group(3, 5, 6)
        return cls(
            float(deviation or 0),
            None if power is None else float(power),
            "bands" in flags,
            "clean" in flags,
        )

    def __str__(self):
        named = f"RDP {self.deviation:g}" if self.deviation else ""
        if self.power is not None:
            named += f" power {self.power:g}"
        flags = ["bands"] * self.bands + ["clean"] * self.clean
        return ", ".join([named.strip() or "mean", *flags])

    def width(self, width: int, bands: int) -> int:
        """Return the values of the vector of tokens of `width`, with so many bands."""
        return width * bands if self.bands else width

    def __call__(self, tokens: jax.Array, inside: jax.Array | None, bands: int) -> jax.Array:
        """Return float32 `[B, D]`, or `[B, F D]` by bands.

        Args:
          tokens: `[B, T F, D]`, the F = `bands` of a time behind each other.
          inside: `[B, T F]`; None if all are real.
        """
        x = tokens.astype(jnp.float32)
        if inside is None:
            inside = jnp.ones(x.shape[:2], bool)
        if self.clean:
            x = jnp.where(x < LOW, 0.0, jnp.where(x > HIGH, jnp.tanh(x), x))
        if not self.bands:
            return self._pooled(x, inside)
        x = x.reshape(len(x), -1, bands, x.shape[-1])
        pooled = jax.vmap(self._pooled, 2, 1)(x, inside.reshape(len(x), -1, bands))
        return pooled.reshape(len(x), -1)

    def _pooled(self, x, inside):
        """Return `[B, D]` of `[B, L, D]`."""
        inside = inside[..., None]
        x = jnp.where(inside, x, 0.0)
        weight = inside.astype(jnp.float32)
        if self.deviation:
            mean = masked_mean(x, inside)
            square = jnp.square(x - mean[:, None]).sum(-1, keepdims=True)
            away = _power(jnp.where(inside, square, 0.0), 0.5)
            most = away.max(1, keepdims=True)
            share = jnp.where(most > 0, away / jnp.where(most > 0, most, 1.0), 0.0)
            weight = weight * jnp.power((1 + share) / 2, self.deviation)  # at most 1
        total = weight.sum(1, keepdims=True)
        weight = weight / jnp.where(total > 0, total, 1.0)
        if self.power is None:
            return (weight * x).sum(1)
        largest = jnp.maximum(x, 0.0).max(1, keepdims=True)
        if self.power == math.inf:
            return largest[:, 0]
        share = jnp.maximum(x, 0.0) / jnp.where(largest > 0, largest, 1.0)
        total = (weight * _power(share, self.power)).sum(1)
        return _power(total, 1 / self.power) * largest[:, 0]


def _power(x, exponent: float):
    """Return x^exponent of x >= 0, whose gradient at 0 is 0."""
    return jnp.where(x > 0, jnp.power(jnp.where(x > 0, x, 1.0), exponent), 0.0)


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
    kind: Pooling | tuple[Pool, ...], width: int, bands: int, *, train: bool, rngs: nnx.Rngs
) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    """Return what maps `tokens [B, L, D]` and `inside [B, L]` or None to float32 `[B, P]`.

    Args:
      kind: of the pooling; the vectors of several `Pool` are concatenated.
      width: D.
      bands: patches of a time behind each other.
    """
    if not isinstance(kind, str):
        pools = kind  # a function, not a list of modules: they have no weights
        return lambda *tokens: jnp.concatenate([pool(*tokens, bands) for pool in pools], -1)
    if kind not in get_args(Pooling):
        raise InputError(f"expected pooling {', '.join(get_args(Pooling))}, got {kind}")
    if kind == "statistics":
        return AttentiveStatistics(width, train=train, rngs=rngs)
    return {"mean": mean_token, "cls": cls_token}[kind]


def pool_width(kind: Pooling | tuple[Pool, ...], width: int, bands: int) -> int:
    """Return P, the width of what `make_pool` gives from tokens of `width`."""
    if not isinstance(kind, str):
        return sum(pool.width(width, bands) for pool in kind)
    return 2 * width if kind == "statistics" else width
