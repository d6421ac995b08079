"""Read recordings: 16 kHz mono waves from wav and flac files of any rate and channel count.

A wave is int16 only where that loses nothing: a 16-bit file at 16 kHz of which one channel is
taken. Else it is float32 with full scale 1.0 (float files may exceed it).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from asdjax.data.decode import AudioInfo, decode, header, opened
from asdjax.types import SAMPLE_RATE_HZ, Clip, InputError

Channel = int | Literal["mean"]
Fit = Literal["pad", "tile", "crop"]
FRAME_SAMPLES = 400  # 25 ms at 16 kHz: the shortest clip of which a front end makes a frame


def probe(path: Path) -> AudioInfo:
    """Return what the header says. Raises InputError when the file is no recording."""
    with _naming(path):
        return _header(path)


def read(path: Path, channel: Channel) -> np.ndarray:
    """Return a recording as one wave `[N]` at 16 kHz, int16 or float32 (see the module).

    Args:
        path: a wav or flac file.
        channel: index of the channel to take, or "mean" of all; one-channel files have only 0.

    Raises:
        InputError: the file is no recording, is cut off, or lacks the channel.
    """
    with _naming(path):
        info, data = decode(path)
        wave = _take(data, channel)
    if info.rate_hz == SAMPLE_RATE_HZ:
        return wave
    import soxr

    return soxr.resample(_as_float(wave), info.rate_hz, SAMPLE_RATE_HZ, quality="HQ")


def fit_length(wave: np.ndarray, samples: int, how: Fit) -> np.ndarray:
    """Return the first `samples` of a wave `[N]`, made longer where it is too short.

    A longer wave is cropped whatever `how` is. A shorter one is followed by zeros ("pad"), repeated
    ("tile"), or refused with a ValueError ("crop").
    """
    missing = samples - len(wave)
    if missing <= 0:
        return wave[:samples]
    if how == "pad":
        return np.pad(wave, (0, missing))
    if how == "tile" and len(wave) > 0:
        return np.resize(wave, samples)  # numpy's resize repeats
    raise ValueError(f"cannot {how} {len(wave)} samples to {samples}; pad them instead")


def read_batch(
    paths: Sequence[Path], samples: int, how: Fit, channel: Channel
) -> tuple[np.ndarray, np.ndarray]:
    """Read recordings in threads and fit them to one length.

    Returns:
        wave `[B, samples]`, int16 if all files are (`read`), else float32; and lengths `[B] int32`,
        the samples of each row before the padding (tiled rows have none).

    Raises:
        InputError: all files that cannot be read or fitted.
    """

    def load(path: Path) -> tuple[np.ndarray, int] | str:
        try:
            wave = read(path, channel)
            fitted = fit_length(wave, samples, how)
        except InputError as error:
            return str(error)
        except ValueError as error:
            return f"{path}: {error}"
        return fitted, samples if how == "tile" else min(len(wave), samples)

    with _in_threads(load, paths) as results:
        loaded = list(results)
    if failures := [result for result in loaded if isinstance(result, str)]:
        raise InputError("\n".join(failures))
    waves = [wave for wave, _ in loaded]
    if any(wave.dtype != np.int16 for wave in waves):
        waves = [_as_float(wave) for wave in waves]
    return np.stack(waves), np.array([length for _, length in loaded], np.int32)


def probe_all(
    paths: Sequence[Path], advance: Callable[[], object] | None = None
) -> tuple[dict[Path, AudioInfo], dict[Path, str]]:
    """Read the headers only. Returns as `verify`; a file that is cut off goes unnoticed."""
    return _for_each(_header, paths, advance)


def verify(
    paths: Sequence[Path],
    channel: Channel,
    min_samples: int = FRAME_SAMPLES,
    advance: Callable[[], object] | None = None,
) -> tuple[dict[Path, AudioInfo], dict[Path, str]]:
    """Decode every file and say what is wrong with each, without stopping at the first.

    Args:
        min_samples: length of the shortest clip that can be used, at 16 kHz.
        advance: called after each file, for a progress bar.

    Returns:
        path -> header of the files that can be used; path -> what was expected, what came, and the
        remedy for the others. Another rate or more channels are no problem: `notes` tells of them.
    """
    return _for_each(lambda path: _check(path, channel, min_samples), paths, advance)


def notes(clips: Sequence[Clip], infos: Mapping[Path, AudioInfo], channel: Channel) -> list[str]:
    """Return one line per machine and file format that reading changes.

    Example: "3 of 120 clips of fan: 44100 Hz, 2 channels; resampled to 16000 Hz, mean of channels".
    """
    totals = Counter(clip.machine for clip in clips)
    known = [(clip.machine, infos[clip.path]) for clip in clips if clip.path in infos]
    formats = Counter((machine, info.rate_hz, info.channels) for machine, info in known)
    lines = []
    for (machine, rate_hz, channels), count in sorted(formats.items()):
        changes = [f"resampled to {SAMPLE_RATE_HZ} Hz"] if rate_hz != SAMPLE_RATE_HZ else []
        if channels > 1:
            changes.append("mean of channels" if channel == "mean" else f"channel {channel} taken")
        if changes:
            plural = "s" if channels > 1 else ""
            lines.append(
                f"{count} of {totals[machine]} clips of {machine}: {rate_hz} Hz, {channels} "
                f"channel{plural}; {', '.join(changes)}"
            )
    return lines


def _header(path: Path) -> AudioInfo:
    with opened(path) as file:
        return header(file)


def _check(path: Path, channel: Channel, min_samples: int) -> AudioInfo:
    """Return the header of a file; an InputError says why its content cannot be used."""
    info, data = decode(path)
    wave = _take(data, channel)
    samples = info.samples * SAMPLE_RATE_HZ // info.rate_hz
    if samples < min_samples:
        raise InputError(
            f"expected at least {min_samples} samples at {SAMPLE_RATE_HZ} Hz "
            f"({min_samples / SAMPLE_RATE_HZ:g} s), got {samples}; remove the file or record longer"
        )
    if wrong := int(np.count_nonzero(~np.isfinite(wave))):
        raise InputError(
            f"expected numbers, got {wrong} NaN or infinite samples; export the file again"
        )
    if not wave.any():
        raise InputError(
            "expected sound, got zeros only; remove the file, or check channel and microphone"
        )
    return info


def _take(data: np.ndarray, channel: Channel) -> np.ndarray:
    """Return one channel of samples `[N, channels]` as it is, or the mean of several as float32."""
    channels = data.shape[1]
    if channel == "mean" and channels > 1:
        return _as_float(data).mean(axis=1)
    index = 0 if channel == "mean" else channel
    if not 0 <= index < channels:
        raise InputError(
            f"expected a channel {index} (the first is 0), got a file of {channels} "
            f'channel{"s" if channels > 1 else ""}; choose one it has, or "mean"'
        )
    return np.ascontiguousarray(data[:, index])


def _as_float(wave: np.ndarray) -> np.ndarray:
    return wave / np.float32(32768) if wave.dtype == np.int16 else wave


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the path before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


@contextlib.contextmanager
def _in_threads(function: Callable, items: Sequence) -> Iterator[Iterator]:
    """Give the results in order; after an interruption (Ctrl-C) no further item is started."""
    pool = ThreadPoolExecutor()
    try:
        yield pool.map(function, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _for_each(
    check: Callable[[Path], AudioInfo],
    paths: Sequence[Path],
    advance: Callable[[], object] | None,
) -> tuple[dict[Path, AudioInfo], dict[Path, str]]:
    """Return path -> what `check` returns, and path -> the message of its InputError."""

    def outcome(path: Path) -> AudioInfo | str:
        try:
            return check(path)
        except InputError as error:
            return str(error)

    infos: dict[Path, AudioInfo] = {}
    problems: dict[Path, str] = {}
    with _in_threads(outcome, paths) as results:
        for path, result in zip(paths, results, strict=True):
            (problems if isinstance(result, str) else infos)[path] = result
            if advance is not None:
                advance()
    return infos, problems
