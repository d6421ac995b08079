"""Attention against a loop in float64, for both ways of computing it."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.models import attention as module
from asdjax.models.attention import attention
from asdjax.types import InputError

HEADS, B, L, D = 3, 2, 7, 12
BOTH = [  # CPU; accelerators
    partial(module._compute, heads=HEADS, at_once=at_once) for at_once in (False, True)
]


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


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("extras", [(), ("bias",), ("bias", "gate"), ("bias", "gate", "padding")])
def test_equals_a_loop(inputs, implementation, extras):
    arguments = {n: x if n in ("q", "k", "v", *extras) else None for n, x in inputs.items()}
    ours = implementation(*arguments.values())
    # float32 rounding of values around 1
    np.testing.assert_allclose(ours, oracle(**arguments), atol=2e-6)


def test_public_function_takes_keywords(inputs):
    np.testing.assert_allclose(attention(**inputs, heads=HEADS), oracle(**inputs), atol=2e-6)


@pytest.mark.parametrize("extras", [(), ("bias",), ("bias", "gate"), ("bias", "gate", "padding")])
def test_the_library_gives_the_same(inputs, extras):
    arguments = {n: x for n, x in inputs.items() if n in ("q", "k", "v", *extras)}
    ours = attention(**arguments, heads=HEADS, implementation="xla")
    # float32 rounding of values around 1
    np.testing.assert_allclose(ours, oracle(**arguments), atol=2e-6)


def test_the_library_has_no_dropout(inputs):
    arguments = {"heads": HEADS, "dropped": 0.1, "key": jax.random.key(0)}
    with pytest.raises(InputError, match=r"'xla' has no dropout.*set dropout to False"):
        attention(**inputs, **arguments, implementation="xla")


def test_gradients_of_both_ways_agree(inputs):
    *floats, padding = inputs.values()

    def loss(implementation, *floats):
        return jnp.sin(implementation(*floats, padding)).sum()

    one, other = (jax.grad(partial(loss, way), (0, 1, 2, 3, 4))(*floats) for way in BOTH)
    for name, a, b in zip(inputs, one, other, strict=False):
        np.testing.assert_allclose(a, b, atol=5e-6, err_msg=name)


def test_values_of_padded_keys_are_never_seen(inputs):
    changed = {n: np.where(inputs["padding"][..., None], 99.0, inputs[n]) for n in ("k", "v")}
    np.testing.assert_array_equal(
        attention(**inputs, heads=HEADS), attention(**inputs | changed, heads=HEADS)
    )


@pytest.mark.parametrize("implementation", BOTH)
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
