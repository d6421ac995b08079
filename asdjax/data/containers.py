"""Whether the header of a wav or FLAC file fits what the file holds.

libsndfile reads what is there when a header promises more, and what the header promises when more
is there. Both are parts of a recording, so such a file is refused before it is opened.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from asdjax.types import InputError

_STREAMED = 0x7FFFF000  # sox and ffmpeg write this size or more when they cannot seek back
_UNKNOWN = 0xFFFFFFFF  # RF64: the size stands in the chunk ds64
_BEHIND = 2**20  # bytes behind the samples that may be zeros (files are filled up), or hold chunks
_TEXT = 2**16  # bytes behind the samples that may be text without a right size
_TAGS = (b"TAG", b"ID3", b"LIST", b"id3 ", b"bext", b"iXML", b"_PMX", b"cue ", b"smpl", b"JUNK")
_PCM, _FLOAT, _ALAW, _ULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64), _ALAW: (8,), _ULAW: (8,)}
_CODECS = {
    0x0002: "Microsoft ADPCM",
    0x0011: "IMA ADPCM",
    0x0031: "GSM 6.10",
    0x0038: "NMS ADPCM",
    0x0055: "MP3",
    0x0040: "G.721 ADPCM",
    0x0064: "G.726 ADPCM",
}
_OTHERS = {
    b"RIFX": "a big-endian wav file (RIFX)",
    b"riff": "a Sony Wave64 file",
    b"BW64": "a BW64 file",
    b"FORM": "an AIFF or 8SVX file",
    b".snd": "an AU file",
    b"caff": "a CAF file",
    b"OggS": "an Ogg file",
    b"NIST": "a NIST Sphere file",
    b"Crea": "a Creative Voice file",
    b"MATL": "a MATLAB file",
    b"2BIT": "an AVR file",
    b"ALaw": "a Psion file",
}
_FLAC_BITS = (8, 16, 24)  # those that libsndfile decodes
_FLAC_BLOCK, _FLAC_FRAME = 65535, 11  # most samples and fewest bytes of a FLAC frame
_FLAC_RATES = {  # of four bits in the header of a frame
    **{1: 88_200, 2: 176_400, 3: 192_000, 4: 8000, 5: 16_000, 6: 22_050, 7: 24_000, 8: 32_000},
    **{9: 44_100, 10: 48_000, 11: 96_000},
}


class Told(NamedTuple):
    """What a header says that libsndfile does not pass on."""

    md5: bytes = b""  # of the samples of a FLAC file; b"": it says none
    bits: int = 0  # in which each sample of a wav lies, 0 elsewhere
    valid_bits: int = 0  # how many of them are used, from the highest on


def check(file: BinaryIO) -> Told:
    """Refuse a file that is neither wav nor FLAC, or whose header contradicts its content.

    Raises:
        InputError: it does not name the file.
    """
    end = os.fstat(file.fileno()).st_size
    if end == 0:
        raise InputError("expected a recording, got 0 bytes; copy or download the file again")
    _skip_id3(file)
    kind, size, form = file.read(4), file.read(4), file.read(4)
    if kind in (b"RIFF", b"RF64") and form == b"WAVE":
        return _check_wav(file, end, kind)
    if kind == b"fLaC":
        file.seek(-8, 1)
        return _check_flac(file, end)
    raise _other(kind, size)


def _other(kind: bytes, following: bytes) -> InputError:
    found = "an MPEG-4 file" if following == b"ftyp" else _OTHERS.get(kind)
    if found is None and kind[:1] == b"\xff" and len(kind) > 1 and kind[1] >= 0xE0:
        found = "an MP3 file"
    if found is not None:
        return InputError(f"expected a wav (RIFF, RF64) or FLAC file, got {found}; {_convert()}")
    return InputError(
        "expected a wav or FLAC recording, got a file that begins with "
        f"{kind!r}; remove it, or copy or download it again"
    )


def _convert() -> str:
    return "convert it to 16-, 24- or 32-bit PCM, e.g. with ffmpeg or sox"


def _skip_id3(file: BinaryIO) -> None:
    """Set the file behind a tag at its begin, whose size has 7 bits in each byte."""
    head = file.read(10)
    size = 0
    if head[:3] == b"ID3" and len(head) == 10:
        size = 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:]))
    file.seek(size)


# --- wav


def _check_wav(file: BinaryIO, end: int, kind: bytes) -> Told:
    """Check format and sizes of a wav; the file stands behind its first 12 bytes."""
    form, long_size = b"", 0
    for name, size in _chunks(file):
        if name == b"fmt ":
            form = file.read(size)
        elif name == b"ds64":
            long_size = struct.unpack("<8xQ", file.read(size)[:16].ljust(16, b"\0"))[0]
        elif name == b"data":
            break
    else:
        raise InputError(
            "expected samples, got a wav without a chunk of them where the sizes lead; rewrite it, "
            "e.g. with ffmpeg, or copy it again"
        )
    frame_bytes, bits, valid_bits = _check_format(form)
    if kind == b"RF64" and size == _UNKNOWN:
        size = long_size
    _check_size(file, size, end, frame_bytes, may_stream=kind == b"RIFF")
    return Told(bits=bits, valid_bits=valid_bits)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield name and size of each chunk, the file standing on its content."""
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        following = file.tell() + size + size % 2  # chunks are padded to even sizes
        yield name, size
        file.seek(following)


