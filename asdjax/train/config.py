"""How a system is trained, as a value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from asdjax import losses
from asdjax.data.audio import AudioInfo
from asdjax.data.batches import Audio
from asdjax.data.labels import LabelKind
from asdjax.frontend.augment import Augment
from asdjax.losses.margin import Margin
from asdjax.models.system import Architecture, Embedder, Network
from asdjax.models.weights_file import Params
from asdjax.train.optimizer import Optimizer
from asdjax.types import Clip, Reported, check, preview


class Job(NamedTuple):
    """One training: of what, on what, and where it goes.

    Args:
      encoders: configurations of the system's encoders.
      audio: how a file becomes a wave.
      clips: normal training clips and, behind them, supplemental ones.
      infos: what is known of each file.
      out: the run's folder; gets `checkpoints/`, `log.jsonl`, `labels.json`.
      model: the file for what was trained.
      key: plain JSON: all that the result depends on; compared when a training is resumed.
      anew: do not resume; remove what an earlier training left.
      reported: what the system's report says of its training, told beside ours.
    """

    encoders: tuple[Any, ...]
    audio: Audio
    clips: Sequence[Clip]
    infos: Mapping[Path, AudioInfo]
    out: Path
    model: Path
    key: dict
    anew: bool = False
    reported: Reported = Reported()

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(encoder.network(self.audio.samples) for encoder in self.encoders)


@dataclass(frozen=True)
class Supplement:
    """What of the supplemental clips is used; by default nothing.

    Args:
      clean: recordings of a machine alone are training clips of it, with the attributes in their
        names; those without are a class of their own where the machine's others have attributes.
      noise: probability, per clip, that noise from beside its machine is added to it.
      snr_db: bounds of the clip's power over the noise's, dB; uniform between them.
    """

    clean: bool = False
    noise: float = 0.0
    snr_db: tuple[float, float] = (0.0, 20.0)

    def __post_init__(self):
        decibel = len(self.snr_db) == 2 and -100 <= self.snr_db[0] <= self.snr_db[1] <= 100
        check(
            self,
            ("noise", "a probability in [0, 1]", 0 <= self.noise <= 1),
            ("snr_db", "two numbers in [-100, 100] dB, the smaller first", decibel),
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of clips that are used, as `Clip.supplement` has them."""
        return ("clean",) * self.clean + ("noise",) * (self.noise > 0)


@dataclass(frozen=True)
class HeadConfig:
    """The classes of one head, and its loss.

    Args:
      loss: softmax, AM-softmax, (sub-center) ArcFace, (sub-cluster) AdaCos, or the contrastive term
        of OS-SCL, which is added to another head on the same labels.
      labels: classes: machines, or machines with each of their attribute strings.
      weight: of its loss in the sum over heads.
      branch_weights: of the same loss, with centers of its own, on the embedding of each branch
        alone; none for no such losses.
      subcenters: (machine or class, number of its sub-centers) where it differs from the loss's; a
        class comes before its machine, and each is listed once.
    """

    loss: losses.Loss = field(default_factory=Margin)
    labels: LabelKind = "attributes"
    weight: float = 1.0
    branch_weights: tuple[float, ...] = ()
    subcenters: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        positive = [0 < weight < math.inf for weight in (self.weight, *self.branch_weights)]
        listed = Counter(name for name, _ in self.subcenters)
        several = preview(name for name, count in listed.items() if count > 1)
        wrong = preview(f"{n} of {name}" for name, n in self.subcenters if n < 1 or n % 1)
        fits = self.loss.has_classes or not (self.branch_weights or self.subcenters)
        check(
            self,
            ("weight", "> 0", positive[0]),
            ("branch_weights", "> 0", all(positive[1:])),
            ("subcenters", f"each machine or class once, not {several} again", not several),
            ("subcenters", f"whole numbers >= 1, not {wrong}", not wrong),
            ("loss", "one with classes for branch_weights and subcenters", fits),
        )


