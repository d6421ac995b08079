"""Small made trees: every file is 0.1 s of noise, only the names matter."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

NOISE = np.random.default_rng(0).integers(-3000, 3000, 1600, dtype=np.int16)


@pytest.fixture
def make_tree(tmp_path) -> Callable[[str | Iterable[str]], Path]:
    """Write a tiny recording per name, each another one, and return the root."""
    number = itertools.count()

    def make(names: str | Iterable[str], below: str = "") -> Path:
        for name in names.split() if isinstance(names, str) else names:
            path = tmp_path / below / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.roll(NOISE, next(number)), 16_000)
        return tmp_path

    return make


@pytest.fixture
def write(tmp_path) -> Callable[[str, str], Path]:
    """Write a text file below the root."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write
