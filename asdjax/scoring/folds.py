"""What is fitted to normal clips, fitted without each of them too.

A clip's own score says how a normal clip scores only if the clip was not in what it is compared
with. Neighbors can leave one clip out at no cost; for a fit this would be one per clip. So the
clips of a bank are dealt into `FOLDS` folds and a fit is made without each: all fits of all
machines, those with all clips included, are one call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring.banks import Bank
from asdjax.scoring.knn import stack
from asdjax.types import Embeddings

FOLDS = 5
AT_ONCE = 2**24  # values held by the fits that run side by side: 64 MiB

# values [n, E], weight [n] of 0 and 1, query [q, E], settings -> scores [q], what the fit tells []
Fit = Callable[..., tuple[jax.Array, jax.Array]]


def fitted_scores(
    train: Sequence[Embeddings],
    test: Sequence[Embeddings],
    banks: Sequence[Bank],
    values_held: int,
    fit: Fit,
    *settings: Hashable,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Fit every bank, and score all clips of its machine.

    Args:
      train, test: the machines.
      banks: what is fitted.
      values_held: float32 values that one fit needs, to bound the memory of all.
      fit: a function of a module (it is compiled once), to which rows of weight 0 do not exist.
      settings: its further arguments.

    Returns:
      Per bank: scores `[n]` float32 of the machine's test clips; those of its training clips, each
      by a fit without it (inf where no clip remains); `[banks]`, what the fit with all clips told.
    """
    values = stack([train[g].values for g, _ in banks])
    query = np.concatenate([values, stack([test[g].values for g, _ in banks])], 1)
    deals = [deal(len(train[g].values), rows) for g, rows in banks]
    weight = stack([part.T for part, _ in deals]).transpose(0, 2, 1)
    together = _divisor(weight.shape[0] * weight.shape[1], AT_ONCE // values_held)
    with _lapack_on_one_thread():
        found, told = map(np.asarray, _all_fits(values, weight, query, together, fit, settings))
    found = np.where(weight.any(2)[:, :, None], found, np.float32(np.inf))
    first = values.shape[1]  # of the test clips among the queries
    tests = [found[b, 0, first : first + len(test[g].values)] for b, (g, _) in enumerate(banks)]
    left = [found[b, own, np.arange(len(own))] for b, (_, own) in enumerate(deals)]
    return tests, left, told[:, 0]


def deal(count: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which clips each fit sees, and which fit scores each clip.

    Args:
      count: clips of the machine.
      rows: those of the bank, dealt in turn, so that neighbors in the list part.

    Returns:
      `[1 + FOLDS, count]` float32 of 0 and 1: the first fit sees all of the bank, the others all
      but a fold; `[count]` int, a fit that does not see the clip (the first for clips that are not
      of the bank).
    """
    own = np.zeros(count, int)
    own[rows] = 1 + np.arange(len(rows)) % FOLDS
    weight = np.zeros((1 + FOLDS, count), np.float32)
    weight[:, rows] = 1
    weight[own[rows], rows] = 0
    return weight, own


def _divisor(whole: int, most: int) -> int:
    """Return the largest divisor up to `most`, or 1: equal parts need one program, not two."""
    return max(part for part in range(1, whole + 1) if whole % part == 0 and part <= max(most, 1))


def _lapack_on_one_thread():
    """Return the context in which the LAPACK that JAX calls on a CPU uses one thread.

    A factor of 512 numbers takes milliseconds on one thread. Where other work has the cores, the
    threads that share it spin until the last of them gets one: up to a hundred times longer.
    """
    # JAX calls the LAPACK of SciPy, and only libraries that are loaded already are limited.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


@partial(jax.jit, static_argnames=("together", "fit", "settings"))
def _all_fits(values, weight, query, together: int, fit: Fit, settings: tuple):
    """Return `[G, F, q]` scores and `[G, F]`, from `[G, n, E]`, `[G, F, n]` and `[G, q, E]`."""
    groups, fits, _ = weight.shape

    def one(place):
        group, number = place // fits, place % fits
        return fit(values[group], weight[group, number], query[group], *settings)

    scores, told = jax.lax.map(one, jnp.arange(groups * fits), batch_size=together)
    return scores.reshape(groups, fits, -1), told.reshape(groups, fits)
