"""Read recordings: 16 kHz mono waves from wav and flac files of any rate and channel count.

A wave is int16 only where that loses nothing: a 16-bit file at 16 kHz of which one channel is
taken. Else it is float32 with full scale 1.0 (float files may exceed it).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from asdjax.data import containers
from asdjax.data.content import Content, to_float
from asdjax.types import BOTH, SAMPLE_RATE_HZ, InputError, counted

if TYPE_CHECKING:
    from soundfile import SoundFile

Channel = int | Literal["mean", "wiener", "magnitude", "residual"]  # the last three take two
Fit = Literal["pad", "tile", "crop"]
FRAME_SAMPLES = 400  # 25 ms at 16 kHz: the shortest clip of which a front end makes a frame
TWO_SAMPLES = 1024  # 64 ms: the shortest clip of which two microphones can be used together
_BLOCK = 2**22  # samples decoded at a time: 16 MiB of float32, however long a file is


@dataclass(frozen=True)
class AudioInfo:
    """What is known of a file: its header and, where it was decoded, its content.

    The digest depends on samples, rate, channels and sample type, and on nothing else: a 16-bit wav
    and a flac of the same samples have the same one, whatever their names and times.
    """

    samples: int  # per channel, at `rate_hz`
    rate_hz: int
    channels: int
    subtype: str  # libsndfile's word, e.g. "PCM_16"
    digest: str = ""  # e.g. "i2-16000-1-<32 hexadecimal digits>"; "": only the header was read
    sound: str = ""  # as `digest`, of what is used of them: equal for a copy of another sample type
    bandwidth_hz: int = 0  # up to where there is sound; 0: only the header was read
    level_db: float = 0.0  # the usual range of the samples; 0 is that of full scale
    remarks: tuple[str, ...] = ()  # such as "channel 1 carries no sound"

    @property
    def seconds(self) -> float:
        return self.samples / self.rate_hz


# --- many files in threads


def probe_all(
    paths: Sequence[Path], advance: Callable[[], object] | None = None
) -> tuple[dict[Path, AudioInfo], dict[Path, str]]:
    """Read the headers only. Returns as `verify`; a file that is cut off goes unnoticed."""
    return _in_threads(probe, paths, advance)


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
        path -> header and digest of the files that can be used; path -> what was expected, what
        came, and the remedy for the others. Another rate or more channels are no problem: see
        `remarks.formats`.
    """
    return _in_threads(lambda path: _check(path, channel, min_samples), paths, advance)


def read_batch(
    paths: Sequence[Path], samples: int, how: Fit, channel: Channel
) -> tuple[np.ndarray, np.ndarray]:
    """Read recordings in threads and fit them to one length.

    Returns:
        wave `[B, samples]`, of two channels `[B, samples, 2]`, int16 if all files are (`read`),
        else float32; and lengths `[B] int32`, the samples of each row before the padding (tiled
        rows have none).

    Raises:
        InputError: all files that cannot be read or fitted.
    """

    def load(path: Path) -> tuple[np.ndarray, int]:
        wave = _read(path, channel, samples)
        return fit_length(wave, samples, how), samples if how == "tile" else min(len(wave), samples)

    loaded, problems = _in_threads(load, paths)
    if problems:
        raise InputError("\n".join(f"{path}: {problem}" for path, problem in problems.items()))
    waves, lengths = zip(*(loaded[path] for path in paths), strict=True)
    if any(wave.dtype != np.int16 for wave in waves):
        waves = [to_float(wave) for wave in waves]
    return np.stack(waves), np.array(lengths, np.int32)


