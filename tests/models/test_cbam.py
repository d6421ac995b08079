"""Both gates against the equations in float64, with loops over places."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from asdjax import params as weights
from asdjax.models.cbam import Cbam


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def oracle(p, x):
    """Return the gated `x [H, W, C]` of one clip."""

    def mlp(v):
        return np.maximum(v @ p["reduce.kernel"], 0) @ p["expand.kernel"]

    places = x.reshape(-1, x.shape[-1])
    x = x * sigmoid(mlp(places.mean(0)) + mlp(places.max(0)))
    padded = np.pad(np.stack([x.mean(-1), x.max(-1)], -1), ((3, 3), (3, 3), (0, 0)))
    gated = np.empty_like(x)
    for i, j in np.ndindex(*x.shape[:2]):
        logit = 0.0
        for a, b in itertools.product(range(7), range(7)):
            logit += padded[i + a, j + b] @ p["place.kernel"][a, b, :, 0]
        gated[i, j] = x[i, j] * sigmoid(logit)
    return gated


def random_gate(channels, axes):
    """Return the graph and float32 weights large enough for gates far from one half."""
    graph, params = weights.split(Cbam(channels, axes, rngs=nnx.Rngs(0)), nnx.Param)[:2]
    rng = np.random.default_rng(1)
    return graph, {n: rng.normal(size=v.shape).astype(np.float32) for n, v in params.items()}


@pytest.mark.parametrize(("channels", "hidden"), [(5, 1), (40, 2)])
def test_gates_of_two_axes_equal_the_equations(channels, hidden):
    graph, params = random_gate(channels, 2)
    assert params["reduce.kernel"].shape == (channels, hidden)
    assert weights.count(params) == 2 * channels * hidden + 7 * 7 * 2
    x = np.random.default_rng(0).normal(size=(3, 4, 9, channels)).astype(np.float32)
    double = {name: np.float64(value) for name, value in params.items()}
    want = np.stack([oracle(double, np.float64(clip)) for clip in x])
    # 2e-5: float32 logits of about 30 are off by 1e-6 of that, and gates by a quarter of it.
    np.testing.assert_allclose(weights.merge(graph, params, {})(x), want, rtol=0, atol=2e-5)


def test_one_axis_is_the_middle_row_of_two():
    (graph, params), (wide, _) = random_gate(6, 1), random_gate(6, 2)
    x = np.random.default_rng(0).normal(size=(2, 11, 6)).astype(np.float32)
    kernel = np.zeros((7, 7, 2, 1), np.float32)
    kernel[3] = params["place.kernel"]
    want = weights.merge(wide, params | {"place.kernel": kernel}, {})(x[:, None])[:, 0]
    # 1e-5: float32 sums in another order, of values near 3.
    np.testing.assert_allclose(weights.merge(graph, params, {})(x), want, rtol=0, atol=1e-5)


def test_without_weight_both_gates_are_one_half_and_the_result_is_float32():
    graph, params = random_gate(4, 2)
    gate = weights.merge(graph, {name: 0 * value for name, value in params.items()}, {})
    x = jax.random.normal(jax.random.key(0), (1, 3, 5, 4), "bfloat16")
    got = gate(x)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x.astype("float32") / 4)
