"""What several branches must not change: the rates of each one's layers, and the accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asdjax.devices import data_mesh
from asdjax.losses.margin import Margin
from asdjax.models.system import STATISTICS, Architecture, Network, Parts, System, Task
from asdjax.models.weights_file import split
from asdjax.train.batches import Batch
from asdjax.train.optimizer import layer_factors
from asdjax.train.step import Augmented, FrontEnds, classify, make_validate


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


class Nothing(nnx.Module):
    """An encoder that gives what it gets."""

    def __call__(self, given):
        return given


def made(heads: dict[int | None, bool]) -> System:
    """Return two branches whose inputs are their embeddings, and heads with known centers.

    Args:
      heads: by what they see; those that are False take each class for the other.
    """
    network = Network(lambda wave, lengths: None, lambda **how: Nothing(), width=2)
    tasks = tuple(Task(Margin("softmax", 0.0, 10.0), (1, 1), branch=seen) for seen in heads)
    system = System(Architecture((network, network), tasks), train=False, rngs=nnx.Rngs(0))
    for head, (seen, right) in zip(system.heads, heads.items(), strict=True):
        centers = CENTERS[seen] if right else CENTERS[seen][::-1]
        head.centers[...] = jnp.asarray(centers[:, None])
    return system


EMBEDDING = np.concatenate([AXES[LABEL], AXES[LABEL]], 1)
SYSTEMS = [
    ({None: True, 0: False, 1: False}, 1.0),
    ({None: False, 0: True, 1: True}, 0.0),
    ({0: True, None: False, 1: True}, 0.0),  # wherever the head of both stands
]


@pytest.mark.parametrize(("heads", "accuracy"), SYSTEMS)
def test_heads_of_single_branches_have_no_part_in_the_accuracy(heads, accuracy):
    given = Augmented((), jnp.asarray(LABEL[:, None, None]), jnp.ones((4, 1)))
    loss, got = classify(made(heads), jnp.asarray(EMBEDDING), given)
    assert got == accuracy
    # But in the loss: log(1 + e^-d) of a class that leads by d = 10, or -10 if it is behind.
    each = [np.log1p(np.exp(-10.0 if right else 10.0)) for right in heads.values()]
    np.testing.assert_allclose(loss, sum(each), rtol=1e-4)  # float32


@pytest.mark.parametrize(("heads", "accuracy"), SYSTEMS)
def test_heads_of_single_branches_have_no_part_in_validation(heads, accuracy):
    graph, statistics, trainable, _ = split(made(heads), STATISTICS, nnx.Param)
    parts = Parts(graph, {}, {}, {}, {})
    lengths = np.full(4, EMBEDDING.shape[1])
    batch = Batch(*map(jnp.asarray, (EMBEDDING, lengths, LABEL[:, None])))

    def front_ends(wave, lengths):
        return wave[:, :2], wave[:, 2:]

    both = FrontEnds(front_ends, data_mesh())
    validate = make_validate(parts, both, lambda _, sent: sent, samples=4)
    right, unit = jax.device_get(validate(trainable, statistics, {}, (), batch))
    np.testing.assert_array_equal(right, np.full(4, accuracy))
    np.testing.assert_allclose(unit, EMBEDDING / np.sqrt(2), rtol=1e-6)  # float32
