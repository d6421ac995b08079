"""Scoring of machines by meaning: reference sets, standardization, leave-one-out, thresholds."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import gamma

from asdjax.scoring.knn import Knn
from asdjax.scoring.oversampling import Smote, oversample
from asdjax.scoring.score import score, threshold
from asdjax.types import Clip, Embeddings, InputError


def machine(values, domains=None, split="train"):
    values = np.asarray(values, np.float32)
    domains = domains or ["source"] * len(values)
    clips = tuple(
        Clip(Path(f"{split}_{i}.wav"), "fan", "section_00", split, domain)
        for i, domain in enumerate(domains)
    )
    return Embeddings(clips, values)


def direction(*degrees):
    """Unit vectors in the plane: the cosine distance of two is 1 - cos of the angle between."""
    angle = np.deg2rad(np.array(degrees, float))
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def distance(degrees):
    return 1 - np.cos(np.deg2rad(degrees))


def test_more_neighbors_than_clips_are_all_clips_and_noted():
    train = machine(direction(0, 10, 90), ["source", "source", "target"])
    test, lines = machine(direction(20), split="test"), []
    found, _ = score([train], [test], Knn(k=4), lines.append)
    assert lines == ["fan/section_00: 3 clips in place of 4 neighbors"]
    want = (distance(20) + distance(10) + distance(70)) / 3
    np.testing.assert_allclose(found[0], want, **close)
    score([train], [test], Knn(k=3), lines.append)
    assert len(lines) == 1
    score([train], [test], Knn(k=3, references="domain"), lines.append)
    assert lines[1:] == [
        "fan/section_00: 2 source clips in place of 3 neighbors",
        "fan/section_00: 1 target clip in place of 3 neighbors",
    ]


# 1e-6: float32 cosines of unit vectors in the plane.
close = {"rtol": 0, "atol": 1e-6}


def test_pooled_is_the_mean_distance_to_the_k_nearest_of_all():
    train = machine(direction(0, 10, 90), ["source", "source", "target"])
    test = machine(direction(20, 85), split="test")
    found, left = score([train], [test], Knn(k=2))
    want = [(distance(10) + distance(20)) / 2, (distance(5) + distance(75)) / 2]
    np.testing.assert_allclose(found[0], want, **close)
    want = [
        (distance(10) + distance(90)) / 2,
        (distance(10) + distance(80)) / 2,
        (distance(90) + distance(80)) / 2,
    ]
    np.testing.assert_allclose(left[0], want, **close)


def test_by_domain_the_nearer_one_counts_and_a_clip_is_left_out_of_its_own():
    train = machine(direction(0, 10, 90), ["source", "source", "target"])
    found, left = score([train], [machine(direction(50, 20), split="test")], Knn(2, "domain"))
    # The target set has one clip, so its "two nearest" are that one.
    source = (distance(50) + distance(40)) / 2, (distance(20) + distance(10)) / 2
    target = distance(40), distance(70)
    np.testing.assert_allclose(found[0], np.minimum(source, target), **close)
    # Left out: source clips see one source clip; the target clip sees only the source set.
    both = (distance(90) + distance(80)) / 2
    np.testing.assert_allclose(left[0], [distance(10), distance(10), both], **close)


def test_a_machine_without_target_clips_uses_its_source_clips():
    train, test = machine(direction(0, 30, 60)), machine(direction(40), split="test")
    by_domain = score([train], [test], Knn(1, "domain"))
    pooled = score([train], [test], Knn(1, "pooled"))
    np.testing.assert_array_equal(by_domain[0][0], pooled[0][0])


def test_standardization_uses_training_clips_only():
    rng = np.random.default_rng(0)
    train = machine(rng.normal(5, [1, 10, 0.1], (40, 3)))
    test = rng.normal(5, [1, 10, 0.1], (6, 3))
    config = Knn(standardize="machine")
    alone = [score([train], [machine(row[None], split="test")], config)[0][0][0] for row in test]
    outlier = np.concatenate([test, [[1e3, -1e3, 1e3]]])
    together = score([train], [machine(outlier, split="test")], config)[0][0][:-1]
    np.testing.assert_allclose(together, alone, **close)  # other test clips change nothing
    # An affine change of units of every dimension changes nothing either.
    changed = machine(train.values * [2, 3, 4] + 1), machine(test * [2, 3, 4] + 1, split="test")
    # 1e-4: float32 values of about 20 have a spacing of 2e-6 against a deviation of 0.4.
    np.testing.assert_allclose(
        score([changed[0]], [changed[1]], config)[0][0], alone, rtol=0, atol=1e-4
    )


def test_a_standardized_training_clip_is_unknown_to_the_statistics_of_its_score():
    rng = np.random.default_rng(4)
    values = rng.normal(5, [1, 10, 0.1, 3], (13, 4))
    left = score(
        [machine(values)], [machine(values[:2], split="test")], Knn(2, standardize="machine")
    )[1]
    for i in range(13):  # folds: every fifth clip
        others = values[np.arange(13) % 5 != i % 5]
        scaled = (values - others.mean(0)) / others.std(0)
        scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
        apart = np.sort(np.delete(1 - scaled @ scaled[i], i))
        # 1e-5: float32 values of about 5 have a spacing of 5e-7 against a deviation of 0.1.
        np.testing.assert_allclose(left[0][i], apart[:2].mean(), rtol=0, atol=1e-5)


def test_statistics_of_all_machines_are_those_of_their_training_clips_together():
    rng = np.random.default_rng(2)
    train = [machine(rng.normal(m, [1, 5, 0.3], (n, 3))) for m, n in ((2, 20), (-3, 35))]
    test = [machine(rng.normal(m, [1, 5, 0.3], (6, 3)), split="test") for m in (2, -3)]
    found, left = score(train, test, Knn(1, standardize="all"))

    def scaled(values, by):
        values = (values - by.mean(0)) / by.std(0)
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    values = [one.values.astype(np.float64) for one in train]
    every = np.concatenate(values)
    for machine_values, queries, scores in zip(values, test, found, strict=True):
        cosine = scaled(queries.values, every) @ scaled(machine_values, every).T
        np.testing.assert_allclose(scores, 1 - cosine.max(1), rtol=0, atol=2e-6)  # float32 cosines
    for i in range(20):  # without every fifth clip of each machine
        kept = np.concatenate([v[np.arange(len(v)) % 5 != i % 5] for v in values])
        own = scaled(values[0], kept)
        others = np.delete(own, i, 0)
        np.testing.assert_allclose(left[0][i], 1 - (others @ own[i]).max(), rtol=0, atol=2e-6)


def test_one_standardized_training_clip_has_no_score():
    one = machine([[1.0, 2.0]])
    assert (
        score([one], [machine([[2.0, 2.0]], split="test")], Knn(standardize="machine"))[1][0]
        == np.inf
    )


def test_a_dimension_that_is_constant_does_not_dominate():
    rng = np.random.default_rng(1)
    values = rng.normal(5, 1, (30, 4)).astype(np.float32)
    values[:, 0] = 7.0
    test = rng.normal(5, 1, (5, 4)).astype(np.float32)
    test[:, 0] = 7.001
    config = Knn(standardize="machine")
    with_constant = score([machine(values)], [machine(test, split="test")], config)[0][0]
    without = score([machine(values[:, 1:])], [machine(test[:, 1:], split="test")], config)[0][0]
    np.testing.assert_allclose(with_constant, without, rtol=0, atol=1e-4)  # 0.001 of a deviation


def by_gamma(scores) -> float:
    limit, note = threshold(scores, challenge=True)
    assert note == ""
    return limit


def test_the_challenge_takes_the_90th_percentile_of_a_fitted_gamma():
    normal = gamma.rvs(2.0, loc=0.3, scale=0.1, size=4000, random_state=0)
    # 0.01: standard error of a 90 % quantile of 4,000 draws at density 0.5 is 0.009.
    assert by_gamma(normal) == pytest.approx(gamma.ppf(0.9, 2.0, loc=0.3, scale=0.1), abs=0.01)
    assert by_gamma(np.append(normal, np.inf)) == by_gamma(normal)


@pytest.mark.parametrize("factor", [1e-6, 1e5])
def test_threshold_follows_the_scale_of_the_scores(factor):
    """The fit of scipy does not: its optimizer's tolerances are absolute."""
    normal = gamma.rvs(2.0, loc=0.3, scale=0.1, size=300, random_state=1)
    # 1e-6: the optimizer starts at equal ratios, rounding aside.
    assert by_gamma(normal * factor) == pytest.approx(factor * by_gamma(normal), rel=1e-6)


