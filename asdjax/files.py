"""How values become files: atomic writes, csv, json, and the npz of a machine's embeddings.

Every file is written under a temporary name in its own folder and renamed when complete, so an
interrupted or failed write (Ctrl-C, full disk) never leaves half a file.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from asdjax.types import Clip, Embeddings


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_csv(path: Path | str, rows: Sequence[Sequence[object]]) -> None:
    """Write rows atomically; Python's csv keeps every digit of a float."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_json(path: Path | str, value: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def save_embeddings(path: Path, embeddings: Embeddings, key: str) -> None:
    """Write one npz: `values [n, E] float32`, the clips as JSON, the key they were made with."""
    clips = json.dumps([{**dataclasses.asdict(c), "path": str(c.path)} for c in embeddings.clips])
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values=embeddings.values, clips=np.array(clips), key=np.array(key))


def load_embeddings(path: Path, key: str | None = None) -> Embeddings | None:
    """Read the file of `save_embeddings`; None when it was made with another key."""
    with np.load(path, allow_pickle=False) as file:
        if key is not None and str(file["key"]) != key:
            return None
        clips = json.loads(str(file["clips"]))
        return Embeddings(
            tuple(Clip(**{**clip, "path": Path(clip["path"])}) for clip in clips), file["values"]
        )
