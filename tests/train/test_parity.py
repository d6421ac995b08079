"""A training step against an independent PyTorch computation: tiny BEATs and EAT, pooling, ArcFace.

`tests/golden/make_finetune.py` and `make_finetune_eat.py` made the numbers, in float64. The test
runs the step that training runs, front end included.
"""

from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from machines import one_encoder
from trainings import architecture

from asdjax.devices import data_mesh, put_copies
from asdjax.losses.margin import Margin
from asdjax.models.backbone import Backbone
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.lora import Lora
from asdjax.models.system import Task
from asdjax.train.batches import Batch
from asdjax.train.config import HeadConfig, Train
from asdjax.train.loop import start
from asdjax.train.optimizer import Optimizer, Schedule, make_optimizer
from asdjax.train.step import make_front_ends, make_step
from weights_convert import beats, eat, torch_file

ADAPTER = Lora(rank=4, alpha=8.0, targets=("q", "v", "out"))
MARGIN = Margin("arcface", margin=0.5, scale=30.0)
FLAT = Schedule("constant", peak=1e-4)


class Case(NamedTuple):
    backbone: str
    name: str  # in the file
    adapted: bool
    padded: bool


CASES = [
    Case("beats", "full", adapted=False, padded=False),
    Case("beats", "masked", adapted=False, padded=True),
    Case("beats", "lora", adapted=True, padded=False),
    Case("eat", "lora", adapted=True, padded=False),
    Case("eat", "masked", adapted=True, padded=True),
]
FILES = {"beats": "finetune.npz", "eat": "finetune_eat.npz"}
OPTIMIZERS = {
    "beats": Optimizer("adamw", FLAT, weight_decay=0.01),
    "eat": Optimizer("adam", FLAT),
}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.backbone}-{case.name}")
def case(request):
    return request.param


@pytest.fixture(scope="module")
def tiny(golden, case):
    tree = torch_file.read(golden / f"{case.backbone}_tiny.pt")
    if case.backbone == "beats":
        config = BeatsConfig.from_checkpoint(tree["cfg"])
        return Backbone(config, beats.convert(tree["model"], config))
    config = EatConfig(embed_dim=64, depth=3, num_heads=4, max_length=48)
    state = {n: x for n, x in tree["model"].items() if n != "_ema" and "decoder" not in n}
    return Backbone(config, eat.convert(state, config))


@pytest.fixture(scope="module")
def arrays(golden, case):
    with np.load(golden / FILES[case.backbone]) as file:
        return dict(file)


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimizer with the last gradient in its state as well."""

    def update(gradient, state, trainable):
        change, inner = optimizer.update(gradient, state[0], trainable)
        return change, (inner, gradient)

    return optax.GradientTransformation(lambda p: (optimizer.init(p), p), update)


@pytest.fixture(scope="module")
def ran(case, tiny, arrays):
    """Return the gradients of the first step, ten losses and the state after them."""
    adapter = ADAPTER if case.adapted else None
    config = one_encoder("", adapter, "statistics", embedding=16, dropout=False)
    how = Train(steps=10, batch=4, heads=(HeadConfig(MARGIN),), optimizer=OPTIMIZERS[case.backbone])
    system = architecture(config, [tiny], [Task(MARGIN, (1,) * 5)])
    parts = system.parts(train=True)
    optimizer = recording(make_optimizer(how.optimizer, parts.trainable, 10, 1, 1))
    statistics, trainable, frozen = system.initialize(seed=0)
    stored = {n.removeprefix("start/"): v for n, v in arrays.items() if n.startswith("start/")}
    given = {n: v for n, v in ours(stored).items() if n in trainable}
    assert len(given) == 11 + (18 if case.adapted else 0)  # head and adapters
    front_ends = make_front_ends(system.networks, data_mesh(), padded=case.padded)
    step = make_step(parts, front_ends, lambda store, sent: Batch(*sent), how, optimizer, 11_200)
    begun = start(statistics, trainable | given, optimizer, how), frozen
    (state, frozen), gradient, losses = put_copies(begun, data_mesh()), None, []
    for _ in range(10):
        state, metrics = step(state, frozen, (), batch_of(case, arrays))
        gradient = gradient or jax.device_get(state.optimizer[1])
        losses.append(float(metrics["loss"]))
    return gradient, losses, state


def batch_of(case, arrays):
    whole = np.full(4, arrays["wave"].shape[1], np.int32)
    lengths = arrays["lengths"] if case.padded else whole
    return arrays["wave"], lengths, arrays["label"][:, None]


def theirs(case, arrays, tiny):
    """Return the gradients of one case under our names and layouts."""
    prefix = f"{case.name}/grad/"
    found = {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
    base = {n: v for n, v in found.items() if n.split(".")[0] not in OURS}
    added = {n: v for n, v in found.items() if n not in base}
    converted = beats.convert(base, tiny.config) if base else {}
    return ours(added) | {f"branches.0.backbone.{n}": v for n, v in converted.items()}


OURS = {"backbone", "pool", "project", "heads"}


def ours(arrays):
    """Return arrays of the file, which knows no branches, under their names in a system of one."""
    return {n if n.startswith("heads") else f"branches.0.{n}": v for n, v in arrays.items()}


def test_gradients_of_the_first_step(case, ran, tiny, arrays):
    found, *_ = ran
    expected = theirs(case, arrays, tiny)
    assert expected.keys() == found.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        # 1e-4 of an array's largest value: float32 through three layers, 2e-5 in PyTorch itself.
        # Biases of keys and of the pooling's scores cancel in a softmax: 5 roundings of large sums.
        atol = 1e-4 * np.abs(gradient).max() + 6e-7 * largest
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=atol, err_msg=name)


def test_losses_of_ten_steps(case, ran, arrays):
    _, losses, _ = ran
    np.testing.assert_allclose(losses, arrays[f"{case.name}/losses"], rtol=1e-4)  # float32


def test_statistics_after_ten_steps(case, ran, arrays):
    *_, state = ran
    assert state.statistics
    for name, value in state.statistics.items():
        stored = name.removeprefix("branches.0.") + "_biased" * name.endswith("var")
        expected = arrays[f"{case.name}/statistics/{stored}"]
        # 1e-4 of the largest: float32, and weights that differ in rounding after some updates
        np.testing.assert_allclose(value, expected, atol=1e-4 * np.abs(expected).max())
