"""What ways are ranked by without labels, against its definition."""

import itertools

import numpy as np
import pytest

from asdjax.scoring.search import consistency


def by_pairs(scores, domains):
    """1 - |2 P - 1| of the share P of pairs whose target clip scores higher; ties count half."""
    target, source = (scores[domains == one] for one in ("target", "source"))
    higher = [(t > s) + 0.5 * (t == s) for t, s in itertools.product(target, source)]
    return 1 - abs(2 * np.mean(higher) - 1)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_about_pairs_of_a_source_and_a_target_clip(seed):
    rng = np.random.default_rng(seed)
    domains = rng.permutation(["source"] * 9 + ["target"] * 4 + [""] * 2)
    scores = rng.integers(0, 8, len(domains)).astype(np.float32)  # with ties
    assert consistency(scores, domains) == pytest.approx(by_pairs(scores, domains), abs=1e-12)


def test_it_is_1_for_domains_that_score_alike_and_0_for_those_apart():
    domains = np.array(["source", "target"] * 4)
    assert consistency(np.repeat(np.arange(4.0), 2), domains) == 1
    assert consistency(np.tile([0.0, 1.0], 4), domains) == 0
    assert consistency(np.tile([1.0, 0.0], 4), domains) == 0


@pytest.mark.parametrize("domains", [["source"] * 3, ["target"] * 3, [""] * 3])
def test_of_one_domain_there_is_none(domains):
    assert np.isnan(consistency(np.arange(3.0), np.array(domains)))


def test_of_scores_that_are_not_finite_there_is_none():
    assert np.isnan(consistency(np.array([1.0, np.inf]), np.array(["source", "target"])))
