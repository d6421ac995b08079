"""Building blocks of synthetic machine sounds: rotation, tones, resonances, coloured noise, rooms.

Waves are [N] at 16 kHz. Random numbers come from the generator passed in, in a fixed order, so
equal generators give equal waves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asdjax.types import SAMPLE_RATE_HZ


def turns(rng: np.random.Generator, hz: float, samples: int, wobble: float = 0.003) -> np.ndarray:
    """Return a shaft's angle in revolutions [N] float64: `hz` with a slow random wobble.

    The speed deviates by about the fraction `wobble`, in sines of 0.2-2 Hz (load, mains, belt).
    """
    knot_s = np.arange(0, samples + 160, 160) / SAMPLE_RATE_HZ  # a straight line between is enough
    sway_hz, start = rng.uniform(0.2, 2.0, (3, 1)), rng.uniform(0, 1, (3, 1))
    sway = np.sin(2 * np.pi * (sway_hz * knot_s + start)) / (2 * np.pi * sway_hz)
    knot = hz * (knot_s + wobble * sway.sum(0)) + rng.uniform()
    return np.interp(np.arange(samples) / SAMPLE_RATE_HZ, knot_s, knot)


def _radians(angle: np.ndarray) -> np.ndarray:
    return np.float32(2 * np.pi) * (angle % 1.0).astype(np.float32)


def cosine(angle: np.ndarray) -> np.ndarray:
    """Return cos(2 pi angle) [N] float32: +1 once per revolution."""
    return np.cos(_radians(angle))


def harmonics(angle: np.ndarray, amplitudes: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the sum of a_k cos(2 pi k angle + k^2) for k = 1, 2, ...: [N] float32.

    The fixed phases k^2 spread the energy over the period instead of piling it into one peak.
    """
    radians = _radians(angle)
    step = np.cos(radians) + np.complex64(1j) * np.sin(radians)
    power = step.copy()
    total = np.zeros_like(radians)
    for k, amplitude in enumerate(amplitudes, start=1):
        total += (np.complex64(amplitude * np.exp(1j * k * k)) * power).real
        power *= step
    return total


def slow(rng: np.random.Generator, samples: int, depth: float, hz: float = 1.5) -> np.ndarray:
    """Return a loudness [N] that drifts around 1 by about `depth`, `hz` times a second."""
    knots = np.arange(0, samples + SAMPLE_RATE_HZ / hz, SAMPLE_RATE_HZ / hz)
    return np.exp(np.interp(np.arange(samples), knots, depth * rng.standard_normal(len(knots))))


def frequencies(samples: int) -> np.ndarray:
    """Return the frequencies in Hz of a real FFT [N//2+1]; the first is not 0, so powers work."""
    hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ).astype(np.float32)
    hz[0] = hz[1]
    return hz


def bumps(hz: np.ndarray, centers_hz: Sequence[float], octaves: float = 0.3) -> np.ndarray:
    """Return a spectral shape: a bell of width `octaves` at each center, 1 at its top."""
    tops = np.log2(np.asarray(centers_hz, np.float32))[:, None]
    return np.exp(-(((np.log2(hz) - tops) / np.float32(octaves)) ** 2)).sum(0)


def noise(rng: np.random.Generator, shape: np.ndarray, samples: int) -> np.ndarray:
    """Return Gaussian noise of unit power [N] whose amplitude spectrum follows `shape` [N//2+1]."""
    from scipy.fft import irfft

    white = rng.standard_normal((2, len(shape)), dtype=np.float32)
    scale = np.float32(samples / (2 * np.linalg.norm(shape)))
    return irfft((white[0] + np.complex64(1j) * white[1]) * (shape * scale), samples)


def events(angle: np.ndarray, order: float, slip: np.ndarray) -> np.ndarray:
    """Return the samples [M] (float) at which `order * angle` passes a whole number.

    `slip` (read cyclically) shifts each event by that fraction of the spacing: rolling elements
    slide a little.
    """
    count = np.arange(np.ceil(order * angle[0]), order * angle[-1])
    place = (count + np.resize(slip, len(count))) / order
    return np.interp(place, angle, np.arange(len(angle)))


def impulses(positions: np.ndarray, strengths: np.ndarray | float, samples: int) -> np.ndarray:
    """Return a wave [N] with an impulse at each (float) sample position inside the clip."""
    inside = (positions >= 0) & (positions < samples - 1)
    whole, part = np.divmod(positions[inside], 1.0)
    strength = np.broadcast_to(strengths, positions.shape)[inside]
    wave = np.zeros(samples, np.float32)
    np.add.at(wave, whole.astype(int), (1 - part) * strength)
    np.add.at(wave, whole.astype(int) + 1, part * strength)
    return wave


def ring(impulse_train: np.ndarray, hz: float, decay_s: float) -> np.ndarray:
    """Let each impulse excite a resonance exp(-t / decay_s) sin(2 pi hz t)."""
    from scipy.signal import lfilter

    radius, radians = np.exp(-1 / (decay_s * SAMPLE_RATE_HZ)), 2 * np.pi * hz / SAMPLE_RATE_HZ
    feedback = np.array([1.0, -2 * radius * np.cos(radians), radius**2], np.float32)
    return lfilter(np.array([0, radius * np.sin(radians)], np.float32), feedback, impulse_train)


def room(own: np.random.Generator, samples: int, decay_s: float = 0.05) -> np.ndarray:
    """Return the response [N//2+1] from machine to microphone: direct sound, an exponential tail
    of reflections at half its amplitude, and the slight tilt of the microphone.

    `own` decides the place: equal generators give the same one.
    """
    from scipy.fft import rfft

    time_s = np.arange(int(3 * decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = own.standard_normal(len(time_s)) * np.exp(-time_s / decay_s)
    tail *= 0.5 / np.linalg.norm(tail)
    tail[0] += 1.0
    tilt = (frequencies(samples) / 1000) ** np.float32(own.uniform(-0.15, 0.15))
    return rfft(tail.astype(np.float32), samples) * tilt


def reverberate(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return the wave [N] as it arrives through a `room`; its tail wraps around to the start."""
    from scipy.fft import irfft, rfft

    return irfft(rfft(wave.astype(np.float32)) * response, len(wave))
