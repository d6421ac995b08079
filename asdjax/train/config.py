"""How a system is trained, as a value."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from asdjax.data.labels import LabelKind
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.losses.contrastive import Contrastive
from asdjax.losses.margin import Margin
from asdjax.train.optimizer import Optimizer
from asdjax.train.supplement import Supplement
from asdjax.types import InputError, check_choices, preview


@dataclass(frozen=True)
class HeadConfig:
    """What one head tells apart, and by which loss.

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

    loss: Margin | AdaCos | Contrastive = field(default_factory=Margin)
    labels: LabelKind = "attributes"
    weight: float = 1.0
    branch_weights: tuple[float, ...] = ()
    subcenters: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        check_choices(self)
        for weight in (self.weight, *self.branch_weights):
            if not 0 < weight < math.inf:
                raise InputError(f"expected positive weights of a head, got {weight}")
        listed = Counter(name for name, _ in self.subcenters)
        if several := [name for name, count in listed.items() if count > 1]:
            raise InputError(
                f"expected each machine or class once in subcenters, got {preview(several)} again"
            )
        if isinstance(self.loss, Contrastive) and (self.branch_weights or self.subcenters):
            raise InputError(
                "expected no branch_weights and no subcenters with a contrastive loss: it has no "
                "centers and is of whole embeddings"
            )


@dataclass(frozen=True)
class Train:
    """Classification of normal clips.

    Args:
      steps: of the run; see `counted`.
      batch: clips of one forward and backward pass, over all devices.
      accumulate: passes whose gradients are averaged for one update.
      counted: what `steps`, warm-up and cycles of the schedule count: passes ("micro-steps"), or
        updates, each of `accumulate` passes.
      heads: what is told apart.
      optimizer: Adam or AdamW and the learning rate.
      augment: what is done to the clips at each step, on the device.
      balance: classes get synthetic clips (SMOTE) up to this part of the largest class; 0 for none.
      supplement: what of the supplemental clips of 2025 is used.
      ema: decay of a moving average of weights and statistics, per update n at most n / (9 + n), so
        that the start is soon forgotten; 0 for none. If there is one, it is what embeds.
      held_out: part of the normal training clips kept for validation, from classes of at least ten.
      select: which weights embed: the last, or the best on the held-out clips.
      source: keep all clips on the devices, or stream them from the files; both train alike. "auto"
        keeps them if they need less than a third of the free memory.
      log_every: passes from one line of `log.jsonl` to the next.
      save_every: passes from one checkpoint (and validation) to the next.
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
    ema: float = 0.0
    held_out: float = 0.0
    select: Literal["last", "best"] = "last"
    source: Literal["auto", "resident", "streaming"] = "auto"
    log_every: int = 20
    save_every: int = 500
    seed: int = 0

    def __post_init__(self):
        check_choices(self)
        counts = ("steps", "batch", "accumulate", "log_every", "save_every")
        wrong = [f"{n} >= 1, got {getattr(self, n)}" for n in counts if getattr(self, n) < 1]
        wrong += [
            f"{name} in [0, 1), got {getattr(self, name)}"
            for name in ("ema", "held_out")
            if not 0 <= getattr(self, name) < 1
        ]
        if not 0 <= self.balance <= 1:
            wrong.append(f"balance in [0, 1], got {self.balance}")
        if self.seed < 0:
            wrong.append(f"seed >= 0, got {self.seed}")
        if all(isinstance(head.loss, Contrastive) for head in self.heads):
            wrong.append("at least one head that tells classes, got none")
        if self.passes < self.accumulate:
            wrong.append(f"steps >= accumulate ({self.accumulate}), got {self.steps}: no update")
        if self.select == "best" and not self.held_out:
            wrong.append('held_out > 0 with select="best", got 0: nothing to choose by')
        if wrong:
            raise InputError("training: expected " + "; expected ".join(wrong))

    @property
    def passes(self) -> int:
        """Return forward and backward passes of the run."""
        return self.steps * (self.accumulate if self.counted == "updates" else 1)

    @property
    def unit(self) -> int:
        """Return how many of the schedule's steps one update is."""
        return self.accumulate if self.counted == "micro-steps" else 1
