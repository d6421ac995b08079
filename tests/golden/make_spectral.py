"""Write `spectral.npz`: both spectral networks, forward and backward, computed by PyTorch alone.

    python tests/golden/make_spectral.py

A second implementation to compare ours with, written from the tables of Wilkinghoff 2023 (ICASSP),
pre-activation residual blocks (He et al. 2016) and CBAM (Woo et al. 2018). Differentiation, batch
norm, convolution, pooling and FFT are PyTorch's own. It imports nothing of asdjax. `README.md`
names the arrays; values are those of a float64 computation, and the deviation of the same in
float32 is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
EMBEDDING, EPSILON, KEEP = 8, 1e-3, 0.9
CHANNELS_1D, CHANNELS_2D = 3, 2
Weights = dict[str, torch.Tensor]


def waves() -> np.ndarray:
    """Return `[5, 12000]`: the upper 8 bits of 16-bit samples, two tones and noise each."""
    rng = np.random.default_rng(1)
    time = np.arange(12_000) / 16_000
    wave = rng.normal(size=(5, len(time))) * rng.uniform(5, 25, (5, 1))
    for row in wave:
        for hz in rng.uniform(100, 4_000, 2):
            row += rng.uniform(5, 25) * np.sin(2 * np.pi * hz * time**1.1)
    return np.round(wave.clip(-127, 127)).astype(np.int8)


class Statistics:
    """Batch norms of one pass, with running values that start at 0 and 1."""

    def __init__(self, train: bool, running: Weights):
        self.train, self.running = train, running

    def norm(self, w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
        """Normalize `x [B, C, ...]`; the new running variance is the population's."""
        mean, var = self.running[f"{name}.mean"], self.running[f"{name}.var"]
        weights = w[f"{name}.scale"], w[f"{name}.bias"]
        if not self.train:
            return F.batch_norm(x, mean, var, *weights, False, 0.0, EPSILON)
        sample, n = var.clone(), x.numel() / x.shape[1]
        y = F.batch_norm(x, mean, sample, *weights, True, 1 - KEEP, EPSILON)
        self.running[f"{name}.var"] = KEEP * var + (sample - KEEP * var) * (n - 1) / n
        return y


