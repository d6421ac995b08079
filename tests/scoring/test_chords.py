"""Distances of nearly parallel rows against float64, of `knn_scores` as all scorers call it."""

import numpy as np
import pytest

from asdjax.scoring import blocks, chords, knn
from asdjax.scoring.knn import knn_scores

WIDTH = 96


def steady(count, spread, seed, width=WIDTH):
    """Return rows of very different lengths whose cosine distances are about `spread`."""
    rng = np.random.default_rng((seed, count))
    middle = np.random.default_rng(width).standard_normal(width)
    rows = middle + np.sqrt(spread) * rng.standard_normal((count, width))
    return (rows * rng.uniform(1e-3, 1e3, (count, 1))).astype(np.float32)


def distances(query, reference):
    """Return `[Q, R]` half squared chords, float64."""
    unit = [x / np.linalg.norm(x, axis=1)[:, None] for x in map(np.float64, (query, reference))]
    return np.square(unit[0][:, None] - unit[1]).sum(-1) / 2


def oracle(query, reference, k, own=None):
    distance = distances(query, reference)
    if own is not None:
        distance[np.arange(len(query)), own] = np.inf
    return np.sort(distance, 1)[:, :k].mean(1)


@pytest.fixture(params=["one block", "many blocks", "no candidate to spare"])
def way(request, monkeypatch):
    """How the search goes; nothing of it may be seen in the distances."""
    if request.param == "many blocks":
        monkeypatch.setattr(blocks, "BLOCK_VALUES", 2 * 7 * 11)
        monkeypatch.setattr(blocks, "QUERY_BLOCK", 7)
        monkeypatch.setattr(chords, "HELD", 5 * WIDTH)
    elif request.param == "no candidate to spare":
        monkeypatch.setattr(chords, "SPARE", 0)
    yield
    for function in (knn.knn_distance, chords.find):
        function.clear_cache()


@pytest.mark.parametrize("k", [1, 3])
def test_distances_have_full_precision_whatever_their_size(way, k):
    sizes = (1e-9, 1e-7, 1e-5, 1e-3, 1e-1)
    queries = [steady(20, size, 0) for size in sizes]
    references = [steady(33 + 7 * i, size, 1) for i, size in enumerate(sizes)]
    for got, query, reference in zip(
        knn_scores(queries, references, k), queries, references, strict=True
    ):
        expected = oracle(query, reference, k)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6)  # float32 of a float64 value
        assert len(set(got)) == len(got)


@pytest.mark.parametrize("k", [1, 2])
def test_a_training_clip_left_out_has_full_precision(way, k):
    own = np.arange(40)
    rows = steady(40, 1e-6, 2)
    got = knn_scores([rows], [rows], k, [own])[0]
    np.testing.assert_allclose(got, oracle(rows, rows, k, own), rtol=1e-6)
    np.testing.assert_array_equal(knn_scores([rows], [rows])[0], 0)  # with itself: to the bit


def test_many_copies_hide_no_nearer_row(way):
    """More equal references than candidates, and one that is nearer by less than float32 tells."""
    middle, query = steady(2, 1e-3, 3)
    nearer = (middle + 1e-5 * query * np.linalg.norm(middle) / np.linalg.norm(query))[None]
    rows = np.concatenate([np.tile(middle, (50, 1)), nearer, np.tile(middle, (50, 1))])
    rows = rows.astype(np.float32)
    got = knn_scores([query[None]], [rows], 1)[0]
    distance = distances(query[None], rows)[0]
    assert 0 < 1 - distance[50] / distance[0] < 1e-4
    np.testing.assert_allclose(got, distance[50], rtol=1e-6)
    got = knn_scores([query[None]], [rows], 60)[0]
    np.testing.assert_allclose(got, np.sort(distance)[:60].mean(), rtol=1e-6)


def test_two_groups_far_apart_keep_the_precision_of_each(way):
    """As source and target clips: the spread of all is 1, the distances are 1e-6."""
    rows = np.concatenate([steady(300, 1e-6, 4), -steady(300, 1e-6, 5)])
    query = np.concatenate([steady(90, 1e-6, 6), -steady(90, 1e-6, 7)])
    np.testing.assert_allclose(knn_scores([query], [rows])[0], oracle(query, rows, 1), rtol=1e-6)


def test_rows_of_zeros_have_distance_one():
    rows = np.concatenate([steady(3, 1e-5, 8), np.zeros((2, WIDTH), np.float32)])
    query = np.concatenate([steady(1, 1e-5, 9), rows[-1:]])
    few, zero = knn_scores([query], [rows], 3)[0]
    np.testing.assert_allclose(few, oracle(query[:1], rows[:3], 3)[0], rtol=1e-6)
    assert zero == 1
    every = knn_scores([query[:1]], [rows[:4]], 9)[0]
    np.testing.assert_allclose(every, (3 * few + 1) / 4, rtol=1e-6)


@pytest.mark.parametrize("width", [5, 700])
@pytest.mark.parametrize("spread", [1e-8, 1e-4, 0.1])
def test_no_reference_is_nearer_than_the_bound_says(width, spread):
    query, reference = steady(30, spread, 10, width), steady(200, spread, 11, width)
    identity = np.arange(200, dtype=np.int32)[None]
    nobody = np.full((1, 30), blocks.PADDING, np.int32)
    found = chords.find(query[None], reference[None], nobody, identity, 4)
    row, farthest, away, spread_ = (np.asarray(x)[0] for x in found)
    distance = distances(query, reference)
    error = chords.search_error(farthest, away, spread_, np.sort(distance, 1)[:, 0], width)
    for i in range(30):
        others = np.delete(distance[i], row[i])
        assert others.min() >= farthest[i] - error[i]
        # and it is no looser than the spread: a few candidates are enough
        assert error[i] < 1e-3 * distance.max() + 1e-6 * np.sqrt(distance.max())


def test_one_reference_far_away_leaves_the_bound_tight():
    query, reference = steady(30, 1e-4, 10), steady(400, 1e-4, 11)
    reference[7] *= -1
    identity = np.arange(400, dtype=np.int32)[None]
    nobody = np.full((1, 30), blocks.PADDING, np.int32)
    row, farthest, away, spread = chords.find(query[None], reference[None], nobody, identity, 8)
    distance = distances(query, reference)
    most = np.sort(distance, 1)[:, 0]
    error = chords.search_error(farthest[0], away[0], spread[0], most, query.shape[1])
    assert spread[0] > 3  # of squared lengths up to 4
    assert (most < np.asarray(farthest)[0] - error).all()  # nothing is compared again
    for i in range(30):
        assert np.delete(distance[i], np.asarray(row)[0, i]).min() >= farthest[0, i] - error[i]
