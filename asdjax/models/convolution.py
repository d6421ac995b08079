"""Convolution and pooling, channels last, in the forms that run fastest on a CPU.

"Same" padding is TensorFlow's: ceil(n / stride) outputs, an odd sample of padding behind.
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

initializer = nnx.initializers.glorot_uniform()  # Keras' default, as in the code of Wilkinghoff
Conv2d = partial(nnx.Conv, use_bias=False, kernel_init=initializer)  # XLA's own is fast here


class Conv1d(nnx.Module):
    """A convolution without bias and "same": `[B, N, inputs]` -> `[B, ceil(N / stride), outputs]`.

    The kernel is a whole number of strides long. So the input is cut into blocks of a stride, and
    a window is some blocks in a row: one matrix product, and no gather of overlapping windows. On a
    CPU, XLA's own takes 7 times as long backwards with 64 taps, a stride of 32 and 128 channels.
    """

    def __init__(
        self, inputs: int, outputs: int, taps: int, stride: int, *, dtype: str, rngs: nnx.Rngs
    ):
        assert taps % stride == 0
        self.stride, self.dtype = stride, dtype
        self.kernel = nnx.Param(initializer(rngs.params(), (taps, inputs, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        taps, _, outputs = kernel.shape
        x = _blocks(x.astype(self.dtype), taps, self.stride)
        parts = taps // self.stride
        count = x.shape[1] - parts + 1
        windows = jnp.concatenate([x[:, i : i + count] for i in range(parts)], -1)
        return windows @ kernel.reshape(-1, outputs)


def _blocks(x, taps: int, stride: int):
    """Return `[B, blocks, stride C]` of `[B, N, C]`, padded for windows of `taps` samples."""
    clips, samples, channels = x.shape
    blocks = -(-samples // stride) + taps // stride - 1
    padding = blocks * stride - samples
    x = jnp.pad(x, ((0, 0), (padding // 2, padding - padding // 2), (0, 0)))
    return x.reshape(clips, blocks, stride * channels)


def max_pool(x: jax.Array, window: tuple[int, int], stride: int | tuple[int, int], *, same: bool):
    """Return the maxima of `[B, H, W, C]` over windows of H and W.

    One axis after the other, of strided slices: the gradient is that of `maximum`, equal shares
    where values tie. That of `lax.reduce_window` searches every window again: on a CPU it takes 9
    times as long.

    Args:
      same: pad "same", else leave out what fills no window.
    """
    strides = np.broadcast_to(stride, 2).tolist()
    for axis in (1, 2):
        size, step = window[axis - 1], strides[axis - 1]
        if same:
            x = _padded(x, axis, size, step)
        count = (x.shape[axis] - size) // step + 1
        ends = [(i, i + (count - 1) * step + 1) for i in range(size)]
        x = reduce(jnp.maximum, [jax.lax.slice_in_dim(x, *e, step, axis) for e in ends])
    return x


def _padded(x, axis: int, window: int, stride: int):
    count = -(-x.shape[axis] // stride)
    padding = max((count - 1) * stride + window - x.shape[axis], 0)
    widths = [(0, 0)] * x.ndim
    widths[axis] = padding // 2, padding - padding // 2
    return jnp.pad(x, widths, constant_values=-jnp.inf)
