"""Learning rates by hand, AdamW against a naive float64 loop, accumulation, layer-wise decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asdjax.train.optimizer import (
    Optimizer,
    Schedule,
    check_length,
    decays,
    layer_factors,
    learning_rate,
    make_optimizer,
    updates_done,
)
from asdjax.types import InputError

RNG = np.random.default_rng()


@pytest.fixture(autouse=True)
def same_numbers_in_every_order():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def rates(schedule, steps, unit=1, updates=None):
    rate = jax.jit(learning_rate(schedule, steps, unit))
    return [float(rate(count)) for count in range(updates or steps // unit)]


def test_constant_without_warmup():
    assert rates(Schedule(peak=0.25), 5) == [0.25] * 5


def test_first_update_of_a_warmup_already_learns_and_its_last_has_the_peak():
    schedule = Schedule(peak=1.0, warmup=4)
    assert rates(schedule, 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    schedule = Schedule(peak=1.0, warmup=5, start=0.5)
    assert rates(schedule, 6) == [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]


def test_the_start_is_the_rate_of_the_first_update_whatever_steps_count():
    """The schedule of AITHU's LoRA: 10 updates of 8 micro-batches from 1e-4 to 5e-3."""
    schedule = Schedule("cosine", peak=5e-3, warmup=80, start=1e-4, end=1e-5)
    got = rates(schedule, 800, unit=8)
    np.testing.assert_allclose(got[:10], np.linspace(1e-4, 5e-3, 10), rtol=1e-6)
    assert max(got) == got[9]
    np.testing.assert_allclose(got[-1], 1e-5, rtol=1e-4)  # float32 cosine near -1


def test_inverse_square_root():
    got = rates(Schedule("inverse-sqrt", peak=3.0, warmup=4), 64)
    assert got[:4] == [0.75, 1.5, 2.25, 3.0]
    assert got[15] == 1.5  # four times the warm-up: half
    assert got[63] == 0.75  # sixteen times: a quarter


def test_cosine_goes_from_the_peak_to_the_end_of_the_run():
    got = rates(Schedule("cosine", peak=1.0, end=0.2), 5)
    half = np.sqrt(0.5)  # cos(pi / 4)
    want = [1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half, 0.2]
    np.testing.assert_allclose(got, want, rtol=2e-6)  # float32 cosine


def test_cosine_restarts_with_its_warmup():
    schedule = Schedule("cosine", peak=1.0, warmup=2, start=0.1, end=0.2, cycle=6)
    half = np.sqrt(0.5)
    cycle = [0.1, 1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half, 0.2]
    want = (cycle * 3)[:15]  # a run may end within a cycle
    np.testing.assert_allclose(rates(schedule, 15), want, rtol=2e-6)


@pytest.mark.parametrize("shape", ["constant", "cosine", "inverse-sqrt"])
def test_rates_count_in_steps_of_the_unit(shape):
    schedule = Schedule(shape, peak=0.5, warmup=8)
    every = rates(schedule, 40)
    np.testing.assert_array_equal(rates(schedule, 40, unit=4), every[3::4])


@pytest.mark.parametrize("shape", ["constant", "cosine", "inverse-sqrt"])
def test_counts_outside_of_the_run_give_its_first_and_last_rate(shape):
    schedule = Schedule(shape, peak=0.5, warmup=3, end=0.1 * (shape == "cosine"))
    rate, inside = learning_rate(schedule, 10), rates(schedule, 10)
    assert [float(rate(count)) for count in (-7, -1)] == [inside[0]] * 2
    assert [float(rate(count)) for count in (10, 1000)] == [inside[-1]] * 2


WEIGHTS = {
    "branches.0.backbone.layers.0.fc1.kernel": (3, 4),
    "branches.0.backbone.layers.0.fc1.bias": (4,),
    "branches.0.backbone.layers.1.attn.q.lora_a": (4, 2),
    "branches.0.backbone.relative_bias": (5, 2),
    "branches.0.backbone.norm.scale": (4,),
    "heads.0.centers": (3, 1, 4),
}
DECAYED = {
    "branches.0.backbone.layers.0.fc1.kernel",
    "branches.0.backbone.layers.1.attn.q.lora_a",
    "heads.0.centers",
}


def draw(scale=1.0):
    return {n: scale * RNG.standard_normal(s).astype(np.float32) for n, s in WEIGHTS.items()}


def run(optimizer, params, gradients):
    """Return the weights after each gradient, and the last state."""
    params, state, seen = jax.tree.map(jnp.asarray, params), optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        change, state = update(gradient, state, params)
        params = optax.apply_updates(params, change)
        seen.append(params)
    return seen, state


