"""Dropout and its keys; convolution and pooling against XLA's own; CBAM against its equations."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.devices import by_device, data_mesh, over
from asdjax.devices import split as rows
from asdjax.models import weights_file
from asdjax.models.beats import Beats, BeatsConfig
from asdjax.models.convolutions import Cbam, Conv1d, Conv2d, max_pool
from asdjax.models.layers import (
    BatchNorm,
    Dropout,
    InitialKeys,
    Key,
    LayerNorm,
    dropout,
    kept,
    keys_for,
)
from asdjax.models.weights_file import merge, split

KEY = jax.random.key(3)
N = 200_000


def config(**rates):
    given = {
        "input_patch_size": 16,
        "embed_dim": 16,
        "encoder_layers": 2,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 2,
        "conv_pos": 8,
        "conv_pos_groups": 2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return BeatsConfig(**given | rates)


def with_key(module, key):
    module.key[...] = key
    return module


# Initial weights


@pytest.mark.parametrize("seed", [0, 7])
def test_initial_weights_are_drawn_by_the_keys_of_flax(seed):
    theirs, ours = nnx.Rngs(seed), InitialKeys(seed)
    for _ in range(3):
        expected, found = (jax.random.key_data(keys.params()) for keys in (theirs, ours))
        np.testing.assert_array_equal(found, expected)


# One mask


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_a_part_of_about_the_rate_is_zero_and_the_rest_scaled_up(rate):
    dropped = np.asarray(dropout(jnp.ones(N), rate, KEY))
    # Five deviations of a binomial share; one in two million would fail with another key.
    assert abs((dropped == 0).mean() - rate) < 5 * (rate * (1 - rate) / N) ** 0.5
    kept = dropped[dropped != 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-4)  # the rate in parts of 2^16
    # The mean of values that are 0 or 1 / (1 - rate), within five of its deviations.
    assert abs(dropped.mean() - 1) < 5 * (rate / (1 - rate) / N) ** 0.5 + 1e-4


def test_the_scale_belongs_to_the_rate_that_is_really_drawn():
    """10^-6 is less than 2^-16, so nothing is dropped: nothing may be scaled either."""
    np.testing.assert_array_equal(dropout(jnp.ones(1000), 1e-6, KEY), 1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_type_stays(dtype):
    assert dropout(jnp.ones(8, dtype), 0.1, KEY).dtype == dtype


def test_the_same_key_drops_the_same_and_another_key_others():
    x = jnp.ones(1000)
    one, again, other = (
        with_key(Dropout(0.5), key)(x) for key in (KEY, KEY, jax.random.fold_in(KEY, 1))
    )
    np.testing.assert_array_equal(one, again)
    assert 400 < (one != other).sum() < 600  # independent halves


def test_each_device_drops_of_its_clips_what_one_would():
    mesh, x = data_mesh(jax.devices()[:2]), jnp.ones((4, 50, 8))
    drops = (lambda x: dropout(x, 0.5, KEY), with_key(Dropout(0.5), KEY).per_clip)

    def every(x, whole=None):
        return [drop(x) for drop in drops]

    alone = every(x)
    with over(mesh):
        found = jax.jit(lambda x: by_device(every, x, None))(jax.device_put(x, rows(mesh)))
    for ours, want in zip(found, alone, strict=True):
        np.testing.assert_array_equal(ours, want)
        assert (ours[:2] != ours[2:]).any()


def test_gradients_pass_where_values_do():
    module, x = with_key(Dropout(0.5), KEY), jnp.full(100, 3.0)
    gradient = jax.grad(lambda x: module(x).sum())(x)
    np.testing.assert_array_equal(gradient, module(x) / 3)


def test_rate_zero_has_no_key_and_changes_nothing():
    module, x = Dropout(0.0), jnp.arange(4.0)
    assert module.key is None
    assert module.drawn() is None
    assert module(x) is x
    assert module.choose(x + 1, x) is x
    assert split(module, Key)[1] == {}


# Layer drop


def test_a_layer_is_skipped_as_a_whole_at_its_rate():
    module, skipped, computed = Dropout(0.3), jnp.zeros((4, 5)), jnp.ones((4, 5))
    choose = jax.jit(jax.vmap(lambda key: with_key(Dropout(0.3), key).choose(skipped, computed)))
    means = np.asarray(choose(jax.random.split(KEY, 400))).mean((1, 2))
    assert set(means) == {0.0, 1.0}  # all or nothing, and not scaled
    share = 1 - np.mean(means)
    assert abs(share - module.rate) < 5 * (0.3 * 0.7 / 400) ** 0.5  # five deviations


@pytest.fixture(scope="module")
def given():
    """Return weights, input and what the layers of a model without dropout make of it."""
    graph, _, shapes = taken_apart(config(), train=False)
    draw = np.random.default_rng(0).standard_normal
    weight = {n: jnp.asarray(0.3 * draw(value.shape), jnp.float32) for n, value in shapes.items()}
    mel = jnp.asarray(draw((2, 16, 128)), jnp.float32)

    @jax.jit
    def outputs():
        return [merge(graph, weight)(mel, layer=n) for n in (0, 1, 2)]

    return weight, mel, jax.device_get(outputs())


def taken_apart(structure, train=True):
    """Return the graph and the shapes of keys and weights."""
    model = nnx.eval_shape(lambda: Beats(structure, train=train, rngs=nnx.Rngs(0)))
    return split(model, Key)


def test_a_skipped_layer_hands_on_what_it_was_given(given):
    weight, mel, outputs = given
    graph, keys, _ = taken_apart(config(encoder_layerdrop=0.5))
    names = sorted(keys)
    assert names == ["layers.0.skip.key", "layers.1.skip.key"]
    tokens = jax.jit(lambda keys: merge(graph, keys, weight)(mel))
    drawn = {}
    for number in range(16):  # until each layer was skipped, and not, beside the other
        keys = keys_for(names, jax.random.key(number))
        skips = tuple(float(jax.random.uniform(keys[name])) < 0.5 for name in names)
        drawn[skips] = np.asarray(tokens(keys))
    assert len(drawn) == 4
    # float32 rounding of values of unit scale, compiled in another way
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    close(drawn[True, True], outputs[0])
    close(drawn[False, True], outputs[1])
    close(drawn[False, False], outputs[2])
    for other in outputs:
        assert np.abs(drawn[True, False] - other).max() > 0.1


# The whole model


def test_every_place_that_drops_has_a_key_and_a_model_for_use_has_none():
    rates = "dropout", "attention_dropout", "activation_dropout", "dropout_input"
    every = config(**dict.fromkeys(rates, 0.1), encoder_layerdrop=0.1)
    _, keys, trained = taken_apart(every)
    _, none, used = taken_apart(every, train=False)
    parts = "attn.dropout", "attn_dropout", "ffn_dropout", "activation_dropout", "skip"
    expected = {f"layers.{layer}.{part}.key" for layer in (0, 1) for part in parts}
    assert set(keys) == expected | {"input_dropout.key", "dropout.key"}
    assert none == {}
    assert set(trained) == set(used)


@pytest.mark.parametrize(
    "rates",
    [
        {"dropout": 0.5},
        {"attention_dropout": 0.5},
        {"activation_dropout": 0.5},
        {"dropout_input": 0.5},
        {"encoder_layerdrop": 0.9},
    ],
)
def test_each_rate_acts_in_training_alone(given, rates):
    weight, mel, (_, plain, _) = given
    graph, names, shapes = taken_apart(config(**rates, encoder_layers=1))
    tokens = jax.jit(lambda keys: merge(graph, keys, {n: weight[n] for n in shapes})(mel))
    keys = keys_for(sorted(names), KEY)
    random = tokens(keys)
    assert np.abs(random - plain).max() > 0.1  # of values of unit scale
    np.testing.assert_array_equal(random, tokens(keys))
    used, without = (taken_apart(config(**r), train=False)[0] for r in (rates, {}))
    assert used == without


def test_every_module_gets_a_key_of_its_own():
    keys = keys_for(["a", "b", "c"], KEY)
    assert list(keys) == ["a", "b", "c"]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys.values()}) == 3
    assert keys_for([], KEY) == {}


# Convolution and pooling: values and gradients


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("taps_stride", [(256, 64), (64, 32), (16, 4), (3, 1)])
@pytest.mark.parametrize("samples", [1, 63, 300, 1_000])
def test_a_convolution_is_that_of_xla_with_same_padding(taps_stride, samples):
    layer = Conv1d(3, 4, *taps_stride, dtype="float32", rngs=nnx.Rngs(0))
    x = noise(2, samples, 3)
    want = jax.lax.conv_general_dilated(
        x, layer.kernel[...], taps_stride[1:], "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    # 1e-5: float32 sums of up to 768 products, each of about 0.1, in another order.
    np.testing.assert_allclose(jax.jit(layer.__call__)(x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("taps", "stride"), [((3, 3), 1), ((3, 3), 2), ((7, 5), 2), ((1, 1), 1)])
@pytest.mark.parametrize("shape", [(1, 9, 4), (3, 8, 13), (4, 1, 2)])
def test_gradients_of_a_convolution_of_images_are_those_of_xla(taps, stride, shape):
    layer = Conv2d(3, 4, taps, stride, dtype="float32", rngs=nnx.Rngs(0))
    x = noise(*shape, 3)

    def xla(x, kernel):
        sizes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, [stride] * 2, "SAME", dimension_numbers=sizes
        )

    graph = nnx.graphdef(layer)

    def ours(x, kernel):
        return nnx.merge(graph, {"kernel": kernel})(x)

    kernel = layer.kernel[...]
    slope = noise(*jax.eval_shape(xla, x, kernel).shape, seed=1)

    def differentiated(function):
        value, gradients = jax.vjp(function, x, kernel)
        return value, *gradients(slope)

    for one, other in zip(
        *(jax.jit(differentiated, static_argnums=0)(f) for f in (ours, xla)), strict=True
    ):
        # float32 sums of up to 312 products of numbers around 1, in another order
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


def test_gradients_of_a_convolution_of_images_are_those_of_one_device():
    x, slope = noise(4, 8, 6, 3), noise(4, 8, 6, 4, seed=1)

    def gradient(dtype, mesh):
        layer = Conv2d(3, 4, (3, 3), dtype=dtype, rngs=nnx.Rngs(0))
        graph = nnx.graphdef(layer)

        def loss(kernel, x, slope):
            with over(mesh):
                return (nnx.merge(graph, {"kernel": kernel})(x).astype(jnp.float32) * slope).sum()

        given = jax.device_put((x, slope), rows(mesh))
        return jax.jit(jax.grad(loss))(layer.kernel[...], *given)

    one, two = data_mesh(jax.devices()[:1]), data_mesh(jax.devices()[:2])
    exact = gradient("float32", one)
    np.testing.assert_allclose(gradient("float32", two), exact, rtol=0, atol=1e-4)  # float32
    for mesh in (one, two):
        got = gradient("bfloat16", mesh)
        assert got.dtype == jnp.float32
        # inputs and results have 8 bits: 2**-8 of sums of 192 products around 1
        np.testing.assert_allclose(got, exact, rtol=0, atol=2**-8 * np.abs(exact).max() * 4)


def test_products_in_bfloat16_keep_float32_weights():
    layer = Conv1d(3, 4, 16, 4, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert layer.kernel[...].dtype == jnp.float32
    got = layer(noise(2, 40, 3))
    assert got.dtype == jnp.bfloat16
    full = Conv1d(3, 4, 16, 4, dtype="float32", rngs=nnx.Rngs(0))(noise(2, 40, 3))
    # Inputs, weights and result have 8 bits: 3 roundings of up to 2**-9 of values near 1.
    np.testing.assert_allclose(got.astype("float32"), full, rtol=0, atol=3 * 2**-9 * 4)


@pytest.mark.parametrize(
    ("window", "stride", "same"),
    [((3, 3), 2, False), ((2, 2), 2, True), ((10, 1), (10, 1), True), ((10, 1), 1, True)],
)
@pytest.mark.parametrize("shape", [(5, 8), (12, 7), (23, 4)])
def test_maxima_and_their_gradients_are_those_of_xla(window, stride, same, shape):
    x = noise(2, *shape, 3)  # no two values are equal
    strides = (1, *np.broadcast_to(stride, 2).tolist(), 1)

    def theirs(x):
        padding = "SAME" if same else "VALID"
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), strides, padding)

    def ours(x):
        return max_pool(x, window, stride, same=same)

    @jax.jit
    def both(x):
        values = theirs(x), ours(x)
        given = jax.random.normal(jax.random.key(0), values[0].shape)
        return *values, *(jax.vjp(pool, x)[1](given)[0] for pool in (theirs, ours))

    want, got, gradient, our_gradient = both(x)
    np.testing.assert_array_equal(got, want)
    assert np.any(gradient)
    # 1e-6: a value that is the largest of several windows gets their sum, in any order.
    np.testing.assert_allclose(our_gradient, gradient, rtol=0, atol=1e-6)


# CBAM, with loops over places in float64


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
    graph, params = weights_file.split(Cbam(channels, axes, rngs=nnx.Rngs(0)), nnx.Param)[:2]
    rng = np.random.default_rng(1)
    return graph, {n: rng.normal(size=v.shape).astype(np.float32) for n, v in params.items()}


@pytest.mark.parametrize(("channels", "hidden"), [(5, 1), (40, 2)])
def test_gates_of_two_axes_equal_the_equations(channels, hidden):
    graph, params = random_gate(channels, 2)
    assert params["reduce.kernel"].shape == (channels, hidden)
    assert weights_file.count(params) == 2 * channels * hidden + 7 * 7 * 2
    x = np.random.default_rng(0).normal(size=(3, 4, 9, channels)).astype(np.float32)
    double = {name: np.float64(value) for name, value in params.items()}
    want = np.stack([oracle(double, np.float64(clip)) for clip in x])
    # 2e-5: float32 logits of about 30 are off by 1e-6 of that, and gates by a quarter of it.
    got = jax.jit(lambda x: weights_file.merge(graph, params, {})(x))(x)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_one_axis_is_the_middle_row_of_two():
    (graph, params), (wide, _) = random_gate(6, 1), random_gate(6, 2)
    x = np.random.default_rng(0).normal(size=(2, 11, 6)).astype(np.float32)
    kernel = np.zeros((7, 7, 2, 1), np.float32)
    kernel[3] = params["place.kernel"]
    want = weights_file.merge(wide, params | {"place.kernel": kernel}, {})(x[:, None])[:, 0]
    # 1e-5: float32 sums in another order, of values near 3.
    np.testing.assert_allclose(weights_file.merge(graph, params, {})(x), want, rtol=0, atol=1e-5)


def test_without_weight_both_gates_are_one_half_and_the_result_is_float32():
    graph, params = random_gate(4, 2)
    gate = weights_file.merge(graph, {name: 0 * value for name, value in params.items()}, {})
    x = jax.random.normal(jax.random.key(0), (1, 3, 5, 4), "bfloat16")
    got = gate(x)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x.astype("float32") / 4)


# Norms


def normalized(x, axes, epsilon):
    """Return float64 deviations from the mean over some axes in parts of the deviation."""
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon)


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3), (3, 4, 5, 2)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])  # E[x^2] - E[x]^2 would lose all digits there
def test_a_batch_norm_is_by_the_batch_in_training_and_remembers_it(shape, offset):
    x = np.float32(offset + np.random.default_rng(0).standard_normal(shape))
    norm = BatchNorm(shape[-1], train=True, epsilon=1e-3, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jnp.arange(1.0, shape[-1] + 1), 0.5 * jnp.ones(shape[-1])
    axes = tuple(range(len(shape) - 1))
    expected = normalized(np.float64(x), axes, 1e-3) * np.arange(1.0, shape[-1] + 1) + 0.5
    # 1e-3 at 1000: float32 values have a spacing of 6e-5 there, against a deviation of 1.
    tolerance = 1e-3 if offset else 1e-5
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var(axes), rtol=1e-4)


def test_a_batch_norm_for_use_is_by_running_values_and_changes_none():
    norm = BatchNorm(2, train=False, rngs=nnx.Rngs(0))
    norm.mean[...], norm.var[...] = jnp.array([1.0, -2.0]), jnp.array([4.0, 9.0])
    got = norm(jnp.array([[[3.0, 1.0]], [[1.0, -2.0]]]))
    np.testing.assert_allclose(got, [[[1.0, 1.0]], [[0.0, 0.0]]], rtol=0, atol=1e-5)  # epsilon
    np.testing.assert_array_equal(norm.mean[...], [1.0, -2.0])


def test_masked_values_are_no_part_of_a_batch_norms_statistics():
    x = np.random.default_rng(1).standard_normal((3, 4, 2)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)[..., None]
    norm = BatchNorm(2, train=True, rngs=nnx.Rngs(0))
    got = norm(jnp.where(mask, x, 99.0), mask=jnp.asarray(mask))
    inside = mask[..., 0]
    expected = normalized(np.float64(x[inside]), 0, 1e-5)
    np.testing.assert_allclose(np.asarray(got)[inside], expected, rtol=0, atol=1e-5)


def test_the_gradient_of_a_batch_norm_is_that_of_its_equation():
    x, slope = np.random.default_rng(2).standard_normal((2, 3, 4, 5, 2))
    graph, params = split(BatchNorm(2, train=True, rngs=nnx.Rngs(0)))

    def ours(x):
        return (merge(graph, params)(x) * slope).sum()

    got = jax.grad(ours)(jnp.asarray(x, jnp.float32))
    deviation = np.sqrt(x.var((0, 1, 2)) + 1e-5)
    unit = normalized(x, (0, 1, 2), 1e-5)
    # Ioffe & Szegedy 2015, the equations of section 3, put together.
    means = [(y * slope).mean((0, 1, 2)) for y in (np.ones_like(x), unit)]
    expected = (slope - means[0] - unit * means[1]) / deviation
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_a_layer_norm_keeps_digits_far_from_zero():
    x = np.float32(1000 + np.random.default_rng(0).standard_normal((4, 64)))
    got = LayerNorm(64)(jnp.asarray(x))
    # 1e-3: as above.
    np.testing.assert_allclose(got, normalized(np.float64(x), 1, 1e-5), rtol=0, atol=1e-3)


def test_what_dropout_keeps_is_independent_of_place_and_key():
    """Of 10^6 draws of 0 or 1 a correlation has a deviation of 10^-3; five of them are allowed."""
    first, other = (
        np.asarray(kept((1000, 1000), 0.5, jax.random.key(seed))).astype(float) - 0.5
        for seed in (3, 4)
    )
    assert abs(first.mean()) < 0.0025  # five deviations
    for axis in (0, 1):
        for shift in (1, 2, 64, 500):
            assert abs((first * np.roll(first, shift, axis)).mean()) < 0.25 * 5e-3, (axis, shift)
    assert abs((first * other).mean()) < 0.25 * 5e-3
