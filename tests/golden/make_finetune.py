"""Write `finetune.npz`: losses and gradients of fine-tuning, computed by PyTorch alone.

    python tests/golden/make_finetune.py

A second implementation to compare ours with, written from the formulas of the papers: the filter
bank (Kaldi), BEATs (Chen et al. 2023), attentive statistics pooling (Desplanques et al. 2020,
section 3.2), ArcFace (Deng et al. 2019) and LoRA (Hu et al. 2022). Differentiation, batch norm and
AdamW are PyTorch's own. It imports nothing of asdjax. `README.md` names the arrays; the values are
those of a float64 computation, and the deviation of the same in float32 is printed.
`make_finetune_eat.py` does the same for EAT with what stands here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
CLASSES, EMBEDDING, MARGIN, SCALE = 5, 16, 0.5, 30.0
RANK, ALPHA = 4, 8.0
STEPS, LEARNING_RATE, DECAY = 10, 1e-4, 0.01
SEED = 7  # one with which a clip starts beyond pi - margin, where ArcFace changes its formula
LENGTHS, LABEL = (11_200, 10_000, 11_200, 8_000), (0, 3, 3, 1)
Weights = dict[str, torch.Tensor]
# (weights, mel, padding of the tokens or None) -> tokens to pool [B, L, D]
Backbone = Callable[[Weights, torch.Tensor, torch.Tensor | None], torch.Tensor]


def waves() -> np.ndarray:
    """Return `[4, 11200]` int16: two tones and noise each, zeros behind `LENGTHS`."""
    rng = np.random.default_rng(1)
    time = np.arange(max(LENGTHS)) / 16_000
    wave = np.zeros((len(LENGTHS), len(time)))
    for row, length in zip(wave, LENGTHS, strict=True):
        for hz in rng.uniform(100, 4_000, 2):
            row += rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * hz * time)
        row += rng.uniform(0.02, 0.1) * rng.standard_normal(len(time))
        row[length:] = 0
    return np.round(32_767 * wave.clip(-1, 1)).astype(np.int16)


def normalized_mel(wave: torch.Tensor) -> torch.Tensor:
    """Return `[B, T, 128]` from 16-bit samples `[B, N]`: Kaldi's filter bank, scaled for BEATs."""
    hann = torch.hann_window(400, periodic=False, dtype=wave.dtype)
    return (log_mel(wave, hann**0.85) - 15.41663) / (2 * 6.55582)


def without_offset(wave: torch.Tensor) -> torch.Tensor:
    """Return `[B, N]`, each clip without the mean over its length, zeros behind `LENGTHS`."""
    inside = torch.arange(wave.shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    mean = wave.sum(1) / torch.tensor(LENGTHS)  # behind them are zeros
    return torch.where(inside, wave - mean[:, None], 0)


def log_mel(wave: torch.Tensor, taper: torch.Tensor) -> torch.Tensor:
    """Return `[..., T, 128]` from `[..., N]`, Kaldi's filter bank with a window `[400]`."""
    frames = wave.unfold(-1, 400, 160)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    power = torch.fft.rfft((frames - 0.97 * before) * taper, 512).abs().square()
    energy = power @ mel_triangles(wave.dtype)
    return energy.clamp_min(2.0**-23).log()


def mel_triangles(dtype: torch.dtype) -> torch.Tensor:
    """Return `[257, 128]`, linear in mel = 1127 ln(1 + Hz / 700)."""
    low, high = (1127 * math.log1p(hz / 700) for hz in (20, 8_000))
    corner = low + (high - low) / 129 * torch.arange(130, dtype=dtype)
    mel = 1127 * torch.log1p(31.25 / 700 * torch.arange(257, dtype=dtype))[:, None]
    rise = (mel - corner[:-2]) / (corner[1:-1] - corner[:-2])
    fall = (corner[2:] - mel) / (corner[2:] - corner[1:-1])
    return torch.minimum(rise, fall).clamp_min(0)


def token_padding(samples: int, frames: int, tokens: int) -> torch.Tensor:
    """Return `[B, L]`, True = padding: chunks of samples, then of frames, all of them padding."""
    mask = torch.arange(samples) >= torch.tensor(LENGTHS)[:, None]
    for count in (frames, tokens):
        chunk = mask.shape[1] // count
        mask = mask[:, : count * chunk].unflatten(1, (count, chunk)).all(-1)
    return mask


def linear(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]) + adapter(w, name, x)


