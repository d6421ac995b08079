"""When to raise an alarm: rules over time, and limits with a stated rate of false alarms.

A rule turns the scores so far into one number: the k-th largest of the last n, or a cumulative sum.
An alarm begins where that number exceeds a limit.

The limit is from healthy sound. Consecutive clips are alike, so not clips but blocks of time are
counted. If the next block of healthy time is exchangeable with the m blocks that are known, its
largest number exceeds the j-th largest of theirs with a probability of at most j / (m + 1),
whatever the distribution of scores is and however they depend on each other within a block. With
blocks of w weeks, r alarms a week are kept by j = r w (m + 1), rounded down. That is below 1 where
r is rarer than healthy time allows: then j is 1, and the rate that this supports is told.

Scores are compared in deviations of their operating condition (`Level`), so that one limit serves
all of them.

Source: the ranks of conformal prediction, Vovk, Gammerman and Shafer 2005; Laxhammar and Falkman
  2010, for anomalies; cumulative sums: Page 1954; intervals of rates: Garwood 1936.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from asdjax.types import InputError, check, counted

WEEK_S = 7 * 24 * 3600.0
MOST_BLOCKS = 20  # of the healthy time of a machine: long ones depend less on each other
FEW = 20  # scores of a condition, fewer of which have no level of their own
CHECKED = 1 / 3  # of the blocks, the last ones, that check the limit of the others
Memory = tuple[float, ...]  # what a rule has to know of the scores so far


@dataclass(frozen=True)
class KOfN:
    """An alarm begins with k of n consecutive clips above the limit, and ends after n without.

    Args:
      k, n: 1 of 1 takes every clip above the limit for an alarm.
    """

    k: int = 2
    n: int = 3

    def __post_init__(self):
        check(self, ("k", "in [1, n]", 1 <= self.k <= self.n))

    def step(self, memory: Memory, deviation: float) -> tuple[Memory, float]:
        """Return the memory with one clip more, and the number that is compared with the limit."""
        memory = (*memory, deviation)[-self.n :]
        return memory, sorted(memory)[-self.k] if len(memory) >= self.k else -math.inf

    def over(self, memory: Memory, limit: float) -> bool:
        """Return whether an alarm is over."""
        return max(memory) <= limit

    def bounded(self, memory: Memory, limit: float) -> Memory:
        """Return the memory without what would keep an alarm from its end for long."""
        return memory

    def alone(self, limit: float) -> float:
        """Return the deviation above which one clip speaks for an alarm."""
        return limit

    def __str__(self) -> str:
        return f"{self.k} of {self.n} clips"


@dataclass(frozen=True)
class Cusum:
    """An alarm begins when the sum of what exceeds an allowance passes the limit; ends at sum 0.

    The sum never falls below 0, nor does it rise beyond twice the limit. It finds faults that raise
    scores little, but for long.

    Args:
      allowance: deviations of a clip that add nothing.

    Source: Page 1954, "Continuous inspection schemes".
    """

    allowance: float = 1.0

    def __post_init__(self):
        check(self, ("allowance", "a finite number >= 0", 0 <= self.allowance < math.inf))

    def step(self, memory: Memory, deviation: float) -> tuple[Memory, float]:
        """Return as `KOfN.step`."""
        total = max(0.0, sum(memory) + deviation - self.allowance)
        return (total,), total

    def over(self, memory: Memory, limit: float) -> bool:
        """Return whether an alarm is over."""
        return memory[0] == 0

    def bounded(self, memory: Memory, limit: float) -> Memory:
        """Return as `KOfN.bounded`: the sum, no more than twice the limit."""
        return (min(memory[0], 2 * limit),)

    def alone(self, limit: float) -> float:
        """Return the deviation above which one clip speaks for an alarm."""
        return limit + self.allowance

    def __str__(self) -> str:
        return f"a cumulative sum with an allowance of {self.allowance:g}"


Confirm = KOfN | Cusum


class Level(NamedTuple):
    """What is usual of scores: deviations are (score - center) / spread."""

    center: float  # median
    spread: float  # upper quartile - median


class Checked(NamedTuple):
    """Alarms in healthy time that took no part in a limit."""

    alarms: int
    hours: float

    @property
    def per_week(self) -> tuple[float, float, float]:
        """Return alarms a week and the limits of its exact 95 % interval (Poisson)."""
        from scipy.stats import chi2

        low = chi2.ppf(0.025, 2 * self.alarms) / 2 if self.alarms else 0.0
        high = chi2.ppf(0.975, 2 * self.alarms + 2) / 2
        return tuple(float(x) * WEEK_S / 3600 / self.hours for x in (self.alarms, low, high))


class Healthy(NamedTuple):
    """Scores of healthy clips, in the order of time, by which a limit is found."""

    scores: np.ndarray  # [n] float32, each by references of another part of the time
    conditions: tuple[str, ...]  # [n], the operating condition of each
    blocks: np.ndarray  # [n] int, the block of time of each, rising in the order of time


@dataclass(frozen=True)
class Rule:
    """When one machine raises an alarm.

    Args:
      confirm: how scores become the number that is compared with the limit.
      levels: of each operating condition, "" of all others.
      limit: in deviations.
      asked, stated: alarms a week: asked for, and that the healthy time supports.
      hours, blocks: of healthy time behind it.
      checked: what a limit from the first blocks did in the last ones; None: too few blocks.
    """

    confirm: Confirm
    levels: dict[str, Level]
    limit: float
    asked: float
    stated: float
    hours: float
    blocks: int
    checked: Checked | None = None

    def deviation(self, score: float, condition: str = "") -> float:
        """Return a score in deviations of its condition."""
        level = self.levels.get(condition, self.levels[""])
        return (score - level.center) / level.spread

    def threshold(self, condition: str = "") -> float:
        """Return the score above which one clip of a condition speaks for an alarm."""
        level = self.levels.get(condition, self.levels[""])
        return level.center + level.spread * self.confirm.alone(self.limit)

    def lines(self, name: str) -> list[str]:
        """Return what a user should know of it."""
        rate = f"{_number(self.stated)} false alarms a week"
        lines = [f"{name}: alarm by {self.confirm}; limit for at most {rate}"]
        if self.stated > self.asked * (1 + 1e-9):
            needed = self.hours * self.stated / self.asked
            lines.append(
                f"{name}: {_number(self.hours)} h of healthy sound support no rarer alarms; for "
                f"{_number(self.asked)} a week record about {_number(needed)} h"
            )
        if self.checked is None:
            lines.append(f"{name}: not checked, of {counted(self.blocks, 'block')} of time")
        else:
            rate, low, high = map(_number, self.checked.per_week)
            lines.append(
                f"{name}: checked: a limit from the first part of the recordings gave "
                f"{counted(self.checked.alarms, 'alarm')} in the last "
                f"{_number(self.checked.hours)} h, {rate} a week (95 %: {low} to {high})"
            )
        return lines


def _number(value: float) -> str:
    """Return a number with three digits that count, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Follower:
    """A rule that follows the scores of a machine as they come.

    Args:
      rule: the rule.
      memory, alarm: as of `state` of an earlier one, to go on with.
    """

    def __init__(self, rule: Rule, memory: Memory = (), alarm: bool = False):
        self.rule, self.memory, self.alarm = rule, tuple(memory), alarm

    def add(self, score: float, condition: str = "") -> bool:
        """Return whether there is an alarm, with one score more."""
        deviation = self.rule.deviation(score, condition)
        self.memory, self.alarm = _follow(self.rule, self.memory, self.alarm, deviation)
        return self.alarm

    @property
    def state(self) -> tuple[Memory, bool]:
        return self.memory, self.alarm


