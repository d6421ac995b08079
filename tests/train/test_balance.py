"""Rare classes grow to the part that is set, each between its own clips."""

import numpy as np
import pytest

from asdjax.train.batches import NO_CLIP, balance
from asdjax.train.config import Train
from asdjax.types import InputError

# Classes by both columns: 20, 3, 1 and 10 clips, in a mixed order.
LABEL = np.random.default_rng(0).permutation(
    np.repeat(np.array([[0, 0], [0, 1], [1, 2], [1, 3]], np.int32), [20, 3, 1, 10], axis=0)
)
KIND = LABEL[:, 1]


def synthetic(entries):
    """Return clip, partner, share and copied of the entries behind the real clips."""
    return [x[len(LABEL) :] for x in entries[:4]]


@pytest.mark.parametrize(
    ("ratio", "counts"),
    [(0.05, [20, 3, 1, 10]), (0.2, [20, 4, 4, 10]), (0.77, [20, 15, 15, 15]), (1.0, [20] * 4)],
)
def test_classes_are_brought_up_to_the_ratio_and_none_is_cut(ratio, counts):
    entries = balance(LABEL, ratio, seed=0)
    np.testing.assert_array_equal(np.bincount(KIND[entries.clip]), counts)
    assert entries.classes == sum(n > m for n, m in zip(counts, [20, 3, 1, 10], strict=True))
    assert {len(x) for x in entries[:4]} == {sum(counts)}


def test_real_clips_come_first_and_as_they_are():
    entries, n = balance(LABEL, 1.0, seed=0), len(LABEL)
    np.testing.assert_array_equal(entries.clip[:n], np.arange(n))
    assert (entries.partner[:n] == NO_CLIP).all()
    assert (entries.share[:n] == 1).all()
    assert not entries.copied[:n].any()


def test_a_synthetic_clip_lies_between_two_different_clips_of_its_class():
    clip, partner, share, copied = synthetic(balance(LABEL, 1.0, seed=0))
    pairs = ~copied
    np.testing.assert_array_equal(KIND[clip[pairs]], KIND[partner[pairs]])
    assert (clip[pairs] != partner[pairs]).all()
    assert ((share[pairs] > 0) & (share[pairs] < 1)).all()
    assert share.dtype == np.float32


def test_the_only_clip_of_a_class_is_copied():
    clip, partner, share, copied = synthetic(balance(LABEL, 1.0, seed=0))
    (lonely,) = np.flatnonzero(KIND == 2)
    np.testing.assert_array_equal(copied, clip == lonely)
    assert copied.sum() == 19
    assert (partner[copied] == NO_CLIP).all()
    assert (share[copied] == 1).all()


def test_pairs_and_shares_are_drawn_evenly():
    label = np.repeat([[0], [1]], [3, 30_000], axis=0)
    entries = balance(label, 1.0, seed=0)
    clip, partner, share = (x[len(label) :] for x in entries[:3])
    pairs = np.bincount(3 * clip + partner, minlength=9).reshape(3, 3) / len(clip)
    # 6 ordered pairs of 3 clips, 29,997 draws: 4.6 standard errors.
    np.testing.assert_allclose(pairs, (1 - np.eye(3)) / 6, rtol=0, atol=0.01)
    np.testing.assert_allclose(np.histogram(share, 10, (0, 1))[0] / len(share), 0.1, atol=0.01)
    assert (share * 256 % 1 == 0).all()  # so that 16-bit samples times shares are exact


def test_a_seed_decides_all():
    one, same, other = (balance(LABEL, 1.0, seed) for seed in (0, 0, 1))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one.partner != other.partner).any()


def test_the_console_is_told_how_many_of_how_many_classes():
    assert balance(LABEL, 1.0, 0).note(34) == (
        "balance: 46 synthetic training clips of 3 rare classes beside 34 real ones, 19 of them "
        "warped copies of a class's only clip"
    )
    assert balance(LABEL[KIND != 2], 0.2, 0).note(33) == (
        "balance: 1 synthetic training clips of 1 rare classes beside 33 real ones"
    )


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(InputError, match=f"balance: expected in .0, 1., got {ratio}"):
        Train(balance=ratio)
