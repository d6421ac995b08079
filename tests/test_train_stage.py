"""A trained system from the command line to official numbers, and every mistake before it starts.

How well a run goes on when it is stopped is shown in `train/test_loop.py`.
"""

import csv
import json
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from machines import tiny_backbone
from trainings import lines, quick_compiles, two_machines

import asdjax
from asdjax import __main__ as command_line
from asdjax import params, runs, training
from asdjax.data.audio import read
from asdjax.models.embedder import trained_embedder
from asdjax.recipes import RECIPES
from asdjax.train import loop
from asdjax.types import InputError

RECIPE = "korea2025/system1"
SMALL = [  # streaming: one compiled step serves sets of any size
    *(
        "--embedder.branches.0.adapter.rank",
        2,
        "--embedder.branches.0.embedding",
        8,
        "--audio.seconds",
        0.4,
    ),
    *("--train.steps", 24, "--train.batch", 4, "--train.source", "streaming"),
    *("--train.log-every", 8, "--train.optimizer.schedule.warmup", 2),
    *("--train.optimizer.schedule.peak", 0.01, "--batch", 20),
]


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compiles(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_machines(tmp_path_factory.mktemp("machines"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def call(*words):
    """Return exit code and last message of `asdjax WORDS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["asdjax", *map(str, words)])
        try:
            command_line.main()
        except SystemExit as exit:
            return (1, exit.code) if isinstance(exit.code, str) else (exit.code or 0, "")
    return 0, ""


@pytest.fixture(scope="module")
def ran(data, weights, tmp_path_factory):
    """A complete run from the command line; tests must not change it."""
    out = tmp_path_factory.mktemp("run") / "run"
    where = ["--data", data, "--out", out, "--weights", weights]
    assert call("run", RECIPE, *where, *SMALL) == (0, "")
    return out


@pytest.fixture
def copied(ran, tmp_path):
    return shutil.copytree(ran, tmp_path / "run")


@pytest.fixture
def command(data, weights):
    """Return a function that calls a stage of the small system."""

    def command(stage, out, *changes):
        where = ["--data", data, "--out", out, "--weights", weights]
        return call(stage, RECIPE, *where, *SMALL, *changes)

    return command


def contents(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def times(out, pattern):
    return {path.name: path.stat().st_mtime_ns for path in out.glob(pattern)}


# From recordings to numbers


def test_a_run_trains_and_scores(ran):
    names = {str(path.relative_to(ran)) for path in ran.rglob("*") if path.is_file()}
    scores = {
        f"scores/{kind}_{machine}_section_00_test.csv"
        for kind in ("anomaly_score", "decision_result")
        for machine in ("fan", "pump")
    }
    assert (
        scores
        | {
            "model.safetensors",
            "labels.json",
            "log.jsonl",
            "embeddings/fan_section_00.npz",
            "results.csv",
        }
        <= names
    )
    assert "official_score" in (ran / "results.csv").read_text()
    assert json.loads((ran / "labels.json").read_text()) == {
        "0": ["fan section_00", "pump section_00"]
    }


def test_the_machines_are_learned(ran):
    """They hum at two pitches."""
    first, _, last = lines(ran)
    assert last["loss"] < 0.5 * first["loss"]
    assert last["accuracy"] > 0.9


def test_the_command_line_changes_any_field_of_the_recipe(ran, weights):
    system, recipe = runs.load(ran).system, RECIPES[RECIPE].config
    (branch,) = recipe.embedder.branches
    branch = replace(
        branch, weights=str(weights), adapter=replace(branch.adapter, rank=2), embedding=8
    )
    assert system.embedder == replace(recipe.embedder, branches=(branch,))
    schedule = replace(recipe.train.optimizer.schedule, warmup=2, peak=0.01)
    assert system.batch == 20
    assert system.train == replace(
        recipe.train,
        steps=24,
        batch=4,
        source="streaming",
        log_every=8,
        optimizer=replace(recipe.train.optimizer, schedule=schedule),
    )


def test_embeddings_are_those_of_what_was_trained(ran):
    run = runs.load(ran)
    trained, _ = params.load(ran / "model.safetensors")
    backbone = asdjax.load_backbone(run.system.embedder.branches[0].weights)
    embedder = trained_embedder([backbone], run.system.embedder, trained)
    clips = run.groups["pump", "section_00"]
    rows = runs.load_embeddings(ran, run, ("pump", "section_00")).values
    wave = np.stack([read(clip.path, 0)[:6400] for clip in clips])
    expected = jax.jit(embedder.apply)(embedder.params, wave, np.full(len(wave), 6400))
    # 1e-5 of the largest: float32, in batches of another size
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_is_trained_is_kept(copied, command, capsys):
    before = times(copied, "model.safetensors"), times(copied, "embeddings/*")
    assert command("train", copied)[0] == 0
    assert "already trained" in capsys.readouterr().err
    assert command("run", copied, "--train.log-every", 5, "--train.source", "resident")[0] == 0
    assert "already trained" in capsys.readouterr().err
    assert (times(copied, "model.safetensors"), times(copied, "embeddings/*")) == before


def test_a_system_that_differs_in_its_scorer_alone_takes_the_training(
    ran, command, tmp_path, monkeypatch
):
    def train(*_, **told):
        raise InputError("it trained")

    monkeypatch.setattr(loop, "train", train)
    other = ["--reuse", ran, "--scorer.k", 2]
    assert command("run", tmp_path / "run", *other) == (0, "")
    for name in ("model.safetensors", "labels.json"):
        assert (tmp_path / "run" / name).read_bytes() == (ran / name).read_bytes()
    assert (tmp_path / "run" / "results.csv").exists()
    for changes in (["--force"], ["--train.seed", 1]):
        assert command("train", tmp_path / "other", *other, *changes) == (1, "asdjax: it trained")


def test_a_model_of_another_training_is_not_replaced(copied, ran, command):
    """Though the training asked for is there to be taken."""
    path = copied / "model.safetensors"
    trained, header = params.load(path)
    params.save(path, trained, replace(header, config={"of": "another"}))
    shutil.rmtree(copied / "checkpoints")
    code, said = command("train", copied, "--reuse", ran)
    assert code == 1
    assert "model.safetensors is of another training" in said


@pytest.mark.parametrize("select", ["last", "best"])
def test_how_often_is_saved_matters_only_to_the_best(ran, command, select):
    run = runs.load(ran)
    changed = [
        replace(run.system.train, held_out=0.4, select=select, save_every=n) for n in (1, 500)
    ]
    one, other = (
        training.training_of(replace(run, system=replace(run.system, train=train)))
        for train in changed
    )
    assert (one == other) == (select == "last")


def test_force_trains_anew_from_the_start(copied, ran, command, capsys):
    before = times(copied, "model.safetensors")
    assert command("train", copied, "--force")[0] == 0
    assert "going on" not in capsys.readouterr().err
    assert times(copied, "model.safetensors") != before
    for name in ("model.safetensors", "labels.json"):
        assert (copied / name).read_bytes() == (ran / name).read_bytes()
    assert lines(copied) == lines(ran)


def test_a_forced_training_that_is_stopped_leaves_no_model_of_the_earlier_one(
    copied, command, monkeypatch
):
    """Else the same command without --force would call it trained."""

    def stopped(*_):
        raise InputError("stopped")

    monkeypatch.setattr(loop, "make_step", stopped)
    assert command("train", copied, "--force") == (1, "asdjax: stopped")
    assert not (copied / "model.safetensors").exists()
    assert command("embed", copied)[0] == 1


# Mistakes


@pytest.fixture
def nothing_compiles(monkeypatch):
    """The first thing that training compiles is the start of its weights."""

    def compiled(*_):
        raise AssertionError("it came to compile something")

    monkeypatch.setattr(loop, "initialize", compiled)


BRANCH = "--embedder.branches.0"
MISTAKES = {
    "matches nothing": ([f"{BRANCH}.adapter.targets", "qq"], "targets that match no layer"),
    "a norm": ([f"{BRANCH}.adapter.targets", "q", "attn_norm"], "attn_norm: LayerNorm"),
    "too wide": ([f"{BRANCH}.adapter.rank", 33], "narrower than rank 33"),
    "class token": ([f"{BRANCH}.pooling", "cls"], "BEATs has no class token"),
    "large batch": (["--train.batch", 26], "a batch of at most 24 clips"),
    "devices": (["--train.batch", 3], "divides over 2 devices"),
    "warm-up": (["--train.optimizer.schedule.warmup", 25], "a warm-up within the run's 24 steps"),
    "none to choose by": (
        ["--train.held-out", 0.01, "--train.select", "best"],
        "expected clips to hold out",
    ),
}


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
@pytest.mark.usefixtures("nothing_compiles")
def test_mistakes_are_told_before_anything_is_compiled_or_lost(
    ran, command, changes, message, force
):
    before = contents(ran)
    code, said = command("run", ran, *changes, *force)
    assert code == 1
    assert said.startswith("asdjax: ")
    assert message in said
    assert contents(ran) == before


@pytest.mark.usefixtures("nothing_compiles")
def test_missing_weights_are_told_before_anything_else(data, tmp_path, monkeypatch):
    monkeypatch.setenv("ASDJAX_HOME", str(tmp_path / "home"))
    out = tmp_path / "run"
    where = ["--data", data, "--out", out]
    for weights, message in (
        ("beats-iter3", "asdjax weights fetch beats-iter3"),
        (tmp_path / "none.safetensors", "none.safetensors"),
    ):
        code, said = call("train", RECIPE, *where, "--weights", weights)
        assert code == 1
        assert message in said
    assert not out.exists()


@pytest.mark.usefixtures("nothing_compiles")
def test_one_machine_alone_cannot_be_classified(data, weights, tmp_path):
    shutil.copytree(data / "fan", tmp_path / "data" / "fan")
    where = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--weights", weights]
    code, said = call("train", RECIPE, *where, *SMALL)
    assert code == 1
    assert "at least 2 classes to tell apart, got 1" in said
    assert not (tmp_path / "run").exists()


def test_embedding_before_training_says_what_to_do(command, tmp_path):
    code, said = command("embed", tmp_path / "run")
    assert code == 1
    assert "holds no model of this system" in said
    assert "`run`" in said
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_system_is_not_taken_for_this_one(ran, command):
    before = contents(ran)
    code, said = command("embed", ran, "--train.seed", 1)
    assert code == 1
    assert "holds no model of this system and data" in said
    assert contents(ran) == before


def test_a_system_without_training_has_nothing_to_train(data, tmp_path):
    code, said = call("train", "frozen/logmel", "--data", data, "--out", tmp_path / "run")
    assert code == 1
    assert "nothing to train" in said


def test_weights_that_are_not_numbers_stop_the_first_step(weights, data, tmp_path):
    arrays, header = params.load(weights)
    arrays["layers.0.fc1.kernel"] = arrays["layers.0.fc1.kernel"] * np.nan
    params.save(tmp_path / "nan.safetensors", arrays, header)
    where = ["--data", data, "--out", tmp_path / "run", "--weights", tmp_path / "nan.safetensors"]
    code, said = call("train", RECIPE, *where, *SMALL)
    assert code == 1
    assert "not finite at step 1 (" in said
    assert "Last good checkpoint: none" in said


# Real recordings


def test_real_recordings_to_official_numbers(real_machines, command, tmp_path):
    assert command("run", tmp_path, "--data", real_machines) == (0, "")
    log = lines(tmp_path)
    assert log[-1]["loss"] < log[0]["loss"]
    with (tmp_path / "results.csv").open() as file:
        numbers = {
            (machine, metric): float(value) for machine, metric, value in [*csv.reader(file)][1:]
        }
    # The labels of 8 clips a cell move an AUC in steps of 1/128; chance and shift set its value.
    for machine in ("ToyCar", "valve"):
        assert (numbers[machine, "auc_source"] * 128) % 1 == pytest.approx(0, abs=1e-9)
    assert 0 < numbers["ALL", "official_score"] < 1
