"""The peer of `autoencoders.py`: the same training steps in PyTorch, eager.

On stacked vectors that it only has to index: the organisers' data loader, which collects each batch
vector by vector, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from autoencoders import BATCH, frames
from torch import nn

WIDTHS = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)


def network() -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        parts += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, momentum=0.01, eps=1e-3)]
        parts.append(nn.ReLU())
    return nn.Sequential(*parts[:-2])


def train(machines: int, steps: int, device: str) -> Callable[[], float]:
    """Return a function that trains one machine after the other and returns the last error."""
    vectors = torch.from_numpy(frames()).unfold(0, 5, 1).transpose(1, 2).reshape(-1, 640).to(device)
    order = torch.randperm(BATCH * steps, device=device).split(BATCH)
    models = [network().to(device) for _ in range(machines)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in models]

    def run() -> float:
        for model, adam in zip(models, optimizers, strict=True):
            for rows in order:
                x = vectors[rows]
                adam.zero_grad()
                error = nn.functional.mse_loss(model(x), x)
                error.backward()
                adam.step()
        return error.item()

    return run
