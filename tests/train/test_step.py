"""One training step: its numbers against a naive composition, and what may change what.

The model is as small as BEATs gets and its weights are large, so that everything has an effect.
`test_parity.py` compares the gradients of the whole step with PyTorch, `test_step_clips.py` shows
what is done to the clips.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from machines import one_encoder, tiny_beats
from trainings import architecture

from asdjax.devices import copied, data_mesh, split
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos, adacos_loss, next_scale
from asdjax.losses.margin import Margin, cosines, margin_loss
from asdjax.models.backbone import Backbone, abstract
from asdjax.models.lora import Lora
from asdjax.models.system import Architecture, Network, Parts, Task
from asdjax.models.weights_file import merge
from asdjax.train.batches import Batch
from asdjax.train.config import HeadConfig, Train
from asdjax.train.loop import start
from asdjax.train.optimizer import Optimizer, Schedule, make_optimizer
from asdjax.train.step import (
    Augmented,
    classify,
    make_front_ends,
    make_step,
    make_validate,
)

STRUCTURE = replace(tiny_beats(), encoder_layerdrop=0.1)
LONG, SAMPLES = 8000, 5600  # of a row and of a training clip: 33 frames, two patches of time
EVERYWHERE = Lora(rank=2, alpha=2.0, targets=("q", "k", "v", "out", "fc1", "fc2"))
PLAIN = one_encoder("", EVERYWHERE, "mean", embedding=8, dropout=False)
ARCFACE = HeadConfig(Margin("arcface", 0.3, 12.0, subcenters=2), "machine")
CLASSES = 3
TRAIN = Train(
    steps=10, batch=4, heads=(ARCFACE,), optimizer=Optimizer(schedule=Schedule(peak=0.01))
)
RANDOM = Augment(mask=40, mask_probability=0.8, mixup=0.7, crop="random", shift=True)


@pytest.fixture(scope="module")
def backbone():
    draw = np.random.default_rng(0).standard_normal
    shapes = abstract(STRUCTURE)[1]
    weight = {n: jnp.asarray(0.3 * draw(value.shape), jnp.float32) for n, value in shapes.items()}
    return Backbone(STRUCTURE, weight)


def batch(rows=4, heads=1):
    """Return clips of noise of their own loudness, the second half of them short."""
    rng = np.random.default_rng(1)
    wave = rng.standard_normal((rows, LONG)) * np.linspace(500, 3000, rows)[:, None]
    lengths = np.array([LONG] * (rows // 2) + [3000] * (rows - rows // 2), np.int32)
    wave *= np.arange(LONG)[None] < lengths[:, None]
    label = rng.integers(0, CLASSES, (rows, heads)).astype(np.int32)
    return Batch(*jax.device_put((wave.astype(np.int16), lengths, label), split(data_mesh())))


class Built(NamedTuple):
    parts: Parts
    step: object
    begin: object  # () -> a new state
    frozen: dict


def tasks(heads):
    """Return the tasks of heads, every class with all the centers its loss has."""
    return [
        Task(one.loss, tuple(one.loss.center_counts(np.zeros(CLASSES, bool))), i, one.weight)
        for i, one in enumerate(heads)
    ]


def build(backbone, config, how, optimizer=None, seed=0):
    system = architecture(config, [backbone], tasks(how.heads))
    parts = system.parts(train=True)
    if optimizer is None:
        optimizer = recording(make_optimizer(how.optimizer, parts.trainable, how.steps))
    statistics, trainable, frozen = system.initialize(seed)
    front_ends = make_front_ends(system.networks, data_mesh(), padded=True)
    step = make_step(parts, front_ends, lambda store, sent: Batch(*sent), how, optimizer, SAMPLES)

    def begin(seed=how.seed):
        state = start(statistics, trainable, optimizer, replace(how, seed=seed))
        return jax.device_put(state, everywhere)

    everywhere = copied(data_mesh())
    return Built(parts, step, begin, jax.device_put(frozen, everywhere))


def recording(optimizer):
    """Return the optimizer with the last gradient in its state as well."""

    def update(gradient, state, trainable):
        change, inner = optimizer.update(gradient, state[0], trainable)
        return change, (inner, gradient)

    return optax.GradientTransformation(lambda p: (optimizer.init(p), p), update)


def first(built, seed=0, step=0):
    """Return the host's copy of the state after one step, and its metrics."""
    state = built.begin(seed)._replace(step=jnp.int32(step))
    return jax.device_get(built.step(state, built.frozen, (), tuple(batch())))


