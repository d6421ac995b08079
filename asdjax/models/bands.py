"""A dense layer on levels in bands: the smallest network that learns, for few recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from asdjax.frontend import spectral
from asdjax.models.norm import batch_norm
from asdjax.types import InputError, check_choices

VARIANCE_FLOOR = 1e-4  # of levels over time; also keeps the gradient of the root finite
MOST_BANDS = 500  # as many as a spectrogram has bins


@dataclass(frozen=True)
class Bands:
    """Levels (log magnitudes) in bands of equal width, batch norm, a dense layer without bias.

    It sees what `frozen/logmel` compares, and learns which of it tells classes apart. A hundred
    clips of a machine are enough for it.

    Args:
      view: the spectrum of the whole clip; or its spectrogram, as mean and deviation over time.
      embedding: width of the dense layer.
      bands: how many.
    """

    view: Literal["spectrum", "spectrogram"] = "spectrogram"
    embedding: int = 128
    bands: int = 62

    def __post_init__(self):
        check_choices(self)
        if self.embedding < 2:
            raise InputError(f"expected an embedding of at least 2 numbers, got {self.embedding}")
        if not 1 <= self.bands <= MOST_BANDS:
            raise InputError(f"expected 1 to {MOST_BANDS} bands, got {self.bands}")

    @property
    def shortest_samples(self) -> int:
        """Return the samples of a frame, or of a spectrum with a bin for each band."""
        return spectral.FRAME_SAMPLES if self.view == "spectrogram" else 2 * self.bands

    def frontend(self, wave: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Return `[B, bands]`, or `[B, T, bands]` of a spectrogram; `lengths` are not used."""
        if self.view == "spectrum":
            return spectral.spectrum_bands(wave, self.bands)
        return spectral.spectrogram_bands(wave, self.bands)

    def build(self, samples: int, *, train: bool, rngs: nnx.Rngs) -> BandsModule:
        """Make the network, for rows of any length."""
        if samples < self.shortest_samples:
            raise InputError(
                f"Bands: expected clips of at least {self.shortest_samples} samples at 16 kHz, got "
                f"{samples}; take longer ones (`audio.seconds`)"
            )
        return BandsModule(self, train=train, rngs=rngs)


class BandsModule(nnx.Module):
    """`[B, bands]` or `[B, T, bands]` -> `[B, embedding]`."""

    def __init__(self, config: Bands, *, train: bool, rngs: nnx.Rngs):
        width = config.bands * (2 if config.view == "spectrogram" else 1)
        self.norm = batch_norm(width, train=train, rngs=rngs)
        self.project = nnx.Linear(width, config.embedding, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim == 3:
            mean = x.mean(1)
            variance = jnp.square(x - mean[:, None]).mean(1)
            x = jnp.concatenate([mean, jnp.sqrt(variance + VARIANCE_FLOOR)], -1)
        return self.project(self.norm(x))
