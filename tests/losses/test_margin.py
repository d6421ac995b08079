"""Margins against float64 arccos, against plane geometry, and by meaning."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.losses import margin
from asdjax.losses.margin import (
    Margin,
    class_cosines,
)
from asdjax.types import InputError

# Op by op, every new shape would be compiled a hundred times.
margin_loss = jax.jit(margin.margin_loss, static_argnames=("kind", "margin", "scale"))
cosines = jax.jit(margin.cosines)
with_margin = jax.jit(margin.with_margin, static_argnums=(1, 2))

MARGINS = {"softmax": 0.3, "am-softmax": 0.3, "arcface": 0.6}


def batch(rows=5, classes=4, subcenters=3, width=6, seed=0):
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((rows, width)).astype(np.float32)
    centers = rng.standard_normal((classes, subcenters, width)).astype(np.float32)
    label = rng.integers(0, classes, (rows, 2)).astype(np.int32)
    part = rng.uniform(0.1, 0.9, rows).astype(np.float32)
    return embedding, centers, label, np.stack([part, 1 - part], 1)


def naive(embedding, centers, label, weight, kind, margin, scale, counts):
    """The definition, float64, one row, class and sub-center at a time, with a true arccos."""
    losses = np.zeros(len(embedding))
    for b, e in enumerate(embedding):
        cosine = []
        for own, count in zip(centers, counts, strict=True):
            near = [e @ c / (np.linalg.norm(e) * np.linalg.norm(c)) for c in own[:count]]
            cosine.append(max(near))
        for y, w in zip(label[b], weight[b], strict=True):
            logits = [scale * c for c in cosine]
            angle = math.acos(cosine[y])
            if kind == "am-softmax":
                logits[y] = scale * (cosine[y] - margin)
            elif kind == "arcface" and angle + margin < math.pi:
                logits[y] = scale * math.cos(angle + margin)
            elif kind == "arcface":
                logits[y] = scale * (cosine[y] - margin * math.sin(margin))
            losses[b] += w * (math.log(sum(map(math.exp, logits))) - logits[y])
    return losses


@partial(jax.jit, static_argnames=("kind", "margin", "scale"))
def value_and_gradient(embedding, centers, label, weight, **settings):
    def total(*both):
        loss, _ = margin.margin_loss(*both, label, weight, **settings)
        return loss.sum(), loss

    return jax.grad(total, (0, 1), has_aux=True)(embedding, centers)


@pytest.mark.parametrize("kind", MARGINS)
def test_value_and_gradient_equal_the_definition(kind):
    rng = np.random.default_rng(1)
    for counts in np.array([[3, 3, 3, 3], [3, 1, 2, 1]] * 2):
        embedding, centers, label, weight = batch(seed=rng.integers(1000))
        centers[label[0, 0]] = 0.2 * centers[label[0, 0]] - embedding[0]  # beyond pi - margin
        settings = {"kind": kind, "margin": MARGINS[kind], "scale": 16.0, "counts": counts}
        slope, loss = value_and_gradient(embedding, centers, label, weight, **settings)

        def oracle(e, c):
            return naive(e, c, label, weight, **settings)  # noqa: B023

        embedding, centers, weight = (x.astype(np.float64) for x in (embedding, centers, weight))
        # 2e-5: float32 cosines (1e-7) times the scale, through a slope of the sine of up to 10.
        np.testing.assert_allclose(loss, oracle(embedding, centers), rtol=0, atol=2e-5)
        for _ in range(10):
            # The slope along random directions; central differences err by about 1e-12 times a
            # third derivative of 1e5, the float32 gradient by 1e-7 times terms of up to 100.
            move = [rng.standard_normal(x.shape) for x in (embedding, centers)]
            up, down = (
                oracle(embedding + sign * move[0], centers + sign * move[1]).sum()
                for sign in (1e-6, -1e-6)
            )
            along = sum((m * g).sum() for m, g in zip(move, slope, strict=True))
            np.testing.assert_allclose(along, (up - down) / 2e-6, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", MARGINS)
def test_margin_moves_the_true_class_only(kind):
    """In the plane: class 0 at angle 0, class 1 at 2.0 rad, the row at 0.7 rad, of class 0."""
    centers = np.array([[[1, 0]], [[math.cos(2.0), math.sin(2.0)]]], np.float32)
    row = np.array([[math.cos(0.7), math.sin(0.7)]], np.float32)
    margin, scale = MARGINS[kind], 8.0
    true = {
        "softmax": math.cos(0.7),
        "am-softmax": math.cos(0.7) - margin,
        "arcface": math.cos(0.7 + margin),
    }[kind]
    settings = {"kind": kind, "margin": margin, "scale": scale}
    label, weight = np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32)
    loss, cosine = margin_loss(*map(jnp.asarray, (row, centers, label, weight)), **settings)
    expected = math.log1p(math.exp(scale * (math.cos(1.3) - true)))
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)  # float32 cosines times 8
    # What is returned for accuracy has no margin.
    np.testing.assert_allclose(cosine, [[math.cos(0.7), math.cos(1.3)]], rtol=1e-5)


@pytest.mark.parametrize("kind", ["am-softmax", "arcface"])
def test_without_margin_it_is_softmax(kind):
    arrays = list(map(jnp.asarray, batch()))
    plain, _ = margin_loss(*arrays, kind="softmax", margin=0.5, scale=30.0)
    got, _ = margin_loss(*arrays, kind=kind, margin=0.0, scale=30.0)
    np.testing.assert_allclose(got, plain, rtol=1e-6)  # another program may round otherwise
    more, _ = margin_loss(*arrays, kind=kind, margin=0.2, scale=30.0)
    assert np.all(more > plain)


def test_softmax_is_the_cross_entropy_of_scaled_cosines():
    embedding, centers, label, weight = map(jnp.asarray, batch(subcenters=1))
    loss, cosine = margin_loss(
        embedding, centers, label[:, :1], weight[:, :1], kind="softmax", margin=0.0, scale=10.0
    )
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (embedding, centers[:, 0])]
    np.testing.assert_allclose(cosine, unit[0] @ unit[1].T, atol=1e-6)  # float32 products
    chosen = jax.nn.log_softmax(10.0 * cosine)[np.arange(5), label[:, 0]]
    np.testing.assert_allclose(loss, -weight[:, 0] * chosen, rtol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5, 1.2])
def test_arcface_falls_with_the_angle_all_the_way(margin):
    # 2e-3 apart: farther than the sine's floor and float32 cosines can blur.
    angle = np.arange(0.0, math.pi, 2e-3)
    cosine = np.cos(angle).astype(np.float32)
    value = np.asarray(with_margin(jnp.asarray(cosine), "arcface", margin), np.float64)
    assert np.all(np.diff(value[2:]) < 0)
    assert np.all(value <= cosine + 1e-7)
    inside = angle + margin < math.pi - 1e-3
    # 1e-3: the floored sine, at the angle 0.
    np.testing.assert_allclose(value[inside], np.cos(angle + margin)[inside], atol=1e-3)
    drop = -1 - with_margin(jnp.float32(-math.cos(margin) - 1e-6), "arcface", margin)
    # At the seam: the size of the step that the docstring states, down.
    stated = math.cos(margin) + margin * math.sin(margin) - 1
    np.testing.assert_allclose(drop, stated, atol=2e-6)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
@pytest.mark.parametrize("kind", MARGINS)
def test_slope_is_finite_where_the_angle_has_none(kind, cosine):
    slope = jax.grad(lambda c: with_margin(c, kind, 0.5))(jnp.float32(cosine))
    assert 0 < slope < 1000


def test_one_subcenter_and_copies_of_it_are_arcface():
    embedding, centers, label, weight = map(jnp.asarray, batch(subcenters=1))
    settings = {"kind": "arcface", "margin": 0.5, "scale": 30.0}
    plain, cosine = margin_loss(embedding, centers, label, weight, **settings)
    copies, same = margin_loss(embedding, jnp.tile(centers, (1, 4, 1)), label, weight, **settings)
    # 1e-5: a product of another shape may be summed in another order.
    np.testing.assert_allclose(copies, plain, rtol=1e-5)
    np.testing.assert_allclose(same, cosine, atol=1e-6)


def test_the_nearest_own_subcenter_counts():
    cosine = jnp.array([[[0.1, 0.9, 0.5], [-0.9, -0.2, -0.1]]])
    np.testing.assert_array_equal(class_cosines(cosine), np.array([[0.9, -0.1]], np.float32))
    masked = class_cosines(cosine, np.array([1, 2]))
    np.testing.assert_array_equal(masked, np.array([[0.1, -0.2]], np.float32))
    with pytest.raises(ValueError, match="2 classes"):
        class_cosines(cosine, np.array([1, 2, 3]))


def test_subcenters_beyond_the_count_do_not_exist():
    embedding, centers, label, weight = batch()
    counts = np.array([3, 1, 2, 1])
    absent = np.arange(3)[None] >= counts[:, None]
    settings = {"kind": "arcface", "margin": MARGINS["arcface"], "scale": 16.0, "counts": counts}
    _, plain = value_and_gradient(embedding, centers, label, weight, **settings)
    centers[absent] = embedding[: absent.sum()]  # the worst that could stand there
    slope, filled = value_and_gradient(embedding, centers, label, weight, **settings)
    np.testing.assert_array_equal(filled, plain)
    np.testing.assert_array_equal(slope[1][absent], 0)
    assert np.any(slope[1][~absent] != 0)


def test_cosines_stay_within_one_and_zero_is_far_from_all():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.standard_normal((300, 7)), jnp.float32)
    itself = cosines(rows, rows[:, None])
    assert itself.dtype == jnp.float32
    assert np.abs(itself).max() <= 1
    np.testing.assert_allclose(np.diagonal(itself[:, :, 0]), 1, atol=3e-7)  # float32 rounding
    np.testing.assert_array_equal(cosines(jnp.zeros((1, 7)), rows[:, None]), 0)
    np.testing.assert_array_equal(cosines(rows, jnp.zeros((1, 1, 7))), 0)


def test_one_label_needs_no_array_of_classes_by_classes():
    rows, classes, width = 4, 50, 3

    def loss(e, c):
        label, weight = jnp.zeros((rows, 1), int), jnp.ones((rows, 1))
        return margin_loss(e, c, label, weight, kind="arcface", margin=0.5, scale=30.0)[0].sum()

    arrays = jnp.ones((rows, width)), jnp.ones((classes, 1, width))
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arrays))
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\[(\d[\d,]*)\]", text)]
    assert max(sizes) == rows * classes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "sphereface"}, "sphereface"),
        ({"margin": 28.6}, "radians, not degrees"),
        ({"margin": -0.1}, r"margin: expected in \[0, 1.571\) radians, not degrees"),
        ({"margin": math.nan}, r"margin: expected in \[0, 1.571\) radians, not degrees"),
        ({"kind": "am-softmax", "margin": 2.0}, r"margin: expected in \[0, 2\), got 2.0"),
        ({"scale": 0.0}, "scale: expected > 0"),
        ({"subcenters": 0}, "subcenters: expected >= 1"),
        ({"subcenters_without_attributes": 0}, "attributes: expected >= 1 or none"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Margin(**wrong)


def test_an_unknown_kind_is_not_taken_for_arcface():
    with pytest.raises(ValueError, match="aam"):
        with_margin(jnp.zeros(1), "aam", 0.5)
