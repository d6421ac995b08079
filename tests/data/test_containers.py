import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdjax.data import audio, containers
from asdjax.types import InputError

PCM = np.random.default_rng(1).integers(-3000, 3000, 16_000, dtype=np.int16)  # 1 s
SOUND = PCM.tobytes()
TEXT = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"recorder 2.1.0"

GUID = bytes.fromhex("000000001000800000aa00389b71")  # of an extensible format, behind its tag


def form(tag=1, channels=1, rate_hz=16_000, bytes_per_s=None, frame_bytes=None, bits=16, rest=b""):
    frame_bytes = channels * bits // 8 if frame_bytes is None else frame_bytes
    bytes_per_s = rate_hz * frame_bytes if bytes_per_s is None else bytes_per_s
    body = struct.pack("<HHIIHH", tag, channels, rate_hz, bytes_per_s, frame_bytes, bits) + rest
    return b"fmt " + struct.pack("<I", len(body)) + body


FORMAT = form()


def wav(size=32_000, sound=SOUND, before=b"", after=b"", form=FORMAT, kind=b"RIFF"):
    """Return a wav whose header says `size` bytes of samples."""
    body = b"WAVE" + before + form + b"data" + struct.pack("<I", size) + sound + after
    return kind + struct.pack("<I", min(len(body), 0xFFFFFFFF)) + body


