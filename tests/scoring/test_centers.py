"""Centers of the source domain and all target clips, against scikit-learn and by meaning."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from asdjax.scoring.centers import Centers
from asdjax.scoring.score import score
from asdjax.types import Clip, Embeddings, InputError


def machine(values, domains=None, split="train"):
    domains = domains or ["source"] * len(values)
    clips = tuple(
        Clip(Path(f"{split}_{i}.wav"), "fan", "section_00", split, domain)
        for i, domain in enumerate(domains)
    )
    return Embeddings(clips, np.asarray(values, np.float32))


def direction(*degrees):
    angle = np.deg2rad(np.array(degrees, float))
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def gap(degrees):
    return 1 - np.cos(np.deg2rad(degrees))


close = {"rtol": 0, "atol": 1e-6}  # float32 cosines of unit vectors


def test_a_source_center_and_every_target_clip_count():
    """In the plane: source clips at 0 and 20 degrees have one center, at 10; targets at 90, 120."""
    train = machine(direction(0, 20, 90, 120), ["source"] * 2 + ["target"] * 2)
    test = machine(direction(20, 95, 118, 50), split="test")
    found, left = score([train], [test], Centers(1))
    np.testing.assert_allclose(found[0], [gap(10), gap(5), gap(2), gap(40)], **close)
    # A source clip sees the other one as the center, and both targets; a target clip sees the
    # center of both source clips and the other target.
    np.testing.assert_allclose(left[0], [gap(20), gap(20), gap(30), gap(30)], **close)


def test_equals_scikit_learn_where_the_clusters_are_clear():
    rng = np.random.default_rng(1)
    middle = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    values = middle[np.arange(60) % 5] + 0.1 * rng.standard_normal((60, 6))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    domains = ["source"] * 55 + ["target"] * 5
    test = rng.standard_normal((9, 6))
    found = score([machine(values, domains)], [machine(test, split="test")], Centers(5))[0][0]
    rows = [*KMeans(5, n_init=10, random_state=0).fit(values[:55]).cluster_centers_, *values[55:]]
    rows = np.stack([row / np.linalg.norm(row) for row in rows])
    test /= np.linalg.norm(test, axis=1, keepdims=True)
    np.testing.assert_allclose(found, 1 - (test @ rows.T).max(1), **close)


@pytest.mark.parametrize("domain", [None, "source"])
def test_without_target_clips_the_centers_alone_count(domain):
    train = machine(direction(0, 20, 90), [domain] * 3)
    found, left = score([train], [machine(direction(50), split="test")], Centers(2))
    np.testing.assert_allclose(found[0], [gap(40)], **close)
    np.testing.assert_allclose(left[0], [gap(20), gap(20), gap(70)], **close)


def test_without_source_clips_the_target_clips_alone_count():
    train = machine(direction(0, 20), ["target"] * 2)
    found, left = score([train], [machine(direction(50), split="test")], Centers(2))
    np.testing.assert_allclose(found[0], [gap(30)], **close)
    np.testing.assert_allclose(left[0], [gap(20)] * 2, **close)


def test_fewer_source_clips_than_centers_are_each_a_center_and_noted():
    train = machine(direction(0, 30, 60, 100), ["source"] * 3 + ["target"])
    lines = []
    found, _ = score([train], [machine(direction(35, 61), split="test")], Centers(16), lines.append)
    np.testing.assert_allclose(found[0], [gap(5), gap(1)], **close)
    assert lines == [
        "every source clip is one of the 16 centers of fan/section_00 (3 clips)",
    ]


def test_impossible_settings_are_refused():
    for name in ("count", "starts"):
        with pytest.raises(InputError, match=f"{name}: expected >= 1"):
            Centers(**{name: 0})
    with pytest.raises(InputError, match=r"seed: expected in \[0, 2"):
        Centers(seed=-1)


def test_small_distances_keep_their_digits():
    """Distances of 1e-7 to the centers of four tight groups, 1e-5 apart; float32 of 1 ends at 6e-8.

    2e-3: rows of length 1 are rounded by 3e-8 in each value, a hundredth of a percent of a chord of
    4e-4; centers are means of such.
    """
    rng = np.random.default_rng(0)
    middle = rng.standard_normal(64) + 4e-3 * rng.standard_normal((4, 64))
    train = middle[np.arange(40) % 4] + 4e-4 * rng.standard_normal((40, 64))
    test = middle[np.arange(12) % 4] + 4e-4 * rng.standard_normal((12, 64))
    found = score([machine(train)], [machine(test, split="test")], Centers(4))[0][0]
    unit = [x / np.linalg.norm(x, axis=1)[:, None] for x in map(np.float32, (train, test))]
    train, test = map(np.float64, unit)
    rows = np.stack([train[i::4].mean(0) for i in range(4)])
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    expected = np.square(test[:, None] - rows).sum(-1).min(1) / 2
    assert expected.max() < 3e-7
    np.testing.assert_allclose(found, expected, rtol=2e-3)
