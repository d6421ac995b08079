"""The kernels of attention, interpreted on a CPU, against the definition in float64.

Blocks of a GPU are 64 tokens, those of a TPU all tokens up to 640, then 128.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.devices import by_device, copied, data_mesh, over, split
from asdjax.models.attention import How as Plain
from asdjax.models.attention import attention, attention_bytes, kept_weights
from asdjax.models.fused import MOST, Fused, fused, refused
from asdjax.models.layers import random_words, survivors_scale

HEADS, DEPTH = 2, 64
ALL = "bias", "gate", "padding"
EXTRAS = (), ("padding",), ("bias",), ("bias", "gate"), ALL
KEY = jax.random.key(3)


def made(clips, tokens, extras, dtype=np.float32):
    """Return arrays of attention by name, in float64, and the gradient of its result."""
    rng = np.random.default_rng(tokens)
    wide = clips, tokens, HEADS * DEPTH
    found = {name: rng.normal(size=wide).astype(dtype) for name in ("q", "k", "v", "slope")}
    found["bias"] = rng.normal(size=(HEADS, tokens, tokens)).astype(np.float32)
    found["gate"] = rng.normal(size=(clips, HEADS, tokens)).astype(np.float32)
    found["padding"] = np.arange(tokens) >= rng.integers(0, tokens, (clips, 1))
    found["padding"][0] = True  # a clip of padding alone
    slope = found.pop("slope")
    return {n: x for n, x in found.items() if n in ("q", "k", "v", *extras)}, slope


def differentiated(attend, arrays, slope):
    """Return what `attend` gives and its gradients, by name."""
    fixed = {n: x for n, x in arrays.items() if n == "padding"}
    free = {n: jnp.asarray(x) for n, x in arrays.items() if n != "padding"}
    out, back = jax.vjp(lambda free: attend(**free, **fixed), free)
    return {"out": out} | back(jnp.asarray(slope, out.dtype))[0]


def kernels(platform, q, k, v, bias=None, gate=None, padding=None, rate=0.0):
    how = Fused(platform, HEADS, q.shape[1], rate, interpret=True)
    return fused((q, k, v), bias, gate, padding, KEY if rate else None, how)


def defined(q, k, v, bias=None, gate=None, padding=None, rate=0.0):
    """Attend as the docstring of `attention` says, with whole scores."""

    def by_head(x):
        return x.reshape(*x.shape[:2], HEADS, DEPTH).swapaxes(1, 2)

    scores = by_head(q) @ by_head(k).swapaxes(2, 3) / DEPTH**0.5
    if bias is not None:
        scores = scores + (1.0 if gate is None else gate[..., None]) * bias[None]
    if padding is not None:
        scores = jnp.where(padding[:, None, None], -1e30, scores)
    weight = jnp.exp(scores - scores.max(-1, keepdims=True))
    weight = weight / weight.sum(-1, keepdims=True)
    if rate:
        words, how = random_words(KEY), Plain(HEADS, rate, True)
        heads = [kept_weights(how, words, jnp.uint32(h), q.shape) for h in range(HEADS)]
        weight = weight * jnp.stack(heads, 1) * survivors_scale(rate)
    return (weight @ by_head(v)).swapaxes(1, 2).reshape(q.shape)


def exact(arrays, slope, rate=0.0):
    with jax.enable_x64(True):
        wide = {n: x if n == "padding" else np.asarray(x, float) for n, x in arrays.items()}
        found = differentiated(partial(defined, rate=rate), wide, np.asarray(slope, float))
        return {name: np.asarray(x) for name, x in found.items()}


def errors(found, want):
    """Return the largest error of each array, relative to its largest value."""
    assert found.keys() == want.keys()
    return {
        n: np.abs(np.asarray(x, float) - want[n]).max() / np.abs(want[n]).max()
        for n, x in found.items()
    }


# On a TPU 641 tokens are the first that need several blocks; 700 are 768, of six blocks of 128.
@pytest.mark.parametrize(("extras", "rate"), [(("bias",), 0.0), (ALL, 0.25)])
@pytest.mark.parametrize(("platform", "tokens"), [("cuda", 70), ("tpu", 70), ("tpu", 700)])
def test_kernels_give_the_definition_and_its_gradients(platform, tokens, extras, rate):
    arrays, slope = made(2, tokens, extras)
    found = differentiated(partial(kernels, platform, rate=rate), arrays, slope)
    for name, error in errors(found, exact(arrays, slope, rate)).items():
        assert error < 1e-5, name  # float32 sums of up to 700 products, in another order


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("tokens", "all_of_it"), [(1, True), (64, False), (65, True), (513, False)]
)
def test_any_number_of_tokens(platform, tokens, all_of_it):
    rng = np.random.default_rng([tokens, platform == "tpu"])
    extras, rate = EXTRAS[rng.integers(len(EXTRAS))], rng.choice([0.0, 0.5])
    if all_of_it:
        extras, rate = ALL, 0.5
    arrays, slope = made(1 + tokens % 3, tokens, extras)
    found = differentiated(partial(kernels, platform, rate=rate), arrays, slope)
    want = exact(arrays, slope, rate)
    for name, x in found.items():
        # Of one token all gradients but that of v are 0: errors are absolute, of values around 1.
        np.testing.assert_allclose(x, want[name], atol=5e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_bfloat16_loses_no_more_than_twice_the_plain_form(platform):
    arrays, slope = made(2, 150, ALL, jnp.bfloat16)
    want = exact(arrays, slope)
    plain = errors(differentiated(partial(attention, heads=HEADS), arrays, slope), want)
    ours = errors(differentiated(partial(kernels, platform), arrays, slope), want)
    for name, error in ours.items():
        assert error < 2 * plain[name], name


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_split_over_devices_nothing_changes(platform):
    """Each device has its own clips; dropout is drawn by a clip's place in the whole batch."""
    arrays, slope = made(4, 70, ALL)
    attend = partial(kernels, platform, rate=0.25)
    whole = differentiated(attend, arrays, slope)
    mesh = data_mesh(jax.devices()[:2])
    place = {n: copied(mesh) if n == "bias" else split(mesh) for n in arrays}
    arrays, slope = jax.device_put((arrays, slope), (place, split(mesh)))

    def spread(bias, **rows):
        return by_device(lambda rows, bias: attend(bias=bias, **rows), rows, bias)

    @jax.jit
    def run(arrays, slope):
        with over(mesh):
            return differentiated(spread, arrays, slope)

    compiled = run.lower(arrays, slope).compile()
    assert "all-gather" not in compiled.as_text()
    found = compiled(arrays, slope)
    for name, x in found.items():
        # The gradient of the bias is a sum over clips: of two sums here.
        np.testing.assert_allclose(x, whole[name], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_mapped_and_computed_again(platform):
    arrays, slope = made(1, 70, ("bias",))
    attend = partial(kernels, platform)
    one = differentiated(attend, arrays, slope)
    again = differentiated(jax.checkpoint(attend), arrays, slope)
    both = {n: jnp.stack([x, 2 * x]) for n, x in arrays.items()}
    mapped = jax.vmap(partial(differentiated, attend))(both, jnp.stack([slope, slope]))
    for name, x in one.items():
        np.testing.assert_array_equal(x, again[name], err_msg=name)
        # float32 rounding, of programs that are compiled apart
        np.testing.assert_allclose(x, mapped[name][0], atol=1e-6, rtol=1e-6, err_msg=name)
        assert np.abs(np.asarray(x) - np.asarray(mapped[name][1])).max() > 1e-3, name


def lowered(platform, implementation="auto", depth=DEPTH):
    """Return the program of attention for a platform, which need not be there."""
    x = jnp.zeros((2, 70, HEADS * depth), jnp.bfloat16)
    attend = jax.jit(partial(attention, heads=HEADS, implementation=implementation))
    return attend.trace(x, x, x).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("platform", "kernel"), [("cuda", "triton"), ("tpu", "tpu_custom_call")])
