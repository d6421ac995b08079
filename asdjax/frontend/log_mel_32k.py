"""The log-mel of EfficientAT: 32 kHz, made from waves of 16 kHz.

A frame is 25 ms long and there is one every 10 ms, as in `fbank`, but frames stand around their
time: the first one around the first sample. Behind both ends the wave is mirrored.
"""

from __future__ import annotations

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.frontend.fbank import PREEMPHASIS, to_float, triangles

FFT_SAMPLES = 1024
BANK = 128, 0.0, 15_000.0, FFT_SAMPLES, 32_000  # bands, of and to Hz, FFT, rate
FRAME_SAMPLES, HOP_SAMPLES = 800, 320  # at 32 kHz
HALF = FRAME_SAMPLES // 2
FLOOR = 1e-5
TAPS = 128  # of the filter between two samples, which is within 2e-4 of 1 to 7.6 kHz
BLOCK = 256  # samples that one product filters


def frame_count(samples):
    """Return the frames of a clip of `samples` at 16 kHz (int or integer array): 1,000 of 10 s."""
    return 1 + (2 * samples - 1) // HOP_SAMPLES


def log_mel(wave, lengths=None):
    """Return the input of EfficientAT, about zero mean.

    Args:
      wave: `[B, N]` float in [-1, 1] or int16, 16 kHz, N >= 202.
      lengths: `[B]` valid samples of each clip, at least 202. Each row equals the clip alone,
        followed by frames of zeros, which no frame of a clip is.

    Returns:
      `[B, T, 128]` float32, T = `frame_count(N)`; silence is -1.40.
    """
    wave = to_float(wave)
    if lengths is not None:
        wave = jnp.where(jnp.arange(wave.shape[1])[None] < lengths[:, None], wave, 0.0)
    return log_mel_32k(doubled(wave), None if lengths is None else 2 * lengths)


@jax.jit
def doubled(wave):
    """Return waves at twice the rate, `[B, 2 N]` from `[B, N]`, float32.

    The samples stay, and between two of them there is what a sinc under a Kaiser window makes of
    the 128 around. Beyond the clip there is silence.
    """
    clips, samples = wave.shape
    blocks = -(-samples // BLOCK)
    side = TAPS // 2
    wave = jnp.pad(wave, ((0, 0), (side - 1, blocks * BLOCK - samples + BLOCK)))
    parts = wave.reshape(clips, -1)[:, : (blocks + 1) * BLOCK].reshape(clips, blocks + 1, BLOCK)
    both = jnp.concatenate([parts[:, :-1], parts[:, 1:]], -1)
    between = jnp.matmul(both, _between(), precision=jax.lax.Precision.HIGHEST)
    between = between.reshape(clips, -1)[:, :samples]
    return jnp.stack([wave[:, side - 1 : side - 1 + samples], between], -1).reshape(clips, -1)


@lru_cache
def _between() -> np.ndarray:
    """Return `[2 BLOCK, BLOCK]`: from samples to what lies half a sample behind each."""
    places = np.arange(TAPS) - (TAPS // 2 - 0.5)
    taps = np.sinc(places) * np.kaiser(TAPS, 8.0)
    matrix = np.zeros((2 * BLOCK, BLOCK))
    for column in range(BLOCK):
        matrix[column : column + TAPS, column] = taps / taps.sum()
    return matrix.astype(np.float32)


@jax.jit
def log_mel_32k(wave, lengths=None):
    """Return the same of waves that have 32 kHz: `[B, M]` float32, `lengths [B]` of their samples.

    Source: Schmid et al. 2023, "Efficient large-scale audio tagging via transformer-to-CNN
      knowledge distillation" (ICASSP), code `fschmid56/EfficientAT` (MIT).
    """
    slope = wave[:, 1:] - PREEMPHASIS * wave[:, :-1]
    count = 1 + slope.shape[1] // HOP_SAMPLES
    padded = jnp.pad(slope, ((0, 0), (0, 3 * HOP_SAMPLES)))
    ends = jnp.full(len(wave), slope.shape[1]) if lengths is None else lengths - 1
    one = partial(_of_one, count)
    mel = jax.lax.platform_dependent(  # on a CPU a few clips at a time, which stay in its cache
        padded,
        ends,
        cpu=lambda *given: jax.lax.map(lambda of: one(*of), given, batch_size=2),
        default=jax.vmap(one),
    )
    if lengths is None:
        return mel
    valid = 1 + ends // HOP_SAMPLES
    return jnp.where((jnp.arange(count)[None] < valid[:, None])[..., None], mel, 0.0)


def _of_one(count: int, slope, end):
    """Return `[count, 128]` from a clip that ends at `end`, with room behind it."""
    behind = jax.lax.dynamic_slice(slope, (end - 1 - HALF,), (HALF,))[::-1]
    slope = jax.lax.dynamic_update_slice(slope, behind, (end,))
    slope = jnp.concatenate([slope[HALF:0:-1], slope])
    hops = slope[: (count + 2) * HOP_SAMPLES].reshape(count + 2, HOP_SAMPLES)
    frames = jnp.concatenate([hops[i : i + count] for i in range(3)], -1)[:, :FRAME_SAMPLES]
    spectrum = jnp.fft.rfft(frames * _hann()[None], FFT_SAMPLES)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energy = jnp.matmul(power[:, :-1], triangles(*BANK), precision=jax.lax.Precision.HIGHEST)
    return (jnp.log(energy + FLOOR) + 4.5) / 5


@lru_cache
def _hann() -> np.ndarray:
    angle = 2 * np.pi * np.arange(FRAME_SAMPLES) / (FRAME_SAMPLES - 1)
    return (0.5 - 0.5 * np.cos(angle)).astype(np.float32)
