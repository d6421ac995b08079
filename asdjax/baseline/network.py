"""From a wave to its scores: log-mel, autoencoder, mean squared error, Mahalanobis.

Log-mel: frames of 1,024 samples every 512 at 16 kHz (31.25 per second), 128 bands from 0 to 8 kHz.
Autoencoder: a vector of five successive frames, 640 -> 4 x 128 -> 8 -> 4 x 128 -> 640. All dense
layers but the last are followed by batch norm and ReLU. It has 267,928 trained parameters, 269,992
with the running statistics. The weights are one flat dict and the network is functions of it, so
that `jax.vmap` can train the autoencoders of all machines.

Source: nttcslab/dcase2023_task2_baseline_ae; initial weights are distributed as PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.frontend.fbank import RATE_HZ, to_float, without_offset
from asdjax.models.system import Embedder
from asdjax.models.weights_file import Params
from asdjax.types import Embeddings, check

FFT_SAMPLES, HOP_SAMPLES, BANDS = 1024, 512, 128
FLOOR = 2.220446049250313e-16  # of the mel power: float64 epsilon, -156.5 dB
FRAMES = 5  # successive frames in a vector
SHORTEST_SAMPLES = (FRAMES - 1) * HOP_SAMPLES  # of a clip: one vector
WIDTHS = (FRAMES * BANDS, 128, 128, 128, 128, 8, 128, 128, 128, 128, FRAMES * BANDS)
LAST = len(WIDTHS) - 2  # layer; it has no batch norm and no ReLU
MOMENTUM = 0.01  # share of a batch in the running statistics
EPSILON = 1e-3
SINGULAR = 1e-6  # smallest / largest eigenvalue; float32, in which the baseline inverts, has 1e-7
HIGHEST = jax.lax.Precision.HIGHEST  # no TF32: PyTorch does not use it by default


@dataclass(frozen=True)
class Autoencoder:
    """The official baseline's scores of a clip, by an autoencoder of its machine, `[3]`.

    Mean squared error; Mahalanobis square of the mean residual by the source's and by the target's
    covariance.
    """

    weights = ""
    needs_training, one_length = True, False
    shortest_samples = SHORTEST_SAMPLES

    def clip_bytes(self, samples: int) -> int:
        """Return how much memory a clip needs, at most."""
        return 40 * samples


@dataclass(frozen=True)
class Reconstruction:
    """How badly a machine's autoencoder reconstructs a clip.

    Args:
      kind: the mean squared error, or the Mahalanobis square of the mean residual: the smaller of
        those by the covariances of source and target ("selective Mahalanobis").
    """

    kind: Literal["mse", "mahalanobis"] = "mse"

    def __post_init__(self):
        check(self)

    def fit(self, train: Sequence[Embeddings], note: Callable[[str], object]) -> tuple:
        """Return what scores clips, and the scores of the training clips, as other scorers do.

        The autoencoder was trained on the training clips: their scores are not left out, as in the
        baseline.
        """
        column = slice(0, 1) if self.kind == "mse" else slice(1, 3)

        def score(test: Sequence[Embeddings]) -> list[np.ndarray]:
            return [own.values[:, column].min(1) for own in test]

        return score, lambda: score(train)


# Log-mel


def frame_count(samples):
    """Return the frames of a clip of `samples` (int or integer array)."""
    return 1 + samples // HOP_SAMPLES


@jax.jit
def log_mel(wave, lengths=None):
    """Compute mel power in dB, not normalized.

    Args:
      wave: `[B, N]` float32 in [-1, 1] or int16, 16 kHz.
      lengths: `[B]` valid samples of each clip. Later samples are ignored, and frames from
        `frame_count(lengths)` on are 0, so each row equals the clip alone, followed by zeros.

    Returns:
      `[B, T, 128]` float32, T = `frame_count(N)`; silence is 10 log10(2.2e-16) = -156.5. librosa's
      differ by rounding alone: less than 1e-4 dB on recordings, 1e-3 dB in bands down to 70 dB
      below a pure tone; what lies far below that is the FFT's rounding error in both.

    Source: `melspectrogram(n_fft=1024, hop_length=512, power=2.0, n_mels=128)` of librosa >= 0.10,
      which centers each frame on its sample and puts zeros before and after a clip.
    """
    wave = to_float(wave)
    if lengths is not None:
        wave = jnp.where(jnp.arange(wave.shape[-1])[None] < lengths[:, None], wave, 0.0)
    # On a CPU two clips at a time, so that their frames and spectra stay in the cache.
    mel = jax.lax.platform_dependent(
        wave,
        cpu=partial(jax.lax.map, _log_mel_of_one, batch_size=2),
        default=jax.vmap(_log_mel_of_one),
    )
    if lengths is None:
        return mel
    inside = jnp.arange(mel.shape[1])[None] < frame_count(lengths)[:, None]
    return jnp.where(inside[..., None], mel, 0.0)


@jax.jit
def clip_log_mel(wave, lengths):
    """Return `log_mel` of clips without their mean, which the official baseline leaves in."""
    return log_mel(without_offset(wave, lengths), lengths)


def _log_mel_of_one(wave):
    """Compute `[T, 128]` from `[N]`."""
    after = frame_count(len(wave)) * HOP_SAMPLES - len(wave)
    hops = jnp.pad(wave, (HOP_SAMPLES, after)).reshape(-1, HOP_SAMPLES)
    window = np.hanning(FFT_SAMPLES + 1)[:-1].astype(np.float32)  # periodic
    spectrum = jnp.fft.rfft(jnp.concatenate([hops[:-1], hops[1:]], -1) * window[None])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.matmul(power, mel_filters(), precision=HIGHEST)
    return 10.0 * jnp.log10(jnp.maximum(mel, FLOOR))


@lru_cache
def mel_filters() -> np.ndarray:
    """Return triangles `[513, 128]` float32 on Slaney's mel scale, of equal area in Hz."""
    from librosa import filters  # takes a second or more

    bank = filters.mel(sr=RATE_HZ, n_fft=FFT_SAMPLES, n_mels=BANDS, dtype=np.float64)
    return bank.T.astype(np.float32)


