"""Density normalization against the formulas, in loops and float64.

The oracle knows nothing of lists: the score of a training clip is that of a test clip of a bank
from which the clip was taken out.
"""

import itertools

import numpy as np
import pytest

from asdjax.scoring import domain_scale, matching
from asdjax.scoring.density import COPY, LEAST_VARIANCE, SPARSE, Density
from asdjax.scoring.distances import TARGET, Bank, distances, unit_rows
from asdjax.scoring.domain_scale import DomainScale

PLAIN = None
SETTINGS = [
    PLAIN,
    Density(),
    Density(3),
    Density(2, form="difference"),
    Density(4, form="difference", strength="variance"),
    Density(1, strength="variance"),
    Density(3, target_neighbors=2, scale="sum"),
    Density(5, decay=0.7),
    Density(4, decay=0.5, form="difference", strength="variance", scale="sum"),
    Density(50),
    Density(6, exits=True),
    Density(30, target_neighbors=4, exits=True, form="difference"),
]
ASKED = list(itertools.product(SETTINGS, (False, True)))


def smoothed(d):
    r = [a / max(b, COPY) for a, b in itertools.pairwise(d)]
    return [(a + b) / 2 for a, b in itertools.pairwise(r)]


def before_exit(d, every):
    """How many of the rising distances lie before the exit; those of all of the bank."""
    s = smoothed(d)
    if len(d) < 3 or min(s) < SPARSE:
        return min(len(d), 2)
    bound = np.percentile([one for d in every for one in smoothed(d)], 4)
    below = [n for n, one in enumerate(s, 1) if one < bound]
    return below[0] if below else len(d) - 2


def neighbor_distances(distances, domains, j, setting, by_domain):
    """The rising distances of reference j to its K neighbors."""
    others = [i for i in range(len(domains)) if i != j and distances[j, i] > COPY]
    own = [i for i in others if domains[i] == domains[j]]
    chosen = own if by_domain and own else others
    count = setting.neighbors
    if domains[j] == TARGET and setting.target_neighbors is not None:
        count = setting.target_neighbors
    return sorted(distances[j, i] for i in chosen)[:count]


def local_scale(d, setting, every):
    """c of a reference at distances d to its neighbors; None where there is none."""
    if setting.exits:
        d = d[: before_exit(d, every)]
    if not d:
        return None
    weights = [setting.decay**n for n in range(len(d))]
    total = sum(w * one for w, one in zip(weights, d, strict=True))
    return total if setting.scale == "sum" else total / sum(weights)


def coordinate(value, setting):
    return np.log(max(value, COPY)) if setting.form == "ratio" else value


def m_of(distances, domains, j, setting, by_domain, every):
    d = neighbor_distances(distances, domains, j, setting, by_domain)
    c = local_scale(d, setting, every)
    return 0.0 if c is None else coordinate(c, setting)


def factor(distances, domains, setting, by_domain):
    """a, and a times the mean m of the training clips."""
    if setting.strength == "full":
        return 1.0, 0.0
    x, m = [], []
    for z in range(len(domains)):
        others = [j for j in range(len(domains)) if j != z and distances[z, j] > COPY]
        if not others:
            continue
        j = min(others, key=lambda j: distances[z, j])
        rest = [i for i in range(len(domains)) if i != z]
        x.append(coordinate(distances[z, j], setting))
        place = rest.index(j)
        without = distances[np.ix_(rest, rest)], domains[rest]
        m.append(m_of(*without, place, setting, by_domain, None))
    x, m = np.array(x), np.array(m)
    if not len(m) or m.var() <= LEAST_VARIANCE * m.mean() ** 2 or m.var() < 1e-37:
        return 0.0, 0.0
    a = np.mean((x - x.mean()) * (m - m.mean())) / m.var()
    a = min(max(a, -4.0), 4.0)
    return a, a * m.mean()


def oracle(references, domains, synthetic, query, setting, by_domain):
    if not len(references):
        return np.inf
    gaps = [1 - a @ b for a in references for b in references]
    distances = np.maximum(gaps, 0).reshape(len(references), -1)
    if setting is None:
        return max(min(1 - query @ r for r in [*references, *synthetic]), 0)
    a, shift = factor(distances, domains, setting, by_domain)
    every = [
        neighbor_distances(distances, domains, j, setting, by_domain)
        for j in range(len(references))
    ]
    found = []
    for j, row in enumerate(references):
        m = m_of(distances, domains, j, setting, by_domain, every)
        found.append(coordinate(1 - query @ row, setting) - a * m)
    for row in synthetic:
        parent = max(np.flatnonzero(domains == TARGET), key=lambda j: references[j] @ row)
        m = m_of(distances, domains, parent, setting, by_domain, every)
        found.append(coordinate(1 - query @ row, setting) - a * m)
    least = min(found) + shift
    return np.exp(least) if setting.form == "ratio" else least


@pytest.mark.parametrize("form", ["ratio", "difference"])
def test_a_fitted_score_has_the_unit_of_distances(form):
    """All distances times 4 give scores times 4, so that those of several parts can be averaged."""
    rng = np.random.default_rng(7)
    offsets = rng.standard_normal((30, 6)) * np.geomspace(0.3, 3, 30)[:, None]
    offsets[:, 0] = 0
    asked = [(Density(2, form=form, strength="variance"), False)]

    def scores(size):
        rows = unit_rows(np.eye(6)[0] + size * offsets)
        domain = np.zeros(24, np.int32)
        found = matching.scores([Bank(rows[:24], domain, rows[:0], rows[24:])], asked)
        return np.concatenate([one[0][0] for one in found])

    small, large = scores(1e-3), scores(2e-3)
    # 1e-3: float32, and chords of 6e-3, which bend by 1e-5
    np.testing.assert_allclose(large, 4 * small, rtol=1e-3, atol=1e-9)


