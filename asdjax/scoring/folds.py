"""Reference sets of training clips, and fits to them that leave out each clip.

A reference set is a machine and those of its training clips that a score compares with together:
all of them, or those of one domain. A machine may have several sets; its clips then get the
smallest score over them.

The score of a training clip says how a normal clip scores only if the clip is not in its reference
set. Nearest neighbors can leave one clip out at no cost; a fit would have to be made again for
every clip. So the clips of a set are dealt into `FOLDS` folds and one fit is made without each
fold. All fits of all machines, those with all clips included, are one call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.types import Embeddings

FOLDS = 5
AT_ONCE = 2**24  # float32 values that the fits computed together may hold: 64 MiB
SMALLEST = 1e-12  # length below which a row counts as zero

Machines = Sequence[Embeddings]  # one for each machine and section
Note = Callable[[str], object]  # takes a line for the user
TestAndLeftOut = tuple[list[np.ndarray], list[np.ndarray]]  # as of `asdjax.scoring.score.score`
# values [n, E], weight [n] of 0 and 1, query [q, E], settings -> scores [q], a value of the fit []
Fit = Callable[..., tuple[jax.Array, jax.Array]]


class ReferenceSet(NamedTuple):
    """Training clips that a score compares with together."""

    machine: int  # its place in the list of machines
    rows: np.ndarray  # of its training clips


def reference_sets(train: Machines, how: str) -> list[ReferenceSet]:
    """Return the sets of all machines: one of all clips ("pooled"), or one for each "domain"."""
    sets = []
    for g, machine in enumerate(train):
        label = np.array([clip.domain or "" if how == "domain" else "" for clip in machine.clips])
        sets += [ReferenceSet(g, np.flatnonzero(label == one)) for one in np.unique(label)]
    return sets


def smallest(scores: Sequence[np.ndarray], sets: Sequence[ReferenceSet]) -> list[np.ndarray]:
    """Return the smallest scores `[n]` of each machine's clips over its reference sets."""
    of_machine: dict[int, list[np.ndarray]] = {}
    for score, one in zip(scores, sets, strict=True):
        of_machine.setdefault(one.machine, []).append(score)
    return [np.min(of_machine[g], 0) for g in sorted(of_machine)]


def name(machine: Embeddings) -> str:
    """Return machine/section, for messages."""
    return "/".join(machine.clips[0].group)


def unit(values: np.ndarray) -> np.ndarray:
    """Return rows `[n, E]` divided by their length; zeros stay zeros."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), SMALLEST)


def unit_rows(machines: Machines) -> list[Embeddings]:
    """Return the machines with embeddings of length 1."""
    return [replace(machine, values=unit(machine.values)) for machine in machines]


def stack(arrays: Sequence[np.ndarray], fill=0) -> np.ndarray:
    """Pad arrays `[n_g, ...]` to one `[G, n, ...]`."""
    if len(arrays) == 1:
        return arrays[0][None]  # no copy of a large reference set
    longest = max(len(array) for array in arrays)
    stacked = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in enumerate(arrays):
        stacked[row, : len(array)] = array
    return stacked


def fitted_scores(
    train: Machines,
    test: Machines,
    sets: Sequence[ReferenceSet],
    values_held: int,
    fit: Fit,
    *settings: Hashable,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Fit every reference set, and score all clips of its machine.

    Args:
      train, test: the machines.
      sets: what is fitted.
      values_held: float32 values that one fit needs, to bound the memory of all.
      fit: a function of a module (it is compiled once), which ignores rows of weight 0.
      settings: its further arguments.

    Returns:
      For each set: scores `[n]` float32 of the machine's test clips; those of its training clips,
      each by a fit without it (inf where no clip remains); `[sets]`, the second result of the fit
      to all clips of the set.
    """
    values = stack([train[g].values for g, _ in sets])
    query = np.concatenate([values, stack([test[g].values for g, _ in sets])], 1)
    deals = [deal(len(train[g].values), rows) for g, rows in sets]
    weight = stack([part.T for part, _ in deals]).transpose(0, 2, 1)
    # The largest divisor of all fits that the memory allows: equal parts need one program, not two.
    fits = weight.shape[0] * weight.shape[1]
    most = max(AT_ONCE // values_held, 1)
    together = max(part for part in range(1, fits + 1) if fits % part == 0 and part <= most)
    with _lapack_on_one_thread():
        found, second = map(np.asarray, _all_fits(values, weight, query, together, fit, settings))
    found = np.where(weight.any(2)[:, :, None], found, np.float32(np.inf))
    of_test = found[:, 0, values.shape[1] :]
    tests = [row[: len(test[g].values)] for row, (g, _) in zip(of_test, sets, strict=True)]
    left_out = [of[own, np.arange(len(own))] for of, (_, own) in zip(found, deals, strict=True)]
    return tests, left_out, second[:, 0]


def deal(count: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which clips each fit uses, and which fit scores each clip.

    Args:
      count: clips of the machine.
      rows: those of the reference set, dealt in turn, so that neighbors in the list part.

    Returns:
      `[1 + FOLDS, count]` float32 of 0 and 1: the first fit uses the whole set, each other one all
      but a fold; `[count]` int, a fit that does not use the clip (the first for clips that are not
      of the set).
    """
    own = np.zeros(count, int)
    own[rows] = 1 + np.arange(len(rows)) % FOLDS
    weight = np.zeros((1 + FOLDS, count), np.float32)
    weight[:, rows] = 1
    weight[own[rows], rows] = 0
    return weight, own


def _lapack_on_one_thread():
    """Return the context in which the LAPACK that JAX calls on a CPU uses one thread.

    A factor of a matrix of 512 rows takes milliseconds on one thread. Where other work has the
    cores, the threads that share it spin until the last of them gets one: up to a hundred times
    longer.
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

    scores, second = jax.lax.map(one, jnp.arange(groups * fits), batch_size=together)
    return scores.reshape(groups, fits, -1), second.reshape(groups, fits)
