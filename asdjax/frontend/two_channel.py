"""The near microphone without what the far one hears, of recordings with both (DCASE 2026).

The far microphone has the noise of the factory and little of the machine. What a linear filter
predicts of the near microphone from the far one is that noise.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.frontend.fbank import to_float

How = Literal["wiener", "magnitude"]
PEAK = 0.9
SILENCE = 1e-12
KEPT = 0.1  # of the magnitude where the far microphone has more
LEAST = 1e-3  # sum of squared windows; it is less behind the frames of a clip alone
AT_ONCE = 8  # clips on the host
FRAME_SAMPLES = {"wiener": 1024, "magnitude": 512}  # each half over the next


def one_wave(wave: np.ndarray, lengths: np.ndarray, how: str) -> np.ndarray:
    """Return waves `[B, N]` of clips on the host: `near_alone` of two channels, others as they are.

    Args:
      how: as of `near_alone`; any other way gives near as it is.
    """
    if wave.ndim == 2:
        return wave
    if how not in FRAME_SAMPLES:
        return to_float(wave[..., 0])
    found = np.zeros(wave.shape[:2], np.float32)
    for start in range(0, len(wave), AT_ONCE):  # one program, however many clips there are
        some = slice(start, start + AT_ONCE)
        missing = AT_ONCE - len(wave[some])
        clips = np.pad(wave[some], ((0, missing), (0, 0), (0, 0)))
        known = np.pad(lengths[some], (0, missing), constant_values=wave.shape[1])
        found[some] = near_alone(clips, known, how)[: AT_ONCE - missing]
    return found


@partial(jax.jit, static_argnames="how")
def near_alone(wave, lengths=None, how: How = "wiener"):
    """Return what is left of the near microphone, `[B, N]` float32.

    "wiener": Y = C - H F in each frequency of a clip, with C and F the transforms of the frames of
    near and far, and H = sum C conj(F) / (sum |F|^2 + 1e-12) over all frames, of waves whose common
    peak is 0.9. "magnitude": |C| - |F| in place of |C| where that is positive, else 0.1 |C|.

    Frames under a periodic Hann window of 1024 ("magnitude": 512) samples, each half over the next,
    the first around sample 0 of the reflected wave; back by their weighted sum. One more frame, of
    which H knows nothing, covers the end.

    Args:
      wave: `[B, N, 2]` float in [-1, 1] or int16, near and far, N of at least a frame.
      lengths: `[B]` valid samples of each clip, at least half a frame and one. A clip gives what it
        gives alone, and zeros behind it.

    Source: protocols W1 and SS of the public repository kasahart/asd-experiments.
    """
    wave = to_float(wave)
    size = FRAME_SAMPLES[how]
    if wave.shape[1] < size:
        raise ValueError(f"expected at least {size} samples, got a wave {wave.shape}")
    if lengths is None:
        edges = jnp.pad(wave, ((0, 0), (size // 2, size // 2), (0, 0)), mode="reflect")
        lengths = jnp.full(len(wave), wave.shape[1], jnp.int32)
    else:
        edges = jax.vmap(partial(_reflected, by=size // 2))(wave, lengths)
    one = partial(_of_one, how=how)
    # On a CPU a few clips at a time, so that their frames stay in the cache.
    return jax.lax.platform_dependent(
        edges,
        lengths,
        cpu=lambda *given: jax.lax.map(lambda clip: one(*clip), given, batch_size=2),
        default=jax.vmap(one),
    )


def _reflected(wave, length, by: int):
    """Return `[N + 2 by, 2]`: the first `length` samples, mirrored at both ends, and zeros."""
    place = jnp.arange(-by, len(wave) + by)
    from_start = jnp.abs(place)
    inner = jnp.where(from_start < length, from_start, 2 * (length - 1) - from_start)
    return jnp.where((place < length + by)[:, None], wave[inner], 0.0)


def _of_one(edges, length, how: How):
    """Return `[N]` from a mirrored wave `[N + size, 2]`."""
    size = FRAME_SAMPLES[how]
    hop, samples = size // 2, len(edges) - size
    count = 2 + samples // hop
    window = jnp.asarray(_window(size))
    last = length // hop  # of the frames around samples of the clip
    frame = jnp.arange(count)[:, None]
    peak = jnp.abs(edges).max()  # mirrored samples are samples of the clip
    scale = jnp.where(peak > SILENCE, PEAK / jnp.maximum(peak, SILENCE), 1.0)
    edges = jnp.pad(edges, ((0, (count + 1) * hop - len(edges)), (0, 0)))
    hops = (scale * edges.T).reshape(2, count + 1, hop)
    frames = jnp.concatenate([hops[:, :-1], hops[:, 1:]], -1)
    near, far = jnp.fft.rfft(frames * window[None, None])
    if how == "wiener":
        left = _without_predicted(near, far, frame <= last)
    else:
        left = _without_magnitude(near, far)
    parts = jnp.where(frame <= last + 1, jnp.fft.irfft(left, size) * window[None], 0.0)
    weights = jnp.where(frame <= last + 1, jnp.square(window)[None], 0.0)
    parts, weights = (x.reshape(count, 2, hop) for x in (parts, weights))
    total, weight = (_overlapping(x) for x in (parts, weights))
    found = jnp.where(weight > LEAST, total / jnp.maximum(weight, LEAST), 0.0) / scale
    return jnp.where(jnp.arange(samples) < length, found[:samples], 0.0)


def _window(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def _overlapping(parts):
    """Return the sum of frames `[T, 2, hop]` from the middle of the first on, `[T hop]`."""
    first, second = parts[:, 0], parts[:, 1]
    return (second + jnp.pad(first[1:], ((0, 1), (0, 0)))).reshape(-1)


def _without_predicted(near, far, known):
    """Return the near frames without what is predicted by those of the `known [T, 1]`."""
    cross = jnp.where(known, near * far.conj(), 0.0).sum(0)
    power = jnp.where(known, jnp.square(far.real) + jnp.square(far.imag), 0.0).sum(0)
    return near - (cross / (power + SILENCE))[None] * far


def _without_magnitude(near, far):
    of_near, of_far = jnp.abs(near), jnp.abs(far)
    share = 1 - of_far / jnp.maximum(of_near, SILENCE)
    return jnp.where(of_near > of_far, share, KEPT) * near
