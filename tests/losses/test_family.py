"""What every loss on cosines must do, whatever its formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.losses.adacos import adacos_loss
from asdjax.losses.margin import margin_loss

ROWS, CLASSES, SUBCENTERS, WIDTH = 8, 4, 3, 5
COUNTS = np.array([3, 1, 2, 3])


def cut(function, **settings):
    """Return a loss of the arrays alone; compiled, or every operation would be, one by one."""
    return jax.jit(lambda *arrays: function(*arrays, scale=20.0, **settings)[0])


LOSSES = {
    "softmax": cut(margin_loss, kind="softmax", margin=0.5),
    "am-softmax": cut(margin_loss, kind="am-softmax", margin=0.3),
    "arcface": cut(margin_loss, kind="arcface", margin=0.4, counts=COUNTS),
    "adacos": cut(adacos_loss, counts=COUNTS),
}
pytestmark = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def batch():
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    centers = rng.standard_normal((CLASSES, SUBCENTERS, WIDTH)).astype(np.float32)
    label = rng.integers(0, CLASSES, (ROWS, 2)).astype(np.int32)
    part = rng.uniform(0.1, 0.9, ROWS).astype(np.float32)
    return embedding, centers, label, np.stack([part, 1 - part], 1)


@partial(jax.jit, static_argnums=0)
def gradients(loss, embedding, centers, label, weight):
    return jax.grad(lambda e, c: loss(e, c, label, weight).sum(), (0, 1))(embedding, centers)


def test_falls_under_gradient_descent_on_the_embedding(loss):
    embedding, *rest = batch()
    values = [loss(embedding, *rest)]
    for _ in range(20):
        embedding = embedding - 1e-3 * np.asarray(gradients(loss, embedding, *rest)[0])
        values.append(loss(embedding, *rest))
    values = np.stack(values).mean(1)
    assert values[-1] < values[0] - 0.1, "twenty steps move the loss by far more than rounding"
    assert np.all(np.diff(values) < 0)


def test_only_directions_matter(loss):
    """Powers of two leave the mantissas alone, so that the results agree to the last bit or so."""
    embedding, centers, label, weight = batch()
    plain = loss(embedding, centers, label, weight)
    for factor in np.float32([2.0**-20, 2.0**20]):
        scaled = loss(embedding * factor, centers / factor, label, weight)
        np.testing.assert_allclose(scaled, plain, rtol=1e-6)
    of_embedding, of_centers = gradients(loss, embedding, centers, label, weight)
    # A loss that only sees directions has a gradient across each vector, never along it.
    # 1e-4: float32 sums of terms of up to the scale, 20.
    np.testing.assert_allclose((of_embedding * embedding).sum(1), 0, atol=1e-4)
    np.testing.assert_allclose((of_centers * centers).sum(2), 0, atol=1e-4)


def test_soft_labels_are_convex_combinations(loss):
    embedding, centers, label, weight = batch()
    ones = np.ones((ROWS, 1), np.float32)
    parts = [loss(embedding, centers, label[:, m : m + 1], ones) * weight[:, m] for m in (0, 1)]
    mixed = loss(embedding, centers, label, weight)
    np.testing.assert_allclose(mixed, parts[0] + parts[1], rtol=1e-5)  # order of float32 sums


def test_the_same_label_twice_is_one_label(loss):
    embedding, centers, label, weight = batch()
    once = loss(embedding, centers, label[:, :1], np.ones((ROWS, 1), np.float32))
    twice = loss(embedding, centers, label[:, [0, 0]], weight)
    np.testing.assert_allclose(twice, once, rtol=1e-6)  # the weights sum to 1 up to rounding


def test_rows_do_not_see_each_other(loss):
    embedding, centers, label, weight = batch()
    together = loss(embedding, centers, label, weight)
    order = np.array([4, 2, 7, 0, 5, 6, 1, 3])
    permuted = loss(embedding[order], centers, label[order], weight[order])
    np.testing.assert_array_equal(permuted, together[order])
    embedding[1:], label[1:] = embedding[:1], label[:1]
    np.testing.assert_array_equal(loss(embedding, centers, label, weight)[0], together[0])


def test_bfloat16_is_only_another_input(loss):
    embedding, centers, label, weight = batch()
    low = jnp.asarray(embedding, jnp.bfloat16), jnp.asarray(centers, jnp.bfloat16)
    got = loss(*low, label, weight)
    assert got.dtype == jnp.float32
    rounded = [x.astype(jnp.float32) for x in low]
    np.testing.assert_array_equal(got, loss(*rounded, label, weight))


def test_corners_are_finite(loss):
    """Rows on a center, opposite to one, of length 0 and tiny; a class whose centers are 0."""
    _, centers, _, _ = batch()
    centers[3] = 0
    centers[2] *= np.float32(1e-10)
    row, other, zero = centers[0, 0], centers[1, 0], np.zeros(WIDTH, np.float32)
    tiny = row * np.float32(1e-10)
    embedding = np.stack([row, -row, zero, zero, row, tiny, other, -other])
    label = np.repeat(np.array([0, 0, 0, 3, 3, 1, 1, 1], np.int32)[:, None], 2, 1)
    weight = np.full((ROWS, 2), 0.5, np.float32)
    assert np.all(np.isfinite(loss(embedding, centers, label, weight)))
    of_embedding, of_centers = gradients(loss, embedding, centers, label, weight)
    # Two cosines per row have a slope of at most scale * cos m + sin m / SMALLEST_SINE ...
    most = 2 * 20 * (1 + 1000)
    lengths = np.linalg.norm(embedding, axis=1)
    assert np.all(np.isfinite(of_embedding))
    assert np.all(np.isfinite(of_centers))
    # ... and the cosine one of at most 1 / length.
    assert np.all(np.linalg.norm(of_embedding, axis=1) * lengths <= most)
    np.testing.assert_array_equal(of_embedding[2:4], 0)  # nowhere to go
    np.testing.assert_array_equal(of_centers[3], 0)


def test_a_label_that_is_no_class_is_loud(loss):
    embedding, centers, label, weight = batch()
    label[0, 0], label[1, 1] = CLASSES, -1
    values = loss(embedding, centers, label, weight)
    assert np.all(np.isinf(values[:2]))
    assert np.all(np.isfinite(values[2:]))


def test_same_on_two_devices_and_one(loss):
    embedding, centers, label, weight = batch()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    split = jax.device_put((embedding, label, weight), rows)
    copied = jax.device_put(centers, jax.NamedSharding(mesh, jax.P()))
    got = loss(split[0], copied, *split[1:])
    assert got.sharding.is_equivalent_to(rows, 1)
    # 1e-5: another batch size per device may sum the product in another order.
    np.testing.assert_allclose(got, loss(embedding, centers, label, weight), rtol=1e-5)


def test_shapes_that_do_not_fit_are_named(loss):
    embedding, centers, label, weight = batch()
    for wrong in [
        (embedding, centers[:, 0], label, weight),
        (embedding, centers[:, :, 1:], label, weight),
        (embedding, centers, label[:, 0], weight[:, 0]),
        (embedding, centers, label, weight[:, :1]),
        (embedding[1:], centers, label, weight),
    ]:
        with pytest.raises(ValueError, match=r"expected embedding \[B, E\].*got .*\("):
            loss(*wrong)
