"""Training of autoencoders: PyTorch's ten steps, machines that do not see each other, resuming."""

import json
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from asdjax.baseline import training
from asdjax.baseline.network import (
    WIDTHS,
    Autoencoder,
    initialize,
    precision_of,
    reconstruct,
    score_frames,
)
from asdjax.baseline.training import (
    ABSENT,
    FitAutoencoders,
    Frames,
    Job,
    State,
    cut_vectors,
    for_all,
    gather,
    make_batches,
    measure,
    split,
    start,
    train_epoch,
)
from asdjax.data.batches import Audio
from asdjax.models import weights_file
from asdjax.types import Clip, InputError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "autoencoder.npz")
HOW = FitAutoencoders(epochs=2, batch=16, seed=1, save_every=1)
ADAM = optax.adam(1e-3)


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


def ten_steps(dtype):
    """Return frames, the state after the golden's ten steps, and its batches."""
    mel, trainable = drawn()
    others, statistics = initialize(jax.random.key(0))
    trainable = jax.tree.map(lambda x: np.asarray(x, dtype), dict(others) | trainable)
    statistics = jax.tree.map(lambda x: np.asarray(x, dtype), statistics)
    state = State(trainable, statistics, ADAM.init(trainable), np.zeros(10, dtype))
    first = (200 * np.arange(4)[:, None] + np.arange(196)[None]).reshape(-1)[GOLDEN["order"]]
    batches = make_batches({"fan": first.astype(np.int32)}, 64)["fan"]
    frames = Frames(mel.reshape(-1, 128).astype(dtype), np.arange(800) >= 600)
    return frames, jax.jit(partial(train_epoch, ADAM))(frames, state, batches), batches


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
        measured = jax.jit(measure)(frames, state, batches)
        count = int((GOLDEN["order"] >= 588).sum())
        assert [int(n) for n in measured.counts] == [596 - count, count]
        totals = list(zip(measured.scatters, (596 - count, count), strict=True))
        diagonals = [np.diag(total) / (n - 1) for total, n in totals]
        np.testing.assert_allclose(diagonals, GOLDEN["covariance_diagonals"], rtol=1e-8)
        source, target = (precision_of(total, n)[0] for total, n in totals)
        weights = state.trainable | state.statistics
        weights |= {"precision.source": source, "precision.target": target}
        for mel, (of_source, of_target) in zip(
            frames.mel.reshape(4, 200, 128), GOLDEN["scores"], strict=True
        ):
            error, *distances = score_frames(weights, mel, 200)
            np.testing.assert_allclose(error, of_source[0], rtol=1e-8)
            # the inverse is kept in float32
            np.testing.assert_allclose(distances, [of_source[1], of_target[1]], rtol=1e-5)


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


def job(out, key):
    return Job((Autoencoder(),), Audio(), (), {}, out, out / "model", key)


def fit(out, frames, machines, how=HOW, key=None):
    """Train in a folder; return what the model file has."""
    training.train(how, frames, machines, job(out, key or {"of": 1}))
    arrays, header = weights_file.load(out / "model")[:2]
    assert header.kind == "autoencoders"
    return arrays