def bank(rng, clips=14, target=4, dims=6, synthetic=0, test=3, spread=1.0):
    """Clips of two domains and densities around two directions."""
    domain = np.zeros(clips, np.int32)
    domain[rng.permutation(clips)[:target]] = TARGET
    middle = rng.normal(size=(2, dims))
    wide = np.where(domain == TARGET, 3 * spread, spread)[:, None]
    rows = middle[domain] + 0.1 * wide * rng.normal(size=(clips, dims))
    more = middle[1] + 0.2 * rng.normal(size=(synthetic, dims))
    queries = middle[rng.integers(0, 2, test)] + 0.3 * rng.normal(size=(test, dims))
    return Bank(unit_rows(rows), domain, unit_rows(more), unit_rows(queries))


def assert_agrees(one: Bank):
    (tests,), (left_out,) = matching.scores([one], ASKED)
    for row, (setting, by_domain) in enumerate(ASKED):
        expected = [
            oracle(one.references, one.domain, one.synthetic, query, setting, by_domain)
            for query in one.queries
        ]
        rest = [np.delete(np.arange(len(one.domain)), i) for i in range(len(one.domain))]
        without = [
            oracle(one.references[r], one.domain[r], one.synthetic[:0], clip, setting, by_domain)
            for r, clip in zip(rest, one.references, strict=True)
        ]
        # float32 of x, m and a: ten roundings of numbers up to 28 (ln 1e-12) in the exponent.
        close = {"rtol": 1e-4, "atol": 1e-6, "err_msg": f"{setting} by_domain={by_domain}"}
        np.testing.assert_allclose(tests[row], expected, **close)
        np.testing.assert_allclose(left_out[row], without, **close)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_formulas(seed):
    assert_agrees(bank(np.random.default_rng(seed)))


def test_scores_with_synthetic_references_are_those_of_the_formulas():
    assert_agrees(bank(np.random.default_rng(3), synthetic=3))


@pytest.mark.parametrize(("clips", "target"), [(1, 0), (1, 1), (2, 1), (3, 1), (3, 2), (5, 1)])
def test_few_clips(clips, target):
    assert_agrees(bank(np.random.default_rng(clips), clips, target))


def test_copies_are_no_neighbors():
    one = bank(np.random.default_rng(5), clips=10)
    rows = np.concatenate([one.references, one.references[:2], one.references[:1]])
    domain = np.concatenate([one.domain, one.domain[:2], [TARGET]]).astype(np.int32)
    assert_agrees(one._replace(references=rows, domain=domain))


@pytest.mark.parametrize("exponent", range(-9, -2))
def test_near_copies_keep_their_digits(exponent):
    """Distances of pairs from 1e-11 to 1e-5 beside those of 0.1 to others."""
    rng = np.random.default_rng(exponent + 99)
    one = bank(rng, clips=12, spread=3.0)
    aside = unit_rows(one.references[::2] + 10.0 ** (exponent / 2) * rng.normal(size=(6, 6)))
    rows = one.references.copy()
    rows[1::2] = aside
    assert_agrees(one._replace(references=rows, domain=one.domain))


def test_equal_densities_change_no_order():
    """Where all references are equally far apart, LDN is the nearest neighbor, scaled or moved."""
    corners = unit_rows(np.eye(8) + 0.3)
    queries = unit_rows(np.random.default_rng(0).normal(size=(20, 8)) + 0.5)
    one = Bank(corners, np.arange(8, dtype=np.int32) % 2, corners[:0], queries)
    assert_agrees(one)
    asked = [(PLAIN, False), (Density(3), False), (Density(3, form="difference"), False)]
    (tests,), _ = matching.scores([one], asked)
    apart = 1 - corners[0] @ corners[1]
    np.testing.assert_allclose(tests[1], tests[0] / apart, rtol=1e-5)
    np.testing.assert_allclose(tests[2], tests[0] - apart, atol=1e-6)


def test_large_banks_in_blocks_are_the_same(monkeypatch):
    rng = np.random.default_rng(7)
    banks = [bank(rng, clips, 9, dims=8, test=70, synthetic=5) for clips in (150, 150, 40)]
    asked = [*ASKED, (DomainScale(), True)]
    whole = matching.scores(banks, asked)
    monkeypatch.setattr(matching, "HELD", 1)
    monkeypatch.setattr(domain_scale, "HELD", 4000)
    monkeypatch.setattr(matching, "TOGETHER", 1)
    for got, want in zip(matching.scores(banks, asked), whole, strict=True):
        for one, other in zip(got, want, strict=True):
            # 1e-5: float32 sums in another order
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_ratios_do_not_depend_on_the_scale_of_distances(monkeypatch):
    one = bank(np.random.default_rng(2))
    asked = [(Density(3), False), (Density(2, form="difference"), False), (DomainScale(), True)]
    plain = matching.scores([one], asked)
    for module in (matching, domain_scale):
        monkeypatch.setattr(module, "distances", lambda *rows: 3 * distances(*rows))
    for got, want in zip(matching.scores([one], asked), plain, strict=True):
        factor = np.array([1, 3, 1])[:, None]
        np.testing.assert_allclose(got[0], factor * want[0], rtol=1e-5, atol=1e-7)
