"""Write `finetune_eat.npz`: losses and gradients of EAT with adapters, computed by PyTorch alone.

    python tests/golden/make_finetune_eat.py

As `make_finetune.py`, which has pooling, losses and the steps; here is what EAT (Chen et al. 2024)
has of its own: front end, model, adapters beside a joint layer for q, k and v, and Adam.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from make_finetune import (
    HERE,
    LABEL,
    LEARNING_RATE,
    LENGTHS,
    SEED,
    Weights,
    adapter,
    context,
    linear,
    log_mel,
    lora_weights,
    pooling_weights,
    run,
    start,
    waves,
    with_centers,
)

IMAGE = "modality_encoders.IMAGE"


def frames(samples: int) -> int:
    """Return the frames of a clip, rounded up to a multiple of 32."""
    return math.ceil((1 + (samples - 400) // 160) / 32) * 32


def normalized_mel(wave: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Return `[B, T, 128]` from samples in [-1, 1] `[B, N]`: each clip alone, then zeros."""
    hann = torch.hann_window(400, periodic=False, dtype=wave.dtype)
    rows = []
    for row, length in zip(wave, lengths, strict=True):
        clip = row[:length]
        mel = log_mel(clip - clip.mean(), hann)
        rows.append(F.pad(mel, (0, 0, 0, frames(wave.shape[1]) - len(mel))))
    return (torch.stack(rows) + 4.268) / (2 * 4.569)


def eat(cfg: dict, w: Weights, mel: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Return the class token and the patches `[B, 1 + n, D]`; `padding [B, n]` of the patches."""
    patches = F.conv2d(
        mel[:, None],
        w[f"{IMAGE}.local_encoder.proj.weight"],
        w[f"{IMAGE}.local_encoder.proj.bias"],
        stride=16,
    )
    x = patches.flatten(2).mT
    x = x + w[f"{IMAGE}.fixed_positional_encoder.positions"][:, : x.shape[1]]
    x = torch.cat([w[f"{IMAGE}.extra_tokens"].expand(len(x), -1, -1), x], 1)
    x = norm(w, f"{IMAGE}.context_encoder.norm", x)
    seen = None if padding is None else F.pad(~padding, (1, 0), value=True)[:, None, None]
    for i in range(cfg["depth"]):
        name = f"blocks.{i}"
        x = norm(w, f"{name}.norm1", x + attention(w, f"{name}.attn", cfg["num_heads"], x, seen))
        y = linear(w, f"{name}.mlp.fc2", F.gelu(linear(w, f"{name}.mlp.fc1", x)))
        x = norm(w, f"{name}.norm2", x + y)
    return x


def norm(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def attention(w: Weights, name: str, heads: int, x: torch.Tensor, seen) -> torch.Tensor:
    q, k, v = linear(w, f"{name}.qkv", x).chunk(3, -1)
    q, v = q + adapter(w, f"{name}.q", x), v + adapter(w, f"{name}.v", x)
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return linear(w, f"{name}.proj", y) + adapter(w, f"{name}.out", y)


def main() -> None:
    torch.set_num_threads(1)
    checkpoint = torch.load(HERE / "eat_tiny.pt", weights_only=True)
    cfg = checkpoint["cfg"]["model"]
    base = {n: x for n, x in checkpoint["model"].items() if n != "_ema" and "decoder" not in n}
    stored = {name: torch.tensor(x) for name, x in np.load(HERE / "eat_tiny.npz").items()}
    model = partial(eat, cfg)
    mel, mask = stored["input"][:, 0], stored["tokenmask_padding_mask"]
    assert (model(base, mel, None) - stored["x"]).abs().max() < 1e-5
    assert (model(base, mel, mask) - stored["tokenmask_x"]).abs().max() < 1e-5
    again = normalized_mel(stored["wave_a"][None].double(), (len(stored["wave_a"]),))
    assert (again - mel[:1]).abs().max() < 1e-4

    def patches(w: Weights, mel: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        return model(w, mel, padding)[:, 1:]

    wave = waves()
    sound, samples, width = torch.tensor(wave).double() / 32_768, wave.shape[1], cfg["embed_dim"]
    whole = normalized_mel(sound, (samples,) * len(wave)).float()
    alone = normalized_mel(sound, LENGTHS).float()
    ends = torch.tensor([frames(length) // 16 * 8 for length in LENGTHS])
    padding = torch.arange(frames(samples) // 16 * 8) >= ends[:, None]
    targets = [f"blocks.{i}.attn.{part}" for i in range(cfg["depth"]) for part in ("q", "v", "out")]
    lora = lora_weights(targets, width)
    rng = np.random.default_rng(SEED)
    pooling = pooling_weights(rng, width)
    # Tokens of EAT have much in common, so that a hidden unit is on for all of them or for none.
    # Then the loss does not depend on its bias, which Adam would move by the sign of the rounding.
    tokens = patches(base | lora, whole, None)
    sums = context(tokens, torch.ones(tokens.shape[:2])).double() @ pooling["pool.kernel"]
    pooling["pool.bias"] = -sums.flatten(0, 1).quantile(0.5, 0)
    head = with_centers(rng, pooling, base | lora, patches, whole)
    written = {
        "wave": wave,
        "lengths": np.array(LENGTHS, np.int32),
        "label": np.array(LABEL, np.int32),
    }
    cases = {
        "lora": (base, lora | head, whole, None),
        "masked": (base, lora | head, alone, padding),
    }

    def adam(trained: Weights) -> torch.optim.Optimizer:
        return torch.optim.Adam(trained.values(), LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)

    written |= start(head | lora) | run(cases, patches, adam)
    np.savez_compressed(HERE / "finetune_eat.npz", **written)


if __name__ == "__main__":
    main()
