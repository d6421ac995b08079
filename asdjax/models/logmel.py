"""The encoder without weights: the log-mel over time, as statistics or pooled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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
from asdjax.models.pooling import Pool, make_pool, masked_mean, pool_width
from asdjax.models.system import Input, Network
from asdjax.types import InputError, check

MEL_BANDS = 128
WINDOW_FRAMES = 6000  # 60 s: what is longer is taken in parts, which bounds the memory


@dataclass(frozen=True)
class LogMel:
    """A 128-band log-mel over time: needs no weights.

    Args:
      bands: parts of equal numbers of mel bands, the lowest first, so that a scorer can take each
        by itself (`Knn.parts`).
      pools: means of the frames, whose vectors are concatenated, such as mean,bands or rdp8power3;
        none: mean and standard deviation over time, `[256]`, those of a part together.
    """

    bands: int = 1
    pools: tuple[Pool, ...] = ()

    weights, of_training = "", ()
    needs_training = False
    one_length = False
    shortest_samples = FRAME_SAMPLES

    def __post_init__(self):
        divides = self.bands >= 1 and MEL_BANDS % self.bands == 0
        check(self, ("bands", f"a number that divides {MEL_BANDS}", divides))
        if len({pool.bands for pool in self.pools}) > 1:
            raise InputError("expected all pools by bands or none, so that parts are equal")
        if self.bands == 1 and self.pools and self.pools[0].bands:
            raise InputError(
                "expected several bands for pools by bands, got 1; give --encoders.0.bands 8"
            )

    @property
    def views(self) -> tuple[tuple[str, ...], int]:
        """Return the names of the vectors that lie behind each other, and the parts of each."""
        whole = bool(self.pools) and not self.pools[0].bands
        return tuple(map(str, self.pools)) or ("mean and deviation",), 1 if whole else self.bands

    def network(self, samples: int | None = None) -> Network:
        if not self.pools:
            statistics = partial(front_end, bands=self.bands)
            return Network(statistics, lambda **_: AsTheyAre(), 2 * MEL_BANDS)
        bands = self.bands if self.pools[0].bands else 1
        width = MEL_BANDS // bands
        pool = make_pool(self.pools, width, bands, train=False, rngs=None)

        def pooled(wave: jax.Array, lengths: jax.Array | None = None) -> Input:
            mel = fbank(wave, BEATS, lengths)
            inside = None
            if lengths is not None:
                inside = jnp.repeat(frame_mask(lengths, mel.shape[1])[..., 0], bands, 1)
            return Input(pool(mel.reshape(len(mel), -1, width), inside))

        return Network(pooled, lambda **_: AsTheyAre(), pool_width(self.pools, width, bands))

    def clip_bytes(self, samples: int) -> int:
        """Return how much memory a clip needs, at most: an hour 0.6 GB; pooled 3 GB."""
        held = samples if self.pools else min(samples, WINDOW_FRAMES * HOP_SAMPLES)
        return 10 * samples + 40 * held


class AsTheyAre(nnx.Module):
    """Take what the front end gives."""

    def __call__(self, given: Input) -> jax.Array:
        return given.x


def front_end(wave: jax.Array, lengths: jax.Array | None = None, bands: int = 1) -> Input:
    """Return `[B, 256]`: mean and standard deviation over the clip's frames of each mel band.

    Args:
      bands: of each of so many parts of the mel bands first the means, then the deviations.
    """
    if lengths is None:
        lengths = jnp.full(wave.shape[0], wave.shape[1], jnp.int32)
    windows = -(-frame_count(wave.shape[1]) // WINDOW_FRAMES)
    _, mean, variance = _moments(wave, lengths) if windows <= 1 else _merged(wave, lengths, windows)
    both = jnp.stack([mean, jnp.sqrt(variance)], 1).reshape(len(mean), 2, bands, -1)
    return Input(both.swapaxes(1, 2).reshape(len(mean), -1))


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
