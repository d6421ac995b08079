"""The log-mel of the official baseline, as its code has librosa compute it.

Frames of 1,024 samples every 512 at 16 kHz, centered on their sample: 31.25 frames per second,
`1 + N // 512` for N samples, 128 mel bands from 0 to 8,000 Hz. Everything is float32, as in librosa
for float32 waves. The two differ by rounding alone: less than 1e-4 dB on recordings, 1e-3 dB in
bands down to 70 dB below a pure tone; what lies far below that is the FFT's rounding error in both.
"""

from __future__ import annotations

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.frontend.fbank import RATE_HZ, to_float

FFT_SAMPLES, HOP_SAMPLES, BANDS = 1024, 512, 128
FLOOR = 2.220446049250313e-16  # of the mel power: float64 epsilon, -156.5 dB
BREAK_HZ, HZ_PER_MEL, MELS_PER_OCTAVE = 1000.0, 200 / 3, 27 / np.log2(6.4)  # Slaney's scale


def frame_count(samples):
    """Return the frames of a clip of `samples` (int or integer array)."""
    return 1 + samples // HOP_SAMPLES


@jax.jit
def log_mel(wave, lengths=None):
    """Compute mel power in dB, not normalized.

    Args:
      wave: `[B, N]` float32 in [-1, 1] or int16, 16 kHz.
      lengths: `[B]` valid samples of each clip. What stands behind them is ignored, and frames
        from `frame_count(lengths)` on are 0, so each row equals the clip alone, followed by zeros.

    Returns:
      `[B, T, 128]` float32, T = `frame_count(N)`; silence is 10 log10(2.2e-16) = -156.5.

    Source: nttcslab/dcase2023_task2_baseline_ae: `melspectrogram(n_fft=1024, hop_length=512,
      power=2.0, n_mels=128)` of librosa >= 0.10, which puts zeros before and behind a clip.
    """
    wave = to_float(wave)
    if lengths is not None:
        wave = jnp.where(jnp.arange(wave.shape[-1])[None] < lengths[:, None], wave, 0.0)
    # On a CPU a few clips at a time, so that their frames and spectra stay in the cache.
    mel = jax.lax.platform_dependent(
        wave,
        cpu=partial(jax.lax.map, _log_mel_of_one, batch_size=2),
        default=jax.vmap(_log_mel_of_one),
    )
    if lengths is None:
        return mel
    inside = jnp.arange(mel.shape[1])[None] < frame_count(lengths)[:, None]
    return jnp.where(inside[..., None], mel, 0.0)


def _log_mel_of_one(wave):
    """Compute `[T, 128]` from `[N]`."""
    behind = frame_count(len(wave)) * HOP_SAMPLES - len(wave)
    hops = jnp.pad(wave, (HOP_SAMPLES, behind)).reshape(-1, HOP_SAMPLES)
    spectrum = jnp.fft.rfft(jnp.concatenate([hops[:-1], hops[1:]], -1) * window()[None])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.matmul(power, mel_bank(), precision=jax.lax.Precision.HIGHEST)
    return 10.0 * jnp.log10(jnp.maximum(mel, FLOOR))


@lru_cache
def window() -> np.ndarray:
    """Return the periodic Hann window, `[1024]` float32."""
    phase = 2 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


@lru_cache
def mel_bank() -> np.ndarray:
    """Return triangles `[513, 128]` float32 of equal area (in Hz), linear in Hz between corners.

    Source: Slaney 1998 (Auditory Toolbox): the mel scale is linear below 1 kHz, then logarithmic.
    """
    corner = _hz(np.linspace(0, _mel(RATE_HZ / 2), BANDS + 2))
    left, center, right = corner[:-2], corner[1:-1], corner[2:]
    hz = np.arange(FFT_SAMPLES // 2 + 1)[:, None] * RATE_HZ / FFT_SAMPLES
    rise, fall = (hz - left) / (center - left), (right - hz) / (right - center)
    triangle = np.maximum(0.0, np.minimum(rise, fall))
    return (triangle * 2 / (right - left)).astype(np.float32)


def _mel(hz: float) -> float:
    """Return the mel of a frequency above 1 kHz."""
    return BREAK_HZ / HZ_PER_MEL + MELS_PER_OCTAVE * np.log2(hz / BREAK_HZ)


def _hz(mel: np.ndarray) -> np.ndarray:
    above = mel - BREAK_HZ / HZ_PER_MEL
    return np.where(above < 0, mel * HZ_PER_MEL, BREAK_HZ * 2 ** (above / MELS_PER_OCTAVE))
