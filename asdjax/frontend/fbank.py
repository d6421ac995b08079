"""Kaldi-compatible log-mel filter bank and the input normalization of BEATs and EAT.

Equals `torchaudio.compliance.kaldi.fbank` with 25 ms frames every 10 ms at 16 kHz, 128 mel bands,
no dither, no energy, `snip_edges`: 100 frames per second, `1 + (N - 400) // 160` frames for N
samples. Everything is float32, also under a bfloat16 model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

RATE_HZ = 16_000
FRAME_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
SAMPLES_OF_HOPS = (160, 160, 80)  # how much of each hop from its start on a frame covers
PREEMPHASIS = 0.97
LOG_FLOOR = 2.0**-23  # Kaldi: smallest mel energy before the logarithm (float32 epsilon)
BEATS_MEAN, BEATS_STD = 15.41663, 6.55582  # AudioSet statistics published with BEATs
EAT_MEAN, EAT_STD = -4.268, 4.569  # AudioSet statistics published with EAT
EAT_FRAMES = 32  # their count is rounded up to a multiple


@dataclass(frozen=True)
class FbankConfig:
    """What differs between the users of the filter bank.

    Args:
      window: "povey" is Kaldi's `hann ** 0.85`.
      scale: factor on a wave with peak 1.0; 32768 gives Kaldi's 16-bit range.
    """

    window: Literal["povey", "hann"]
    scale: float = 1.0
    bands: int = 128
    low_hz: float = 20.0
    high_hz: float = RATE_HZ / 2


BEATS = FbankConfig("povey", scale=32768.0)
# EAT's own code subtracts the clip's mean first. Each frame loses its mean anyway, so that changes
# rounding at most and is left out.
EAT = FbankConfig("hann")


def frame_count(samples):
    """Return the number of whole frames in `samples` (int or integer array), 0 if too short."""
    return (samples >= FRAME_SAMPLES) * (1 + (samples - FRAME_SAMPLES) // HOP_SAMPLES)


@partial(jax.jit, static_argnames="config")
def fbank(wave, config: FbankConfig, lengths=None):
    """Compute natural-log mel energies, not normalized.

    Args:
      wave: `[B, N]` float32 in [-1, 1] or int16, 16 kHz, N >= 400.
      config: `BEATS`, `EAT` or another.
      lengths: `[B]` valid samples of each clip. Samples behind them are ignored and frames that
        do not lie wholly inside are 0, so each row equals the clip alone, followed by zeros.

    Returns:
      `[B, T, F]` float32, T = `frame_count(N)`; silence is ln(2**-23) = -15.94.

    Source: Kaldi's `compute-fbank-feats`, as torchaudio's `compliance.kaldi.fbank` restates it.
    """
    wave = to_float(wave)
    if wave.shape[-1] < FRAME_SAMPLES:
        raise ValueError(f"expected at least {FRAME_SAMPLES} samples, got wave {wave.shape}")
    if lengths is not None:  # whatever stands behind a clip must not reach its last frames
        wave = jnp.where(jnp.arange(wave.shape[-1])[None] < lengths[:, None], wave, 0.0)
    one = partial(_fbank_of_one, config=config)
    # On a CPU a few clips at a time, so that their frames and spectra stay in the cache.
    mel = jax.lax.platform_dependent(
        wave, cpu=partial(jax.lax.map, one, batch_size=2), default=jax.vmap(one)
    )
    return mel if lengths is None else jnp.where(frame_mask(lengths, mel.shape[1]), mel, 0.0)


def _fbank_of_one(wave, config: FbankConfig):
    """Compute `[T, F]` from `[N]`."""
    spectrum = jnp.fft.rfft(_frames(wave * config.scale, window(config.window)))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energy = jnp.matmul(power[:, :-1], mel_bank(config), precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(energy, LOG_FLOOR))


def _frames(wave, window: np.ndarray):
    """Cut `[N]` into windowed frames `[T, 512]`, each without its mean m and pre-emphasized.

    Per sample, (x[j] - m) - 0.97 (x[j-1] - m) = 0.97 (x[j] - x[j-1]) + 0.03 (x[j] - m); a frame's
    first sample has no predecessor in Kaldi, but window 0. Deviations are taken from the first
    sample of each hop: so silence and constants give exactly 0, where a mean would be rounded.
    Joining hops is faster than gathering samples.
    """
    count, pieces = frame_count(len(wave)), -(-FFT_SAMPLES // HOP_SAMPLES)
    hops = _hops(wave, count + pieces - 1)
    slope = _hops(wave - jnp.concatenate([wave[:1], wave[:-1]]), count + pieces - 1)
    first = hops[:, :1]
    hops = hops - first
    rise = [first[i : i + count] - first[:count] for i in range(pieces)]  # since the frame's start
    mean = sum(
        hops[i : i + count, :samples].sum(-1, keepdims=True) + samples * rise[i]
        for i, samples in enumerate(SAMPLES_OF_HOPS)
    )
    mean = mean / FRAME_SAMPLES
    parts = [
        PREEMPHASIS * slope[i : i + count]
        + (1 - PREEMPHASIS) * (hops[i : i + count] + (rise[i] - mean))
        for i in range(pieces)
    ]
    return jnp.concatenate(parts, -1)[:, :FFT_SAMPLES] * window[None]


def _hops(wave, count: int):
    """Return `[count, 160]`: the wave in hops, zeros beyond its end."""
    samples = count * HOP_SAMPLES
    wave = jnp.pad(wave, (0, max(samples - len(wave), 0)))
    return wave[:samples].reshape(count, HOP_SAMPLES)


def to_float(wave):
    """Return `wave` as float32 with peak 1.0; integers are taken as 16-bit PCM."""
    if jnp.issubdtype(wave.dtype, jnp.integer):
        return wave.astype(jnp.float32) / 32768.0
    return wave.astype(jnp.float32)


def without_offset(wave, lengths=None):
    """Return `[B, N]` float32 with peak 1.0, each clip without its mean, which carries no sound.

    Args:
      wave: `[B, N]`, as of `to_float`.
      lengths: `[B]` valid samples of each clip; what is behind them becomes 0.
    """
    wave = to_float(wave)
    if lengths is None:
        return wave - wave.mean(1, keepdims=True)
    inside = jnp.arange(wave.shape[1])[None] < lengths[:, None]
    total = jnp.where(inside, wave, 0.0).sum(1, keepdims=True)
    return jnp.where(inside, wave - total / jnp.maximum(lengths, 1)[:, None], 0.0)


def frame_mask(lengths, frames: int):
    """Return `[B, T, 1]` bool: True where the frame lies wholly inside its clip."""
    return (jnp.arange(frames)[None] < frame_count(lengths)[:, None])[..., None]


def beats_frontend(wave):
    """Return the input of BEATs: `[B, N]` -> `[B, T, 128]`, about zero mean and deviation 0.5.

    Source: Chen et al. 2023 (BEATs), code `microsoft/unilm:beats`: divides by twice the deviation.
    """
    return (fbank(wave, BEATS) - BEATS_MEAN) / (2 * BEATS_STD)


def eat_frames(samples):
    """Return the frames that EAT sees of `samples` (int or integer array): 1024 of 10 s.

    The frame count rounded up to a multiple of 32, which for 10 s is the published length.
    """
    return -(-frame_count(samples) // EAT_FRAMES) * EAT_FRAMES


def eat_frontend(wave, frames: int, lengths=None):
    """Return the input of EAT: `[B, N]` -> `[B, frames, 128]`.

    Clips are cut, or padded with zeros *before* the normalization, to `frames` (`eat_frames`);
    with `lengths [B]`, frames behind a clip's end are padding too.

    Source: Chen et al. 2024 (EAT), code `cwx-worst-one/EAT`: divides by twice the deviation.
    """
    mel = fbank(wave, EAT, lengths)[:, :frames]
    mel = jnp.pad(mel, ((0, 0), (0, frames - mel.shape[1]), (0, 0)))
    return (mel - EAT_MEAN) / (2 * EAT_STD)


@lru_cache
def window(name: str) -> np.ndarray:
    """Return the symmetric analysis window of 400 samples, followed by zeros: `[512]` float32."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME_SAMPLES) / (FRAME_SAMPLES - 1))
    exponent = {"hann": 1.0, "povey": 0.85}[name]
    return np.pad(hann**exponent, (0, FFT_SAMPLES - FRAME_SAMPLES)).astype(np.float32)


