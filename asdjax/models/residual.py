"""A residual block over frames and frequencies."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from asdjax.models.cbam import Cbam
from asdjax.models.convolution import Conv2d, max_pool
from asdjax.models.norm import batch_norm


class Residual(nnx.Module):
    """Norm, ReLU and convolution of 3 x 3, twice, and then the input added; the sum is float32.

    With a stride the added input is the maximum over 2 x 2; with other channels it goes through a
    convolution of 1 x 1.

    Args:
      stride: 1 or 2, of the first convolution.
      cbam: gate channels and places of what is added to the input.
      dtype: of the convolutions.
      epsilon, train: of the norms, see `batch_norm`.

    Source: He et al. 2016, "Identity mappings in deep residual networks" (arXiv 1603.05027),
        figure 4 (e), full pre-activation; the shortcut of a changed shape is Wilkinghoff's (2023).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        cbam: bool,
        dtype: str,
        epsilon: float,
        train: bool,
        rngs: nnx.Rngs,
    ):
        norm = partial(batch_norm, epsilon=epsilon, train=train, rngs=rngs)
        convolution = partial(Conv2d, dtype=dtype, rngs=rngs)
        self.stride = stride
        self.norm1 = norm(inputs)
        self.conv1 = convolution(inputs, outputs, (3, 3), stride)
        self.norm2 = norm(outputs)
        self.conv2 = convolution(outputs, outputs, (3, 3))
        self.gate = Cbam(outputs, axes=2, rngs=rngs) if cbam else None
        self.shortcut = convolution(inputs, outputs, (1, 1)) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[B, ceil(H / stride), ceil(W / stride), outputs]` of `[B, H, W, inputs]`."""
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        y = y if self.gate is None else self.gate(y)
        x = x if self.stride == 1 else max_pool(x, (2, 2), 2, same=True)
        x = x if self.shortcut is None else self.shortcut(x)
        return x.astype(jnp.float32) + y