@pytest.mark.parametrize(
    "scores",
    [
        np.concatenate([np.linspace(1, 1.1, 95), [50, 60, 70, 80, 90.0]]),
        np.append(np.linspace(1, 1.1, 12), 9.0),  # a clip of thirteen in which something knocks
    ],
)
def test_a_fit_that_the_scores_contradict_is_told_and_not_used(scores):
    found, note = threshold(scores, challenge=True)
    assert "gamma distribution does not fit" in note
    assert found == threshold(scores, challenge=False)[0]
    assert 1.1 < found < 1.3


@pytest.mark.parametrize("odd", [1e2, 1e9])
@pytest.mark.parametrize("count", [13, 1000])
def test_odd_training_clips_do_not_move_the_threshold_of_own_recordings(count, odd):
    """Up to a fifth of them; it stays within the scores that are near it."""
    normal = np.random.default_rng(0).gamma(2.0, 0.1, count)
    limit, _ = threshold(normal, challenge=False)
    moved, _ = threshold(np.append(normal, np.full(count // 5, odd)), challenge=False)
    assert limit <= moved < 3 * limit


@pytest.mark.parametrize("count", [2, 5, 13, 300])
@pytest.mark.parametrize("draw", ["standard_normal", "exponential"])
def test_false_alarms_of_own_recordings_are_as_documented(count, draw):
    few = {"standard_normal": {2: 0.13, 5: 0.12}, "exponential": {2: 0.19, 5: 0.16}}
    share = few[draw].get(count, {"standard_normal": 0.09, "exponential": 0.12}[draw])
    draw = getattr(np.random.default_rng(1), draw)
    limits = [threshold(draw(size=count), challenge=False)[0] for _ in range(2000)]
    alarms = np.mean(draw(size=(2000, 100)) > np.array(limits)[:, None])
    assert alarms == pytest.approx(share, abs=0.015)  # three standard errors of 2,000 limits


def test_few_or_equal_scores_give_a_usable_threshold_and_a_note():
    assert threshold(np.full(5, 0.25), False)[0] == 0.25
    assert threshold(np.full(5, 0.25), True)[0] == 0.25
    assert "5 scores of training clips are equal" in threshold(np.full(5, 0.25), False)[1]
    limit, note = threshold(np.array([0.2, 0.3]), False)
    assert 0.3 < limit < 1
    assert "rough guess" in note
    for challenge in (False, True):
        assert threshold(np.array([np.inf]), challenge)[0] is None
        assert "no decisions" in threshold(np.array([np.inf]), challenge)[1]


def test_zero_neighbors_are_refused():
    with pytest.raises(InputError, match="k: expected >= 1"):
        Knn(k=0)


def balanced(sources=60, targets=6):
    """A machine of 8-wide noise, and queries: midpoints of neighboring target clips."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((sources + targets, 8)).astype(np.float32)
    values[sources:, 0] += 5  # far from the source clips
    values *= rng.uniform(0.1, 10, (len(values), 1)).astype(np.float32)  # of any length
    target = values[sources:] / np.linalg.norm(values[sources:], axis=1, keepdims=True)
    nearest = np.argmax(target @ target.T - 2 * np.eye(targets), 1)
    middle = target + target[nearest]
    domains = ["source"] * sources + ["target"] * targets
    return machine(values, domains), machine(middle, split="test")


@pytest.mark.parametrize("references", ["pooled", "domain"])
def test_smote_lowers_scores_between_target_clips_and_no_training_score(references):
    train, test = balanced()
    plain, left = score([train], [test], Knn(1, references))
    smote = Knn(1, references, oversample=Smote(ratio=1.0))
    found, still = score([train], [test], smote)
    assert (found[0] <= plain[0] + 1e-6).all()  # float32 rounding of a cosine
    assert (found[0] < plain[0] / 2).mean() > 0.5  # 54 rows on 12 segments: most middles are near
    np.testing.assert_array_equal(left[0], still[0])


@pytest.mark.parametrize("references", ["pooled", "domain"])
@pytest.mark.parametrize("standardize", [None, "machine"])
def test_smote_scores_are_those_of_its_rows_beside_the_clips(references, standardize):
    train, test = balanced()
    between = train.values[:6] / 8 + test.values  # a source clip and synthetic ones are near
    test = machine(np.concatenate([test.values, between, train.values[:6] + 0.1]), split="test")
    config = Smote(ratio=0.5)
    found = score([train], [test], Knn(2, references, standardize, config))[0][0]
    values, queries = train.values.astype(np.float64), test.values.astype(np.float64)
    if standardize:
        mean, deviation = values.mean(0), values.std(0)
        values, queries = (values - mean) / deviation, (queries - mean) / deviation
    rows, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (values, queries))
    domains = [c.domain for c in train.clips]
    made = oversample(rows.astype(np.float32), domains, config)[0]
    target = np.array(domains) == "target"
    parts = [rows[~target], np.concatenate([rows[target], made])]
    if references == "pooled":
        parts = [np.concatenate(parts)]
    want = np.min([np.sort(1 - queries @ part.T, 1)[:, :2].mean(1) for part in parts], 0)
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-6)  # float32 cosines and SMOTE rows


@pytest.mark.parametrize("references", ["pooled", "domain"])
def test_machines_without_smote_are_noted_once_each_and_scored_as_ever(references):
    train, test = balanced()
    no_target = machine(train.values[:60])
    none = machine(train.values, [None] * 66)
    groups = [no_target, train, none], [test] * 3
    lines = []
    found, _ = score(*groups, Knn(1, references, oversample=Smote()), lines.append)
    assert lines == [
        "SMOTE skipped for fan/section_00: 0 target clips; 2 neighbors need at least 3",
        "SMOTE skipped for fan/section_00: its training clips have no domains",
    ]
    plain, _ = score(*groups, Knn(1, references), lines.append)
    assert len(lines) == 2
    for row in (0, 2):
        np.testing.assert_allclose(found[row], plain[row], rtol=0, atol=1e-6)  # other padding
    assert not np.allclose(found[1], plain[1], rtol=0, atol=1e-6)


def test_threshold_takes_scores_below_zero():
    """Log-likelihoods have any sign; a gamma distribution has a location."""
    normal = gamma.rvs(2.0, loc=0.3, scale=0.1, size=300, random_state=1)
    # 1e-3: the fitted location moves with the scores, up to the optimizer's tolerance.
    assert by_gamma(normal - 5) == pytest.approx(by_gamma(normal) - 5, abs=1e-3)
