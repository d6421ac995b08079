"""Weights: one flat dict of dotted names to arrays, in a jitted step, an optimizer and a file.

Names such as `layers.3.attn.q.kernel` are part of the file format. A file is safetensors; its
header says which model the weights are of (`Header`) and holds a checksum of the whole file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from asdjax.files import atomic
from asdjax.types import InputError, preview

Params = dict[str, jax.Array]

FORMAT = "asdjax-params"
FORMAT_VERSION = 2  # 1 had no checksum
REMEDY = "convert the original checkpoint again, or train again with --force"


@dataclass(frozen=True)
class Header:
    """What a weight file says about its weights."""

    kind: str  # which model, e.g. "beats"
    config: dict  # the model's configuration, as its config class takes it
    source_sha256: str = ""  # of the file these weights were converted from; "" when none
    labels: tuple[str, ...] = ()  # class names of a model with a class head, in output order
    checksum: str = field(default="", compare=False)  # as it was read; "" in files of old versions


class WeightsFile(NamedTuple):
    """The content of a weight file."""

    arrays: Mapping[str, np.ndarray]
    header: Header
    sha256: str  # of the whole file


def flatten(state: nnx.State) -> Params:
    """Return a module's state as dotted names to values (abstract values stay abstract)."""
    flat = nnx.to_flat_state(state)
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def unflatten(params: Mapping[str, jax.Array]) -> nnx.State:
    def path(name: str) -> tuple[str | int, ...]:
        return tuple(int(part) if part.isdigit() else part for part in name.split("."))

    return nnx.from_flat_state([(path(name), value) for name, value in params.items()])


def split(model: nnx.Module, *filters: object) -> tuple:
    """Split a module into its graph and one `Params` per filter, plus one for the rest."""
    graph, *states = nnx.split(model, *filters, ...)
    return graph, *map(flatten, states)


def merge(graph: nnx.GraphDef, *params: Mapping[str, jax.Array]) -> nnx.Module:
    """Build the module back from its graph and all of its `Params`; cheap, made for use in jit."""
    return nnx.merge(graph, *map(unflatten, params))


def count(params: Mapping[str, jax.Array]) -> int:
    """Return how many values the arrays hold."""
    return sum(math.prod(value.shape) for value in params.values())


def misfits(params: Mapping, expected: Mapping) -> str:
    """Return every missing, unexpected and misshapen name, one per line; "" when all fit.

    Args:
        params, expected: dotted names to anything with a `shape`.
    """
    shared = sorted(expected.keys() & params.keys())
    shapes = [(name, tuple(expected[name].shape), tuple(params[name].shape)) for name in shared]
    wrong = [f"{name}: expected {want}, got {got}" for name, want, got in shapes if want != got]
    return (
        listing("in the model but not in the file", sorted(expected.keys() - params.keys()))
        + listing("in the file but not in the model", sorted(params.keys() - expected.keys()))
        + listing("wrong shape", wrong)
    )


def listing(title: str, lines: Iterable[str]) -> str:
    """Return `title (n):` and one indented line each, to append to a message; "" for none."""
    lines = list(lines)
    return "\n  ".join([f"\n{title} ({len(lines)}):", *lines]) if lines else ""


def save(path: Path | str, params: Mapping[str, jax.Array], header: Header) -> None:
    """Write the arrays and the header as one safetensors file, atomically.

    Equal weights and headers give equal files.
    """
    import safetensors.numpy

    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "kind": header.kind,
        "config": json.dumps(header.config),
        "source_sha256": header.source_sha256,
        "labels": json.dumps(header.labels),
    }
    arrays = {name: np.asarray(value, order="C") for name, value in params.items()}
    data = memoryview(safetensors.numpy.save(arrays, metadata))
    table, values = _parts(data)
    table["__metadata__"]["checksum"] = _checksum(table, values)
    # safetensors writes the metadata in random order
    text = json.dumps(table, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(values)


def _parts(data: memoryview) -> tuple[dict, memoryview]:
    """Return the header of a safetensors file, and the bytes of its arrays."""
    size = 8 + int.from_bytes(data[:8], "little")
    return json.loads(bytes(data[8:size])), data[size:]


def _checksum(table: dict, values: memoryview) -> str:
    """Return a digest of metadata, names, types, shapes and bytes of all arrays."""
    import xxhash

    digest = xxhash.xxh3_128(json.dumps(table, sort_keys=True).encode())
    digest.update(values)
    return digest.hexdigest()


def load(path: Path | str, remedy: str = REMEDY) -> WeightsFile:
    """Read a file of `save`: arrays, header and SHA-256.

    Args:
        remedy: what helps against a damaged one.

    Raises:
        InputError: no such file, not safetensors, not written by this format version, damaged, or
            with weights that are not finite.
    """
    import safetensors.numpy

    with readable(path) as path:
        data = path.read_bytes()
        arrays = safetensors.numpy.load(data)
    table, values = _parts(memoryview(data))
    metadata = table.get("__metadata__", {})
    header = _header(metadata, path)
    if header.checksum != metadata.pop("checksum", "") or (
        header.checksum and header.checksum != _checksum(table, values)
    ):
        raise InputError(f"{path} is damaged: its checksum is of other content; {remedy}")
    if bad := sorted(name for name, array in arrays.items() if not np.isfinite(array).all()):
        raise InputError(f"{path}: weights that are not finite in {preview(bad)}; {remedy}")
    return WeightsFile(arrays, header, hashlib.sha256(data).hexdigest())


def open_weights(path: Path | str) -> WeightsFile:
    """Return what `load` does, and remember the last two files for the whole process.

    So a run, and an ensemble of runs, reads each backbone once: for its key, for training and for
    the embeddings. A file that changed is read again. The arrays are shared and cannot be written
    to. They stay in memory, 360 MB for a base model.
    """
    with readable(path) as path:
        stat = path.stat()
        return _remembered(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)
def _remembered(path: Path, *version: int) -> WeightsFile:
    file = load(path)
    for array in file.arrays.values():
        array.flags.writeable = False
    return file._replace(arrays=MappingProxyType(file.arrays))


def read_header(path: Path | str) -> Header:
    """Return the header of a file of `save` without reading its arrays; raises as `load`."""
    import safetensors

    with readable(path) as path, safetensors.safe_open(path, framework="numpy") as file:
        return _header(file.metadata() or {}, path)


@contextmanager
def readable(path: Path | str) -> Iterator[Path]:
    """Turn what safetensors raises, and a file that is not there, into an InputError."""
    import safetensors

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such weight file")
    try:
        yield path
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: of a type NumPy lacks
        raise InputError(f"{path}: not a complete safetensors file ({error})") from error


def _header(metadata: dict[str, str], path: Path) -> Header:
    found = f"{metadata.get('format', 'no format')} version {metadata.get('version', '?')}"
    if found not in [f"{FORMAT} version {number}" for number in (1, FORMAT_VERSION)]:
        raise InputError(
            f"{path}: expected {FORMAT} version {FORMAT_VERSION} in the header, got {found}; "
            "convert the original checkpoint with `python -m weights_convert`"
        )
    try:
        return Header(
            metadata["kind"],
            json.loads(metadata["config"]),
            metadata["source_sha256"],
            tuple(json.loads(metadata["labels"])),
            "" if metadata["version"] == "1" else metadata["checksum"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged header ({error}); convert the file again") from error
