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
from asdjax.losses.contrastive import Contrastive
from asdjax.losses.margin import Margin
from asdjax.models.autoencoder import Autoencoder
from asdjax.models.bands import Bands
from asdjax.models.embedder import LogMel, Pretrained
from asdjax.models.lora import Lora
from asdjax.models.spectral import ConvNet1d, ResNet
from asdjax.models.system import Branch, Spectral, Trained
from asdjax.scoring.balance import Smote
from asdjax.scoring.ensemble import Ensemble
from asdjax.scoring.neighbors import Knn
from asdjax.scoring.pseudo import Pseudo
from asdjax.scoring.reconstruction import Reconstruction
from asdjax.scoring.score import BACK_ENDS, Scorer
from asdjax.train.autoencoders import FitAutoencoders
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule
from asdjax.train.supplement import Supplement
from asdjax.types import InputError

BRANCHES = Branch, Lora, ConvNet1d, ResNet, Bands
EMBEDDING = Audio, LogMel, Pretrained, Autoencoder, Trained, *BRANCHES
LOSSES = HeadConfig, Margin, AdaCos, Contrastive
TRAINING = Train, *LOSSES, Optimizer, Schedule, Augment, Supplement, FitAutoencoders
SCORING = *BACK_ENDS, Smote, Pseudo
CONFIG_CLASSES = {kind.__name__: kind for kind in (*EMBEDDING, *TRAINING, *SCORING)}

TRAINED_BY = {Trained: Train, Autoencoder: FitAutoencoders}


@dataclass(frozen=True)
class SystemConfig:
    """What is computed; where data and results lie is told to the stages.

    Args:
      embedder: from a wave to one vector.
      scorer: from vectors to anomaly scores.
      audio: from a file to a wave.
      train: how an embedder of branches or an autoencoder is trained; None for the others.
      pseudo: labels for training clips without attributes, from a first training without them;
        None: such clips of a machine are one class.
      batch: clips per step while embedding, over all devices.
    """

    embedder: LogMel | Pretrained | Trained | Autoencoder
    scorer: Scorer = field(default_factory=Knn)
    audio: Audio = field(default_factory=Audio)
    train: Train | FitAutoencoders | None = None
    pseudo: Pseudo | None = None
    batch: int = 32

    def __post_init__(self):
        if self.batch < 1:
            raise InputError(f"expected batch >= 1, got {self.batch}")
        if not isinstance(self.train, TRAINED_BY.get(type(self.embedder), type(None))):
            raise InputError(
                "expected `train` with an embedder of branches, and only there; an autoencoder has "
                "FitAutoencoders"
            )
        if isinstance(self.embedder, Autoencoder) != isinstance(self.scorer, Reconstruction):
            raise InputError("expected the scorer Reconstruction with an autoencoder, only there")
        spectral = [one for one in self._branches if isinstance(one, Spectral)]
        if spectral and self.audio.seconds is None:
            raise InputError(
                "expected audio.seconds, got none: a spectral network is built for one length; "
                "give --audio.seconds with that of most clips"
            )
        if self.pseudo is not None and not isinstance(self.train, Train):
            raise InputError("pseudo labels are for training by classes, and this system has none")
        for head in getattr(self.train, "heads", ()):
            if len(head.branch_weights) not in (0, len(self.embedder.branches)):
                raise InputError(
                    f"expected branch_weights for {len(self.embedder.branches)} branches or none, "
                    f"got {list(head.branch_weights)}"
                )
            if head.branch_weights and self.embedder.perturbation:
                raise InputError(
                    "expected no branch_weights with a perturbation: it mixes the branches"
                )

    @property
    def backbones(self) -> tuple[str, ...]:
        """Return the weights of the backbones, each once, in the order of the branches."""
        return tuple(
            dict.fromkeys(b.weights for b in self._branches if isinstance(b, Branch | Pretrained))
        )

    @property
    def _branches(self) -> tuple:
        return getattr(self.embedder, "branches", (self.embedder,))

    def with_backbones(self, others: Mapping[str, str]) -> SystemConfig:
        """Return the system with other names or files of weights in place of its own."""
        if not self.backbones:
            return self

        def changed(part):
            if not isinstance(part, Branch | Pretrained):
                return part
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
