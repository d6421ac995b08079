"""AdaCos against its equations, one step at a time in float64, and by meaning."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.losses import adacos, margin
from asdjax.losses.adacos import AdaCos, initial_scale
from asdjax.types import InputError

# Op by op, every new shape would be compiled a hundred times.
adacos_loss, next_scale = jax.jit(adacos.adacos_loss), jax.jit(adacos.next_scale)

RAGGED = np.array([2, 3, 1, 3])


def batch(rows=5, classes=4, subclusters=3, width=6, seed=0):
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((rows, width))
    centers = rng.standard_normal((classes, subclusters, width))
    label = rng.integers(0, classes, (rows, 2))
    part = rng.uniform(0.1, 0.9, rows)
    return embedding, centers, label, np.stack([part, 1 - part], 1)


def single(*arrays):
    kinds = {"f": jnp.float32, "i": jnp.int32}
    return [jnp.asarray(x, kinds[x.dtype.kind]) for x in arrays]


def naive_cosines(embedding, centers):
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (embedding, centers)]
    return np.einsum("be,cse->bcs", *unit)


def naive_loss(embedding, centers, label, weight, scale, counts):
    """Softmax over all centers, probabilities summed per class, cross-entropy: float64."""
    losses = np.zeros(len(embedding))
    for b, cosine in enumerate(naive_cosines(embedding, centers)):
        powers = [np.exp(scale * own[:count]) for own, count in zip(cosine, counts, strict=True)]
        total = sum(p.sum() for p in powers)
        for y, w in zip(label[b], weight[b], strict=True):
            losses[b] -= w * math.log(powers[y].sum() / total)
    return losses


def naive_scale(cosine, label, weight, scale, counts):
    """The equation of dynamic AdaCos with plain exponentials: float64."""
    sums, angles = [], []
    for b in range(len(cosine)):
        held = {int(y) for y, w in zip(label[b], weight[b], strict=True) if w > 0}
        wrong = [cosine[b, c, : counts[c]] for c in range(len(counts)) if c not in held]
        sums.append(sum(np.exp(scale * own).sum() for own in wrong))
        near = [cosine[b, y, : counts[y]].max() for y in label[b]]
        angles.append(sum(w * math.acos(c) for w, c in zip(weight[b], near, strict=True)))
    angles = sorted(angles)
    middle = (angles[(len(angles) - 1) // 2] + angles[len(angles) // 2]) / 2
    return math.log(np.mean(sums)) / math.cos(min(math.pi / 4, middle))


@jax.jit
def value_and_gradient(embedding, centers, label, weight, scale, counts):
    def total(*both):
        loss, _ = adacos.adacos_loss(*both, label, weight, scale=scale, counts=counts)
        return loss.sum(), loss

    return jax.grad(total, (0, 1), has_aux=True)(embedding, centers)


@pytest.mark.parametrize("counts", [np.full(4, 3), RAGGED], ids=["all", "ragged"])
def test_value_and_gradient_equal_the_definition(counts):
    rng = np.random.default_rng(1)
    for seed in range(3):
        embedding, centers, label, weight = batch(seed=seed)
        slope, loss = value_and_gradient(*single(embedding, centers, label, weight), 12.0, counts)

        def oracle(e, c):
            return naive_loss(e, c, label, weight, 12.0, counts)  # noqa: B023

        # 2e-5: float32 cosines (1e-7) times the scale, a few sums.
        np.testing.assert_allclose(loss, oracle(embedding, centers), rtol=0, atol=2e-5)
        for _ in range(10):
            # The slope along random directions; central differences err by about 1e-10 times a
            # third derivative of 1e4, the float32 gradient by 1e-7 times terms of up to 100.
            move = [rng.standard_normal(x.shape) for x in (embedding, centers)]
            up, down = (
                oracle(embedding + sign * move[0], centers + sign * move[1]).sum()
                for sign in (1e-5, -1e-5)
            )
            along = sum((m * g).sum() for m, g in zip(move, slope, strict=True))
            np.testing.assert_allclose(along, (up - down) / 2e-5, rtol=1e-5, atol=1e-4)


def test_one_subcluster_is_softmax_of_scaled_cosines():
    arrays = single(*batch(subclusters=1))
    loss, cosine = adacos_loss(*arrays, scale=9.0)
    softmax = partial(margin.margin_loss, kind="softmax", margin=0.0, scale=9.0)
    plain, of_class = jax.jit(softmax)(*arrays)
    np.testing.assert_allclose(loss, plain, rtol=1e-5)  # order of float32 sums
    np.testing.assert_allclose(cosine[:, :, 0], of_class, rtol=0, atol=1e-6)


def test_copies_of_a_center_change_nothing():
    """S equal centers in every class multiply all probabilities' parts by S."""
    embedding, centers, label, weight = single(*batch(subclusters=1))
    one, _ = adacos_loss(embedding, centers, label, weight, scale=9.0)
    copies = jnp.tile(centers, (1, 5, 1))
    five, _ = adacos_loss(embedding, copies, label, weight, scale=9.0)
    np.testing.assert_allclose(five, one, rtol=1e-5)  # order of float32 sums


