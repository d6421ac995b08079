"""A training step of BEATs, attentive statistics pooling and ArcFace in PyTorch: a peer to time.

Written as a careful user of PyTorch would: modules, fused attention with the gated bias as its
mask, fused AdamW, adapters beside frozen weights without gradients, nothing computed twice. It
starts from the weights of `finetune.initial`, so both sides have the same losses.
No dropout. float32; on a CUDA device the backbone's products are bfloat16 (autocast).

On a CPU PyTorch has no fused attention whose mask gets a gradient, and falls back to its own
unfused one; on CUDA it takes the memory-efficient kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from finetune import ADAPTER, CLASSES, LOSS, Kind, config_of, initial, inputs
from torch import nn

from asdjax.frontend.fbank import BEATS, BEATS_MEAN, BEATS_STD, LOG_FLOOR, mel_bank, window
from asdjax.models.beats import BeatsConfig, relative_bucket

FRAMES = 998  # of 10 s
LEARNING_RATE, DECAY = 1e-4, 0.01
norm = partial(nn.LayerNorm, eps=1e-5)


def step(
    kind: Kind,
    compiled: bool,
    batch: int,
    device: str,
    structure: BeatsConfig | None = None,
) -> Callable[[], float]:
    """Return a function that does one training step on the same batch and returns its loss.

    Args:
        kind: "full" trains every weight, "lora" adapters of rank 64 on q, v and out, and the head.
        compiled: through `torch.compile` (not the filter bank: it generates no complex numbers).
        batch: clips of 10 s, at least 2 (batch norm).
        device: "cpu" or "cuda".
        structure: of the backbone; None is base size.
    """
    model = load(kind, structure or BeatsConfig.base()).to(device)
    fbank = Fbank().to(device)
    sound, label = (torch.from_numpy(x).to(device) for x in inputs(batch))
    optimizer = adamw(model)

    def loss(mel: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            tokens = model.backbone(mel)
        return model.heads[0](model.project(model.pool(tokens.float())), label)

    forward = torch.compile(loss) if compiled else loss

    def one() -> float:
        optimizer.zero_grad()
        value = forward(fbank(sound))
        value.backward()
        optimizer.step()
        return value.item()

    return one


def load(kind: Kind, structure: BeatsConfig) -> nn.Module:
    """Return the system with our weights; what is frozen gets no gradient."""
    _, trainable, frozen = initial(kind, structure)
    model = System(kind, structure)
    state = dict(torch_array(n, np.array(x)) for n, x in (trainable | frozen).items())
    found = model.load_state_dict(state, strict=False)
    left = [name for name in found.missing_keys if "norm.running" not in name]
    assert not found.unexpected_keys + [n for n in left if "num_batches" not in n], found
    trained = {torch_array(n, np.array(x))[0] for n, x in trainable.items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model.train()


def torch_array(name: str, value: np.ndarray) -> tuple[str, torch.Tensor]:
    """Return PyTorch's name and layout: linear weights (out, in), convolutions (out, in, tap)."""
    layer, _, last = name.rpartition(".")
    if layer == "pool":
        layer = "pool.hidden"
    if last in ("kernel", "direction"):
        value = value.T.copy()
    last = {"kernel": "weight", "scale": "weight"}.get(last, last)
    return f"{layer}.{last}", torch.from_numpy(value)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    decayed = {name for name, x in trained.items() if x.ndim > 1 and "bias" not in name}
    groups = [
        {"params": [x for n, x in trained.items() if n in decayed], "weight_decay": DECAY},
        {"params": [x for n, x in trained.items() if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)


class Fbank(nn.Module):
    """Int16 waves `[B, N]` to the normalized log-mel `[B, T, 128]`, all clips at once."""

    def __init__(self):
        super().__init__()
        self.register_buffer("taper", torch.from_numpy(window("povey")[:400].copy()))
        self.register_buffer("bank", torch.from_numpy(mel_bank(BEATS).copy()))

    @torch.no_grad()
    def forward(self, wave):
        frames = wave.float().unfold(1, 400, 160)
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
        spectrum = torch.fft.rfft((frames - 0.97 * before) * self.taper, 512)[..., :-1]
        power = torch.view_as_real(spectrum).square().sum(-1)
        mel = (power @ self.bank).clamp_min(LOG_FLOOR).log()
        return (mel - BEATS_MEAN) / (2 * BEATS_STD)


class System(nn.Module):
    def __init__(self, kind: Kind, structure: BeatsConfig):
        super().__init__()
        config = config_of(kind)
        width = structure.encoder_embed_dim
        self.backbone = Beats(structure, LoraLinear if kind == "lora" else nn.Linear)
        self.pool = AttentiveStatistics(width)
        self.project = nn.Linear(2 * width, config.embedding)
        self.heads = nn.ModuleList([ArcFace(config.embedding)])


class Beats(nn.Module):
    """The published structure, as `torch_beats.py`, with gradients."""

    def __init__(self, config: BeatsConfig, adapted: type[nn.Linear]):
        super().__init__()
        patch, width = config.input_patch_size, config.encoder_embed_dim
        self.patch = patch
        self.patch_embed = nn.Linear(patch * patch, config.embed_dim, bias=config.conv_bias)
        self.patch_norm = norm(config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, width)
        self.pos_conv = PositionConv(config)
        self.norm = norm(width)
        self.relative_bias = nn.Parameter(
            torch.empty(config.num_buckets, config.encoder_attention_heads)
        )
        token = np.arange(FRAMES // patch * (128 // patch))
        offset = token[None, :] - token[:, None]
        bucket = relative_bucket(offset, config.num_buckets, config.max_distance)
        self.register_buffer("bucket", torch.from_numpy(bucket), persistent=False)
        self.layers = nn.ModuleList(Layer(config, adapted) for _ in range(config.encoder_layers))

    def forward(self, mel):
        """Return `[B, L, D]` from `[B, T, 128]`."""
        times = mel.shape[1] // self.patch
        grid = mel[:, : times * self.patch].unflatten(1, (times, self.patch))
        patches = grid.unflatten(3, (-1, self.patch)).transpose(2, 3).flatten(3).flatten(1, 2)
        x = self.proj(self.patch_norm(self.patch_embed(patches)))
        x = self.norm(x + self.pos_conv(x))
        bias = F.embedding(self.bucket, self.relative_bias).permute(2, 0, 1)  # [H, L, L]
        for layer in self.layers:
            x = layer(x, bias)
        return x


class PositionConv(nn.Module):
    """GELU of a grouped convolution over tokens, weight-normalized for each tap of its kernel."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        width, self.groups, taps = config.encoder_embed_dim, config.conv_pos_groups, config.conv_pos
        self.gain = nn.Parameter(torch.empty(taps))
        self.direction = nn.Parameter(torch.empty(width, width // self.groups, taps))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x):
        kernel = self.gain / self.direction.norm(dim=(0, 1)) * self.direction
        taps = kernel.shape[2]
        y = F.conv1d(x.mT, kernel, self.bias, padding=taps // 2, groups=self.groups)
        return F.gelu(y[..., : x.shape[1]]).mT


class Layer(nn.Module):
    def __init__(self, config: BeatsConfig, adapted: type[nn.Linear]):
        super().__init__()
        width, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.alpha = (2 * config.encoder_layers) ** 0.25
        self.attn = Attention(width, config.encoder_attention_heads, adapted)
        self.attn_norm, self.ffn_norm = norm(width), norm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x, bias):
        x = self.attn_norm(self.alpha * x + self.attn(x, bias))
        return self.ffn_norm(self.alpha * x + self.fc2(F.gelu(self.fc1(x))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, adapted: type[nn.Linear]):
        super().__init__()
        self.heads = heads
        self.q, self.k = adapted(width, width), nn.Linear(width, width)
        self.v, self.out = adapted(width, width), adapted(width, width)
        self.gate = nn.Linear(width // heads, 8)
        self.gate_scale = nn.Parameter(torch.empty(heads))

    def forward(self, x, bias):
        q, k, v = (
            y.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for y in (self.q(x), self.k(x), self.v(x))
        )
        update, reset = self.gate(q).float().unflatten(-1, (2, 4)).sum(-1).sigmoid().unbind(-1)
        gate = update * (reset * self.gate_scale[:, None] - 1) + 2
        mask = (gate[..., None] * bias).to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class LoraLinear(nn.Linear):
    """x W + b + alpha / rank (x A) B."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.lora_a = nn.Parameter(torch.empty(inputs, ADAPTER.rank))
        self.lora_b = nn.Parameter(torch.empty(ADAPTER.rank, outputs))

    def forward(self, x):
        return super().forward(x) + ADAPTER.alpha / ADAPTER.rank * (x @ self.lora_a) @ self.lora_b


class AttentiveStatistics(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        hidden = max(width // 16, 1)
        self.hidden = nn.Linear(3 * width, hidden)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.score = nn.Linear(hidden, width)
        self.norm = nn.BatchNorm1d(2 * width)

    def forward(self, x):
        """Return `[B, 2 D]` from `[B, L, D]`."""
        plain = statistics(x, x.new_full((1, 1, 1), 1 / x.shape[1]))
        context = torch.cat([x, *(y[:, None].expand_as(x) for y in plain)], 2)
        hidden = self.hidden_norm(F.relu(self.hidden(context)).mT).mT
        weight = self.score(hidden.tanh()).softmax(1)
        return self.norm(torch.cat(statistics(x, weight), 1))


def statistics(x, weight):
    """Return mean and deviation over the tokens of `[B, L, D]`."""
    mean = (weight * x).sum(1)
    variance = (weight * (x - mean[:, None]).square()).sum(1)
    return mean, variance.clamp_min(1e-4).sqrt()


class ArcFace(nn.Module):
    def __init__(self, embedding: int):
        super().__init__()
        self.centers = nn.Parameter(torch.empty(CLASSES, 1, embedding))

    def forward(self, embedding, label):
        """Return the mean loss of `[B, E]`."""
        m = LOSS.margin
        cosine = F.linear(F.normalize(embedding), F.normalize(self.centers[:, 0]))
        true = cosine.gather(1, label[:, None])
        turned = true * math.cos(m) - (1 - true.square()).clamp_min(1e-6).sqrt() * math.sin(m)
        margined = torch.where(true > -math.cos(m), turned, true - m * math.sin(m))
        return F.cross_entropy(LOSS.scale * cosine.scatter(1, label[:, None], margined), label)
