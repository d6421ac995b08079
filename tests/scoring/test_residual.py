"""The residual of principal components against scikit-learn, the minimum against its formula."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA

from asdjax.scoring import residual
from asdjax.scoring.knn import Knn
from asdjax.scoring.minimum import Minimum
from asdjax.scoring.residual import Residual
from asdjax.scoring.score import score
from asdjax.types import Clip, Embeddings, InputError


@partial(jax.jit, static_argnums=3)
def distance(values, weight, query, variance):
    known, kept = residual.fit_subspace(values, weight, variance)
    return residual.distance(known, query, variance), kept


def rows(count, width=12, seed=0):
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.standard_normal((width, width)))[0] * np.geomspace(0.01, 1, width)
    return (rng.standard_normal((count, width)) @ mixing.T + 2).astype(np.float32)


@pytest.mark.parametrize("count", [5, 40])  # fewer than values, and more
@pytest.mark.parametrize("variance", [0.5, 0.95])
def test_it_is_what_scikit_learns_components_leave(count, variance):
    values, query = rows(count), rows(6, seed=1)
    padded = np.concatenate([values, np.full((3, 12), 7, np.float32)])
    weight = np.r_[np.ones(count), np.zeros(3)].astype(np.float32)
    found, kept = distance(padded, weight, query, variance)
    fit = PCA(variance, svd_solver="full").fit(values.astype(np.float64))
    assert kept == fit.n_components_
    back = fit.inverse_transform(fit.transform(query.astype(np.float64)))
    # 1e-3: float32 components of variances 10,000 apart
    np.testing.assert_allclose(found, np.linalg.norm(query - back, axis=1), rtol=1e-3, atol=1e-4)


def test_impossible_shares_are_refused():
    with pytest.raises(InputError, match=r"variance: expected in \(0, 1\), got 1"):
        Residual(1.0)
    with pytest.raises(InputError, match="scorers: expected two or more"):
        Minimum((Knn(),))


def test_the_minimum_is_in_deviations_of_left_out_scores():
    rng = np.random.default_rng(0)

    def machine(count, split):
        clips = [Clip(Path(f"{i}.wav"), "fan", "section_00", split) for i in range(count)]
        return [Embeddings(tuple(clips), 1 + 0.1 * rng.standard_normal((count, 6)))]

    train, test, scorers = machine(20, "train"), machine(5, "test"), (Knn(), Residual(0.5))
    found, left_out = score(train, test, Minimum(scorers))
    parts = [score(train, test, one) for one in scorers]
    want = [(x[0] - left[0].mean()) / left[0].std() for x, left in parts]
    # 1e-5: float32 scores
    np.testing.assert_allclose(found[0], np.min(want, 0), rtol=1e-5, atol=1e-5)
    rest = [np.delete(left[0], 3) for _, left in parts]
    want = [(left[0][3] - r.mean()) / r.std() for (_, left), r in zip(parts, rest, strict=True)]
    np.testing.assert_allclose(left_out[0][3], min(want), rtol=1e-5, atol=1e-5)
