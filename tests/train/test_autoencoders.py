"""Training of autoencoders: PyTorch's ten steps, machines that do not see each other, resuming."""

import json
import signal
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from trainings import quick_compiles

from asdjax import params
from asdjax.models.autoencoder import (
    WIDTHS,
    clip_residual,
    initialize,
    mahalanobis,
    precision_of,
    reconstruct,
)
from asdjax.train import autoencoders
from asdjax.train.autoencoder_step import (
    ABSENT,
    State,
    gather,
    make_epoch,
    measure_batches,
    start,
    together,
)
from asdjax.train.autoencoders import FitAutoencoders, make_batches, name_of, train
from asdjax.train.frames import Vectors, cut_vectors
from asdjax.types import Clip, InputError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "autoencoder.npz")
HOW = FitAutoencoders(epochs=3, batch=16, seed=1)


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compiles(tmp_path_factory.mktemp("cache")):
        yield


def drawn():
    """Return frames `[4, 200, 128]` and first weights, as `make_autoencoder.py` draws them."""
    rng = np.random.default_rng(5)
    mel = rng.uniform(-50, -30, (4, 1, 128)) + 5 * rng.standard_normal((4, 200, 128))
    trainable = {}
    for i, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        for name, shape in {"kernel": (inputs, outputs), "bias": (outputs,)}.items():
            bound = 1 / np.sqrt(inputs)
            trainable[f"layers.{i}.{name}"] = rng.uniform(-bound, bound, shape)
    sums = [mel.sum(), *(value.sum() for value in trainable.values())]
    np.testing.assert_allclose(sums, GOLDEN["drawn"], rtol=1e-9, atol=1e-9)
    return mel, trainable


def batches_of(first, target, size):
    (made,) = make_batches([Vectors(first.astype(np.int32), target)], size)
    return made


def ten_steps(dtype):
    """Return frames, the state after the golden's ten steps, and its batches."""
    mel, trainable = drawn()
    others, statistics = initialize(jax.random.key(0))
    trainable = jax.tree.map(lambda x: np.asarray(x, dtype), dict(others) | trainable)
    statistics = jax.tree.map(lambda x: np.asarray(x, dtype), statistics)
    adam = optax.adam(1e-3).init(trainable)
    state = State(trainable, statistics, adam, np.zeros(10, dtype))
    first = (200 * np.arange(4)[:, None] + np.arange(196)[None]).reshape(-1)[GOLDEN["order"]]
    batches = batches_of(first, first >= 600, 64)
    frames = mel.reshape(-1, 128).astype(dtype)
    return frames, jax.jit(make_epoch(1e-3))(frames, state, batches), batches


def test_ten_steps_and_the_scores_after_them_equal_pytorch():
    # float64, where Adam does not turn rounding errors of gradients that are zero (a bias before
    # batch norm) into steps.
    with jax.enable_x64(True):
        frames, state, batches = ten_steps(np.float64)
        np.testing.assert_allclose(state.losses, GOLDEN["losses"], rtol=1e-10)
        for name in ("mean", "variance"):
            found = np.concatenate([state.statistics[f"norms.{i}.{name}"] for i in range(9)])
            # Adam's 1e-8 leaves a ten-thousandth of the rounding of gradients that are zero.
            np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-7, atol=1e-8)
        measured = jax.jit(measure_batches)(frames, state, batches)
        count = int((GOLDEN["order"] >= 588).sum())
        totals = {596 - count: measured.source, count: measured.target}
        diagonals = [np.diag(total) / (n - 1) for n, total in totals.items()]
        np.testing.assert_allclose(diagonals, GOLDEN["covariance_diagonals"], rtol=1e-8)
        precisions = [precision_of(total, n)[0] for n, total in totals.items()]
        for mel, (of_source, of_target) in zip(
            frames.reshape(4, 200, 128), GOLDEN["scores"], strict=True
        ):
            error, row = clip_residual(state.trainable, state.statistics, mel, 200)
            np.testing.assert_allclose(error, of_source[0], rtol=1e-8)
            found = [mahalanobis(row, p) for p in precisions]
            # the inverse is kept in float32
            np.testing.assert_allclose(found, [of_source[1], of_target[1]], rtol=1e-5)


