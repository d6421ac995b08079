"""Randomness as a parameter: a module that draws holds a `Key`, and each training step puts one in.

A model is built twice from one configuration: for training, and for use with every rate at 0. The
second has no keys and draws nothing; the names of the weights are the same in both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

RESOLUTION = 2**16  # rates are rounded to this part: 16 random bits a value, not 32


class Key(nnx.Variable):
    """A random key; what the module holds at first is only a place for the step's own."""


class Dropout(nnx.Module):
    """Zero values with probability `rate` and scale the others by 1 / (1 - rate).

    Args:
        rate: in [0, 1); 0 returns the input and needs no key.
    """

    def __init__(self, rate: float):
        self.rate = rate
        self.key = Key(jax.random.key(0)) if rate > 0 else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return x if self.key is None else dropout(x, self.rate, self.key[...])

    def drawn(self) -> jax.Array | None:
        """Return the key, for a function that drops by itself; None without dropout."""
        return None if self.key is None else self.key[...]

    def per_clip(self, x: jax.Array) -> jax.Array:
        """Return `x [B, ...]` with whole clips 0, the others scaled (drop path, Huang 2016)."""
        if self.key is None:
            return x
        inside = kept((len(x), 1), self.rate, self.key[...]).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(inside, x * scale_of(self.rate), 0.0).astype(x.dtype)

    def choose(self, skipped: jax.Array, computed: jax.Array) -> jax.Array:
        """Return `skipped` as a whole with probability `rate`, else `computed` (layer drop)."""
        if self.key is None:
            return computed
        return jnp.where(jax.random.uniform(self.key[...]) < self.rate, skipped, computed)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Return `x` with a random part of about `rate` of its values 0 and the others scaled up."""
    return jnp.where(kept(x.shape, rate, key), x * scale_of(rate), 0.0).astype(x.dtype)


def kept(shape: tuple[int, ...], rate: float, key: jax.Array) -> jax.Array:
    """Return a random bool array: False where dropout puts 0."""
    pairs = *shape[:-1], -(-shape[-1] // 2)  # JAX draws 32 bits at a time; 16 are enough
    bits = lax.bitcast_convert_type(jax.random.bits(key, pairs, jnp.uint32), jnp.uint16)
    bits = bits.reshape(*shape[:-1], -1)[..., : shape[-1]]
    return bits >= round(rate * RESOLUTION)


def scale_of(rate: float) -> float:
    """Return the factor of what dropout keeps."""
    return RESOLUTION / (RESOLUTION - round(rate * RESOLUTION))


def keys_for(names: list[str], key: jax.Array) -> dict[str, jax.Array]:
    """Return one independent key per name, to merge into a model."""
    return dict(zip(names, jax.random.split(key, len(names)), strict=True)) if names else {}