def mel(hz) -> np.ndarray:
    """Return frequencies in Kaldi's mel scale, which is HTK's."""
    return 1127.0 * np.log1p(np.asarray(hz) / 700.0)


def mel_bank(config: FbankConfig) -> np.ndarray:
    """Return the `triangles` of a filter bank, `[256, F]`."""
    return triangles(config.bands, config.low_hz, config.high_hz, FFT_SAMPLES, RATE_HZ)


@lru_cache
def triangles(
    bands: int, low_hz: float, high_hz: float, fft_samples: int, rate_hz: int
) -> np.ndarray:
    """Return triangles `[fft_samples / 2, bands]` float32 over the bins of a spectrum.

    They are linear in Kaldi's mel scale and not normalized in area. The Nyquist bin is left out:
    its weight is 0. Narrow filters may hold no bin at all.
    """
    corner = np.linspace(mel(low_hz), mel(high_hz), bands + 2)
    left, center, right = corner[:-2], corner[1:-1], corner[2:]
    bin_mel = mel(np.arange(fft_samples // 2) * rate_hz / fft_samples)[:, None]
    rise, fall = (bin_mel - left) / (center - left), (right - bin_mel) / (right - center)
    return np.maximum(0.0, np.minimum(rise, fall)).astype(np.float32)
