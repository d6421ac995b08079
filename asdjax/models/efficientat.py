"""EfficientAT: MobileNetV3 on the log-mel of 32 kHz, taught by transformers on AudioSet.

Fifteen inverted residual blocks between two convolutions. Time and frequency are halved five times,
so a token is a third of a second of a quarter of the bands: 128 tokens for 10 s, time-major, band 0
the lowest. Of width 0.4 ("mn04") 0.98 million parameters, classes included; 0.1 to 4 are published.

A clip gives the tokens that it gives alone, whatever row it is in. Norms keep the statistics of the
checkpoint also in training: a batch of few machines would have others, and clips would see each
other; their scale and shift train.

Sources: Schmid et al. 2023, "Efficient large-scale audio tagging via transformer-to-CNN knowledge
distillation" (arXiv 2211.04772), code `fschmid56/EfficientAT` (MIT); Howard et al. 2019, "Searching
for MobileNetV3" (arXiv 1905.02244), table 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from asdjax.frontend import log_mel_32k
from asdjax.models import layers
from asdjax.models.attention import Implementation
from asdjax.models.pooling import masked_mean, mean_token
from asdjax.models.weights_file import Params
from asdjax.types import check

EPSILON = 1e-3  # of all norms
STEM, FACTOR, HIDDEN = 16, 6, 1280  # channels of width 1: first, widening of the last, classifier
SETTINGS = (  # taps, hidden and output channels of width 1, squeeze, hard swish, stride
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
HALVINGS = 1 + sum(stride == 2 for *_, stride in SETTINGS)
STEP = 2**HALVINGS  # frames, and bands, of a token


class BlockSizes(NamedTuple):
    """An inverted residual block, in channels."""

    inputs: int
    hidden: int
    outputs: int
    taps: int
    stride: int
    squeeze: int  # channels between the layers of its gate; 0: no gate
    hard_swish: bool  # or ReLU


@dataclass(frozen=True)
class EfficientATConfig:
    """The structure of a checkpoint.

    Args:
        width_mult: factor of all channels, which are rounded to multiples of 8.
        num_classes: of the class head; 0 for a model without.
    """

    width_mult: float = 1.0
    num_classes: int = 527

    # No fields, but what every structure of a backbone has:
    kind = "efficientat"
    kinds = (kind,)
    extra_tokens = 0
    layers_count = 0  # they differ in width: the last one alone is given
    bands = layers.MEL_BANDS // STEP
    shortest_samples = 400

    def __post_init__(self):
        check(
            self,
            ("width_mult", "a number in (0, 100]", 0 < self.width_mult <= 100),
            ("num_classes", f"0 to {layers.LARGEST}", 0 <= self.num_classes <= layers.LARGEST),
        )

    def channels(self, of_width_1: int) -> int:
        return multiple_of_8(of_width_1 * self.width_mult)

    @property
    def blocks(self) -> list[BlockSizes]:
        found, inputs = [], self.channels(STEM)
        for taps, hidden, outputs, gated, hard_swish, stride in SETTINGS:
            hidden, outputs = self.channels(hidden), self.channels(outputs)
            squeeze = multiple_of_8(hidden // 4) if gated else 0
            found.append(BlockSizes(inputs, hidden, outputs, taps, stride, squeeze, hard_swish))
            inputs = outputs
        return found

    # What every structure of a backbone has (`asdjax.models.backbone.Structure`).

    @property
    def width(self) -> int:
        return FACTOR * self.blocks[-1].outputs

    @property
    def has_classes(self) -> bool:
        return self.num_classes > 0

    def build(self, **how: Any) -> EfficientAT:
        return EfficientAT(self, **how)

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Return the log-mel `[B, T, 128]`; frames behind a clip's end are 0."""
        return log_mel_32k.log_mel(wave, lengths)

    def token_count(self, samples: int) -> int:
        return self._times(samples) * self.bands

    def token_padding(self, samples: int, lengths: jax.Array) -> jax.Array:
        """Return `[B, L]` bool, True for tokens that no frame of the clip is in."""
        valid = self._times(jnp.asarray(lengths)) * self.bands
        return jnp.arange(self.token_count(samples))[None] >= valid[:, None]

    def clip_bytes(self, samples: int, attention: Implementation = "auto") -> float:
        places = log_mel_32k.frame_count(samples) * layers.MEL_BANDS / 4  # behind the stem
        return 4 * 4 * places * max(block.hidden for block in self.blocks[:3])

    def for_features(self, params: Params) -> tuple[EfficientATConfig, Params]:
        head = "hidden.", "head."
        kept = {name: value for name, value in params.items() if not name.startswith(head)}
        return replace(self, num_classes=0), kept

    def without_dropout(self) -> EfficientATConfig:
        return self

    def _times(self, samples):
        """Return how many tokens a clip of `samples` (int or array) has beside each other."""
        return -(-log_mel_32k.frame_count(samples) // STEP)


def multiple_of_8(channels: float) -> int:
    """Return the nearest multiple of 8, but no less than nine tenths of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


class EfficientAT(nnx.Module):
    """Log-mel `[B, T, 128]` in, tokens `[B, L, D]` out, L = 4 ceil(T / 32).

    Args:
        config: the structure.
        dtype: of convolutions; norms and gates are float32.
        remat: what of each block is computed again for the gradient instead of being kept.
        train, attention: change nothing: it drops no values, and has no attention.
    """

    def __init__(
        self,
        config: EfficientATConfig,
        *,
        dtype: Any = jnp.float32,
        train: bool = False,
        remat: layers.Remat = "nothing",
        attention: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        how = {"dtype": dtype, "rngs": rngs}
        first, sizes = config.channels(STEM), config.blocks
        self.config, self.remat = config, remat
        self.stem = Convolution(None, first, 3, 2, **how)
        self.blocks = nnx.List([Block(size, **how) for size in sizes])
        self.last = Convolution(sizes[-1].outputs, config.width, **how)
        if config.num_classes:
            hidden = config.channels(HIDDEN)
            self.hidden = layers.linear(config.width, hidden, **how)
            self.head = layers.linear(hidden, config.num_classes, **how)

    def __call__(
        self, mel: jax.Array, padding: jax.Array | None = None, layer: layers.Which = None
    ) -> jax.Array:
        """Return float32 tokens `[B, L, D]`.

        Args:
            mel: log-mel `[B, T, 128]`; with `padding`, a clip ends with its last frame that has a
                value other than 0.
            padding: `[B, L]` bool, True = not of the clip (`EfficientATConfig.token_padding`).
            layer: None alone.
        """
        layers.check_layer(layer, self.config.layers_count)
        frames = None
        if padding is not None:
            last = jnp.where((mel != 0).any(-1), jnp.arange(mel.shape[1])[None], -1)
            frames = 1 + last.max(1)
        x, frames = self.stem(mel[..., None], frames), _halved(frames)
        x = jax.nn.hard_swish(x)
        for block in self.blocks:
            x = layers.recomputed(self.remat, block, x, frames)
            frames = _halved(frames) if block.sizes.stride == 2 else frames
        x = jax.nn.hard_swish(self.last(x))
        return x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32)

    def classify(self, tokens: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Return class probabilities `[B, C]`, from the mean of the clip's tokens."""
        mean = mean_token(tokens, None if padding is None else ~padding)
        hidden = jax.nn.hard_swish(self.hidden(mean))
        return jax.nn.sigmoid(self.head(hidden).astype(jnp.float32))


class Block(nnx.Module):
    """An inverted residual block: more channels, each filtered alone, a gate, fewer channels.

    Source: Howard et al. 2019, section 5.3 and figure 4.
    """

    def __init__(self, sizes: BlockSizes, **how: Any):
        self.sizes, hidden = sizes, sizes.hidden
        widens = hidden != sizes.inputs
        self.expand = Convolution(sizes.inputs, hidden, **how) if widens else None
        self.depthwise = Convolution(None, hidden, sizes.taps, sizes.stride, **how)
        self.fc1 = layers.linear(hidden, sizes.squeeze, rngs=how["rngs"]) if sizes.squeeze else None
        self.fc2 = layers.linear(sizes.squeeze, hidden, rngs=how["rngs"]) if sizes.squeeze else None
        self.project = Convolution(hidden, sizes.outputs, **how)

    def __call__(self, x: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        """Return `[B, T', F', outputs]` from `[B, T, F, inputs]`; `frames [B]` are of the clips."""
        activation = jax.nn.hard_swish if self.sizes.hard_swish else jax.nn.relu
        y = x if self.expand is None else activation(self.expand(x))
        y = activation(self.depthwise(y, frames))
        if self.fc1 is not None:
            y = self._gated(y, _halved(frames) if self.sizes.stride == 2 else frames)
        y = self.project(y)
        return x + y if y.shape == x.shape and self.sizes.stride == 1 else y

    def _gated(self, y, frames):
        """Return `y`, each channel times the sigmoid of what its mean over all places says.

        Source: Hu et al. 2018, "Squeeze-and-excitation networks" (arXiv 1709.01507), section 3.
        """
        mean = y.astype(jnp.float32).mean(2)
        mean = mean.mean(1) if frames is None else masked_mean(mean, _inside(mean, frames))
        gate = jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(mean))))
        return y * gate[:, None, None].astype(y.dtype)


