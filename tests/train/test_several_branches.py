"""What several branches must not change: the rates of each one's layers, and the accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.losses.margin import Margin
from asdjax.models.heads import Head, Task
from asdjax.models.system import STATISTICS, Parts
from asdjax.params import split
from asdjax.train.optimizer import layer_factors
from asdjax.train.step import Batch, Heard, classify, make_validate


def test_layers_of_each_branch_count_from_their_own_top():
    layers = {0: 12, 1: 3}
    names = {
        f"branches.{b}.backbone.layers.{i}.fc1.kernel": n - i
        for b, n in layers.items()
        for i in range(n)
    }
    names |= {f"branches.{b}.backbone.patch_embed.kernel": n + 1 for b, n in layers.items()}
    names |= {f"branches.{b}.project.kernel": 0 for b in layers}
    names |= {"heads.0.centers": 0}
    for order in (list(names), list(names)[::-1]):
        assert layer_factors(order, 0.5) == {name: 0.5 ** names[name] for name in order}


AXES = np.eye(2, dtype=np.float32)  # a class on each axis
CENTERS = {None: np.concatenate([AXES, AXES], 1), 0: AXES, 1: AXES}  # by what a head sees
LABEL = np.array([0, 1, 0, 1])


class Given(nnx.Module):
    """A system of two branches whose inputs are its embedding; its heads have known centers."""

    def __init__(self, heads: dict[int | None, bool]):
        """Make heads by what they see; those that are False take each class for the other."""
        made = []
        for seen, right in heads.items():
            centers = CENTERS[seen] if right else CENTERS[seen][::-1]
            task = Task(Margin("softmax", 0.0, 10.0), np.ones(2, int), branch=seen)
            first = 2 * (seen or 0)
            part = slice(first, first + centers.shape[1])
            head = Head(task, part, train=False, rngs=nnx.Rngs(0))
            head.centers[...] = jnp.asarray(centers[:, None])
            made.append(head)
        self.heads = nnx.List(made)

    def __call__(self, inputs):
        return inputs


EMBEDDING = np.concatenate([AXES[LABEL], AXES[LABEL]], 1)
SYSTEMS = [
    ({None: True, 0: False, 1: False}, 1.0),
    ({None: False, 0: True, 1: True}, 0.0),
    ({0: True, None: False, 1: True}, 0.0),  # wherever the head of both stands
]


@pytest.mark.parametrize(("heads", "accuracy"), SYSTEMS)
def test_heads_of_single_branches_have_no_part_in_the_accuracy(heads, accuracy):
    heard = Heard((), jnp.asarray(LABEL[:, None, None]), jnp.ones((4, 1)))
    system = Given(heads)
    loss, got = classify(system, jnp.asarray(EMBEDDING), heard)
    assert got == accuracy
    # But in the loss: log(1 + e^-d) of a class that leads by d = 10, or -10 if it is behind.
    each = [np.log1p(np.exp(-10.0 if right else 10.0)) for right in heads.values()]
    np.testing.assert_allclose(loss, sum(each), rtol=1e-4)  # float32


@pytest.mark.parametrize(("heads", "accuracy"), SYSTEMS)
def test_heads_of_single_branches_have_no_part_in_validation(heads, accuracy):
    graph, statistics, trainable, _ = split(Given(heads), STATISTICS, nnx.Param)
    parts = Parts(graph, {}, {}, {}, {})
    lengths = np.full(4, EMBEDDING.shape[1])
    batch = Batch(*map(jnp.asarray, (EMBEDDING, lengths, LABEL[:, None])))
    validate = make_validate(parts, lambda wave, _: wave, lambda _, sent: sent, samples=4)
    right, unit = jax.device_get(validate(trainable, statistics, {}, (), batch))
    np.testing.assert_array_equal(right, np.full(4, accuracy))
    np.testing.assert_allclose(unit, EMBEDDING / np.sqrt(2), rtol=1e-6)  # float32
