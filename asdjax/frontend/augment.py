"""Random changes of training clips, drawn on the device inside the training step.

Each function takes one key for the whole batch and draws for every clip by itself; what is drawn
does not depend on how the batch is spread over devices. Validation and scoring use none of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from asdjax.frontend.fbank import to_float, without_offset
from asdjax.types import check


@dataclass(frozen=True)
class Augment:
    """What is changed at random in training; the defaults change nothing.

    Args:
      mask: SpecAugment: the largest width of the two masks of a clip, one over frames and one over
        mel bands; 0 for none.
      mask_probability: of each of the two masks, per clip.
      mixup: probability, per clip, that it is mixed with another clip.
      mixup_alpha: the share of a mixed clip is of Beta(alpha, alpha): 1 is uniform, less mixes
        mostly a little, more mixes mostly half and half.
      mixup_on: what is mixed: the input of each branch (log-mel, spectrum), or the wave before
        all front ends.
      crop: which part of a clip longer than audio.seconds is taken.
      shift: move each clip in time by a random amount; what leaves at the end enters at the start.
      warp: probability, per clip, that its time is warped, and with it its pitch.
      warp_sigma: standard deviation of the speed, which is 1 on average.
    """

    mask: int = 0
    mask_probability: float = 0.5
    mixup: float = 0.0
    mixup_alpha: float = 1.0
    mixup_on: Literal["input", "wave"] = "input"
    crop: Literal["start", "random"] = "start"
    shift: bool = False
    warp: float = 0.0
    warp_sigma: float = 0.2

    def __post_init__(self):
        probabilities = "mask_probability", "mixup", "warp"
        check(
            self,
            ("mask", ">= 0 frames and bands (0: none)", self.mask >= 0),
            *((n, "a probability in [0, 1]", 0 <= getattr(self, n) <= 1) for n in probabilities),
            # Beyond, a mixed clip is one of the two, or the mean.
            ("mixup_alpha", "in [0.1, 10]", 0.1 <= self.mixup_alpha <= 10),
            # Beyond, clips would turn back in time.
            ("warp_sigma", "in (0, 0.3]", 0 < self.warp_sigma <= 0.3),
        )

    @property
    def changes_waves(self) -> bool:
        """Return whether anything is done to a clip before its front ends."""
        mixed = self.mixup > 0 and self.mixup_on == "wave"
        return self.crop == "random" or self.shift or self.warp > 0 or mixed


def spec_augment(mel, key, width: int, probability: float, mean=0.0):
    """Hide one stretch of frames and one of bands of each clip behind the mean of the input.

    Args:
      mel: `[B, T, F]`.
      key: of this batch.
      width: largest width of a mask; that of each is uniform in 0 ... min(width, size of the axis),
        its start uniform among those where it fits.
      probability: of each mask, per clip and axis.
      mean: of the input, a number or `[B, 1, 1]`; 0 where the front end normalizes it.

    Returns:
      `[B, T, F]` of the same type.

    Source: Park et al. 2019, "SpecAugment", section 2, steps 2 and 3, with one mask each; without
      time warping, and with a probability, which the paper does not have.
    """
    batch, frames, bands = mel.shape
    in_time, in_frequency = jax.random.split(key)
    hidden_frames = _stretches(in_time, batch, frames, width, probability)[:, :, None]
    hidden_bands = _stretches(in_frequency, batch, bands, width, probability)[:, None]
    return jnp.where(hidden_frames | hidden_bands, jnp.asarray(mean, mel.dtype), mel)


def _stretches(key, batch: int, size: int, width: int, probability: float):
    """Return `[batch, size]` bool: True in one random stretch of each row that has one."""
    masked, wide, begin = jax.random.uniform(key, (3, batch))  # below 1
    lengths = jnp.floor(wide * (min(width, size) + 1)) * (masked < probability)
    starts = jnp.floor(begin * (size - lengths + 1))
    position = jnp.arange(size)[None]
    return (starts[:, None] <= position) & (position < (starts + lengths)[:, None])


def mixup(x, label, key, probability: float, alpha: float = 1.0):
    """Mix clips with those of the reversed batch: x_i <- r x_i + (1 - r) x_(B-1-i).

    Args:
      x: `[B, ...]` waves or mel; int16 is taken as 16-bit PCM (`to_float`). Where clips are padded,
        a mixed one is as long as the longer of its two parts.
      label: `[B, ..., 1]` classes.
      key: of this batch.
      probability: of each clip to be mixed; r is 1 for the others.
      alpha: r is of Beta(alpha, alpha); a number, not a traced value.

    Returns:
      `x` in float32; `label [B, ..., 2]`, of the clip and of its partner; `weight [B, 2]` float32,
      (r, 1 - r).

    Source: Zhang et al. 2018, "mixup", section 2.
    """
    mixed, share = jax.random.uniform(key, (2, len(x)))
    if alpha != 1:  # Beta(1, 1) is uniform
        share = jax.random.beta(jax.random.fold_in(key, 1), alpha, alpha, share.shape)
    own = jnp.where(mixed < probability, share, 1.0)
    part = jnp.expand_dims(own, range(1, x.ndim))
    x = to_float(x)
    x = part * x + (1 - part) * x[::-1]
    return x, jnp.concatenate([label, label[::-1]], -1), jnp.stack([own, 1 - own], 1)


def random_crop(wave, lengths, samples: int, key):
    """Take `samples` of each clip from a random start on.

    Args:
      wave: `[B, N]`, N >= samples, any type.
      lengths: `[B]` int, samples of each clip before its padding.
      samples: how many are taken; of a shorter clip all, with its padding.
      key: of this batch.

    Returns:
      `[B, samples]` of the same type, and the lengths `[B]` therein.
    """
    if wave.shape[1] < samples:
        raise ValueError(f"expected waves of at least {samples} samples, got {wave.shape}")
    starts = jax.random.randint(key, lengths.shape, 0, jnp.maximum(lengths - samples, 0) + 1)
    position = starts[:, None] + jnp.arange(samples)[None]
    return jnp.take_along_axis(wave, position, 1), jnp.minimum(lengths, samples)


def time_shift(wave, lengths, key):
    """Move each clip in a circle by a random amount, inside its own length.

    Args:
      wave: `[B, N]`, any type.
      lengths: `[B]` int, samples of each clip before its padding, which stays where it is.
      key: of this batch.

    Returns:
      `[B, N]` of the same type.
    """
    lengths = lengths[:, None]
    first = jax.random.randint(key, lengths.shape, 0, jnp.maximum(lengths, 1))
    position = jnp.arange(wave.shape[1])[None]
    source = first + position
    source = jnp.where(source < lengths, source, source - lengths)
    return jnp.take_along_axis(wave, jnp.where(position < lengths, source, position), 1)


def add_noise(wave, noise, lengths, key, snr_db: tuple[float, float]):
    """Add noise to each clip, at a random ratio of their powers over the length of the clip.

    Args:
      wave: `[B, N]`; int16 is taken as 16-bit PCM (`to_float`).
      noise: `[B, N]`, likewise; zeros change nothing. Silent clips stay silent.
      lengths: `[B]` int, samples of each clip before its padding, which stays silent.
      key: of this batch.
      snr_db: bounds of the clip's power over the noise's, dB; uniform between them.

    Returns:
      `[B, N]` float32; it may exceed full scale.
    """
    clip = to_float(wave)
    inside = jnp.arange(wave.shape[1])[None] < lengths[:, None]
    noise = jnp.where(inside, to_float(noise), 0.0)
    both = (without_offset(x, lengths) for x in (clip, noise))  # an offset has no power
    loud, beside = (jnp.square(x).sum(1, keepdims=True) for x in both)
    snr = jax.random.uniform(key, loud.shape, minval=snr_db[0], maxval=snr_db[1])
    silent = beside == 0
    power = jnp.where(silent, 0.0, loud / jnp.where(silent, 1.0, beside))
    return clip + jnp.sqrt(power) * 10 ** (-snr / 20) * noise
