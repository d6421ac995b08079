"""Time warping: clips that play faster here and slower there, and last as long as before.

64 clips of 10 s take about 0.1 s on two cores, 0.01 s of it the gather of their 16-bit samples.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.frontend.fbank import to_float

KNOTS = 4  # of the paper; its authors' code has one more at each end, as here
# Speed of a knot. Between two the spline can still go below 0, and the clip for a moment backwards:
# one clip of 5,000 at sigma 0.3, none at 0.2.
SLOWEST = 0.1


def time_warp(wave, lengths, key, probability, sigma: float):
    """Play each clip at a speed that changes smoothly, inside its own length.

    Sample t of the result is sample tau(t) of the clip, by linear interpolation. The slope of tau
    is a natural cubic spline through speeds of N(1, sigma) at equal distances, and tau is scaled so
    that the clip ends where it ended. Pitch changes with speed. Knots are not slower than 0.1.

    Args:
      wave: `[B, N]`; int16 is taken as 16-bit PCM (`to_float`).
      lengths: `[B]` int, samples of each clip before its padding, which stays where it is.
      key: of this batch.
      probability: of each clip to be warped: one for all, or `[B]`.
      sigma: standard deviation of the speeds.

    Returns:
      `[B, N]` float32.

    Source: Iwana and Uchida 2021, "An empirical survey of data augmentation for time series
      classification with neural networks", time warping. Their spline is tau itself; here it is the
      speed, as in Um et al. 2017, where they have it from: both are smooth.
    """
    chance, drawn = jax.random.split(key)
    warped = jax.random.uniform(chance, lengths.shape) < probability
    speeds = 1 + sigma * jax.random.normal(drawn, (len(wave), KNOTS + 2))
    last = jnp.maximum(lengths - 1, 1)[:, None]
    position = jnp.arange(wave.shape[1])[None]
    # Positions of long clips have few bits left for fractions, distances have them.
    ahead = last * _ahead(jnp.maximum(speeds, SLOWEST), position / last)
    ahead = jnp.clip(ahead, -position, last - position)
    before = jnp.minimum(position + jnp.floor(ahead).astype(jnp.int32), last - 1)
    left, right = (to_float(jnp.take_along_axis(wave, before + i, 1)) for i in (0, 1))
    found = left + (position - before + ahead) * (right - left)
    return jnp.where(warped[:, None] & (position < lengths[:, None]), found, to_float(wave))


def _ahead(speeds, time):
    """Return how far warped time is ahead: `[B, N]` tau(time) - time, where both end at 1.

    Args:
      speeds: `[B, K]`, at times 0, 1 / (K - 1), ... 1.
      time: `[B, N]`.
    """
    pieces = speeds.shape[1] - 1
    bend = jnp.matmul(speeds, _bend(pieces + 1).T, precision="highest")
    s, t, m, n = (x.T[:, :, None] for x in _ends(speeds) + _ends(bend))  # each [pieces, B, 1]
    # Within a piece, v in [0, 1], the speed is s + slope v + m v^2 / 2 + (n - m) v^3 / 6.
    slope = t - s - (2 * m + n) / 6
    integral = s, slope / 2, m / 6, (n - m) / 24  # of v, v^2, v^3, v^4
    total = sum(integral).sum(0)
    ahead = jnp.zeros_like(time)
    for i in range(pieces):
        v = jnp.clip(time * pieces - i, 0, 1)
        one, two, three, four = (x[i] for x in integral)
        passed = v * (one + v * (two + v * (three + v * four)))
        ahead = ahead + passed / total - v / pieces
    return ahead


def _ends(x):
    """Return the values at the left and the right end of each piece."""
    return x[:, :-1], x[:, 1:]


def _bend(knots: int) -> np.ndarray:
    """Return `[knots, knots]`: values at distance 1 -> second derivatives of their natural spline.

    These are 0 at both ends, and m[i-1] + 4 m[i] + m[i+1] is 6 times the second difference.
    """
    inner = np.eye(knots)[1:-1]
    beside = np.roll(inner, 1, 1) + np.roll(inner, -1, 1)
    equations = np.vstack([np.eye(knots)[:1], beside + 4 * inner, np.eye(knots)[-1:]])
    second = np.vstack([np.zeros(knots), 6 * (beside - 2 * inner), np.zeros(knots)])
    return np.linalg.solve(equations, second).astype(np.float32)
