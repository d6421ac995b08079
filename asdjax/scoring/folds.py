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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.types import Embeddings

FOLDS = 5
AT_ONCE = 2**24  # float32 values that the fits computed together may hold: 64 MiB
QUERIES = 16  # numbers of queries are rounded up to a multiple
SMALLEST = 1e-12  # length below which a row counts as zero

Machines = Sequence[Embeddings]  # one for each machine and section
Note = Callable[[str], object]  # takes a line for the user
# What a scorer's `fit(train, note)` returns: a function from other clips of the same machines, in
# the same order, to their scores, `[n]` float32 of each machine; and one without arguments, which
# returns the scores that the training clips get without being in their reference set.
Fitted = tuple[Callable[[Machines], list[np.ndarray]], Callable[[], list[np.ndarray]]]
# values [n, E], weight [n] of 0 and 1, settings -> what is known of them, a value of the fit []
Fit = Callable[..., tuple[Any, jax.Array]]
Apply = Callable[..., jax.Array]  # what is known, query [q, E], settings -> scores [q]


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


def fit_sets(
    train: Machines,
    sets: Sequence[ReferenceSet],
    values_held: int,
    fit: Fit,
    apply: Apply,
    *settings: Hashable,
) -> tuple[Fitted, np.ndarray]:
    """Fit every reference set.

    Args:
      train: the machines.
      sets: what is fitted.
      values_held: float32 values that one fit needs, to bound the memory of all.
      fit: a function of a module (it is compiled once), which ignores rows of weight 0.
      apply: another one, which scores by what the first returns.
      settings: further arguments of both.

    Returns:
      Two functions as of `Fitted`, but for each set: scores of its machine's clips; those of the
      machine's training clips, each by a fit without it (inf where no clip remains). And `[sets]`,
      the second result of the fits to all clips of a set.
    """
    values = stack([train[g].values for g, _ in sets])
    deals = [deal(len(train[g].values), rows) for g, rows in sets]
    weight = stack([part.T for part, _ in deals]).transpose(0, 2, 1)
    with _lapack_on_one_thread():
        how = _together(len(sets), values_held), fit, settings
        known, second = _all_fits(values, weight[:, 0], *how)

    def score(test: Machines) -> list[np.ndarray]:
        asked = [i for i, (g, _) in enumerate(sets) if len(test[g].values)]
        scores = [np.zeros(0, np.float32)] * len(sets)
        if asked:
            query = stack([test[sets[i].machine].values for i in asked])
            query = np.pad(query, ((0, 0), (0, -query.shape[1] % QUERIES), (0, 0)))  # few programs
            own = known if len(asked) == len(sets) else jax.tree.map(lambda x: x[asked, ...], known)
            with _lapack_on_one_thread():
                how = _together(len(asked), values_held), apply, settings
                found = np.asarray(_all_scores(own, query, *how))
            for i, row in zip(asked, found, strict=True):
                scores[i] = row[: len(test[sets[i].machine].values)]
        return scores

    def left_out() -> list[np.ndarray]:
        held = _together(len(sets) * FOLDS, values_held)
        with _lapack_on_one_thread():
            of_fits = np.array(_all_left_out(values, weight[:, 1:], held, fit, apply, settings))
        of_fits[~weight[:, 1:].any(2)] = np.inf
        found = []
        for of, whole, (_, own) in zip(of_fits, score(train), deals, strict=True):
            inside = of[own - 1, np.arange(len(own))]
            found.append(np.where(own > 0, inside, whole))
        return found

    return (score, left_out), np.asarray(second)


def _together(fits: int, values_held: int) -> int:
    """Return how many fits are computed together: a divisor of all, so that parts need one program,
    the largest that the memory allows."""
    most = max(AT_ONCE // values_held, 1)
    return max(part for part in range(1, fits + 1) if fits % part == 0 and part <= most)


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
def _all_fits(values, weight, together: int, fit: Fit, settings: tuple):
    """Return what is known of sets, and `[G]`, from `[G, n, E]` and `[G, n]`."""
    return jax.lax.map(lambda one: fit(*one, *settings), (values, weight), batch_size=together)


@partial(jax.jit, static_argnames=("together", "apply", "settings"))
def _all_scores(known, query, together: int, apply: Apply, settings: tuple):
    """Return `[G, q]` of `[G, q, E]`."""
    return jax.lax.map(lambda one: apply(*one, *settings), (known, query), batch_size=together)


@partial(jax.jit, static_argnames=("together", "fit", "apply", "settings"))
def _all_left_out(values, weight, together: int, fit: Fit, apply: Apply, settings: tuple):
    """Return the scores `[G, F, n]` of rows `[G, n, E]` by fits to those of weight `[G, F, n]`."""
    groups, fits, rows = weight.shape

    def one(place):
        group, number = place // fits, place % fits
        known, _ = fit(values[group], weight[group, number], *settings)
        return apply(known, values[group], *settings)

    places = jnp.arange(groups * fits)
    return jax.lax.map(one, places, batch_size=together).reshape(groups, fits, rows)
