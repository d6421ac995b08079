"""A training step of the two spectral branches with CBAM in PyTorch: a peer to time.

Written as a careful user of PyTorch would: modules, the two-dimensional branch channels last, fused
Adam, the whole batch in every operation. It starts from the weights of `spectral.initial`, so both
sides have the same losses. float32 (TF32 on a CUDA device, as JAX by default).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from finetune import inputs
from spectral import CLASSES, LEARNING_RATE, SCALE, initial
from torch import nn

CHANNELS = 16, 32, 64, 128


def step(compiled: bool, batch: int, device: str) -> Callable[[], float]:
    """Return a function that does one training step on the same batch and returns its loss.

    Args:
        compiled: through `torch.compile` (not the front ends: it generates no complex numbers).
        device: "cpu" or "cuda".
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = load().to(device)
    wave, label = (torch.from_numpy(x).to(device) for x in inputs(batch))
    window = torch.hann_window(1024, device=device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def loss(spectrum: torch.Tensor, spectrogram: torch.Tensor) -> torch.Tensor:
        cosine = F.linear(
            F.normalize(model(spectrum, spectrogram)), F.normalize(model.heads[0].centers[:, 0])
        )
        return F.cross_entropy(SCALE * cosine, label)

    forward = torch.compile(loss) if compiled else loss

    def one() -> float:
        optimizer.zero_grad()
        value = forward(*hear(wave, window))
        value.backward()
        optimizer.step()
        return value.item()

    return one


@torch.no_grad()
def hear(wave: torch.Tensor, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the magnitude spectrum `[B, N / 2]` and the spectrogram `[B, T, 500]`."""
    wave = wave.float() / 32_768
    frames = wave.unfold(1, 1024, 512) * window
    magnitude = torch.fft.rfft(frames).abs()[..., 13:]
    magnitude = magnitude - magnitude.mean(1, keepdim=True)
    return torch.fft.rfft(wave).abs()[:, :-1], magnitude


def load() -> nn.Module:
    """Return the model with our weights."""
    model, weights = Dual(), {}
    for name, value in initial()[1].items():
        layer, _, last = name.replace("network.", "").rpartition(".")
        if last == "kernel":  # ours are [..., in, out]
            value, last = np.moveaxis(value, (-1, -2), (0, 1)), "weight"
        weights[f"{layer}.{last}".replace("scale", "weight").removeprefix(".")] = torch.tensor(
            value
        )
    found = model.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys, found
    assert all("running" in n or "num_batches" in n for n in found.missing_keys), found
    model.branches[1].to(memory_format=torch.channels_last)
    return model.train()


class Dual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([ConvNet1d(), ResNet()])
        self.heads = nn.ModuleList([nn.Module()])
        self.heads[0].centers = nn.Parameter(torch.empty(CLASSES, 1, 256))

    def forward(self, spectrum, spectrogram):
        return torch.cat([self.branches[0](spectrum), self.branches[1](spectrogram)], 1)


def norm(width: int, kind: type = nn.BatchNorm1d) -> nn.Module:
    return kind(width, eps=1e-3, momentum=0.1)


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


class ConvNet1d(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = (1, 256, 64), (128, 64, 32), (128, 16, 4)
        self.pads = 96, 31, 6  # of 80,000, 1,250 and 40 points
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inputs, 128, taps, stride, bias=False) for inputs, taps, stride in shapes
        )
        self.gates = nn.ModuleList(Cbam(128, nn.Conv1d) for _ in shapes)
        self.dense = nn.ModuleList(linear(n, 128) for n in (1280, 128, 128, 128))
        self.norms = nn.ModuleList(norm(128) for _ in self.dense)
        self.project = linear(128, 128)

    def forward(self, x):
        x = x[:, None]
        for pad, convolution, gate in zip(self.pads, self.convolutions, self.gates, strict=True):
            x = gate(F.conv1d(x, convolution.weight, None, convolution.stride, pad).relu())
        x = x.mT.flatten(1)  # our order of places and channels
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = norm(dense(x)).relu()
        return self.project(x)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_norm = norm(500)
        self.stem = nn.Conv2d(1, 16, 7, 2, bias=False)
        self.stem_norm = norm(16, nn.BatchNorm2d)
        self.blocks = nn.ModuleList()
        inputs = 16
        for outputs in CHANNELS:
            self.blocks.append(Residual(inputs, outputs))
            self.blocks.append(Residual(outputs, outputs))
            inputs = outputs
        self.norm = norm(2048)
        self.project = linear(2048, 128)

    def forward(self, x):
        x = self.input_norm(x.mT).mT[:, None].contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(self.stem_norm(same(self.stem, x)).relu(), 3, 2)
        for block in self.blocks:
            x = block(x)
        x = F.max_pool2d(x, (10, 1))
        return self.project(self.norm(x.permute(0, 2, 3, 1).flatten(1)))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        grows = inputs != outputs
        self.norm1, self.norm2 = (norm(n, nn.BatchNorm2d) for n in (inputs, outputs))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if grows else 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, bias=False)
        self.gate = Cbam(outputs, nn.Conv2d)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if grows else None

    def forward(self, x):
        y = same(self.conv1, self.norm1(x).relu())
        y = self.gate(same(self.conv2, self.norm2(y).relu()))
        if self.shortcut is None:
            return x + y
        return self.shortcut(F.max_pool2d(x, 2, ceil_mode=True)) + y


def same(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Pad as TensorFlow: ceil(n / stride) outputs, an odd place of padding behind."""
    taps, stride = layer.kernel_size[0], layer.stride[0]
    height, width = (max((-(-n // stride) - 1) * stride + taps - n, 0) for n in x.shape[2:])
    if height % 2 or width % 2:  # no layer pads two sides differently
        x = F.pad(x, (width // 2, (width + 1) // 2, height // 2, (height + 1) // 2))
        height = width = 0
    return F.conv2d(x, layer.weight, None, layer.stride, (height // 2, width // 2))


class Cbam(nn.Module):
    def __init__(self, channels: int, convolution: type):
        super().__init__()
        hidden = max(channels // 16, 1)
        self.reduce, self.expand = linear(channels, hidden), linear(hidden, channels)
        self.place = convolution(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        axes = tuple(range(2, x.ndim))
        pooled = x.mean(axes), x.amax(axes)
        gate = sum(self.expand(self.reduce(p).relu()) for p in pooled).sigmoid()
        x = x * gate.reshape(*gate.shape, *[1] * len(axes))
        return x * self.place(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()
