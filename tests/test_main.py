"""The command line: what it prints, its exit codes, and one clear message for each mistake."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from machines import tone_machine

from asdjax import __main__ as command_line
from asdjax import arguments
from asdjax.models import weights_file
from asdjax.models.checkpoints import CHECKPOINTS
from asdjax.recipes import RECIPES
from asdjax.scoring.knn import Knn
from asdjax.stages import embed, folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("machines")
    tone_machine(root, "fan")
    return root


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
    assert call("score", out, "knn", "--k", 2, "--references", "domain")[0] == 0
    assert call("report", out)[0] == 0
    system = folder.load(out).system
    assert (system.scorer, system.batch) == (Knn(2, "domain"), 7)
    assert system.audio.seconds == 0.3
    assert (out / "results.csv").is_file()


def test_recipes_are_listed_filtered_and_shown_one_by_one(call):
    code, out, _ = call("recipes")
    assert code == 0
    assert all(name in out for name in RECIPES)
    code, out, _ = call("recipes", "MIDEA")
    assert code == 0
    assert "midea2024/submission4" in out
    assert "aithu2024" not in out
    code, out, _ = call("recipes", "xju2025/beats-fft")
    assert code == 0
    assert RECIPES["xju2025/beats-fft"].source in out
    assert "ToyCar" in out
    code, out, err = call("recipes", "midea2024/submision4")
    assert (code, out) == (1, "")
    assert "midea2024/submission4" in err


def test_data_list_and_verify_show_what_is_there(call, made, tmp_path):
    for command in ("list", "verify"):
        code, out, _ = call("data", command, made)
        assert code == 0
        assert "fan section_00" in out
        assert "16000" in out
    code, _, err = call("data", "verify", made, "--audio.channel", 0)
    assert code == 0
    assert "none broken" in err
    assert "no test clip" not in err
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
        (["run", "frozen/logmell"], 2, "close names: frozen/logmel"),
        (["evaluate", "scores"], 1, "expected the recordings (data) or"),
        (["score", "nowhere"], 1, "expected a run's folder, got nowhere"),
        (
            ["run", "frozen/beats", "--data", ".", "--out", "x"],
            1,
            "asdjax weights fetch beats-iter3",
        ),
        (["run", "frozen/logmel", "--data", "no", "--out", "x"], 1, "no, got nothing; check"),
        (["run", "frozen/logmel", "--data", ".", "--out", "x", "--weights", "y"], 2, "--weights"),
        (
            ["run", "frozen/logmel", "--data", ".", "--out", "x", "--scorer.k", "0"],
            2,
            "k: expected >= 1",
        ),
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


@pytest.mark.parametrize("where", ["", "fan", "fan/run", "link"])
def test_a_run_among_the_recordings_is_refused(call, made, tmp_path, where):
    data = shutil.copytree(made, tmp_path / "data")
    (tmp_path / "link").symlink_to(data)
    before = sorted(data.rglob("*"))
    out = tmp_path / "link" if where == "link" else data / where
    code, _, err = call("run", "frozen/logmel", "--data", data, "--out", out)
    assert code == 1
    assert "expected --out outside of the recordings" in err
    assert {path for path in data.rglob("*") if path.is_file()} <= set(before)


def test_help_and_version_are_no_mistakes(call):
    for words in (
        *([], ["--help"], ["run", "--help"], ["run", "frozen/beats", "--help"]),
        *(
            ["data", "--help"],
            ["score", "--help"],
            ["score", "run", "--help"],
            ["score", "run", "knn", "--help"],
        ),
    ):
        code, out, err = call(*words)
        assert (code, err) == (0, "")
        assert out
    assert call("--version") == (0, f"{command_line.__version__}\n", "")


HELP = {  # command and recipe -> options that it has, options that it lacks
    ("run", "frozen/logmel"): (
        {"data", "out", "scorer.k", "skip-bad", "audio.seconds", "distributed"},
        {"weights", "runs", "pseudo-labels", "keep-checkpoints", "train.steps"},
    ),
    ("run", "baseline/mse"): (
        {"train.epochs", "scorer.kind", "keep-checkpoints", "reuse"},
        {"pseudo-labels", "weights", "distributed", "train.steps", "scorer.k"},
    ),
    ("run", "frozen/beats"): (
        {"weights", "layer", "encoders.0.pooling"},
        {"encoders.0.embedding", "encoders.0.no-dropout", "encoders.0.remat"},
    ),
    ("train", "korea2025/system1"): (
        {"weights", "pseudo-labels", "distributed", "encoders.0.adapter.rank", "train.source"},
        {"runs", "embedder.branches.0.adapter.rank", "scorer.k", "batch", "year", "ground-truth"},
    ),
    ("embed", "korea2025/system1"): (
        {"weights", "pseudo-labels", "train.seed", "distributed"},
        {"keep-checkpoints"},
    ),
    ("run", "ioa2024/ensemble1"): (
        {"runs", "members", "all.FIELD", "distributed"},
        {"weights", "reuse"},
    ),
    ("run", "aithu2024/system1"): (
        {"weights", "runs", "members", "ensemble.weights", "beats-lora.FIELD", "all.FIELD"},
        {"reuse", "train.steps"},
    ),
}


@pytest.mark.parametrize(("command", "recipe"), HELP)
def test_help_shows_only_what_a_recipe_has_and_what_is_changed_most_first(call, command, recipe):
    code, out, err = call(command, recipe, "--help")
    assert (code, err) == (0, "")
    shown = re.findall(r"^  --(\S+)", out, re.MULTILINE)
    assert len(shown) == len(set(shown))
    has, lacks = HELP[command, recipe]
    assert has <= set(shown)
    assert not lacks & set(shown)
    _, first, *groups = re.split(r"^([\w.]+(?: \w+)*):$", out, flags=re.MULTILINE)
    assert first == "changed most"
    most = re.findall(r"^  --(\S+)", groups[0], re.MULTILINE)
    assert most == shown[: len(most)]
    assert most[:2] == ["data", "out"]
    known = [name.replace("_", "-") for name in arguments.USED]
    assert most == [name for name in known if name in shown][:10]


@pytest.mark.parametrize(("command", "recipe"), HELP)
def test_every_option_that_help_shows_is_taken(command, recipe, tmp_path):
    """What help shows as the default changes nothing."""
    config = RECIPES[recipe].config
    files = []
    systems = [RECIPES[name].config for name in getattr(config, "members", [recipe])]
    for name in dict.fromkeys(name for system in systems for name in system.backbones):
        kind = CHECKPOINTS[name].kind
        files.append(str(tmp_path / f"{kind}.safetensors"))
        weights_file.save(files[-1], {}, weights_file.Header(kind, {}))
    given = [recipe, "--data", "data", "--out", "out"]
    if files:
        given += ["--weights", *files]
    defaults = []
    for one in arguments.flags(config):
        default = "" if one.default == arguments.ON else one.default.removeprefix("default: ")
        if default and not one.flag.endswith(".weights"):
            defaults += [f"--{one.flag}", *default.split()]
    assert arguments.parse(command, given + defaults) == arguments.parse(command, given)


def test_the_layer_of_a_single_backbone_needs_no_path(tmp_path):
    file = str(tmp_path / "hubert.safetensors")
    weights_file.save(file, {}, weights_file.Header("hubert", {}))
    given = ["frozen/hubert", "--data", "data", "--out", "out", "--weights", file]
    for words, layer in ((["--layer", "6"], 6), (["--layer=mean"], "mean"), ([], None)):
        (encoder,) = arguments.parse("run", [*given, *words]).config.encoders
        assert encoder.layer == layer


def test_a_run_of_an_earlier_version_is_refused_in_one_sentence(call, made, tmp_path):
    out = tmp_path / "run"
    (out / "scores").mkdir(parents=True)
    described = {"asdjax": "0.3.0", "system": {"class": "SystemConfig"}, "system_sha256": "0" * 64}
    (out / "config.json").write_text(json.dumps(described))
    (out / "clips.json").write_text("[]")
    (out / "results.csv").write_text("machine,metric,value\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sentence = f"asdjax: {out} holds a run of another version of asdjax; "
    sentence += "run again into another folder, or into this one with --force"
    where = ["--data", made, "--out", out]
    for words in (
        ["run", "frozen/logmel", *where],
        ["embed", "frozen/logmel", *where],
        ["train", "small/dual", *where, "--audio.seconds", 0.5],
        ["score", out],
        ["score", out, "knn", "--k", 2],
        ["report", out],
        ["pseudo", out],
    ):
        code, _, err = call(*words)
        assert code == 1
        assert err.splitlines()[-1] == sentence
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_figures_that_cannot_be_drawn_lose_no_number(call, made, tmp_path):
    """The recordings, whose spectrograms are shown, have been moved away."""
    data, out = shutil.copytree(made, tmp_path / "data"), tmp_path / "run"
    assert call("run", "frozen/logmel", "--data", data, "--out", out)[0] == 0
    results = (out / "results.csv").read_text()
    (out / "results.csv").unlink()
    data.rename(tmp_path / "moved")
    code, shown, err = call("report", out)
    assert code == 0
    assert "official score" in shown
    assert (out / "results.csv").read_text() == results
    assert f"not in the figures: {data}" in " ".join(err.split())
    assert {path.name for path in (out / "figures").iterdir()} >= {"histograms.png", "roc.png"}
    # Once the recordings are back, all figures are drawn, without --force.
    (tmp_path / "moved").rename(data)
    assert call("run", "frozen/logmel", "--data", data, "--out", out)[0] == 0
    picture = (out / "figures" / "top_clips.png").read_bytes()
    code, _, err = call("report", out)
    assert (code, "not in the figures" in err) == (0, False)
    assert (out / "figures" / "top_clips.png").read_bytes() == picture


def test_an_empty_folder_is_refused(call, tmp_path):
    code, _, err = call("run", "frozen/logmel", "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 1
    assert str(tmp_path) in err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def ended(monkeypatch):
    """The signals that the command line ends by, in place of its end."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
    found = []

    def end(number):
        assert signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, handlers[number])
        found.append(number)

    monkeypatch.setattr(command_line.signal, "raise_signal", end)
    yield found
    signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_a_message(call, made, tmp_path, monkeypatch, ended, number):
    def load(*_):
        os.kill(os.getpid(), number)
        time.sleep(60)  # Python calls the handler soon, not at once

    monkeypatch.setattr(embed, "load_batches", load)
    _, _, err = call("run", "frozen/logmel", "--data", made, "--out", tmp_path / "run")
    assert ended == [number]
    assert "finished is kept: give the same command to continue" in err


def test_a_training_that_was_saved_ends_with_the_same_message(call, made, monkeypatch):
    def terminated(*_, **__):
        raise SystemExit(143)

    monkeypatch.setattr(command_line.stages, "train", terminated)
    code, _, err = call("train", "small/dual", "--data", made, "--out", "run")
    assert code == 143
    assert "finished is kept: give the same command to continue" in err


@pytest.mark.parametrize("words", [["recipes"], ["run", "small/dual", "--help"], ["--help"]])
def test_a_closed_pipe_ends_without_a_word(call, ended, words):
    read, write = os.pipe()
    os.close(read)
    pipe = os.fdopen(write, "w")
    with contextlib.redirect_stdout(pipe):
        _, _, err = call(*words)
    assert (ended, err) == ([signal.SIGPIPE], "")
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def test_a_full_disk_ends_with_a_message(call, made, tmp_path, monkeypatch):
    def full(file, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device", file.name)

    monkeypatch.setattr(np, "savez", full)
    code, _, err = call("run", "frozen/logmel", "--data", made, "--out", tmp_path / "run")
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
