"""Write `autoencoder.npz`: ten steps of the baseline's training and its scores, by PyTorch alone.

    python tests/golden/make_autoencoder.py

A second implementation to compare ours with, written from the published description of the official
baseline: layers, batch norm and Adam are PyTorch's own, the Mahalanobis score is the mean over the
full N x N matrix. It imports nothing of asdjax. All values are of a float64 computation; the
deviation of the losses in float32 is printed. Frames and initial weights are drawn by numpy
(`draw`), their sums are stored.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
WIDTHS = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)
CLIPS, FRAMES, TARGET = 4, 200, 3  # the last clip is of the target domain
BATCH, VECTORS = 64, 596  # ten batches, the last of 20


def draw() -> tuple[np.ndarray, list[np.ndarray]]:
    """Return log-mel frames `[4, 200, 128]` and kernel `[in, out]` and bias of each layer."""
    rng = np.random.default_rng(5)
    mel = rng.uniform(-50, -30, (CLIPS, 1, 128)) + 5 * rng.standard_normal((CLIPS, FRAMES, 128))
    bounds = [(i, o, 1 / np.sqrt(i)) for i, o in pairwise(WIDTHS)]
    shapes = [(shape, bound) for i, o, bound in bounds for shape in ((i, o), (o,))]
    return mel, [rng.uniform(-bound, bound, shape) for shape, bound in shapes]


def network(values: list[np.ndarray], dtype: torch.dtype) -> nn.Sequential:
    parts: list[nn.Module] = []
    for kernel, bias in zip(values[::2], values[1::2], strict=True):
        dense = nn.Linear(*kernel.shape).to(dtype)
        dense.weight.data, dense.bias.data = (
            torch.tensor(kernel.T).to(dtype),
            torch.tensor(bias).to(dtype),
        )
        parts += [dense, nn.BatchNorm1d(len(bias), momentum=0.01, eps=1e-3).to(dtype), nn.ReLU()]
    return nn.Sequential(*parts[:-2])


def train(model: nn.Module, x: torch.Tensor) -> list[float]:
    """Return the loss of each of ten steps."""
    adam, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for batch in x.split(BATCH):
        adam.zero_grad()
        loss = nn.functional.mse_loss(model(batch), batch)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def covariance(model: nn.Module, batches: list[torch.Tensor]) -> torch.Tensor:
    """Return the sum of products of rows, centered in each batch, over the vectors less one."""
    total, count = torch.zeros(128, 128, dtype=torch.float64), 0
    for x in batches:
        rows = (x - model(x)).reshape(-1, 128)
        centered = rows - rows.mean(0)
        total, count = total + centered.T @ centered, count + len(x)
    return total / (count - 1)


@torch.no_grad()
def score(model: nn.Module, x: torch.Tensor, precision: torch.Tensor) -> tuple[float, float]:
    """Return the mean squared error of a clip and the mean of all entries of D P D^T."""
    difference = x - model(x)
    rows = difference.reshape(-1, 128)
    return difference.square().mean().item(), (rows @ precision @ rows.T).mean().item()


def main() -> None:
    mel, values = draw()
    clips = [torch.tensor(m).unfold(0, 5, 1).transpose(1, 2).reshape(-1, 640) for m in mel]
    order = np.random.default_rng(6).permutation(sum(map(len, clips)))[:VECTORS]
    x = torch.cat(clips)[order]
    target = torch.arange(CLIPS).repeat_interleave(len(clips[0]))[order] == TARGET
    model = network(values, torch.float64)
    losses = train(model, x)
    low = train(network(values, torch.float32), x.float())
    print("float32 losses deviate by", np.abs(np.array(low) / losses - 1).max())
    model.eval()
    precisions, diagonals = [], []
    for own in (~target, target):
        pairs = zip(x.split(BATCH), own.split(BATCH), strict=True)
        found = covariance(model, [batch[rows] for batch, rows in pairs])
        precisions.append(torch.inverse(found))
        diagonals.append(found.diag().numpy())
        print("condition", torch.linalg.cond(found).item())
    norms = [part for part in model if isinstance(part, nn.BatchNorm1d)]
    arrays = {
        "drawn": [mel.sum(), *(value.sum() for value in values)],
        "order": order,
        "losses": losses,
        "mean": torch.cat([norm.running_mean for norm in norms]),
        "variance": torch.cat([norm.running_var for norm in norms]),
        "covariance_diagonals": diagonals,
        "scores": [[score(model, x, p) for p in precisions] for x in clips],
    }
    np.savez_compressed(HERE / "autoencoder.npz", **arrays)


if __name__ == "__main__":
    main()
