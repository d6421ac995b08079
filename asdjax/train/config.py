"""How a system is trained, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from asdjax.data.labels import LabelKind
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.losses.margin import Margin
from asdjax.train.optimizer import Optimizer
from asdjax.types import InputError, check_choices


@dataclass(frozen=True)
class HeadConfig:
    """What one head tells apart, and by which loss.

    Args:
      loss: softmax, AM-softmax, (sub-center) ArcFace, or (sub-cluster) AdaCos.
      labels: classes: machines, or machines with each of their attribute strings.
      weight: of its loss in the sum over heads.
      branch_weights: of the same loss, with centers of its own, on the embedding of each branch
        alone; none for no such losses.
    """

    loss: Margin | AdaCos = field(default_factory=Margin)
    labels: LabelKind = "attributes"
    weight: float = 1.0
    branch_weights: tuple[float, ...] = ()

    def __post_init__(self):
        check_choices(self)
        for weight in (self.weight, *self.branch_weights):
            if not 0 < weight < math.inf:
                raise InputError(f"expected positive weights of a head, got {weight}")


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
        if self.seed < 0:
            wrong.append(f"seed >= 0, got {self.seed}")
        if not self.heads:
            wrong.append("at least one head, got none")
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
