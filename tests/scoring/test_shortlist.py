"""Approximate search against the exact one, and its recall against a count in numpy."""

import numpy as np
import pytest

from asdjax.scoring import shortlist
from asdjax.scoring.knn import knn_scores, open_references
from asdjax.scoring.shortlist import make_shortlist
from asdjax.types import InputError

RNG = np.random.default_rng(0)
MIXTURE = RNG.standard_normal((6, 24)).astype(np.float32)


def rows(count: int) -> np.ndarray:
    """Return `[count, 24]`: mostly in 6 directions around a common one, as embeddings are."""
    few = RNG.standard_normal((count, 6)) @ MIXTURE
    return (4 + few + 0.3 * RNG.standard_normal((count, 24))).astype(np.float32)


QUERIES, REFERENCES = rows(40), rows(500)
DISTANCE = 1 - np.divide(
    QUERIES.astype(float) @ REFERENCES.T.astype(float),
    np.outer(np.linalg.norm(QUERIES, axis=1), np.linalg.norm(REFERENCES, axis=1)),
)


@pytest.mark.parametrize("k", [1, 3])
def test_with_all_references_as_candidates_it_is_the_exact_search(k):
    made = make_shortlist(REFERENCES, 2)
    found = made.scores(QUERIES, k, candidates=1000)
    # Both compute small distances in float64; the exact search rounds larger ones to float32.
    np.testing.assert_allclose(found, knn_scores([QUERIES], [REFERENCES], k)[0], rtol=1e-5)
    assert made.recall(QUERIES, k, candidates=1000) == 1.0


@pytest.mark.parametrize(("width", "candidates"), [(1, 1), (2, 1), (2, 5), (6, 5)])
def test_candidates_are_the_nearest_in_the_main_directions(width, candidates):
    made = make_shortlist(REFERENCES, width)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (QUERIES, REFERENCES)]
    _, _, axes = np.linalg.svd(unit[1] - unit[1].mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(made.axes.T @ axes[:width].T), np.eye(width), atol=1e-3)
    near, far = ((x - unit[1].mean(0)) @ axes[:width].T for x in unit)
    signs = np.sign((made.axes * axes[:width].T).sum(0))
    np.testing.assert_allclose(made.rows * signs, far, atol=1e-3)  # float16 of values below 1
    # The nearest by the rows as they are kept: of all 500 some are equally far in float16.
    chord = np.square(near[:, None] - (made.rows * signs)[None].astype(float)).sum(-1)
    chosen = np.argsort(chord, 1)[:, :candidates]
    want = np.take_along_axis(DISTANCE, chosen, 1).min(1)
    found = made.scores(QUERIES, 1, candidates)
    same = np.isclose(found, want, rtol=1e-4)
    assert same.mean() >= 0.9  # rows that are equally far to float32 may change places
    assert (found >= DISTANCE.min(1) - 1e-6).all()
    share = np.isclose(found, DISTANCE.min(1), rtol=1e-4).mean()
    assert made.recall(QUERIES, 1, candidates) == pytest.approx(share)


def test_more_directions_and_candidates_find_more():
    few, more = (make_shortlist(REFERENCES, width) for width in (1, 6))
    shares = [
        how[0].recall(QUERIES, *how[1:]) for how in ((few, 1, 1), (few, 1, 50), (more, 1, 50))
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.5 < 0.95 < shares[-1]


def test_recall_knows_a_neighbor_that_is_a_little_farther():
    """Embeddings of a steady machine are nearly parallel."""
    references = (1 + 1e-3 * rows(200)).astype(np.float32)
    queries = references[:50] + np.float32(1e-6) * rows(50)
    made = make_shortlist(references, 1)
    exact = np.array([np.square(_unit(references) - u).sum(1).min() / 2 for u in _unit(queries)])
    found = made.scores(queries, 1, 1)
    share = np.mean(found <= exact * 1.001)
    assert share < 1
    assert made.recall(queries, 1, 1) == pytest.approx(share)


def _unit(x: np.ndarray) -> np.ndarray:
    return x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)


def test_samples_of_a_large_set_give_the_directions(monkeypatch):
    monkeypatch.setattr(shortlist, "SAMPLE", 100)
    monkeypatch.setattr(shortlist, "MEASURED", 10)
    made = make_shortlist(REFERENCES, 6)
    some = _unit(REFERENCES[::5])
    np.testing.assert_allclose(made.middle[0], some.mean(0), atol=1e-6)
    assert made.recall(QUERIES) > 0.9  # all main directions, 64 candidates


def test_a_mapped_file_is_read_in_blocks(tmp_path, monkeypatch):
    np.save(tmp_path / "bank.npy", REFERENCES)
    whole = make_shortlist(REFERENCES, 3)
    monkeypatch.setattr(shortlist, "BLOCK_BYTES", 7 * 4 * 24)
    mapped = open_references(tmp_path / "bank.npy")
    parts = make_shortlist(mapped, 3)
    np.testing.assert_allclose(parts.rows, whole.rows, atol=1e-3)  # float16 of values below 1
    scores = [whole._replace(references=x).scores(QUERIES) for x in (mapped, REFERENCES)]
    np.testing.assert_array_equal(*scores)


def test_what_cannot_be_made_or_found_is_refused():
    for width in (0, 25):
        with pytest.raises(InputError, match=f"1 to 24 directions of rows, got {width} of 500"):
            make_shortlist(REFERENCES, width)
    with pytest.raises(InputError, match="got 3 of 0 rows"):
        make_shortlist(REFERENCES[:0], 3)
    made = make_shortlist(REFERENCES, 3)
    assert made.scores(QUERIES[:0]).shape == (0,)
    with pytest.raises(InputError, match="queries to measure the recall of, got none"):
        made.recall(QUERIES[:0])
    with pytest.raises(ValueError, match="k <= 4 candidates, got 5"):
        make_shortlist(REFERENCES, 3).scores(QUERIES, 5, 4)
