"""What every scorer must do, whatever its formula."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from asdjax.scoring import folds, mahalanobis, mixture
from asdjax.scoring.centers import Centers
from asdjax.scoring.folds import FOLDS, deal
from asdjax.scoring.knn import Knn
from asdjax.scoring.mahalanobis import Mahalanobis
from asdjax.scoring.mixture import Mixture
from asdjax.scoring.score import score
from asdjax.types import Clip, Embeddings, InputError

WIDTH = 6
SCORERS = {
    "knn": Knn(2),
    "centers": Centers(3, starts=2),
    "mixture": Mixture(2),
    "mahalanobis": Mahalanobis("pooled"),
    "mahalanobis-domain": Mahalanobis("domain"),
}
EVERY = [pytest.param(config, id=name) for name, config in SCORERS.items()]
every = pytest.mark.parametrize("config", EVERY)
FITTED = {name: config for name, config in SCORERS.items() if name != "knn"}


def machine(values, split="train", targets=6, name="fan"):
    """A machine whose last clips are of the target domain."""
    count = len(values)
    domains = ["target" if i >= count - targets else "source" for i in range(count)]
    clips = tuple(
        Clip(Path(f"{split}_{i}.wav"), name, "section_00", split, domain)
        for i, domain in enumerate(domains)
    )
    return Embeddings(clips, np.asarray(values, np.float32))


def normal(count=26, targets=6, seed=0):
    """Two operating points of the source domain, and a target domain beside them."""
    rng = np.random.default_rng(seed)
    middle = np.eye(WIDTH)[np.arange(count) % 2]
    middle[count - targets :] = np.eye(WIDTH)[2] + 0.5 * np.eye(WIDTH)[0]
    return middle + 0.08 * rng.standard_normal((count, WIDTH))


def queries(seed=1):
    """Four normal clips, then four anomalous ones."""
    return np.concatenate([normal(8, 2, seed)[4:], -normal(8, 2, seed)[4:]])


# 2e-4: float32 logarithms and distances of up to 100, of programs that sum in another order.
close = {"rtol": 2e-4, "atol": 2e-4}


DIAGONAL = pytest.param(Mixture(2, "diagonal"), id="mixture-diagonal")


@pytest.mark.parametrize("config", [*EVERY, DIAGONAL])
def test_anomalous_clips_score_higher(config):
    found, left = score([machine(normal())], [machine(queries(), "test")], config)
    assert found[0][4:].min() > found[0][:4].max()
    assert np.isfinite(left[0]).all()
    assert np.median(left[0]) < found[0][4:].min()


@every
def test_a_test_clip_does_not_see_the_others(config):
    train = machine(normal())
    together = score([train], [machine(queries(), "test")], config)[0][0]
    changed = np.concatenate([queries()[:1], 1e3 * np.ones((7, WIDTH))])
    alone = score([train], [machine(changed, "test")], config)[0][0]
    np.testing.assert_allclose(alone[0], together[0], **close)


@every
def test_a_machine_does_not_see_the_others(config):
    few, many = machine(normal(16, 3, 2), targets=3), machine(normal(), name="pump")
    test = machine(queries(), "test")
    both = score([few, many], [test, machine(queries(5), "test")], config)
    alone = score([few], [test], config)
    for got, want in zip(both, alone, strict=True):
        np.testing.assert_allclose(got[0], want[0], **close)


@every
def test_the_order_of_test_clips_does_not_matter(config):
    train, order = machine(normal()), np.array([3, 1, 7, 0, 5, 2, 6, 4])
    plain = score([train], [machine(queries(), "test")], config)[0][0]
    turned = score([train], [machine(queries()[order], "test")], config)[0][0]
    np.testing.assert_allclose(turned, plain[order], **close)


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("centers", "source"),
        ("centers", "target"),
        ("mixture", "source"),
        ("mahalanobis", "target"),
        ("mahalanobis-domain", "source"),
        ("mahalanobis-domain", "target"),
    ],
)
def test_a_training_score_is_that_of_a_test_clip_with_its_fold_away(name, domain):
    config, train = FITTED[name], machine(normal())
    left = score([train], [machine(queries(), "test")], config)[1][0]
    domains = np.array([clip.domain for clip in train.clips])
    members = domains == domain if name in ("centers", "mahalanobis-domain") else domains != ""
    clip = np.flatnonzero(domains == domain)[1]
    own = deal(len(domains), np.flatnonzero(members))[1]
    away = own == own[clip]
    if (name, domain) == ("centers", "target"):
        away = np.arange(len(domains)) == clip  # of its set only the clip itself
    assert away[clip]
    rest = train.take(np.flatnonzero(~away))
    as_test = machine(train.values[[clip]], "test")
    np.testing.assert_allclose(score([rest], [as_test], config)[0][0][0], left[clip], **close)


@pytest.mark.parametrize("config", FITTED.values(), ids=FITTED)
def test_a_clip_that_lies_apart_scores_high_when_left_out(config):
    """It would be its own center, component or part of the covariance."""
    values = normal()
    values[4] = -values[4]
    left = score([machine(values)], [machine(queries(), "test")], config)[1][0]
    assert left.argmax() == 4


@every
def test_equal_embeddings_give_finite_scores(config):
    train = machine(np.ones((26, WIDTH)))
    query = machine([np.ones(WIDTH), *[np.eye(WIDTH)[0]] * 7], "test")
    found, left = score([train], [query], config)
    assert np.isfinite(found[0]).all()
    assert np.isfinite(left[0]).all()
    assert found[0][1] > found[0][0]
    np.testing.assert_allclose(left[0], found[0][0], rtol=0, atol=0.1)


@every
def test_one_training_clip_scores_others_and_has_no_score_itself(config):
    found, left = score([machine(normal(1, 0), targets=0)], [machine(queries(), "test")], config)
    assert np.isfinite(found[0]).all()
    assert left[0].tolist() == [np.inf]


@every
def test_embeddings_that_are_not_finite_are_refused_by_machine(config):
    good, bad, worse = normal(), normal(), queries()
    bad[[2, 5], 0] = np.nan
    worse[1] = np.inf
    trains = machine(good), machine(bad, name="pump")
    with pytest.raises(
        InputError,
        match=r"pump/section_00 \(2 of 26 train clips\), fan/section_00 \(1 of 8 test clips\)",
    ):
        score(trains, [machine(worse, "test"), machine(queries(), "test")], config)


def test_folds_part_a_set_and_leave_other_clips_to_the_whole_fit():
    rows = np.array([0, 2, 3, 5, 6, 7, 8, 9])
    weight, own = deal(11, rows)
    np.testing.assert_array_equal(own[[1, 4, 10]], 0)
    np.testing.assert_array_equal(weight[0], np.isin(np.arange(11), rows))
    for clip in rows:
        assert weight[own[clip], clip] == 0
    # Every clip of the set is missing in one fit alone, and folds differ by at most a clip.
    np.testing.assert_array_equal((weight[1:, rows] == 0).sum(0), 1)
    assert set((weight[1:, rows] == 0).sum(1)) == {1, 2}
    assert len(weight) == 1 + FOLDS


def test_singular_covariances_are_noted():
    lines = []
    values = normal(26, 3)
    values[:, 5] = 0.25  # a dimension that never varies
    trains = machine(values, targets=3), machine(normal(), name="pump")
    test = [machine(queries(), "test")] * 2
    score(trains, test, Mahalanobis("domain"), lines.append)
    (line,) = lines
    assert "fan/section_00 (23 source clips, 5 of 6 dimensions vary: " in line
    assert "fan/section_00 (3 target clips, 5 of 6 dimensions vary: " in line
    assert "pump/section_00 (6 target clips, 6 of 6 dimensions vary: " in line
    assert "20 source" not in line  # more clips than dimensions: regular as it is
    shares = [float(part.split("%")[0]) for part in line.split(": ")[2:]]
    fit = jax.jit(mahalanobis.ledoit_wolf)(trains[0].values[:23], np.ones(23, np.float32))
    np.testing.assert_allclose(
        shares[0], 100 * fit[3], rtol=0, atol=0.51
    )  # shown as whole per cent
    lines.clear()
    score(trains, test, Mixture(4), lines.append)
    assert lines == [
        "singular without the floor 0.001: 4 full covariances of 6 dimensions from "
        "fan/section_00 (26 clips), pump/section_00 (26 clips)"
    ]


def test_a_single_target_clip_leaves_the_source_domain_to_decide():
    train = machine(normal(21, 1), targets=1)
    source = replace(train, clips=train.clips[:20], values=train.values[:20])
    test = [machine(queries(), "test")]
    with_target = score([train], test, Mahalanobis("domain"))[0][0]
    np.testing.assert_allclose(with_target, score([source], test, Mahalanobis())[0][0], **close)


@pytest.mark.parametrize("config", [Mahalanobis("domain"), Centers(3, starts=2)])
def test_fits_side_by_side_or_one_after_the_other_are_the_same(config, monkeypatch):
    trains, test = (
        [machine(normal()), machine(normal(20, 4, 3), targets=4)],
        [machine(queries(), "test")] * 2,
    )
    together = score(trains, test, config)
    monkeypatch.setattr(folds, "AT_ONCE", 0)
    for got, want in zip(score(trains, test, config), together, strict=True):
        for machine_got, machine_want in zip(got, want, strict=True):
            np.testing.assert_allclose(machine_got, machine_want, **close)


def test_a_mixture_that_still_moves_is_noted(monkeypatch):
    monkeypatch.setattr(mixture, "MOST_STEPS", 1)
    lines = []
    score([machine(normal())], [machine(queries(), "test")], Mixture(2, seed=99), lines.append)
    assert lines[-1] == "mixtures that did not converge in 1 steps: fan/section_00"


@pytest.mark.parametrize("name", ["knn", "centers", "mixture"])
def test_lengths_of_embeddings_do_not_matter(name):
    train, test = machine(normal()), machine(queries(), "test")
    plain = score([train], [test], SCORERS[name])
    lengths = np.geomspace(0.1, 10, 26, dtype=np.float32)[:, None]
    longer = replace(train, values=train.values * lengths), replace(test, values=test.values * 3)
    scaled = score([longer[0]], [longer[1]], SCORERS[name])
    for got, want in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(got[0], want[0], **close)
