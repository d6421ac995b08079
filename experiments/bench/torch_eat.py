"""EAT in plain PyTorch, from asdjax weights: the peer of the benchmarks, and a parity check.

As the published code has it: one linear layer for q, k and v together; attention is
`scaled_dot_product_attention` without a mask, which has fused kernels on CPUs and GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_parts import Adapter, LoraLinear, patches, torch_array

from asdjax.models.eat import EatConfig


def torch_eat(
    config: EatConfig, params: Mapping[str, np.ndarray], device: str = "cpu"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `forward(mel [B, T, 128]) -> tokens [B, 1 + n, D]`.

    Args:
        params: the flat names of `asdjax.models.eat.Eat`.
    """
    model = Eat(config, adapted=False)
    model.load_state_dict(joined(dict(torch_array(n, x) for n, x in params.items())))
    return model.to(device).eval()


def joined(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights and biases of q, k and v as those of one layer; the rest as it is."""
    state = dict(state)
    for name in [n for n in state if n.endswith(("attn.q.weight", "attn.q.bias"))]:
        layer, _, last = name.rpartition("q.")
        state[f"{layer}qkv.{last}"] = torch.cat([state.pop(f"{layer}{x}.{last}") for x in "qkv"])
    return state


class Eat(nn.Module):
    def __init__(self, config: EatConfig, adapted: bool):
        super().__init__()
        width, patch = config.embed_dim, config.patch_size
        self.patch = patch
        self.patch_embed = nn.Linear(patch * patch, width)
        rows = config.max_length * (128 // patch)
        self.register_buffer("positions", torch.empty(rows, width))
        self.class_token = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width, config.norm_eps)
        self.layers = nn.ModuleList(Block(config, adapted) for _ in range(config.depth))

    def forward(self, mel):
        """Return `[B, 1 + n, D]` from `[B, T, 128]`."""
        x = self.patch_embed(patches(mel, self.patch))
        x = x + self.positions[: x.shape[1]]
        x = self.norm(torch.cat([self.class_token.expand(len(x), 1, -1), x], 1))
        for block in self.layers:
            x = block(x)
        return x


class Block(nn.Module):
    def __init__(self, config: EatConfig, adapted: bool):
        super().__init__()
        width, hidden = config.embed_dim, int(config.mlp_ratio * config.embed_dim)
        norm = partial(nn.LayerNorm, width, config.norm_eps)
        self.attn = Attention(width, config.num_heads, adapted)
        self.attn_norm, self.ffn_norm = norm(), norm()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        x = self.attn_norm(x + self.attn(x))
        return self.ffn_norm(x + self.fc2(F.gelu(self.fc1(x))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, adapted: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = (LoraLinear if adapted else nn.Linear)(width, width)
        self.q = Adapter(width, width) if adapted else None
        self.v = Adapter(width, width) if adapted else None

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.q is not None:
            q, v = q + self.q(x), v + self.v(x)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))
