"""Sound that is read piece by piece: long recordings and raw PCM, cut into windows at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from asdjax.data.audio import Channel, blocks, opened, take
from asdjax.data.content import to_float
from asdjax.types import SAMPLE_RATE_HZ, InputError

PIECES = 10  # seconds of a file that are read at a time
PIECE_S = 0.5  # of PCM that is read at a time: so long a window waits for the next piece
Format = Literal["s16", "s32", "f32"]
_DTYPES = {"s16": "<i2", "s32": "<i4", "f32": "<f4"}


class Window(NamedTuple):
    """A part of a sound."""

    start: int  # sample at 16 kHz where it begins
    wave: np.ndarray  # [N] or [N, 2] at 16 kHz, int16 or float32


def of_file(path: Path, channel: Channel, samples: int, hop: int) -> Iterator[Window]:
    """Yield the windows of a recording, of which a few seconds are in memory.

    The last window ends with the recording, so that no sound is left out; one that is shorter than
    a window is one as it is.

    Args:
      path: a wav or FLAC recording.
      channel: as of `asdjax.data.audio.read`.
      samples, hop: of a window and from one to the next, at 16 kHz.

    Raises:
      InputError: the file is no recording, is cut off, or lacks the channel.
    """
    with opened(path) as (file, _):
        pieces = blocks(file, file.frames, PIECES * file.samplerate * file.channels)
        taken = (take(piece, channel) for piece in pieces)
        yield from cut(_resampled(taken, file.samplerate), samples, hop, last=True)


def of_pcm(
    file: BinaryIO,
    rate_hz: int,
    channels: int,
    form: Format,
    channel: Channel,
    samples: int,
    hop: int,
) -> Iterator[Window]:
    """Yield the windows of raw little-endian PCM, as soon as they are complete.

    Args:
      file: of interleaved samples, such as standard input.
      rate_hz, channels, form: of the samples; "f32" has full scale 1.
      channel, samples, hop: as of `of_file`.
    """
    dtype = np.dtype(_DTYPES[form])
    size = max(round(PIECE_S * rate_hz), 1) * channels * dtype.itemsize

    def pieces() -> Iterator[np.ndarray]:
        while data := _read(file, size):
            whole = len(data) - len(data) % (channels * dtype.itemsize)  # of a last, cut-off one
            found = np.frombuffer(data[:whole], dtype).reshape(-1, channels)
            if form == "s32":
                found = (found / np.float64(2**31)).astype(np.float32)
            if len(found):
                yield take(found.astype(found.dtype.newbyteorder("=")), channel)

    yield from cut(_resampled(pieces(), rate_hz), samples, hop)


def _read(file: BinaryIO, size: int) -> bytes:
    """Return `size` bytes, fewer at the end of a pipe alone."""
    parts, left = [], size
    while left and (data := file.read(left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def _resampled(pieces: Iterable[np.ndarray], rate_hz: int) -> Iterator[np.ndarray]:
    """Yield pieces of a sound at 16 kHz, without seams."""
    if rate_hz == SAMPLE_RATE_HZ:
        yield from pieces
        return
    import soxr

    stream, shape = None, ()
    for piece in pieces:
        shape = piece.shape[1:]
        width = shape[0] if shape else 1
        stream = stream or soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, width, quality="HQ")
        yield stream.resample_chunk(to_float(piece)).reshape(-1, *shape)
    if stream is not None:
        width = shape[0] if shape else 1
        end = np.zeros((0, width) if shape else 0, np.float32)
        yield stream.resample_chunk(end, last=True).reshape(-1, *shape)


def cut(
    pieces: Iterable[np.ndarray], samples: int, hop: int, last: bool = False
) -> Iterator[Window]:
    """Yield windows of a sound that comes in pieces.

    Args:
      samples, hop: of a window and from one to the next.
      last: at the end yield one more, which ends there, if sound is left.
    """
    if not 0 < hop <= samples:
        raise InputError(f"expected a hop of up to a window, got {hop} of {samples} samples")
    held, start, following = None, 0, 0  # sound from sample `start` on; where the next one begins
    for piece in pieces:
        held = piece if held is None else np.concatenate([held, piece])
        while start + len(held) >= following + samples:
            held, start = held[following - start :], following
            yield Window(start, held[:samples])
            following = start + hop
    if last and held is not None:
        end, done = start + len(held), following - hop + samples if following else 0
        kept = held[-samples:]
        if end > done:
            yield Window(end - len(kept), kept)
