"""A trained system from the command line to official numbers, and every mistake before it starts.

How well a run goes on when it is stopped is shown in `train/test_loop.py`.
"""

import csv
import json
import re
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from machines import tiny_backbone
from safetensors import safe_open
from safetensors.numpy import save_file
from trainings import hum_machine, lines, two_machines

from asdjax import __main__ as command_line
from asdjax.data.audio import read
from asdjax.files import sha256_file
from asdjax.models import weights_file
from asdjax.models.system import Architecture
from asdjax.recipes import RECIPES
from asdjax.stages import folder
from asdjax.stages.recordings import read_weights
from asdjax.train import loop
from asdjax.types import InputError

RECIPE = "korea2025/system1"
SMALL = [  # streaming: one compiled step serves sets of any size
    *("--encoders.0.adapter.rank", 2, "--encoders.0.embedding", 8, "--audio.seconds", 0.4),
    *("--train.steps", 36, "--train.batch", 12, "--train.source", "streaming"),
    *("--train.log-every", 12, "--train.optimizer.schedule.warmup", 2),
    *("--train.optimizer.schedule.peak", 0.003, "--batch", 20),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three machines, which are classes; of two, the attributes would be the classes."""
    root = two_machines(tmp_path_factory.mktemp("machines"))
    hum_machine(root, "valve", 1000.0, seed=3)
    return root


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
        for machine in ("fan", "pump", "valve")
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
        "0": ["fan section_00", "pump section_00", "valve section_00"]
    }


def test_the_machines_are_learned(ran):
    """They hum at three pitches."""
    first, _, last = lines(ran)
    assert last["loss"] < 0.5 * first["loss"]
    assert last["accuracy"] > 0.55  # chance: a third; mean over 12 steps


def test_the_command_line_changes_any_field_of_the_recipe(ran, weights):
    system, recipe = folder.load(ran).system, RECIPES[RECIPE].config
    (encoder,) = recipe.encoders
    adapter = replace(encoder.adapter, rank=2)
    changed = replace(encoder, weights=str(weights), adapter=adapter, embedding=8)
    assert system.encoders == (changed,)
    schedule = replace(recipe.train.optimizer.schedule, warmup=2, peak=0.003)
    assert system.batch == 20
    assert system.train == replace(
        recipe.train,
        steps=36,
        batch=12,
        source="streaming",
        log_every=12,
        optimizer=replace(recipe.train.optimizer, schedule=schedule),
    )


def test_embeddings_are_those_of_what_was_trained(ran):
    run = folder.load(ran)
    trained = weights_file.load(ran / "model.safetensors").arrays
    networks = tuple(encoder.network(6400) for encoder in run.system.encoders)
    embedder = Architecture(networks).embedder(trained)
    clips = run.groups["pump", "section_00"]
    rows = folder.load_embeddings(ran, run, ("pump", "section_00")).values
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


REFUSED = "model.safetensors is there already, from other settings or recordings:\n  "


def test_a_model_of_another_training_is_not_replaced(copied, ran, command, data, tmp_path):
    """Though the training that is wanted could be taken from another run."""
    before = contents(copied)
    assert command("train", copied, "--train.seed", 1, "--reuse", ran)[0] == 1
    code, said = command("train", copied, "--train.seed", 1, "--encoders.0.adapter.rank", 3)
    assert code == 1
    ranks, seeds = said.split(REFUSED)[1].splitlines()[:2]
    assert ranks == "encoders.0.adapter.rank: 2 before, 3 now"
    assert seeds.strip() == "train.seed: 0 before, 1 now"
    assert "replace it with --force" in said
    changed = shutil.copytree(data, tmp_path / "data")
    path = next((changed / "pump" / "train").iterdir())
    shutil.copy(next((changed / "fan" / "train").iterdir()), path)
    code, said = command("train", copied, "--data", changed)
    assert code == 1
    assert said.split(REFUSED)[1].splitlines()[0] == "recordings.pump section_00.content differs"
    assert contents(copied) == before


def test_a_model_that_was_changed_is_not_replaced(copied, ran, command):
    path = copied / "model.safetensors"
    trained, header, _ = weights_file.load(path)
    weights_file.save(path, trained, replace(header, config={"of": "another"}))
    before = contents(copied)
    code, said = command("train", copied, "--reuse", ran)
    assert code == 1
    assert "was changed after it was finished" in said
    assert contents(copied) == before


def test_a_lost_list_of_finished_work_loses_no_training(copied, command, capsys):
    """The model says itself what it was trained on."""
    (copied / "finished.json").unlink()
    (copied / "checkpoints" / "step_36").mkdir(parents=True)
    before = times(copied, "model.safetensors")
    code, said = command("train", copied, "--train.batch", 6)
    assert code == 1
    assert "train.batch: 12 before, 6 now" in said
    assert command("train", copied) == (0, "")
    assert "already trained" in capsys.readouterr().err
    assert not (copied / "checkpoints").exists()
    assert command("embed", copied) == (0, "")
    assert times(copied, "model.safetensors") == before


def test_a_training_of_an_earlier_version_is_refused_in_words(copied, command):
    (copied / "finished.json").unlink()
    path = copied / "model.safetensors"
    trained, header, _ = weights_file.load(path)
    weights_file.save(path, trained, replace(header, config={"data_sha256": "e3b0c442"}))
    code, said = command("train", copied)
    assert code == 1
    assert "asdjax: an earlier version before" in said
    assert "e3b0c442" not in said


def test_a_copy_leaves_the_checkpoints_of_another_training(ran, command, tmp_path, capsys):
    out = tmp_path / "run"
    (out / "checkpoints" / "step_4").mkdir(parents=True)
    assert command("train", out, "--reuse", ran) == (0, "")
    assert f"model.safetensors copied from {ran}" in capsys.readouterr().err
    assert (out / "checkpoints" / "step_4").is_dir()


@pytest.fixture
def stopped(monkeypatch):
    """A training stops before its first step."""

    def stopped(*_):
        raise InputError("stopped")

    monkeypatch.setattr(loop, "make_step", stopped)


@pytest.mark.usefixtures("stopped")
def test_why_a_training_is_not_copied_is_told(ran, command, tmp_path, capsys):
    command("train", tmp_path / "run", "--reuse", ran, "--train.steps", 2)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{ran} has another training: train.steps: 36 before, 2 now" in said


def test_an_ensembles_folder_is_no_place_for_a_run(command, tmp_path):
    (tmp_path / "ensemble.json").write_text("{}")
    code, said = command("train", tmp_path)
    assert code == 1
    assert "holds an ensemble" in said
    assert [path.name for path in tmp_path.iterdir()] == ["ensemble.json"]


def test_the_model_says_what_it_was_trained_on(ran):
    key = weights_file.read_header(ran / "model.safetensors").config
    assert key == json.loads((ran / "finished.json").read_text())["model.safetensors"]["key"]
    assert key["train"]["steps"] == 36
    assert key["recordings"]["fan section_00"]["clips"] == 12
    assert "log_every" not in key["train"]


@pytest.mark.parametrize("select", ["last", "best"])
def test_how_often_is_saved_matters_only_to_the_best(ran, select):
    run = folder.load(ran)
    changed = [
        replace(run.system.train, held_out=0.4, select=select, save_every=n) for n in (1, 500)
    ]
    one, other = (
        replace(run, system=replace(run.system, train=train)).model(ran).key for train in changed
    )
    assert (one == other) == (select == "last")


def test_checkpoints_are_removed_after_training_unless_they_are_kept(ran, command, tmp_path):
    assert not (ran / "checkpoints").exists()
    out = tmp_path / "run"
    assert command("train", out, "--keep-checkpoints") == (0, "")
    assert [path.name for path in (out / "checkpoints").iterdir()]
    assert (out / "model.safetensors").read_bytes() == (ran / "model.safetensors").read_bytes()
    assert command("train", out, "--keep-checkpoints") == (0, "")
    assert (out / "checkpoints").is_dir()
    assert command("train", out) == (0, "")
    assert (out / "checkpoints").is_dir()  # what was kept stays


def test_force_trains_anew_from_the_start(copied, ran, command, capsys):
    before = times(copied, "model.safetensors")
    assert command("train", copied, "--force")[0] == 0
    assert "resuming" not in capsys.readouterr().err
    assert times(copied, "model.safetensors") != before
    for name in ("model.safetensors", "labels.json"):
        assert (copied / name).read_bytes() == (ran / name).read_bytes()
    assert lines(copied) == lines(ran)


@pytest.mark.usefixtures("stopped")
def test_a_forced_training_that_is_stopped_leaves_no_model_of_the_earlier_one(copied, command):
    """Else the same command without --force would call it trained."""
    assert command("train", copied, "--force") == (1, "asdjax: stopped")
    assert not (copied / "model.safetensors").exists()
    assert command("embed", copied)[0] == 1


# Mistakes


@pytest.fixture
def nothing_compiles(monkeypatch):
    """The first thing that training compiles is the start of its weights."""

    def compiled(*_):
        raise AssertionError("it came to compile something")

    monkeypatch.setattr(Architecture, "initialize", compiled)


BRANCH = "--encoders.0"
MISTAKES = {
    "matches nothing": ([f"{BRANCH}.adapter.targets", "qq"], "targets that match no layer"),
    "a norm": ([f"{BRANCH}.adapter.targets", "q", "attn_norm"], "attn_norm: LayerNorm"),
    "too wide": ([f"{BRANCH}.adapter.rank", 33], "narrower than rank 33"),
    "class token": ([f"{BRANCH}.pooling", "cls"], "has no class token"),
    "devices": (["--train.batch", 3], "divides over 2 devices"),
    "warm-up": (["--train.optimizer.schedule.warmup", 37], "a warm-up within the run's 36 steps"),
    "none to choose by": (
        ["--train.held-out", 0.01, "--train.select", "best"],
        "expected clips to hold out",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
@pytest.mark.usefixtures("nothing_compiles")
def test_mistakes_are_reported_before_anything_is_compiled_or_lost(
    ran, command, changes, message, tmp_path
):
    before = contents(ran)
    for out, *force in ((tmp_path / "run",), (ran, "--force")):
        code, said = command("run", out, *changes, *force)
        assert code == 1
        assert said.startswith("asdjax: ")
        assert message in said
    assert contents(ran) == before
    assert not list((tmp_path / "run").glob("[!p]*"))


@pytest.mark.usefixtures("nothing_compiles")
def test_missing_weights_are_reported_before_anything_else(data, tmp_path, monkeypatch):
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


def test_one_machine_alone_is_told_apart_by_clusters_within_its_attributes(
    data, weights, tmp_path, capsys
):
    shutil.copytree(data / "fan", tmp_path / "data" / "fan")
    where = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--weights", weights]
    assert call("train", RECIPE, *where, *SMALL, "--train.steps", 2) == (0, "")
    assert "too few classes to train on (2)" in " ".join(capsys.readouterr().err.split())
    names = json.loads((tmp_path / "run" / "labels.json").read_text())["0"]
    assert len(names) >= 3
    for name in names:
        assert re.fullmatch(r"fan section_00 spd_[01] pseudo_\d\d", name)


@pytest.mark.usefixtures("stopped")
def test_a_batch_larger_than_the_set_becomes_smaller(command, tmp_path, capsys):
    """That it trains is shown in `test_own_recordings.py`."""
    assert command("train", tmp_path / "run", "--train.batch", 38) == (1, "asdjax: stopped")
    said = " ".join(capsys.readouterr().err.split())
    assert "batch of 32 instead of 38: there are 36 training clips" in said


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


def test_weights_that_are_not_numbers_are_refused_before_anything_is_trained(
    weights, data, tmp_path
):
    arrays, header, _ = weights_file.load(weights)
    arrays["layers.0.fc1.kernel"] = arrays["layers.0.fc1.kernel"] * np.nan
    path, out = tmp_path / "nan.safetensors", tmp_path / "run"
    weights_file.save(path, arrays, header)
    code, said = call("train", RECIPE, "--data", data, "--out", out, "--weights", path, *SMALL)
    assert code == 1
    assert f"{path}: weights that are not finite in layers.0.fc1.kernel;" in said
    assert not (out / "log.jsonl").exists()


def test_weights_without_a_checksum_are_told(weights, tmp_path, capsys):
    path = tmp_path / "old.safetensors"
    with safe_open(weights, "numpy") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "checksum"}
    metadata["version"] = "1"
    save_file(weights_file.load(weights).arrays, path, metadata)
    for given, told in ((weights, False), (path, True)):
        assert read_weights(given) == sha256_file(given)
        assert ("without a checksum" in capsys.readouterr().err) == told


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
