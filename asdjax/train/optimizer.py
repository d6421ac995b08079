"""How weights change: Adam or AdamW under a learning rate that follows the steps of the run.

Weights are the flat dict of dotted names of `asdjax.models.weights_file`, only those that train.
What is decayed and how deep a weight lies is read from its name and shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asdjax.types import InputError, check

BRANCH = re.compile(r"branches\.(\d+)\.")  # of the names of an encoder's weights


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the run. Step s = 1, 2, ... is the one that makes the update.

    The warm-up is a straight line that reaches the peak at s = warmup. Without a `start` it comes
    from 0, so that the first update already learns: peak s / warmup. With one, the first update is
    made at that rate: start + (peak - start) (s - u) / (warmup - u), where the first update is
    made at step u; a warm-up of a single update is made at the start alone. After it (W = warmup,
    or 1 without one):

    - constant: peak.
    - cosine: end + (peak - end) (1 + cos(pi (s - W) / (cycle - W))) / 2, s counted within its
      cycle: `end` is reached at the last step of each cycle, and the next one begins with its own
      warm-up (Loshchilov and Hutter 2017, equation 5, plus the warm-up).
    - inverse-sqrt: peak sqrt(W / s) (the "inverse_sqrt" of fairseq).

    Args:
      shape: what follows the warm-up.
      peak: highest learning rate.
      warmup: steps of linear warm-up; with cosine, of every cycle.
      start: learning rate of the first update, and of the first of every cycle; 0 for none.
      end: learning rate that the cosine ends at.
      cycle: cosine: steps from restart to restart, warm-up included; None for one over the run.
    """

    shape: Literal["constant", "cosine", "inverse-sqrt"] = "constant"
    peak: float = 1e-4
    warmup: int = 0
    start: float = 0.0
    end: float = 0.0
    cycle: int | None = None

    def __post_init__(self):
        begun, cosine = max(self.warmup, 1), self.shape == "cosine"
        rises = self.shape != "inverse-sqrt" or self.warmup >= 1
        check(
            self,
            ("peak", "> 0", 0 < self.peak < np.inf),
            ("warmup", ">= 0", self.warmup >= 0),
            ("warmup", ">= 1 with shape inverse-sqrt", rises),
            *(
                (n, "from 0 to the peak", 0 <= getattr(self, n) <= self.peak)
                for n in ("start", "end")
            ),
            ("end", "0 unless shape is cosine", cosine or not self.end),
            ("cycle", "none unless shape is cosine", cosine or self.cycle is None),
            ("cycle", f"> {begun}, the warm-up", self.cycle is None or self.cycle > begun),
        )


@dataclass(frozen=True)
class Optimizer:
    """Adam or AdamW with betas 0.9, 0.999 and epsilon 1e-8 (Loshchilov and Hutter 2019).

    Args:
      kind: adamw has weight decay, adam has none.
      schedule: the learning rate.
      weight_decay: of adamw, per unit of learning rate; of matrices (kernels, LoRA factors,
        centers), not of biases, norms and gains.
      clip: largest norm of the gradient over all weights, of its mean when several are accumulated;
        None for no limit.
      layer_decay: factor of the learning rate from each layer of the backbone to the one below it
        (BEiT, ELECTRA); what follows the backbone has factor 1, its last layer the first power.
      branch_peaks: peaks for the weights of each encoder, in place of that of the schedule, which
        holds for the heads; none: one for all.
    """

    kind: Literal["adam", "adamw"] = "adamw"
    schedule: Schedule = field(default_factory=Schedule)
    weight_decay: float = 0.01
    clip: float | None = None
    layer_decay: float = 1.0
    branch_peaks: tuple[float, ...] = ()

    def __post_init__(self):
        for peak in self.branch_peaks:
            replace(self.schedule, peak=peak)  # raises
        check(
            self,
            ("weight_decay", ">= 0", 0 <= self.weight_decay < np.inf),
            ("clip", "> 0 or none", self.clip is None or 0 < self.clip < np.inf),
            ("layer_decay", "in (0, 1]", 0 < self.layer_decay <= 1),
        )


def check_length(config: Optimizer, steps: int) -> None:
    """Refuse a schedule that a run of `steps` cannot hold.

    Raises:
        InputError: the warm-up, or a cosine without cycle, does not fit into the run.
    """
    schedule = config.schedule
    if schedule.warmup > steps:
        raise InputError(
            f"expected a warm-up within the run's {steps} steps, got {schedule.warmup}: "
            "shorten the warm-up or train longer"
        )
    if schedule.shape == "cosine" and schedule.cycle is None and steps <= max(schedule.warmup, 1):
        raise InputError(
            f"expected steps after the warm-up ({schedule.warmup}) for the cosine, got a run of "
            f"{steps}: shorten the warm-up, train longer, or use shape constant"
        )


