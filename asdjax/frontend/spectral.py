"""Features of the spectral networks: the spectrum of a whole clip, or its spectrogram in a band.

Magnitudes, neither squared nor logarithmic, of waves with peak 1.0; float32, also under a bfloat16
model. A clip of 10 s gives 80,000 bins of 0.1 Hz, or 311 frames of 500 bins of 15.625 Hz.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.frontend.fbank import RATE_HZ, to_float

FRAME_SAMPLES, HOP_SAMPLES = 1024, 512
LOWEST_BIN = -(-200 * FRAME_SAMPLES // RATE_HZ)  # 13, of 203.125 Hz; the last is 512, of 8 kHz


@jax.jit
def magnitude_spectrum(wave):
    """Return |FFT| of whole clips: `[B, N]` float in [-1, 1] or int16 -> `[B, N // 2]` float32.

    Bin k is k RATE_HZ / N Hz, from 0 to below the Nyquist frequency.

    Source: Wilkinghoff 2023, "Design choices for learning embeddings from auxiliary tasks for
        domain generalization in anomalous sound detection" (ICASSP), section 3.1.
    """
    return _magnitude(to_float(wave))[:, : wave.shape[1] // 2]


@jax.jit
def magnitude_spectrogram(wave):
    """Compute STFT magnitudes from 200 Hz to 8 kHz, each bin without its mean over the clip.

    Frames of 1024 samples every 512 under a periodic Hann window, none of them padded; samples
    behind the last whole frame are not used.

    Args:
      wave: `[B, N]` float in [-1, 1] or int16, 16 kHz, N >= 1024.

    Returns:
      `[B, T, 500]` float32, T = 1 + (N - 1024) // 512.

    Source: as `magnitude_spectrum`; its public code does not apply the band that it names.
    """
    magnitude = _stft(wave)
    return magnitude - magnitude.mean(1, keepdims=True)


@partial(jax.jit, static_argnames="bands")
def spectrum_bands(wave, bands: int):
    """Return the log of the RMS magnitude in equal bands of whole clips.

    Args:
      wave: `[B, N]` float in [-1, 1] or int16, N >= 2 bands.
      bands: between 0 Hz and the Nyquist frequency; bins that fill no band are left out.

    Returns:
      `[B, bands]` float32. Magnitudes are divided by sqrt(N): those of noise are its RMS, however
      long the clip is. Silence is ln 1e-4.
    """
    magnitude = magnitude_spectrum(wave) / np.float32(np.sqrt(wave.shape[1]))
    width = magnitude.shape[1] // bands
    power = jnp.square(magnitude[:, : bands * width]).reshape(len(wave), bands, width).mean(-1)
    return jnp.log(jnp.sqrt(power) + 1e-4)


@partial(jax.jit, static_argnames="bands")
def spectrogram_bands(wave, bands: int):
    """Return log magnitudes of frames, averaged over equal bands of bins from 200 Hz on.

    Args:
      wave: as of `magnitude_spectrogram`.
      bands: of its 500 bins; those that fill no band are left out.

    Returns:
      `[B, T, bands]` float32; silence is ln 1e-3.
    """
    magnitude = _stft(wave)
    width = magnitude.shape[-1] // bands
    level = jnp.log(magnitude[..., : bands * width] + 1e-3)
    return level.reshape(*level.shape[:2], bands, width).mean(-1)


def frame_count(samples: int) -> int:
    """Return T, the whole frames of a spectrogram of `samples`, 0 if too short."""
    return max(1 + (samples - FRAME_SAMPLES) // HOP_SAMPLES, 0)


def _stft(wave):
    """Return the magnitudes `[B, T, 500]` of frames, of the bins from 200 Hz on."""
    return _magnitude(_frames(to_float(wave)) * _hann()[None, None])[..., LOWEST_BIN:]


def _magnitude(x):
    """Return |FFT| of the last axis; squares of 16-bit sound cannot overflow float32."""
    spectrum = jnp.fft.rfft(x)
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag))


def _frames(wave):
    """Cut `[B, N]` into frames `[B, T, 1024]`: each hop and the next, which is no gather."""
    clips, samples = wave.shape
    count = frame_count(samples)
    if not count:
        raise ValueError(f"expected at least {FRAME_SAMPLES} samples, got wave {wave.shape}")
    hops = wave[:, : (count + 1) * HOP_SAMPLES].reshape(clips, count + 1, HOP_SAMPLES)
    return jnp.concatenate([hops[:, :-1], hops[:, 1:]], -1)


def _hann() -> np.ndarray:
    angle = 2 * np.pi * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES
    return (0.5 - 0.5 * np.cos(angle)).astype(np.float32)
