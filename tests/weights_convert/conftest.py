"""Writes PyTorch checkpoints without PyTorch, good ones and bad ones."""

import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

STORAGE = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


class Storage:
    """What a saved tensor points to; `numbers` may lie about the bytes."""

    def __init__(self, data: np.ndarray, numbers: int | None = None):
        self.data, self.numbers = data, len(data) if numbers is None else numbers


class Tensor:
    def __init__(self, storage: Storage, offset: int, size: tuple, stride: tuple):
        self.parts = storage, offset, size, stride

    def __reduce__(self):
        return rebuild, (*self.parts, False, OrderedDict())


def rebuild(*_):
    raise AssertionError("only its name is ever used")


@pytest.fixture
def tensor():
    """`tensor(array)`: a contiguous tensor with its own storage, as torch.save writes it."""

    def make(array: np.ndarray) -> Tensor:
        array = np.array(array, order="C")
        stride = tuple(step // array.itemsize for step in array.strides)
        return Tensor(Storage(array.ravel()), 0, array.shape, stride)

    return make


@pytest.fixture
def write_checkpoint(tmp_path, monkeypatch):
    """`write_checkpoint(object) -> path`: save as PyTorch >= 1.6 does."""
    names = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    for module, name, value in [
        *(("torch", name, type(name, (), {"__module__": "torch"})) for name in STORAGE.values()),
        ("torch._utils", "_rebuild_tensor_v2", rebuild),
    ]:
        setattr(names[module], name, value)
    monkeypatch.setattr(rebuild, "__module__", "torch._utils")
    monkeypatch.setattr(rebuild, "__qualname__", "_rebuild_tensor_v2")

    def write(value, name="checkpoint.pt", compression=zipfile.ZIP_STORED, protocol=2):
        path, storages = tmp_path / name, {}

        class Pickler(pickle.Pickler):
            def persistent_id(self, item):
                if not isinstance(item, Storage):
                    return None
                key = storages.setdefault(id(item), (str(len(storages)), item))[0]
                kind = getattr(names["torch"], STORAGE[item.data.dtype.name])
                return "storage", kind, key, "cpu", item.numbers

        with zipfile.ZipFile(path, "w", compression) as archive, monkeypatch.context() as patch:
            for module, stub in names.items():
                patch.setitem(sys.modules, module, stub)
            with archive.open("any_folder/data.pkl", "w") as file:
                Pickler(file, protocol).dump(value)
            for key, item in storages.values():
                archive.writestr(f"any_folder/data/{key}", item.data.tobytes())
        return path

    write.Storage, write.Tensor = Storage, Tensor
    return write
