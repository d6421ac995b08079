"""A training step against an independent PyTorch computation: tiny BEATs, pooling, ArcFace, AdamW.

`tests/golden/make_finetune.py` made the numbers, in float64. The test runs the step that training
runs, front end included.
"""

import jax
import numpy as np
import optax
import pytest
from machines import one_branch

from asdjax.devices import data_mesh
from asdjax.losses.margin import Margin
from asdjax.models.backbone import Backbone
from asdjax.models.beats import BeatsConfig
from asdjax.models.lora import Lora
from asdjax.models.system import Task, initialize, take_apart
from asdjax.train.config import HeadConfig, Train
from asdjax.train.loop import start
from asdjax.train.optimizer import Optimizer, Schedule, make_optimizer
from asdjax.train.step import Batch, make_hear, make_step
from weights_convert import torch_file
from weights_convert.beats import convert

ADAPTERS = {"lora": Lora(rank=4, alpha=8.0, targets=("q", "v", "out"))}
MARGIN = Margin("arcface", margin=0.5, scale=30.0)
TRAIN = Train(
    steps=10,
    batch=4,
    heads=(HeadConfig(MARGIN),),
    optimizer=Optimizer("adamw", Schedule("constant", peak=1e-4), weight_decay=0.01),
)


@pytest.fixture(scope="module")
def tiny(golden):
    tree = torch_file.read(golden / "beats_tiny.pt")
    config = BeatsConfig.from_checkpoint(tree["cfg"])
    return Backbone(config, convert(tree["model"], config))


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "finetune.npz") as file:
        return dict(file)


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimizer with the last gradient in its state as well."""

    def update(gradient, state, trainable):
        change, inner = optimizer.update(gradient, state[0], trainable)
        return change, (inner, gradient)

    return optax.GradientTransformation(lambda p: (optimizer.init(p), p), update)


@pytest.fixture(scope="module", params=["full", "masked", "lora"])
def ran(request, tiny, arrays):
    """Return the case, the gradients of the first step, ten losses and the state after them."""
    case = request.param
    config = one_branch("", ADAPTERS.get(case), "statistics", embedding=16, dropout=False)
    building = config, [tiny.config], [Task(MARGIN, np.ones(5, int))]
    parts = take_apart(*building, train=True)
    optimizer = recording(make_optimizer(TRAIN.optimizer, parts.trainable, 10, 1, 1))
    statistics, trainable, frozen = initialize(*building, [tiny.params], seed=0)
    stored = {n.removeprefix("start/"): v for n, v in arrays.items() if n.startswith("start/")}
    given = {n: v for n, v in ours(stored).items() if n in trainable}
    assert len(given) == 11 + (18 if case == "lora" else 0)  # head and adapters
    hear = make_hear([tiny.config], data_mesh(), padded=case == "masked")
    step = make_step(parts, hear, lambda store, sent: Batch(*sent), TRAIN, optimizer, 11_200)
    state, gradient, losses = start(statistics, trainable | given, optimizer, TRAIN), None, []
    for _ in range(10):
        state, metrics = step(state, frozen, (), batch_of(case, arrays))
        gradient = gradient or jax.device_get(state.optimizer[1])
        losses.append(float(metrics["loss"]))
    return case, gradient, losses, state


def batch_of(case, arrays):
    whole = np.full(4, arrays["wave"].shape[1], np.int32)
    lengths = arrays["lengths"] if case == "masked" else whole
    return arrays["wave"], lengths, arrays["label"][:, None]


def theirs(case, arrays, tiny):
    """Return the gradients of one case under our names and layouts."""
    found = {
        name.removeprefix(f"{case}/grad/"): value
        for name, value in arrays.items()
        if name.startswith(f"{case}/grad/")
    }
    base = {n: v for n, v in found.items() if n.split(".")[0] not in OURS}
    added = {n: v for n, v in found.items() if n not in base}
    converted = convert(base, tiny.config) if base else {}
    return ours(added) | {f"branches.0.backbone.{n}": v for n, v in converted.items()}


OURS = {"backbone", "pool", "project", "heads"}


def ours(arrays):
    """Return arrays of the file, which knows no branches, under their names in a system of one."""
    return {n if n.startswith("heads") else f"branches.0.{n}": v for n, v in arrays.items()}


def test_gradients_of_the_first_step(ran, tiny, arrays):
    case, found, *_ = ran
    expected = theirs(case, arrays, tiny)
    assert expected.keys() == found.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        # 1e-4 of an array's largest value: float32 through three layers, 2e-5 in PyTorch itself.
        # Biases of keys and of the pooling's scores cancel in a softmax: rounding of larger sums.
        atol = 1e-4 * np.abs(gradient).max() + 3e-7 * largest
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=atol, err_msg=name)


def test_losses_of_ten_steps(ran, arrays):
    case, _, losses, _ = ran
    np.testing.assert_allclose(losses, arrays[f"{case}/losses"], rtol=1e-4)  # float32


def test_statistics_after_ten_steps(ran, arrays):
    case, *_, state = ran
    assert state.statistics
    for name, value in state.statistics.items():
        stored = name.removeprefix("branches.0.") + "_biased" * name.endswith("var")
        expected = arrays[f"{case}/statistics/{stored}"]
        # 1e-4 of the largest: float32, and weights that differ in rounding after some updates
        np.testing.assert_allclose(value, expected, atol=1e-4 * np.abs(expected).max())