# The autoencoder


def initialize(key: jax.Array) -> tuple[Params, Params]:
    """Return trainable weights and statistics; a dense layer's are uniform, ± 1 / sqrt(inputs)."""
    trainable, statistics = {}, {}
    for i, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        bound = 1 / math.sqrt(inputs)
        for j, (name, shape) in enumerate([("kernel", (inputs, outputs)), ("bias", (outputs,))]):
            own = jax.random.fold_in(key, 2 * i + j)
            drawn = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
            trainable[f"layers.{i}.{name}"] = drawn
        if i < LAST:
            trainable[f"norms.{i}.scale"] = jnp.ones(outputs)
            trainable[f"norms.{i}.bias"] = jnp.zeros(outputs)
            statistics[f"norms.{i}.mean"] = jnp.zeros(outputs)
            statistics[f"norms.{i}.variance"] = jnp.ones(outputs)
    return trainable, statistics


def reconstruct(weights: Params, x):
    """Return `[B, 640]` from vectors `[B, 640]`, normalized by the running statistics.

    Args:
      weights: trainable weights and statistics.
    """
    for i in range(LAST):
        mean, variance = weights[f"norms.{i}.mean"], weights[f"norms.{i}.variance"]
        x = _norm_relu(weights, i, _dense(weights, i, x) - mean[None], variance)
    return _dense(weights, LAST, x)


def reconstruct_training(weights: Params, x, valid):
    """Return `[B, 640]`, normalized by the statistics of this batch, and updated running ones.

    Args:
      weights: trainable weights and statistics.
      x: `[B, 640]` vectors.
      valid: `[B]` float, 1 for a vector and 0 for a row that fills a short batch; two or more
        vectors. The running variance is unbiased (n - 1), that of the batch is not: as PyTorch's.
    """
    count, updated = valid.sum(), {}
    for i in range(LAST):
        x = _dense(weights, i, x)
        mean = (valid[:, None] * x).sum(0) / count
        deviation = x - mean[None]
        variance = (valid[:, None] * jnp.square(deviation)).sum(0) / count
        batch = {"mean": mean, "variance": variance * count / (count - 1)}
        for name, value in batch.items():
            old = weights[f"norms.{i}.{name}"]
            updated[f"norms.{i}.{name}"] = (1 - MOMENTUM) * old + MOMENTUM * value
        x = _norm_relu(weights, i, deviation, variance)
    return _dense(weights, LAST, x), updated


def _dense(weights: Params, i: int, x):
    product = jnp.matmul(x, weights[f"layers.{i}.kernel"], precision=HIGHEST)
    return product + weights[f"layers.{i}.bias"][None]


def _norm_relu(weights: Params, i: int, deviation, variance):
    """Scale deviations from the mean to variance 1, then learned scale and bias; ReLU."""
    factor = weights[f"norms.{i}.scale"] * jax.lax.rsqrt(variance + EPSILON)
    return jax.nn.relu(deviation * factor[None] + weights[f"norms.{i}.bias"][None])


