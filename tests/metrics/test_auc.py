"""Delete-one areas against leaving out clip after clip, and the interval against its definition."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from asdjax.metrics.auc import auc, aucs, delete_one_areas, pauc, paucs, replicate_half_width


def draw(seed: int, n: int, values: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (at least 3 of each) and scores with `values` different values."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.r_[[0, 0, 0, 1, 1, 1], rng.integers(0, 2, n - 6)])
    return label, rng.integers(0, values, n) / 8 + label * (seed % 3) / 8


def replicates(label: np.ndarray, score: np.ndarray, max_fpr: float | None) -> np.ndarray:
    """Return scikit-learn's value without clip i, for each i."""
    others = [np.arange(len(label)) != i for i in range(len(label))]
    return np.array([roc_auc_score(label[o], score[o], max_fpr=max_fpr) for o in others])


@pytest.mark.parametrize("values", [1, 2, 5, 40, 10_000])
@pytest.mark.parametrize("n", [6, 9, 24])
def test_delete_one_areas_equal_leaving_out_each_clip(n, values):
    for seed in range(3):
        label, score = draw(seed, n, values)
        # float64 sums of at most 24 terms: 1e-12 leaves room for their order only
        np.testing.assert_allclose(
            delete_one_areas(label, score), replicates(label, score, None), atol=1e-12
        )
        for max_fpr in (0.1, 0.35):
            area, lowest = delete_one_areas(label, score, max_fpr), max_fpr**2 / 2
            standardized = 0.5 * (1 + (area - lowest) / (max_fpr - lowest))
            np.testing.assert_allclose(standardized, replicates(label, score, max_fpr), atol=1e-12)


@pytest.mark.parametrize("values", [3, 12, 1000])
def test_half_width_is_the_mean_of_two_t_intervals_of_the_replicates(values):
    label, score = draw(values, 60, values)
    widths = []
    for max_fpr in (None, 0.1):
        points = replicates(label, score, max_fpr)
        low, high = stats.t.interval(
            0.95, len(points) - 1, loc=points.mean(), scale=stats.sem(points)
        )
        widths.append((high - low) / 2)
    # The interval's ends are near 0.5 and its width near 1e-3: cancellation costs three digits.
    assert replicate_half_width(label, score) == pytest.approx(np.mean(widths), rel=1e-10)


def test_half_width_is_undefined_when_a_replicate_would_lose_a_class():
    assert np.isnan(replicate_half_width(np.array([0, 0, 1]), np.array([1.0, 2.0, 3.0])))


def test_constant_scores_are_chance():
    label = np.array([0, 1] * 20)
    assert auc(label, np.ones(40)) == 0.5
    assert pauc(label, np.ones(40)) == pytest.approx(0.5, abs=1e-15)


def test_pauc_reaches_mcclish_best_and_lowest_value():
    label, score = np.repeat([0, 1], 20), np.arange(40.0)
    assert pauc(label, score) == pytest.approx(1, abs=1e-15)
    assert pauc(label, -score) == pytest.approx(0.5 * (1 - 0.005 / 0.095), abs=1e-15)


@pytest.mark.parametrize("values", [1, 2, 5, 40, 10_000])
@pytest.mark.parametrize("n", [6, 31, 200])
def test_many_systems_at_once_equal_scikit_learn_on_each(n, values):
    rng = np.random.default_rng(n + values)
    label, _ = draw(n, n, values)
    scores = rng.integers(0, values, (9, n)) / 8 + label * np.arange(9)[:, None] / 8
    for many, max_fpr in ((aucs, None), (paucs, 0.1)):
        want = [roc_auc_score(label, score, max_fpr=max_fpr) for score in scores]
        # float64 sums of at most 200 terms: 1e-12 leaves room for their order only
        np.testing.assert_allclose(many(label, scores), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("label", [[0, 1], [1, 0], [0, 0, 1], [1, 1, 0]])
def test_many_systems_with_the_fewest_clips(label):
    label = np.array(label)
    scores = np.stack([label, -label, 0 * label]).astype(float)
    np.testing.assert_allclose(aucs(label, scores), [1, 0, 0.5], rtol=0, atol=1e-15)
    want = [pauc(label, score) for score in scores]
    np.testing.assert_allclose(paucs(label, scores), want, rtol=0, atol=1e-15)
