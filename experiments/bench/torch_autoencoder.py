"""The peer of `autoencoders.py`: the same training steps of one machine in PyTorch, eager.

Trains once to warm up, describes itself in a line, and prints the seconds of one more call for
every line it reads.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

import numpy as np
import torch
from torch import nn

BATCH, FRAMES = 256, 50_000
WIDTHS = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)


def network() -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        parts += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, momentum=0.01, eps=1e-3)]
        parts.append(nn.ReLU())
    return nn.Sequential(*parts[:-2])


def main() -> None:
    steps = int(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frames = np.random.default_rng(0).normal(-40, 5, (FRAMES, 128)).astype(np.float32)
    vectors = torch.from_numpy(frames).unfold(0, 5, 1).transpose(1, 2).reshape(-1, 640).to(device)
    model = network().to(device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = torch.randperm(BATCH * steps, device=device).split(BATCH)

    def train() -> None:
        for rows in order:
            x = vectors[rows]
            adam.zero_grad()
            nn.functional.mse_loss(model(x), x).backward()
            adam.step()
        if device == "cuda":
            torch.cuda.synchronize()

    train()
    described = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    print(json.dumps(described), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        train()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
