"""`asdjax fit`, `detect` and `export` as a user calls them."""

import json

import pytest
from trainings import two_machines

from asdjax import Detector
from asdjax.metrics import score_files


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_machines(tmp_path_factory.mktemp("data"))


@pytest.fixture
def fitted(call, data, tmp_path):
    code, _, err = call("fit", data, "--out", tmp_path / "m.asdjax", "--recipe", "frozen/logmel")
    assert code == 0
    assert not (tmp_path / "m.asdjax.fit").exists()
    assert "fan: alarm by 2 of 3 clips; limit for at most" in " ".join(err.split())
    return tmp_path / "m.asdjax"


def test_recordings_are_scored_by_a_fitted_detector(call, fitted, data):
    sounds = data / "pump" / "test"
    code, out, err = call("detect", fitted, sounds)
    assert code == 0
    assert out.count("pump") >= 8
    code, out, _ = call("detect", fitted, sounds, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    paths = [one["file"] for one in lines]
    assert paths == sorted(map(str, sounds.iterdir()))
    assert [one["score"] for one in lines] == Detector.load(fitted).score(paths).tolist()
    assert f"{sum(one['above'] for one in lines)} of 8 above the threshold" in err


def test_options_of_alarms_and_of_the_recipe_reach_the_detector(call, data, tmp_path):
    words = ["--alarms-per-week", 500000, "--every", 2, "--cusum", 0.5]
    words += ["--recipe=frozen/logmel", "--scorer.k", 2]
    code, _, _ = call("fit", data / "fan", data / "pump", "--out", tmp_path / "m", *words)
    assert code == 0
    made = Detector.load(tmp_path / "m")
    assert made.system.scorer.k == 2
    for one in made.machines:
        assert (one.every, one.rule.asked, one.rule.confirm.allowance) == (2.0, 500000, 0.5)


def test_a_run_is_exported(call, data, tmp_path):
    call("run", "frozen/logmel", "--data", data, "--out", tmp_path / "run")
    code, _, _ = call("export", tmp_path / "run", "--out", tmp_path / "m.asdjax")
    assert code == 0
    made = Detector.load(tmp_path / "m.asdjax")
    of_run = score_files.load(tmp_path / "run" / "scores")[0]
    got = made.score(data / of_run.machine / "test" / of_run.names[0])
    assert abs(got[0] - of_run.values[0]) <= 1e-6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "DATA", "--out", "OUT"], "expected a file for the detector, got a folder"),
        (
            ["fit", "--out", "x"],
            "expected folders or files of healthy recordings; usage: asdjax fit",
        ),
        (["fit", "absent", "--out", "x"], "absent: no such folder or file"),
        (["fit", "DATA", "--out", "x", "--recipe", "aithu2024/system1"], "is an ensemble"),
        (["fit", "DATA", "--out", "x", "--confirm", 4, 3], "k: expected in [1, n], got 4"),
        (["fit", "DATA", "--out", "x", "--alarms-per-week", 0], "expected above 0, got 0"),
        (["detect", "absent", "DATA"], "absent: no such file; expected a detector"),
        (["detect", "FITTED"], "expected recordings or folders of them, got none"),
        (["detect", "FITTED", "DATA", "--machine", "mill"], "expected a machine of fan, pump, got"),
        (["watch", "FITTED", "absent"], "absent: no such folder or file"),
        (["watch", "FITTED", "-"], "expected a machine of fan, pump, got"),
        (["watch", "FITTED", "DATA", "--hop", 9], "hops of up to a window"),
        (["update", "FITTED", "absent"], "absent: no such folder or file"),
        (["export", "absent", "--out", "x"], "expected a run's folder, got absent"),
    ],
)
def test_mistakes_get_one_message(words, message, call, fitted, data, tmp_path):
    places = {"DATA": data, "FITTED": fitted, "OUT": tmp_path}
    code, _, err = call(*(places.get(word, word) for word in words))
    assert code == 1
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_name_that_is_no_recipe_is_told_with_those_that_are(call, data):
    code, _, err = call("fit", data, "--out", "x", "--recipe", "frozen/logmell")
    assert code == 2
    assert "close names: frozen/logmel" in err
    code, out, _ = call("fit", data, "--out", "x", "--help")
    assert code == 0
    assert "--alarms-per-week" in out
