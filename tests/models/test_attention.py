"""Attention: its definition against a loop in float64, the fast ways against the definition."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.models.attention import (
    Head,
    How,
    SelfAttention,
    _plain,
    attend,
    attention,
    kept_weights,
)
from asdjax.models.layers import random_words
from asdjax.types import InputError

HEADS, B, L, D = 3, 2, 7, 12
EXTRAS = [(), ("bias",), ("bias", "gate"), ("bias", "gate", "padding")]


def defined(q, k, v, bias=None, gate=None, padding=None, key=None, *, heads=HEADS, rate=0.0):
    """Return what `attend` gives for each head, heads concatenated."""
    out = []
    for head in range(heads):
        q_, k_, v_ = (jnp.split(x, heads, axis=-1)[head] for x in (q, k, v))
        bias_ = None if bias is None else bias[head]
        gate_ = None if gate is None else gate[:, head]
        keep = None
        if key is not None:
            number, words = jnp.uint32(head), random_words(key)
            keep = kept_weights(How(heads, rate, True), words, number, q.shape)
        one = Head(q_ * q_.shape[-1] ** -0.5, k_, v_, bias_, gate_, padding, keep)
        out.append(attend(one, rate)[0])
    return jnp.concatenate(out, -1)


def fast(at_once, q, k, v, bias=None, gate=None, padding=None, key=None, *, heads=HEADS, rate=0.0):
    """Do as `attention` does on CPUs, or on accelerators (`at_once`)."""
    return _plain(How(heads, rate, at_once), (q, k, v), bias, gate, padding, key)


FAST = [partial(fast, False), partial(fast, True)]


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, B, L, D)).astype(np.float32)
    bias = rng.normal(size=(HEADS, L, L)).astype(np.float32)
    gate = rng.normal(size=(B, HEADS, L)).astype(np.float32)
    padding = np.array([[False] * L, [False] * 4 + [True] * 3])
    return {"q": q, "k": k, "v": v, "bias": bias, "gate": gate, "padding": padding}


def oracle(q, k, v, bias=None, gate=None, padding=None):
    out, d = np.zeros((B, L, D)), D // HEADS
    for clip, head, query in np.ndindex(B, HEADS, L):
        channels = slice(head * d, head * d + d)
        scores = k[clip, :, channels].astype(float) @ q[clip, query, channels] / d**0.5
        if bias is not None:
            scores += bias[head, query] * (1 if gate is None else gate[clip, head, query])
        weights = np.exp(scores) * (1 if padding is None else ~padding[clip])
        out[clip, query, channels] = weights / weights.sum() @ v[clip, :, channels]
    return out


@pytest.mark.parametrize("implementation", [defined, *FAST])
@pytest.mark.parametrize("extras", EXTRAS)
def test_equals_a_loop(inputs, implementation, extras):
    arguments = {n: x if n in ("q", "k", "v", *extras) else None for n, x in inputs.items()}
    ours = implementation(*arguments.values())
    # float32 rounding of values around 1
    np.testing.assert_allclose(ours, oracle(**arguments), atol=2e-6)


def test_public_function_takes_keywords(inputs):
    np.testing.assert_allclose(attention(**inputs, heads=HEADS), oracle(**inputs), atol=2e-6)


@pytest.mark.parametrize("extras", EXTRAS)
def test_cudnn_gets_an_even_number_of_tokens(inputs, extras, monkeypatch):
    """As it differentiates no other (jax 0.10.2). What is added changes nothing."""
    library, seen = jax.nn.dot_product_attention, []

    def even(query, *rest, implementation, **how):
        assert implementation == "cudnn"
        seen.append(query.shape[1])
        return library(query, *rest, implementation="xla", **how)

    monkeypatch.setattr(jax.nn, "dot_product_attention", even)
    arguments = {n: x for n, x in inputs.items() if n in ("q", "k", "v", *extras)}
    slope = np.random.default_rng(1).normal(size=(B, L, D)).astype(np.float32)

    def loss(qkv, how):
        own = arguments | dict(zip("qkv", qkv, strict=True))
        out = attention(**own, heads=HEADS, implementation=how)
        return (out * slope).sum(), out

    qkv = tuple(arguments[name] for name in "qkv")
    (_, ours), to_ours = jax.value_and_grad(loss, has_aux=True)(qkv, "cudnn")
    (_, want), to_want = jax.value_and_grad(loss, has_aux=True)(qkv, "auto")
    assert seen == [L + 1]
    np.testing.assert_allclose(ours, want, atol=2e-6)  # float32 rounding of values around 1
    for mine, other in zip(to_ours, to_want, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)  # of sums of them


def test_cudnn_has_no_dropout(inputs):
    arguments = {"heads": HEADS, "dropped": 0.1, "key": jax.random.key(0)}
    with pytest.raises(InputError, match=r"'cudnn' has no dropout.*set dropout to False"):
        attention(**inputs, **arguments, implementation="cudnn")
    with pytest.raises(InputError, match="'cudnn' has no dropout"):  # when the layer is made
        SelfAttention(
            12, 3, dropped=0.1, implementation="cudnn", dtype=jnp.float32, rngs=nnx.Rngs(0)
        )


@pytest.mark.parametrize("way", FAST)
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("extras", EXTRAS)
def test_the_gradient_that_is_written_out_is_the_derived_one(inputs, extras, rate, way):
    given = {n: x for n, x in inputs.items() if n in ("q", "k", "v", *extras)}
    rest = {"padding": given.pop("padding", None), "key": jax.random.key(0) if rate else None}

    def run(attend, given):
        out = attend(**given, **rest, rate=rate)
        return jnp.sin(out).sum(), out

    both = (jax.jit(jax.grad(partial(run, f), has_aux=True))(given) for f in (way, defined))
    (ours, out), (want, want_out) = both
    np.testing.assert_allclose(out, want_out, atol=2e-6)  # float32 rounding of values around 1
    assert ours.keys() == want.keys() == given.keys()
    for name in want:
        # 5e-6: float32 sums over queries, keys and clips, in another order
        np.testing.assert_allclose(ours[name], want[name], atol=5e-6, err_msg=name)


def test_values_of_padded_keys_are_never_seen(inputs):
    changed = {n: np.where(inputs["padding"][..., None], 99.0, inputs[n]) for n in ("k", "v")}
    np.testing.assert_array_equal(
        attention(**inputs, heads=HEADS), attention(**inputs | changed, heads=HEADS)
    )


@pytest.mark.parametrize("implementation", [defined, *FAST])
def test_a_clip_of_padding_alone_averages_instead_of_nan(inputs, implementation):
    arguments = inputs | {"padding": np.ones((B, L), bool), "bias": None, "gate": None}
    mean = inputs["v"].mean(1, keepdims=True).repeat(L, 1)
    np.testing.assert_allclose(implementation(*arguments.values()), mean, atol=1e-6)


def test_bfloat16_inputs_keep_a_float32_softmax(inputs):
    half = {n: jnp.asarray(inputs[n], jnp.bfloat16) for n in ("q", "k", "v")}
    ours = attention(**inputs | half, heads=HEADS)
    assert ours.dtype == jnp.bfloat16
    rounded = {n: np.asarray(x, np.float32) for n, x in half.items()}
    # 2^-8 relative for the weights and again for the result, of values up to 3
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), oracle(**inputs | rounded), atol=3 * 2 * 2**-8
    )


def test_batch_sharded_over_two_devices_needs_no_exchange(inputs):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    placed = {n: jax.device_put(x, whole if n == "bias" else rows) for n, x in inputs.items()}
    compiled = jax.jit(partial(attention, heads=HEADS)).lower(**placed).compile()
    assert not re.search("all-(gather|reduce|to-all)", compiled.as_text())
    ours = compiled(**placed)
    assert ours.sharding.is_equivalent_to(rows, ours.ndim)
    np.testing.assert_allclose(ours, oracle(**inputs), atol=2e-6)


def test_gate_without_bias_is_refused(inputs):
    with pytest.raises(ValueError, match="no bias"):
        attention(**inputs | {"bias": None}, heads=HEADS)


# Dropout


@pytest.mark.parametrize("way", FAST)
def test_dropped_attention_keeps_its_expectation(way):
    rate, draws = 0.5, 4000
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 3, 4)).astype(np.float32)
    plain = way(q, k, v, heads=2)
    attend = jax.jit(jax.vmap(lambda key: way(q, k, v, key=key, heads=2, rate=rate)))
    found = np.asarray(attend(jax.random.split(jax.random.key(3), draws)))
    error = found.std(0) / draws**0.5
    assert (np.abs(found.mean(0) - plain) < 5 * error).all()  # five deviations of the mean
    assert (found.std(0) > 0.01).all()


@pytest.mark.parametrize("way", FAST)
def test_each_head_and_each_clip_drops_others(way):
    """With equal weights and values the result only tells which weights were dropped."""
    heads, clips, tokens = 2, 2, 64
    zero, one = jnp.zeros((clips, tokens, 4)), jnp.ones((clips, tokens, 4))
    found = np.asarray(way(zero, zero, one, key=jax.random.key(3), heads=2, rate=0.5))
    by_head = found.reshape(clips, tokens, heads, 2)[..., 0]
    masks = {tuple(by_head[clip, :, head]) for clip in range(clips) for head in range(heads)}
    assert len(masks) == 4
