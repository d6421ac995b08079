"""What every scorer must do, whatever its formula."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from asdjax.scoring import folds, mahalanobis, mixture
from asdjax.scoring.centers import Centers
from asdjax.scoring.density import Density
from asdjax.scoring.domain_scale import DomainScale
from asdjax.scoring.folds import FOLDS, deal
from asdjax.scoring.knn import Knn
from asdjax.scoring.mahalanobis import Mahalanobis
from asdjax.scoring.minimum import Minimum
from asdjax.scoring.mixture import Mixture
from asdjax.scoring.oversampling import MemMixup, Smote
from asdjax.scoring.residual import Residual
from asdjax.scoring.score import score
from asdjax.types import Clip, Embeddings, InputError

WIDTH = 6
SCORERS = {
    "knn": Knn(2),
    "centers": Centers(3, starts=2),
    "mixture": Mixture(2),
    "mahalanobis": Mahalanobis("pooled"),
    "mahalanobis-domain": Mahalanobis("domain"),
    "residual": Residual(0.5),
    "parts": Knn(2, parts=2),
    "parts-max": Knn(parts=3, mix="max", references="domain"),
    "density": Knn(normalize=Density(2)),
    "density-domain": Knn(references="domain", normalize=Density(3, 2, scale="sum")),
    "varmin-parts": Knn(parts=2, normalize=Density(4, form="difference", strength="variance")),
    "exits": Knn(normalize=Density(16, exits=True)),
    "domain-scale": Knn(normalize=DomainScale(), parts=2),
    "minimum": Minimum((Knn(), Mahalanobis("pooled"), Residual(0.5))),
}
EVERY = [pytest.param(config, id=name) for name, config in SCORERS.items()]
every = pytest.mark.parametrize("config", EVERY)
LEFT_OUT = {name: one for name, one in SCORERS.items() if isinstance(one, Knn)}  # clip by clip
FITTED = {name: config for name, config in SCORERS.items() if name not in LEFT_OUT}


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
        ("residual", "source"),
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


@pytest.mark.parametrize("config", LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_training_score_is_that_of_a_test_clip_of_a_bank_without_it(config):
    """Also for standardized embeddings: by statistics without the fold of the clip."""
    train = machine(normal())
    left = score([train], [machine(queries(), "test")], config)[1][0]
    for clip in (0, 7, 25):
        rest = train.take(np.delete(np.arange(26), clip))
        as_test = machine(train.values[[clip]], "test")
        np.testing.assert_allclose(score([rest], [as_test], config)[0][0][0], left[clip], **close)


COMBINED = [
    Knn(
        references=references,
        standardize=standardize,
        oversample=oversample,
        parts=parts,
        normalize=one,
    )
    for references in ("pooled", "domain")
    for standardize in (None, "machine")
    for oversample in (None, Smote(0.5), MemMixup())
    for parts in (1, 2)
    for one in (Density(2), Density(3, form="difference", strength="variance"), DomainScale())
]


def test_no_combination_lets_test_clips_see_each_other():
    """Removed, in another order, and beside others, each has the score that it had."""
    train, test = machine(normal()), machine(queries(), "test")
    more = np.random.default_rng(8).normal(size=(5, WIDTH)).astype(np.float32)
    others = machine(np.concatenate([more, test.values[[6, 1]]]), "test")
    everything = Knn(standardize="all"), Knn(normalize=Density(9, exits=True)), *SCORERS.values()
    for config in (*COMBINED, *everything):
        whole, left = score([train], [test], config)
        assert np.isfinite(left[0]).all()
        for some, kept in ((test.take([6, 1]), slice(None)), (others, slice(5, None))):
            found, same = score([train], [some], config)
            np.testing.assert_allclose(
                found[0][kept], whole[0][[6, 1]], err_msg=str(config), **close
            )
            np.testing.assert_array_equal(same[0], left[0])


def test_one_part_is_the_whole_and_normalized_parts_are_those_alone():
    train, test = machine(normal()), machine(queries(), "test")
    for one in (None, Density(2), DomainScale()):
        both = score([train], [test], Knn(parts=2, normalize=one))
        halves = [
            score(
                [replace(train, values=train.values[:, half])],
                [replace(test, values=test.values[:, half])],
                Knn(normalize=one),
            )
            for half in (slice(0, 3), slice(3, 6))
        ]
        for got, *wanted in zip(both, *halves, strict=True):
            want = np.mean([one[0] for one in wanted], 0)
            np.testing.assert_allclose(got[0], want, **close)


def test_a_view_is_that_part_of_the_embedding_alone():
    train, test = machine(normal()), machine(queries(), "test")
    second = [replace(one, values=one.values[:, 3:]) for one in (train, test)]
    found = score([train], [test], Knn(view=(1, 2), normalize=Density(2)))
    alone = score([second[0]], [second[1]], Knn(normalize=Density(2)))
    for got, want in zip(found, alone, strict=True):
        np.testing.assert_array_equal(got[0], want[0])
    with pytest.raises(InputError, match=r"Knn\.view: expected a number below a count"):
        Knn(view=(2, 2))


def test_parts_that_do_not_divide_an_embedding_are_refused():
    with pytest.raises(InputError, match=r"that divide the 6 values .*, got 1 view of 4 parts"):
        score([machine(normal())], [machine(queries(), "test")], Knn(parts=4))
    with pytest.raises(InputError, match=r"Knn\.k: expected 1 with normalize, got 2"):
        Knn(2, normalize=Density())


def test_fewer_neighbors_than_asked_for_are_told():
    lines, train = [], machine(normal(8, 1), targets=1)
    test = [machine(queries(), "test")]
    score([train], test, Knn(normalize=Density(16)), lines.append)
    score([train], test, Knn(references="domain", normalize=Density(9)), lines.append)
    start = "fan/section_00: local scales of"
    assert lines == [
        f"{start} all clips are from 7 neighbors in place of 16",
        f"{start} source clips are from 6 neighbors in place of 9",
        f"{start} target clips are from clips of its machine in place of 9",
    ]


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
    # Deviations of scores that differ by rounding are of any size.
    atol = 5 if isinstance(config, Minimum) else 0.1
    np.testing.assert_allclose(left[0], found[0][0], rtol=0, atol=atol)


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


@every
def test_a_fitted_scorer_gives_each_clip_the_score_that_it_has_among_others(config):
    """Also one by one, again and again, and where another machine has no clip at all."""
    train = [machine(normal()), machine(normal(seed=5), name="pump")]
    test = [machine(queries(), "test"), machine(queries(2), "test", name="pump")]
    want, _ = score(train, test, config)
    scored, _ = config.fit(train, lambda line: None)
    for i in (3, 0, 3):
        alone = [test[0].take([i]), test[1].take([])]
        np.testing.assert_allclose(scored(alone)[0], want[0][[i]], **close)
