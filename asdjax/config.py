"""A whole system as one frozen value, and its JSON form.

The configuration of each part lives beside its code; this file joins them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from asdjax.data.loader import Audio
from asdjax.models.embedder import LogMel, Pretrained
from asdjax.scoring.score import Knn
from asdjax.types import InputError

CONFIG_CLASSES = {kind.__name__: kind for kind in (Audio, LogMel, Pretrained, Knn)}


@dataclass(frozen=True)
class SystemConfig:
    """What is computed; where data and results lie is told to the stages.

    Args:
      embedder: from a wave to one vector.
      scorer: from vectors to anomaly scores.
      audio: from a file to a wave.
      batch: clips per step, over all devices.
    """

    embedder: LogMel | Pretrained
    scorer: Knn = field(default_factory=Knn)
    audio: Audio = field(default_factory=Audio)
    batch: int = 32

    def __post_init__(self):
        if self.batch < 1:
            raise InputError(f"expected batch >= 1, got {self.batch}")


def to_json(config: object) -> dict:
    """Return a dict of plain values; each part carries its class name under "kind"."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    plain = {k: to_json(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()}
    return {"kind": type(config).__name__, **plain}


def from_json(plain: dict) -> SystemConfig:
    """Rebuild the value that `to_json` wrote; unknown fields are an error, absent ones default."""
    values = {k: from_json(v) if isinstance(v, dict) else v for k, v in plain.items()}
    kind = {"SystemConfig": SystemConfig, **CONFIG_CLASSES}.get(values.pop("kind", None))
    names = {f.name for f in dataclasses.fields(kind)} if kind else set()
    if unknown := set(values) - names:
        raise InputError(f"unknown configuration {sorted(unknown)} in {plain}")
    return kind(**values)


def digest(*values: object) -> str:
    """Return a SHA-256 of plain values and configurations."""
    text = json.dumps(values, sort_keys=True, default=to_json)
    return hashlib.sha256(text.encode()).hexdigest()
