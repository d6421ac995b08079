"""The encoder without weights: statistics of the log-mel over time."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from asdjax.frontend.fbank import (
    BEATS,
    FRAME_SAMPLES,
    HOP_SAMPLES,
    fbank,
    frame_count,
    frame_mask,
)
from asdjax.models.pooling import masked_mean
from asdjax.models.system import Input, Network

MEL_BANDS = 128
WINDOW_FRAMES = 6000  # 60 s: what is longer is taken in parts, which bounds the memory


@dataclass(frozen=True)
class LogMel:
    """Time mean and standard deviation of a 128-band log-mel, `[256]`: needs no weights."""

    weights, of_training = "", ()
    needs_training = False
    one_length = False
    shortest_samples = FRAME_SAMPLES

    def network(self, samples: int | None = None) -> Network:
        return Network(front_end, lambda **_: Statistics(), 2 * MEL_BANDS)

    def clip_bytes(self, samples: int) -> int:
        """Return how much memory a clip needs, at most: an hour 0.6 GB."""
        return 10 * samples + 40 * min(samples, WINDOW_FRAMES * HOP_SAMPLES)


class Statistics(nnx.Module):
    """Take the front end's statistics as they are."""

    def __call__(self, given: Input) -> jax.Array:
        return given.x


def front_end(wave: jax.Array, lengths: jax.Array | None = None) -> Input:
    """Return `[B, 256]`: mean and standard deviation over the clip's frames of each band."""
    if lengths is None:
        lengths = jnp.full(wave.shape[0], wave.shape[1], jnp.int32)
    windows = -(-frame_count(wave.shape[1]) // WINDOW_FRAMES)
    _, mean, variance = _moments(wave, lengths) if windows <= 1 else _merged(wave, lengths, windows)
    return Input(jnp.concatenate([mean, jnp.sqrt(variance)], -1))


def _moments(wave, lengths):
    """Return how many frames `[B, 1]` lie inside, and mean and variance `[B, 128]` over them."""
    mel = fbank(wave, BEATS, lengths)
    inside = frame_mask(lengths, mel.shape[1])
    mean = masked_mean(mel, inside)
    return inside.sum(1), mean, masked_mean(jnp.square(mel - mean[:, None]), inside)


def _merged(wave, lengths, windows: int):
    """Return the moments of `_moments` from windows that follow each other.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
    """
    size, step = (WINDOW_FRAMES - 1) * HOP_SAMPLES + FRAME_SAMPLES, WINDOW_FRAMES * HOP_SAMPLES
    missing = (windows - 1) * step + size - wave.shape[1]
    wave = jnp.pad(wave, ((0, 0), (0, max(missing, 0))))

    def add(before, start):
        count, mean, variance = before
        part = jax.lax.dynamic_slice_in_dim(wave, start, size, 1)
        more, other, spread = _moments(part, jnp.maximum(lengths - start, 0))
        total = jnp.maximum(count + more, 1)
        share, change = more / total, other - mean
        spread = (1 - share) * variance + share * spread + share * (1 - share) * jnp.square(change)
        return (count + more, mean + share * change, spread), None

    zeros = jnp.zeros((wave.shape[0], MEL_BANDS))
    nothing = jnp.zeros((wave.shape[0], 1), jnp.int32), zeros, zeros
    return jax.lax.scan(add, nothing, step * jnp.arange(windows))[0]
