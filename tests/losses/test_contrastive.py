"""The supervised contrastive loss against its definition in float64, and by meaning."""

import math

import jax
import numpy as np
import pytest

from asdjax.losses import contrastive
from asdjax.losses.contrastive import Contrastive
from asdjax.types import InputError

TEMPERATURE = 0.04
loss = jax.jit(contrastive.contrastive_loss, static_argnames="temperature")


@jax.jit
def slope(embedding, label):
    def total(rows):
        return contrastive.contrastive_loss(rows, label, temperature=TEMPERATURE).sum()

    return jax.grad(total)(embedding)


def batch(rows=7, width=5, seed=0):
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((rows, width)) * rng.uniform(0.1, 10, (rows, 1))
    label = np.array([0, 1, 0, 2, 1, 0, 3] * rows, np.int32)[:rows]  # of seven, two are alone
    return embedding.astype(np.float32), label


def naive(embedding, label, temperature):
    """Equation 2 of Khosla et al. in float64, one anchor, positive and negative at a time."""
    rows = [row / np.linalg.norm(row) for row in embedding.astype(np.float64)]
    losses = []
    for i, anchor in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        positives = [j for j in others if label[j] == label[i]]
        total = 0.0
        for p in positives:
            among = sum(math.exp(anchor @ rows[a] / temperature) for a in others)
            total -= math.log(math.exp(anchor @ rows[p] / temperature) / among)
        losses.append(temperature / 0.07 * total / max(len(positives), 1))
    return np.array(losses)


@pytest.mark.parametrize("temperature", [0.04, 0.5])
@pytest.mark.parametrize("rows", [7, 20])
def test_value_equals_the_definition(rows, temperature):
    embedding, label = batch(rows)
    got = loss(embedding, label, temperature=temperature)
    assert got.dtype == np.float32
    # float32 cosines (1e-7), whose slope is 2 / 0.07 whatever the temperature, and the sum's own.
    want = naive(embedding, label, temperature)
    np.testing.assert_allclose(got, want, rtol=5e-7, atol=3e-6)


def test_gradient_equals_the_differences_of_the_definition():
    embedding, label = batch(20)
    rng, gradient, wide = np.random.default_rng(1), slope(embedding, label), embedding.astype(float)
    for _ in range(5):
        move = 1e-6 * rng.standard_normal(embedding.shape)
        up, down = (naive(wide + sign * move, label, TEMPERATURE).sum() for sign in (1, -1))
        # 1e-4: float32 cosines divided by the temperature, in an exponential: 25 times 1e-7, and
        # terms of the sum that cancel.
        np.testing.assert_allclose((gradient * move).sum(), (up - down) / 2, rtol=1e-4)


def test_only_directions_matter():
    embedding, label = batch()
    plain = loss(embedding, label, temperature=TEMPERATURE)
    scaled = loss(embedding * np.float32(2.0**-20), label, temperature=TEMPERATURE)
    np.testing.assert_allclose(scaled, plain, rtol=1e-6)  # powers of two leave mantissas alone
    # A loss that only sees directions has a gradient across each row; 1e-4: sums of terms of 30.
    across = (slope(embedding, label) * embedding).sum(1)
    np.testing.assert_allclose(across, 0, rtol=0, atol=1e-4)


def test_order_of_the_batch_and_names_of_classes_do_not_matter():
    embedding, label = batch()
    plain = np.asarray(loss(embedding, label, temperature=TEMPERATURE))
    order = np.random.default_rng(0).permutation(len(label))
    got = loss(embedding[order], label[order], temperature=TEMPERATURE)
    np.testing.assert_allclose(got, plain[order], rtol=1e-5, atol=1e-6)  # other order of sums
    renamed = np.array([9, 4, 0, 7], np.int32)[label]
    np.testing.assert_array_equal(loss(embedding, renamed, temperature=TEMPERATURE), plain)


def test_a_row_alone_in_its_class_has_no_loss_but_pushes_others_away():
    embedding, label = batch()
    alone = np.array([list(label).count(one) == 1 for one in label])
    values = np.asarray(loss(embedding, label, temperature=TEMPERATURE))
    np.testing.assert_array_equal(values[alone], 0)
    assert np.all(values[~alone] > 0)
    assert np.any(slope(embedding, label)[alone] != 0)  # as another row's negative
    distinct = np.arange(len(label), dtype=np.int32)
    np.testing.assert_array_equal(slope(embedding, distinct), 0)


def test_a_batch_of_one_class_is_least_where_all_rows_agree():
    embedding, label = batch()
    label = np.zeros_like(label)
    same = np.ones_like(embedding)
    equal = loss(same, label, temperature=TEMPERATURE)
    # All others are equally near: ln(B - 1), times the factor.
    np.testing.assert_allclose(equal, TEMPERATURE / 0.07 * math.log(len(label) - 1), rtol=1e-5)
    assert np.all(loss(embedding, label, temperature=TEMPERATURE).mean() > equal)
    # 1e-5: every pair is at its largest cosine, where the slope of a cosine is zero.
    np.testing.assert_allclose(slope(same, label), 0, rtol=0, atol=1e-5)


def test_classes_apart_have_a_smaller_loss_than_classes_mixed_up():
    label = np.array([0, 0, 1, 1], np.int32)
    apart = np.eye(2, dtype=np.float32)[label]
    values = loss(apart, label, temperature=TEMPERATURE)
    np.testing.assert_allclose(values, 0, rtol=0, atol=1e-6)  # ln(1 + 2 e^-25)
    mixed = loss(apart, np.array([0, 1, 0, 1], np.int32), temperature=TEMPERATURE)
    # Its only positive is at a right angle, a negative on it: 1 / T times T / 0.07.
    np.testing.assert_allclose(mixed, 1 / 0.07, rtol=1e-5)


def test_corners_are_finite():
    """A batch of one; rows of length zero; a row and its opposite; equal rows of two classes."""
    one = batch(1)
    np.testing.assert_array_equal(loss(*one, temperature=TEMPERATURE), [0])
    np.testing.assert_array_equal(slope(*one), 0)
    row = batch()[0][0]
    embedding = np.stack([row, -row, 0 * row, 0 * row, row, row])
    label = np.array([0, 0, 0, 1, 1, 0], np.int32)
    assert np.all(np.isfinite(loss(embedding, label, temperature=TEMPERATURE)))
    gradient = slope(embedding, label)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[2:4], 0)  # nowhere to go


def test_bfloat16_is_only_rounded_once():
    embedding, label = batch()
    low = jax.numpy.asarray(embedding, jax.numpy.bfloat16)
    got = loss(low, label, temperature=TEMPERATURE)
    want = loss(low.astype(np.float32), label, temperature=TEMPERATURE)
    np.testing.assert_array_equal(got, want)


def test_same_on_two_devices_and_one():
    embedding, label = batch(8)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put((embedding, label), jax.NamedSharding(mesh, jax.P("data")))
    got = loss(*split, temperature=TEMPERATURE)
    # Positives and negatives on the other device count; 1e-5: other order of float32 sums.
    np.testing.assert_allclose(
        got, loss(embedding, label, temperature=TEMPERATURE), rtol=1e-5, atol=1e-6
    )


def test_wrong_shapes_and_settings_are_refused():
    embedding, label = batch()
    for wrong in [(embedding[:, None], label), (embedding, label[:, None]), (embedding[1:], label)]:
        with pytest.raises(ValueError, match=r"expected embedding \[B, E\] and label \[B\], got"):
            loss(*wrong, temperature=TEMPERATURE)
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="temperature: expected > 0"):
            Contrastive(temperature=temperature)