def _check_format(form: bytes) -> tuple[int, int, int]:
    """Return the bytes of a sample of all channels, its bits in one, and how many are used."""
    if len(form) < 16:
        raise InputError("expected a format before the samples, got none; copy the file again")
    tag, channels, rate_hz, bytes_per_s, frame_bytes, bits = struct.unpack("<HHIIHH", form[:16])
    valid_bits = bits
    if tag == _EXTENSIBLE and len(form) >= 26:
        valid_bits, tag = struct.unpack("<2xH4xH", form[16:26])
    if tag not in _BITS:
        codec = _CODECS.get(tag, f"encoding {tag:#06x}")
        raise InputError(f"expected PCM or float samples, got {codec}; {_convert()}")
    if bits not in _BITS[tag]:
        raise InputError(f"expected samples of 8, 16, 24 or 32 bits, got {bits}; {_convert()}")
    if frame_bytes != channels * bits // 8 or bytes_per_s not in (0, rate_hz * frame_bytes):
        raise InputError(
            f"expected a header that agrees with itself, got {rate_hz} Hz, {channels} channels, "
            f"{bits} bits, but {frame_bytes} bytes in a frame and {bytes_per_s} in a second; find "
            "out which is true and rewrite the file, e.g. with sox"
        )
    return frame_bytes, bits, valid_bits if 0 < valid_bits < bits else bits


def _check_size(file: BinaryIO, size: int, end: int, frame_bytes: int, may_stream: bool) -> None:
    """Check the size of the samples, which begin where the file stands."""
    start = file.tell()
    present = end - start
    if size == 0 and present > 0:  # a stream too, but libsndfile takes 0 at its word
        raise InputError(
            f"expected the size of the samples in the header, got 0 before {present} bytes: the "
            "recorder did not finish the file; rewrite it, e.g. with ffmpeg"
        )
    if present < size and not (may_stream and size >= _STREAMED):
        raise InputError(
            f"expected {size} bytes of samples as the header says, got {present}: the file is "
            "cut off; copy or download it again"
        )
    if present < size:
        if _ends_with_chunk(file, start, end):
            raise InputError(
                "expected samples to the end of the file, for its header says no size, got text "
                "behind them; rewrite it, e.g. with ffmpeg"
            )
        return
    if size % frame_bytes:
        raise InputError(
            f"expected whole samples of {frame_bytes} bytes in all channels, got {size} bytes: the "
            "header is damaged; copy or download the file again"
        )
    behind = present - size
    if not any(_is_no_sound(file, start + size + pad, end) for pad in {0, size % 2}):
        raise InputError(
            f"expected the size of the samples in the header, got {size} bytes, and {behind} more "
            "follow that are no text: the recorder did not finish the file, or it is above 4 GiB; "
            "rewrite it, e.g. with ffmpeg (with -ignore_length 1 if sound follows)"
        )