def same(x: torch.Tensor, taps: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad every axis behind the channels so that ceil(n / stride) windows fit."""
    pads = []
    for n in reversed(x.shape[2:]):
        total = max((math.ceil(n / stride) - 1) * stride + taps - n, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def convolve(w: Weights, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    kernel = w[f"{name}.kernel"].movedim((-1, -2), (0, 1))  # stored [..., in, out]
    run = F.conv1d if x.ndim == 3 else F.conv2d
    return run(same(x, kernel.shape[-1], stride), kernel, None, stride)


def cbam(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    axes = tuple(range(2, x.ndim))
    reduce, expand = w[f"{name}.reduce.kernel"], w[f"{name}.expand.kernel"]
    logit = sum((v @ reduce).relu() @ expand for v in (x.mean(axes), x.amax(axes)))
    x = x * logit.sigmoid()[(...,) + (None,) * len(axes)]
    seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return x * convolve(w, f"{name}.place", seen).sigmoid()


def conv_net(w: Weights, stats: Statistics, wave: torch.Tensor) -> torch.Tensor:
    """Return `[B, E]` of unit length from waves."""
    x = wave[:, None]
    for i, stride in enumerate((64, 32, 4)):
        x = cbam(w, f"gates.{i}", convolve(w, f"convolutions.{i}", x, stride).relu())
    x = x.movedim(1, -1).flatten(1)
    for i in range(4):
        x = stats.norm(w, f"norms.{i}", x @ w[f"dense.{i}.kernel"]).relu()
    return F.normalize(x @ w["project.kernel"])


def spectrogram(wave: torch.Tensor) -> torch.Tensor:
    """Return `[B, T, 500]`: magnitudes of 203 to 8,000 Hz without their mean over time."""
    frames = wave.unfold(1, 1024, 512) * torch.hann_window(1024, dtype=wave.dtype)
    magnitude = torch.fft.rfft(frames).abs()[..., 13:]
    return magnitude - magnitude.mean(1, keepdim=True)


def res_net(w: Weights, stats: Statistics, wave: torch.Tensor) -> torch.Tensor:
    """Return `[B, E]` from waves, with one block in each of four stages."""
    x = stats.norm(w, "input_norm", spectrogram(wave).mT).mT[:, None]
    x = stats.norm(w, "stem_norm", convolve(w, "stem", x, 2)).relu()
    x = F.max_pool2d(x, 3, 2)
    for block in range(4):
        x = residual(w, f"blocks.{block}", stats, x, 2 if block else 1)
    x = F.max_pool2d(x, (x.shape[2], 1))  # at most 10 frames are left
    return stats.norm(w, "norm", x.permute(0, 2, 3, 1).flatten(1)) @ w["project.kernel"]


def residual(w: Weights, name: str, stats: Statistics, x: torch.Tensor, stride: int):
    y = convolve(w, f"{name}.conv1", stats.norm(w, f"{name}.norm1", x).relu(), stride)
    y = convolve(w, f"{name}.conv2", stats.norm(w, f"{name}.norm2", y).relu())
    y = cbam(w, f"{name}.gate", y)
    if stride == 1:
        return x + y
    return convolve(w, f"{name}.shortcut", F.max_pool2d(same(x, 2, 2, -math.inf), 2)) + y


def shapes_1d(places: int) -> dict[str, tuple[int, ...]]:
    """Return our names and shapes; `places` are left behind the convolutions."""
    c, shapes = CHANNELS_1D, {}
    for i, (taps, inputs) in enumerate(((256, 1), (64, c), (16, c))):
        shapes[f"convolutions.{i}.kernel"] = taps, inputs, c
        shapes |= shapes_cbam(f"gates.{i}", c, (7,))
    for i in range(4):
        shapes[f"dense.{i}.kernel"] = (128 if i else places * c), 128
        shapes |= shapes_norm(f"norms.{i}", 128)
    return shapes | {"project.kernel": (128, EMBEDDING)}


def shapes_2d(places: int) -> dict[str, tuple[int, ...]]:
    inputs = CHANNELS_2D
    shapes = {"stem.kernel": (7, 7, 1, inputs)}
    shapes |= shapes_norm("input_norm", 500) | shapes_norm("stem_norm", inputs)
    for block in range(4):
        name, outputs = f"blocks.{block}", CHANNELS_2D << block
        shapes |= shapes_norm(f"{name}.norm1", inputs) | shapes_norm(f"{name}.norm2", outputs)
        shapes[f"{name}.conv1.kernel"] = 3, 3, inputs, outputs
        shapes[f"{name}.conv2.kernel"] = 3, 3, outputs, outputs
        shapes |= shapes_cbam(f"{name}.gate", outputs, (7, 7))
        if inputs != outputs:
            shapes[f"{name}.shortcut.kernel"] = 1, 1, inputs, outputs
        inputs = outputs
    flat = places * inputs
    return shapes | shapes_norm("norm", flat) | {"project.kernel": (flat, EMBEDDING)}


def shapes_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.scale": (width,), f"{name}.bias": (width,)}


def shapes_cbam(name: str, channels: int, taps: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.reduce.kernel": (channels, 1),
        f"{name}.expand.kernel": (1, channels),
        f"{name}.place.kernel": (*taps, 2, 1),
    }


def start(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Return random multiples of 1 / 64, which float16 holds exactly."""
    rng, w = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        value = rng.normal(size=shape)
        if name.endswith("scale"):
            value = 1 + 0.3 * value
        elif name.endswith("bias"):
            value *= 0.3
        else:
            value *= (2 / math.prod(shape[:-1])) ** 0.5
            value *= 4 if "convolutions" in name else 1  # each is followed by two gates near 1 / 2
        w[name] = torch.tensor(np.round(64 * value) / 64)
    return w


def passes(
    net: Callable, w: Weights, wave: np.ndarray, dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """Return the output in training, its gradient along `direction`, statistics, output in use."""
    w = {name: value.clone().to(dtype).requires_grad_() for name, value in w.items()}
    running = {}
    for name in w:
        if name.endswith(".bias"):
            running[name.replace("bias", "mean")] = torch.zeros_like(w[name]).detach()
            running[name.replace("bias", "var")] = torch.ones_like(w[name]).detach()
    sound = torch.tensor(wave).to(dtype) / 128
    out = net(w, Statistics(True, running), sound)
    (out * torch.tensor(direction()).to(dtype)).sum().backward()
    found = {"train": out, "use": net(w, Statistics(False, running), sound)}
    found |= {f"statistics/{name}": value for name, value in running.items()}
    for name, value in w.items():  # of large arrays every 16th row
        rows = value.grad.reshape(-1, value.shape[-1])
        found[f"grad/{name}"] = rows[::16] if value.numel() > 4096 else value.grad
    return {name: value.detach().float().numpy() for name, value in found.items()}


def direction() -> np.ndarray:
    """Return `[5, E]`: a plain sum has no gradient behind a norm."""
    return np.cos(np.arange(5 * EMBEDDING)).reshape(5, EMBEDDING)


def main() -> None:
    torch.set_num_threads(1)
    wave = waves()
    written = {"wave": wave, "direction": direction().astype(np.float32)}
    # Places left: 12,000 samples / 64 / 32 / 4; 22 frames -> 1, 500 bins -> 16.
    cases = {"conv": (conv_net, start(shapes_1d(2), 2)), "res": (res_net, start(shapes_2d(16), 3))}
    for case, (net, w) in cases.items():
        exact, single = (passes(net, w, wave, x) for x in (torch.float64, torch.float32))
        parts = {
            n: np.abs(single[n] - v).max() / np.abs(v).max()
            for n, v in exact.items()
            if np.abs(v).max() > 1e-12  # the spectrogram has no mean to normalize away
        }
        for kind in ("train", "use", "statistics", "grad"):
            worst = max((n for n in parts if n.startswith(kind)), key=parts.get)
            print(f"{case} {kind}: float32 is off by {parts[worst]:.1e} of the largest ({worst})")
        written |= {f"{case}/start/{n}": v.numpy().astype(np.float16) for n, v in w.items()}
        written |= {f"{case}/{n}": v for n, v in exact.items()}
    np.savez_compressed(HERE / "spectral.npz", **written)


if __name__ == "__main__":
    main()
