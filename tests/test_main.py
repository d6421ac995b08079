"""The command line: what it prints, its exit codes, and one clear message for each mistake."""

import errno
import shutil
import signal
import sys

import numpy as np
import pytest
from machines import tone_machine

from asdjax import __main__ as command_line
from asdjax import embedding, runs
from asdjax.recipes import RECIPES
from asdjax.scoring.score import Knn


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("machines")
    tone_machine(root, "fan")
    return root


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that gives exit code, output and messages of `asdjax WORDS`."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["asdjax", *map(str, words)])
        try:
            command_line.main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        shown = capsys.readouterr()
        if isinstance(code, str):  # Python prints it to standard error and exits with 1
            return 1, shown.out, shown.err + code
        return code or 0, shown.out, shown.err

    return call


def test_run_prints_the_table_and_evaluate_repeats_it(call, made, tmp_path):
    code, out, _ = call("run", "frozen/logmel", "--data", made, "--out", tmp_path / "run")
    assert code == 0
    assert "AUC source" in out
    code, again, _ = call("evaluate", tmp_path / "run/scores", "--data", made, "--year", 2023)
    assert code == 0
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert "official score" in again


def test_stages_can_be_called_one_by_one_with_other_settings(call, made, tmp_path):
    out = tmp_path / "run"
    changes = ["--scorer.k", 2, "--batch", 7, "--audio.seconds", 0.3]
    assert call("embed", "frozen/logmel", "--data", made, "--out", out, *changes)[0] == 0
    assert call("score", out, "--banks", "domain")[0] == 0
    assert call("report", out)[0] == 0
    system = runs.load(out).system
    assert (system.scorer, system.batch) == (Knn(2, "domain"), 7)
    assert system.audio.seconds == 0.3
    assert (out / "results.csv").is_file()


def test_recipes_are_listed_with_source_and_published_numbers(call):
    code, out, _ = call("recipes")
    assert code == 0
    for name, recipe in RECIPES.items():
        assert name in out
        assert recipe.source in out
        assert recipe.published in out


def test_data_list_and_verify_show_what_is_there(call, made, tmp_path):
    for command in ("list", "verify"):
        code, out, _ = call("data", command, made)
        assert code == 0
        assert "fan section_00" in out
        assert "16000" in out
    broken = shutil.copytree(made, tmp_path / "data")
    clips = sorted((broken / "fan" / "train").iterdir())
    clips[0].write_bytes(b"")
    clips[1].write_text("text")
    for command in ("list", "verify"):
        code, _, err = call("data", command, broken)
        assert code == 1
        assert str(clips[0]) in err
        assert str(clips[1]) in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["wrong"], 2, "unknown command 'wrong'"),
        (["data"], 2, "unknown command 'data'"),
        (["run"], 2, "frozen/beats"),
        (["run", "frozen/none"], 2, "frozen/beats"),
        (["evaluate", "scores"], 1, "expected the recordings (data) or"),
        (["score", "nowhere"], 1, "expected a run's folder, got nowhere"),
        (
            ["run", "frozen/beats", "--data", ".", "--out", "x"],
            1,
            "asdjax weights fetch beats-iter3",
        ),
        (["run", "frozen/logmel", "--data", "no", "--out", "x"], 1, "no"),
        (["run", "frozen/logmel", "--data", ".", "--out", "x", "--weights", "y"], 1, "no weights"),
        (["run", "frozen/logmel", "--data", ".", "--out", "x", "--scorer.k", "0"], 2, "k >= 1"),
        (["data", "fetch", "--year", "1999", "--part", "dev", "--out", "x"], 1, "2020"),
        (["weights", "fetch", "beats-iter9"], 1, "beats-iter3"),
    ],
)
def test_mistakes_get_one_message_and_leave_nothing(
    call, words, code, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASDJAX_HOME", str(tmp_path / "home"))
    got, _, err = call(*words)
    assert got == code
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*"))


def test_help_and_version_are_no_mistakes(call):
    for words in ([], ["--help"], ["run", "--help"], ["run", "frozen/beats", "--help"]):
        assert call(*words)[0] == 0
    assert call("--version") == (0, f"{command_line.__version__}\n", "")


def test_an_empty_folder_is_refused(call, tmp_path):
    code, _, err = call("run", "frozen/logmel", "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 1
    assert str(tmp_path) in err
    assert not (tmp_path / "run").exists()


def test_ctrl_c_and_a_full_disk_end_with_a_message(call, made, tmp_path, monkeypatch):
    words = ["run", "frozen/logmel", "--data", made, "--out", tmp_path / "run"]

    def interrupt(*_):
        raise KeyboardInterrupt

    def full(file, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device", file.name)

    with monkeypatch.context() as patch:
        signals = []
        patch.setattr(embedding, "load_batches", interrupt)
        patch.setattr(command_line.signal, "signal", lambda *_: None)
        patch.setattr(command_line.signal, "raise_signal", signals.append)
        _, _, err = call(*words)
        assert signals == [signal.SIGINT]
        assert "give the same command" in err
    monkeypatch.setattr(np, "savez", full)
    code, _, err = call(*words)
    assert code == 1
    assert "is full: free some space" in err
    assert "fan_section_00" in err


def test_a_score_file_that_lacks_a_clip_is_refused(call, made, tmp_path):
    call("run", "frozen/logmel", "--data", made, "--out", tmp_path / "run")
    path = tmp_path / "run/scores/anomaly_score_fan_section_00_test.csv"
    first, *rows = path.read_text().splitlines()
    (path.parent / "decision_result_fan_section_00_test.csv").unlink()
    path.write_text("\n".join([*rows, rows[0]]) + "\n")
    code, _, err = call("evaluate", tmp_path / "run/scores", "--data", made)
    assert code == 1
    assert rows[0].split(",")[0] in err  # doubled
    path.write_text("\n".join(rows) + "\n")
    code, _, err = call("evaluate", tmp_path / "run/scores", "--data", made)
    assert code == 1
    assert first.split(",")[0] in err  # missing