def saved(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return the folder of a training of both machines, and its model."""
    out = tmp_path_factory.mktemp("both")
    return out, fit(out, *two_machines())


def test_each_vector_is_a_stretch_of_one_clip():
    frames, machines = two_machines()
    fan, pump = machines["fan_section_00"], machines["pump_section_00"]
    assert (len(fan), len(pump)) == (46 + 47 + 29 + 7, 49)
    clip_of = np.repeat([0, 1, 2, 3, 4], [50, 51, 33, 11, 53])
    np.testing.assert_array_equal(clip_of[fan], clip_of[fan + 4])
    np.testing.assert_array_equal(clip_of[pump], 4)
    np.testing.assert_array_equal(clip_of[pump + 4], 4)
    np.testing.assert_array_equal(frames.target, clip_of == 3)
    x, valid = gather(jax.device_put(frames), np.int32([2, 101, ABSENT]))
    mel = frames.mel
    np.testing.assert_array_equal(x[:2], [mel[2:7].ravel(), mel[101:106].ravel()])
    np.testing.assert_array_equal(valid, [1, 1, 0])


@pytest.mark.parametrize(("count", "batches"), [(32, 2), (33, 2), (34, 3)])
def test_an_epoch_has_every_vector_once_but_one_that_would_be_alone(count, batches):
    machines = {"fan": np.arange(count), "pump": np.arange(100)}
    found = make_batches(machines, 16, (1, 2))["fan"]
    assert found.shape == (7, 16)
    np.testing.assert_array_equal(training.present(found), np.arange(7) < batches)
    used = found[found != ABSENT]
    assert len(set(used)) == len(used) == count - (count == 33)
    assert set(used) <= set(range(count))
    assert (found[batches:] == ABSENT).all()
    again = make_batches(machines, 16, (1, 3))["fan"]
    assert (again != found).any()


def test_a_batch_of_one_that_is_not_trained_on_is_still_measured():
    assert training.present(make_batches({"fan": np.arange(33)}, 16)["fan"]).sum() == 3


def test_a_tenth_of_the_vectors_is_held_out():
    kept, held = split(np.arange(101), 0)
    assert len(held) == 11
    assert sorted([*kept, *held]) == list(range(101))


def test_a_machine_trains_as_if_it_were_alone(both, tmp_path):
    frames, machines = two_machines()
    for name, vectors in machines.items():
        one = fit(tmp_path / name, frames, {name: vectors})
        assert {n for n in both[1] if n.startswith(name)} == one.keys()
        for part, value in one.items():
            np.testing.assert_array_equal(both[1][part], value)


def test_what_a_training_leaves(both):
    out, model = both
    losses = [line["loss/fan_section_00"] for line in lines(out)]
    assert len(losses) == 2
    assert losses[0] > losses[1]
    assert saved(out) == ["step_1", "step_2"]
    names = "precision.source", "precision.target"
    fan, pump = ([model[f"{m}_section_00.{n}"] for n in names] for m in ("fan", "pump"))
    np.testing.assert_array_equal(*pump)
    assert (fan[0] != fan[1]).any()
    # 116 of 129 vectors in 8 batches, 13 held out in one; 44 of 49 in 3, 5 in one
    for name in ("batches.mse", "batches.mahalanobis"):
        assert model[f"fan_section_00.{name}"].shape == (9,)
        assert model[f"pump_section_00.{name}"].shape == (4,)


@pytest.mark.parametrize("name", ["fan_section_00", "pump_section_00"])
def test_the_values_of_batches_are_their_losses_and_distances(both, name):
    frames, machines = two_machines()
    out, model = both
    own = {n.removeprefix(f"{name}."): value for n, value in model.items() if n.startswith(name)}
    line = lines(out)[-1]
    np.testing.assert_allclose(own["batches.mse"][:-1].mean(), line[f"loss/{name}"], 1e-6)
    np.testing.assert_allclose(own["batches.mse"][-1], line[f"held_out_loss/{name}"], 1e-6)
    kept, held = split(machines[name], HOW.seed)
    batches = make_batches({name: kept}, 16, (HOW.seed, HOW.epochs))[name]
    expected = []
    for batch in (*batches, *make_batches({name: held}, 16)[name]):
        x, valid = gather(jax.device_put(frames), batch)
        rows = np.float64(x - reconstruct(own, x))[valid > 0].reshape(-1, 128)
        domains = (own["precision.source"], own["precision.target"])
        expected.append(min((rows @ precision @ rows.T).mean() for precision in domains))
    np.testing.assert_allclose(own["batches.mahalanobis"], expected, rtol=1e-3)  # cancels


def test_each_epoch_has_an_order_of_its_own(both):
    frames, machines = two_machines()
    kept = {name: split(vectors, HOW.seed)[0] for name, vectors in machines.items()}
    epoch = for_all(partial(train_epoch, ADAM))
    states = dict.fromkeys(machines, start(ADAM, HOW.seed, 8))
    for done in (1, 2):
        states = epoch(jax.device_put(frames), states, make_batches(kept, 16, (HOW.seed, done)))
    for name, state in states.items():
        expected = both[1][f"{name}.batches.mse"][:-1]
        np.testing.assert_array_equal(state.losses[: len(expected)], expected)


def test_one_program_for_all_machines_gives_what_one_each_gives(monkeypatch):
    frames, machines = two_machines()
    kept = {name: split(vectors, 0)[0] for name, vectors in machines.items()}
    frames, batches = jax.device_put(frames), make_batches(kept, 16, (0, 1))
    states = dict.fromkeys(batches, start(ADAM, 0, len(batches["fan_section_00"])))

    def results():
        trained = for_all(partial(train_epoch, ADAM))(frames, states, batches)
        measured = for_all(measure)(frames, states, batches)
        pairs = [(trained[name].losses, measured[name].error) for name in machines]
        return np.float32(pairs)

    expected = results()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = results()
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # Adam amplifies rounding
    # nothing is done after a machine's own batches
    assert not found[1][:, ~training.present(batches["pump_section_00"])].any()


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(both, tmp_path, monkeypatch):
    frames, machines = two_machines()
    write = training.Log.write

    def stop_after_one(log, step, values):
        write(log, step, values)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(training.Log, "write", stop_after_one)
        with pytest.raises(SystemExit):
            fit(tmp_path, frames, machines)
    assert not (tmp_path / "model").exists()
    assert len(lines(tmp_path)) == 1
    with pytest.raises(InputError, match="of: 1 before, 2 now"):
        fit(tmp_path, frames, machines, key={"of": 2})
    rest = fit(tmp_path, frames, machines)
    out, whole = both
    assert lines(tmp_path) == lines(out)
    assert whole.keys() == rest.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(rest[name], value)


def test_a_forced_training_starts_again(tmp_path):
    frames, machines = two_machines()
    how = FitAutoencoders(epochs=1, batch=16)
    fit(tmp_path, frames, machines, how)
    training.train(how, frames, machines, job(tmp_path, {"of": 2})._replace(anew=True))
    assert weights_file.load(tmp_path / "model")[1].config == {"of": 2}
    assert saved(tmp_path) == ["step_1"]  # the last epoch is always saved


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    frames, machines = two_machines()
    frames.mel[60] = np.inf
    with pytest.raises(InputError, match=r"loss/fan_section_00.* not finite"):
        fit(tmp_path, frames, machines)


def test_too_few_vectors_are_refused_by_name():
    with pytest.raises(InputError, match=r"expected 3 or more vectors .* fan_section_00"):
        cut_vectors([np.zeros((6, 128), np.float32)], [clip("fan")])


def test_silent_clips_train_and_a_note_says_that_their_covariance_is_singular(tmp_path, capsys):
    frames, machines = two_machines()
    silence = frames._replace(mel=np.full_like(frames.mel, -156.5))
    model = fit(tmp_path, silence, machines, FitAutoencoders(epochs=1, batch=16))
    assert "fan_section_00: the covariance of the source residuals is singular" in (
        capsys.readouterr().err
    )
    assert all(np.isfinite(value).all() for value in model.values())


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"epochs": 0, "batch": 1}, "epochs: expected >= 1, got 0; .*batch: expected >= 2"),
        ({"learning_rate": 0.0}, "learning_rate: expected > 0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected > 0"),
        ({"seed": -1}, "seed: expected >= 0"),
    ],
)
def test_impossible_settings_are_refused(wrong, rule):
    with pytest.raises(InputError, match=rule):
        FitAutoencoders(**wrong)
