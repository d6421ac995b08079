"""A tiny data set whose right answer is known: anomalies carry a loud tone, so every AUC is 1."""

from pathlib import Path

import numpy as np
import soundfile

SAMPLES = 8000


def tone_machine(root: Path, machine: str, seed: int = 0, name=None) -> None:
    """Write `root/machine` in the 2023 layout: 6 + 3 training clips, 3 test clips a cell."""
    rng = np.random.default_rng(seed)
    name = name or "section_00_{domain}_{split}_{label}_{index:04d}_spd_{speed}.wav"
    for split, domain, label, count in [
        ("train", "source", "normal", 6),
        ("train", "target", "normal", 3),
        *(("test", d, label, 3) for d in ("source", "target") for label in ("normal", "anomaly")),
    ]:
        for index in range(count):
            speed = 1 if domain == "source" else 2
            wave = rng.standard_normal(SAMPLES) * 0.02 * speed
            if label == "anomaly":
                wave += 0.3 * np.sin(2 * np.pi * 1000 / 16000 * np.arange(SAMPLES))
            words = {"domain": domain, "split": split, "label": label}
            path = root / machine / split / name.format(**words, index=index, speed=speed)
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, 16000, "PCM_16")


def one_encoder(*given, **fields):
    """Return the encoders of a system with one backbone, whose fields are those of `Pretrained`."""
    from asdjax.models.pretrained import Pretrained

    return (Pretrained(*given, **fields),)


def tiny_eat(path: Path) -> Path:
    """Write random weights of the smallest EAT, which compiles in half the time of BEATs."""
    from dataclasses import asdict

    from asdjax.models import weights_file
    from asdjax.models.backbone import initialize
    from asdjax.models.eat import EatConfig
    from asdjax.models.weights_file import Header

    config = EatConfig(embed_dim=16, depth=1, num_heads=2, max_length=8)
    weights_file.save(path, initialize(config), Header("eat", asdict(config)))
    return path


def tiny_beats():
    """Return the smallest BEATs that has every part, quick to compile."""
    from asdjax.models.beats import BeatsConfig

    return BeatsConfig(
        input_patch_size=16,
        embed_dim=16,
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=48,
        encoder_attention_heads=2,
        deep_norm=True,
        relative_position_embedding=True,
        num_buckets=32,
        max_distance=80,
        gru_rel_pos=True,
        conv_pos=8,
        conv_pos_groups=2,
        dropout_input=0.1,
        encoder_layerdrop=0.05,
    )


def tiny_backbone(path: Path) -> Path:
    """Write random weights of the smallest BEATs that has every part."""
    from dataclasses import asdict

    from asdjax.models import weights_file
    from asdjax.models.backbone import initialize
    from asdjax.models.weights_file import Header

    config = tiny_beats()
    weights_file.save(path, initialize(config), Header("beats", asdict(config)))
    return path


def golden_wave():
    """Return the wave of `efficientat_mn04.npz`, 32 kHz: noise, a tone in half of each second."""
    seconds = np.arange(320_000) / 32_000
    tone = 0.2 * np.sin(2 * np.pi * 440 * seconds) * (seconds % 1 < 0.5)
    return (0.1 * np.random.default_rng(5).standard_normal(320_000) + tone).astype(np.float32)
