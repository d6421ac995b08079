"""Read recordings: 16 kHz mono waves from wav and flac files of any rate and channel count.

A wave is int16 only where that loses nothing: a 16-bit file at 16 kHz of which one channel is
taken. Else it is float32 with full scale 1.0 (float files may exceed it).
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from asdjax.types import SAMPLE_RATE_HZ, Clip, InputError

if TYPE_CHECKING:
    from soundfile import SoundFile

Channel = int | Literal["mean"]
Fit = Literal["pad", "tile", "crop"]
FRAME_SAMPLES = 400  # 25 ms at 16 kHz: the shortest clip of which a front end makes a frame
_STREAMED = 0x7FFFF000  # sox and ffmpeg write this size or more when they cannot seek back


@dataclass(frozen=True)
class AudioInfo:
    """What is known of a file: its header, and a digest of its samples where they were decoded.

    The digest depends on samples, rate, channels and sample type, and on nothing else: a 16-bit wav
    and a flac of the same samples have the same one, whatever their names and times.
    """

    samples: int  # per channel, at `rate_hz`
    rate_hz: int
    channels: int
    subtype: str  # libsndfile's word, e.g. "PCM_16"
    digest: str = ""  # e.g. "i2-16000-1-<32 hexadecimal digits>"; "": only the header was read

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
        `notes`.
    """
    return _in_threads(lambda path: _check(path, channel, min_samples), paths, advance)


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

    def load(path: Path) -> tuple[np.ndarray, int]:
        wave = _read(path, channel)
        return fit_length(wave, samples, how), samples if how == "tile" else min(len(wave), samples)

    loaded, problems = _in_threads(load, paths)
    if problems:
        raise InputError("\n".join(f"{path}: {problem}" for path, problem in problems.items()))
    waves, lengths = zip(*(loaded[path] for path in paths), strict=True)
    if any(wave.dtype != np.int16 for wave in waves):
        waves = [_as_float(wave) for wave in waves]
    return np.stack(waves), np.array(lengths, np.int32)


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
            lines.append(
                f"{count} of {totals[machine]} clips of {machine}: {rate_hz} Hz, "
                f"{_channels(channels)}; {', '.join(changes)}"
            )
    return lines


def _in_threads(
    function: Callable, paths: Sequence[Path], advance: Callable[[], object] | None = None
) -> tuple[dict, dict[Path, str]]:
    """Return path -> result, and path -> message of the InputError, both in the order of `paths`.

    After an interruption (Ctrl-C) no further file is started.
    """

    def outcome(path: Path) -> tuple[object, str]:
        try:
            return function(path), ""
        except InputError as error:
            return None, str(error)

    results, problems = {}, {}
    pool = ThreadPoolExecutor()
    try:
        for path, (result, problem) in zip(paths, pool.map(outcome, paths), strict=True):
            if problem:
                problems[path] = problem
            else:
                results[path] = result
            if advance is not None:
                advance()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return results, problems


# --- one file; an InputError of `probe` and `decode` does not name it, because callers know it


def read(path: Path, channel: Channel) -> np.ndarray:
    """Return a recording as one wave `[N]` at 16 kHz, int16 or float32 (see the module).

    Args:
        path: a wav or flac file.
        channel: index of the channel to take, or "mean" of all; one-channel files have only 0.

    Raises:
        InputError: the file is no recording, is cut off, or lacks the channel.
    """
    try:
        return _read(path, channel)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def fit_length(wave: np.ndarray, samples: int, how: Fit) -> np.ndarray:
    """Return the first `samples` of a wave `[N]`, made longer where it is too short.

    A longer wave is cropped whatever `how` is. A shorter one is followed by zeros ("pad"), repeated
    ("tile"), or refused with an InputError ("crop").
    """
    missing = samples - len(wave)
    if missing <= 0:
        return wave[:samples]
    if how == "pad":
        return np.pad(wave, (0, missing))
    if how == "tile" and len(wave) > 0:
        return np.resize(wave, samples)  # numpy's resize repeats
    raise InputError(f"cannot {how} {len(wave)} samples to {samples}; pad them instead")


