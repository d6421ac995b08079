"""Networks that learn from spectra and waves alone, without a pre-trained backbone.

`ConvNet1d` takes the spectrum of the whole clip, or its wave; `ResNet` takes its spectrogram. For
clips of 10 s they have 1,573,888 and 967,096 weights. `Bands`, the smallest network, is a dense
layer on levels in bands. No convolution or dense layer has a bias.

Source: Wilkinghoff 2023, "Design choices for learning embeddings from auxiliary tasks for domain
    generalization in anomalous sound detection" (ICASSP), its two branches; details from its public
    code, `wilkinghoff/icassp2023`. Of that code's norms some of the first residual blocks are
    missing or misplaced; here all blocks are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from asdjax.frontend import fbank, spectral
from asdjax.losses.margin import unit
from asdjax.models import layers
from asdjax.models.convolutions import Cbam, Conv1d, Conv2d, glorot, max_pool
from asdjax.models.system import Network, spectral_network
from asdjax.types import InputError, check

Dtype = Literal["float32", "bfloat16"]

CONVOLUTIONS_1D = (256, 64), (64, 32), (16, 4)  # taps and stride
DENSE_WIDTH = 128
STAGES = 4  # of the residual network, each with twice the channels of the one before
LIMITS = {  # of the fields of configurations
    "embedding": (2, layers.LARGEST),
    "dense": (2, 100),
    "channels": (1, layers.LARGEST),
    "blocks": (1, layers.LARGEST),
    "bands": (1, 500),  # as many as a spectrogram has bins
}
VARIANCE_FLOOR = 1e-4  # of levels over time; also keeps the gradient of the root finite

to_float = jax.jit(fbank.to_float)
Dense = partial(nnx.Linear, use_bias=False, kernel_init=glorot)
# Keras' default epsilon, used there: bins of near silence stay small.
keras_norm = partial(layers.BatchNorm, epsilon=1e-3)


@dataclass(frozen=True)
class ConvNet1d:
    """Three convolutions along the spectrum of a whole clip, and dense layers.

    Args:
      view: what is convolved: the magnitude spectrum, or the wave (IOA's third subnetwork).
      embedding: width of the last dense layer.
      dense: how many dense layers there are, the last one included, which has no norm (IOA: four).
      channels: of each convolution.
      cbam: gate channels and places after each convolution (Midea 2024).
      normalize: scale the embedding to unit length (XJU 2025, system 4).
      dtype: of the matrix products; parameters, norms, gates and embedding are float32.
    """

    weights = ""
    needs_training = one_length = True

    view: Literal["spectrum", "wave"] = "spectrum"
    embedding: int = 128
    dense: int = 5
    channels: int = 128
    cbam: bool = False
    normalize: bool = False
    dtype: Dtype = "float32"

    def __post_init__(self):
        _check(self)

    @property
    def shortest_samples(self) -> int:
        """Return how many samples a wave needs to fill one window of the first convolution."""
        return CONVOLUTIONS_1D[0][0] * (2 if self.view == "spectrum" else 1)

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Return `[B, N // 2]` or `[B, N]` float32 from waves `[B, N]`.

        Args:
          lengths: not used: these networks need rows of one length, to which shorter clips are
            tiled or padded before, and use all of each row.
        """
        return spectral.magnitude_spectrum(wave) if self.view == "spectrum" else to_float(wave)

    def network(self, samples: int) -> Network:
        return spectral_network(self, samples)

    def build(self, samples: int, *, train: bool, rngs: nnx.Rngs) -> ConvNet1dModule:
        """Make the network for rows of `samples`."""
        return ConvNet1dModule(self, *_input_shape(self, samples), train=train, rngs=rngs)


class ConvNet1dModule(nnx.Module):
    """`[B, N]` -> `[B, embedding]`: convolutions, each with ReLU, dense layers with norm and ReLU.

    Args:
      points: N.
      train: as of `layers.BatchNorm`.
    """

    def __init__(self, config: ConvNet1d, points: int, *, train: bool, rngs: nnx.Rngs):
        self.normalize, channels = config.normalize, config.channels
        self.convolutions, self.gates = nnx.List(), nnx.List()
        for i, (taps, stride) in enumerate(CONVOLUTIONS_1D):
            inputs = channels if i else 1
            layer = Conv1d(inputs, channels, taps, stride, dtype=config.dtype, rngs=rngs)
            self.convolutions.append(layer)
            if config.cbam:
                self.gates.append(Cbam(channels, axes=1, rngs=rngs))
            points = -(-points // stride)
        dense = partial(Dense, dtype=config.dtype, rngs=rngs)
        widths = points * channels, *[DENSE_WIDTH] * (config.dense - 2)
        self.dense = nnx.List(dense(width, DENSE_WIDTH) for width in widths)
        self.norms = nnx.List(keras_norm(DENSE_WIDTH, train=train, rngs=rngs) for _ in widths)
        self.project = dense(DENSE_WIDTH, config.embedding)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[..., None]
        for i, convolution in enumerate(self.convolutions):
            x = jax.nn.relu(convolution(x))
            x = self.gates[i](x) if self.gates else x
        x = x.reshape(len(x), -1)
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = jax.nn.relu(norm(dense(x)))
        return _finished(self.project(x), self.normalize)


@dataclass(frozen=True)
class ResNet:
    """A small residual network over the spectrogram of a clip.

    Args:
      embedding: width of the dense layer.
      channels: of the first stage, doubled from stage to stage.
      blocks: residual blocks of each of the four stages (IOA: one).
      cbam: gate channels and places of what each block adds (Midea 2024).
      normalize, dtype: as of `ConvNet1d`.
    """

    weights = ""
    needs_training = one_length = True

    embedding: int = 128
    channels: int = 16
    blocks: int = 2
    cbam: bool = False
    normalize: bool = False
    dtype: Dtype = "float32"

    def __post_init__(self):
        _check(self)

    @property
    def shortest_samples(self) -> int:
        """Return how many samples make 5 frames, which the stem needs."""
        return spectral.FRAME_SAMPLES + 4 * spectral.HOP_SAMPLES

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Return `[B, T, F]` float32 from waves `[B, N]`; `lengths` as of `ConvNet1d`."""
        return spectral.magnitude_spectrogram(wave)

    def network(self, samples: int) -> Network:
        return spectral_network(self, samples)

    def build(self, samples: int, *, train: bool, rngs: nnx.Rngs) -> ResNetModule:
        """Make the network for rows of `samples`."""
        return ResNetModule(self, *_input_shape(self, samples), train=train, rngs=rngs)


class ResNetModule(nnx.Module):
    """`[B, T, F]` -> `[B, embedding]`.

    Each bin is normalized over batch and time. The stem is a convolution of 7 x 7 with stride 2,
    norm, ReLU and a maximum over 3 x 3 with stride 2; the stages follow, those after the first with
    stride 2; then a maximum over 10 frames, and of all that is left a norm and a dense layer.

    Args:
      frames, bins: T and F.
      train: as of `layers.BatchNorm`.
    """

    def __init__(self, config: ResNet, frames: int, bins: int, *, train: bool, rngs: nnx.Rngs):
        norm = partial(keras_norm, train=train, rngs=rngs)
        inputs, self.normalize = config.channels, config.normalize
        self.input_norm = norm(bins)
        self.stem = Conv2d(1, inputs, (7, 7), 2, dtype=config.dtype, rngs=rngs)
        self.stem_norm = norm(inputs)
        self.blocks = nnx.List()
        for i in range(STAGES * config.blocks):
            outputs = config.channels << i // config.blocks
            self.blocks.append(Residual(inputs, outputs, config, train=train, rngs=rngs))
            inputs = outputs
        flat = _places(frames, bins) * inputs
        self.norm = norm(flat)
        self.project = Dense(flat, config.embedding, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem_norm(self.stem(self.input_norm(x)[..., None]))
        # ReLU after the maximum is the same as before it, with a quarter of the values.
        x = jax.nn.relu(max_pool(x, (3, 3), 2, same=False))
        for block in self.blocks:
            x = block(x)
        x = max_pool(x, (10, 1), (10, 1), same=True)
        return _finished(self.project(self.norm(x.reshape(len(x), -1))), self.normalize)


class Residual(nnx.Module):
    """Norm, ReLU and convolution of 3 x 3, twice, and then the input added; the sum is float32.

    With other channels the first convolution has a stride of 2, and the added input is the maximum
    over 2 x 2 and goes through a convolution of 1 x 1.

    Source: He et al. 2016, "Identity mappings in deep residual networks" (arXiv 1603.05027),
        figure 4 (e), full pre-activation; the shortcut of a changed shape is Wilkinghoff's (2023).
    """

    def __init__(self, inputs: int, outputs: int, config: ResNet, *, train: bool, rngs: nnx.Rngs):
        norm = partial(keras_norm, train=train, rngs=rngs)
        convolution = partial(Conv2d, dtype=config.dtype, rngs=rngs)
        changed = inputs != outputs
        self.norm1 = norm(inputs)
        self.conv1 = convolution(inputs, outputs, (3, 3), 2 if changed else 1)
        self.norm2 = norm(outputs)
        self.conv2 = convolution(outputs, outputs, (3, 3))
        self.gate = Cbam(outputs, axes=2, rngs=rngs) if config.cbam else None
        self.shortcut = convolution(inputs, outputs, (1, 1)) if changed else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[B, H, W, C]` of the same, or `[B, ceil(H / 2), ceil(W / 2), outputs]`."""
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        y = y if self.gate is None else self.gate(y)
        x = x if self.shortcut is None else self.shortcut(max_pool(x, (2, 2), 2, same=True))
        return x.astype(jnp.float32) + y


@dataclass(frozen=True)
class Bands:
    """Levels (log magnitudes) in bands of equal width, batch norm, a dense layer without bias.

    It gets what `frozen/logmel` compares, and learns which of it separates the classes. A hundred
    clips of a machine are enough for it.

    Args:
      view: the spectrum of the whole clip; or its spectrogram, as mean and deviation over time.
      embedding: width of the dense layer.
      bands: how many.
    """

    weights = ""
    needs_training = one_length = True

    view: Literal["spectrum", "spectrogram"] = "spectrogram"
    embedding: int = 128
    bands: int = 62

    def __post_init__(self):
        _check(self)

    @property
    def shortest_samples(self) -> int:
        """Return the samples of a frame, or of a spectrum with a bin for each band."""
        return spectral.FRAME_SAMPLES if self.view == "spectrogram" else 2 * self.bands

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Return `[B, bands]`, or `[B, T, bands]` of a spectrogram; `lengths` are not used."""
        if self.view == "spectrum":
            return spectral.spectrum_bands(wave, self.bands)
        return spectral.spectrogram_bands(wave, self.bands)

    def network(self, samples: int) -> Network:
        return spectral_network(self, samples, own_mean=self.view == "spectrogram")

    def build(self, samples: int, *, train: bool, rngs: nnx.Rngs) -> BandsModule:
        """Make the network for rows of `samples`."""
        return BandsModule(self, *_input_shape(self, samples), train=train, rngs=rngs)


class BandsModule(nnx.Module):
    """`[B, bands]` or `[B, T, bands]` -> `[B, embedding]`; `shape` is that of one clip."""

    def __init__(self, config: Bands, *shape: int, train: bool, rngs: nnx.Rngs):
        width = config.bands * len(shape)  # with a time axis, a mean and a deviation of each
        self.norm = layers.BatchNorm(width, train=train, rngs=rngs)
        self.project = nnx.Linear(width, config.embedding, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim == 3:
            mean = x.mean(1)
            variance = jnp.square(x - mean[:, None]).mean(1)
            x = jnp.concatenate([mean, jnp.sqrt(variance + VARIANCE_FLOOR)], -1)
        return self.project(self.norm(x))


def _places(frames: int, bins: int) -> int:
    """Return how many places are left of a spectrogram after the last maximum."""
    sizes = [((n + 1) // 2 - 1) // 2 for n in (frames, bins)]  # after the stem
    for _ in range(STAGES - 1):
        sizes = [(n + 1) // 2 for n in sizes]
    return -(-sizes[0] // 10) * sizes[1]


def _finished(embedding, normalize: bool):
    embedding = embedding.astype(jnp.float32)
    return unit(embedding) if normalize else embedding


def _check(config: ConvNet1d | ResNet | Bands) -> None:
    given = [(name, value, *LIMITS[name]) for name, value in vars(config).items() if name in LIMITS]
    check(
        config,
        *((name, f"{least} to {most}", least <= n <= most) for name, n, least, most in given),
    )


def _input_shape(config: ConvNet1d | ResNet | Bands, samples: int) -> tuple[int, ...]:
    """Return the shape of what the front end makes of a row of `samples`."""
    if samples < config.shortest_samples:
        raise InputError(
            f"{type(config).__name__}: expected clips of at least {config.shortest_samples} "
            f"samples at 16 kHz, got {samples}; take longer ones (`audio.seconds`)"
        )
    row = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    return jax.eval_shape(config.frontend, row).shape[1:]
