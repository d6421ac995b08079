"""What tests of training share: machines that can be told apart, a small system."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from machines import one_encoder

from asdjax.config import SystemConfig
from asdjax.data.batches import Audio
from asdjax.losses.margin import Margin
from asdjax.models import weights_file
from asdjax.models.backbone import Backbone
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.models.system import Architecture, Task
from asdjax.scoring.knn import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule

SAMPLES = 8000
TIMES = {"clips_per_second", "waiting"}  # of a line in the log: they differ from run to run


def architecture(
    encoders: Sequence[Pretrained],
    backbones: Sequence[Backbone],
    tasks: Sequence[Task] = (),
    perturbation: int = 0,
) -> Architecture:
    """Return the system of encoders with backbones that are in no file, one for each."""
    pairs = zip(encoders, backbones, strict=True)
    networks = tuple(encoder.network_of(backbone) for encoder, backbone in pairs)
    return Architecture(networks, tuple(tasks), perturbation)


def hum_machine(root: Path, machine: str, hz: float, seed: int) -> None:
    """Write `root/machine` in the 2023 layout: 10 + 2 training clips, 2 test clips a cell.

    A machine is told by the pitch of its hum; an anomaly hums an octave higher, and louder.
    """
    rng = np.random.default_rng(seed)
    seconds = np.arange(SAMPLES) / 16000
    for split, domain, label, count in [
        ("train", "source", "normal", 10),
        ("train", "target", "normal", 2),
        *(("test", d, label, 2) for d in ("source", "target") for label in ("normal", "anomaly")),
    ]:
        for index in range(count):
            odd = label == "anomaly"
            hum = (0.5 if odd else 0.1) * np.sin(2 * np.pi * hz * (1 + odd) * seconds)
            wave = hum + 0.02 * rng.standard_normal(SAMPLES)
            name = f"section_00_{domain}_{split}_{label}_{index:04d}_spd_{index % 2}.wav"
            path = root / machine / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, 16000, "PCM_16")


def two_machines(root: Path) -> Path:
    hum_machine(root, "fan", 500.0, seed=1)
    hum_machine(root, "pump", 2000.0, seed=2)
    return root


def small_system(weights: Path | None = None, encoders=None, scorer=None, **train) -> SystemConfig:
    """Return LoRA on a tiny backbone that tells machines apart, with fields of `Train` changed.

    Args:
      encoders, scorer: in place of that backbone and of the nearest neighbor.
    """
    given = {
        "steps": 6,
        "batch": 4,
        "heads": (HeadConfig(Margin("arcface", 0.2, 10.0), labels="machine"),),
        "optimizer": Optimizer("adam", Schedule(peak=1e-2)),
        "source": "resident",
    }
    adapter = Lora(rank=2, alpha=2.0, targets=("q",))
    return SystemConfig(
        encoders or one_encoder(str(weights), adapter, "mean", embedding=8),
        scorer or Knn(),
        Audio(seconds=0.4),
        Train(**given | train),
        batch=8,
    )


def lines(out: Path) -> list[dict]:
    """Return the lines of a run's log, without what differs from run to run."""
    read = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if name not in TIMES} for line in read]


def assert_trained_alike(ours: Path, theirs: Path) -> None:
    """Compare what two programs trained with the same clips and random numbers.

    Each rounds by 1e-7 where it likes; the logarithm of quiet bands and the updates enlarge that
    to 4e-4. The clips of one other batch change weights by 1e-2.
    """
    mine, other = (weights_file.load(out / "model.safetensors").arrays for out in (ours, theirs))
    assert mine.keys() == other.keys()
    for name, array in other.items():
        limit = 2e-3 * np.abs(array).max()
        np.testing.assert_allclose(mine[name], array, rtol=0, atol=limit, err_msg=name)
