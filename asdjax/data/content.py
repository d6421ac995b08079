"""What a recording holds, from its samples in blocks: a digest, whether it is sound, how loud."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np

from asdjax.data.containers import Told
from asdjax.types import BOTH, SAMPLE_RATE_HZ, InputError

LOUDEST = 10.0  # times full scale; beyond, float samples are in other units
CANCELED = 0.01  # of the power of a mean of unrelated channels
ALIKE = 1e-6  # of the power of a channel, that is not in the other
TURNED = -0.5  # correlation of a channel with the others
FAR_LOUDER = "channel 1 is louder than 0, the near microphone"
PARTLY = 0.1  # of a file that has no sound, or is clipped, to be told
BAND_HZ = 250  # steps of a bandwidth
_LOWEST_HZ = 4000  # up to where there is sound in a file of which the bandwidth is looked at
_LOWEST_EDGE_HZ = 3000  # telephones have 3.4 kHz; further down, machines may fall as steeply
_EDGE_DB = 25.0  # what a spectrum falls by inside one band where a filter has cut it
_FRAMES, _FRAME_SAMPLES = 4, 1024  # of which the bandwidth is taken; at 16 kHz
_STEP = {"PCM_U8": 2**-7, "PCM_S8": 2**-7, "ALAW": 2**-11, "ULAW": 2**-12, "PCM_16": 2**-15}
_FULL_SCALE = {"PCM_U8": 127 / 128, "PCM_S8": 127 / 128, "ALAW": 0.984, "ULAW": 0.98}
_SMALLEST_STEP = 2**-23  # of 24 bits, and all that float32 has


class Content:
    """Statistics of the samples of one file.

    Args:
        rate_hz, channels, subtype: of the file.
        channel: the index of the channel that is used, "mean", or a way to use two.
        told: by the header, beside these.
    """

    def __init__(self, rate_hz: int, channels: int, subtype: str, channel: int | str, told: Told):
        import xxhash

        self._subtype, self._told = subtype, told
        self._md5, self._fine = hashlib.md5(usedforsecurity=False), False
        self.rate_hz, self.channels = rate_hz, channels
        self.mixed, self.both = channel == "mean" and channels > 1, channel in BOTH
        self.step = _STEP.get(subtype, _SMALLEST_STEP)
        self.full_scale = _FULL_SCALE.get(subtype, 1 - 2**-15)  # 16 bits may be inside finer ones
        self._kind, self._frames = "", np.zeros((0, 0), np.float32)
        # Not cryptographic, but 10 times as fast as SHA-256
        self._hash, self._sound = xxhash.xxh3_128(), xxhash.xxh3_128()
        self._lows, self._highs = [], []  # of each tenth of a second of what is used
        self._ends: tuple[np.ndarray, np.ndarray] | None = None  # all of them, as float
        self._count = 0
        self._products = np.zeros((channels, channels))  # of deviations, where channels are mixed

    def add(self, block: np.ndarray, wave: np.ndarray) -> None:
        """Look at the next samples `[n, C]`, int16 or float32, and what is used of them.

        That is `[n]`, or near and far `[n, 2]`, of which near is judged as a sound.
        """
        used = wave
        if self.both:
            wave = np.ascontiguousarray(wave[:, 0])
        self._hash.update(block)
        if not self._kind:
            self._kind = block.dtype.str[1:]
            self._frames = _some_frames(wave, self.rate_hz)
        if self._told.valid_bits < self._told.bits:
            steps = to_float(wave) * 2.0 ** (self._told.valid_bits - 1)
            self._fine = self._fine or bool((steps != np.round(steps)).any())
        if self._told.md5:
            self._md5.update(_pcm(block, self._subtype))
        tenths = np.arange(0, len(wave), max(self.rate_hz // 10, 16))
        self._lows.append(np.minimum.reduceat(wave, tenths))  # NaN stays
        self._highs.append(np.maximum.reduceat(wave, tenths))
        if self.channels > 1 or block.dtype != np.int16:
            self._sound.update(_plain(used))
        self._count += len(wave)
        if self.mixed or self.both:
            each = to_float(np.ascontiguousarray(block.T))
            with np.errstate(over="ignore", invalid="ignore"):  # such samples are refused
                each = each - each.mean(1, keepdims=True)
                self._products += each @ each.T

    @property
    def digest(self) -> str:
        """Return e.g. "i2-16000-1-<32 hexadecimal digits>"; equal for equal samples."""
        return f"{self._kind}-{self.rate_hz}-{self.channels}-{self._hash.hexdigest()}"

    @property
    def sound(self) -> str:
        """Return a digest of what is used, equal in whatever sample type and channels it lies."""
        plain = self.channels == 1 and self._kind == "i2"
        return f"{self.rate_hz}-{(self._hash if plain else self._sound).hexdigest()}"

    @property
    def bandwidth_hz(self) -> int:
        """Return up to where there is sound, as `bandwidth` of frames spread over the file."""
        return bandwidth(self._frames, self.rate_hz)

    @property
    def level_db(self) -> float:
        """Return the range of the samples in dB of that from -1 to 1.

        That is the median over the tenths of a second that have sound.
        """
        low, high = self._extremes()
        ranges = np.sort(high - low)
        ranges = ranges[np.searchsorted(ranges, self.step) :]
        return 20 * math.log10((ranges[len(ranges) // 2] if len(ranges) else self.step) / 2)

    def _extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest sample of each tenth of a second of what is used."""
        if self._ends is None:  # a cached property locks the other threads out
            ends = np.concatenate(self._lows), np.concatenate(self._highs)
            self._ends = to_float(ends[0]), to_float(ends[1])
        return self._ends

    def refuse(self) -> None:
        """Raise an InputError if the samples are no sound that a score could mean something of."""
        if self._told.md5 not in (b"", self._md5.digest()):
            raise InputError(
                "expected the samples whose MD5 is in the FLAC header, got others, or a part of "
                "them: the file is damaged; copy or download it again"
            )
        low, high = self._extremes()
        low, high = low.min(), high.max()
        loudest = max(abs(low), abs(high))
        if not np.isfinite(loudest):
            raise InputError("expected numbers, got NaN or infinite samples; export the file again")
        if self._fine and loudest <= 2.0 ** (self._told.valid_bits - self._told.bits):
            raise InputError(
                f"expected samples in the upper {self._told.valid_bits} of {self._told.bits} bits, "
                "got them in the lower, where they are too quiet; export the file again"
            )
        if loudest > LOUDEST:
            raise InputError(
                f"expected samples of full scale 1.0, got up to {loudest:.4g}: float samples in "
                "other units; divide them by a constant, 32768 for those in the range of 16 bits"
            )
        constant = high - low < self.step
        if self.both and self._same():
            raise InputError(
                "expected a near and a far microphone, got the same sound in both channels; choose "
                "--audio.channel 0"
            )
        canceled = self.mixed and self._left() < CANCELED and len(self._sounding()) > 1
        if canceled:
            raise InputError(
                "expected sound, got channels that cancel in their mean (one is turned over); "
                f"choose a channel, e.g. --audio.channel {self._sounding()[0]}"
            )
        if constant:
            other = "check the microphone" + ", or choose another channel" * (self.channels > 1)
            raise InputError(f"expected sound, got a constant {low:.4g}; remove the file, {other}")

    def remarks(self) -> tuple[str, ...]:
        """Return what a user should know of the sound, and of channels whose mean is used."""
        low, high = self._extremes()
        peaks, least = np.maximum(high, -low), max(1, PARTLY * len(low))
        parts = {
            "no sound": high - low < self.step,
            "full scale (clipped?)": (peaks >= self.full_scale) & (peaks <= 1),
        }
        found = [f"{what} in a part" for what, w in parts.items() if np.count_nonzero(w) > least]
        odd = self._of_channels() if self.mixed else self._of_far() if self.both else ()
        return (*found, *odd)

    def _of_far(self) -> list[str]:
        near, far = np.diag(self._products)[:2]
        if 1 not in self._sounding():
            return ["channel 1 carries no sound: nothing is taken out of channel 0"]
        return [FAR_LOUDER] if far > near else []

    def _same(self) -> bool:
        """Return whether channel 0 is channel 1, scaled, up to the rounding of both."""
        near, far = np.diag(self._products)[:2]
        if near <= 0 or far <= 0:
            return False
        rounding = self.step**2 / 12 * self._count * (1 / near + 1 / far)
        return self._products[0, 1] ** 2 / (near * far) > 1 - max(ALIKE, 2 * rounding)

    def _of_channels(self) -> list[str]:
        sounding = self._sounding()
        dead = [i for i in range(self.channels) if i not in sounding]
        found = [f"channel {i} carries no sound" for i in dead]
        inner = self._products[np.ix_(sounding, sounding)]
        for i, row in zip(sounding, inner, strict=True):
            if len(sounding) == 2 and i == sounding[0]:
                continue  # the second one says it
            others = inner.sum() - 2 * row.sum() + self._products[i, i]  # power of their sum
            against = row.sum() - self._products[i, i]
            if against < TURNED * np.sqrt(max(others, 0) * self._products[i, i]):
                found.append(f"channel {i} is turned over against the others")
        return found

    def _sounding(self) -> list[int]:
        """Return the channels that are neither constant nor 60 dB below the loudest."""
        power = np.diag(self._products)
        return np.flatnonzero((power > 1e-6 * power.max()) & (power > 0)).tolist()

    def _left(self) -> float:
        """Return the power of the mean over what it has if the channels are unrelated."""
        return float(self._products.sum() / max(np.trace(self._products), 1e-30))


