"""How values become files: atomic writes, csv, json.

Every file is written under a temporary name in its own folder and renamed when complete, so an
interrupted or failed write (Ctrl-C, full disk) never leaves half a file.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import struct
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from asdjax.types import CONTENT, InputError

TEMPORARY = ".*." + 8 * "[0-9a-f]" + ".tmp"  # what `atomic` writes before it is complete


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with full_disk(path):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" while writing `path` into an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"the disk of {path.resolve()} is full: free some space and run the same command again"
        ) from error


def mapped(path: Path, name: str) -> np.ndarray:
    """Return an array of a file of `np.savez`, memory-mapped: it lies there uncompressed.

    Raises:
      KeyError: no such array. ValueError, zipfile.BadZipFile: no file as `np.savez` writes it.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path}: expected {name} as it is, got it compressed")
        file.seek(member.header_offset + 26)  # of the lengths of its name and of extra fields
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"{path}: expected {name} in format 1.0, got {version}")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        order = "F" if by_columns else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def cache_folder() -> Path:
    """Return where weights and compiled programs lie: ASDJAX_HOME, else ~/.cache/asdjax."""
    home = os.environ.get("ASDJAX_HOME") or Path.home() / ".cache" / "asdjax"
    return Path(home).expanduser()


def content_of_file(path: Path) -> str:
    """Return a digest of a file's bytes, read in blocks."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return CONTENT + digest.hexdigest()


def content_of(*values: object) -> str:
    """Return a digest of plain values."""
    import xxhash

    return CONTENT + xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_csv(path: Path | str, rows: Sequence[Sequence[object]]) -> None:
    """Write rows atomically; Python's csv keeps every digit of a float."""
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", errors="surrogateescape") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)


def read_csv(path: Path | str) -> list[list[str]]:
    """Return the rows that hold anything, every cell stripped; a byte-order mark is skipped.

    Raises:
        InputError: the file is not there, or is not text.
    """
    return [row for _, row in read_rows(path)]


def read_rows(path: Path | str, separators: str = ",") -> list[tuple[int, list[str]]]:
    """Return the rows as `read_csv` does, each behind the number of its (last) line.

    Args:
        separators: of the cells; that which the first line has most counts.

    Raises:
        InputError: the file is not there, or is not text.
    """
    rows, line = [], ""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            separator = max(separators, key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            try:
                for row in reader:
                    rows.append((reader.line_num, [cell.strip() for cell in row]))
            except csv.Error:
                line = f" line {rows[-1][0] + 1 if rows else 1}"  # where an open quote began
                raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"expected a csv file (UTF-8 text) at {path}{line}, got: {error}; correct the path, "
            "the quotes, or save it as csv in UTF-8"
        ) from error
    return [(line, row) for line, row in rows if any(row)]


def write_json(path: Path | str, value: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