def _follow(rule: Rule, memory: Memory, alarm: bool, deviation: float) -> tuple[Memory, bool]:
    memory, number = rule.confirm.step(memory, deviation)
    memory = rule.confirm.bounded(memory, rule.limit)
    if alarm:
        return memory, not rule.confirm.over(memory, rule.limit)
    return memory, number > rule.limit


def count_blocks(clips: int, least: int) -> int:
    """Return into how many blocks clips are cut, each of at least `least` if there are so many."""
    return max(min(clips // least, MOST_BLOCKS), 1)


def calibrate(healthy: Healthy, every: float, asked: float, confirm: Confirm) -> Rule:
    """Return the rule of a machine from its healthy clips.

    Args:
      healthy: their scores.
      every: seconds from one clip to the next.
      asked: alarms a week.
      confirm: the rule's confirmation.

    Raises:
      InputError: no rate, or scores that are not finite.
    """
    if not 0 < asked < math.inf:
        raise InputError(f"expected alarms a week above 0, got {asked}")
    scores, conditions, blocks = (
        healthy.scores,
        np.array(healthy.conditions, object),
        healthy.blocks,
    )
    if not np.isfinite(scores).all():
        raise InputError("expected finite scores of healthy clips; record more of them")
    every_block = np.unique(blocks)
    m = len(every_block)
    rule = _rule(scores, conditions, blocks, every, asked, confirm)
    last = every_block[m - round(m * CHECKED) :]
    if not len(last) or m - len(last) < 2:
        return rule
    late = np.isin(blocks, last)
    early = _rule(scores[~late], conditions[~late], blocks[~late], every, asked, confirm)
    parts = [(scores[blocks == block], conditions[blocks == block]) for block in last]
    alarms = sum(_alarms(early, *part) for part in parts)
    return replace(rule, checked=Checked(int(alarms), float(late.sum() * every / 3600)))


def _rule(scores, conditions, blocks, every: float, asked: float, confirm: Confirm) -> Rule:
    levels = _levels(scores, conditions)
    rule = Rule(confirm, levels, 0.0, asked, asked, len(scores) * every / 3600, 0)
    largest = []
    for block in np.unique(blocks):
        memory, numbers = (), []
        part = scores[blocks == block], conditions[blocks == block]
        for score, condition in zip(*part, strict=True):
            memory, number = confirm.step(memory, rule.deviation(score, condition))
            numbers.append(number)
        largest.append(max(numbers))
    m = len(largest)
    weeks = len(scores) * every / m / WEEK_S  # of a block
    rank = int(min(max(asked * weeks * (m + 1) * (1 + 1e-9), 1), m))
    limit = float(sorted(largest)[-rank])
    if limit == -math.inf:  # blocks shorter than k
        limit = max(rule.deviation(*pair) for pair in zip(scores, conditions, strict=True))
    stated = rank / (m + 1) / weeks
    return Rule(confirm, levels, limit, asked, stated, rule.hours, m)


def _alarms(rule: Rule, scores, conditions) -> int:
    """Return how many alarms begin."""
    follower, before, count = Follower(rule), False, 0
    for score, condition in zip(scores, conditions, strict=True):
        now = follower.add(score, condition)
        count += now and not before
        before = now
    return count


def _levels(scores: np.ndarray, conditions: np.ndarray) -> dict[str, Level]:
    levels = {"": _level(scores)}
    for condition in np.unique(conditions):
        own = scores[conditions == condition]
        if condition and len(own) >= FEW:
            levels[condition] = _level(own)
    return levels


def _level(scores: np.ndarray) -> Level:
    center, upper = np.quantile(np.asarray(scores, np.float64), (0.5, 0.75))
    least = max(1e-6 * abs(center), np.finfo(np.float32).tiny)
    return Level(float(center), float(max(upper - center, least)))
