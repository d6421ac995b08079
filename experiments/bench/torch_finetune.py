"""A training step of BEATs or EAT with pooling and ArcFace in PyTorch: a peer to time.

Written as a careful user of PyTorch would: modules, fused attention (BEATs: with the gated bias as
its mask), fused AdamW, adapters beside frozen weights without gradients, nothing computed twice. It
starts from the weights of `finetune.system`, so both sides have the same losses.
No dropout.

On a CPU PyTorch has no fused attention whose mask gets a gradient, and falls back to its own
unfused one for BEATs; on CUDA it takes the memory-efficient kernel. EAT has no mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from finetune import CLASSES, LOSS, SAMPLES, Kind, encoder, inputs, system
from torch import nn
from torch_eat import Eat, joined
from torch_parts import LoraLinear, patches, torch_array

from asdjax.frontend import fbank
from asdjax.models.backbone import Structure
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.speech import SpeechConfig
from asdjax.models.transformer import relative_bucket

FRAMES = 998  # of 10 s
BACKBONE = "branches.0.backbone."
LEARNING_RATE, DECAY = 1e-4, 0.01
norm = partial(nn.LayerNorm, eps=1e-5)


def step(
    kind: Kind, structure: Structure, compiled: bool, batch: int, device: str, dtype: str
) -> Callable[[], float]:
    """Return a function that does one training step on the same batch and returns its loss.

    Args:
        kind: "full" trains every weight, "lora" adapters of rank 64 on q, v and out, and the head.
        compiled: through `torch.compile` (not the filter bank: it generates no complex numbers).
        batch: clips of 10 s, at least 2 (batch norm).
        device: "cpu" or "cuda".
        dtype: of the backbone's products: "float32", or "bfloat16" by autocast.
    """
    model = load(kind, structure).to(device)
    hear = front_end(structure).to(device)
    sound, label = (torch.from_numpy(x).to(device) for x in inputs(batch))
    optimizer = adamw(model)

    def loss(mel: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            tokens = model.backbone(mel)[:, structure.extra_tokens :]
        return model.heads[0](model.project(model.pool(tokens.float())), label)

    forward = torch.compile(loss) if compiled else loss

    def one() -> float:
        optimizer.zero_grad()
        value = forward(hear(sound))
        value.backward()
        optimizer.step()
        return value.item()

    return one


def front_end(structure: Structure) -> nn.Module:
    if isinstance(structure, SpeechConfig):
        from torch_speech import Normalized  # needs transformers

        return Normalized()
    return Fbank(structure)


def load(kind: Kind, structure: Structure) -> nn.Module:
    """Return the system with our weights; what is frozen gets no gradient."""
    _, trainable, frozen = system(kind, [structure]).initialize(seed=0)
    model = System(kind, structure)
    found = model.load_state_dict(torch_state(structure, trainable | frozen), strict=False)
    unused = "norm.running", "masked_spec_embed"
    left = [n for n in found.missing_keys if not any(one in n for one in unused)]
    assert not found.unexpected_keys + [n for n in left if "num_batches" not in n], found
    trained = torch_state(structure, trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model.train()


def torch_state(structure: Structure, arrays: dict) -> dict[str, torch.Tensor]:
    own = {n: x for n, x in arrays.items() if n.startswith(BACKBONE)}
    if isinstance(structure, SpeechConfig):
        from torch_speech import speech_state

        others = {n: x for n, x in arrays.items() if n not in own}
        found = speech_state({n.removeprefix(BACKBONE): x for n, x in own.items()})
        state = {f"backbone.model.{name}": value for name, value in found.items()}
        return state | dict(torch_array(name, value) for name, value in others.items())
    state = dict(torch_array(name, value) for name, value in arrays.items())
    return joined(state) if isinstance(structure, EatConfig) else state


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

    def __init__(self, structure: Structure):
        super().__init__()
        eat = isinstance(structure, EatConfig)
        config = fbank.EAT if eat else fbank.BEATS
        taper = config.scale / 32_768 * fbank.window(config.window)[:400]
        self.register_buffer("taper", torch.from_numpy(taper))
        self.register_buffer("bank", torch.from_numpy(fbank.mel_bank(config).copy()))
        self.rows = fbank.eat_frames(SAMPLES) if eat else FRAMES
        beats = fbank.BEATS_MEAN, fbank.BEATS_STD
        self.mean, self.std = (fbank.EAT_MEAN, fbank.EAT_STD) if eat else beats

    @torch.no_grad()
    def forward(self, wave):
        frames = wave.float().unfold(1, 400, 160)
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
        spectrum = torch.fft.rfft((frames - 0.97 * before) * self.taper, 512)[..., :-1]
        power = torch.view_as_real(spectrum).square().sum(-1)
        mel = (power @ self.bank).clamp_min(fbank.LOG_FLOOR).log()
        mel = F.pad(mel, (0, 0, 0, self.rows - mel.shape[1]))
        return (mel - self.mean) / (2 * self.std)


class System(nn.Module):
    def __init__(self, kind: Kind, structure: Structure):
        super().__init__()
        embedding, width = encoder(kind, structure).embedding, structure.width
        self.backbone = backbone(structure, adapted=kind == "lora")
        self.pool = AttentiveStatistics(width)
        self.project = nn.Linear(2 * width, embedding)
        self.heads = nn.ModuleList([ArcFace(embedding)])


def backbone(structure: Structure, adapted: bool) -> nn.Module:
    if isinstance(structure, SpeechConfig):
        from torch_speech import Speech

        return Speech(structure, adapted)
    return (Eat if isinstance(structure, EatConfig) else Beats)(structure, adapted)


class Beats(nn.Module):
    """The published structure, as `torch_beats.py`, with gradients."""

    def __init__(self, config: BeatsConfig, adapted: bool):
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
        x = self.patch_embed(patches(mel, self.patch))
        x = self.proj(self.patch_norm(x))
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
    def __init__(self, config: BeatsConfig, adapted: bool):
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
    def __init__(self, width: int, heads: int, adapted: bool):
        super().__init__()
        linear = LoraLinear if adapted else nn.Linear
        self.heads = heads
        self.q, self.k = linear(width, width), nn.Linear(width, width)
        self.v, self.out = linear(width, width), linear(width, width)
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
