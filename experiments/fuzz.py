"""Made files with odd headers, sizes, chunks, encodings, channels and levels, and odd csv files.

    python experiments/fuzz.py --seed 0 --files 2000 --tables 500

What a file holds is known. Reading it must give all of it, or refuse it with an `InputError`: never
another exception, and never a part. A table must give the labels that it was made from, or be
refused; one with changed bytes may give anything but another exception. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import csv
import io
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from asdjax.data import audio, dcase
from asdjax.data.content import to_float
from asdjax.types import InputError

Rng = np.random.Generator
WAV_TYPES = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
BLOCK_TYPES = ("MS_ADPCM", "IMA_ADPCM", "GSM610", "G721_32", "NMS_ADPCM_16")
OTHERS = ("AIFF", "W64", "AU", "CAF", "NIST", "VOC", "SVX", "AVR", "WVE", "MAT5")
# What two encodings of one sample may differ by; laws have steps of 1/32 of a value.
STEPS = {"PCM_S8": 2**-6, "PCM_U8": 2**-6, "PCM_16": 2**-14, "ULAW": 0.04, "ALAW": 0.04}


@dataclass
class File:
    """A recording as it is on disk, and what is in it."""

    content: bytearray
    samples: np.ndarray  # [n, channels], full scale 1.0
    rate_hz: int
    subtype: str
    channel: int | str = 0  # that is read
    flips: int = 0  # samples that may have changed


# --- recordings


def make_file(rng: Rng) -> File:
    """Return a whole file of any encoding, up to 0.4 s long."""
    rate_hz = int(rng.choice([500, 2000, 8000, 11_025, 16_000, 44_100, 48_000]))
    channels = int(rng.choice([1, 1, 1, 2, 2, 3, 6]))
    samples = level(rng, rng.integers(1, max(int(0.4 * rate_hz), 100)), channels)
    container = str(rng.choice(["WAV", "WAV", "WAV", "WAVEX", "RF64", "FLAC", "FLAC", "other"]))
    if container == "FLAC":
        subtype = str(rng.choice(["PCM_S8", "PCM_16", "PCM_24"]))
    elif container == "other":
        container, subtype = str(rng.choice(OTHERS)), None
        rate_hz = 8000 if container == "WVE" else rate_hz
    elif container == "WAV" and rng.random() < 0.1:
        subtype, rate_hz, samples = str(rng.choice(BLOCK_TYPES)), 8000, samples[:, :1]
    else:
        subtype = str(rng.choice(WAV_TYPES))
    if subtype not in ("FLOAT", "DOUBLE"):
        samples = np.nan_to_num(samples).clip(-1, 1)
    written = io.BytesIO()
    try:
        soundfile.write(written, samples, rate_hz, subtype, format=container)
    except (soundfile.SoundFileError, AssertionError):  # it has no such channels or rate
        return make_file(rng)
    channel = "mean" if rng.random() < 0.5 else 0
    return File(bytearray(written.getvalue()), samples, rate_hz, subtype or "", channel)


def level(rng: Rng, count: int, channels: int) -> np.ndarray:
    """Return noise in one of many levels, among them no sound and numbers beyond full scale."""
    noise = rng.standard_normal((count, channels))
    kinds: list[Callable[[], np.ndarray]] = [
        lambda: 0.1 * noise,
        lambda: 0.1 * noise,
        lambda: 0.1 * noise,
        lambda: 0.1 * noise + 0.3,
        lambda: np.clip(20 * noise, -1, 1),
        lambda: 1e-4 * noise,
        lambda: 0 * noise + rng.choice([0, 0.5, -1]),
        lambda: 3000 * noise,
        lambda: np.where(rng.random(noise.shape) < 0.01, np.nan, 0.1 * noise),
        lambda: 0.1 * noise[:, :1] * (-1.0) ** np.arange(channels)[None],
        lambda: 0.1 * noise * (np.arange(channels) > 0)[None],
    ]
    return kinds[rng.integers(len(kinds))]()


def as_is(rng: Rng, file: File) -> None:
    pass


def cut(rng: Rng, file: File) -> None:
    del file.content[rng.integers(len(file.content)) :]


def append(rng: Rng, file: File) -> None:
    """Add bytes behind the end: zeros, noise, text, or what looks like a chunk."""
    count = int(rng.integers(1, 3000))
    text = b"INFOISFT" + struct.pack("<I", 14) + b"recorder 2.1.0"
    chunk = b"LIST" + struct.pack("<I", len(text)) + text
    file.content += [bytes(count), rng.bytes(count), b"text " * count, chunk][rng.integers(4)]


def flip_header(rng: Rng, file: File) -> None:
    """Change bytes among the first 60."""
    for _ in range(rng.integers(1, 4)):
        place = rng.integers(min(60, len(file.content)))
        file.content[place] ^= int(rng.integers(1, 256))
        file.flips += 1


def flip_samples(rng: Rng, file: File) -> None:
    """Change a byte anywhere behind the header."""
    if len(file.content) > 400:
        file.content[rng.integers(200, len(file.content))] ^= int(rng.integers(1, 256))
        file.flips += 1


def set_size(rng: Rng, file: File) -> None:
    """Write another size into the header of the samples, or of the file."""
    at = file.content.find(b"data") + 4
    if at < 4 or len(file.content) < at + 4:
        return
    true = struct.unpack("<I", file.content[at : at + 4])[0]
    odd = [0, 1, true - 1, true + 1, true // 2, 2 * true, 4096, 0x7FFFF000, 0xFFFFFFFF, 0xFFFFFFF0]
    size = struct.pack("<I", odd[rng.integers(len(odd))] % 2**32)
    place = at if rng.random() < 0.8 else 4
    file.content[place : place + 4] = size


def add_chunks(rng: Rng, file: File) -> None:
    """Put chunks of text, of any size, before the samples of a wav."""
    at = file.content.find(b"data")
    if at < 0 or file.content[:4] not in (b"RIFF", b"RF64"):
        return
    body = b""
    for _ in range(rng.integers(1, 4)):
        text = rng.bytes(int(rng.integers(0, 50)))
        name = [b"LIST", b"bext", b"JUNK", b"note", b"data", rng.bytes(4)][rng.integers(6)]
        padding = b"\0" if len(text) % 2 and rng.random() < 0.8 else b""
        body += name + struct.pack("<I", len(text)) + text + padding
    file.content[at:at] = body


def tag(rng: Rng, file: File) -> None:
    """Put an ID3 tag in front."""
    file.content[:0] = b"ID3\3\0\0\0\0\0" + bytes([20]) + rng.bytes(20)


FILE_CHANGES = (as_is, cut, append, flip_header, flip_samples, set_size, add_chunks, tag)


def check_file(file: File, path: Path) -> str:
    """Return "read" or "refused", or what is wrong."""
    path.write_bytes(file.content)
    infos, problems = audio.verify([path], file.channel)
    audio.probe_all([path])
    if path in problems:
        return "refused"
    info = infos[path]
    of_file = (info.samples, info.rate_hz, info.channels)
    count, channels = file.samples.shape
    one_byte = channels == 1 and file.subtype in ("PCM_U8", "ULAW", "ALAW")
    near = range(count - 1, count + 2) if one_byte else (count,)  # a byte may be padding
    if of_file not in [(n, file.rate_hz, channels) for n in near]:
        return f"wrong: read as {info}, is {file.samples.shape} at {file.rate_hz} Hz"
    wave = audio.read(path, file.channel)
    expected = file.samples.mean(1) if file.channel == "mean" else file.samples[:, 0]
    if file.flips or info.samples != count:
        return "read"
    if np.ptp(expected) < 1e-9:
        return "wrong: silence was read"
    if info.rate_hz != 16_000:
        expected = soxr.resample(np.float32(expected), info.rate_hz, 16_000, quality="HQ")
    both = min(len(wave), len(expected))
    wave, expected = to_float(wave)[:both], expected[:both]
    apart = np.abs(wave - expected) > STEPS.get(file.subtype, 1e-6) * (1 + np.abs(expected))
    if apart.any() or abs(len(wave) - len(expected)) > 1:
        return f"wrong: {apart.sum()} of {both} samples differ"
    return "read"


# --- tables


@dataclass
class Table:
    """A labels.csv as it is on disk, and the labels it was made from."""

    content: bytes
    labels: dict[str, int]  # of file names without suffix
    certain: bool = True  # whether another label than these is wrong


def make_table(rng: Rng) -> Table:
    """Return a csv of five test clips as people write it."""
    labels = {f"clip{' _'[rng.integers(2)]}{i}": int(rng.integers(2)) for i in range(5)}
    words = [("normal", "anomaly"), ("0", "1"), ("0.0", "1.0"), ("Normal", "ANOMALY")]
    spelled = words[rng.integers(len(words))]
    ends = [".wav", "", ".WAV", ".flac"][rng.integers(4)]
    begin = ["", "test/", "fan/test/", "./fan/test/", "fan\\test\\"][rng.integers(5)]
    attributes = ["", "speed 1", "volt 1,5", 'say "on"', "1;2"]
    columns = [
        ("file_name", [f"{begin}{name}{ends}" for name in labels]),
        ("label", [spelled[label] for label in labels.values()]),
        ("domain", rng.choice(["", "source", "target"], 5).tolist()),
        ("attributes", rng.choice(attributes, 5).tolist()),
    ]
    columns = columns[: rng.integers(2, 5)]
    if rng.random() < 0.3:
        columns.insert(0, ("", [str(i) for i in range(5)]))
    order = np.arange(len(columns))
    if rng.random() < 0.3 and columns[0][0]:
        rng.shuffle(order)
    rows = [[columns[i][0] for i in order], *zip(*(columns[i][1] for i in order), strict=True)]
    text = io.StringIO()
    separator, line = [",", ",", ";", "\t"][rng.integers(4)], ["\n", "\r\n"][rng.integers(2)]
    csv.writer(text, delimiter=separator, lineterminator=line).writerows(rows)
    encoding = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"][rng.integers(5)]
    return Table(text.getvalue().encode(encoding), labels)


def untouched(rng: Rng, table: Table) -> None:
    pass


def change_cells(rng: Rng, table: Table) -> None:
    """Take a separator out of a line, or put one in."""
    lines = table.content.split(b"\n")
    at = rng.integers(len(lines))
    separator = next((s for s in (b",", b";", b"\t") if s in lines[0]), b",")
    line = lines[at]
    place = rng.integers(len(line) + 1)
    without = line.replace(separator, b"", 1)
    lines[at] = without if rng.random() < 0.5 else line[:place] + separator + line[place:]
    table.content, table.certain = b"\n".join(lines), False


def double_rows(rng: Rng, table: Table) -> None:
    """Repeat a row, or name a clip twice with two labels."""
    lines = table.content.split(b"\n")
    row = lines[rng.integers(len(lines))]
    swapped = row.replace(b"normal", b"anomaly") if rng.random() < 0.5 else row
    table.content = b"\n".join([*lines[:-1], swapped, b""])


def drop_rows(rng: Rng, table: Table) -> None:
    lines = table.content.split(b"\n")
    del lines[rng.integers(len(lines))]
    table.content, table.certain = b"\n".join(lines), False


def add_rows(rng: Rng, table: Table) -> None:
    """Add rows of nobody, comments and empty lines."""
    extra = [b"\n", b"# all clips of monday\n", b"stranger.wav,normal\n", b",,\n", b"\xff\xfe\n"]
    table.content += extra[rng.integers(len(extra))]


def flip_bytes(rng: Rng, table: Table) -> None:
    content = bytearray(table.content)
    for _ in range(rng.integers(1, 5)):
        content[rng.integers(len(content))] = int(rng.integers(256))
    table.content, table.certain = bytes(content), False


TABLE_CHANGES = (untouched, change_cells, double_rows, drop_rows, add_rows, flip_bytes)


def check_table(table: Table, folder: Path) -> str:
    for name in ["train/a", *(f"test/{name}" for name in table.labels)]:
        path = folder / "fan" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "labels.csv").write_bytes(table.content)
    try:
        clips = dcase.scan(folder).select("test")
    except InputError:
        return "refused"
    wrong = {c.path.stem: c.label for c in clips if c.label != table.labels[c.path.stem]}
    return f"wrong: {wrong}" if wrong and table.certain else "read"


# --- both


def fuzz(seed: int, count: int, make: Callable, changes: tuple, check: Callable) -> Counter:
    """Return how many came out how, by change; what is wrong is printed."""
    found: Counter = Counter()
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        made, change = make(rng), changes[number % len(changes)]
        change(rng, made)
        try:
            with tempfile.TemporaryDirectory() as folder:
                how = check(made, Path(folder))
        except Exception:
            how = f"exception: {traceback.format_exc()}"
        kind = how.partition(":")[0]
        found[change.__name__, kind] += 1
        if kind not in ("read", "refused"):
            print(f"seed {seed}, number {number}, {change.__name__}: {how}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--tables", type=int, default=500)
    given = parser.parse_args()
    found = fuzz(
        given.seed,
        given.files,
        make_file,
        FILE_CHANGES,
        lambda file, folder: check_file(file, folder / "a.wav"),
    )
    found += fuzz(given.seed, given.tables, make_table, TABLE_CHANGES, check_table)
    kinds = ("read", "refused", "wrong", "exception")
    print(f"{'':16}" + "".join(f"{kind:>10}" for kind in kinds))
    for change in dict.fromkeys(name for name, _ in found):
        print(f"{change:16}" + "".join(f"{found[change, kind]:>10}" for kind in kinds))
    sys.exit(any(kind in ("wrong", "exception") for _, kind in found))


if __name__ == "__main__":
    main()