def products(built):
    given = built.begin(), built.frozen, (), tuple(batch())
    return str(built.step.trace(*given).jaxpr).count("dot_general")


# The numbers of a plain step


@pytest.fixture(scope="module")
def plain(backbone):
    return build(backbone, PLAIN, TRAIN)


@pytest.fixture(scope="module")
def stepped(plain):
    return first(plain)


def naive_embedding(backbone, weight, batch):
    """Return `[B, E]`: the mean of the backbone's real tokens through the dense layer.

    Adapters do nothing yet: their second factors start at 0.
    """
    lengths = np.minimum(batch.lengths, SAMPLES)
    tokens = np.float64(backbone(batch.wave[:, :SAMPLES], lengths))
    padding = np.asarray(backbone.token_padding(SAMPLES, lengths))
    means = [row[~hidden].mean(0) for row, hidden in zip(tokens, padding, strict=True)]
    return np.stack(means) @ np.float64(weight["branches.0.project.kernel"]) + np.float64(
        weight["branches.0.project.bias"]
    )


def naive_arcface(embedding, centers, label):
    """Return the mean loss and the class cosines: the angle of the true class grows by 0.3."""
    e, c = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (embedding, np.float64(centers)))
    cosine = np.einsum("be,cke->bck", e, c).max(2)
    total = 0.0
    for row, true in zip(cosine, label, strict=True):
        logits = 12.0 * row
        logits[true] = 12.0 * np.cos(np.arccos(row[true]) + 0.3)
        total += np.log(np.exp(logits).sum()) - logits[true]
    return total / len(label), cosine


def test_loss_accuracy_and_norms_are_those_of_the_parts(backbone, plain, stepped):
    _, metrics = stepped
    weight, given = plain.begin().trainable, batch()
    embedding = naive_embedding(backbone, weight, given)
    label = np.asarray(given.label)[:, 0]
    loss, cosine = naive_arcface(embedding, weight["heads.0.centers"], label)
    assert metrics.keys() == {"loss", "accuracy", "embedding_norm", "gradient_norm"}
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)  # float32, scale 12
    np.testing.assert_allclose(
        metrics["embedding_norm"], np.linalg.norm(embedding, axis=1).mean(), rtol=1e-5
    )
    assert metrics["accuracy"] == (cosine.argmax(1) == label).mean()
    assert {value.dtype for value in metrics.values()} == {np.dtype("float32")}


def test_the_gradient_is_the_slope_of_the_naive_loss(backbone, plain, stepped):
    gradient, given = stepped[0].optimizer[1], batch()
    label = np.asarray(given.label)[:, 0]
    weight = {n: np.float64(v) for n, v in plain.begin().trainable.items() if "backbone" not in n}
    size = 1e-5  # of the step to both sides: the error of the slope is its square

    def loss(name, place, change):
        moved = {**weight, name: weight[name].copy()}
        moved[name][place] += change
        embedding = naive_embedding(backbone, moved, given)
        return naive_arcface(embedding, moved["heads.0.centers"], label)[0]

    for name, place in (("branches.0.project.kernel", (3, 1)), ("branches.0.project.bias", (2,))):
        slope = (loss(name, place, size) - loss(name, place, -size)) / (2 * size)
        largest = np.abs(gradient[name]).max()
        np.testing.assert_allclose(gradient[name][place], slope, rtol=0, atol=1e-4 * largest)
    norms = [np.linalg.norm(g) for g in gradient.values()]
    np.testing.assert_allclose(stepped[1]["gradient_norm"], np.linalg.norm(norms), rtol=1e-5)


