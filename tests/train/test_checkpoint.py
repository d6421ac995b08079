"""Checkpoints survive what happens to a run: donation, kills, damage, other commands."""

import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asdjax.train.checkpoint import Checkpoints
from asdjax.types import InputError

DESCRIBED = {"train": {"peak": 1e-4, "heads": [{"margin": 0.2}, {"margin": 0.5}]}, "data": "abc"}
MESH = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
COPIED, SPLIT = jax.NamedSharding(MESH, jax.P()), jax.NamedSharding(MESH, jax.P("data"))


class State(NamedTuple):
    trainable: dict
    optimizer: optax.OptState
    average: dict
    key: jax.Array
    step: jax.Array


def make_state(step=0):
    draw = np.random.default_rng(step).standard_normal
    params = {
        "backbone.layers.0.attn.q.lora_a": jnp.asarray(draw((4, 6)), jnp.float32),
        "heads.0.centers": jnp.asarray(draw((2, 1, 6)), jnp.bfloat16),
    }
    adam = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(lambda count: 0.1))
    optimizer = optax.MultiSteps(adam, 2).gradient_transformation().init(params)
    state = State(params, optimizer, {}, jax.random.key(step + 1), jnp.int32(step))
    state = jax.device_put(state, COPIED)
    split = jax.device_put(params["backbone.layers.0.attn.q.lora_a"], SPLIT)
    return state._replace(average={"backbone.layers.0.attn.q.lora_a": split})


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.dtype, a.shape, a.sharding) == (b.dtype, b.shape, b.sharding)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def write(folder, *steps, metrics=None, **options):
    """Save made-up states; return the steps left on disk."""
    metrics = metrics or [None] * len(steps)
    with Checkpoints(folder, DESCRIBED, **options) as checkpoints:
        for step, metric in zip(steps, metrics, strict=True):
            checkpoints.save(step, make_state(step), metric)
    return sorted(int(path.name.removeprefix("step_")) for path in folder.iterdir())


def test_state_comes_back_with_types_dtypes_and_placement(tmp_path):
    state = make_state(7)
    write(tmp_path, 7)
    with Checkpoints(tmp_path, DESCRIBED) as checkpoints:
        assert checkpoints.latest() == 7
        got, step = checkpoints.restore(abstract(state))
    assert step == 7
    assert_equal(got, state)


def test_state_can_move_to_another_placement(tmp_path):
    write(tmp_path, 7)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    state = jax.device_put(make_state(7), one)
    with Checkpoints(tmp_path, DESCRIBED) as checkpoints:
        assert_equal(checkpoints.restore(abstract(state))[0], state)


def test_an_empty_folder_has_nothing(tmp_path):
    with Checkpoints(tmp_path / "new" / "folder", DESCRIBED) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.best() is None


def test_relative_folders_are_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write(Path("checkpoints"), 1) == [1]


