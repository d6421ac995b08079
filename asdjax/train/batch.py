"""What one pass sees, and of which clips it is made: those in turn, their partners, and noise.

The host asks for clips by number, so that both data paths (`source`) make the same batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.frontend.fbank import to_float

SILENCE = 2**31 - 1  # in place of a clip's number: zeros


class Batch(NamedTuple):
    """What one pass sees, over all devices."""

    wave: jax.Array  # [B, N] int16 or float32
    lengths: jax.Array  # [B] int32, valid samples
    label: jax.Array  # [B, label kinds] int32
    copied: jax.Array | None = None  # [B] bool: copies of a clip, to be warped in time
    noise: jax.Array | None = None  # [B, N], to be added; zeros where there is none


class Asked(NamedTuple):
    """Numbers of a batch's clips, `[B]` int32 each; None where there is no such part."""

    clip: np.ndarray
    partner: np.ndarray | None = None  # mixed with it
    share: np.ndarray | None = None  # float32, of `clip` in that mixture
    copied: np.ndarray | None = None  # bool
    noise: np.ndarray | None = None


class Parts(NamedTuple):
    """What was asked for: wave, lengths and labels of clips in place of their numbers."""

    clip: tuple
    partner: tuple | None
    share: Any
    copied: Any
    noise: tuple | None


def collect(read: Callable[[Any], tuple], asked: Asked) -> Parts:
    """Return the clips asked for; `read` gives wave, lengths and labels of numbers."""

    def found(numbers):
        return None if numbers is None else read(numbers)

    partner, noise = found(asked.partner), found(asked.noise)
    return Parts(read(asked.clip), partner, asked.share, asked.copied, noise)


def join(parts: Parts) -> Batch:
    """Return the batch; mixed clips are as long as the longer of their two parts."""
    wave, lengths, label = parts.clip
    if parts.partner is not None:
        other, other_lengths, _ = parts.partner
        share = parts.share[:, None]
        wave = share * to_float(wave) + (1 - share) * to_float(other)
        lengths = jnp.maximum(lengths, other_lengths)
    return Batch(
        wave, lengths, label, parts.copied, None if parts.noise is None else parts.noise[0]
    )
