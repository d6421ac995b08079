"""Convolutions, pooling and CBAM, channels last.

"Same" padding is TensorFlow's: ceil(n / stride) outputs, an odd sample of padding at the end.
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from asdjax.devices import by_device

glorot = nnx.initializers.glorot_uniform()  # Keras' default, as in the code of Wilkinghoff
AT_ONCE = 2  # clips whose gradients of a kernel are summed together on a CPU


class Conv2d(nnx.Module):
    """A convolution without bias and "same": `[B, H, W, inputs]` -> `[B, H', W', outputs]`.

    H' is ceil(H / stride), and so is W'. On a CPU the gradient of a float32 kernel is a product for
    each row of taps; XLA's own moves the clips to the last axis first, which takes longer.
    """

    def __init__(
        self, inputs: int, outputs: int, taps: tuple[int, int], stride: int = 1, *, dtype, rngs
    ):
        self.stride, self.dtype = stride, dtype
        self.kernel = nnx.Param(glorot(rngs.params(), (*taps, inputs, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        def convolved(x, kernel):  # gradients are summed over devices in float32
            return _convolved(self.stride, x.astype(self.dtype), kernel.astype(self.dtype))

        return by_device(convolved, x, self.kernel[...])


def _convolution(stride, x, kernel):
    sizes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=sizes)


def _convolution_backward(stride, saved, slope):
    x, kernel = saved
    (to_x,) = jax.vjp(lambda x: _convolution(stride, x, kernel), x)[1](slope)

    def by_xla(x, slope):
        return jax.vjp(lambda kernel: _convolution(stride, x, kernel), kernel)[1](slope)[0]

    by_rows = partial(_kernel_gradient, kernel.shape[:2], stride)
    if x.dtype != jnp.float32:
        return to_x, by_xla(x, slope)
    return to_x, lax.platform_dependent(x, slope, cpu=by_rows, default=by_xla)


_convolved = jax.custom_vjp(_convolution, nondiff_argnums=(0,))
_convolved.defvjp(lambda *given: (_convolution(*given), given[1:]), _convolution_backward)


def _kernel_gradient(taps, stride, x, slope):
    """Return the gradient `[h, w, inputs, outputs]` of a kernel of `taps` h x w.

    The input's columns that one row of taps sees lie side by side, so that each row of taps is one
    product over places; a few clips at a time, which stay in the cache.
    """
    padding = [_same_padding(n, t, stride) for n, t in zip(x.shape[1:3], taps, strict=True)]
    height, width, outputs = slope.shape[1:]

    def of_some(x, slope):
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        columns = [_every(x, 2, i, width, stride) for i in range(taps[1])]
        x = jnp.concatenate(columns, -1)
        slope = slope.reshape(-1, outputs)
        rows = [_every(x, 1, i, height, stride) for i in range(taps[0])]
        return jnp.stack([jnp.matmul(row.reshape(len(slope), -1).T, slope) for row in rows])

    together = len(x) // AT_ONCE * AT_ONCE
    parts = [y[:together].reshape(-1, AT_ONCE, *y.shape[1:]) for y in (x, slope)]
    total = jnp.zeros((taps[0], taps[1] * x.shape[3], outputs))
    if together < len(x):
        total = of_some(x[together:], slope[together:])
    total, _ = lax.scan(lambda total, part: (total + of_some(*part), None), total, tuple(parts))
    return total.reshape(*taps, x.shape[3], outputs)


def _every(x, axis: int, first: int, count: int, step: int):
    return lax.slice_in_dim(x, first, first + (count - 1) * step + 1, step, axis)


def _same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and behind an axis with "same" padding."""
    missing = max((-(-size // stride) - 1) * stride + window - size, 0)
    return missing // 2, missing - missing // 2


class Conv1d(nnx.Module):
    """A convolution without bias and "same": `[B, N, inputs]` -> `[B, ceil(N / stride), outputs]`.

    The kernel is a whole number of strides long. So the input is cut into blocks of a stride, and
    a window is some blocks in a row: one matrix product, and no gather of overlapping windows. On a
    CPU, XLA's own takes 7 times as long backwards with 64 taps, a stride of 32 and 128 channels.
    """

    def __init__(self, inputs: int, outputs: int, taps: int, stride: int, *, dtype, rngs: nnx.Rngs):
        assert taps % stride == 0
        self.stride, self.dtype = stride, dtype
        self.kernel = nnx.Param(glorot(rngs.params(), (taps, inputs, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        taps, _, outputs = kernel.shape
        clips, samples, channels = x.shape
        parts, count = taps // self.stride, -(-samples // self.stride)
        padding = (count + parts - 1) * self.stride - samples
        sides = padding // 2, padding - padding // 2
        x = jnp.pad(x.astype(self.dtype), ((0, 0), sides, (0, 0)))
        x = x.reshape(clips, -1, self.stride * channels)
        windows = jnp.concatenate([x[:, i : i + count] for i in range(parts)], -1)
        return windows @ kernel.reshape(-1, outputs)


def max_pool(x: jax.Array, window: tuple[int, int], stride: int | tuple[int, int], *, same: bool):
    """Return the maxima of `[B, H, W, C]` over windows of H and W.

    One axis after the other, of strided slices: the gradient is that of `maximum`, equal shares
    where values tie. That of `lax.reduce_window` searches every window again: on a CPU it takes 9
    times as long.

    Args:
        same: pad "same", else leave out what fills no window.
    """
    for axis, size, step in zip((1, 2), window, np.broadcast_to(stride, 2).tolist(), strict=True):
        if same:
            widths = [(0, 0)] * x.ndim
            widths[axis] = _same_padding(x.shape[axis], size, step)
            x = jnp.pad(x, widths, constant_values=-jnp.inf)
        count = (x.shape[axis] - size) // step + 1
        x = reduce(jnp.maximum, [_every(x, axis, i, count, step) for i in range(size)])
    return x


class Cbam(nnx.Module):
    """Convolutional block attention: scale the channels of `[B, ..., C]`, and then its places.

    The channel gate is sigmoid(MLP(mean over places) + MLP(maximum over places)) with one hidden
    layer of C / 16 and ReLU; the place gate is the sigmoid of a convolution with 7 taps along each
    axis of [mean over channels, maximum over channels]. No layer has a bias. Gates are float32.

    Args:
        channels: C; below 32 the hidden layer has one unit.
        axes: of places between batch and channels, 1 or 2.

    Source: Woo et al. 2018, "CBAM: Convolutional block attention module" (ECCV), equations 2 and 3.
    """

    def __init__(self, channels: int, axes: int, *, rngs: nnx.Rngs):
        hidden = max(channels // 16, 1)
        self.reduce = nnx.Linear(channels, hidden, use_bias=False, rngs=rngs)
        self.expand = nnx.Linear(hidden, channels, use_bias=False, rngs=rngs)
        self.place = nnx.Conv(2, 1, (7,) * axes, use_bias=False, rngs=rngs)
        self.axes = tuple(range(1, 1 + axes))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        pooled = x.mean(self.axes), x.max(self.axes)
        gate = jax.nn.sigmoid(sum(self.expand(jax.nn.relu(self.reduce(p))) for p in pooled))
        x = x * jnp.expand_dims(gate, self.axes)
        return x * jax.nn.sigmoid(self.place(jnp.stack([x.mean(-1), x.max(-1)], -1)))