class Convolution(nnx.Module):
    """A convolution over time and frequency without bias, and a norm with fixed statistics.

    Args:
        inputs: channels that each output sees; None: its own alone, or the only one there is.
        taps: along both axes; half of them reach over each border, where there are zeros.
    """

    def __init__(
        self, inputs: int | None, outputs: int, taps: int = 1, stride: int = 1, *, dtype, rngs
    ):
        shape = (taps, taps, outputs) if inputs is None else (inputs, outputs)
        start = jax.random.normal(rngs.params(), shape)
        self.kernel = nnx.Param((2 / (taps * taps * outputs)) ** 0.5 * start)
        self.scale, self.bias = nnx.Param(jnp.ones(outputs)), nnx.Param(jnp.zeros(outputs))
        self.mean, self.var = layers.Fixed(jnp.zeros(outputs)), layers.Fixed(jnp.ones(outputs))
        self.stride, self.dtype = stride, jnp.dtype(dtype)

    def __call__(self, x: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        """Return `[B, ceil(T / stride), ceil(F / stride), outputs]` in the dtype.

        Args:
            frames: `[B]`, of the clips: what is behind them counts as 0.
        """
        x, kernel = x.astype(self.dtype), self.kernel[...]
        if frames is not None:
            x = jnp.where(_inside(x, frames), x, 0)
        if kernel.ndim == 2:
            y = layers.dense(x, kernel, None)
        else:
            filters = partial(_by_taps, self.stride), partial(_by_xla, self.stride)
            y = lax.platform_dependent(
                x, kernel.astype(x.dtype), cpu=filters[0], default=filters[1]
            )
        y, factor = y.astype(jnp.float32), self.scale[...] * lax.rsqrt(self.var[...] + EPSILON)
        shift = self.bias[...] - self.mean[...] * factor
        return (y * layers.along(factor, y) + layers.along(shift, y)).astype(self.dtype)


def _by_xla(stride, x, kernel):
    half = len(kernel) // 2
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        [(half, half)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_taps(stride, x, kernel):
    """Return the same as a sum over taps, for CPUs, where XLA's takes ten times as long and more.

    See findings/depthwise_convolution_cpu.sh.
    """
    half = len(kernel) // 2
    x = jnp.pad(x, ((0, 0), *[(half, half)] * 2, (0, 0)))
    return _sum_over_taps(stride, x, kernel)


def _sum_over_taps(stride, x, kernel):
    """Return `[B, T', F', C]` from `[B, T, F, C or 1]`: as many places as `taps` fit in."""
    y, taps = 0.0, len(kernel)
    last = [(n - taps) // stride * stride + 1 for n in x.shape[1:3]]
    for i, j in np.ndindex(taps, taps):
        part = x[:, i : i + last[0] : stride, j : j + last[1] : stride].astype(jnp.float32)
        y = y + part * layers.along(kernel[i, j].astype(jnp.float32), part)
    return y.astype(x.dtype)


def _by_taps_backward(stride, saved, slope):
    x, kernel = saved
    taps, half = len(kernel), len(kernel) // 2
    apart = [(n - 1) * stride + 1 for n in slope.shape[1:3]]
    edges = [(half, n + half - m, stride - 1) for n, m in zip(x.shape[1:3], apart, strict=True)]
    spread = lax.pad(slope, jnp.zeros((), slope.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    to_x = _sum_over_taps(1, spread, kernel[::-1, ::-1])
    if x.shape[-1] == 1:
        to_x = to_x.sum(-1, keepdims=True)
    padded = jnp.pad(x, ((0, 0), *[(half, half)] * 2, (0, 0)))

    def of_tap(place):
        sizes = len(x), *apart, x.shape[-1]
        part = lax.dynamic_slice(padded, (0, place // taps, place % taps, 0), sizes)
        part = part[:, ::stride, ::stride].astype(jnp.float32)
        return (part * slope.astype(jnp.float32)).sum((0, 1, 2))

    to_kernel = lax.map(of_tap, jnp.arange(taps * taps)).reshape(kernel.shape)
    return to_x, to_kernel.astype(kernel.dtype)


_by_taps.defvjp(lambda *given: (_by_taps(*given), given[1:]), _by_taps_backward)


def _halved(frames):
    return None if frames is None else (frames + 1) // 2


def _inside(x, frames):
    """Return bool with the axes of `x [B, T, ...]`: True where a frame is of its clip."""
    inside = jnp.arange(x.shape[1])[None] < frames[:, None]
    return inside.reshape(*inside.shape, *[1] * (x.ndim - 2))
