"""Convert tensors by a table: which becomes which parameter, and how it is laid out.

Every tensor of a file must be used and every parameter of the model be filled exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from asdjax.models.weights_file import listing, misfits
from asdjax.types import InputError

Layout = Callable[[np.ndarray], np.ndarray]
Table = list[tuple[str, str, Layout]]  # pattern of a tensor's whole name, our name, layout


def same(x):
    return x


def transposed(x):  # (out, in) -> [in, out]
    return x.T


def patches(x):  # (D, 1, time, mel) -> [time * mel, D]
    return x.reshape(len(x), -1).T


def last(x):  # (1, 1, D) -> [D]
    return x.reshape(x.shape[-1])


def linear(theirs: str, ours: str, kernel: Layout = transposed, bias: Layout = same) -> Table:
    """Return the rows of a dense layer, whose names begin with `theirs` and `ours`."""
    return [
        (theirs + r"\.weight", ours + ".kernel", kernel),
        (theirs + r"\.bias", ours + ".bias", bias),
    ]


def norm(theirs: str, ours: str) -> Table:
    """Return the rows of a norm, whose names begin with `theirs` and `ours`."""
    return [
        (theirs + r"\.weight", ours + ".scale", same),
        (theirs + r"\.bias", ours + ".bias", same),
    ]


def convert(
    state: Mapping[str, Any],
    table: Table,
    expected: Mapping,
    repeated: frozenset[str] = frozenset(),
) -> dict[str, np.ndarray]:
    """Return our parameters, float32, from the tensors of a checkpoint, strictly one to one.

    Args:
        table: a tensor may match several rows and then fills several parameters.
        expected: our names to anything with a `shape`.
        repeated: our names that several tensors may fill, with equal values.

    Raises:
        InputError: every tensor and parameter that does not fit.
    """
    arrays: dict[str, np.ndarray] = {}
    unknown, bad = [], []
    for name, tensor in state.items():
        matches = ((re.fullmatch(pattern, name), *row) for pattern, *row in table)
        rows = [(match.expand(ours), layout) for match, ours, layout in matches if match]
        rows = [(ours, layout) for ours, layout in rows if ours in expected]
        if not rows:
            unknown.append(name)
        for ours, layout in rows:
            value = _lay_out(tensor, layout)
            if value is None:
                bad.append(f"{name}: expected finite floating-point values of the known layout")
                break
            first = arrays.setdefault(ours, value)
            if first is not value and not (ours in repeated and np.array_equal(first, value)):
                bad.append(f"{name}: another value for {ours}, which an earlier tensor filled")
    problems = listing("in the file but not in the model", unknown)
    problems += misfits(arrays, expected) + listing("unusable", bad)
    if problems:
        raise InputError(f"the tensors are not those of its configuration{problems}")
    return arrays


def _lay_out(tensor: Any, layout: Layout) -> np.ndarray | None:
    """Return the parameter, float32; None if the tensor is no such parameter."""
    if not isinstance(tensor, np.ndarray) or not jnp.issubdtype(tensor.dtype, jnp.floating):
        return None
    try:
        value = np.asarray(layout(tensor), np.float32, order="C")
    except (ValueError, IndexError):  # too few or too many axes
        return None
    return value if np.isfinite(value).all() else None
