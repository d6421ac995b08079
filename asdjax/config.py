"""A whole system as one frozen value, and its JSON form.

The configuration of each part lives beside its code; this file joins them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from asdjax.data.loader import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.losses.margin import Margin
from asdjax.models.embedder import LogMel, Pretrained
from asdjax.models.lora import Lora
from asdjax.models.system import FineTuned
from asdjax.scoring.balance import Smote
from asdjax.scoring.score import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule
from asdjax.types import InputError

EMBEDDING = Audio, LogMel, Pretrained, FineTuned, Lora
TRAINING = Train, HeadConfig, Margin, AdaCos, Optimizer, Schedule, Augment
CONFIG_CLASSES = {kind.__name__: kind for kind in (*EMBEDDING, *TRAINING, Knn, Smote)}


@dataclass(frozen=True)
class SystemConfig:
    """What is computed; where data and results lie is told to the stages.

    Args:
      embedder: from a wave to one vector.
      scorer: from vectors to anomaly scores.
      audio: from a file to a wave.
      train: how a fine-tuned embedder is trained; None for the others.
      batch: clips per step while embedding, over all devices.
    """

    embedder: LogMel | Pretrained | FineTuned
    scorer: Knn = field(default_factory=Knn)
    audio: Audio = field(default_factory=Audio)
    train: Train | None = None
    batch: int = 32

    def __post_init__(self):
        if self.batch < 1:
            raise InputError(f"expected batch >= 1, got {self.batch}")
        if isinstance(self.embedder, FineTuned) != (self.train is not None):
            raise InputError("expected `train` with a fine-tuned embedder, and only there")


def to_json(config: object) -> object:
    """Return plain values; a dataclass becomes a dict that has its class name under "class"."""
    if isinstance(config, tuple | list):
        return [to_json(value) for value in config]
    if not dataclasses.is_dataclass(config):
        return config
    fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return {"class": type(config).__name__, **fields}


def from_json(plain: object) -> SystemConfig:
    """Rebuild the value that `to_json` wrote; unknown fields are an error, absent ones default."""
    if isinstance(plain, list):
        return tuple(map(from_json, plain))
    if not isinstance(plain, dict):
        return plain
    values = {name: from_json(value) for name, value in plain.items()}
    kind = {"SystemConfig": SystemConfig, **CONFIG_CLASSES}.get(values.pop("class", None))
    names = {f.name for f in dataclasses.fields(kind)} if kind else set()
    if unknown := set(values) - names:
        raise InputError(f"unknown configuration {sorted(unknown)} in {plain}")
    return kind(**values)


def digest(*values: object) -> str:
    """Return a SHA-256 of plain values and configurations."""
    text = json.dumps(values, sort_keys=True, default=to_json)
    return hashlib.sha256(text.encode()).hexdigest()