def long_size(size: int) -> bytes:
    """Return the chunk in which RF64 has the size of the samples."""
    return b"ds64" + struct.pack("<IQQQI", 28, size + 72, size, size // 2, 0)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def reason(path: Path) -> str:
    """Return why a file is refused, by `check` and by all that reads."""
    with pytest.raises(InputError) as caught, path.open("rb") as file:
        containers.check(file)
    assert str(caught.value) in audio.verify([path], 0)[1][path]
    assert audio.probe_all([path])[1].keys() == {path}
    with pytest.raises(InputError, match="expected"):
        audio.read(path, 0)
    return str(caught.value)


WHOLE = {
    "plain": wav(),
    "text behind": wav(after=TEXT),
    "two chunks behind": wav(after=TEXT + b"id3 " + struct.pack("<I", 2) + b"ab"),
    "old tag behind": wav(after=b"TAG" + b"a" * 125),
    "tag without a chunk behind": wav(after=b"ID3\3\0\0\0\0\0\5hello"),
    "text cut by 4 bytes behind": wav(after=TEXT[:-4]),
    "an end of line behind": wav(after=b"\n"),
    "filled up with zeros": wav(after=bytes(4096)),
    "text and zeros behind": wav(after=TEXT + bytes(512)),
    "text before": wav(before=TEXT),
    "odd chunk before": wav(before=b"note" + struct.pack("<I", 3) + b"abc\0"),
    "stream of ffmpeg": wav(size=0xFFFFFFFF),
    "stream of sox": wav(size=0x7FFFF000),
    "stream with text before": wav(size=0xFFFFFFFF, before=TEXT),
    "no byte rate": wav(form=form(bytes_per_s=0)),
    "extensible": wav(form=form(tag=0xFFFE, rest=struct.pack("<HHIH", 22, 16, 4, 1) + GUID)),
    "long": wav(size=0xFFFFFFFF, before=long_size(len(SOUND)), kind=b"RF64"),
    "long with a short size": wav(before=long_size(len(SOUND)), kind=b"RF64"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_all_samples_are_read_where_the_header_allows_it(tmp_path, name):
    path = written(tmp_path / "a.wav", WHOLE[name])
    assert audio.verify([path], 0)[1] == {}
    np.testing.assert_array_equal(audio.read(path, 0), PCM)


def test_an_odd_number_of_bytes_may_lack_its_padding(tmp_path):
    eight_bits, sound = form(bits=8), SOUND[:15_999]
    for padding in (b"", b"\0"):
        content = wav(len(sound), sound, after=padding + TEXT, form=eight_bits)
        path = written(tmp_path / "a.wav", content)
        assert len(audio.read(path, 0)) == len(sound)


WRONG = {
    "size of the first second": (wav(size=8000), "got 8000 bytes, and 24000 more"),
    "size of one byte": (wav(size=1), "got 1 bytes: the header is damaged"),
    "size of no whole samples": (wav(size=31_999), "got 31999 bytes: the header is damaged"),
    "size that wrapped": (wav(size=0, sound=SOUND), "got 0 before 32000 bytes"),
    "sound behind text": (wav(size=8000, sound=SOUND[:8000], after=TEXT + SOUND), "32034 more"),
    "second data chunk": (
        wav(size=8000, sound=SOUND[:8000], after=b"data" + struct.pack("<I", 32_000) + SOUND),
        "got 8000 bytes, and 32008 more",
    ),
    "more zeros than a file is filled up with": (wav(after=bytes(2**20 + 2)), "are no text"),
    "cut off": (wav()[:-100], "expected 32000 bytes of samples as the header says, got 31900"),
    "long and cut off": (
        wav(size=0xFFFFFFFF, before=long_size(len(SOUND)), kind=b"RF64")[:-100],
        "expected 32000 bytes of samples as the header says, got 31900",
    ),
    "stream with text behind": (wav(size=0xFFFFFFFF, after=TEXT), "got text behind them"),
    "stream with text behind an odd byte": (
        wav(size=0xFFFFFFFF, sound=SOUND + b"\1\2", after=TEXT),
        "got text behind them",
    ),
    "no samples": (wav()[:36], "got a wav without a chunk of them"),
    "no format": (wav(form=b""), "got none; copy the file again"),
    "half of the byte rate": (wav(form=form(bytes_per_s=16_000)), "16000 in a second"),
    "another rate": (wav(form=form(rate_hz=48_000, bytes_per_s=32_000)), "got 48000 Hz"),
    "another frame": (wav(form=form(frame_bytes=1)), "but 1 bytes in a frame"),
    "12 bits": (wav(form=form(bits=12, frame_bytes=2)), "got 12; convert it"),
    "big-endian": (wav().replace(b"RIFF", b"RIFX"), "a big-endian wav file (RIFX); convert it"),
    "nothing": (b"", "got 0 bytes"),
    "text": (b"not a recording\n" * 9, "begins with b'not '"),
    "MPEG-4": (b"\0\0\0\x20ftypM4A " + bytes(99), "got an MPEG-4 file; convert it"),
    "MP3": (b"\xff\xfb\x90\x64" + bytes(99), "got an MP3 file; convert it"),
    "MP3 with a tag": (b"ID3\3\0\0\0\0\0\5hello\xff\xfb" + bytes(99), "got an MP3 file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_headers_that_contradict_the_file_are_refused(tmp_path, name):
    content, message = WRONG[name]
    assert message in reason(written(tmp_path / "a.wav", content))


@pytest.mark.parametrize(
    ("subtype", "codec"),
    [
        ("MS_ADPCM", "Microsoft ADPCM"),
        ("IMA_ADPCM", "IMA ADPCM"),
        ("GSM610", "GSM 6.10"),
        ("G721_32", "G.721 ADPCM"),
        ("NMS_ADPCM_24", "NMS ADPCM"),
    ],
)
def test_codecs_of_blocks_must_be_converted(tmp_path, subtype, codec):
    soundfile.write(tmp_path / "a.wav", PCM, 16_000, subtype)
    assert f"got {codec}; convert it to 16-" in reason(tmp_path / "a.wav")


@pytest.mark.parametrize("container", ["AIFF", "W64", "AU", "CAF", "OGG"])
def test_other_containers_must_be_converted(tmp_path, container):
    soundfile.write(tmp_path / "a.wav", PCM, 16_000, format=container)
    assert "expected a wav (RIFF, RF64) or FLAC file" in reason(tmp_path / "a.wav")


def extensible(bits: int, valid_bits: int, sound: bytes) -> bytes:
    rest = struct.pack("<HHIH", 22, valid_bits, 4, 1) + GUID
    return wav(len(sound), sound, form=form(tag=0xFFFE, bits=bits, rest=rest))


@pytest.mark.parametrize(("bits", "valid_bits", "dtype"), [(16, 12, "<i2"), (32, 24, "<i4")])
def test_samples_in_the_lower_bits_are_refused(tmp_path, bits, valid_bits, dtype):
    upper = (np.int64(PCM) >> 2 << bits - 12).astype(dtype)
    full = upper | 1  # the header is wrong about the bits that are used
    lower = (upper >> bits - valid_bits) | 1
    for samples in (upper, full):
        path = written(tmp_path / "a.wav", extensible(bits, valid_bits, samples.tobytes()))
        assert audio.verify([path], 0)[1] == {}
    path = written(tmp_path / "a.wav", extensible(bits, valid_bits, lower.tobytes()))
    problem = audio.verify([path], 0)[1][path]
    assert f"expected samples in the upper {valid_bits} of {bits} bits" in problem


@pytest.mark.parametrize("subtype", ["ALAW", "ULAW", "PCM_U8", "PCM_24", "PCM_32", "DOUBLE"])
def test_what_libsndfile_writes_as_wav_is_read(tmp_path, subtype):
    for name, container in (("a", "WAV"), ("b", "WAVEX")):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, PCM / 32768, 16_000, subtype, format=container)
        assert audio.verify([path], 0)[1] == {}


# --- FLAC: the fields of its first block, which begins at byte 8


@pytest.fixture
def flac(tmp_path) -> Path:
    path = tmp_path / "a.flac"
    soundfile.write(path, PCM, 16_000)
    return path


def set_fields(path: Path, *, rate_hz=None, bits=None, samples=None) -> None:
    content = bytearray(path.read_bytes())
    fields = int.from_bytes(content[18:26], "big")
    if rate_hz is not None:
        fields = fields & ~(0xFFFFF << 44) | rate_hz << 44
    if bits is not None:
        fields = fields & ~(0x1F << 36) | (bits - 1) << 36
    if samples is not None:
        fields = fields & ~0xFFFFFFFFF | samples
    content[18:26] = fields.to_bytes(8, "big")
    path.write_bytes(content)


def test_flac_without_its_number_of_samples_is_refused(flac):
    set_fields(flac, samples=0)
    assert "expected the number of samples in the FLAC header, got none" in reason(flac)


@pytest.mark.parametrize("bits", [12, 20, 32])
def test_flac_of_other_sample_sizes_must_be_converted(flac, bits):
    set_fields(flac, bits=bits)
    assert f"expected FLAC of 8, 16 or 24 bits, got {bits}; convert it" in reason(flac)


def test_a_number_of_samples_that_no_such_file_can_hold_asks_for_no_memory(flac):
    set_fields(flac, samples=2**35)
    assert f"got {2**35}: the header is damaged" in reason(flac)


@pytest.mark.parametrize("samples", [16_001, 10**6])
def test_a_number_of_samples_above_those_in_the_file_is_refused(flac, samples):
    set_fields(flac, samples=samples)
    assert "expected" in audio.verify([flac], 0)[1][flac]


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100, 48_000, 11_025, 12_000, 655_350 // 5])
def test_flac_whose_header_and_frames_have_two_rates_is_refused(tmp_path, rate_hz):
    path = tmp_path / "a.flac"
    soundfile.write(path, PCM, rate_hz)
    assert audio.verify([path], 0)[1] == {}
    set_fields(path, rate_hz=rate_hz + 300)
    assert f"expected {rate_hz} Hz in the FLAC header as in the first frame" in reason(path)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_of_which_a_part_would_be_read_is_refused(tmp_path, subtype, channels):
    """By its MD5, which it need not have."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([PCM, PCM[::-1]], 1)[:, :channels], 16_000, subtype)
    assert audio.verify([path], 0)[1] == {}
    set_fields(path, samples=8000)
    assert (
        "expected the samples whose MD5 is in the FLAC header" in audio.verify([path], 0)[1][path]
    )
    set_fields(path, samples=len(PCM))
    content = bytearray(path.read_bytes())
    content[26:42] = bytes(16)
    path.write_bytes(content)
    assert audio.verify([path], 0)[1] == {}


def test_flac_under_the_name_of_a_wav_is_read(flac):
    path = flac.rename(flac.with_suffix(".wav"))
    np.testing.assert_array_equal(audio.read(path, 0), PCM)
