"""k-means on the device: k-means++ starts and Lloyd's iteration, for padded rows and many machines.

Pure functions of arrays, to be used under `jax.jit`, `jax.vmap` and `jax.lax.map`. Rows of weight 0
do not exist: neither start nor center depends on them.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

MOST_STEPS = 300  # of Lloyd; a start that still moves then is used as it is
FAR = 1e20  # a squared distance beyond all others


def kmeans(values, weight, seed: int, count: int, starts: int):
    """Return the centers of the start with the smallest sum of squared distances.

    Args:
      values: `[n, E]` float32.
      weight: `[n]` float32 >= 0. With fewer rows of weight > 0 than centers every such row is one,
        some of them more than once.
      seed: of the starts.
      count: K centers.
      starts: how many are tried.

    Returns:
      `[K, E]`; `[n]` int, the nearest center of each row; the sum of squared distances.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    # Distances do not depend on the origin; near the rows they are not rounded away.
    midst = (weight @ values / jnp.maximum(weight.sum(), 1e-12))[None]
    values = values - midst
    keys = jax.random.split(jax.random.key(seed), starts)
    first = jax.vmap(lambda key: _plus_plus(values, weight, key, count))(keys)
    centers, label, inertia = jax.vmap(partial(lloyd, values, weight))(first)
    best = jnp.argmin(inertia)
    return centers[best] + midst, label[best], inertia[best]


def lloyd(values, weight, centers):
    """Move centers `[K, E]` to the means of their rows until no row changes its center.

    A center that loses all rows stays where it is. Returns as `kmeans`.
    """

    def step(state):
        centers, label, _, steps = state
        member = jax.nn.one_hot(label, len(centers)) * weight[:, None]  # [n, K]
        size = member.sum(0)[:, None]
        mean = _product(member.T, values) / jnp.where(size > 0, size, 1)
        centers = jnp.where(size > 0, mean, centers)
        return centers, nearest(values, centers), label, steps + 1

    def moves(state):
        _, label, before, steps = state
        return ((label != before) & (weight > 0)).any() & (steps < MOST_STEPS)

    label = nearest(values, centers)
    centers, label, *_ = jax.lax.while_loop(moves, step, (centers, label, label - 1, 0))
    distance = jnp.square(values - centers[label]).sum(1)
    return centers, label, (weight * distance).sum()


def nearest(values, centers):
    """Return `[n]` int: the nearest of `centers [K, E]` of each row `[n, E]`."""
    # |x - c|^2 less |x|^2, which does not depend on the center
    return jnp.argmin(jnp.square(centers).sum(1)[None] - 2 * _product(values, centers.T), 1)


def _plus_plus(values, weight, key, count: int):
    """Return `[count, E]`: rows drawn in proportion to weight and squared distance to those drawn.

    Drawn through the cumulated sum, so that rows of weight 0 behind the others change no draw.
    """

    def draw(distance, chance):
        share = weight * distance
        # If every row is drawn already, or equal to one that is, any will do.
        share = jnp.cumsum(jnp.where(share.sum() > 0, share, weight))
        row = jnp.minimum((share <= chance * share[-1]).sum(), len(values) - 1)
        distance = jnp.minimum(distance, jnp.square(values - values[row][None]).sum(1))
        return distance, values[row]

    far = jnp.full(len(values), FAR)  # equal, so that the first draw is by weight alone
    return jax.lax.scan(draw, far, jax.random.uniform(key, (count,)))[1]


def _product(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
