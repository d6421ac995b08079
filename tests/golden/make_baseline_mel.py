"""Write `baseline_mel.npz`: the log-mel of the official baseline, computed by librosa.

    python tests/golden/make_baseline_mel.py

The arguments are those of the baseline's configuration; the sounds are stored with the values.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np

HERE = Path(__file__).parent
SAMPLES = (6_000, 5_120, 5_119, 2_048)  # 5,120 is ten hops


def sound(samples: int, seed: int) -> np.ndarray:
    """Return int16 `[samples]`: a swept tone above noise."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(samples) / 16_000
    wave = 0.1 * np.sin(2 * np.pi * (200 + 9_000 * seconds) * seconds)
    return np.round(32_767 * (wave + 0.01 * rng.standard_normal(samples))).astype(np.int16)


def log_mel(wave: np.ndarray) -> np.ndarray:
    """Return `[T, 128]` of float32 `[N]`."""
    mel = librosa.feature.melspectrogram(
        y=wave, sr=16_000, n_fft=1024, hop_length=512, power=2.0, n_mels=128, fmin=0.0
    )
    return 10 * np.log10(np.maximum(mel, np.finfo(np.float64).eps)).T


def main() -> None:
    tone = (0.5 * np.sin(2 * np.pi * 1000 / 16_000 * np.arange(8_000))).astype(np.float32)
    arrays = {"tone_mel": log_mel(tone), "tone_wave": tone}
    for seed, samples in enumerate(SAMPLES):
        wave = sound(samples, seed)
        arrays[f"{samples}_wave"] = wave
        arrays[f"{samples}_mel"] = log_mel(wave.astype(np.float32) / 32768)
    arrays["filters"] = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=128).T
    np.savez_compressed(HERE / "baseline_mel.npz", **arrays)
    print("librosa", librosa.__version__)


if __name__ == "__main__":
    main()
