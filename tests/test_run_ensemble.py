"""`asdjax run` of an ensemble: what it asks of each member, and of the stage that combines them."""

from dataclasses import replace
from pathlib import Path

import pytest

from asdjax import __main__ as command_line
from asdjax.models import weights_file
from asdjax.models.weights_file import Header
from asdjax.recipes import RECIPES
from asdjax.stages.lock import LOCK
from asdjax.types import InputError

NAME = "aithu2024/system1"
RECIPE = RECIPES[NAME].config


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Return a function that runs the ensemble without its stages, and what it asked of them."""
    for kind in ("beats", "eat"):
        weights_file.save(tmp_path / f"{kind}.safetensors", {}, Header(kind, {}))

    def called(*words):
        members, ensembles = [], []

        def run_members(given, data):
            assert (tmp_path / "out" / LOCK).exists()
            assert tuple(given) == RECIPE.members
            members.extend((system, data, out, options) for system, out, options in given.values())

        def combine(runs, config, out, force=False):
            assert len(members) == len(runs)  # first the members, then their scores
            ensembles.append((runs, config, out, force))

        monkeypatch.setattr(command_line.stages, "run_members", run_members)
        monkeypatch.setattr(command_line.combining, "combine_members", combine)
        where = ["--data", tmp_path / "data", "--out", tmp_path / "out", *words]
        command_line.dispatch(["run", NAME, *map(str, where)])
        (ensemble,) = ensembles
        return members, ensemble

    return called


def weights_of(system) -> list[str]:
    return [encoder.weights for encoder in system.encoders]


def test_every_member_gets_the_weights_asked_for(called, tmp_path):
    own = {
        "beats-iter3": str(tmp_path / "beats.safetensors"),
        "eat-base": str(tmp_path / "eat.safetensors"),
    }
    members, _ = called("--weights", *own.values())
    asked = dict(zip(RECIPE.members, members, strict=True))
    for name, (system, *_) in asked.items():
        recipe = RECIPES[name].config
        assert weights_of(system) == [own[weights] for weights in weights_of(recipe)]
        back = {path: weights for weights, path in own.items()}
        assert system.with_backbones(back) == recipe  # and nothing else is changed
    assert weights_of(asked["aithu2024/dual"][0]) == list(own.values())


@pytest.mark.parametrize("force", [False, True])
def test_force_reaches_members_and_ensemble(called, tmp_path, force):
    words = ["--weights", tmp_path / "beats.safetensors", tmp_path / "eat.safetensors"]
    members, ensemble = called(*words, *["--force"] * force)
    assert [options["force"] for *_, options in members] == [force] * 3
    folders = [tmp_path / "out" / "members" / name for name in RECIPE.members]
    assert ensemble == (folders, RECIPE.ensemble, tmp_path / "out", force)


def test_members_get_what_was_told_and_folders_of_their_own(called, tmp_path):
    words = ["--weights", tmp_path / "beats.safetensors", tmp_path / "eat.safetensors"]
    words += ["--runs", tmp_path / "runs", "--year", 2022, "--ground-truth", "truth", "--skip-bad"]
    members, (folders, *_) = called(*words)
    assert folders == [tmp_path / "runs" / name for name in RECIPE.members]
    for name, folder, (_, data, out, options) in zip(RECIPE.members, folders, members, strict=True):
        assert (data, out) == (tmp_path / "data", folder)
        assert options == {
            "year": 2022,
            "ground_truth": Path("truth"),
            "skip_bad": True,
            "force": False,
            "keep_checkpoints": False,
            "reuse": tuple(other for other in folders if other != folder),
            "reported": replace(
                RECIPES[name].reported, machines=16 if name == RECIPE.members[0] else 0
            ),
        }


def test_fields_of_one_member_or_of_all_can_be_changed(called, tmp_path):
    words = ["--weights", tmp_path / "beats.safetensors", tmp_path / "eat.safetensors"]
    words += ["--all.train.steps", 16, "--beats-lora.train.seed=3", "--all.encoders.1.no-dropout"]
    words += ["--eat-lora.encoders.0.adapter.targets", "q", "v", "--eat-lora.train.steps", 24]
    words += ["--all.train.log_every=7"]
    members, _ = called(*words)
    beats, eat, dual = (system for system, *_ in members)
    assert RECIPE.members == ("aithu2024/beats-lora", "aithu2024/eat-lora", "aithu2024/dual")
    assert [one.train.steps for one in (beats, eat, dual)] == [16, 24, 16]
    assert [one.train.seed for one in (beats, eat, dual)] == [3, 0, 0]
    assert {one.train.log_every for one in (beats, eat, dual)} == {7}
    dropout = [[encoder.dropout for encoder in one.encoders] for one in (beats, eat, dual)]
    assert dropout == [[True], [True], [True, False]]  # only one member has a second encoder
    targets = [one.encoders[0].adapter.targets for one in (beats, eat, dual)]
    assert targets == [("q", "v", "out"), ("q", "v"), ("q", "v", "out")]


def test_fields_that_no_member_has_are_refused(called):
    with pytest.raises(InputError, match=r"--all\.train\.stepps: no member has this field"):
        called("--all.train.stepps", 16)
    for wrong in ("--beats-lora.train.stepps", "--beats-full.train.steps", "--train.steps"):
        with pytest.raises(SystemExit) as ended:
            called(wrong, 16)
        assert ended.value.code == 2