def adapter(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor | float:
    """Return what the adapter of a layer adds to it; 0 if it has none."""
    if f"{name}.lora_a" not in w:
        return 0.0
    return ALPHA / RANK * (x @ w[f"{name}.lora_a"] @ w[f"{name}.lora_b"])


def norm(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def beats(cfg: dict, w: Weights, mel: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Return tokens `[B, L, D]` from `[B, T, 128]`; weights by the names of the checkpoint."""
    patches = F.conv2d(mel[:, None], w["patch_embedding.weight"], stride=cfg["input_patch_size"])
    x = norm(w, "layer_norm", patches.flatten(2).mT)
    x = linear(w, "post_extract_proj", x)
    if padding is not None:
        x = x.masked_fill(padding[..., None], 0)
    x = norm(w, "encoder.layer_norm", x + positions(w, cfg, x))
    bias = relative_bias(w, cfg, x.shape[1])
    alpha = (2 * cfg["encoder_layers"]) ** 0.25
    for i in range(cfg["encoder_layers"]):
        name = f"encoder.layers.{i}"
        y = attention(w, f"{name}.self_attn", cfg, x, bias, padding)
        x = norm(w, f"{name}.self_attn_layer_norm", alpha * x + y)
        y = linear(w, f"{name}.fc2", F.gelu(linear(w, f"{name}.fc1", x)))
        x = norm(w, f"{name}.final_layer_norm", alpha * x + y)
    return x


def positions(w: Weights, cfg: dict, x: torch.Tensor) -> torch.Tensor:
    """Return the convolutional positions `[B, L, D]`; the kernel is normalized for each tap."""
    name, taps = "encoder.pos_conv.0", cfg["conv_pos"]
    direction = w[f"{name}.weight_v"]
    kernel = w[f"{name}.weight_g"] * direction / direction.square().sum((0, 1), True).sqrt()
    padded = F.pad(x.mT, (taps // 2, taps - 1 - taps // 2))
    return F.gelu(F.conv1d(padded, kernel, w[f"{name}.bias"], groups=cfg["conv_pos_groups"])).mT


def relative_bias(w: Weights, cfg: dict, tokens: int) -> torch.Tensor:
    """Return `[H, L, L]`: a bucket for each offset, beyond `exact` wider and wider ones."""
    half = cfg["num_buckets"] // 2
    exact = half // 2
    offset = torch.arange(tokens)[None] - torch.arange(tokens)[:, None]
    far = (offset.abs().clamp_min(exact) / exact).log() / math.log(cfg["max_distance"] / exact)
    bucket = (exact + (far * (half - exact)).int()).clamp_max(half - 1)
    bucket = torch.where(offset.abs() < exact, offset.abs(), bucket) + half * (offset > 0)
    table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    return table[bucket].movedim(-1, 0)


def attention(w, name, cfg, x, bias, padding) -> torch.Tensor:
    q, k, v = (
        linear(w, f"{name}.{part}_proj", x)
        .unflatten(-1, (cfg["encoder_attention_heads"], -1))
        .transpose(1, 2)
        for part in "qkv"
    )
    gate = linear(w, f"{name}.grep_linear", q).unflatten(-1, (2, 4)).sum(-1).sigmoid()
    gate = gate[..., :1] * (gate[..., 1:] * w[f"{name}.grep_a"] - 1) + 2
    scores = q @ k.mT / q.shape[-1] ** 0.5 + gate * bias
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], -math.inf)
    y = scores.softmax(-1) @ v
    return linear(w, f"{name}.out_proj", y.transpose(1, 2).flatten(2))


def pool(w: Weights, stats: Weights, x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return `[B, 2 D]`: mean and deviation of the tokens inside, weighted for each channel."""
    hidden = F.relu(context(x, inside) @ w["pool.kernel"] + w["pool.bias"])
    real = hidden[inside]  # what stands in padding is not part of the batch
    normed = torch.zeros_like(hidden)
    normed[inside] = batch_norm(w, stats, "pool.hidden_norm", real)
    scores = normed.tanh() @ w["pool.score.kernel"] + w["pool.score.bias"]
    weight = scores.masked_fill(~inside[..., None], -math.inf).softmax(1)
    pooled = torch.cat(mean_and_deviation(x, weight), -1).flatten(1)
    return batch_norm(w, stats, "pool.norm", pooled)


def context(x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return `[B, L, 3 D]`: each token, and mean and deviation of its clip."""
    even = inside[..., None] / inside.sum(1)[:, None, None]
    return torch.cat([x, *(s.expand_as(x) for s in mean_and_deviation(x, even))], -1)


def mean_and_deviation(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = (weight * x).sum(1, keepdim=True)
    variance = (weight * (x - mean).square()).sum(1, keepdim=True)
    return mean, variance.clamp_min(1e-4).sqrt()


def batch_norm(w: Weights, stats: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Normalize `[rows, D]` by its own statistics and move the running ones by a tenth.

    PyTorch keeps the variance over n - 1 rows; `var_biased` is the same over n.
    """
    running = stats[f"{name}.mean"], stats[f"{name}.var"]
    stats[f"{name}.var_biased"].lerp_(x.detach().var(0, correction=0), 0.1)
    scale, bias = w[f"{name}.scale"], w[f"{name}.bias"]
    return F.batch_norm(x, *running, scale, bias, training=True, momentum=0.1, eps=1e-5)


def arcface(w: Weights, embedding: torch.Tensor) -> torch.Tensor:
    """Return the mean loss; beyond pi - m the margin is the straight line cos a - m sin m."""
    label = torch.tensor(LABEL)
    cosine = F.normalize(embedding) @ F.normalize(w["heads.0.centers"][:, 0]).T
    true = cosine.gather(1, label[:, None])
    sine = (1 - true.square()).sqrt()
    turned = true * math.cos(MARGIN) - sine * math.sin(MARGIN)
    line = true - MARGIN * math.sin(MARGIN)
    beyond = true < math.cos(math.pi - MARGIN)
    logits = cosine.scatter(1, label[:, None], torch.where(beyond, line, turned))
    return F.cross_entropy(SCALE * logits, label)


def embed(w: Weights, stats: Weights, backbone: Backbone, mel, padding) -> torch.Tensor:
    tokens = backbone(w, mel, padding)
    inside = torch.ones(tokens.shape[:2], dtype=torch.bool) if padding is None else ~padding
    return pool(w, stats, tokens, inside) @ w["project.kernel"] + w["project.bias"]


def pooling_weights(rng: np.random.Generator, width: int) -> Weights:
    """Return random pooling and projection of tokens of `width`."""
    hidden = max(width // 16, 1)
    kernels = {
        "pool": (3 * width, hidden),
        "pool.score": (hidden, width),
        "project": (2 * width, EMBEDDING),
    }
    w = {f"{n}.kernel": rng.normal(size=s) / s[0] ** 0.5 for n, s in kernels.items()}
    w |= {f"{n}.bias": 0.3 * rng.normal(size=s[1]) for n, s in kernels.items()}
    for name, size in {"pool.hidden_norm": hidden, "pool.norm": 2 * width}.items():
        w[f"{name}.scale"] = 1 + 0.3 * rng.normal(size=size)
        w[f"{name}.bias"] = 0.3 * rng.normal(size=size)
    return {name: torch.tensor(value) for name, value in w.items()}


def with_centers(rng, w: Weights, base: Weights, backbone: Backbone, mel) -> Weights:
    """Return `w` with random centers, such that the last clip starts beyond pi - m; float32.

    Args:
        w, base: weights of pooling and projection, and of the backbone.
    """
    centers = torch.tensor(rng.normal(size=(CLASSES, 1, EMBEDDING)))
    whole = cast(base | w, torch.float64)
    last = embed(whole, no_statistics(w), backbone, mel.double(), None)[-1]
    centers[LABEL[-1], 0] = 0.3 * centers[LABEL[-1], 0] - F.normalize(last, dim=0) * EMBEDDING**0.5
    return cast(w | {"heads.0.centers": centers}, torch.float32)


def lora_weights(targets: list[str], width: int) -> Weights:
    """Return random A `[width, r]` and B `[r, width]`, neither zero, for layers by name."""
    rng = np.random.default_rng(SEED + 1)
    w = {}
    for target in targets:
        w[f"{target}.lora_a"] = torch.tensor(rng.normal(size=(width, RANK)) / width**0.5)
        w[f"{target}.lora_b"] = torch.tensor(0.1 * rng.normal(size=(RANK, width)))
    return cast(w, torch.float32)


def no_statistics(w: Weights) -> Weights:
    """Return running means 0 and variances 1 for the batch norms."""
    stats = {}
    for name in ("pool.hidden_norm", "pool.norm"):
        stats[f"{name}.mean"] = torch.zeros_like(w[f"{name}.bias"])
        for kind in ("var", "var_biased"):
            stats[f"{name}.{kind}"] = torch.ones_like(w[f"{name}.bias"])
    return stats


def cast(w: Weights, dtype: torch.dtype) -> Weights:
    return {name: value.to(dtype) for name, value in w.items()}


def decays(name: str, value: torch.Tensor) -> bool:
    """Tell whether weight decay applies: to matrices, not to biases, norms and gains."""
    return value.squeeze().ndim >= 2 and "bias" not in name


def adamw(trained: Weights) -> torch.optim.Optimizer:
    groups = [
        {"params": [x for n, x in trained.items() if decays(n, x)], "weight_decay": DECAY},
        {"params": [x for n, x in trained.items() if not decays(n, x)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)


def train(frozen: Weights, trained: Weights, backbone: Backbone, adam, mel, padding) -> dict:
    """Return the loss of each step, the gradients of the first and the running statistics.

    Args:
        adam: makes the optimizer from what trains.
    """
    stats, found = no_statistics(trained), {"losses": []}
    trained = {name: value.clone().requires_grad_() for name, value in trained.items()}
    optimizer = adam(trained)
    for _ in range(STEPS):
        w = frozen | trained
        loss = arcface(w, embed(w, stats, backbone, mel, padding))
        optimizer.zero_grad()
        loss.backward()
        found.setdefault("grad", {name: value.grad.clone() for name, value in trained.items()})
        optimizer.step()
        found["losses"].append(loss.item())
    return found | {"statistics": stats}


def our_name(name: str) -> str:
    """Return our name of an adapter; the other names of the checkpoint stay as they are."""
    layer = r"(?:encoder\.layers|blocks)\.(\d+)\.(?:self_)?attn\.(q|v|out)(?:_proj)?\.lora"
    return re.sub(layer, r"backbone.layers.\1.attn.\2.lora", name)


def arrays(case: str, found: dict) -> dict[str, np.ndarray]:
    """Return what `README.md` lists for one case."""
    named = {f"{case}/losses": np.float32(found["losses"])}
    for kind in ("grad", "statistics"):
        for name, value in found[kind].items():
            named[f"{case}/{kind}/{our_name(name)}"] = value.float().numpy()
    return named


def deviation(found: dict, exact: dict) -> str:
    """Return how far float32 is from float64: losses, and gradients in parts of their largest."""
    loss = np.abs(np.subtract(found["losses"], exact["losses"])).max()
    parts = {
        name: ((found["grad"][name] - value).abs().max() / value.abs().max()).item()
        for name, value in exact["grad"].items()
        if value.abs().max() > 1e-12  # softmax cancels the biases of keys and of pooling's scores
    }
    worst = max(parts, key=parts.get)
    return f"losses {loss:.1e}, gradients {parts[worst]:.1e} ({worst})"


def run(cases: dict, backbone: Backbone, adam) -> dict[str, np.ndarray]:
    """Return the arrays of all cases: (frozen, trained, mel, padding) by name."""
    written = {}
    for case, (frozen, trained, mel, padding) in cases.items():
        runs = [
            train(cast(frozen, x), cast(trained, x), backbone, adam, mel.to(x), padding)
            for x in (torch.float32, torch.float64)
        ]
        first, last = runs[1]["losses"][0], runs[1]["losses"][-1]
        print(f"{case}: loss {first:.3f} to {last:.3f}; float32 is off by: {deviation(*runs)}")
        written |= arrays(case, runs[1])
    return written


def start(w: Weights) -> dict[str, np.ndarray]:
    return {f"start/{our_name(name)}": value.numpy() for name, value in w.items()}


def main() -> None:
    torch.set_num_threads(1)
    checkpoint = torch.load(HERE / "beats_tiny.pt", weights_only=True)
    cfg = checkpoint["cfg"]
    backbone, width = partial(beats, cfg), cfg["encoder_embed_dim"]
    base = {  # the table of relative biases is repeated in every layer
        name: value
        for name, value in checkpoint["model"].items()
        if "relative_attention_bias" not in name or ".layers.0." in name
    }
    stored = np.load(HERE / "beats_tiny.npz")
    again = backbone(base, torch.tensor(stored["odd_fbank"]), None).numpy()
    assert np.abs(again - stored["odd_out"]).max() < 1e-5
    mask = torch.tensor(stored["mask_token_mask"])
    again = backbone(base, torch.tensor(stored["nomask_fbank"]), mask).numpy()
    assert np.abs(again - stored["mask_out"]).max() < 1e-5

    wave = waves()
    sound = torch.tensor(wave).double()
    mel, masked_mel = (normalized_mel(x).float() for x in (sound, without_offset(sound)))
    adapted = ("q_proj.weight", "v_proj.weight", "out_proj.weight")
    targets = [name.removesuffix(".weight") for name in base if name.endswith(adapted)]
    rng = np.random.default_rng(SEED)
    head = with_centers(rng, pooling_weights(rng, width), base, backbone, mel)
    lora = lora_weights(targets, width)
    padding = token_padding(*wave.shape[1:], mel.shape[1], mel.shape[1] // 16 * 8)
    written = {
        "wave": wave,
        "lengths": np.array(LENGTHS, np.int32),
        "label": np.array(LABEL, np.int32),
        "mel": mel.numpy(),
        "padding": padding.numpy(),
    }
    cases = {
        "full": ({}, base | head, mel, None),
        "masked": ({}, base | head, masked_mel, padding),
        "lora": (base, lora | head, mel, None),
    }
    written |= start(head | lora) | run(cases, backbone, adamw)
    np.savez_compressed(HERE / "finetune.npz", **written)


if __name__ == "__main__":
    main()
