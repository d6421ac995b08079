"""The domain scale against its formula; training clips as test clips of a bank without them."""

import numpy as np
import pytest

from asdjax.scoring import matching
from asdjax.scoring.density import COPY
from asdjax.scoring.distances import TARGET, Bank, unit_rows
from asdjax.scoring.domain_scale import DomainScale


def oracle(references, domains, synthetic, query):
    if not len(references):
        return np.inf
    apart = np.array([[1 - a @ b for a in references] for b in references])
    found = []
    for domain in set(domains):
        rows = [i for i, one in enumerate(domains) if one == domain]
        nearest = []
        for i in rows:
            others = [j for j in range(len(domains)) if j != i and apart[i, j] > COPY]
            own = [j for j in others if domains[j] == domain]
            if others:
                nearest.append(min(apart[i, j] for j in own or others))
        usual = np.median(nearest) if nearest else 1.0
        more = list(synthetic) if domain == TARGET else []
        distance = min(1 - query @ row for row in [*references[rows], *more])
        found.append(max(distance, 0) / usual)
    return min(found)


@pytest.mark.parametrize(
    ("source", "target", "synthetic"),
    [(9, 4, 0), (9, 4, 3), (5, 1, 0), (5, 2, 0), (1, 1, 0), (3, 0, 0), (1, 0, 0), (0, 2, 0)],
)
def test_scores_are_those_of_the_formula(source, target, synthetic):
    rng = np.random.default_rng(source + target)
    rows = unit_rows(1 + 0.3 * rng.normal(size=(source + target, 5)))
    if source > 5:
        rows[1] = rows[0]  # a copy
    domains = np.repeat([0, TARGET], [source, target]).astype(np.int32)
    if source > 5:
        domains[3:5] = 2  # clips without a domain
    more = unit_rows(1 + 0.3 * rng.normal(size=(synthetic, 5)))
    queries = unit_rows(1 + rng.normal(size=(4, 5)))
    bank = Bank(rows, domains, more, queries)
    ((tests,),), ((left_out,),) = matching.scores([bank], [(DomainScale(), True)])
    expected = [oracle(rows, domains, more, query) for query in queries]
    rest = [np.delete(np.arange(len(rows)), i) for i in range(len(rows))]
    without = [
        oracle(rows[r], domains[r], more[:0], row) for r, row in zip(rest, rows, strict=True)
    ]
    # float32 distances of rows of length 1; a copy's is rounding.
    np.testing.assert_allclose(tests, expected, rtol=1e-5)
    np.testing.assert_allclose(left_out, without, rtol=1e-5, atol=1e-12)