def probe(path: Path) -> AudioInfo:
    """Return what the header says. Raises InputError when the file is no recording."""
    with opened(path) as file:
        return _header(file)


def decode(path: Path) -> tuple[AudioInfo, np.ndarray]:
    """Return the header and the samples `[N, channels]`, int16 for 16-bit files, else float32.

    Raises:
        InputError: the file is empty, no recording, or cut off.
    """
    return _decode(path) if _kept is None else _kept.decode(path)


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


def _decode(path: Path) -> tuple[AudioInfo, np.ndarray]:
    with opened(path) as file:
        _check_size(path)
        info = _header(file)
        data = file.read(dtype="int16" if info.subtype == "PCM_16" else "float32", always_2d=True)
    return info, data


def _header(file: SoundFile) -> AudioInfo:
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


def _check(path: Path, channel: Channel, min_samples: int) -> AudioInfo:
    """Return header and digest of a file; an InputError says why its content cannot be used."""
    info, data = decode(path)
    wave = _take(data, channel)
    samples = info.samples * SAMPLE_RATE_HZ // info.rate_hz
    if samples < min_samples:
        raise InputError(
            f"expected at least {min_samples} samples at {SAMPLE_RATE_HZ} Hz "
            f"({min_samples / SAMPLE_RATE_HZ:g} s), got {samples}; remove the file or record longer"
        )
    if wave.dtype != np.int16 and (wrong := np.count_nonzero(~np.isfinite(wave))):
        raise InputError(
            f"expected numbers, got {wrong} NaN or infinite samples; export the file again"
        )
    if not wave.any():
        raise InputError(
            "expected sound, got zeros only; remove the file, or check channel and microphone"
        )
    return replace(info, digest=_digest(info, data))


def _digest(info: AudioInfo, data: np.ndarray) -> str:
    """Return the `AudioInfo.digest` of decoded samples `[N, channels]`."""
    import xxhash

    content = xxhash.xxh3_128_hexdigest(data)  # not cryptographic, but 10 times as fast as SHA-256
    return f"{data.dtype.str[1:]}-{info.rate_hz}-{info.channels}-{content}"


def _read(path: Path, channel: Channel) -> np.ndarray:
    info, data = decode(path)
    wave = _take(data, channel)
    if info.rate_hz == SAMPLE_RATE_HZ:
        return wave
    import soxr

    return soxr.resample(_as_float(wave), info.rate_hz, SAMPLE_RATE_HZ, quality="HQ")


def _take(data: np.ndarray, channel: Channel) -> np.ndarray:
    """Return one channel of samples `[N, channels]` as it is, or the mean of several as float32."""
    channels = data.shape[1]
    if channel == "mean" and channels > 1:
        return _as_float(data).mean(axis=1)
    index = 0 if channel == "mean" else channel
    if not 0 <= index < channels:
        raise InputError(
            f"expected a channel {index} (the first is 0), got a file of {_channels(channels)}; "
            'choose one it has, or "mean"'
        )
    return np.ascontiguousarray(data[:, index])


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"


def _as_float(wave: np.ndarray) -> np.ndarray:
    return wave / np.float32(32768) if wave.dtype == np.int16 else wave


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
    """Decoded files; one that has changed since counts as another file."""

    def __init__(self, nbytes: int):
        self.free, self.files = nbytes, {}

    def decode(self, path: Path) -> tuple[AudioInfo, np.ndarray]:
        try:
            found = path.stat()
        except OSError:
            return _decode(path)  # which says what is wrong
        # Version control and `cp -p` set the modification time back, but cannot set the change time
        key = path, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        if key in self.files:
            return self.files[key]
        info, data = _decode(path)
        if data.nbytes <= self.free:
            data.flags.writeable = False
            self.free -= data.nbytes
            self.files[key] = info, data
        return info, data


_kept: _Kept | None = None


def free_memory() -> int:
    """Return the bytes that this host can still give; half of all where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
