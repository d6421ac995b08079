"""Convert tensors by a table: which becomes which parameter, and how it is laid out.

Every tensor of a file must be used and every parameter of the model be filled exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from asdjax import params
from asdjax.types import InputError

Layout = Callable[[np.ndarray], np.ndarray]
Table = list[tuple[str, str, Layout]]  # pattern of a tensor's whole name, our name, layout


def same(x):
    return x


def linear(x):  # (out, in) -> [in, out]
    return x.T


def patch(x):  # (D, 1, time, mel) -> [time * mel, D]
    return x.reshape(len(x), -1).T


def last(x):  # (1, 1, D) -> [D]
    return x.reshape(x.shape[-1])


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
        rows = [row for row in _rows(table, name) if row[0] in expected]
        values = [_lay_out(tensor, layout) for _, layout in rows]
        if not rows:
            unknown.append(name)
        elif any(value is None for value in values):
            bad.append(f"{name}: expected finite floating-point numbers of the known layout")
        else:
            found = {target: value for (target, _), value in zip(rows, values, strict=True)}
            bad += _clashes(name, found, arrays, repeated)
            arrays = found | arrays
    problems = params.listing("in the file but not in the model", unknown)
    problems += params.misfits(arrays, expected) + params.listing("unusable", bad)
    if problems:
        raise InputError(f"the tensors are not those of its configuration{problems}")
    return arrays


def _rows(table: Table, name: str) -> list[tuple[str, Layout]]:
    """Return our names for a checkpoint's tensor and how to lay each out; [] for an unknown one."""
    matches = ((re.fullmatch(pattern, name), *rest) for pattern, *rest in table)
    return [(match.expand(target), layout) for match, target, layout in matches if match]


def _lay_out(tensor: Any, layout: Layout) -> np.ndarray | None:
    if not isinstance(tensor, np.ndarray) or not jnp.issubdtype(tensor.dtype, jnp.floating):
        return None
    try:
        value = np.asarray(layout(tensor), np.float32, order="C")
    except (ValueError, IndexError):  # too few or too many axes
        return None
    return value if np.isfinite(value).all() else None


def _clashes(name: str, found: Mapping, arrays: Mapping, repeated: frozenset[str]) -> list[str]:
    return [
        f"{name}: another value for {target}, which an earlier tensor filled"
        for target, value in found.items()
        if target in arrays
        and (target not in repeated or not np.array_equal(arrays[target], value))
    ]