@pytest.mark.parametrize(
    ("metrics", "keep", "left", "best"),
    [
        ([None] * 4, 2, [3, 4], None),
        ([0.9, 0.1, 0.2, 0.3], 2, [1, 3, 4], 1),  # larger is better
        ([0.1, 0.5, 0.5, 0.3], 1, [3, 4], 3),  # the newer of equals
        ([0.1, 0.2, 0.9, 0.3], 2, [3, 4], 3),
        ([float("nan"), -0.5, None, None], 1, [2, 4], 2),  # what was not measured is not best
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, metrics, keep, left, best):
    assert write(tmp_path, 1, 2, 3, 4, metrics=metrics, keep=keep) == left
    with Checkpoints(tmp_path, DESCRIBED, keep=keep) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (4, best)


def test_the_best_stays_best_after_a_restart(tmp_path):
    write(tmp_path, 1, 2, metrics=[0.9, 0.1], keep=1)
    assert write(tmp_path, 3, 4, metrics=[0.5, 0.6], keep=1) == [1, 4]
    state = make_state(1)
    with Checkpoints(tmp_path, DESCRIBED) as checkpoints:
        got, step = checkpoints.restore(abstract(state), checkpoints.best())
    assert step == 1
    assert_equal(got, state)


def test_another_training_is_refused_with_every_field_that_differs(tmp_path):
    write(tmp_path, 1)
    other = {"train": {"peak": 5e-5, "heads": [{"margin": 0.2}]}, "data": "abc", "seed": 3}
    with Checkpoints(tmp_path, other) as checkpoints:
        with pytest.raises(InputError) as caught:
            checkpoints.restore(abstract(make_state()))
        assert checkpoints.latest() == 1  # nothing was removed
    said = str(caught.value).splitlines()
    assert said[1:-1] == [
        "  seed: nothing before, 3 now",
        "  train.heads.1.margin: 0.5 before, nothing now",
        "  train.peak: 0.0001 before, 5e-05 now",
    ]
    assert "same command" in said[-1]
    assert "--out" in said[-1]
    assert "--force" in said[-1]


def test_tuples_and_lists_of_a_description_are_the_same(tmp_path):
    write(tmp_path, 1)
    train = {**DESCRIBED["train"], "heads": tuple(DESCRIBED["train"]["heads"])}
    with Checkpoints(tmp_path, {**DESCRIBED, "train": train}) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 1


@pytest.mark.parametrize("sharding", [COPIED, SPLIT, None])
def test_donated_state_is_saved_as_it_was(tmp_path, sharding):
    """Steps that overwrite the state at once, for as long as it is written."""
    state = {str(i): jnp.arange(2**18, dtype=jnp.float32) + i for i in range(8)}
    state = jax.device_put(state, sharding or jax.devices()[0])
    want = jax.tree.map(np.array, state)  # copies, not views that would forbid donation
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: -x - 1, s), donate_argnums=0)
    state = overwrite(overwrite(state))
    state = jax.block_until_ready(state)
    with Checkpoints(tmp_path, DESCRIBED) as checkpoints:
        expected = abstract(state)
        checkpoints.save(1, state)
        for _ in range(20):
            state = overwrite(state)
        jax.block_until_ready(state)
        got, _ = checkpoints.restore(expected)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_half_written_and_half_removed_checkpoints_are_removed(tmp_path):
    write(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "step_2", tmp_path / "step_3.orbax-checkpoint-tmp")
    (tmp_path / "step_3.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").unlink()
    shutil.copytree(tmp_path / "step_1", tmp_path / "step_0.removed")
    assert write(tmp_path, 3) == [2, 3]


@pytest.mark.parametrize("name", ["model.safetensors", "step_3.zip", "step_best", "30"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "step_1.removed").mkdir()
    with (
        pytest.raises(InputError, match=f"nothing but checkpoints .* got {name}"),
        Checkpoints(tmp_path, DESCRIBED),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "step_1.removed"])


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with (
        pytest.raises(InputError, match="expected a folder for checkpoints, got the file"),
        Checkpoints(tmp_path / "checkpoints", DESCRIBED),
    ):
        pass


