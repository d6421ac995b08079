"""A whole system as one frozen value, and its JSON form.

The configuration of each part lives beside its code; this file joins them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from asdjax.data.loader import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.losses.margin import Margin
from asdjax.models.embedder import LogMel, Pretrained
from asdjax.models.lora import Lora
from asdjax.models.system import Branch, FineTuned
from asdjax.scoring.balance import Smote
from asdjax.scoring.ensemble import Ensemble
from asdjax.scoring.pseudo import Pseudo
from asdjax.scoring.score import Knn
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule
from asdjax.types import InputError

EMBEDDING = Audio, LogMel, Pretrained, FineTuned, Branch, Lora
TRAINING = Train, HeadConfig, Margin, AdaCos, Optimizer, Schedule, Augment
SCORING = Knn, Smote, Pseudo
CONFIG_CLASSES = {kind.__name__: kind for kind in (*EMBEDDING, *TRAINING, *SCORING)}


@dataclass(frozen=True)
class SystemConfig:
    """What is computed; where data and results lie is told to the stages.

    Args:
      embedder: from a wave to one vector.
      scorer: from vectors to anomaly scores.
      audio: from a file to a wave.
      train: how a fine-tuned embedder is trained; None for the others.
      pseudo: labels for training clips without attributes, from a first training without them;
        None: such clips of a machine are one class.
      batch: clips per step while embedding, over all devices.
    """

    embedder: LogMel | Pretrained | FineTuned
    scorer: Knn = field(default_factory=Knn)
    audio: Audio = field(default_factory=Audio)
    train: Train | None = None
    pseudo: Pseudo | None = None
    batch: int = 32

    def __post_init__(self):
        if self.batch < 1:
            raise InputError(f"expected batch >= 1, got {self.batch}")
        if isinstance(self.embedder, FineTuned) != (self.train is not None):
            raise InputError("expected `train` with a fine-tuned embedder, and only there")
        if self.pseudo is not None and self.train is None:
            raise InputError("pseudo labels are for training, and this system has none")
        for head in self.train.heads if self.train else ():
            if len(head.branch_weights) not in (0, len(self.embedder.branches)):
                raise InputError(
                    f"expected branch_weights for {len(self.embedder.branches)} branches or none, "
                    f"got {list(head.branch_weights)}"
                )

    @property
    def backbones(self) -> tuple[str, ...]:
        """Return the weights of the backbones, each once, in the order of the branches."""
        if isinstance(self.embedder, LogMel):
            return ()
        branches = getattr(self.embedder, "branches", (self.embedder,))
        return tuple(dict.fromkeys(branch.weights for branch in branches))

    def with_backbones(self, others: Mapping[str, str]) -> SystemConfig:
        """Return the system with other names or files of weights in place of its own."""
        if not self.backbones:
            return self

        def changed(part):
            return replace(part, weights=others.get(part.weights, part.weights))

        if isinstance(self.embedder, Pretrained):
            return replace(self, embedder=changed(self.embedder))
        branches = tuple(map(changed, self.embedder.branches))
        return replace(self, embedder=replace(self.embedder, branches=branches))


@dataclass(frozen=True)
class EnsembleConfig:
    """Systems whose scores are combined.

    Args:
      members: names of recipes.
      ensemble: how, with a weight for each.
    """

    members: tuple[str, ...]
    ensemble: Ensemble = field(default_factory=Ensemble)

    def __post_init__(self):
        if len(set(self.members)) < max(len(self.members), 2):
            raise InputError(f"expected two or more different members, got {list(self.members)}")
        self.ensemble.shares(len(self.members))


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