def test_ten_steps_in_float32_stay_near():
    # PyTorch's own float32 losses differ by 1.1e-4 from these.
    np.testing.assert_allclose(ten_steps(np.float32)[1].losses, GOLDEN["losses"], rtol=5e-4)


def clip(machine, domain="source", index=0):
    return Clip(Path(f"{index}.wav"), machine, "section_00", "train", domain)


def two_machines():
    """Return frames and vectors of a machine of 129 (7 of target) and one of 49 (no domain)."""
    rng = np.random.default_rng(3)
    lengths = {"fan": (50, 51, 33, 11), "pump": (53,)}
    clips = [
        clip(machine, None if machine == "pump" else "target" if frames == 11 else "source", i)
        for machine, each in lengths.items()
        for i, frames in enumerate(each)
    ]
    lengths = [n for each in lengths.values() for n in each]
    return cut_vectors([rng.normal(-40, 5, (n, 128)).astype(np.float32) for n in lengths], clips)


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_each_vector_is_a_stretch_of_one_clip():
    frames, machines = two_machines()
    assert {group: len(own.first) for group, own in machines.items()} == {
        ("fan", "section_00"): 46 + 47 + 29 + 7,
        ("pump", "section_00"): 49,
    }
    fan = machines["fan", "section_00"]
    begins = np.array([0, 50, 101, 134])
    clip_of = np.searchsorted(begins, fan.first, "right") - 1
    np.testing.assert_array_equal(np.searchsorted(begins, fan.first + 4, "right") - 1, clip_of)
    np.testing.assert_array_equal(fan.target, clip_of == 3)
    x, valid = gather(frames, np.int32([2, 101, ABSENT]))
    np.testing.assert_array_equal(x[:2], [frames[2:7].ravel(), frames[101:106].ravel()])
    np.testing.assert_array_equal(valid, [1, 1, 0])


@pytest.mark.parametrize(("vectors", "count"), [(32, 2), (33, 2), (34, 3)])
def test_an_epoch_has_every_vector_once_but_one_that_would_be_alone(vectors, count):
    own = Vectors(np.arange(vectors, dtype=np.int32), np.arange(vectors) % 3 == 0)
    others = Vectors(np.arange(100, dtype=np.int32), np.zeros(100, bool))
    found, _ = make_batches([own, others], 16, (1, 2))
    assert found.count == count
    used = found.first[:count].ravel()
    used = used[used != ABSENT]
    assert len(set(used)) == len(used) == vectors - (vectors == 33)
    np.testing.assert_array_equal(
        found.target[:count], (found.first % 3 == 0)[:count] & (found.first[:count] != ABSENT)
    )
    again, _ = make_batches([own, others], 16, (1, 3))
    assert (again.first != found.first).any()


def test_a_batch_of_one_that_is_not_trained_on_is_still_measured():
    own = Vectors(np.arange(33, dtype=np.int32), np.zeros(33, bool))
    assert make_batches([own], 16)[0].count == 3


def test_a_tenth_of_the_vectors_is_held_out():
    own = Vectors(np.arange(101, dtype=np.int32), np.zeros(101, bool))
    kept, held = autoencoders._split(own, 0)
    assert len(held.first) == 11
    assert sorted([*kept.first, *held.first]) == list(range(101))


def test_a_machine_trains_as_if_it_were_alone(tmp_path):
    frames, machines = two_machines()
    train(HOW, frames, machines, tmp_path, tmp_path / "both", {})
    both, header = params.load(tmp_path / "both")
    assert header.kind == "autoencoders"
    for group, own in machines.items():
        out = tmp_path / group[0]
        train(HOW, frames, {group: own}, out, out / "one", {})
        one, _ = params.load(out / "one")
        assert {n for n in both if n.startswith(name_of(group))} == one.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(both[name], value)
    losses = [line["loss/fan_section_00"] for line in lines(tmp_path)]
    assert len(losses) == 3
    assert losses[0] > losses[2]
    np.testing.assert_array_equal(
        both["pump_section_00.precision.source"], both["pump_section_00.precision.target"]
    )
    fan = {n: both[f"fan_section_00.{n}"] for n in ("precision.source", "precision.target")}
    assert (fan["precision.source"] != fan["precision.target"]).any()
    # 116 of 129 vectors in 8 batches, 13 held out in one; 44 of 49 in 3, 5 in one
    for name in ("batches.mse", "batches.mahalanobis"):
        assert both[f"fan_section_00.{name}"].shape == (9,)
        assert both[f"pump_section_00.{name}"].shape == (4,)


