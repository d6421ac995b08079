"""Cosine nearest neighbors against scikit-learn and by meaning."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from asdjax.scoring import blocks, knn
from asdjax.scoring.knn import knn_scores
from asdjax.types import InputError

# float32 cosines of rows of length 16: a few units in the last place of 1.0.
TOLERANCE = {"rtol": 0, "atol": 2e-6}


def groups(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((size, 16)).astype(np.float32) for size in sizes]


def oracle(query, reference, k):
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(reference)
    return search.kneighbors(query)[0].mean(1)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block_values", [2**22, 7 * 40])  # one block, and many ragged ones
def test_equals_scikit_learn_for_all_machines_at_once(monkeypatch, k, block_values):
    monkeypatch.setattr(blocks, "BLOCK_VALUES", block_values)
    monkeypatch.setattr(blocks, "QUERY_BLOCK", 40)
    knn.knn_distance.clear_cache()
    queries, references = groups([50, 3, 1, 20]), groups([90, 60, 4, 70], seed=1)
    for got, query, reference in zip(
        knn_scores(queries, references, k), queries, references, strict=True
    ):
        np.testing.assert_allclose(got, oracle(query, reference, k), **TOLERANCE)
    knn.knn_distance.clear_cache()


def test_a_last_block_that_overlaps_counts_no_row_twice(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 7 * 5)  # 7 columns at a time of a reference of 31
    monkeypatch.setattr(blocks, "QUERY_BLOCK", 5)
    knn.knn_distance.clear_cache()
    query, reference = groups([13])[0], groups([31], seed=1)[0]
    np.testing.assert_allclose(
        knn_scores([query], [reference], 9)[0], oracle(query, reference, 9), **TOLERANCE
    )
    # Where all rows point away, rows of padding (distance 1) would be the nearest.
    far = [-np.abs(rows) for rows in groups([3, 31], seed=2)]
    for got, rows in zip(knn_scores([np.abs(query)] * 2, far, 2), far, strict=True):
        np.testing.assert_allclose(got, oracle(np.abs(query), rows, 2), **TOLERANCE)
    near = [-np.abs(rows) for rows in groups([25, 31], seed=3)]  # of one size class: padded to 31
    for got, rows in zip(knn_scores([np.abs(query)] * 2, near, 2), near, strict=True):
        np.testing.assert_allclose(got, oracle(np.abs(query), rows, 2), **TOLERANCE)
    knn.knn_distance.clear_cache()


def test_leave_one_out_ignores_the_clip_itself():
    reference = groups([30])[0]
    got = knn_scores([reference], [reference], 2, [np.arange(30)])[0]
    for row, score in enumerate(got):
        others = np.delete(reference, row, 0)
        np.testing.assert_allclose(
            score, oracle(reference[row : row + 1], others, 2)[0], **TOLERANCE
        )
    # 1e-6: the cosine of a unit row with itself is 1 up to float32 rounding.
    np.testing.assert_allclose(knn_scores([reference], [reference])[0], 0, atol=1e-6)


def test_leave_one_out_hides_a_row_not_its_copies():
    reference = np.concatenate([groups([5])[0]] * 2)
    scores = knn_scores([reference], [reference], own=[np.arange(10)])[0]
    np.testing.assert_allclose(scores, 0, atol=1e-6)  # float32 rounding of cosine 1


def test_only_the_direction_matters():
    query, reference = groups([8])[0], groups([9], seed=1)[0]
    scaled = knn_scores(
        [query * 1e-3], [reference * np.arange(1, 10, dtype=np.float32)[:, None]], 2
    )
    np.testing.assert_allclose(scaled[0], knn_scores([query], [reference], 2)[0], **TOLERANCE)


def test_a_group_does_not_depend_on_its_neighbors():
    queries, references = groups([5, 7, 6]), groups([33, 40, 60], seed=1)
    together = knn_scores(queries, references, 2)
    for row in range(3):
        alone = knn_scores([queries[row]], [references[row]], 2)[0]
        np.testing.assert_allclose(together[row], alone, **TOLERANCE)


def test_corners_are_finite_or_infinite_never_nan():
    zero, reference = np.zeros((1, 16), np.float32), groups([2])[0]
    np.testing.assert_array_equal(knn_scores([zero], [reference])[0], [1.0])
    few = knn_scores([reference], [reference], 5)[0]  # fewer references than k: all are averaged
    np.testing.assert_allclose(few, oracle(reference, reference, 2), **TOLERANCE)
    assert knn_scores([reference[:1]], [reference[:1]], own=[np.array([0])])[0] == np.inf
    assert knn_scores([reference[:0]], [reference])[0].shape == (0,)
    with pytest.raises(ValueError, match="k >= 1"):
        knn_scores([reference], [reference], 0)


@pytest.fixture
def in_blocks(monkeypatch):
    """Search every set in blocks of 7 references."""
    monkeypatch.setattr(knn, "WHOLE_BYTES", 0)
    monkeypatch.setattr(knn, "BLOCK_BYTES", 7 * 4 * 16)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_a_large_set_is_searched_in_blocks(in_blocks, tmp_path, k):
    queries, references = groups([50, 3]), groups([31, 14], seed=1)
    np.save(tmp_path / "bank.npy", references[0])
    references[0] = knn.open_references(tmp_path / "bank.npy")
    assert isinstance(references[0], np.memmap)
    for got, query, reference in zip(
        knn_scores(queries, references, k), queries, references, strict=True
    ):
        np.testing.assert_allclose(got, oracle(query, reference, k), **TOLERANCE)


def test_in_blocks_a_clip_is_not_its_own_neighbor_and_small_distances_keep_their_digits(in_blocks):
    reference = groups([30])[0] * 1e-4 + 1
    got = knn_scores([reference], [reference], 1, [np.arange(30)])[0]
    for row, score in enumerate(got):
        u = reference[row].astype(float)
        others = np.delete(reference, row, 0).astype(float)
        unit = others / np.linalg.norm(others, axis=1, keepdims=True)
        chord = np.square(unit - u / np.linalg.norm(u)).sum(1) / 2
        assert score == pytest.approx(chord.min(), rel=1e-5)  # float32 of what is right to 1e-6


def test_fewer_references_than_neighbors_in_blocks_are_all_averaged(in_blocks):
    query, reference = groups([4])[0], groups([10], seed=1)[0]
    got = knn_scores([query], [reference], 40)[0]
    np.testing.assert_allclose(got, oracle(query, reference, 10), **TOLERANCE)


@pytest.mark.parametrize(
    ("write", "got"),
    [
        (lambda path: path.write_text("x"), "another file"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60)), "another file"),
        (lambda path: np.save(path, np.array([[{}]]), allow_pickle=True), "holds other values"),
        (lambda path: np.save(path, np.zeros((0, 4), np.float32)), r"float32 \[0, 4\]"),
        (lambda path: np.save(path, np.zeros((3, 4))), r"float64 \[3, 4\]"),
        (lambda path: np.save(path, np.zeros(3, np.float32)), r"float32 \[3\]"),
    ],
)
def test_references_of_another_form_are_refused(tmp_path, write, got):
    write(tmp_path / "bank.npy")
    with pytest.raises(InputError, match=rf"bank\.npy: expected .* rows \[R, E\], got .*({got})"):
        knn.open_references(tmp_path / "bank.npy")


def test_references_that_are_cut_off_are_refused(tmp_path):
    path = tmp_path / "bank.npy"
    np.save(path, np.zeros((30, 4), np.float32))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"bank\.npy: expected .* got one that is cut short"):
        knn.open_references(path)
    path.unlink()
    with pytest.raises(InputError, match=r"bank\.npy: no such file"):
        knn.open_references(path)
