"""BEATs in plain PyTorch, from asdjax weights: the peer of the benchmark, and a parity check.

Covers the published structure (norm after each sum, GELU, gated relative bias). Everything that
does not depend on the input (weight norm, relative bias of a length) is computed once, outside
the timed call; attention is `scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch_parts import patches

from asdjax.models.beats import BeatsConfig
from asdjax.models.transformer import relative_bucket


def torch_beats(
    config: BeatsConfig, params: Mapping[str, np.ndarray], device: str = "cpu"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `forward(mel [B, T, 128]) -> tokens [B, L, D]`.

    Args:
        params: the flat names of `asdjax.models.beats.Beats`.
    """
    weights = {name: _tensor(name, value, device) for name, value in params.items()}
    kernel = _position_kernel(weights)
    biases: dict[int, torch.Tensor] = {}

    def forward(mel: torch.Tensor) -> torch.Tensor:
        x = patches(mel, config.input_patch_size)
        x = _norm(weights, "patch_norm", _linear(weights, "patch_embed", x))
        if "proj.kernel" in weights:
            x = _linear(weights, "proj", x)
        x = _norm(weights, "norm", x + _positions(weights, kernel, config, x))
        tokens = x.shape[1]
        if tokens not in biases:
            biases[tokens] = _relative_bias(weights, config, tokens)
        for layer in range(config.encoder_layers):
            x = _layer(weights, f"layers.{layer}", config, x, biases[tokens])
        return x

    return forward


def _tensor(name: str, value: np.ndarray, device: str) -> torch.Tensor:
    """Return the array in PyTorch's layout: linear weights as (out, in)."""
    value = np.array(value, np.float32)
    return torch.from_numpy(value.T.copy() if name.endswith(".kernel") else value).to(device)


def _linear(weights, name, x):
    return F.linear(x, weights[f"{name}.kernel"], weights.get(f"{name}.bias"))


def _norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.scale"], weights[f"{name}.bias"], 1e-5)


def _position_kernel(weights):
    direction = weights["pos_conv.direction"]  # [K, D / groups, D]
    kernel = weights["pos_conv.gain"][:, None, None] * direction
    return (kernel / direction.norm(dim=(1, 2), keepdim=True)).permute(2, 1, 0).contiguous()


def _positions(weights, kernel, config, x):
    y = F.conv1d(
        x.transpose(1, 2),
        kernel,
        weights["pos_conv.bias"],
        padding=config.conv_pos // 2,
        groups=config.conv_pos_groups,
    )
    return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


def _relative_bias(weights, config, tokens):
    offset = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    bucket = relative_bucket(offset, config.num_buckets, config.max_distance)
    return weights["relative_bias"][torch.from_numpy(bucket)].permute(2, 0, 1).contiguous()


def _layer(weights, name, config, x, bias):
    alpha = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0
    attended = _attention(weights, f"{name}.attn", config, x, bias)
    x = _norm(weights, f"{name}.attn_norm", alpha * x + attended)
    hidden = F.gelu(_linear(weights, f"{name}.fc1", x))
    return _norm(weights, f"{name}.ffn_norm", alpha * x + _linear(weights, f"{name}.fc2", hidden))


def _attention(weights, name, config, x, bias):
    batch, tokens, width = x.shape
    q, k, v = (
        _linear(weights, f"{name}.{part}", x)
        .view(batch, tokens, config.encoder_attention_heads, -1)
        .transpose(1, 2)
        for part in "qkv"
    )
    parts = _linear(weights, f"{name}.gate", q).unflatten(-1, (2, 4)).sum(-1).sigmoid()
    scale = weights[f"{name}.gate_scale"][None, :, None]
    gate = parts[..., 0] * (parts[..., 1] * scale - 1) + 2
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=gate[..., None] * bias)
    return _linear(weights, f"{name}.out", y.transpose(1, 2).reshape(batch, tokens, width))
