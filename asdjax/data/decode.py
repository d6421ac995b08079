"""Decode one wav or flac file with libsndfile, and refuse what it would read without a word.

The messages say what was expected, what came and the remedy, but not which file: callers know.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asdjax.types import InputError

if TYPE_CHECKING:
    from soundfile import SoundFile

_STREAMED = 0x7FFFF000  # sox and ffmpeg write this size or more when they cannot seek back


@dataclass(frozen=True)
class AudioInfo:
    """A file's header: `samples` per channel at `rate_hz`."""

    samples: int
    rate_hz: int
    channels: int
    subtype: str  # libsndfile's word, e.g. "PCM_16"

    @property
    def seconds(self) -> float:
        return self.samples / self.rate_hz


def decode(path: Path) -> tuple[AudioInfo, np.ndarray]:
    """Return the header and the samples `[N, channels]`, int16 for 16-bit files, else float32.

    Raises:
        InputError: the file is empty, no recording, or cut off.
    """
    if _kept is not None and (found := _kept.find(path)) is not None:
        return found
    with opened(path) as file:
        _check_size(path)
        info = header(file)
        data = file.read(dtype="int16" if info.subtype == "PCM_16" else "float32", always_2d=True)
    if _kept is not None:
        _kept.keep(path, info, data)
    return info, data


class _Kept:
    """Decoded files, each as it was when it was decoded."""

    def __init__(self, nbytes: int):
        self.free, self.files = nbytes, {}

    def find(self, path: Path) -> tuple[AudioInfo, np.ndarray] | None:
        state, *found = self.files.get(path, (None,))
        return tuple(found) if state is not None and state == _state(path) else None

    def keep(self, path: Path, info: AudioInfo, data: np.ndarray) -> None:
        if path not in self.files and data.nbytes <= self.free:
            data.flags.writeable = False
            self.free -= data.nbytes
            self.files[path] = _state(path), info, data


_kept: _Kept | None = None


@contextlib.contextmanager
def kept_in_memory(nbytes: int | None = None) -> Iterator[None]:
    """Decode a file once, for several systems on the same recordings; later reads get the same.

    A file that has changed since is decoded again.

    Args:
        nbytes: of samples to keep at most; what goes beyond is decoded whenever it is needed. None
            takes a third of what is free.
    """
    global _kept
    nbytes = free_memory() // 3 if nbytes is None else nbytes
    before, _kept = _kept, _kept or _Kept(nbytes)  # inside another one that is used on
    try:
        yield
    finally:
        _kept = before


def _state(path: Path) -> tuple[int, int] | None:
    """Return what differs when a file has changed; None if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def opened(path: Path) -> Iterator[SoundFile]:
    """Open a recording; errors of libsndfile and the system become an InputError."""
    import soundfile

    try:
        if path.stat().st_size == 0:
            raise InputError("expected a recording, got 0 bytes; copy or download the file again")
        with soundfile.SoundFile(path) as file:
            yield file
    except UnicodeEncodeError as error:
        raise InputError("expected a file name in UTF-8, got other bytes; rename it") from error
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise InputError(
            f"expected a wav or flac recording, got what cannot be decoded ({reason}); "
            "remove the file, or copy or download it again"
        ) from error


def header(file: SoundFile) -> AudioInfo:
    return AudioInfo(file.frames, file.samplerate, file.channels, file.subtype)


def _check_size(path: Path) -> None:
    """Refuse a wav whose data chunk is shorter than its size; libsndfile reads what is there."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":  # libsndfile notices it in flac; RF64 (above 4 GB) is unchecked
            return
        file.seek(12)
        while len(head := file.read(8)) == 8:
            chunk, size = struct.unpack("<4sI", head)
            if chunk == b"data":
                break
            file.seek(size + size % 2, 1)  # chunks are padded to even sizes
        else:
            return
        present = path.stat().st_size - file.tell()
    if size == 0 and present > 0:  # a stream too, but libsndfile takes 0 at its word
        raise InputError(
            f"expected the size of the samples in the header, got 0 before {present} bytes: the "
            "recorder did not finish the file; rewrite it, e.g. with ffmpeg"
        )
    if present < size < _STREAMED:
        raise InputError(
            f"expected {size} bytes of samples as the header says, got {present}: the file is "
            "cut off; copy or download it again"
        )


def free_memory() -> int:
    """Return the bytes that this host can still give; half of all where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
