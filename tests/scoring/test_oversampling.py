"""SMOTE against imbalanced-learn, MemMixup against a loop, and both by meaning: where rows lie."""

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE

from asdjax.scoring.folds import unit
from asdjax.scoring.oversampling import MemMixup, Smote, oversample
from asdjax.types import InputError


def made(sources, targets, seed=0, width=8):
    rng = np.random.default_rng(seed)
    values = unit(rng.standard_normal((sources + targets, width)).astype(np.float32))
    domains = ["source"] * sources + ["target"] * targets
    order = rng.permutation(sources + targets)
    return values[order], [domains[i] for i in order]


@pytest.mark.parametrize(
    "config", [Smote(), Smote(ratio=0.5, neighbors=4, seed=7), Smote(1.0, 1)], ids=repr
)
def test_equals_imbalanced_learn(config):
    values, domains = made(100, 10)
    smote = SMOTE(
        sampling_strategy=config.ratio, k_neighbors=config.neighbors, random_state=config.seed
    )
    want = smote.fit_resample(values, domains)[0][len(values) :]
    want = want / np.linalg.norm(want, axis=1, keepdims=True)
    got, note = oversample(values, domains, config)
    assert note == ""
    assert len(got) == round(100 * config.ratio) - 10
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)  # one division in float32


def test_the_published_sizes_of_a_machine():
    values, domains = made(990, 10)  # a machine of 2023-2026: 198 target clips at ratio 0.2
    assert len(oversample(values, domains, Smote(0.2, 3))[0]) == 188


def on_segment(direction, start, end):
    """Return whether a scaled point `direction` of length 1 lies between two unit rows.

    The plane of the two rows holds all points of the segment: solve for them, look at the rest.
    """
    basis = np.stack([start, end], 1).astype(np.float64)
    share = np.linalg.lstsq(basis, direction.astype(np.float64))[0]
    rest = np.abs(basis @ share - direction).max()
    return rest < 1e-6 and (share > -1e-6).all()  # float32 rounding of numbers below 1


def test_rows_lie_between_a_target_clip_and_one_of_its_nearest_target_clips():
    values, domains = made(60, 6)
    rows, _ = oversample(values, domains, Smote(ratio=1.0, neighbors=2))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=0, atol=1e-6)  # float32
    target = values[np.array(domains) == "target"]
    cosine = target @ target.T - 2 * np.eye(6)
    nearest = np.argsort(-cosine, 1)[:, :2]
    pairs = [(i, j) for i in range(6) for j in nearest[i]]
    used = set()
    for row in rows:
        where = [p for p in pairs if on_segment(row, target[p[0]], target[p[1]])]
        assert where
        used |= set(where)
    assert used == set(pairs)  # 54 draws over 12 pairs


def test_source_clips_only_say_how_many():
    values, domains = made(60, 6)
    other, source = values.copy(), np.array(domains) == "source"
    other[source] = made(60, 0, seed=5)[0]
    np.testing.assert_array_equal(
        oversample(values, domains, Smote())[0], oversample(other, domains, Smote())[0]
    )


def test_clips_of_unknown_domain_count_for_nothing():
    values, domains = made(60, 6)
    more = np.concatenate([made(30, 0, seed=3)[0], values])
    np.testing.assert_array_equal(
        oversample(more, [None] * 30 + domains, Smote())[0], oversample(values, domains, Smote())[0]
    )


def test_the_seed_decides():
    values, domains = made(60, 6)
    first = oversample(values, domains, Smote(seed=1))[0]
    np.testing.assert_array_equal(first, oversample(values, domains, Smote(seed=1))[0])
    assert not np.array_equal(first, oversample(values, domains, Smote(seed=2))[0])


@pytest.mark.parametrize(
    ("sources", "targets", "config", "why"),
    [
        (100, 2, Smote(), "2 target clips; 2 neighbors need at least 3"),
        (100, 0, Smote(), "0 target clips; 2 neighbors need at least 3"),
        (50, 10, Smote(), "10 target and 50 source clips: ratio 0.2 is reached"),
        (
            54,
            10,
            Smote(),
            "10 target and 54 source clips: ratio 0.2 is reached",
        ),  # 10.8: not a whole one
        (0, 5, Smote(1.0), "5 target and 0 source clips: ratio 1 is reached"),
        (5, 50, Smote(1.0), "50 target and 5 source clips: ratio 1 is reached"),
        (0, 0, Smote(), "its training clips have no domains"),
    ],
)
def test_where_nothing_can_be_made_the_note_says_why(sources, targets, config, why):
    values, domains = made(sources, targets)
    rows, note = oversample(values, domains, config)
    assert rows.shape == (0, 8)
    assert note == why


def test_the_smallest_case_that_can_be_done():
    assert len(oversample(*made(55, 10), Smote())[0]) == 1
    assert len(oversample(*made(20, 3), Smote())[0]) == 1


def test_no_domains_and_no_numbers_are_no_errors():
    values, domains = made(20, 3)
    rows, note = oversample(values, [None] * 23, Smote())
    assert (len(rows), note) == (0, "its training clips have no domains")
    values[4, 0] = np.nan
    assert oversample(values, domains, Smote())[1] == "its embeddings are not finite"


def test_rows_without_direction_stay_finite():
    values, domains = made(20, 3)
    values[np.array(domains) == "target"] = 0
    rows, note = oversample(values, domains, Smote())
    np.testing.assert_array_equal(rows, np.zeros((1, 8)))
    assert note == ""


@pytest.mark.parametrize(
    "wrong", [{"ratio": 0.0}, {"ratio": 1.5}, {"neighbors": 0}, {"seed": -1}, {"seed": 2**32}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}.*got {next(iter(wrong.values()))}"):
        Smote(**wrong)


@pytest.mark.parametrize("supports", [1, 4, 990])
def test_memmixup_moves_each_target_row_towards_its_nearest_source_rows(supports):
    values, domains = made(12, 3)
    rows, note = oversample(values, domains, MemMixup(0.9, supports))
    source = values[np.array(domains) == "source"].astype(float)
    target = values[np.array(domains) == "target"].astype(float)
    expected = []
    for t in target:
        for s in sorted(source, key=lambda s: -s @ t)[:supports]:
            mixed = 0.9 * t + 0.1 * s
            expected.append(mixed / np.linalg.norm(mixed))
    assert note == ""
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)  # float32 of numbers below 1


@pytest.mark.parametrize(("sources", "targets"), [(0, 3), (3, 0)])
def test_memmixup_needs_both_domains(sources, targets):
    rows, note = oversample(*made(sources, targets), MemMixup())
    assert len(rows) == 0
    assert note == f"{targets} target and {sources} source clips"


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"supports": 0}])
def test_impossible_mixtures_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}.*got {next(iter(wrong.values()))}"):
        MemMixup(**wrong)
