"""Convolutional block attention: two gates on a feature map, first by channel, then by place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

REDUCTION, TAPS = 16, 7


class Cbam(nnx.Module):
    """Scale channels and then places of `[B, ..., C]` by gates between 0 and 1.

    The channel gate is sigmoid(MLP(mean over places) + MLP(maximum over places)) with one hidden
    layer of C / 16 and ReLU; the place gate is the sigmoid of a convolution with 7 taps along each
    axis of [mean over channels, maximum over channels]. No layer has a bias. Gates are float32.

    Args:
      channels: C; below 32 the hidden layer has one unit.
      axes: of places between batch and channels, 1 or 2.

    Source: Woo et al. 2018, "CBAM: Convolutional block attention module" (ECCV), equations 2 and 3.
    """

    def __init__(self, channels: int, axes: int, *, rngs: nnx.Rngs):
        hidden = max(channels // REDUCTION, 1)
        self.reduce = nnx.Linear(channels, hidden, use_bias=False, rngs=rngs)
        self.expand = nnx.Linear(hidden, channels, use_bias=False, rngs=rngs)
        self.place = nnx.Conv(2, 1, (TAPS,) * axes, use_bias=False, rngs=rngs)
        self.axes = tuple(range(1, 1 + axes))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x * jnp.expand_dims(self._of_channels(x), self.axes)
        seen = jnp.stack([x.mean(-1), x.max(-1)], -1)
        return x * jax.nn.sigmoid(self.place(seen))

    def _of_channels(self, x):
        """Return the gate `[B, C]`."""
        pooled = x.mean(self.axes), x.max(self.axes)
        return jax.nn.sigmoid(sum(self.expand(jax.nn.relu(self.reduce(p))) for p in pooled))
