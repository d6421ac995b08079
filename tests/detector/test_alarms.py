"""Rules of alarms: their meaning on made-up scores, and rates that are what is stated."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, poisson

from asdjax.detector.alarms import (
    WEEK_S,
    Checked,
    Cusum,
    Follower,
    Healthy,
    KOfN,
    Level,
    Rule,
    calibrate,
    count_blocks,
)
from asdjax.types import InputError


def rule(confirm, limit=1.0, levels=None):
    levels = levels or {"": Level(0.0, 1.0)}
    return Rule(confirm, levels, limit, asked=1, stated=1, hours=1, blocks=1)


def followed(rule, scores):
    follower = Follower(rule)
    return [follower.add(score) for score in scores]


@pytest.mark.parametrize(("k", "n"), [(1, 1), (2, 3), (3, 5), (4, 4)])
def test_an_alarm_begins_with_k_of_n_above_and_ends_after_n_without(k, n):
    for above in itertools.product([False, True], repeat=9):
        alarm, want = False, []
        for end in range(1, 10):
            last = above[max(end - n, 0) : end]
            alarm = any(last) if alarm else sum(last) >= k
            want.append(alarm)
        assert followed(rule(KOfN(k, n)), [1.5 if x else 0.5 for x in above]) == want


def test_a_cumulative_sum_adds_what_exceeds_the_allowance():
    scores = [0.4, 0.9, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0]
    total, totals = 0.0, []
    for score in scores:
        total = max(0.0, total + score - 0.5)
        totals.append(total)
    begin = next(i for i, x in enumerate(totals) if x > 1)
    end = next(i for i, x in enumerate(totals) if i > begin and x == 0)
    want = [begin <= i < end for i in range(len(scores))]
    assert 0 < begin < end < len(scores) - 1
    assert followed(rule(Cusum(0.5)), scores) == want


def test_an_alarm_of_a_sum_ends_soon_after_a_long_fault():
    one = rule(Cusum(0.5), limit=3.0)
    states = followed(one, [5.0] * 1000 + [0.0] * 20)
    assert states[1:1000] == [True] * 999
    # Twice the limit, less 0.5 with each clip
    assert states[1000:] == [True] * 11 + [False] * 9


def test_a_rule_that_goes_on_from_a_state_gives_the_same():
    scores = np.random.default_rng(0).exponential(1, 200)
    for confirm in (KOfN(2, 3), Cusum(0.9)):
        want = followed(rule(confirm), scores)
        assert 0 < sum(want) < len(want)
        got, state = [], ((), False)
        for score in scores:
            follower = Follower(rule(confirm), *state)
            got.append(follower.add(score))
            state = follower.state
        assert got == want


def test_scores_are_compared_in_deviations_of_their_condition():
    levels = {"": Level(10.0, 2.0), "target": Level(30.0, 5.0)}
    one = rule(KOfN(1, 1), 3.0, levels)
    assert one.deviation(16.0) == 3 == one.deviation(45.0, "target") == one.deviation(16.0, "new")
    assert (one.threshold(), one.threshold("target")) == (16.0, 45.0)
    assert replace(one, confirm=Cusum(0.5)).threshold() == 10 + 2 * 3.5


def autoregressive(rng, count, memory):
    """Return correlated scores that are exponential, each alone."""
    noise = rng.standard_normal(count)
    x = np.empty(count)
    x[0] = noise[0]
    for i in range(1, count):
        x[i] = memory * x[i - 1] + math.sqrt(1 - memory**2) * noise[i]
    return np.exp(x)


def calibrated(scores, per_week, confirm, every=60.0, least=40):
    count = count_blocks(len(scores), least)
    blocks = np.arange(len(scores)) * count // len(scores)
    healthy = Healthy(scores, ("",) * len(scores), blocks)
    return calibrate(healthy, every, per_week, confirm)


@pytest.mark.parametrize("confirm", [KOfN(1, 1), KOfN(2, 3), Cusum(1.0)], ids=str)
@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_new_blocks_of_healthy_time_raise_alarms_as_often_as_stated(confirm, memory):
    """Over many machines, with clips that depend on each other: 25 blocks known, one is new."""
    rng = np.random.default_rng(0)
    machines, block = 400, 60
    alarms, share = 0, 0.0
    for _ in range(machines):
        scores = autoregressive(rng, 26 * block, memory)
        weeks = block * 60.0 / WEEK_S
        one = calibrated(scores[: 25 * block], 0.2 / weeks, confirm, least=block)
        share = one.stated * weeks
        alarms += any(followed(one, scores[25 * block :]))
    assert 0.1 < share <= 0.2
    # In ranks of 26 exchangeable maxima; 0.1 % of such tests fail by chance. The last block is
    # beside the known ones alone, which changes little; cumulative sums begin at 0 in all.
    low, high = binom.ppf([0.0005, 0.9995], machines, share)
    assert low <= alarms <= high


def test_fewer_healthy_hours_than_a_rate_needs_give_the_rate_that_they_support():
    scores = np.random.default_rng(1).exponential(1, 400)  # 400 minutes in 10 blocks of 40
    few = calibrated(scores, 1.0, KOfN(1, 1))
    hours = 400 / 60
    assert (few.hours, few.blocks) == (pytest.approx(hours), 10)
    assert few.stated == pytest.approx(7 * 24 / (hours / 10) / 11)  # 1 of 11 blocks
    assert few.limit == pytest.approx(few.deviation(scores.max()))
    many = calibrated(scores, 200.0, KOfN(1, 1))
    assert few.stated < many.stated <= 200
    assert many.limit < few.limit
    lines = "\n".join(few.lines("fan"))
    assert "support no rarer alarms" in lines
    assert "record about" in lines
    assert "support no rarer" not in "\n".join(many.lines("fan"))


def test_the_check_counts_alarms_in_blocks_that_took_no_part():
    scores = np.random.default_rng(2).exponential(1, 480)  # 12 blocks; the last 4 check
    quiet = calibrated(scores, 1.0, KOfN(1, 1))
    assert quiet.checked.hours == pytest.approx(160 / 60)
    scores[400:403], scores[450] = 1000, 1000
    loud = calibrated(scores, 1.0, KOfN(1, 1))
    assert loud.checked.alarms == quiet.checked.alarms + 2
    assert calibrated(scores[:60], 1.0, KOfN(1, 1)).checked is None


@pytest.mark.parametrize("count", [0, 1, 7])
def test_intervals_of_rates_are_exact(count):
    rate, low, high = Checked(count, 24.0).per_week
    assert rate == 7 * count
    assert poisson.cdf(count, high / 7) == pytest.approx(0.025)
    assert low == 0 if count == 0 else poisson.sf(count - 1, low / 7) == pytest.approx(0.025)


def test_conditions_with_enough_scores_have_levels_of_their_own():
    rng = np.random.default_rng(3)
    scores = np.concatenate([rng.exponential(1, 60), 5 + rng.exponential(3, 60), [50.0]])
    names = ["slow"] * 60 + ["fast"] * 60 + ["rare"]
    one = calibrate(Healthy(scores, tuple(names), np.arange(121) // 13), 10.0, 1000.0, KOfN(1, 1))
    assert set(one.levels) == {"", "slow", "fast"}
    assert one.levels["fast"].center == pytest.approx(np.median(scores[60:120]))
    spread = np.quantile(scores[:60], 0.75) - np.median(scores[:60])
    assert one.levels["slow"].spread == pytest.approx(spread)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: KOfN(4, 3), r"k: expected in \[1, n\], got 4"),
        (lambda: Cusum(-1.0), "allowance: expected a finite number >= 0"),
        (lambda: calibrated(np.ones(9), 0.0, KOfN()), "expected alarms a week above 0"),
        (lambda: calibrated(np.full(9, np.inf), 1.0, KOfN()), "expected finite scores"),
    ],
)
def test_impossible_rules_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


def test_equal_scores_raise_no_alarm():
    one = calibrated(np.full(200, 0.25), 1.0, KOfN(1, 1))
    assert not any(followed(one, [0.25] * 10))
    assert followed(one, [0.3]) == [True]
