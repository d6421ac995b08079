"""Dropout: how much is dropped, that means stay what they are, and where each key goes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from trainings import quick_compiles

from asdjax import params as weights
from asdjax.models import attention as attention_module
from asdjax.models.beats import Beats, BeatsConfig
from asdjax.models.dropout import Dropout, Key, dropout, keys_for

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


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compiles(tmp_path_factory.mktemp("compiled")):
        yield


def with_key(module, key):
    module.key[...] = key
    return module


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
    assert weights.split(module, Key)[1] == {}


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
        return [weights.merge(graph, weight)(mel, layer=n) for n in (0, 1, 2)]

    return weight, mel, jax.device_get(outputs())


def taken_apart(structure, train=True):
    """Return the graph and the shapes of keys and weights."""
    model = nnx.eval_shape(lambda: Beats(structure, train=train, rngs=nnx.Rngs(0)))
    return weights.split(model, Key)


def test_a_skipped_layer_hands_on_what_it_was_given(given):
    weight, mel, outputs = given
    graph, keys, _ = taken_apart(config(encoder_layerdrop=0.5))
    names = sorted(keys)
    assert names == ["layers.0.skip.key", "layers.1.skip.key"]
    tokens = jax.jit(lambda keys: weights.merge(graph, keys, weight)(mel))
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


# Attention


WAYS = [partial(attention_module._compute, heads=2, at_once=way) for way in (False, True)]


@pytest.mark.parametrize("way", WAYS)
def test_dropped_attention_keeps_its_expectation(way):
    rate, draws = 0.5, 4000
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 3, 4)).astype(np.float32)
    plain = way(q, k, v, None, None, None)
    attend = jax.jit(jax.vmap(lambda key: way(q, k, v, None, None, None, key, dropped=rate)))
    found = np.asarray(attend(jax.random.split(KEY, draws)))
    error = found.std(0) / draws**0.5
    assert (np.abs(found.mean(0) - plain) < 5 * error).all()  # five deviations of the mean
    assert (found.std(0) > 0.01).all()


@pytest.mark.parametrize("way", WAYS)
def test_each_head_and_each_clip_drops_others(way):
    """With equal weights and values the result only tells which weights were dropped."""
    heads, clips, tokens = 2, 2, 64
    zero, one = jnp.zeros((clips, tokens, 4)), jnp.ones((clips, tokens, 4))
    found = np.asarray(way(zero, zero, one, None, None, None, KEY, dropped=0.5))
    by_head = found.reshape(clips, tokens, heads, 2)[..., 0]
    masks = {tuple(by_head[clip, :, head]) for clip in range(clips) for head in range(heads)}
    assert len(masks) == 4


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
    tokens = jax.jit(lambda keys: weights.merge(graph, keys, {n: weight[n] for n in shapes})(mel))
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
