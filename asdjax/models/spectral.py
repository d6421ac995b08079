"""Networks that learn from spectra and waves alone, without a pre-trained backbone.

`ConvNet1d` sees the spectrum of the whole clip, or its wave; `ResNet` sees its spectrogram. For
clips of 10 s they have 1,573,888 and 967,096 weights. No convolution or dense layer has a bias.

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
from asdjax.models.cbam import Cbam
from asdjax.models.convolution import Conv1d, Conv2d, initializer, max_pool
from asdjax.models.norm import batch_norm
from asdjax.models.residual import Residual
from asdjax.types import InputError, check_choices

Dtype = Literal["float32", "bfloat16"]

CONVOLUTIONS_1D = (256, 64), (64, 32), (16, 4)  # taps and stride
DENSE_LAYERS, DENSE_WIDTH = 4, 128
STAGES = 4  # of the residual network, each with twice the channels of the one before
LEAST = {"embedding": 2, "channels": 1, "blocks": 1}
EPSILON = 1e-3  # of batch norms; Keras' default, used there. Bins of near silence stay small
to_float = jax.jit(fbank.to_float)


@dataclass(frozen=True)
class ConvNet1d:
    """Three convolutions along the spectrum of a whole clip, and five dense layers.

    Args:
      view: what is convolved: the magnitude spectrum, or the wave (IOA's third subnetwork).
      embedding: width of the last dense layer.
      channels: of each convolution.
      cbam: gate channels and places behind each convolution (Midea 2024).
      normalize: scale the embedding to unit length (XJU 2025, system 4).
      dtype: of the matrix products; parameters, norms, gates and embedding are float32.
    """

    view: Literal["spectrum", "wave"] = "spectrum"
    embedding: int = 128
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
            tiled or padded before, and hear all of them.
        """
        return spectral.magnitude_spectrum(wave) if self.view == "spectrum" else to_float(wave)

    def build(self, samples: int, *, train: bool, rngs: nnx.Rngs) -> ConvNet1dModule:
        """Make the network for rows of `samples`."""
        return ConvNet1dModule(self, *_input_shape(self, samples), train=train, rngs=rngs)


class ConvNet1dModule(nnx.Module):
    """`[B, N]` -> `[B, embedding]`: convolutions, each with ReLU, dense layers with norm and ReLU.

    Args:
      points: N.
      train: see `batch_norm`.
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
        dense = partial(_dense, dtype=config.dtype, rngs=rngs)
        widths = points * channels, *[DENSE_WIDTH] * (DENSE_LAYERS - 1)
        self.dense = nnx.List(dense(width, DENSE_WIDTH) for width in widths)
        make_norm = partial(batch_norm, epsilon=EPSILON, train=train, rngs=rngs)
        self.norms = nnx.List(make_norm(DENSE_WIDTH) for _ in widths)
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
      train: see `batch_norm`.
    """

    def __init__(self, config: ResNet, frames: int, bins: int, *, train: bool, rngs: nnx.Rngs):
        norm = partial(batch_norm, epsilon=EPSILON, train=train, rngs=rngs)
        inputs = config.channels
        block = partial(Residual, cbam=config.cbam, dtype=config.dtype, epsilon=EPSILON)
        self.normalize = config.normalize
        self.input_norm = norm(bins)
        self.stem = Conv2d(1, inputs, (7, 7), 2, dtype=config.dtype, rngs=rngs)
        self.stem_norm = norm(inputs)
        self.blocks = nnx.List()
        for i in range(STAGES * config.blocks):
            outputs = config.channels << i // config.blocks
            stride = 2 if outputs != inputs else 1
            self.blocks.append(block(inputs, outputs, stride, train=train, rngs=rngs))
            inputs = outputs
        flat = _places(frames, bins) * inputs
        self.norm = norm(flat)
        self.project = _dense(flat, config.embedding, config.dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem_norm(self.stem(self.input_norm(x)[..., None]))
        # ReLU behind the maximum is the same as before it, with a quarter of the values.
        x = jax.nn.relu(max_pool(x, (3, 3), 2, same=False))
        for block in self.blocks:
            x = block(x)
        x = max_pool(x, (10, 1), (10, 1), same=True)
        return _finished(self.project(self.norm(x.reshape(len(x), -1))), self.normalize)


def _places(frames: int, bins: int) -> int:
    """Return how many places are left of a spectrogram behind the last maximum."""
    sizes = [((n + 1) // 2 - 1) // 2 for n in (frames, bins)]  # behind the stem
    for _ in range(STAGES - 1):
        sizes = [(n + 1) // 2 for n in sizes]
    return -(-sizes[0] // 10) * sizes[1]


def _dense(inputs: int, outputs: int, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs, outputs, use_bias=False, dtype=dtype, kernel_init=initializer, rngs=rngs
    )


def _finished(embedding, normalize: bool):
    embedding = embedding.astype(jnp.float32)
    return unit(embedding) if normalize else embedding


def _check(config: ConvNet1d | ResNet) -> None:
    check_choices(config)
    given = {name: getattr(config, name) for name in LEAST if hasattr(config, name)}
    wrong = [f"{name} >= {LEAST[name]}, got {n}" for name, n in given.items() if n < LEAST[name]]
    if wrong:
        raise InputError(f"{type(config).__name__}: expected " + "; expected ".join(wrong))


def _input_shape(config: ConvNet1d | ResNet, samples: int) -> tuple[int, ...]:
    """Return the shape of what the front end makes of a row of `samples`."""
    if samples < config.shortest_samples:
        raise InputError(
            f"{type(config).__name__}: expected clips of at least {config.shortest_samples} "
            f"samples at 16 kHz, got {samples}; take longer ones (`audio.seconds`)"
        )
    row = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    return jax.eval_shape(config.frontend, row).shape[1:]
