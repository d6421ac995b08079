"""Our forms of convolution and pooling against XLA's own, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.models.convolution import Conv1d, max_pool


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
    np.testing.assert_allclose(layer(x), want, rtol=0, atol=1e-5)


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

    want, back = jax.vjp(theirs, x)
    got, our_back = jax.vjp(lambda x: max_pool(x, window, stride, same=same), x)
    np.testing.assert_array_equal(got, want)
    given = noise(*want.shape, seed=1)
    # 1e-6: a value that is the largest of several windows gets their sum, in any order.
    np.testing.assert_allclose(our_back(given)[0], back(given)[0], rtol=0, atol=1e-6)
