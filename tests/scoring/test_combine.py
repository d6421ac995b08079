"""Normalizing and combining against scipy, the grid against its definition, and its ties."""

from itertools import pairwise, product

import numpy as np
import pytest
from scipy import stats

from asdjax.scoring.combine import (
    MOST_VECTORS,
    Ensemble,
    accuracy,
    combine,
    grid,
    normalize,
    search,
    varies,
    weighted_sums,
)
from asdjax.types import InputError

RNG = np.random.default_rng(4)
SCALES = np.array([[1e-3], [1.0], [50.0]])  # systems whose scores differ in size
NORMAL, TEST = (RNG.gamma(3, size=(3, n)) * SCALES for n in (40, 25))


def scaled(how: str) -> np.ndarray:
    return np.stack([normalize(t, r, how) for t, r in zip(TEST, NORMAL, strict=True)])


def test_accuracy_is_the_share_of_right_nearest_others():
    rng = np.random.default_rng(0)
    values, label = rng.standard_normal((40, 5)).astype(np.float32), rng.integers(0, 3, 40)
    values += label[:, None]
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    nearest = (unit @ unit.T - 3 * np.eye(40)).argmax(1)
    right = accuracy(values, [str(one) for one in label])
    assert right == np.mean(label[nearest] == label)
    assert 0.4 < right < 1


def test_zscores_summed_with_weights():
    weights = np.array([0.2, 0.5, 0.3])
    want = weights @ np.stack([stats.zmap(t, r) for t, r in zip(TEST, NORMAL, strict=True)])
    # 1e-12: the order of float64 sums.
    np.testing.assert_allclose(combine(scaled("zscore"), weights), want, rtol=0, atol=1e-12)


def test_the_reference_has_mean_zero_and_deviation_one():
    own = normalize(NORMAL[2], NORMAL[2], "zscore")
    np.testing.assert_allclose([own.mean(), own.std()], [0, 1], atol=1e-12)


def test_rank_is_the_share_of_smaller_ones_with_ties_half():
    reference = RNG.integers(0, 6, 30) / 4
    scores = np.r_[np.arange(-1, 8) / 4, 0.1]
    want = [stats.percentileofscore(reference, s, kind="mean") / 100 for s in scores]
    # 1e-14: division by 100 there.
    np.testing.assert_allclose(normalize(scores, reference, "rank"), want, rtol=0, atol=1e-14)
    own = (stats.rankdata(reference) - 0.5) / len(reference)
    np.testing.assert_allclose(normalize(reference, reference, "rank"), own, rtol=0, atol=1e-14)


def test_rank_saturates_above_all_references():
    np.testing.assert_array_equal(
        normalize(np.array([9.0, 99.0, -1.0]), np.arange(5), "rank"), [1, 1, 0]
    )


def test_minimum_needs_every_system():
    alarm, calm = np.array([0.0, 5.0, 5.0]), np.array([1.0, 0.5, 6.0])
    np.testing.assert_array_equal(combine(np.stack([alarm, calm]), None), [0, 0.5, 5])


@pytest.mark.parametrize("how", ["zscore", "rank"])
@pytest.mark.parametrize("weights", [None, np.array([0.2, 0.5, 0.3])])
def test_order_of_systems_does_not_matter(how, weights):
    order = [2, 0, 1]
    other = combine(scaled(how)[order], None if weights is None else weights[order])
    # 1e-14: the order of three float64 terms of size 1.
    np.testing.assert_allclose(combine(scaled(how), weights), other, rtol=0, atol=1e-14)


def test_scale_and_offset_of_a_system_do_not_matter():
    moved = normalize(3 * TEST[0] - 2, 3 * NORMAL[0] - 2, "zscore")
    # 1e-9: an offset of 2 costs scores of 1e-3 their last three digits.
    np.testing.assert_allclose(moved, scaled("zscore")[0], rtol=0, atol=1e-9)


def test_many_vectors_give_the_same_bits_as_each_alone():
    vectors = grid(3, 0.1)
    many = weighted_sums(vectors, scaled("zscore"))
    for vector, row in zip(vectors, many, strict=True):
        np.testing.assert_array_equal(combine(scaled("zscore"), vector), row)