def numpy_adamw(params, gradients, rate, decay, factor=None, clip=np.inf):
    """Loshchilov and Hutter 2019, algorithm 2, in float64, one weight after the other."""
    params = {name: value.astype(np.float64) for name, value in params.items()}
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for t, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        for name, value in params.items():
            g = gradient[name].astype(np.float64) * min(1, clip / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            m, v = first[name] / (1 - 0.9**t), second[name] / (1 - 0.999**t)
            shrink = decay * value if name in DECAYED else 0.0
            step = rate[t - 1] * (m / (np.sqrt(v) + 1e-8) + shrink)
            params[name] = value - step * (factor or {}).get(name, 1.0)
    return params


def assert_same(got, want):
    for name in want:  # the change (at most 1) to 1e-4: float32 leaves 1 - 0.999 to 6e-5
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_ten_updates_are_those_of_adamw(clip):
    schedule = Schedule(peak=0.1, warmup=4)
    config = Optimizer(schedule=schedule, weight_decay=0.3, clip=clip)
    params, gradients = draw(), [draw() for _ in range(10)]
    got, _ = run(make_optimizer(config, params, 10), params, gradients)
    rate = [0.025, 0.05, 0.075] + [0.1] * 7
    assert_same(got[-1], numpy_adamw(params, gradients, rate, 0.3, clip=clip or np.inf))


def test_adam_has_no_weight_decay():
    params, gradients = draw(), [draw() for _ in range(10)]
    config = Optimizer("adam", Schedule(peak=0.1), weight_decay=0.3)
    got, _ = run(make_optimizer(config, params, 10), params, gradients)
    assert_same(got[-1], numpy_adamw(params, gradients, [0.1] * 10, 0.0))


def test_layer_wise_factors_scale_the_whole_update():
    params, gradients = draw(), [draw() for _ in range(10)]
    config = Optimizer(schedule=Schedule(peak=0.1), weight_decay=0.3, layer_decay=0.5)
    got, _ = run(make_optimizer(config, params, 10), params, gradients)
    factor = {
        "branches.0.backbone.layers.0.fc1.kernel": 0.25,
        "branches.0.backbone.layers.0.fc1.bias": 0.25,
        "branches.0.backbone.layers.1.attn.q.lora_a": 0.5,
        "branches.0.backbone.relative_bias": 0.125,
        "branches.0.backbone.norm.scale": 0.125,
    }
    assert_same(got[-1], numpy_adamw(params, gradients, [0.1] * 10, 0.3, factor))


def test_depth_counts_from_the_last_layer_down_to_the_input():
    names = [f"branches.0.backbone.layers.{i}.fc1.kernel" for i in range(12)]
    names += [
        "branches.0.backbone.patch_embed.kernel",
        "branches.0.pool.kernel",
        "branches.0.project.bias",
        "heads.0.centers",
    ]
    got = layer_factors(names, 0.5)
    assert [got[f"branches.0.backbone.layers.{i}.fc1.kernel"] for i in (11, 10, 0)] == [
        0.5,
        0.25,
        0.5**12,
    ]
    assert got["branches.0.backbone.patch_embed.kernel"] == 0.5**13
    assert (
        got["branches.0.pool.kernel"]
        == got["branches.0.project.bias"]
        == got["heads.0.centers"]
        == 1
    )


@pytest.mark.parametrize("name", ["norm.scale", "pos_conv.gain", "attn.gate_scale", "fc1.bias"])
def test_vectors_are_not_decayed(name):
    assert not decays(name, 1)


@pytest.mark.parametrize(("unit", "warmup"), [(1, 3), (4, 12)])
def test_accumulated_gradients_make_one_update_by_their_mean(unit, warmup):
    """The warm-up of 3 updates is 12 passes of 4 gradients each, whichever is counted."""
    schedule = Schedule(peak=0.1, warmup=warmup)
    params, gradients = draw(), [draw() for _ in range(20)]
    means = [
        {name: np.mean([g[name] for g in gradients[i : i + 4]], 0) for name in WEIGHTS}
        for i in range(0, 20, 4)
    ]
    clip = float(np.median([optax.tree.norm(mean) for mean in means]))  # some are, some are not
    config = Optimizer(schedule=schedule, weight_decay=0.3, clip=clip)
    optimizer = make_optimizer(config, params, 5 * unit, accumulate=4, unit=unit)
    got, state = run(optimizer, params, gradients)
    rate = [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1]
    assert_same(got[-1], numpy_adamw(params, means, rate, 0.3, clip=clip))
    for name in WEIGHTS:  # nothing moves, weight decay included, until the fourth gradient
        np.testing.assert_array_equal(got[2][name], params[name])
        assert not np.array_equal(got[3][name], params[name])
    assert updates_done(state) == 5


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("config", [Optimizer(), Optimizer("adam", clip=1.0, layer_decay=0.9)])
def test_updates_are_counted(config, accumulate):
    params = draw()
    optimizer = make_optimizer(config, params, 10, accumulate)
    state, counts, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for _ in range(7):
        _, state = update(draw(), state, params)
        counts.append(int(updates_done(state)))
    assert counts == [i // accumulate for i in range(1, 8)]


def test_each_branch_has_its_peak_and_the_heads_that_of_the_schedule():
    """Adam's first update of a gradient is its sign, so the change is the learning rate."""
    schedule = Schedule("cosine", peak=0.5, warmup=2, start=0.1, end=0.01)
    config = Optimizer("adam", schedule, branch_peaks=(0.4, 0.2))
    names = ("branches.0.project.kernel", "branches.1.pool.attend.kernel", "heads.0.centers")
    params = {name: jnp.zeros((2, 2)) for name in names}
    optimizer = make_optimizer(config, params, 10)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for done in range(10):
        change, state = update({name: jnp.ones((2, 2)) for name in names}, state, params)
        for name, peak in zip(names, (0.4, 0.2, 0.5), strict=True):
            expected = rates(Schedule("cosine", peak=peak, warmup=2, start=0.1, end=0.01), 10)
            np.testing.assert_allclose(change[name], -expected[done], rtol=1e-4)  # 1 - 0.999
    with pytest.raises(InputError, match="peak: expected > 0"):
        Optimizer(branch_peaks=(1e-4, 0.0))


def test_the_rate_in_use_is_that_of_the_updates_done():
    """Adam's first update of a gradient is its sign, so the change is the learning rate."""
    config = Optimizer("adam", Schedule("inverse-sqrt", peak=0.5, warmup=4))
    params = {"branches.0.project.kernel": jnp.zeros((2, 2))}
    gradient = {"branches.0.project.kernel": jnp.ones((2, 2))}
    optimizer, rate = make_optimizer(config, params, 20), learning_rate(config.schedule, 20)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(20):
        expected = float(rate(updates_done(state)))
        change, state = update(gradient, state, params)
        np.testing.assert_allclose(
            change["branches.0.project.kernel"], -expected, rtol=1e-4
        )  # 1 - 0.999


def test_optimizer_accepts_shapes_alone():
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in WEIGHTS.items()}
    state = jax.eval_shape(make_optimizer(Optimizer(), shapes, 5, accumulate=2).init, shapes)
    assert state.mini_step.shape == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peak": 0.0}, "peak: expected > 0, got 0.0"),
        ({"peak": float("nan")}, "peak: expected > 0, got nan"),
        ({"warmup": -1}, "warmup: expected >= 0, got -1"),
        ({"start": -1.0}, "start: expected from 0 to the peak, got -1.0"),
        ({"shape": "cosine", "end": 1.0}, "end: expected from 0 to the peak, got 1.0"),
        ({"end": 1e-5}, "end: expected 0 unless shape is cosine"),
        ({"cycle": 10}, "cycle: expected none unless shape is cosine"),
        ({"shape": "cosine", "warmup": 5, "cycle": 5}, r"cycle: expected > 5, the warm-up, got 5"),
        ({"shape": "inverse-sqrt"}, "warmup: expected >= 1 with shape inverse-sqrt, got 0"),
    ],
)
def test_impossible_schedules_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        Schedule(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weight_decay": -0.1}, "weight_decay: expected >= 0, got -0.1"),
        ({"clip": 0.0}, "clip: expected > 0 or none, got 0.0"),
        ({"layer_decay": 0.0}, r"layer_decay: expected in \(0, 1\], got 0.0"),
        ({"layer_decay": 1.1}, r"layer_decay: expected in \(0, 1\], got 1.1"),
    ],
)
def test_impossible_optimizers_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        Optimizer(**fields)


def test_a_schedule_must_fit_into_the_run():
    check_length(Optimizer(schedule=Schedule(warmup=10)), 10)
    with pytest.raises(InputError, match="within the run's 9 steps, got 10"):
        check_length(Optimizer(schedule=Schedule(warmup=10)), 9)
    with pytest.raises(InputError, match=r"after the warm-up \(10\)"):
        check_length(Optimizer(schedule=Schedule("cosine", warmup=10)), 10)
    with pytest.raises(InputError, match="within the run's 9 steps"):
        make_optimizer(Optimizer(schedule=Schedule(warmup=10)), draw(), 9)
