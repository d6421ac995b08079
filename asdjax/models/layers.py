"""Layers that several networks share: dropout, norms, dense layers, patches.

A module that draws at random holds a `Key`, and each training step puts a new key in. A model is
built twice from one configuration: for training, and for use with every rate at 0. The second has
no keys and draws nothing; the names of the weights are the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from asdjax.devices import first_row
from asdjax.types import InputError

MEL_BANDS = 128
LARGEST = 100_000  # of any count in a configuration: more is a damaged or hostile file


def divisor_rules(config: object, wholes: dict[str, int]) -> Iterator[tuple[str, str, bool]]:
    """Return the rules of fields that must divide a number, for `check`."""
    for name, whole in wholes.items():
        part = getattr(config, name)
        yield name, f"a divisor of {whole}", part >= 1 and whole % part == 0


# Keys of initial weights


class InitialKeys(nnx.Rngs):
    """The keys of initial weights: those of `nnx.Rngs`, but counted outside arrays.

    Where a model is built for its shapes alone, each count of `nnx.Rngs` makes JAX list all that
    was built before, for an error that Flax drops: the time grows with the square of the layers.
    """

    def __init__(self, seed: int | jax.Array):
        self.seed = jax.random.key(seed) if isinstance(seed, int) else seed
        self.drawn = 0

    def params(self) -> jax.Array:
        self.drawn += 1
        return jax.random.fold_in(self.seed, self.drawn - 1)


class Fixed(nnx.Variable):
    """Constants that belong to a model but are no parameters: they never train."""


# Dropout

RESOLUTION = 2**16  # rates are rounded to this part: 16 random bits a value, not 32


class Key(nnx.Variable):
    """A random key; its first value is a placeholder for the key of each step."""


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
        keep = kept((len(x), 1), self.rate, self.key[...]).reshape(-1, *[1] * (x.ndim - 1))
        return keep_only(x, keep, self.rate)

    def choose(self, skipped: jax.Array, computed: jax.Array) -> jax.Array:
        """Return `skipped` as a whole with probability `rate`, else `computed` (layer drop)."""
        if self.key is None:
            return computed
        return jnp.where(jax.random.uniform(self.key[...]) < self.rate, skipped, computed)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Return `x` with a random part of about `rate` of its values 0 and the others scaled up."""
    return keep_only(x, kept(x.shape, rate, key), rate)


def kept(shape: tuple[int, ...], rate: float, key: jax.Array) -> jax.Array:
    """Return a random bool array: False where dropout puts 0.

    Its first axis is that of clips, whose place in the whole batch counts.
    """
    rows = lax.iota(jnp.uint32, math.prod(shape[:-1])).reshape(*shape[:-1], 1)
    rows = rows + first_row(math.prod(shape[:-1]))
    columns = lax.iota(jnp.uint32, shape[-1]).reshape(*[1] * (len(shape) - 1), -1)
    return survivors(rate, random_words(key), rows, columns)


def random_words(key: jax.Array) -> jax.Array:
    """Return two words of a random key, `[2]` uint32, for `survivors`."""
    return jax.random.key_data(key).reshape(-1)[:2]