@pytest.mark.parametrize(("count", "step"), [(1, 0.5), (2, 1), (2, 0.1), (3, 0.25), (4, 0.2)])
def test_grid_has_every_vector_once_most_equal_first(count, step):
    steps = round(1 / step)
    every = [u for u in product(range(steps + 1), repeat=count) if sum(u) == steps]
    every.sort(key=lambda units: (sum(u * u for u in units), [-u for u in units]))
    np.testing.assert_array_equal(grid(count, step), np.array(every) / steps)


def test_search_finds_the_best_vector_and_prefers_equal_ones():
    values = [np.eye(3)]  # combined scores are the weights themselves

    def peak(scores):
        return -np.abs(scores[0] - [0.2, 0.1, 0.7]).sum(1)

    weights, best = search(values, peak, 0.1)
    np.testing.assert_allclose(weights, [0.2, 0.1, 0.7], atol=1e-15)
    assert best == pytest.approx(0, abs=1e-15)
    for flat in (np.zeros, lambda count: 1e-15 * np.arange(count)):  # equal up to rounding
        weights, _ = search(values, lambda scores, f=flat: f(len(scores[0])), 0.1)
        np.testing.assert_array_equal(weights, [0.4, 0.3, 0.3])


def test_search_looks_at_every_block(monkeypatch):
    monkeypatch.setattr("asdjax.scoring.combine.BLOCK_VECTORS", 4)
    seen = []
    weights, best = search(
        [np.eye(3), np.ones((3, 2))],
        lambda scores: seen.append(len(scores[0])) or scores[0].max(1),
        0.2,
    )
    assert sum(seen) == 21
    assert max(seen) == 4
    assert (weights.tolist(), best) == ([1, 0, 0], 1)


def test_a_search_without_end_is_refused():
    assert len(grid(7, 0.1)) == 8008
    with pytest.raises(InputError, match=f"at most {MOST_VECTORS} combinations.* 7 runs.* larger"):
        grid(7, 0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": (0.5, -0.1)}, "weights: expected >= 0"),
        ({"weights": (0.5, float("nan"))}, "weights: expected >= 0"),
        ({"weights": (float("inf"), 1)}, "weights: expected >= 0"),
        ({"weights": (0, 0)}, "not all 0"),
        ({"weights": (1, 1), "search": True}, "weights: expected none with search"),
        ({"weights": (1, 1), "combine": "minimum"}, "'sum' with weights or search, got 'minimum'"),
        ({"search": True, "combine": "minimum"}, "'sum' with weights or search, got 'minimum'"),
        ({"normalize": "softmax"}, "'zscore' or 'rank'"),
        *[({"step": step}, "divides 1") for step in (0, -0.1, 0.3, 2, float("nan"))],
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Ensemble(**settings)


@pytest.mark.parametrize("step", [1, 0.5, 1 / 3, 0.1, 0.05, 0.001])
def test_steps_that_divide_one_are_taken(step):
    assert Ensemble(step=step).step == step


def test_shares_are_equal_or_as_given_and_sum_to_one():
    np.testing.assert_array_equal(Ensemble().shares(4), np.full(4, 0.25))
    np.testing.assert_array_equal(Ensemble(weights=(3, 0, 1)).shares(3), [0.75, 0, 0.25])
    with pytest.raises(InputError, match="expected 2 weights, one per run, got 3"):
        Ensemble(weights=(3, 0, 1)).shares(2)


@pytest.mark.parametrize(
    ("reference", "does"),
    [
        ([0.3, 0.3], False),
        ([0.0, 0.0], False),
        ([0.25], False),
        (np.float32([0.3, np.nextafter(np.float32(0.3), np.float32(1))]), False),
        ([1e-5, 2e-5], True),
        ([-1.0, 1.0], True),
    ],
)
def test_scores_vary_by_more_than_rounding(reference, does):
    assert varies(np.asarray(reference, np.float64)) == does


def test_larger_scores_stay_larger():
    for how in ("zscore", "rank"):
        combined = normalize(np.sort(TEST[1]), NORMAL[1], how)
        assert all(a <= b for a, b in pairwise(combined))
