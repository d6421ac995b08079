"""`asdjax run` of an ensemble: what it asks of each member, and of the stage that combines them."""

from pathlib import Path

import pytest

from asdjax import __main__ as command_line
from asdjax import params
from asdjax.recipes import RECIPES

NAME = "aithu2024/system1"
RECIPE = RECIPES[NAME].config


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Return a function that runs the ensemble without its stages, and what it asked of them."""
    for kind in ("beats", "eat"):
        params.save(tmp_path / f"{kind}.safetensors", {}, params.Header(kind, {}))

    def called(*words):
        members, ensembles = [], []

        def run(system, data, out, **options):
            members.append((system, data, out, options))

        def combine(runs, config, out, force=False):
            assert len(members) == len(runs)  # first the members, then their scores
            ensembles.append((runs, config, out, force))

        monkeypatch.setattr(command_line.pipeline, "run", run)
        monkeypatch.setattr(command_line, "combine", combine)
        where = ["--data", tmp_path / "data", "--out", tmp_path / "out", *words]
        command_line.dispatch(["run", NAME, *map(str, where)])
        (ensemble,) = ensembles
        return members, ensemble

    return called


def weights_of(system) -> list[str]:
    return [branch.weights for branch in system.embedder.branches]


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
            "reuse": tuple(other for other in folders if other != folder),
            "reported": RECIPES[name].parameters,
        }