def test_a_step_counts_and_keeps_its_key(plain, stepped):
    begun, (state, _) = plain.begin(), stepped
    assert state.step == 1
    key, same = (jax.random.key_data(x.key) for x in (begun, state))
    np.testing.assert_array_equal(key, same)
    for name, value in begun.trainable.items():
        assert state.trainable[name].dtype == np.float32
        assert (value != state.trainable[name]).any(), name
    assert state.average == {}


# Precision and memory


def cosine_of(one, other):
    """Return the cosine between two gradients over all weights."""
    a, b = (np.concatenate([np.ravel(g[n]) for n in sorted(one)]) for g in (one, other))
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_bfloat16_is_float32_with_noise(backbone, stepped):
    built = build(
        backbone,
        one_encoder("", EVERYWHERE, "mean", embedding=8, dropout=False, dtype="bfloat16"),
        TRAIN,
    )
    state, metrics = first(built)
    expected, plain_metrics = stepped
    assert metrics["loss"] != plain_metrics["loss"]
    # bfloat16 has 8 bits: products of a few layers come out within some per cent
    np.testing.assert_allclose(metrics["loss"], plain_metrics["loss"], rtol=0.05)
    assert cosine_of(state.optimizer[1], expected.optimizer[1]) > 0.99
    kept = (state.trainable, state.optimizer)
    assert {x.dtype for x in jax.tree.leaves(kept) if x.ndim} == {np.dtype("float32")}


# Randomness

DROPPING = one_encoder("", EVERYWHERE, "mean", embedding=8)


@pytest.fixture(scope="module")
def dropping(backbone):
    return build(backbone, DROPPING, TRAIN)


@pytest.fixture(scope="module")
def dropped(dropping):
    return first(dropping)


def same(one, other):
    return all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def losses(built):
    """Return the loss of the first step, of the same again, of another seed and another step."""
    return [float(first(built, *other)[1]["loss"]) for other in ((0, 0), (0, 0), (1, 0), (0, 1))]


def test_dropout_is_a_function_of_seed_and_step(dropping, dropped, stepped):
    once, again, of_seed, of_step = losses(dropping)
    assert once == again
    assert len({once, of_seed, of_step, float(stepped[1]["loss"])}) == 4
    assert same(first(dropping)[0].trainable, dropped[0].trainable)


def test_what_is_done_to_clips_is_a_function_of_seed_and_step(backbone, stepped):
    once, again, of_seed, of_step = losses(build(backbone, PLAIN, replace(TRAIN, augment=RANDOM)))
    assert once == again
    assert len({once, of_seed, of_step, float(stepped[1]["loss"])}) == 4


@pytest.mark.parametrize("remat", ["hidden", "layers"])
def test_computing_layers_again_gives_the_same_gradient(backbone, dropped, remat):
    """The second time a layer is computed it drops the same values."""
    how = {"embedding": 8, "remat": remat}
    built = build(backbone, one_encoder("", EVERYWHERE, "mean", **how), TRAIN)
    once = build(backbone, one_encoder("", EVERYWHERE, "mean", **how | {"remat": "nothing"}), TRAIN)
    assert products(built) > products(once)  # those of the forward pass, again
    state, metrics = first(built)
    np.testing.assert_allclose(metrics["loss"], dropped[1]["loss"], rtol=1e-5)  # float32
    ours, expected = state.optimizer[1], dropped[0].optimizer[1]
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        # float32 rounding of sums compiled in another order, some of which cancel
        atol = 1e-4 * np.abs(gradient).max() + 1e-6 * largest
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=atol, err_msg=name)