def learning_rate(
    schedule: Schedule, steps: int, unit: int = 1
) -> Callable[[int | jax.Array], jax.Array]:
    """Return the learning rate of the next update as a function of the updates done.

    Args:
      schedule: in steps.
      steps: length of the run.
      unit: steps of one update: k if steps count micro-batches, k of them to an update; else 1.

    Returns:
      `rate(count)`, `[]` float32: the schedule at step (count + 1) unit, the one that makes the
      update. Counts below 0 give the first rate, beyond the run the last.
    """
    warmup = max(schedule.warmup, 1)
    cycle = schedule.cycle or steps

    def rate(count):
        step = jnp.clip((jnp.asarray(count, jnp.int32) + 1) * unit, 1, steps)
        if schedule.shape == "cosine":
            step = (step - 1) % cycle + 1
        part = (step - warmup) / max(cycle - warmup, 1)
        after = {
            "constant": schedule.peak,
            "cosine": schedule.end
            + (schedule.peak - schedule.end) * 0.5 * (1 + jnp.cos(jnp.pi * part)),
            "inverse-sqrt": schedule.peak * jnp.sqrt(warmup / step),
        }[schedule.shape]
        first = unit if schedule.start else 0  # the step of the first update, or before it
        risen = jnp.clip((step - first) / max(warmup - first, 1), 0, 1)
        rising = schedule.start + (schedule.peak - schedule.start) * risen
        rising = rising if schedule.warmup else schedule.peak
        return jnp.where(step <= warmup, rising, after).astype(jnp.float32)

    return rate


def make_optimizer(
    config: Optimizer,
    trainable: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
    steps: int,
    accumulate: int = 1,
    unit: int = 1,
) -> optax.GradientTransformation:
    """Return clipping, Adam or AdamW, learning rate and layer-wise factors, in this order.

    Args:
      trainable: dotted names to anything with a shape: `branches.0.backbone.layers.3.fc1.bias`, ...
      steps, unit: as for `learning_rate`.
      accumulate: gradients averaged for one update; all but the last of them change nothing.

    Raises:
        InputError: as `check_length`.
    """
    check_length(config, steps)
    factors = layer_factors(trainable, config.layer_decay)
    mask = {name: decays(name, len(value.shape)) for name, value in trainable.items()}
    parts = [
        optax.clip_by_global_norm(config.clip) if config.clip is not None else optax.identity(),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay, mask)
        if config.kind == "adamw"
        else optax.identity(),
        _scale_by_rates(config, factors, steps, unit),
    ]
    optimizer = optax.chain(*parts)
    if accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, accumulate).gradient_transformation()


def learning_rates(
    config: Optimizer, steps: int, unit: int = 1
) -> list[Callable[[int | jax.Array], jax.Array]]:
    """Return `learning_rate` of the schedule, then of each branch that has a peak of its own."""
    peaks = config.schedule.peak, *config.branch_peaks
    return [learning_rate(replace(config.schedule, peak=peak), steps, unit) for peak in peaks]


def _scale_by_rates(
    config: Optimizer, factors: Mapping[str, float], steps: int, unit: int
) -> optax.GradientTransformation:
    """Return the change times minus the learning rate of each weight."""
    rates = learning_rates(config, steps, unit)

    def which(name: str) -> int:
        branch = BRANCH.match(name)
        return int(branch[1]) + 1 if branch and config.branch_peaks else 0

    def init(_):
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(change, state, _=None):
        found = [rate(state.count) for rate in rates]
        change = {n: -found[which(n)] * factors[n] * value for n, value in change.items()}
        return change, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def updates_done(state: optax.OptState) -> jax.Array:
    """Return how many updates were made, `[]` int32; accumulating alone makes none.

    Args:
      state: of an optimizer of `make_optimizer`.
    """
    if isinstance(state, optax.MultiStepsState):
        return state.gradient_step
    return next(part.count for part in state if isinstance(part, optax.ScaleByScheduleState))


def decays(name: str, dimensions: int) -> bool:
    """Return whether weight decay acts on it: at least two dimensions, and not called a bias.

    So kernels, LoRA factors, centers and the direction of a weight-normalized convolution do;
    biases, norms, gains and the table of relative position biases do not.
    """
    return dimensions > 1 and "bias" not in name.rsplit(".", 1)[-1]


def layer_factors(names: Mapping[str, object] | list[str], decay: float) -> dict[str, float]:
    """Return the layer-wise factor of each weight, `decay` to the power of its depth from the top.

    Depth is 0 for all that follows a branch's backbone, 1 for the last of its n layers, n for the
    first, and n + 1 for what lies outside of the layers (input, position, norm).
    Source: Clark et al. 2020 (ELECTRA), Bao et al. 2022 (BEiT).
    """
    inside = re.compile(r"(branches\.\d+)\.backbone\.(?:layers\.(\d+)\.)?")
    found = {name: inside.match(name) for name in names}
    last: dict[str, int] = {}  # layer of each branch
    for match in filter(None, found.values()):
        last[match[1]] = max(last.get(match[1], -1), int(match[2] or -1))

    def depth(match: re.Match | None) -> int:
        if match is None:
            return 0
        layers = last[match[1]] + 1
        return layers - int(match[2]) if match[2] else layers + 1

    return {name: decay ** depth(match) for name, match in found.items()}