# Mahalanobis


def mean_residual(residual, count):
    """Return the mean square `[]` and the mean row `[128]` of `count` vectors `[B, 640]`, others 0.

    Each vector has five rows, one per frame.
    """
    error = jnp.square(residual).sum() / (count * WIDTHS[0])
    return error, residual.reshape(-1, BANDS).sum(0) / (count * FRAMES)


def scatter(residual, weight):
    """Return `[128, 128]`: the sum of products of residual rows, centered by their own mean.

    Args:
      residual: `[B, 640]`, five rows in each.
      weight: `[B]` float, 1 for those that count. Centering within a batch is the baseline's.
    """
    rows, weight = residual.reshape(-1, BANDS), jnp.repeat(weight, FRAMES)[:, None]
    mean = (weight * rows).sum(0) / jnp.maximum(weight.sum(), 1.0)
    centered = weight * (rows - mean[None])
    return jnp.matmul(centered.T, centered, precision=HIGHEST)


def precision_of(total: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Return the inverse `[128, 128]` float32 of a covariance, and the ridge that was added to it.

    Args:
      total: `[128, 128]`, the sum of `scatter` over batches.
      count: of *vectors*, by which (less 1) the baseline divides, though each has five rows.

    Returns:
      The ridge is 0 unless the covariance is singular (few clips, silent bands); it is then what
      lifts the smallest eigenvalue to `SINGULAR` times the largest. The baseline has none: it would
      stop, or score rounding errors. The inverse is taken in float64, the baseline's in float32.
    """
    covariance = np.asarray(total, np.float64) / max(count - 1, 1)
    smallest, *_, largest = np.linalg.eigvalsh(covariance)
    ridge = max((SINGULAR * largest if largest > 0 else 1.0) - smallest, 0.0)
    return np.linalg.inv(covariance + ridge * np.eye(BANDS)).astype(np.float32), ridge


def mahalanobis(row, precision):
    """Return `[...]`: the Mahalanobis square of mean residual rows `[..., 128]`.

    The baseline takes the mean of *all* entries of D P D^T, D being the residual rows of a clip:
    with the mean row r that is r P r^T, not the mean square of the rows' distances (the diagonal).

    Args:
      precision: `[128, 128]`, of `precision_of`.
    """
    return (jnp.matmul(row, precision, precision=HIGHEST) * row).sum(-1)


# Scores of a clip


def vectors(mel):
    """Return `[T - 4, 640]` from `[T, 128]`: each frame with the four that follow it."""
    count = mel.shape[0] - FRAMES + 1
    return jnp.concatenate([mel[i : i + count] for i in range(FRAMES)], -1)


def score_frames(weights: Params, mel, frames):
    """Return `[3]`, as `Autoencoder` says.

    Args:
      weights: of one machine: trainable weights, statistics, `precision.source` and
        `precision.target`.
      mel: `[T, 128]`, T >= 5.
      frames: `[]` int, how many of them are the clip's, 5 or more.
    """
    x, count = vectors(mel), frames - FRAMES + 1
    inside = (jnp.arange(len(x)) < count)[:, None]
    error, row = mean_residual(jnp.where(inside, x - reconstruct(weights, x), 0.0), count)
    precisions = weights["precision.source"], weights["precision.target"]
    return jnp.stack([error, *(mahalanobis(row, precision) for precision in precisions)])


def score_clips(weights: Params, wave, lengths=None):
    """Return `[B, 3]`, as `Autoencoder` says.

    Args:
      weights: as for `score_frames`.
      wave: `[B, N]` float32 in [-1, 1] or int16, 16 kHz.
      lengths: `[B]` valid samples, `SHORTEST_SAMPLES` or more; None: all.
    """
    if lengths is None:
        lengths = jnp.full(wave.shape[0], wave.shape[1], jnp.int32)
    mel = clip_log_mel(wave, lengths)
    return jax.vmap(partial(score_frames, weights))(mel, frame_count(lengths))


def name_of(group: tuple[str, str]) -> str:
    """Return what the names of the weights of a machine and section begin with."""
    return "_".join(group)


def make_embedder(trained: Params) -> Embedder:
    """Return the embedder that scores each clip by the autoencoder of its machine.

    Args:
      trained: the model file's; names begin with `<machine>_<section>.`.
    """
    kept = {name: value for name, value in trained.items() if ".batches." not in name}

    def select(params: Params, group: tuple[str, str]) -> Params:
        begin = name_of(group) + "."
        return {n.removeprefix(begin): value for n, value in params.items() if n.startswith(begin)}

    return Embedder(kept, score_clips, select)