def test_validation_draws_nothing(backbone, plain):
    """Its numbers are the naive ones, whatever training does to clips and values."""
    weight, given = plain.begin().trainable, batch()
    system = architecture(DROPPING, [backbone], tasks(TRAIN.heads))
    front_ends = make_front_ends(system.networks, data_mesh(), padded=True)
    used = system.parts(train=False)
    validate = make_validate(used, front_ends, lambda store, sent: Batch(*sent), SAMPLES)
    right, unit = validate(weight, {}, plain.frozen, (), tuple(given))
    embedding = naive_embedding(backbone, weight, given)
    _, cosine = naive_arcface(embedding, weight["heads.0.centers"], np.zeros(4, int))
    np.testing.assert_array_equal(right, cosine.argmax(1) == np.asarray(given.label)[:, 0])
    expected = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected, rtol=0, atol=1e-5)  # float32


# Accumulation and the moving average


@pytest.fixture(scope="module")
def halves(backbone):
    """Return the states before and after four passes of half a batch: two updates of -g / 10."""
    how = replace(TRAIN, batch=2, accumulate=2, ema=0.15, ema_ramp=True)
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    built = build(backbone, PLAIN, how, optimizer)
    states, state = [], built.begin()
    parts = [tuple(np.asarray(x)[rows] for x in batch()[:3]) for rows in (slice(0, 2), slice(2, 4))]
    for part in jax.device_put(parts * 2, split(data_mesh())):
        states.append(jax.device_get(state))
        state, _ = built.step(state, built.frozen, (), part)
    return [*states, jax.device_get(state)]


def test_two_halves_are_one_batch(halves, stepped):
    gradient = stepped[0].optimizer[1]
    assert same(halves[0].trainable, halves[1].trainable)
    for name, before in halves[0].trainable.items():
        expected = -0.1 * gradient[name]
        # float32 rounding of the gradient (see test_parity) and of the weights it is taken from
        atol = 1e-4 * np.abs(expected).max() + 1e-6
        moved = halves[2].trainable[name] - before
        np.testing.assert_allclose(moved, expected, rtol=0, atol=atol, err_msg=name)


def averaged(before, after, decay):
    """Return the averages that follow, of weights and statistics."""
    values = after.trainable | after.statistics
    return {n: decay * value + (1 - decay) * values[n] for n, value in before.average.items()}


def test_the_average_follows_updates_not_passes(halves):
    """With a ramp update n keeps n / (9 + n) of the average, but no more than `ema`."""
    begun, waited, updated, waiting, again = halves
    assert same(begun.average, begun.trainable)
    assert same(waited.average, begun.average)
    assert same(waiting.average, updated.average)
    for before, after, decay in ((begun, updated, 0.1), (waiting, again, 0.15)):
        assert not same(after.trainable, before.trainable)
        for name, expected in averaged(before, after, decay).items():
            np.testing.assert_allclose(
                after.average[name], expected, rtol=1e-5, atol=1e-7
            )  # float32


# Heads, statistics, frozen weights

HEADS = (
    replace(ARCFACE, weight=0.5),
    HeadConfig(AdaCos(2), "attributes", 2.0),
    HeadConfig(AdaCos(2, dynamic=False, trained=False), "machine", 1.0),
)


class Nothing(nnx.Module):
    """An encoder that is its front end."""

    def __call__(self, given):
        return given.x


@jax.jit
def classified(centers, scale, embedding, label, weight):
    """Return loss and accuracy of three heads, and the scale of the second after it."""
    network = Network(lambda wave, lengths: None, lambda **how: Nothing(), width=8)
    system = Architecture((network,), tuple(tasks(HEADS)))
    values = {f"heads.{i}.centers": centers[i] for i in range(3)}
    scales = {"heads.1.scale": scale, "heads.2.scale": scale}
    system = merge(system.parts(train=True).graph, values | scales)
    loss, accuracy = classify(system, embedding, Augmented((), label, weight))
    return loss, accuracy, system.heads[1].scale[...]


@jax.jit
def one_by_one(centers, scale, embedding, label, weight):
    """Return the weighted sum of the losses, the scale that follows, and the cosines to centers."""
    cosine = [cosines(embedding, each) for each in centers]
    followed = next_scale(cosine[1], label[:, 1], weight, scale)
    constants = {"kind": "arcface", "margin": 0.3, "scale": 12.0}
    one, _ = margin_loss(embedding, centers[0], label[:, 0], weight, **constants)
    two, _ = adacos_loss(embedding, centers[1], label[:, 1], weight, scale=followed)
    three, _ = adacos_loss(embedding, centers[2], label[:, 2], weight, scale=scale)
    return 0.5 * one.mean() + 2.0 * two.mean() + 1.0 * three.mean(), followed, cosine