def test_hidden_files_do_not_matter(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    with Checkpoints(tmp_path, DESCRIBED) as checkpoints:
        assert checkpoints.latest() is None


def damage(path):
    """Cut the parts of a checkpoint to nothing, as a crash of the machine may."""
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    else:
        path.write_bytes(b"")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's own reads
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    "part", ["", "record", "state/_METADATA", "state/manifest.ocdbt", "state/d"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_there(tmp_path, part):
    write(tmp_path, 1, 2, 3, keep=3)
    damage(tmp_path / "step_3" / part)
    state = make_state(2)
    with (
        Checkpoints(tmp_path, DESCRIBED, keep=3) as checkpoints,
        pytest.raises(InputError, match=r"step_3, got: (.|\n)*remove that folder"),
    ):
        checkpoints.restore(abstract(state))
    shutil.rmtree(tmp_path / "step_3")
    with Checkpoints(tmp_path, DESCRIBED, keep=3) as checkpoints:
        got, step = checkpoints.restore(abstract(state))
    assert step == 2
    assert_equal(got, state)
    gc.collect()  # the reads that orbax left behind warn here, not in a later test


def test_a_state_of_another_structure_is_not_taken_for_the_saved_one(tmp_path):
    """Another shape of an array too, but orbax then leaves reads behind that end in other tests."""
    write(tmp_path, 1)
    state = make_state()
    with (
        Checkpoints(tmp_path, DESCRIBED) as checkpoints,
        pytest.raises(InputError, match=r"step_1, got: .*structures do not match"),
    ):
        checkpoints.restore(abstract(state._replace(average={})))


def test_a_full_disk_is_the_users_to_mend(tmp_path, monkeypatch):
    class Full:
        def result(self):  # the words of tensorstore
            raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [28]")

    from orbax.checkpoint import v1 as ocp

    monkeypatch.setattr(ocp, "save_checkpointables_async", lambda *_: Full())
    with Checkpoints(tmp_path, DESCRIBED) as checkpoints:
        checkpoints.save(1, make_state())
        with pytest.raises(InputError, match=r"disk .* is full"):
            checkpoints.wait()
        assert checkpoints.latest() is None


def test_a_write_that_fails_is_raised_and_told_only_once(tmp_path, caplog, capfd):
    """No file may grow beyond a kilobyte: a disk that is full would take a disk."""
    state = {"values": jnp.asarray(np.random.default_rng(0).random(2**14), jnp.float32)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, DESCRIBED) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, limits[1]))
        try:
            checkpoints.save(1, state)
            with pytest.raises((OSError, ValueError), match="File too large"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.messages == []
    assert capfd.readouterr().err == ""


def test_at_least_one_checkpoint_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep >= 1, got 0"):
        Checkpoints(tmp_path, DESCRIBED, keep=0)


TRAINING = """
import json, sys
from pathlib import Path
import jax, numpy as np
from orbax.checkpoint import v1
from asdjax.train.checkpoint import Checkpoints

def state_of(step):  # not compressible, so that writing takes its time
    draw = np.random.default_rng(step).integers(0, 2**31 - 1, (8, 2**16), np.int32)
    return {"values": jax.numpy.asarray(draw), "step": jax.numpy.int32(step)}

done = int(sys.stdin.readline())
with Checkpoints(Path(sys.argv[1]), json.loads(sys.argv[2])) as checkpoints:
    latest = checkpoints.latest() or 0
    assert latest == done, (latest, done)
    if done:
        want = state_of(done)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in want.items()
        }
        got, step = checkpoints.restore(abstract)
        assert step == done and all(np.array_equal(got[name], want[name]) for name in want)
    for step in range(done + 1, done + 200):
        checkpoints.save(step, state_of(step))
"""


def test_a_kill_while_saving_always_leaves_the_newest_complete_checkpoint(tmp_path):
    """Killed at different depths of a save, told by how many files it has written."""
    folder, depths = tmp_path / "checkpoints", (0, 3, 8)
    code = [sys.executable, "-c", TRAINING, str(folder), json.dumps(DESCRIBED)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    trainings = [subprocess.Popen(code, env=environment, **pipes) for _ in depths]

    def complete():
        return max((int(path.name[5:]) for path in folder.glob("step_*[0-9]")), default=0)

    def half_written():
        return max((len(list(path.rglob("*"))) for path in folder.glob("*-tmp*")), default=-1)

    done = 0
    try:
        for training, depth in zip(trainings, depths, strict=True):
            print(done, file=training.stdin, flush=True)
            while complete() < done + 2 or half_written() < depth:
                assert training.poll() is None, training.stderr.read()
                time.sleep(0.001)
            training.kill()
            training.wait()
            done = complete()
    finally:
        for training in trainings:
            training.kill()
            training.communicate()
    shapes = {
        "values": jax.ShapeDtypeStruct((8, 2**16), jnp.int32, sharding=COPIED),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=COPIED),
    }
    with Checkpoints(folder, DESCRIBED) as checkpoints:
        state, step = checkpoints.restore(shapes)
    assert step == done == int(state["step"])
