"""What the head of every loss must do: its contract is in `asdjax.losses`."""

from typing import get_args

import jax
import numpy as np
import pytest
from flax import nnx

from asdjax.losses import Loss, adacos, margin
from asdjax.losses.adacos import AdaCos, initial_scale
from asdjax.losses.contrastive import Contrastive
from asdjax.losses.margin import Margin

# Op by op, every operation would be compiled alone.
cosines, next_scale = jax.jit(margin.cosines), jax.jit(adacos.next_scale)
adacos_loss = jax.jit(adacos.adacos_loss)
margin_loss = jax.jit(margin.margin_loss, static_argnames=("kind", "margin", "scale"))
class_cosines = jax.jit(margin.class_cosines)

ROWS, WIDTH, COUNTS = 6, 5, (3, 1, 2)
LOSSES = [
    Margin("arcface", 0.3, 12.0, subcenters=3),
    AdaCos(3),
    AdaCos(3, dynamic=False, trained=False),
    Contrastive(0.1),
]
every = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def batch():
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    label = rng.integers(0, len(COUNTS), (ROWS, 2)).astype(np.int32)
    part = rng.uniform(0.1, 0.9, ROWS).astype(np.float32)
    return embedding, label, np.stack([part, 1 - part], 1)


def head(loss, train=True, seed=0):
    return loss.head(WIDTH, COUNTS, train=train, rngs=nnx.Rngs(seed))


@jax.jit
def called(graph, state, embedding, label, weight):
    """Return what a head gives for a batch, and its values behind it."""
    module = nnx.merge(graph, state)
    return module(embedding, label, weight), nnx.state(module)


def test_all_losses_are_here():
    assert {type(loss) for loss in LOSSES} == set(get_args(Loss))


@every
def test_a_head_gives_a_loss_for_each_clip_and_a_cosine_for_each_class(loss):
    graph, state = nnx.split(head(loss))
    (values, cosine), _ = called(graph, state, *batch())
    assert (values.shape, values.dtype) == ((ROWS,), np.float32)
    assert np.isfinite(values).all()
    if not loss.has_classes:
        assert cosine is None
        assert not jax.tree.leaves(state)
        return
    own = class_cosines(cosines(batch()[0], state["centers"][...]), np.array(COUNTS))
    # 3e-7: float32 cosines, compiled otherwise.
    np.testing.assert_allclose(cosine, own, rtol=0, atol=3e-7)


@every
def test_only_centers_that_train_are_parameters_and_names_are_the_same_for_use(loss):
    names = {"centers"} | ({"scale"} if isinstance(loss, AdaCos) else set())
    states = [nnx.state(head(loss, train)) for train in (True, False)]
    trained = nnx.state(head(loss), nnx.Param)
    for state in states:
        assert set(state) == (names if loss.has_classes else set())
    assert set(trained) == ({"centers"} if getattr(loss, "trained", loss.has_classes) else set())


@pytest.mark.parametrize("loss", LOSSES[:3], ids=repr)
def test_centers_are_drawn_by_seed_and_of_length_about_one(loss):
    centers = [np.asarray(head(loss, seed=seed).centers[...]) for seed in (0, 0, 1)]
    assert centers[0].shape == (len(COUNTS), max(COUNTS), WIDTH)
    np.testing.assert_array_equal(centers[0], centers[1])
    assert (centers[0] != centers[2]).all()
    wide = loss.head(400, COUNTS, train=True, rngs=nnx.Rngs(0)).centers[...]
    # 0.2: the length of 400 normal values of deviation 1/20 deviates by 0.035 itself.
    np.testing.assert_allclose(np.linalg.norm(wide, axis=-1), 1, rtol=0, atol=0.2)


def test_a_head_computes_its_loss_with_its_own_constants():
    embedding, label, weight = batch()
    for loss in LOSSES[:3]:
        module = head(loss, train=False)
        (values, _), _ = called(*nnx.split(module), embedding, label, weight)
        given = embedding, module.centers[...], label, weight
        if isinstance(loss, Margin):
            constants = {"kind": "arcface", "margin": 0.3, "scale": 12.0}
            want, _ = margin_loss(*given, **constants, counts=np.array(COUNTS))
        else:
            want, _ = adacos_loss(*given, scale=initial_scale(6), counts=np.array(COUNTS))
        np.testing.assert_allclose(values, want, rtol=1e-5)  # float32, compiled otherwise


@pytest.mark.parametrize("train", [True, False])
def test_only_a_dynamic_scale_follows_the_batch_and_only_in_training(train):
    embedding, label, weight = batch()
    for loss in LOSSES[1:3]:
        module = head(loss, train)
        expected = before = initial_scale(6)
        if train and loss.dynamic:
            cosine = cosines(embedding, module.centers[...])
            expected = next_scale(cosine, label, weight, before, np.array(COUNTS))
            assert abs(expected - before) > 0.05, "far more than rounding"
        _, after = called(*nnx.split(module), embedding, label, weight)
        np.testing.assert_allclose(after["scale"][...], expected, rtol=1e-5)  # float32


def test_centers_of_classes_with_and_without_attributes():
    without = np.array([True, False, True])
    for loss, counts in [
        (Margin(), [1, 1, 1]),
        (Margin(subcenters=3), [3, 3, 3]),
        (Margin(subcenters=2, subcenters_without_attributes=5), [5, 2, 5]),
        (AdaCos(4), [4, 4, 4]),
    ]:
        np.testing.assert_array_equal(loss.center_counts(without), counts)
