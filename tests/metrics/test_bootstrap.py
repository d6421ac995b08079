"""Intervals over clips: against draws one by one, and against what they promise."""

from pathlib import Path

import numpy as np
import pytest

from asdjax.metrics.bootstrap import compare, draws
from asdjax.metrics.official import evaluate
from asdjax.types import Clip, Scores

FAN, PUMP = ("fan", "section_00"), ("pump", "section_00")


def made_clips(group, count, domains=("source", "target")):
    return [
        Clip(Path(f"{domain}_{label}_{i}.wav"), *group, "test", domain, label)
        for domain in domains
        for label in (0, 1)
        for i in range(count)
    ]


def scores_of(clips, rng, shift=1.0):
    return rng.standard_normal(len(clips)) + shift * np.array([clip.label for clip in clips])


def test_a_draw_keeps_the_numbers_of_each_domain_and_label():
    clips = made_clips(FAN, 5) + made_clips(FAN, 3)
    rows = draws(clips, 200, np.random.default_rng(0))
    assert rows[0].tolist() == list(range(len(clips)))
    cell = np.array([f"{clip.domain} {clip.label}" for clip in clips])
    np.testing.assert_array_equal(cell[rows], np.tile(cell, (201, 1)))
    counts = np.bincount(rows[1:].ravel(), minlength=len(clips)) / 200
    np.testing.assert_allclose(counts, 1, atol=0.35)  # 5 deviations of a mean of 200


def test_scores_and_intervals_are_those_of_the_official_evaluation_of_each_draw():
    rng = np.random.default_rng(1)
    clips = {FAN: made_clips(FAN, 8), PUMP: made_clips(PUMP, 6)}
    systems = {
        name: {g: scores_of(c, rng, s) for g, c in clips.items()}
        for name, s in (("a", 1), ("b", 2))
    }
    found = compare(clips, systems, 2024, 20, seed=3)
    rng = np.random.default_rng(3)
    rows = {group: draws(own, 20, rng) for group, own in clips.items()}

    def official(system, draw):
        files, drawn = [], []
        for group, own in clips.items():
            picked = [own[i] for i in rows[group][draw]]
            named = [
                Clip(Path(f"{i}.wav"), *group, "test", clip.domain, clip.label)
                for i, clip in enumerate(picked)
            ]
            values = systems[system][group][rows[group][draw]]
            files.append(Scores(*group, tuple(clip.name for clip in named), values))
            drawn += named
        metrics = evaluate(files, drawn, 2024)
        return next(m.value for m in metrics if m.metric == "official_score")

    values = {name: np.array([official(name, draw) for draw in range(21)]) for name in systems}
    total = {row.system: row for row in found if row.machine == "ALL"}
    for name, row in total.items():
        more = values[name] - values["a"]
        # 1e-12: equal but for the order of float64 sums
        assert row.score == pytest.approx(values[name][0], abs=1e-12)
        ends = np.quantile(values[name][1:], [0.025, 0.975])
        np.testing.assert_allclose([row.low, row.high], ends, atol=1e-12)
        np.testing.assert_allclose(
            [row.more, row.more_low, row.more_high],
            [more[0], *np.quantile(more[1:], [0.025, 0.975])],
            atol=1e-12,
        )
    assert [row.machine for row in found] == ["fan", "fan", "pump", "pump", "ALL", "ALL"]


def test_equal_systems_do_not_differ_and_2020_has_scores_too():
    rng = np.random.default_rng(0)
    group = ("fan", "id_00")
    clips = {group: made_clips(group, 10, domains=(None,))}
    values = scores_of(clips[group], rng)
    for row in compare(clips, {"a": {group: values}, "b": {group: 3 * values}}, 2020, 100):
        assert (row.more, row.more_low, row.more_high) == (0, 0, 0)
        assert row.low < row.score < row.high


def test_intervals_hold_the_true_difference_about_as_often_as_they_say():
    """Two systems whose scores share what makes clips hard."""
    rng = np.random.default_rng(5)

    def drawn(count, times):
        clips = made_clips(FAN, count)
        shared = rng.standard_normal(len(clips))
        systems = {
            name: {FAN: 0.95 * shared + 0.31 * scores_of(clips, rng, shift)}
            for name, shift in (("a", 3.2), ("b", 4.2))
        }
        return compare({FAN: clips}, systems, 2024, times)[1]

    truth = drawn(20_000, 1).more  # to 0.002; intervals are 0.1 wide
    rows = [drawn(50, 200) for _ in range(100)]
    inside = np.mean([row.more_low <= truth <= row.more_high for row in rows])
    # 95 % of 100, 4 deviations of a binomial below; such intervals are known to be a bit narrow.
    assert 0.86 <= inside < 1
    wide = np.mean([row.high - row.low for row in rows])
    assert np.mean([row.more_high - row.more_low for row in rows]) < 0.8 * wide  # they share clips
