"""Pooling: what the numbers are, and that padded tokens change nothing.

1e-5 throughout: float32 sums over some ten tokens of unit scale, divided by deviations near 1; the
BatchNorms divide by a batch's deviation, which the cases keep above 0.1.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.models.pooling import AttentiveStatistics, Pool, make_pool, masked_mean, pool_width
from asdjax.models.weights_file import merge, split
from asdjax.types import InputError

ATOL = 1e-5
WIDTH = 32  # a hidden layer of two channels
LENGTHS = np.array([7, 3, 1, 5])
INSIDE = np.arange(7)[None] < LENGTHS[:, None]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def build(train=True, seed=0):
    """Return (graph, parameters, statistics) with every parameter away from its neutral value."""
    module = AttentiveStatistics(WIDTH, train=train, rngs=nnx.Rngs(0))
    graph, params, stats = split(module, nnx.Param)
    params = {
        name: value + 0.3 * noise(*value.shape, seed=seed + i)
        for i, (name, value) in enumerate(params.items())
    }
    stats = {
        name: value + 0.2 * abs(noise(*value.shape, seed=seed + 50 + i))
        for i, (name, value) in enumerate(stats.items())
    }
    return graph, params, stats


@partial(jax.jit, static_argnums=0)
def compute(graph, params, stats, tokens, inside):
    module = merge(graph, params, stats)
    pooled = module(tokens, inside)
    return pooled, split(module, nnx.BatchStat)[1]


def run(built, tokens, inside=INSIDE):
    """Return the result and the statistics after the call."""
    return compute(*built, tokens, inside)


def plain():
    """Return a module for use that scores every token 0 and whose last norm does nothing."""
    graph, params, stats = build(train=False)
    params["score.kernel"] = jnp.zeros_like(params["score.kernel"])
    for name in ("scale", "bias"):
        params[f"norm.{name}"] = jnp.full(2 * WIDTH, float(name == "scale"))
    stats["norm.mean"], stats["norm.var"] = jnp.zeros(2 * WIDTH), jnp.full(2 * WIDTH, 1 - 1e-5)
    return graph, params, stats


def oracle(params, stats, tokens, inside, train):
    """Return the same in float64 with loops and the whole `[x, mean, std]`; updates `stats`."""
    p = {name: np.float64(value) for name, value in params.items()}

    def norm(name, rows):  # rows [n, D]: real tokens, or clips
        mean, var = stats[f"{name}.mean"], stats[f"{name}.var"]
        if train:
            batch_mean, batch_var = rows.mean(0), rows.var(0)
            stats[f"{name}.mean"] = 0.9 * mean + 0.1 * batch_mean
            stats[f"{name}.var"] = 0.9 * var + 0.1 * batch_var
            mean, var = batch_mean, batch_var
        return (rows - mean) / np.sqrt(var + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]

    clips = [np.float64(row[keep]) for row, keep in zip(tokens, inside, strict=True)]
    hidden = []
    for x in clips:
        std = np.sqrt(np.maximum(x.var(0), 1e-4))
        wide = np.concatenate([x, np.tile(x.mean(0), (len(x), 1)), np.tile(std, (len(x), 1))], 1)
        hidden.append(np.maximum(wide @ p["kernel"] + p["bias"], 0))
    normed = np.split(
        np.tanh(norm("hidden_norm", np.concatenate(hidden))),
        np.cumsum([len(x) for x in clips])[:-1],
    )
    pooled = []
    for x, h in zip(clips, normed, strict=True):
        weight = np.exp(h @ p["score.kernel"] + p["score.bias"])
        weight /= weight.sum(0)
        mean = (weight * x).sum(0)
        variance = (weight * x**2).sum(0) - mean**2
        pooled.append(np.concatenate([mean, np.sqrt(np.maximum(variance, 1e-4))]))
    return norm("norm", np.stack(pooled))


@pytest.mark.parametrize("train", [True, False])
def test_attentive_statistics_equal_the_equations(train):
    built, tokens = build(train), noise(4, 7, WIDTH)
    expected_stats = {name: np.float64(value) for name, value in built[2].items()}
    expected = oracle(built[1], expected_stats, tokens, INSIDE, train)
    got, stats = run(built, tokens)
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)
    assert stats.keys() == expected_stats.keys()
    for name in stats:  # without training they stay what they were
        np.testing.assert_allclose(stats[name], expected_stats[name], rtol=0, atol=ATOL)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("filler", [1e6, np.inf, np.nan])
def test_padding_changes_nothing(train, filler):
    built, tokens = build(train), noise(4, 7, WIDTH)
    clean, clean_stats = run(built, np.where(INSIDE[..., None], tokens, 0))
    dirty, dirty_stats = run(built, np.where(INSIDE[..., None], tokens, filler))
    np.testing.assert_array_equal(dirty, clean)
    for name in clean_stats:
        np.testing.assert_array_equal(dirty_stats[name], clean_stats[name])


@pytest.mark.parametrize("train", [True, False])
def test_a_longer_row_changes_nothing(train):
    built, tokens = build(train), noise(4, 7, WIDTH)
    short, short_stats = run(built, tokens, None)
    longer = np.pad(tokens, ((0, 0), (0, 6), (0, 0)), constant_values=3.0)
    padded, padded_stats = run(built, longer, np.arange(13)[None] < np.full((4, 1), 7))
    np.testing.assert_allclose(padded, short, rtol=0, atol=ATOL)
    for name in short_stats:
        np.testing.assert_allclose(padded_stats[name], short_stats[name], rtol=0, atol=ATOL)


@pytest.mark.parametrize("train", [True, False])
def test_gradients_are_finite_and_none_reaches_padding(train):
    graph, params, stats = build(train)
    cotangent = noise(4, 2 * WIDTH, seed=9)  # a plain sum has no gradient behind a BatchNorm

    @jax.jit
    @jax.grad
    def gradient(inputs):
        tokens, params = inputs
        return (merge(graph, params, stats)(tokens, INSIDE) * cotangent).sum()

    of_tokens, of_params = gradient((noise(4, 7, WIDTH), params))
    assert not np.asarray(of_tokens)[~INSIDE].any()
    assert (np.abs(of_tokens)[INSIDE].max(-1) > 0).all()  # also to a clip of one token
    for name, value in of_params.items():
        assert np.isfinite(value).all(), name


def test_equal_scores_give_the_plain_mean_and_deviation():
    tokens = noise(4, 7, WIDTH) + 5.0
    got, _ = run(plain(), tokens)
    for row, clip, keep in zip(got, tokens, INSIDE, strict=True):
        x = np.float64(clip[keep])
        std = np.sqrt(np.maximum(x.var(0), 1e-4))
        np.testing.assert_allclose(row, np.concatenate([x.mean(0), std]), rtol=0, atol=ATOL)


def test_an_offset_of_the_tokens_does_not_cancel_the_deviation():
    # The tokens differ by 1 around 3000, where E[x^2] - E[x]^2 in float32 is off by up to 1.
    tokens = 3000 + np.tile(np.float32([0.1, 1.1, 0.1, 1.1])[None, :, None], (1, 1, WIDTH))
    deviation = run(plain(), tokens, None)[0][:, WIDTH:]
    np.testing.assert_allclose(deviation, 0.5, rtol=1e-3)  # tokens are multiples of 1 / 4096


@pytest.mark.parametrize("train", [True, False])
def test_a_clip_without_a_single_real_token_is_finite_and_so_are_gradients(train):
    graph, params, stats = build(train)
    inside = INSIDE.copy()
    inside[1] = False

    @jax.jit
    @jax.value_and_grad
    def total(params):
        return jnp.square(merge(graph, params, stats)(noise(4, 7, WIDTH), inside)).sum()

    for value in jax.tree.leaves(total(params)):
        assert np.isfinite(value).all()


def test_built_for_training_or_for_use_the_names_are_the_same():
    (_, *train), (_, *use) = build(train=True), build(train=False)
    assert [values.keys() for values in train] == [values.keys() for values in use]


@pytest.mark.parametrize("kind", ["mean", "cls", "statistics"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_pooling_gives_float32_of_its_width_and_ignores_padding(kind, dtype):
    pool = make_pool(kind, WIDTH, 1, train=False, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(noise(4, 7, WIDTH), dtype)
    got = pool(tokens, INSIDE)
    assert got.shape == (4, pool_width(kind, WIDTH, 1))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(pool(jnp.where(INSIDE[..., None], tokens, 7), INSIDE), got)
    full = pool(tokens.astype(jnp.float32), np.ones((4, 7), bool))
    np.testing.assert_allclose(pool(tokens, None), full, rtol=0, atol=ATOL)


@pytest.mark.parametrize("train", [True, False])
def test_statistics_of_bfloat16_tokens_are_those_of_the_same_tokens_in_float32(train):
    tokens = jnp.asarray(noise(4, 7, WIDTH), jnp.bfloat16)
    low, full = (run(build(train), x) for x in (tokens, tokens.astype(jnp.float32)))
    jax.tree.map(np.testing.assert_array_equal, low, full)


def test_the_mean_and_the_first_token_are_these():
    tokens = noise(4, 7, WIDTH)
    mean, cls = (
        make_pool(kind, WIDTH, 1, train=True, rngs=nnx.Rngs(0)) for kind in ("mean", "cls")
    )
    expected = [np.float64(x[:n]).mean(0) for x, n in zip(tokens, LENGTHS, strict=True)]
    np.testing.assert_allclose(mean(tokens, INSIDE), expected, rtol=0, atol=ATOL)
    np.testing.assert_array_equal(cls(tokens, INSIDE), tokens[:, 0])


def test_an_unknown_pooling_is_refused():
    with pytest.raises(InputError, match="mean, cls, statistics, got max"):
        make_pool("max", WIDTH, 1, train=True, rngs=nnx.Rngs(0))


def test_masked_mean_averages_only_what_is_inside():
    x = np.arange(12.0, dtype=np.float32).reshape(2, 3, 2)
    inside = np.array([[True, True, False], [False, False, False]])[..., None]
    np.testing.assert_array_equal(masked_mean(x, inside), [[1, 2], [0, 0]])


def pooled_by_loops(pool: Pool, x):
    """The formulas for one clip `[T, D]`, float64, one time after the other."""
    x = x.astype(np.float64)
    if pool.clean:
        x = np.array([[0 if v < 0.1 else np.tanh(v) if v > 0.5 else v for v in row] for row in x])
    mean = sum(x) / len(x)
    e = [np.sqrt(sum((row - mean) ** 2)) for row in x]
    a = [(1 + (one / max(e) if max(e) else 0)) ** pool.deviation for one in e]
    if pool.power is None:
        return sum(w * row for w, row in zip(a, x, strict=True)) / sum(a)
    kept = [np.maximum(row, 0) for row in x]
    if pool.power == np.inf:
        return np.max(kept, 0)
    powers = sum(w * row**pool.power for w, row in zip(a, kept, strict=True)) / sum(a)
    return powers ** (1 / pool.power)


POOLS = [
    Pool(),
    Pool(deviation=19),
    Pool(power=3),
    Pool(power=1),
    Pool(power=np.inf),
    Pool(deviation=16, power=3),
    Pool(clean=True),
    Pool(deviation=1, power=10, clean=True),
]


@pytest.mark.parametrize("bands", [False, True])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools_are_their_formulas(pool, bands):
    """Three bands, clips of 7, 3, 1 and 5 times; one value is negative at all of them."""
    tokens = noise(4, 7, 3, 5)
    tokens[..., 4] = -abs(tokens[..., 4])
    tokens[3] = tokens[3, :1]  # a clip that does not change
    inside = np.repeat(INSIDE, 3, 1)
    pool = replace(pool, bands=bands)
    found = pool(tokens.reshape(4, 21, 5), inside, 3)
    for clip, length, row in zip(tokens, LENGTHS, found, strict=True):
        of = np.moveaxis(clip[:length], 1, 0) if bands else [clip[:length].reshape(-1, 5)]
        expected = np.concatenate([pooled_by_loops(pool, one) for one in of])
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=ATOL)
    np.testing.assert_array_equal(pool(tokens[:1].reshape(1, 21, 5), None, 3), found[:1])


def test_poolings_lie_behind_each_other():
    pools = Pool(bands=True), Pool(deviation=4, bands=True)
    tokens = noise(2, 12, 5)
    pool = make_pool(pools, 5, 4, train=False, rngs=nnx.Rngs(0))
    found = pool(tokens, None)
    assert found.shape == (2, pool_width(pools, 5, 4)) == (2, 40)
    np.testing.assert_array_equal(found[:, 20:], pools[1](tokens, None, 4))


@pytest.mark.parametrize(("field", "value"), [("deviation", -1), ("power", 0)])
def test_pools_that_make_no_sense_are_refused(field, value):
    with pytest.raises(InputError, match=f"Pool.{field}"):
        Pool(**{field: value})


@pytest.mark.parametrize("pool", [Pool(4.0), Pool(power=3.0), Pool(300.0, 2.0)], ids=str)
def test_gradients_are_finite_at_the_corners(pool):
    """A clip that does not change, values that are never positive, large exponents."""
    tokens = noise(2, 6, 4)
    tokens[0] = tokens[0, :1]
    tokens[1, :, 2] = -abs(tokens[1, :, 2])
    value, gradient = jax.value_and_grad(lambda x: jnp.square(pool(x, None, 1)).sum())(tokens)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.any(gradient)


@pytest.mark.parametrize("pool", [*POOLS, Pool(0.5, bands=True), Pool(bands=True, clean=True)])
def test_a_pool_is_called_by_a_word(pool):
    assert Pool.parse(str(pool)) == pool
    assert Pool.parse(str(pool).lower().replace(" ", "")) == pool


@pytest.mark.parametrize("text", ["", "rpd8", "rdp", "rdp8,band", "mean3", "rdp-1"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="expected mean, rdp8"):
        Pool.parse(text)
