"""Whole runs: what they leave behind, and that a run stopped in any way ends as if it was not.

Nearly all tests train one system in which everything changes from step to step: dropout, layer
drop, masks, mixup, crops, a moving average, accumulated gradients, a dynamic scale.
"""

import json
import shutil
import signal
import threading
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainings import assert_trained_alike, hum_machine, lines, small_system, two_machines

from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.losses.margin import Margin
from asdjax.models import weights_file
from asdjax.models.spectral import Bands
from asdjax.models.system import Architecture
from asdjax.stages import stages
from asdjax.stages.options import Options
from asdjax.stages.recordings import prepare
from asdjax.train import interrupt, loop
from asdjax.train.config import HeadConfig
from asdjax.train.step import TrainState
from asdjax.types import InputError

PASSES = 30
HEADS = (
    HeadConfig(Margin("arcface", 0.2, 10.0), "machine"),
    HeadConfig(AdaCos(2), "machine", 0.1),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = two_machines(tmp_path_factory.mktemp("machines"))
    hum_machine(root, "valve", 1000.0, seed=3)
    return root


@pytest.fixture(scope="module")
def system():
    return small_system(
        encoders=(Bands(embedding=8, bands=16),),
        steps=PASSES,
        accumulate=2,
        heads=HEADS,
        augment=Augment(mask=20, mixup=0.3, crop="random", shift=True),
        ema=0.5,
        held_out=0.2,
        log_every=5,
        save_every=15,  # in the middle of an update
    )


@pytest.fixture(scope="module")
def finished(system, data, tmp_path_factory):
    """Return the folder of a run that nothing disturbed, and the clips of its two sources."""
    out, seen = tmp_path_factory.mktemp("run") / "run", []
    make = loop.make_clip_set

    def noted(clips, *rest, **options):
        seen.append(clips)
        return make(clips, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_clip_set", noted)
        train(system, data, out)
    return out, seen


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run as it was after its first checkpoint; the log is further."""
    out = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step_30")
    for name in ("model.safetensors", "finished.json"):
        (out / name).unlink()
    return out


def train(system, data, out):
    stages.train(system, data, out, keep_checkpoints=True)


def with_train(system, **fields):
    return replace(system, train=replace(system.train, **fields))


def model(out):
    return (out / "model.safetensors").read_bytes()


def contents(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def disturb(monkeypatch, at, act):
    """Call `act(state)` before a pass, counted from 1 in this call of `train`."""
    make = loop.make_step

    def disturbed(*arguments):
        step, calls = make(*arguments), count(1)

        def call(state, *rest):
            return step(act(state) if next(calls) == at else state, *rest)

        return call

    monkeypatch.setattr(loop, "make_step", disturbed)


# A whole run


def test_the_log_has_the_promised_steps_and_fields(finished):
    log = [json.loads(line) for line in (finished[0] / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [5, 10, 15, 20, 25, 30]
    always = {"step", "loss", "accuracy", "embedding_norm", "gradient_norm", "learning_rate"}
    always |= {"clips_per_second", "waiting"}
    for line in log:
        saved = line["step"] in (15, 30)
        validated = {"held_out_accuracy", "held_out_spread"} if saved else set()
        assert line.keys() == always | validated
        assert all(np.isfinite(value) for value in line.values())
        assert line["clips_per_second"] > 0
        assert 0 <= line["waiting"] <= 1
        assert 0 <= line["accuracy"] <= 1
        np.testing.assert_allclose(line["learning_rate"], 1e-2, rtol=1e-6)


def test_the_model_has_all_that_was_trained_and_how(finished, system, data):
    out, _ = finished
    trained, header, _ = weights_file.load(out / "model.safetensors")
    assert header.kind == "trained"
    assert header.config == prepare(system, data, Options()).model(out).key
    assert {name.removeprefix("branches.0.").split(".")[0] for name in trained} == {
        *("network", "heads")
    }
    assert {"heads.1.scale", "heads.0.centers"} <= trained.keys()
    labels = json.loads((out / "labels.json").read_text())
    assert labels == {key: [f"{m} section_00" for m in ("fan", "pump", "valve")] for key in "01"}
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step_15", "step_30"]


def test_held_out_clips_are_normal_training_clips_that_never_train(finished, data):
    training, held = (({clip.path for clip in clips}) for clips in finished[1])
    assert (len(training), len(held)) == (30, 6)
    assert not training & held
    assert training | held == {path.resolve() for path in data.glob("*/train/*.wav")}


def test_validation_masks_the_padding_of_its_own_clips(system, data, tmp_path, monkeypatch):
    """Clips are shorter than a full second here; only those held out are."""
    masked, make = [], loop.make_front_ends

    def noted(networks, mesh, padded):
        masked.append(padded)
        return make(networks, mesh, padded)

    monkeypatch.setattr(loop, "padded", lambda infos, *_: len(infos) == 6)
    monkeypatch.setattr(loop, "make_front_ends", noted)
    monkeypatch.setattr(loop, "make_validate", stop)
    with pytest.raises(Stopped):
        train(system, data, tmp_path)
    assert masked == [False, True, True]  # of training; of what is kept of those held out


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


# Resuming


def test_a_run_goes_on_from_its_checkpoint_as_if_nothing_had_happened(
    copied, finished, system, data, capsys
):
    train(system, data, copied)
    assert "resuming after step 15 of 30" in capsys.readouterr().err
    assert model(copied) == model(finished[0])
    assert lines(copied) == lines(finished[0])


def test_the_source_and_the_log_may_change_on_the_way(copied, finished, system, data):
    """Clips are now decoded on the way: the other data path trains alike."""
    train(with_train(system, source="streaming", log_every=4), data, copied)
    assert_trained_alike(copied, finished[0])
    log = [json.loads(line) for line in (copied / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [5, 10, 15, 16, 20, 24, 28, 30]
    timed = [line["step"] for line in log if "waiting" in line]
    assert 16 not in timed  # it was compiling
    assert len(timed) == 7


def test_front_ends_run_once_for_a_clip_where_no_wave_changes(data, tmp_path, monkeypatch):
    """The networks see what they see when every step makes its own inputs."""
    system = small_system(
        encoders=(Bands(embedding=8, bands=16), Bands("spectrum", 4, 16)),
        steps=PASSES,
        augment=Augment(mask=4, mixup=0.5),
        held_out=0.2,
    )
    kept, resident = [], loop.resident

    def noted(*given):
        source = resident(*given)
        kept.append([x.shape[1:] for x in jax.tree.leaves(source.store[0])])
        return source

    monkeypatch.setattr(loop, "resident", noted)
    train(system, data, tmp_path / "kept")
    inputs = [(11, 16), (1, 1), (16,)]  # 11 frames of 0.4 s, the mean that hides, the spectrum
    assert kept == [inputs, inputs]  # of training, and of what is held out
    train(with_train(system, source="streaming"), data, tmp_path / "streamed")
    assert_trained_alike(tmp_path / "kept", tmp_path / "streamed")
    # Clips that are held out are validated as they were, also where those that train are cropped.
    cropped = with_train(system, augment=replace(system.train.augment, crop="random"))
    train(cropped, data, tmp_path / "cropped")
    assert kept[2:] == [[(16_000,)], inputs]
    train(with_train(cropped, source="streaming"), data, tmp_path / "streamed_crops")
    for one, other in (("kept", "streamed"), ("cropped", "streamed_crops")):
        mine, theirs = (lines(tmp_path / name)[-1] for name in (one, other))
        for name in ("held_out_accuracy", "held_out_spread"):
            # as `assert_trained_alike`; whole clips have another spread, of 0.01
            assert mine[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-4), (one, name)


@pytest.mark.parametrize(
    ("field", "value"), [("seed", "0 before, 1 now"), ("ema", "0.5 before, 0.9 now")]
)
def test_another_training_is_refused_and_nothing_is_lost(
    copied, system, data, field, value, monkeypatch
):
    before, now = contents(copied), float(value.split()[2])
    monkeypatch.setattr(Architecture, "initialize", stop)  # it does not come to that
    with pytest.raises(InputError, match=f"train.{field}: {value}"):
        train(with_train(system, **{field: int(now) if now == 1 else now}), data, copied)
    assert contents(copied) == before


def test_signals_save_stop_and_lose_nothing(finished, system, data, tmp_path, monkeypatch):
    """SIGTERM in the 7th pass, in the middle of an update; then Ctrl-C in the 12th."""
    out = tmp_path / "run"
    for at, number, raised in (
        (7, signal.SIGTERM, SystemExit),
        (5, signal.SIGINT, KeyboardInterrupt),
    ):
        with monkeypatch.context() as patch:
            disturb(patch, at, lambda state, n=number: signal.raise_signal(n) or state)
            with pytest.raises(raised) as left:
                train(system, data, out)
        if raised is SystemExit:
            assert left.value.code == 143
        assert not (out / "model.safetensors").exists()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step_12", "step_7"]
    train(system, data, out)
    assert model(out) == model(finished[0])
    ours = lines(out)
    assert [line["step"] for line in ours] == [5, 7, 10, 12, 15, 20, 25, 30]
    assert [ours[0], *ours[5:]] == [lines(finished[0])[i] for i in (0, 3, 4, 5)]


def test_a_signal_in_the_last_pass_leaves_only_the_model_to_write(
    finished, copied, system, data, monkeypatch
):
    with monkeypatch.context() as patch:
        disturb(patch, 15, lambda state: signal.raise_signal(signal.SIGTERM) or state)
        with pytest.raises(SystemExit):
            train(system, data, copied)
    assert not (copied / "model.safetensors").exists()
    monkeypatch.setattr(loop, "make_step", lambda *_: stop)
    train(system, data, copied)
    assert model(copied) == model(finished[0])
    assert lines(copied) == lines(finished[0])


def test_numbers_that_are_not_finite_stop_and_spare_the_checkpoint(
    copied, system, data, monkeypatch
):
    def spoil(state):
        spoilt = {name: value * jnp.nan for name, value in state.trainable.items()}
        return state._replace(trainable=spoilt)

    before = contents(copied / "checkpoints")
    disturb(monkeypatch, 3, spoil)
    with pytest.raises(InputError, match=r"not finite at step 18 .*loss nan") as stopped:
        train(system, data, copied)
    said = str(stopped.value)
    assert "Last good checkpoint: step 15." in said
    for name in ("loss", "accuracy", "gradient_norm", "embedding_norm"):
        assert f"{name} " in said
    assert [line["step"] for line in lines(copied)] == [5, 10, 15]
    assert contents(copied / "checkpoints") == before
    assert not (copied / "model.safetensors").exists()


def test_the_best_weights_are_taken_if_asked_for(finished, system, data, tmp_path, monkeypatch):
    accuracies, saved, save = iter([0.9, 0.1]), {}, loop.Checkpoints.save

    def keep(self, step, state, metric):
        saved[step] = jax.device_get(state.average)
        save(self, step, state, metric)

    monkeypatch.setattr(loop.Checkpoints, "save", keep)
    monkeypatch.setattr(loop, "_validate", lambda *_: {"held_out_accuracy": next(accuracies)})
    train(with_train(system, select="best"), data, tmp_path)
    chosen = weights_file.load(tmp_path / "model.safetensors").arrays
    last = weights_file.load(finished[0] / "model.safetensors").arrays
    for found, step in ((chosen, 15), (last, 30)):
        assert found.keys() == saved[step].keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value, saved[step][name])


# Validation


def test_accuracy_and_spread_are_over_the_held_out_clips_alone():
    """Six clips in batches of four: the last two rows of the second batch are clips again."""
    right = np.array([1, 0.5, 0, 1, 1, 1, 0, 0])
    unit = np.eye(2)[[0, 0, 0, 1, 1, 1, 1, 1]]
    seen = []

    def validate(weight, statistics, frozen, store, rows):
        seen.append((weight, statistics))
        return jnp.asarray(right[rows]), jnp.asarray(unit[rows])

    held = SimpleNamespace(store=(), batches=lambda first: (r for r in np.arange(8).reshape(2, 4)))
    averaged = state_of({"w": 1}, {"s": 2}, {"w": 3, "s": 4})
    found = loop._validate(validate, held, 6, 4, averaged, {})
    # three vectors along each axis: their mean (1/2, 1/2) has length sqrt(1/2)
    assert found == {
        "held_out_accuracy": pytest.approx(0.75),
        "held_out_spread": pytest.approx(1 - 0.5**0.5),
    }
    loop._validate(validate, held, 6, 4, state_of({"w": 1}, {"s": 2}, {}), {})
    assert seen == [({"w": 3}, {"s": 4})] * 2 + [({"w": 1}, {"s": 2})] * 2


def state_of(trainable, statistics, average):
    return TrainState(trainable, statistics, None, average, None, None)


@pytest.mark.parametrize(
    ("unit", "spread"),
    [([[1, 0], [1, 0]], 0), ([[1, 0], [-1, 0]], 1), ([[1, 0], [0.6, 0.8]], 1 - 0.8**0.5)],
)
def test_the_spread_of_known_vectors(unit, spread):
    def validate(*_):
        return jnp.ones(2), jnp.asarray(unit, jnp.float32)

    held = SimpleNamespace(store=(), batches=lambda first: (None for _ in range(1)))
    found = loop._validate(validate, held, 2, 2, state_of({}, {}, {}), {})
    assert found["held_out_spread"] == pytest.approx(spread, abs=1e-6)  # float32


# Signals


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupt.caught() as asked:
        assert not asked.asked(agree=True)
        signal.raise_signal(signal.SIGINT)
        assert asked.asked(agree=False)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_nothing_asked_nothing_left():
    left = []
    with interrupt.caught() as asked:
        asked.leave()
        left.append("the program goes on")
    assert left


def test_other_threads_train_without_signals():
    found = []

    def run():
        with interrupt.caught() as asked:
            found.append(asked.asked(agree=True))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
