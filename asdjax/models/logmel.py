"""The encoder without weights: statistics of the log-mel over time."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from asdjax.frontend.fbank import BEATS, FRAME_SAMPLES, fbank, frame_mask
from asdjax.models.pooling import masked_mean
from asdjax.models.system import Input, Network

MEL_BANDS = 128


@dataclass(frozen=True)
class LogMel:
    """Time mean and standard deviation of a 128-band log-mel, `[256]`: needs no weights."""

    weights, of_training = "", ()
    needs_training = False
    one_length = False
    shortest_samples = FRAME_SAMPLES

    def network(self, samples: int | None = None) -> Network:
        return Network(front_end, lambda **_: Statistics(), 2 * MEL_BANDS)


class Statistics(nnx.Module):
    """Take the front end's statistics as they are."""

    def __call__(self, given: Input) -> jax.Array:
        return given.x


def front_end(wave: jax.Array, lengths: jax.Array | None = None) -> Input:
    """Return `[B, 256]`: mean and standard deviation over the clip's frames of each band."""
    if lengths is None:
        lengths = jnp.full(wave.shape[0], wave.shape[1], jnp.int32)
    mel = fbank(wave, BEATS, lengths)
    inside = frame_mask(lengths, mel.shape[1])
    mean = masked_mean(mel, inside)
    variance = masked_mean(jnp.square(mel - mean[:, None]), inside)
    return Input(jnp.concatenate([mean, jnp.sqrt(variance)], -1))