def _some_frames(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """Return up to 4 frames of 64 ms, spread over a wave `[N]`: `[4, rate_hz * 0.064]` float32."""
    size = _FRAME_SAMPLES * rate_hz // SAMPLE_RATE_HZ
    count = min(_FRAMES, len(wave) // max(size, 1)) if rate_hz >= 2 * _LOWEST_HZ else 0
    return np.array([wave[i * len(wave) // count :][:size] for i in range(count)], np.float32)


def bandwidth(frames: np.ndarray, rate_hz: int) -> int:
    """Return up to where there is sound in frames `[T, S]` of 64 ms: multiples of 250, in Hz.

    That is 8000, or half of a lower rate, unless 1 kHz of sound ends above 3 kHz in a fall of 25 dB
    inside one band of 250 Hz, and nothing follows: by a codec or a filter, or because the file has
    a higher rate than what its sound was recorded with.
    """
    highest = min(rate_hz, SAMPLE_RATE_HZ) // 2
    if len(frames) == 0:
        return highest
    size, bands = frames.shape[1], highest // BAND_HZ
    spectrum = np.fft.rfft(frames * _window(size))
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).sum(0)
    edges = np.arange(bands + 1) * (BAND_HZ * size) // rate_hz
    level = 10 * np.log10(np.add.reduceat(power[: edges[-1]], edges[:-1]) + 1e-30)
    if level[_LOWEST_EDGE_HZ // BAND_HZ - 4 :].max() - level[-1] < _EDGE_DB:  # as most
        return highest
    below = np.min([level[i : bands - 6 + i] for i in range(4)], 0)  # of 1 kHz
    above = np.maximum.accumulate(level[::-1])[::-1]  # of a band and all behind it
    fall = below - above[5 : bands - 1]  # a band between them may hold the edge
    fall[: _LOWEST_EDGE_HZ // BAND_HZ - 4] = 0
    at = int(fall.argmax())
    return (at + 4) * BAND_HZ if fall[at] >= _EDGE_DB else highest


def _pcm(block: np.ndarray, subtype: str) -> bytes:
    """Return the bytes of samples of which FLAC takes the MD5."""
    if block.dtype == np.int16:
        return block.astype("<i2", copy=False).tobytes()
    width = {"PCM_S8": 1, "PCM_24": 3}[subtype]
    whole = (block.astype(np.float64) * 2 ** (8 * width - 1)).astype("<i4")
    return whole.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


@lru_cache
def _window(size: int) -> np.ndarray:
    return np.hanning(size).astype(np.float32)


def _plain(wave: np.ndarray) -> np.ndarray:
    """Return a wave as 16-bit integers where that loses nothing, else as float32."""
    if wave.dtype == np.int16:
        return wave
    with np.errstate(over="ignore", invalid="ignore"):  # such samples are refused
        if (np.modf(wave[:256] * np.float32(32768))[0] != 0).any():
            return wave  # most are, which the first samples tell
        whole = wave * np.float32(32768)
        pcm = whole.astype(np.int16)
    return pcm if (pcm == whole).all() else wave


def to_float(wave):
    """Return samples with full scale 1.0; integers are taken as 16-bit PCM."""
    return wave / np.float32(32768) if wave.dtype == np.int16 else wave