def _in_threads(
    function: Callable, paths: Sequence[Path], advance: Callable[[], object] | None = None
) -> tuple[dict, dict[Path, str]]:
    """Return path -> result, and path -> message of the InputError, both in the order of `paths`.

    After an interruption (Ctrl-C) no further file is started.
    """
    interrupted = threading.Event()

    def outcome(path: Path) -> tuple[object, str]:
        try:
            return (None, "") if interrupted.is_set() else (function(path), "")
        except InputError as error:
            return None, str(error)

    # Threads that take one file at a time, or more threads than cores, mostly wait for each other:
    # decoding is short, and Python runs between.
    threads = max(os.cpu_count() or 2, 2)
    most = max(1, min(len(paths) // (4 * threads), 8))
    parts = [paths[start : start + most] for start in range(0, len(paths), most)]
    results, problems = {}, {}
    pool = ThreadPoolExecutor(threads)
    try:
        outcomes = chain.from_iterable(pool.map(lambda part: list(map(outcome, part)), parts))
        for path, (result, problem) in zip(paths, outcomes, strict=True):
            if problem:
                problems[path] = problem
            else:
                results[path] = result
            if advance is not None:
                advance()
    finally:
        interrupted.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return results, problems


# --- one file; an InputError of `probe` does not name it, because callers know it


def read(path: Path, channel: Channel, samples: int | None = None) -> np.ndarray:
    """Return a recording as one wave `[N]` at 16 kHz, int16 or float32 (see the module).

    Args:
        path: a wav or flac file.
        channel: index of the channel to take, or "mean" of all; one-channel files have only 0. A
            way to use two microphones together gives both, `[N, 2]`.
        samples: how many at most; None: all.

    Raises:
        InputError: the file is no recording, is cut off, or lacks the channel.
    """
    try:
        return _read(path, channel, samples)[:samples]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def fit_length(wave: np.ndarray, samples: int, how: Fit) -> np.ndarray:
    """Return the first `samples` of a wave `[N, ...]`, made longer where it is too short.

    A longer wave is cropped whatever `how` is. A shorter one is followed by zeros ("pad"), repeated
    ("tile"), or refused with an InputError ("crop").
    """
    missing = samples - len(wave)
    if missing <= 0:
        return wave[:samples]
    if how == "pad":
        return np.pad(wave, ((0, missing), *[(0, 0)] * (wave.ndim - 1)))
    if how == "tile" and len(wave) > 0:
        return np.resize(wave, (samples, *wave.shape[1:]))  # numpy's resize repeats
    raise InputError(f"cannot {how} {len(wave)} samples to {samples}; pad them instead")


def probe(path: Path) -> AudioInfo:
    """Return what the header says. Raises InputError when the file is no recording."""
    with opened(path) as (file, _):
        return _header(file)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[SoundFile, containers.Told]]:
    """Open a recording; errors of libsndfile and the system become an InputError."""
    import soundfile

    try:
        with path.open("rb") as file:
            told = containers.check(file)
            os.lseek(file.fileno(), 0, os.SEEK_SET)  # `seek` may move in Python's buffer alone
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                yield sound, told
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise InputError(
            f"expected a wav or FLAC recording, got what cannot be decoded ({reason}); "
            "remove the file, or copy or download it again"
        ) from error


def _header(file: SoundFile) -> AudioInfo:
    return AudioInfo(file.frames, file.samplerate, file.channels, file.subtype)


def blocks(file: SoundFile, samples: int, most: int = _BLOCK) -> Iterator[np.ndarray]:
    """Yield the first samples of a file, `[n, channels]` int16 for 16-bit files, else float32.

    Args:
      most: values of all channels in one.
    """
    dtype = "int16" if file.subtype == "PCM_16" else "float32"
    for start in range(0, samples, most // file.channels):
        count = min(most // file.channels, samples - start)
        block = file.read(count, dtype=dtype, always_2d=True)
        if len(block) < count:
            raise InputError(
                f"expected {file.frames} samples as the header says, got {start + len(block)}: the "
                "file is cut off; copy or download it again"
            )
        yield block


def _check(path: Path, channel: Channel, min_samples: int) -> AudioInfo:
    """Return header and content of a file; an InputError says why it cannot be used."""
    key, parts = _kept_under(path, channel), []
    with opened(path) as (file, told):
        info = _header(file)
        samples = info.samples * SAMPLE_RATE_HZ // info.rate_hz
        if samples < min_samples:
            raise InputError(
                f"expected at least {min_samples} samples at {SAMPLE_RATE_HZ} Hz "
                f"({min_samples / SAMPLE_RATE_HZ:g} s), got {samples}; remove the file or record "
                "longer"
            )
        content = Content(info.rate_hz, info.channels, info.subtype, channel, told)
        for block in blocks(file, info.samples):
            wave = take(block, channel)
            content.add(block, wave)
            if _kept is not None:
                parts.append(wave)
    content.refuse()
    info = replace(
        info,
        digest=content.digest,
        sound=content.sound,
        bandwidth_hz=content.bandwidth_hz,
        level_db=content.level_db,
        remarks=content.remarks(),
    )
    if _kept is not None:
        _kept.put(key, info, np.concatenate(parts))
    return info


def _read(path: Path, channel: Channel, samples: int | None = None) -> np.ndarray:
    """Return `[N]` at 16 kHz; `samples` allows to leave out what is behind them."""
    key = _kept_under(path, channel)
    if _kept is not None and key in _kept.waves:
        info, wave = _kept.waves[key]
    else:
        info, wave = _decode(path, channel, samples, key)
    if info.rate_hz == SAMPLE_RATE_HZ:
        return wave
    import soxr

    return soxr.resample(to_float(wave), info.rate_hz, SAMPLE_RATE_HZ, quality="HQ")


def _decode(
    path: Path, channel: Channel, samples: int | None, key: tuple
) -> tuple[AudioInfo, np.ndarray]:
    """Return the header and one channel, of which no more than needed (see `_read`)."""
    with opened(path) as (file, _):
        info = _header(file)
        wanted = info.samples
        if samples is not None and _kept is None:  # and a second more, which the resampler sees
            wanted = min(wanted, (samples + SAMPLE_RATE_HZ) * info.rate_hz // SAMPLE_RATE_HZ)
        parts = [take(block, channel) for block in blocks(file, wanted)]
    if not parts:
        raise InputError("expected samples, got none; remove the file or record longer")
    wave = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if _kept is not None:
        _kept.put(key, info, wave)
    return info, wave


def take(data: np.ndarray, channel: Channel) -> np.ndarray:
    """Return what is used of samples `[N, channels]`.

    One channel as it is, the mean of several as float32, or two, `[N, 2]`.
    """
    channels = data.shape[1]
    if channel in BOTH:
        if channels < 2:
            raise InputError(
                f"expected two channels, near and far, for {channel!r}, got a file of one; choose "
                "--audio.channel 0"
            )
        return np.ascontiguousarray(data[:, :2])
    if channel == "mean" and channels > 1:
        return to_float(data).mean(axis=1)
    index = 0 if channel == "mean" else channel
    if not 0 <= index < channels:
        got = counted(channels, "channel")
        raise InputError(
            f"expected a channel {index} (the first is 0), got a file of {got}; "
            'choose one it has, or "mean"'
        )
    return np.ascontiguousarray(data[:, index])


# --- decoded files in memory


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


class _Kept:
    """Decoded channels of files."""

    def __init__(self, nbytes: int):
        self.free, self.waves = nbytes, {}

    def put(self, key: tuple, info: AudioInfo, wave: np.ndarray) -> None:
        if key and wave.nbytes <= self.free and key not in self.waves:
            wave.flags.writeable = False
            self.free -= wave.nbytes
            self.waves[key] = info, wave


def _kept_under(path: Path, channel: Channel) -> tuple:
    """Return under what a channel is kept: a file that has changed since is another one."""
    if _kept is None:
        return ()
    try:
        found = path.stat()
    except OSError:
        return ()  # to open it says what is wrong
    # Version control and `cp -p` set the modification time back, but cannot set the change time
    return path, channel, found.st_size, found.st_mtime_ns, found.st_ctime_ns


_kept: _Kept | None = None


def free_memory() -> int:
    """Return the bytes that this host can still give; half of all where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