def test_each_platform_gets_its_kernel_where_it_takes_the_queries(platform, kernel):
    assert kernel in lowered(platform)
    assert kernel not in lowered(platform, "plain")
    assert kernel not in lowered(platform, depth=32)
    assert "custom_call" not in lowered("cpu")


def test_a_device_without_kernels_is_told_of_once(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("asdjax.models.attention.uncompiled", lambda platform: "it is too old")
    x = jax.random.normal(KEY, (1, 7, HEADS * DEPTH))
    with pytest.warns(UserWarning, match="without the fused kernels.*it is too old"):
        found = attention(x, x, x, heads=HEADS)
    assert "custom_call" not in lowered("cuda")  # and no second warning, which would be an error
    plain = attention(x, x, x, heads=HEADS, implementation="plain")
    np.testing.assert_array_equal(found, plain)
    rated = attention(x, x, x, heads=HEADS, dropped=0.5)  # without a key
    np.testing.assert_array_equal(rated, plain)


def test_the_kernels_need_no_memory_for_scores(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("asdjax.models.attention.uncompiled", lambda platform: "")

    def square(tokens, how, *, biased=False, heads=12):
        return attention_bytes(tokens, heads, 768, biased, how) / (4 * tokens**2)

    assert square(1000, "auto") == square(1000, "cudnn") == 0
    assert square(1000, "plain") == 3 * 12
    assert 12 <= square(1000, "auto", biased=True) == square(1000, "plain", biased=True) - 3 * 12
    assert square(MOST + 1, "auto") == 3 * 12
    assert square(1000, "auto", heads=8) == 3 * 8


def test_what_the_kernels_do_not_take():
    assert refused(jnp.zeros((1, 7, 96)), 3, "cuda") == "heads of 64 channels, got 32"
    assert refused(jnp.zeros((1, 7, 192)), 3, "cuda") == ""
    assert refused(jnp.zeros((1, 7, 192)), 3, "tpu") == "an even number of heads, got 3"
    half = jnp.zeros((1, 7, 128), jnp.float16)
    assert refused(half, 2, "cuda") == "bfloat16 or float32, got float16"
    for dtype, most in (("bfloat16", MOST), ("float32", MOST // 2)):
        shapes = [jax.ShapeDtypeStruct((1, n, 128), dtype) for n in (most, most + 1)]
        told = f"at most {most} tokens of {dtype}, got {most + 1}"
        assert [refused(x, 2, "tpu") for x in shapes] == ["", told]
