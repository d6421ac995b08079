"""Read a PyTorch checkpoint (.pt, .pth, .bin) as NumPy arrays, without PyTorch and without trust.

Since PyTorch 1.6 such a file is an uncompressed zip: `<folder>/data.pkl` describes the objects and
`<folder>/data/<key>` holds the bytes of each storage. A pickle can ask for any function of any
module to be called; here it gets the few of `_allowed` and everything else is refused.
"""

from __future__ import annotations

import io
import math
import operator
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from asdjax.types import InputError

DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def read(path: Path | str) -> Any:
    """Return the saved object, every tensor as its own contiguous NumPy array.

    Raises:
        InputError: not such a file, damaged, or it asks for something that weights do not need.
    """
    path = Path(path)
    _check_start(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Unpickler(archive).load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: damaged or cut off ({error}); get the file again") from error
    except Exception as error:  # a bad pickle can make the unpickler raise anything
        raise InputError(f"{path}: not a readable PyTorch checkpoint ({error!r})") from error


def _check_start(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"\x80"):
        raise InputError(
            f"{path}: a pickle without an archive, as PyTorch saved before version 1.6; load and "
            "save it again with a newer PyTorch, if you trust the file"
        )
    if start != b"PK\x03\x04":
        raise InputError(f"{path}: not a PyTorch checkpoint (expected a zip archive)")


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError("a zip archive, but not a PyTorch checkpoint (no data.pkl in it)")
        self._folder = pickles[0].removesuffix("data.pkl")
        if self._folder + "byteorder" in self._members and self._read("byteorder") != b"little":
            raise InputError("written on a big-endian machine, which is not supported")
        self._storages: dict[tuple[str, str], np.ndarray] = {}
        self._allowed = _allowed(self._account)
        self._copied, self._limit = 0, 2 * sum(m.file_size for m in self._members.values()) + 2**20
        data = self._read("data.pkl")
        _refuse_large_memo(data)
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        raise InputError(
            f"asks for '{module}.{name}', which weights do not need and which could run code; "
            "refused. If you trust the file, save its tensors and configuration alone"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return a whole storage, `[n]`, read-only."""
        _, dtype, key, _, count = pid
        if (key, dtype) not in self._storages:
            data = self._read(f"data/{key}")
            if len(data) != count * DTYPES[dtype].itemsize:
                raise InputError(f"storage {key}: expected {count} {dtype}, got {len(data)} bytes")
            self._storages[key, dtype] = np.frombuffer(data, DTYPES[dtype])
        return self._storages[key, dtype]

    def _account(self, tensor: np.ndarray) -> np.ndarray:
        """Refuse a pickle that copies the same storage until the memory is full."""
        self._copied += tensor.nbytes
        if self._copied > self._limit:
            raise InputError("its tensors are far larger than the file; refused")
        return tensor

    def _read(self, name: str) -> bytes:
        info = self._members.get(self._folder + name)
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"the member {name} is missing or compressed; get the file again")
        return self._archive.read(info)


def _refuse_large_memo(data: bytes) -> None:
    """Refuse memo indices beyond the pickle's length: Python would allocate that many slots."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(data):
                raise InputError(f"a memo index of {argument} in a pickle of {len(data)} bytes")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not a whole pickle ({error})") from error


def _allowed(account: Callable[[np.ndarray], np.ndarray]) -> dict[tuple[str, str], Any]:
    """Return all that a pickle may name: fresh functions and strings, so nothing can be altered."""

    def tensor(storage, offset, size, stride, *_):
        size, stride = tuple(map(operator.index, size)), tuple(map(operator.index, stride))
        return account(_tensor(storage, operator.index(offset), size, stride))

    return {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        **{("torch", name): name for name in DTYPES},
    }


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    """Cut a tensor out of its storage; offset and strides count elements."""
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or count > len(storage):
        raise InputError(f"a tensor of shape {size} does not fit its {len(storage)} values")
    if count and last >= len(storage):
        raise InputError(f"a tensor reaches value {last} of a storage of {len(storage)}")
    item = storage.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], size, [step * item for step in stride], writeable=False
    )
    return np.array(view, order="C")