@dataclass(frozen=True)
class Train:
    """Classification of normal clips.

    Args:
      steps: of the run; see `counted`.
      batch: clips of one forward and backward pass, over all devices.
      accumulate: micro-batches whose gradients are averaged for one update.
      counted: what `steps`, warm-up and cycles of the schedule count: micro-batches
        ("micro-steps"), or updates, each of `accumulate` micro-batches.
      heads: classification heads; the losses of all are added.
      optimizer: Adam or AdamW and the learning rate.
      augment: what is done to the clips at each step, on the device.
      balance: classes get synthetic clips (SMOTE) up to this part of the largest class; 0 for none.
      supplement: what of the supplemental clips of 2025 is used.
      perturbation: hidden width of a feature-perturbation head (OS-SCL) behind the encoders, whose
        output is then the embedding; 0 for none.
      ema: decay of the exponential moving average of the weights and statistics; 0: off. If on, the
        averaged weights compute the embeddings.
      ema_ramp: the decay is at most n / (9 + n) at update n, so that the start is soon forgotten.
        Without it the average of n updates still holds ema^n of the initial weights.
      held_out: part of the normal training clips kept for validation, from classes of at least ten.
      select: which weights embed: the last, or the best on the held-out clips.
      source: keep all clips on the devices, or stream them from the files; both train alike. "auto"
        keeps them if they need less than a third of the free memory.
      log_every: micro-batches from one line of `log.jsonl` to the next.
      save_every: micro-batches from one checkpoint (and validation) to the next.
      seed: of initial weights, order of clips and augmentation.
    """

    steps: int = 10_000
    batch: int = 32
    accumulate: int = 1
    counted: Literal["micro-steps", "updates"] = "micro-steps"
    heads: tuple[HeadConfig, ...] = (HeadConfig(),)
    optimizer: Optimizer = field(default_factory=Optimizer)
    augment: Augment = field(default_factory=Augment)
    balance: float = 0.0
    supplement: Supplement = field(default_factory=Supplement)
    perturbation: int = 0
    ema: float = 0.0
    ema_ramp: bool = False
    held_out: float = 0.0
    select: Literal["last", "best"] = "last"
    source: Literal["auto", "resident", "streaming"] = "auto"
    log_every: int = 20
    save_every: int = 500
    seed: int = 0

    def __post_init__(self):
        counts = "steps", "batch", "accumulate", "log_every", "save_every"
        update = self.micro_batches >= self.accumulate
        by_classes = any(head.loss.has_classes for head in self.heads)
        check(
            self,
            *((n, ">= 1", getattr(self, n) >= 1) for n in counts),
            ("ema", "in [0, 1)", 0 <= self.ema < 1),
            ("held_out", "in [0, 0.5]", 0 <= self.held_out <= 0.5),
            ("held_out", "> 0 with select 'best'", self.select != "best" or self.held_out > 0),
            ("balance", "in [0, 1]", 0 <= self.balance <= 1),
            ("perturbation", ">= 0 (0: none)", self.perturbation >= 0),
            ("seed", ">= 0", self.seed >= 0),
            ("heads", "at least one that separates classes", by_classes),
            ("steps", f">= accumulate ({self.accumulate}), for one update", update),
        )

    @property
    def micro_batches(self) -> int:
        """Return forward and backward passes of the run."""
        return self.steps * (self.accumulate if self.counted == "updates" else 1)

    @property
    def unit(self) -> int:
        """Return how many of the schedule's steps one update is."""
        return self.accumulate if self.counted == "micro-steps" else 1

    def fit(self, job: Job) -> None:
        """Train and write the model file; resumes a training that was stopped."""
        from asdjax.train import loop

        loop.train(self, job)

    def embedder(self, encoders: Sequence[Any], audio: Audio, trained: Params) -> Embedder:
        """Return what embeds with trained weights."""
        networks = tuple(encoder.network(audio.samples) for encoder in encoders)
        return Architecture(networks, perturbation=self.perturbation).embedder(trained)

    @property
    def supplemental(self) -> tuple[str, ...]:
        """Return the kinds of supplemental clips that are used."""
        return self.supplement.kinds

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Return the fields on which the trained weights do not depend."""
        # With select="best" the checkpoints that were saved are what is chosen from.
        return "log_every", "source", *(() if self.select == "best" else ("save_every",))

    def normal_scores(
        self, model: Path, group: tuple[str, str], scorer: Any, year: int | None, scores: np.ndarray
    ) -> np.ndarray:
        """Return the scores of normal sounds to which a threshold is fitted: these `[n]`.

        Args:
          model: what was trained.
          group: machine and section.
          scorer, year: of the run.
          scores: `[n]`, of the training clips.
        """
        return scores