def test_the_values_of_batches_are_their_losses_and_distances(tmp_path):
    frames, machines = two_machines()
    group = ("pump", "section_00")
    train(HOW, frames, {group: machines[group]}, tmp_path, tmp_path / "m", {})
    made, _ = params.load(tmp_path / "m")
    made = {name.removeprefix("pump_section_00."): value for name, value in made.items()}
    line = lines(tmp_path)[-1]
    np.testing.assert_allclose(made["batches.mse"][:3].mean(), line["loss/pump_section_00"], 1e-6)
    np.testing.assert_allclose(made["batches.mse"][3], line["held_out_loss/pump_section_00"], 1e-6)
    held = autoencoders._split(machines[group], HOW.seed)[1]
    x, _ = gather(frames, held.first)
    rows = np.asarray(x - reconstruct(made, made, x)).reshape(-1, 128)
    expected = (rows @ made["precision.source"] @ rows.T).mean()
    np.testing.assert_allclose(made["batches.mahalanobis"][3], expected, rtol=1e-3)  # cancels


def test_one_program_for_all_machines_gives_what_one_each_gives(monkeypatch):
    frames, machines = two_machines()
    batches = make_batches(list(machines.values()), 16, (0, 1))
    states = [start(0, 1e-3, len(batches[0].first)) for _ in batches]
    jobs = list(zip(states, batches, strict=True))
    epoch, measure = make_epoch(1e-3), measure_batches
    expected = together(epoch)(frames, jobs), together(measure)(frames, jobs)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = together(epoch)(frames, jobs), together(measure)(frames, jobs)
    for one, other in zip(found, expected, strict=True):
        losses = [np.float32(x.losses if isinstance(x, State) else x.error) for x in (*one, *other)]
        np.testing.assert_allclose(losses[:2], losses[2:], rtol=1e-3)  # Adam amplifies rounding
    assert not losses[1][batches[1].count :].any()  # nothing is done behind a machine's own batches


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    frames, machines = two_machines()
    train(HOW, frames, machines, tmp_path / "a", tmp_path / "whole", {"of": 1})
    write = autoencoders.Log.write

    def stop_after_one(log, step, values):
        write(log, step, values)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(autoencoders.Log, "write", stop_after_one)
        with pytest.raises(SystemExit):
            train(HOW, frames, machines, tmp_path / "b", tmp_path / "rest", {"of": 1})
    assert not (tmp_path / "rest").exists()
    assert len(lines(tmp_path / "b")) == 1
    with pytest.raises(InputError, match="of: checkpoint 1, now 2"):
        train(HOW, frames, machines, tmp_path / "b", tmp_path / "rest", {"of": 2})
    train(HOW, frames, machines, tmp_path / "b", tmp_path / "rest", {"of": 1})
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    whole, rest = (params.load(tmp_path / name)[0] for name in ("whole", "rest"))
    for name, value in whole.items():
        np.testing.assert_array_equal(rest[name], value)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    frames, machines = two_machines()
    frames[60] = np.inf
    with pytest.raises(InputError, match=r"loss/fan_section_00.* not finite"):
        train(HOW, frames, machines, tmp_path, tmp_path / "m", {})


def test_too_few_vectors_are_refused_by_name():
    with pytest.raises(InputError, match=r"expected 3 or more vectors .* fan/section_00"):
        cut_vectors([np.zeros((6, 128), np.float32)], [clip("fan")])


def test_silent_clips_train_and_their_singular_covariance_is_told(tmp_path, capsys):
    frames, machines = cut_vectors([np.full((40, 128), -156.5, np.float32)], [clip("fan")])
    train(FitAutoencoders(epochs=1, batch=16), frames, machines, tmp_path, tmp_path / "m", {})
    assert "fan/section_00: the covariance of the source residuals is singular" in (
        capsys.readouterr().err
    )
    assert all(np.isfinite(value).all() for value in params.load(tmp_path / "m")[0].values())


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 1}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match="expected epochs"):
        FitAutoencoders(**wrong)
