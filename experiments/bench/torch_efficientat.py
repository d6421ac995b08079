"""EfficientAT in plain PyTorch, from asdjax weights: the peer of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from asdjax.models.efficientat import EPSILON, BlockSizes, EfficientATConfig


def torch_efficientat(
    config: EfficientATConfig, params: Mapping[str, np.ndarray], device: str = "cpu"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `forward(mel [B, T, 128]) -> tokens [B, L, D]`, L time-major.

    Args:
        params: the flat names of `asdjax.models.efficientat.EfficientAT`.
    """
    weights = {name: _tensor(value, device) for name, value in params.items()}

    def convolution(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        kernel = weights[f"{name}.kernel"]
        groups = 1 if kernel.shape[1] == x.shape[1] else x.shape[1]
        y = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
        fixed = (weights[f"{name}.{part}"] for part in ("mean", "var", "scale", "bias"))
        return F.batch_norm(y, *fixed, training=False, eps=EPSILON)

    def block(name: str, sizes: BlockSizes, x: torch.Tensor) -> torch.Tensor:
        activation = F.hardswish if sizes.hard_swish else F.relu
        y = activation(convolution(f"{name}.expand", x)) if sizes.hidden != sizes.inputs else x
        y = activation(convolution(f"{name}.depthwise", y, sizes.stride))
        if sizes.squeeze:
            hidden = F.relu(linear(f"{name}.fc1", y.mean((2, 3))))
            y = y * linear(f"{name}.fc2", hidden).sigmoid()[..., None, None]
        y = convolution(f"{name}.project", y)
        return x + y if x.shape == y.shape and sizes.stride == 1 else y

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.kernel"][..., 0, 0], weights[f"{name}.bias"])

    def forward(mel: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(convolution("stem", mel[:, None], 2))
        for number, sizes in enumerate(config.blocks):
            x = block(f"blocks.{number}", sizes, x)
        x = F.hardswish(convolution("last", x))
        return x.permute(0, 2, 3, 1).flatten(1, 2)

    return forward


def _tensor(value: np.ndarray, device: str) -> torch.Tensor:
    """Return the array in PyTorch's layout: kernels as (out, in of a group, taps, taps)."""
    value = torch.from_numpy(np.array(value, np.float32)).to(device)
    if value.ndim == 3:
        return value.permute(2, 0, 1)[:, None].contiguous()
    return value.T[..., None, None].contiguous() if value.ndim == 2 else value