def _is_no_sound(file: BinaryIO, start: int, end: int) -> bool:
    """Return whether text or zeros fill the file from `start` on."""
    if start >= end:
        return True
    file.seek(start)
    for name, size in _chunks(file):
        following = file.tell() + size + size % 2
        if name == b"data" or not _is_name(name) or following > end + 1:
            break
        start = min(following, end)
    file.seek(start)
    rest = file.read(min(end - start, _BEHIND))
    if end - start < 8 or (end - start <= _TEXT and rest.startswith(_TAGS)):
        return True
    return end - start <= _BEHIND and not any(rest)


def _ends_with_chunk(file: BinaryIO, start: int, end: int) -> bool:
    """Return whether name and size of a chunk stand where the chunk ends with the file."""
    start = max(start, end - _BEHIND)
    file.seek(start)
    found = file.read(end - start)
    words = [np.frombuffer(found[skip:][: (len(found) - skip) // 4 * 4], "<u4") for skip in (0, 2)]
    for skip, word in zip((0, 2), words, strict=True):
        left = len(found) - skip - 4 * np.arange(2, len(word) + 1)  # behind name and size
        for i in np.flatnonzero((word[1:] + word[1:] % 2 == left) | (word[1:] == left)):
            if _is_name(found[skip + 4 * i :][:4]):
                return True
    return False


def _is_name(name: bytes) -> bool:
    return all(32 <= byte < 127 for byte in name)


# --- FLAC


def _check_flac(file: BinaryIO, end: int) -> Told:
    """Check the first block of a FLAC file, which stands behind its first 4 bytes."""
    last, info = file.read(4)[:1], file.read(34)
    if len(info) < 34:
        raise InputError("expected a FLAC header, got a part of one; copy or download it again")
    fields = int.from_bytes(info[10:18])  # 20 bits rate, 3 channels, 5 bits per sample, 36 samples
    rate_hz, bits, samples = fields >> 44, (fields >> 36 & 0x1F) + 1, fields & 0xFFFFFFFFF
    if bits not in _FLAC_BITS:
        raise InputError(f"expected FLAC of 8, 16 or 24 bits, got {bits}; {_convert()}")
    if samples == 0:
        raise InputError(
            "expected the number of samples in the FLAC header, got none, so that a missing end "
            "would go unnoticed; encode the file again with flac or ffmpeg"
        )
    if samples > (end // _FLAC_FRAME + 1) * _FLAC_BLOCK:
        raise InputError(
            f"expected a number of samples that {end} bytes can hold, got {samples}: the header is "
            "damaged; copy or download the file again"
        )
    if (of_frame := _flac_frame_rate(file, bool(last[0] & 0x80))) not in (None, rate_hz):
        raise InputError(
            f"expected {of_frame} Hz in the FLAC header as in the first frame, got {rate_hz}: the "
            "header is damaged; copy or download the file again"
        )
    return Told(md5=info[18:] if any(info[18:]) else b"")


def _flac_frame_rate(file: BinaryIO, last: bool) -> int | None:
    """Return the rate that the first frame says, None where it says none; `last`: it is next."""
    while not last:
        head = file.read(4)
        if len(head) < 4:
            return None
        last = bool(head[0] & 0x80)
        file.seek(int.from_bytes(head[1:]), 1)
    head = file.read(9)  # sync, sizes, channels, number 0, and up to two bytes of size and of rate
    if len(head) < 9 or head[0] != 0xFF or head[4] != 0:
        return None
    size, code = head[2] >> 4, head[2] & 0xF
    value = head[5 + {6: 1, 7: 2}.get(size, 0) :]
    explicit = {
        12: 1000 * value[0],
        13: int.from_bytes(value[:2]),
        14: 10 * int.from_bytes(value[:2]),
    }
    return (_FLAC_RATES | explicit).get(code)
