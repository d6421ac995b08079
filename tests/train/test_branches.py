"""Two branches that learn together: the multi-backpropagation of Lv et al. 2024, section 2.3.

The report passes each branch's weighted loss back through that branch, then the joint loss through
both. Here these passes are made one after the other, each from the branches it needs alone, and
compared with the one backward pass of the training step.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trainings import architecture

from asdjax.devices import copied, data_mesh
from asdjax.frontend.augment import Augment
from asdjax.losses.margin import Margin, margin_loss
from asdjax.models.backbone import Backbone, abstract
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.models.system import Architecture, Input, Parts, Task
from asdjax.models.weights_file import merge
from asdjax.train.batches import Batch
from asdjax.train.config import HeadConfig, Train
from asdjax.train.loop import start
from asdjax.train.optimizer import Optimizer, Schedule, make_optimizer
from asdjax.train.plan import make_plan
from asdjax.train.step import Augmented, TrainState, _augmented, make_front_ends, make_step
from asdjax.types import Clip

STRUCTURES = [
    BeatsConfig(
        input_patch_size=16,
        embed_dim=16,
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=48,
        encoder_attention_heads=2,
        conv_pos=8,
        conv_pos_groups=2,
    ),
    EatConfig(embed_dim=16, depth=1, num_heads=2, max_length=8),
]
LONG, SAMPLES = 8000, 5600  # of a row and of a training clip: 33 frames
LORA = {"adapter": Lora(rank=2, alpha=2.0), "dropout": False}
WIDTH = {"embedding": 8}
DUAL = (Pretrained("", **LORA, **WIDTH), Pretrained("", **LORA, pooling="mean", **WIDTH))
ARCFACE = Margin("arcface", margin=0.3, scale=12.0)
JOINT = HeadConfig(ARCFACE, "machine", weight=0.9)
BOTH = HeadConfig(ARCFACE, "machine", weight=0.9, branch_weights=(0.5, 0.3))
AUGMENT = Augment(mask=40, mask_probability=0.8, mixup=0.7, crop="random", shift=True)
BRANCHES = 0, 1
WHOLE = None  # what a joint loss sees


def tasks(head: HeadConfig) -> tuple[Task, ...]:
    """Return the tasks of three machines."""
    clips = [
        Clip(Path(f"{m}/{i}.wav"), m, "section_00", "train", "source", 0)
        for m in ("fan", "pump", "valve")
        for i in range(2)
    ]
    return make_plan(Train(batch=2, heads=(head,)), clips).tasks


def random(shapes, seed):
    """Return large weights, so that everything has an effect; variances above 0."""
    draw = np.random.default_rng(seed).standard_normal
    found = {n: 0.3 * draw(x.shape) for n, x in shapes.items()}
    return {
        n: jnp.asarray(1 + abs(x) if n.endswith(".var") else x, jnp.float32)
        for n, x in found.items()
    }


def system(encoders, tasks=(), some=slice(None)) -> Architecture:
    """Return the system with random weights, which no test uses: all give theirs."""
    made = [Backbone(one, random(abstract(one)[1], 3)) for one in STRUCTURES[some]]
    return architecture(encoders, made, tasks)


def batch():
    rng = np.random.default_rng(1)
    wave = rng.standard_normal((4, LONG)) * np.linspace(500, 3000, 4)[:, None]
    lengths = np.array([LONG, LONG, 3000, 3000], np.int32)
    wave *= np.arange(LONG)[None] < lengths[:, None]
    return Batch(wave.astype(np.int16), lengths, rng.integers(0, 3, (4, 1)).astype(np.int32))


class Made(NamedTuple):
    parts: Parts
    state: TrainState
    frozen: dict
    given: Augmented  # of the step
    gradient: dict  # of the step


@pytest.fixture(scope="module")
def made() -> Made:
    """Return the system, and what one training step was given and got as its gradient."""
    dual = system(DUAL, tasks(BOTH))
    parts = dual.parts(train=True)
    assert not parts.keys
    how = Train(steps=10, batch=4, heads=(BOTH,), augment=AUGMENT)
    keeping = optax.GradientTransformation(lambda p: p, lambda g, state, p: (g, g))
    state = start(random(parts.statistics, 0), random(parts.trainable, 1), keeping, how)
    state = jax.device_put(state, copied(data_mesh()))
    frozen = jax.device_put(random(parts.frozen, 2), copied(data_mesh()))
    front_ends = make_front_ends(dual.networks, data_mesh(), padded=True)
    augment_key, _ = jax.random.split(jax.random.fold_in(state.key, state.step))
    augmented = partial(_augmented, front_ends=front_ends.apply, how=AUGMENT, samples=SAMPLES)
    given = jax.jit(augmented)(batch(), key=augment_key)
    step = make_step(parts, front_ends, lambda _, sent: Batch(*sent), how, keeping, SAMPLES)
    after, _ = step(jax.tree.map(jnp.copy, state), frozen, (), tuple(batch()))
    return Made(parts, state, frozen, given, jax.device_get(after.optimizer))


@pytest.fixture(scope="module")
def pass_gradient(made):
    """Return `gradient(trainable, branch)` of one of the three losses, each compiled by itself."""

    def loss(trainable, branch):
        system = merge(made.parts.graph, made.state.statistics, trainable, made.frozen)
        chosen = BRANCHES if branch is WHOLE else [branch]
        embedding = jnp.concatenate([system.branches[i](made.given.inputs[i]) for i in chosen], -1)
        centers = trainable[f"heads.{0 if branch is WHOLE else 1 + branch}.centers"]
        label = made.given.label[:, 0]
        settings = {"kind": "arcface", "margin": 0.3, "scale": 12.0}
        each, _ = margin_loss(embedding, centers, label, made.given.weight, **settings)
        return {0: 0.5, 1: 0.3, WHOLE: 0.9}[branch] * each.mean()

    compiled = jax.jit(jax.grad(loss), static_argnums=1)
    return lambda trainable, branch: jax.device_get(compiled(trainable, branch))


@pytest.fixture(scope="module")
def passes(made, pass_gradient):
    """Return the gradients of branch 0, branch 1 and the whole at the same weights."""
    return [pass_gradient(made.state.trainable, branch) for branch in (*BRANCHES, WHOLE)]


def added(passes):
    return jax.tree.map(lambda *x: np.sum(x, 0), *passes)


def norm(tree) -> float:
    return float(optax.tree.norm(tree))


def distance(one, other) -> float:
    """Return how far two trees are apart, in parts of the second."""
    return norm(jax.tree.map(np.subtract, one, other)) / norm(other)


# One backward pass, and one after the other


def test_one_backward_pass_is_the_sum_of_those_made_one_after_the_other(made, passes):
    expected = added(passes)
    assert expected.keys() == made.gradient.keys()
    largest = max(np.abs(x).max() for x in expected.values())
    for name, value in expected.items():
        # float32: sums in another order, and over each device's rows first; 1e-5 at worst. What
        # cancels in a softmax is rounding of larger sums.
        atol = 1e-4 * np.abs(value).max() + 6e-7 * largest
        np.testing.assert_allclose(made.gradient[name], value, rtol=0, atol=atol, err_msg=name)


def test_every_pass_matters(passes):
    """Else a step that forgot one of them would pass the test above."""
    for i in range(3):
        assert distance(added(passes[:i] + passes[i + 1 :]), added(passes)) > 0.01


def test_a_branch_learns_nothing_from_the_loss_of_the_other(made, passes):
    for branch, gradient in zip(BRANCHES, passes, strict=False):
        own = f"branches.{branch}.", f"heads.{1 + branch}."
        for name, value in gradient.items():
            assert np.any(value) == name.startswith(own), name


def test_an_update_between_the_passes_gives_other_weights(made, pass_gradient, passes):
    optimizer = make_optimizer(
        Optimizer("adam", Schedule("constant", peak=1e-4)), made.parts.trainable, steps=3
    )

    @jax.jit
    def updated(gradient, state, weight):
        change, state = optimizer.update(gradient, state, weight)
        return optax.apply_updates(weight, change), state

    def after(gradients):
        weight, state = made.state.trainable, optimizer.init(made.state.trainable)
        for gradient in gradients:
            gradient = gradient(weight) if callable(gradient) else gradient
            weight, state = updated(gradient, state, weight)
        return jax.tree.map(np.subtract, weight, made.state.trainable)

    between = after([partial(pass_gradient, branch=b) for b in (*BRANCHES, WHOLE)])
    # Rounding of a weight of 1 is 1e-3 of a change of 1e-4. One update of three passes moves as far
    # as one of one pass (Adam), three updates up to three times as far.
    assert distance(between, after([added(passes)])) > 0.2


def test_clipping_each_pass_gives_another_gradient(passes):
    clip = optax.clip_by_global_norm(0.5 * min(map(norm, passes)))

    def clipped(gradient):
        return clip.update(gradient, None)[0]

    one, each = clipped(added(passes)), added([clipped(x) for x in passes])
    each = jax.tree.map(lambda x: x * norm(one) / norm(each), each)  # compare directions
    assert distance(each, one) > 0.02  # rounding is 1e-6


# Without losses of branches


def test_without_weights_of_branches_there_are_joint_heads_alone():
    def heads(head):
        trainable = system(DUAL, tasks(head)).parts(train=True).trainable
        return {n: x.shape for n, x in trainable.items() if n.startswith("heads")}

    assert heads(JOINT) == {"heads.0.centers": (3, 1, 16)}
    own = {f"heads.{i}.centers": (3, 1, 8) for i in (1, 2)}
    assert heads(BOTH) == {"heads.0.centers": (3, 1, 16)} | own


def test_the_embedding_is_what_each_branch_gives_alone_concatenated(made):
    together = embedding(made, slice(None), "branches.")
    for i in BRANCHES:
        alone = embedding(made, slice(i, i + 1), f"branches.{i}.")
        part = together[:, 8 * i : 8 * i + 8]
        # The same computation, compiled in another program: rounding of values of about 1.
        np.testing.assert_allclose(part, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def embedding(made, some, prefix):
    """Return the embedding of some branches, with the weights whose names begin with `prefix`."""
    parts = system(DUAL[some], some=some).parts(train=False)
    here = "branches." if prefix == "branches." else "branches.0."
    given = made.state.statistics | made.state.trainable | made.frozen
    given = {here + n.removeprefix(prefix): x for n, x in given.items() if n.startswith(prefix)}
    weights = [{n: given[n] for n in part} for part in parts[2:]]
    return np.asarray(
        jax.jit(lambda x, w: merge(parts.graph, *w)(x))(made.given.inputs[some], weights)
    )


# What the branches are given


def augmented(how):
    """Return what two branches get whose front ends give the wave, and ten times the wave."""

    def front_ends(wave, lengths):
        mel = wave.astype(jnp.float32).reshape(len(wave), -1, 4)
        return Input(mel), Input(10 * mel)

    rng = np.random.default_rng(3)
    label = np.arange(4, dtype=np.int32)[:, None]
    sent = Batch(rng.integers(1, 1000, (4, 64)), np.full(4, 64, np.int32), label)
    key = jax.random.key(0)
    return jax.device_get(_augmented(Batch(*map(jnp.asarray, sent[:3])), front_ends, how, 32, key))


def test_branches_get_the_same_crops_and_mixtures():
    got = augmented(Augment(crop="random", shift=True, mixup=0.8))
    one, other = (x.x for x in got.inputs)
    np.testing.assert_allclose(other, 10 * one, rtol=1e-6)  # rounding of a product
    plain = augmented(Augment(crop="random", shift=True)).inputs[1].x
    own = got.weight[:, :1, None]
    assert (own < 1).any()
    np.testing.assert_allclose(other, own * plain + (1 - own) * plain[::-1], rtol=1e-6)
    np.testing.assert_array_equal(got.label[:, 0], [[0, 3], [1, 2], [2, 1], [3, 0]])


def test_each_branch_has_masks_of_its_own():
    got = augmented(Augment(mask=6, mask_probability=1.0))
    one, other = (x.x for x in got.inputs)
    hidden, elsewhere = one == 0, other == 0
    assert hidden.any()
    assert elsewhere.any()
    assert (hidden != elsewhere).any()
    seen = ~hidden & ~elsewhere
    assert seen.any()
    np.testing.assert_allclose(other[seen], 10 * one[seen], rtol=1e-6)  # the same clips