def survivors(rate: float, words: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return which values dropout keeps, by their place alone: the same on every device.

    The generator counts: a value is the finalizer of MurmurHash3 (Appleby 2008) of its column in
    the stream of its row, and a row has 64 bits, of its number and `words`. It costs a dozen
    operations where it is used, in a fusion or a kernel, and nothing is kept for the gradient.

    Args:
        rows, columns: uint32 that broadcast to what is returned.
    """
    first = _mixed(_mixed(rows ^ words[0]) + words[1])
    second = _mixed(first ^ jnp.uint32(0x9E3779B9) ^ words[0])
    x = first + columns * jnp.uint32(0x9E3779B9)  # 2^32 / golden ratio: all columns differ
    return (_mixed(x, second) >> 16).astype(jnp.int32) >= round(rate * RESOLUTION)


def _mixed(x: jax.Array, more: jax.Array | int = 0) -> jax.Array:
    """Return uint32 whose bits each depend on all bits of `x`; `more` enters halfway."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B) ^ more
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def survivors_scale(rate: float) -> float:
    """Return what dropout multiplies the kept values by."""
    return RESOLUTION / (RESOLUTION - round(rate * RESOLUTION))


def keep_only(x: jax.Array, keep: jax.Array, rate: float) -> jax.Array:
    """Return `x` with 0 where not `keep` and the others scaled up."""
    return jnp.where(keep, x * survivors_scale(rate), 0.0).astype(x.dtype)


def keys_for(names: list[str], key: jax.Array) -> dict[str, jax.Array]:
    """Return one independent key per name, to merge into a model."""
    return dict(zip(names, jax.random.split(key, len(names)), strict=True)) if names else {}


# Norms and dense layers

MOMENTUM = 0.9  # of the running statistics of a batch norm


class BatchNorm(nnx.Module):
    """A norm of the last axis, of `width`: by the batch in training, else by running values.

    Statistics are those of all other axes and of the whole batch, however many devices hold it, and
    float32 whatever comes in; the variance is that of deviations from the mean, for E[x^2] - E[x]^2
    cancels where the mean is large. Running ones (`nnx.BatchStat`) move by 0.1 of the way in each
    step (momentum 0.9; PyTorch calls it 0.1): within 100 steps they forget where they started,
    which Keras' 0.99 does not in the few hundred steps of a short training. Their variance is that
    of the population (1 / n); PyTorch's is that of a sample (1 / (n - 1)).

    Sums are taken over rows first and then over the axis before the last: on a CPU, XLA without
    the fusion that `arithmetic.py` switches off needs half as long again for one sum over all.
    """

    def __init__(self, width: int, *, train: bool, rngs: nnx.Rngs, epsilon: float = 1e-5):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(width)), nnx.BatchStat(jnp.ones(width))
        self.train, self.epsilon = train, epsilon

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Return float32 `[..., width]`; `mask [..., 1]` is True where values count."""
        width, beside = x.shape[-1], x.shape[-2] if x.ndim > 2 else 1
        rows = x.astype(jnp.float32).reshape(-1, beside * width)
        inside = None if mask is None else jnp.broadcast_to(mask, x.shape).reshape(rows.shape)

        def along(values):
            return jnp.tile(values, beside)[None]

        def mean_of(rows):
            total = rows if inside is None else jnp.where(inside, rows, 0.0)
            count = x.size // width if mask is None else jnp.maximum(mask.sum(), 1)
            return total.sum(0).reshape(beside, width).sum(0) / count

        mean, variance = self.mean[...], self.var[...]
        if self.train:
            mean = mean_of(rows)
            variance = mean_of(jnp.square(rows - along(mean)))
            for running, now in ((self.mean, mean), (self.var, variance)):
                running.set_value(MOMENTUM * running[...] + (1 - MOMENTUM) * now)
        factor = self.scale[...] * lax.rsqrt(variance + self.epsilon)
        return ((rows - along(mean)) * along(factor) + along(self.bias[...])).reshape(x.shape)


class LayerNorm(nnx.Module):
    """A norm of the last axis, of `width`, in `dtype`; its mean and variance are float32.

    For the gradient only the input is kept, in its own dtype; each direction is a kernel on GPUs.

    Source: Ba et al. 2016, "Layer normalization" (arXiv 1607.06450), equation 4.
    """

    def __init__(self, width: int, epsilon: float = 1e-5, *, dtype: Any = jnp.float32):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.epsilon, self.dtype = epsilon, jnp.dtype(dtype)

    def __call__(self, x: jax.Array, more: jax.Array | None = None, factor: float = 1.0):
        """Return the norm of `factor x + more`, `[..., width]`; the sum is float32, too."""
        norm = jax.checkpoint(partial(_layer_norm, self.epsilon, factor, self.dtype))
        y = norm(x, more, self.scale[...], self.bias[...])
        return _rounded(y)


def _layer_norm(epsilon, factor, dtype, x, more, scale, bias):
    if more is None:
        x = x.astype(jnp.float32)
    else:
        x = _residual_sum(factor, (x.dtype, more.dtype), (x, more))
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return (x * along(scale, x) + along(bias, x)).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _residual_sum(factor, dtypes, parts):
    """Return factor * the first part + the second in float32; its gradient is made once."""
    x, more = (part.astype(jnp.float32) for part in parts)
    return factor * x + more


def _residual_sum_backward(factor, dtypes, _, slope):
    slope = _rounded(slope.astype(dtypes[1]))
    return (((factor * slope).astype(dtypes[0]), slope),)


_residual_sum.defvjp(lambda *given: (_residual_sum(*given), None), _residual_sum_backward)


def _rounded(x):
    """Return `x` as rounded to its dtype; before a float32 step XLA would drop the rounding."""
    return lax.optimization_barrier(x)


def along(values, x):
    """Return values of the last axis with the other axes of `x`."""
    return values.reshape(*[1] * (x.ndim - 1), -1)


def gelu(x: jax.Array) -> jax.Array:
    """Return x P(X <= x) for a normal X, in float32 and then in the dtype of `x`.

    For the gradient only `x` is kept.

    Source: Hendrycks and Gimpel 2016, "Gaussian error linear units" (arXiv 1606.08415).
    """
    return jax.checkpoint(_gelu)(x)


def _gelu(x):
    # As `jax.nn.gelu` without its erfc, which takes a CPU half as long again.
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


class Linear(nnx.Linear):
    """x W + b in the layer's dtype, whose products are summed in float32 and rounded once."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.product(x, self.whole_kernel())

    def whole_kernel(self) -> jax.Array:
        """Return W; with an adapter, what this adds to it as well."""
        return self.kernel[...]

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Return the same with another kernel."""
        return dense(self.typed(x), kernel, self.own_bias())

    def typed(self, x: jax.Array) -> jax.Array:
        """Return `x` in the dtype of the layer's products."""
        return x.astype(self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype))

    def own_bias(self) -> jax.Array | None:
        return None if self.bias is None else self.bias[...]


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Return x W + b `[..., out]` in the dtype of `x [..., in]`; W and b are float32.

    W is rounded to that dtype, sums are float32 with b in them, and so is the gradient of W.
    """
    y = _summed(x, kernel.astype(x.dtype), (x.ndim - 1,), (0,))
    return (y if bias is None else y + along(bias, y)).astype(x.dtype)


def dense_backward(saved, slope):
    """Return the gradients of `dense(*saved)`."""
    x, kernel, bias = saved
    axes = tuple(range(x.ndim - 1))
    to_x = _summed(slope, kernel.astype(x.dtype), (x.ndim - 1,), (1,)).astype(x.dtype)
    # A CPU transposes the first of the two, and computes the GELU of x again if that is x. In
    # bfloat16 one order alone runs there (findings/bfloat16_gradient_of_kernel_cpu.sh).
    if x.dtype == jnp.float32 and slope.shape[-1] <= x.shape[-1]:
        to_kernel = _summed(slope, x, axes, axes).T
    else:
        to_kernel = _summed(x, slope, axes, axes)
    to_bias = None
    if bias is not None:
        to_bias = _rounded(slope).astype(jnp.float32).sum(axes).astype(bias.dtype)
    return to_x, to_kernel.astype(kernel.dtype), to_bias


dense.defvjp(lambda *given: (dense(*given), given), dense_backward)


def _summed(x, y, x_axes, y_axes):
    axes = (x_axes, y_axes), ((), ())
    return lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def linear(inputs: int, outputs: int, *, gain: float | None = None, **how) -> Linear:
    """Return a linear layer that starts Xavier-normal with `gain`, else N(0, 0.02)."""
    if gain is None:
        init = nnx.initializers.normal(0.02)
    else:
        init = nnx.initializers.variance_scaling(gain**2, "fan_avg", "normal")
    return Linear(inputs, outputs, kernel_init=init, **how)


Remat = Literal["nothing", "hidden", "layers"]
DEAR = "dear"  # name of values that take long to compute again and are no wider than tokens


def recomputed(what: Remat, block: nnx.Module, *args: jax.Array | None) -> jax.Array:
    """Return `block(*args)`; a part is computed again for the gradient instead of being kept.

    Args:
        what: nothing; the hidden values of feed-forward layers, which are four times as wide as
            others, and norms; or all but the layer's input.
    """
    if what == "nothing":
        return block(*args)
    graph, state = nnx.split(block)
    policy = jax.checkpoint_policies.save_only_these_names(DEAR)
    call = partial(jax.checkpoint, policy=policy if what == "hidden" else None)
    return call(lambda state, *args: nnx.merge(graph, state)(*args))(state, *args)


# Layers: the output of one, of several, the mean of all outputs, the last one.
Which = int | tuple[int, ...] | Literal["mean"] | None


def through(
    blocks: nnx.List,
    x: jax.Array,
    *args: jax.Array | None,
    which: Which = None,
    remat: Remat = "nothing",
    decay: float = 1.0,
) -> jax.Array:
    """Return `x` behind the layers of an encoder, float32.

    Args:
        which: 0 gives `x`, i what is behind layer i (from 1), "mean" the mean of all these but `x`;
            several give `[B, n, ...]`.
        remat: of `recomputed`.
        decay: factor of the gradient from each layer to the one before it.
    """
    outputs = [x]
    last = max(which) if isinstance(which, tuple) else which if isinstance(which, int) else None
    for block in list(blocks)[:last]:
        x = recomputed(remat, block, scale_gradient(x, decay), *args)
        outputs.append(x)
    if which == "mean":
        x = sum(y.astype(jnp.float32) for y in outputs[1:]) / len(blocks)
    if isinstance(which, tuple):
        x = jnp.stack([outputs[i] for i in which], 1)
    return x.astype(jnp.float32)


def check_layer(which: Which, count: int) -> None:
    """Refuse a layer that an encoder of `count` layers does not have (0: none but its last)."""
    if which is not None and not count:
        raise InputError(f"this model gives its last layer alone, got layer {which}")
    if isinstance(which, tuple):
        if not which or len(set(which)) < len(which) or not set(which) <= set(range(count + 1)):
            raise InputError(f"expected layers of 0..{count}, each once, got {which}")
    elif which not in (None, "mean", *range(count + 1)):
        raise InputError(f'expected layer 0..{count} or "mean", got {which}')


def dear(x: jax.Array) -> jax.Array:
    """Return `x`, which `recomputed` keeps unless all of a layer is computed again."""
    return checkpoint_name(x, DEAR)


def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """Return `x`; the gradient that flows back through it is multiplied by `factor`."""
    return x if factor == 1 else x * factor + lax.stop_gradient(x - x * factor)


# Patches of a log-mel


def cut_patches(mel: jax.Array, patch: int) -> jax.Array:
    """Return `[B, L, patch * patch]`: square patches, time-major; in a patch, time is first."""
    batch, frames, bands = mel.shape
    times = frames // patch
    grid = mel[:, : times * patch].reshape(batch, times, patch, bands // patch, patch)
    return grid.swapaxes(2, 3).reshape(batch, -1, patch * patch)


def patch_grid(tokens: jax.Array, extra_tokens: int = 1, bands: int = 8) -> jax.Array:
    """Return `[B, T, F, D]` from tokens `[B, extra + T F, D]`: the patches by time and mel band.

    Args:
        extra_tokens: before the patches, left out: 1 for EAT, 0 for BEATs.
        bands: F, patches beside each other in frequency; band 0 is the lowest.
    """
    patches = tokens[:, extra_tokens:]
    return patches.reshape(len(tokens), -1, bands, tokens.shape[-1])


def token_bytes(width: int, hidden: int) -> int:
    """Return the memory of one token in a layer's forward pass, at most; float32."""
    return 4 * (3 * hidden + 8 * width)
