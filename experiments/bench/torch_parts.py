"""What the peers in PyTorch share: names and layouts of weights, patches, adapters."""

from __future__ import annotations

import numpy as np
import torch
from finetune import ADAPTER
from torch import nn


def torch_array(name: str, value: np.ndarray) -> tuple[str, torch.Tensor]:
    """Return PyTorch's name and layout: linear weights (out, in), convolutions (out, in, tap)."""
    layer, _, last = name.removeprefix("branches.0.").rpartition(".")
    if layer == "pool":
        layer = "pool.hidden"
    value = np.array(value)  # its own, to write into
    if last in ("kernel", "direction"):
        value = value.T.copy()
    last = {"kernel": "weight", "scale": "weight"}.get(last, last)
    return f"{layer}.{last}".removeprefix("."), torch.from_numpy(value)


def patches(mel: torch.Tensor, size: int) -> torch.Tensor:
    """Return `[B, n, size * size]` from `[B, T, F]`, by time and then by band."""
    times = mel.shape[1] // size
    grid = mel[:, : times * size].unflatten(1, (times, size)).unflatten(3, (-1, size))
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)


class Adapter(nn.Module):
    """alpha / rank (x A) B."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.lora_a, self.lora_b = factors(inputs, outputs)

    def forward(self, x):
        return low_rank(x, self.lora_a, self.lora_b)


class LoraLinear(nn.Linear):
    """x W + b + alpha / rank (x A) B."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.lora_a, self.lora_b = factors(inputs, outputs)

    def forward(self, x):
        return super().forward(x) + low_rank(x, self.lora_a, self.lora_b)


def factors(inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    shapes = (inputs, ADAPTER.rank), (ADAPTER.rank, outputs)
    return tuple(nn.Parameter(torch.empty(shape)) for shape in shapes)


def low_rank(x, a, b):
    return ADAPTER.alpha / ADAPTER.rank * (x @ a) @ b