def test_probabilities_are_summed_not_the_largest_taken():
    """The row is as near to two centers of class 0 as to the one of class 1: odds of 2 to 1."""
    embedding = jnp.array([[1.0, 0.0, 0.0]])
    centers = jnp.array([[[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]], [[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    settings = {"scale": 5.0, "counts": np.array([2, 1])}
    loss, _ = adacos_loss(embedding, centers, jnp.array([[0]]), jnp.ones((1, 1)), **settings)
    np.testing.assert_allclose(loss, [math.log(3 / 2)], rtol=1e-6)


def test_subclusters_beyond_the_count_do_not_exist():
    embedding, centers, label, weight = batch()
    absent = np.arange(3)[None] >= RAGGED[:, None]
    _, plain = value_and_gradient(*single(embedding, centers, label, weight), 12.0, RAGGED)
    centers[absent] = embedding[: absent.sum()]  # the worst that could stand there
    slope, filled = value_and_gradient(*single(embedding, centers, label, weight), 12.0, RAGGED)
    np.testing.assert_array_equal(filled, plain)
    np.testing.assert_array_equal(slope[1][absent], 0)
    assert np.all(np.any(slope[1][~absent] != 0, 1)), "every other center has a probability"


def test_initial_scale():
    assert initial_scale(3) == pytest.approx(math.sqrt(2) * math.log(2))
    assert initial_scale(160) == pytest.approx(math.sqrt(2) * math.log(159))
    with pytest.raises(InputError, match="at least 3 centers"):
        initial_scale(2)
    with pytest.raises(InputError, match="subclusters: expected >= 1"):
        AdaCos(subclusters=0)


@pytest.mark.parametrize("rows", [7, 8])  # an even batch has two middle angles
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("counts", [None, RAGGED], ids=["all", "ragged"])
def test_scale_follows_the_equation_step_by_step(rows, labels, counts):
    """A made training: rows move to the center of their class, the scale from step to step."""
    embedding, centers, label, weight = batch(rows)
    label, weight = label[:, :labels], weight[:, :labels] / weight[:, :labels].sum(1, keepdims=True)
    full = np.full(4, 3) if counts is None else counts
    scale = expected = initial_scale(12)
    target = (weight[:, :, None] * centers[label, 0]).sum(1)
    seen = []
    for share in np.linspace(0, 0.95, 8):  # angles above and below pi/4
        cosine = naive_cosines((1 - share) * embedding + share * target, centers)
        expected = naive_scale(cosine, label, weight, expected, full)
        scale = next_scale(*single(cosine, label, weight), scale, counts)
        assert scale.dtype == jnp.float32
        assert scale.shape == ()
        np.testing.assert_allclose(scale, expected, rtol=1e-5)  # eight steps of float32
        seen.append(expected)
    assert max(seen) > 1.2 * min(seen), "a scale that stays would test nothing"


def test_scale_of_known_geometries():
    """Wrong classes at right angles: ln(C-1) once fitted, the start when not."""
    label, weight = jnp.arange(6)[:, None], jnp.ones((6, 1))
    fitted = jnp.eye(6)[:, :, None]
    np.testing.assert_allclose(next_scale(fitted, label, weight, 9.0), math.log(5), rtol=1e-6)
    start = next_scale(jnp.zeros((6, 6, 1)), label, weight, 9.0)
    np.testing.assert_allclose(start, initial_scale(6), rtol=1e-6)


@pytest.mark.parametrize("scale", [60.0, 1000.0])
def test_large_scales_do_not_overflow(scale):
    """All cosines 1: ln((C-1) exp(s)) / cos(0)."""
    everything = jnp.ones((3, 5, 2))
    got = next_scale(everything, jnp.array([[0], [1], [2]]), jnp.ones((3, 1)), scale)
    np.testing.assert_allclose(got, scale + math.log(8), rtol=1e-6)
    embedding, centers, label, weight = single(*batch())
    assert np.all(np.isfinite(adacos_loss(embedding, centers, label, weight, scale=scale)[0]))


def test_median_ignores_a_few_bad_rows():
    label, weight = jnp.zeros((5, 1), int), jnp.ones((5, 1))
    true = np.cos([0.3, 0.3, 0.3, 3.0, 3.0])
    cosine = jnp.asarray(np.stack([true, np.zeros(5), np.zeros(5)], 1)[:, :, None], jnp.float32)
    got = next_scale(cosine, label, weight, 1.0)
    np.testing.assert_allclose(got, math.log(2) / math.cos(0.3), rtol=1e-6)


def test_mixed_rows_have_two_classes_and_the_mean_of_two_angles():
    cosine = jnp.asarray(np.cos([[[0.2], [0.6], [1.3], [1.4]]]), jnp.float32)
    label, weight = jnp.array([[0, 1]]), jnp.array([[0.75, 0.25]])
    wrong = math.exp(5 * math.cos(1.3)) + math.exp(5 * math.cos(1.4))
    got = next_scale(cosine, label, weight, 5.0)
    np.testing.assert_allclose(got, math.log(wrong) / math.cos(0.3), rtol=1e-6)
    # A part of 0 is no part: the same as one label.
    unmixed = next_scale(cosine, label, jnp.array([[1.0, 0.0]]), 5.0)
    alone = next_scale(cosine, label[:, :1], jnp.ones((1, 1)), 5.0)
    np.testing.assert_allclose(unmixed, alone, rtol=1e-6)
    assert not np.isclose(unmixed, got)


def test_scale_stays_where_the_equation_has_no_positive_value():
    apart = -jnp.ones((2, 2, 2))  # B = 2 exp(-3) < 1
    label, weight = jnp.array([[0], [1]]), jnp.ones((2, 1))
    assert next_scale(apart, label, weight, 3.0) == 3.0
    assert next_scale(jnp.ones((2, 1, 4)), label * 0, weight, 3.0) == 3.0  # one class, none wrong


def test_no_gradient_flows_through_the_scale():
    _, _, label, weight = single(*batch())
    cosine = jnp.ones((5, 4, 3))  # where arccos has an infinite slope
    gradient = jax.grad(lambda c, s: next_scale(c, label, weight, s), (0, 1))(cosine, 4.0)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_array_equal(gradient[1], 0)


def test_scale_sees_the_batch_of_all_devices():
    embedding, centers, label, weight = batch(8)
    arrays = single(naive_cosines(embedding, centers), label, weight)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(arrays, jax.NamedSharding(mesh, jax.P("data")))
    got = next_scale(*split, 10.0)
    np.testing.assert_allclose(got, next_scale(*arrays, 10.0), rtol=1e-6)
    half = next_scale(*(x[:4] for x in arrays), 10.0)
    assert not np.isclose(got, half), "the halves must differ for this to say anything"