def test_the_loss_is_the_weighted_sum_over_heads():
    rng = np.random.default_rng(0)
    centers, embedding = rng.standard_normal((3, CLASSES, 2, 8)), rng.standard_normal((4, 8))
    label = rng.integers(0, CLASSES, (4, 3, 2))
    weight = np.array([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5], [0.9, 0.1]])
    given = *map(np.float32, (centers, 3.0, embedding)), label, np.float32(weight)
    loss, accuracy, scale = classified(*given)
    expected, followed, cosine = one_by_one(*given)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)  # float32
    np.testing.assert_allclose(scale, followed, rtol=1e-5)
    assert abs(scale - 3.0) > 0.1
    most = np.take_along_axis(label, weight.argmax(1)[:, None, None], 2)[..., 0]
    right = [np.asarray(c).max(2).argmax(1) == most[:, i] for i, c in enumerate(cosine)]
    np.testing.assert_allclose(accuracy, np.mean(right), rtol=1e-6)


@pytest.fixture(scope="module")
def three_heads(backbone):
    """Return LoRA with three heads: the states of two steps, frozen weights now and before."""
    adapter = Lora(rank=2, alpha=2.0, targets=("q",))
    config = one_encoder("", adapter, "statistics", embedding=8, dropout=False)
    how = replace(TRAIN, heads=HEADS, ema=0.15)
    parts = architecture(config, [backbone], tasks(HEADS)).parts(train=True)
    optimizer = make_optimizer(how.optimizer, parts.trainable, how.steps)
    built = build(backbone, config, how, optimizer, seed=3)  # some units of the pooling are not 0
    state, frozen = built.begin(), jax.tree.map(np.array, built.frozen)
    states = [jax.device_get(state)]
    for _ in range(2):  # in the first the second factor of an adapter is 0, and with it a gradient
        state, metrics = built.step(state, built.frozen, (), tuple(batch(heads=3)))
        states.append(jax.device_get(state))
    assert np.isfinite(metrics["loss"])
    return states, built.frozen, frozen


def test_adapters_pooling_and_heads_train_and_the_rest_stays(three_heads):
    (before, _, after), frozen, as_it_was = three_heads
    assert {n.removeprefix("branches.0.").split(".")[0] for n in after.trainable} == {
        "backbone",
        "pool",
        "project",
        "heads",
    }
    assert [n for n in after.trainable if "backbone" in n] == [
        "branches.0.backbone.layers.0.attn.q.lora_a",
        "branches.0.backbone.layers.0.attn.q.lora_b",
    ]
    for name, value in after.trainable.items():
        assert (value != before.trainable[name]).any(), name
    assert same(frozen, as_it_was)


def test_statistics_move_and_fixed_centers_never_do(three_heads):
    (before, _, after), *_ = three_heads
    moved = {n for n, value in after.statistics.items() if (value != before.statistics[n]).any()}
    norms = {f"branches.0.pool.{n}.{v}" for n in ("hidden_norm", "norm") for v in ("mean", "var")}
    assert moved == norms | {"heads.1.scale"}
    assert after.statistics.keys() - moved == {"heads.2.scale", "heads.2.centers"}
    assert "heads.1.centers" in after.trainable


def test_the_average_holds_statistics_too(three_heads):
    (begun, updated, again), *_ = three_heads
    assert begun.average.keys() == begun.trainable.keys() | begun.statistics.keys()
    for before, after, decay in ((begun, updated, 0.15), (updated, again, 0.15)):
        for name, expected in averaged(before, after, decay).items():
            np.testing.assert_allclose(
                after.average[name], expected, rtol=1e-5, atol=1e-6
            )  # float32
