"""A whole system as one frozen value, and its JSON form.

The configuration of each part lies beside its code and does its part's work; the unions here and in
the rooms say which parts there are.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from asdjax import models, scoring
from asdjax.baseline import Autoencoder, FitAutoencoders, Reconstruction
from asdjax.data.batches import Audio
from asdjax.scoring.clusters import Pseudo
from asdjax.scoring.combine import Ensemble
from asdjax.scoring.knn import Knn
from asdjax.train.config import Train
from asdjax.types import InputError, check


@dataclass(frozen=True)
class SystemConfig:
    """What is computed. Where data and results lie are options of the stages.

    Args:
      encoders: from a wave to one vector; the vectors of several are concatenated.
      scorer: from vectors to anomaly scores.
      audio: from a file to a wave.
      train: how the encoders are trained; None: they are used as they are.
      pseudo: labels for training clips without attributes, from a first training without them;
        None: such clips of a machine are one class.
      batch: clips per step while embedding, over all devices.
    """

    encoders: tuple[models.Encoder | Autoencoder, ...]
    scorer: scoring.Scorer | Reconstruction = field(default_factory=Knn)
    audio: Audio = field(default_factory=Audio)
    train: Train | FitAutoencoders | None = None
    pseudo: Pseudo | None = None
    batch: int = 32

    def __post_init__(self):
        check(
            self,
            ("encoders", "at least one", bool(self.encoders)),
            ("batch", ">= 1", self.batch >= 1),
        )
        baseline = [
            any(isinstance(encoder, Autoencoder) for encoder in self.encoders),
            isinstance(self.train, FitAutoencoders),
            isinstance(self.scorer, Reconstruction),
        ]
        if any(baseline) and not (all(baseline) and len(self.encoders) == 1):
            raise InputError(
                "expected Autoencoder, FitAutoencoders and Reconstruction together, and no other "
                "encoder beside them"
            )
        if any(baseline) and self.audio.channel == "residual":
            raise InputError(
                "expected a wave for autoencoders, whose errors cannot be subtracted; choose "
                "--audio.channel wiener"
            )
        untrained = [type(one).__name__ for one in self.encoders if one.needs_training]
        if untrained and self.train is None:
            raise InputError(f"expected `train` for {', '.join(untrained)}, got none")
        if self.train is not None and len(untrained) < len(self.encoders):
            raise InputError("expected encoders that training changes, got one that stays as it is")
        if any(encoder.one_length for encoder in self.encoders) and self.audio.seconds is None:
            raise InputError(
                "expected audio.seconds, got none: a spectral network is built for one length; "
                "give --audio.seconds with that of most clips"
            )
        if self.pseudo is not None and not isinstance(self.train, Train):
            raise InputError("pseudo labels are for training by classes, and this system has none")
        peaks = self.train.optimizer.branch_peaks if isinstance(self.train, Train) else ()
        if len(peaks) not in (0, len(self.encoders)):
            raise InputError(
                f"expected branch_peaks for {len(self.encoders)} encoders or none, got "
                f"{list(peaks)}"
            )
        for head in self.train.heads if self.train else ():
            if len(head.branch_weights) not in (0, len(self.encoders)):
                raise InputError(
                    f"expected branch_weights for {len(self.encoders)} encoders or none, got "
                    f"{list(head.branch_weights)}"
                )
            if self.train.perturbation and any(getattr(e, "scored", ()) for e in self.encoders):
                raise InputError(
                    "expected no `scored` poolings with a perturbation, which gives the embedding"
                )
            if head.branch_weights and self.train.perturbation:
                raise InputError(
                    "expected no branch_weights with a perturbation: it mixes the encoders"
                )

    def takes(self, scorer: type) -> bool:
        """Return whether this kind of scorer can score the embeddings."""
        return (scorer is Reconstruction) == isinstance(self.scorer, Reconstruction)

    @property
    def views(self) -> tuple[tuple[str, ...], int]:
        """Return the names of the vectors that lie side by side in an embedding, and their parts.

        Those are poolings or layers, and the bands of each.
        """
        if len(self.encoders) > 1:
            return ("all encoders",), 1
        return getattr(self.encoders[0], "views", (("embedding",), 1))

    def refuse_parts(self) -> None:
        """Raise an InputError where nearest neighbors are by other parts than embeddings have."""
        scorers = getattr(self.scorer, "scorers", (self.scorer,))
        asked = [one for one in scorers if isinstance(one, Knn) and (one.parts > 1 or one.view)]
        if not asked:
            return
        try:
            names, parts = self.views
        except InputError:  # of weights that are not here, which an embedded run does not need
            return
        for one in asked:
            if one.view and one.view[1] != len(names):
                raise InputError(
                    f"expected a view NUMBER {len(names)} of {', '.join(names)}, got one of "
                    f"{one.view[1]}"
                )
            known = {1, parts} if one.view else {1, len(names), len(names) * parts}
            remedy = f"give --scorer.parts {max(known)}"
            if parts == 1:
                remedy = "poolings by bands make them, --encoders.0.pools mean,bands"
                remedy += ", of log-mels with --encoders.0.bands 8"
            if one.parts not in known:
                raise InputError(
                    f"expected parts that the embedding has, {' or '.join(map(str, sorted(known)))}"
                    f", got {one.parts}; {remedy}"
                )

    @property
    def backbones(self) -> tuple[str, ...]:
        """Return the weights of the backbones, each once, in the order of the encoders."""
        return tuple(dict.fromkeys(one.weights for one in self.encoders if one.weights))

    def with_backbones(self, others: Mapping[str, str]) -> SystemConfig:
        """Return the system with other names or files of weights in place of its own."""
        encoders = tuple(
            replace(one, weights=others[one.weights]) if one.weights in others else one
            for one in self.encoders
        )
        return replace(self, encoders=encoders)


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


def from_json(plain: object, kind: type = SystemConfig) -> object:
    """Rebuild what `to_json` wrote. Classes are found by the types of the fields.

    Args:
      plain: JSON values.
      kind: the type they are of.

    Raises:
      InputError: fields or classes that are not known; absent fields have their defaults.
    """
    choices = typing.get_args(kind) if _is_union(kind) else (kind,)
    if isinstance(plain, dict):
        named = [one for one in choices if getattr(one, "__name__", "") == plain.get("class")]
        if not named:
            raise InputError(f"unknown configuration {plain.get('class')!r} in {plain}")
        hints = typing.get_type_hints(named[0])
        values = {name: value for name, value in plain.items() if name != "class"}
        known = {f.name for f in dataclasses.fields(named[0])}
        if unknown := sorted(values.keys() - known):
            raise InputError(f"unknown configuration {unknown} in {plain}")
        return named[0](**{name: from_json(value, hints[name]) for name, value in values.items()})
    if isinstance(plain, list):
        inner = next(typing.get_args(one) for one in choices if typing.get_origin(one) is tuple)
        kinds = [inner[0]] * len(plain) if inner[-1] is Ellipsis else inner
        return tuple(map(from_json, plain, kinds))
    return plain


def _is_union(kind: object) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
