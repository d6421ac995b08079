"""`--tiny` of the experiments: every system takes its fields, and one report runs to its table."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from statistics import harmonic_mean

import pytest
from machines import tone_machine

from asdjax import arguments
from asdjax.config import to_json
from asdjax.recipes import RECIPES

FOLDER = Path(__file__).parents[1] / "experiments"
REPORTS = {  # script -> systems that it trains, and those that it combines
    "aithu2024": (7, 4),
    "baseline": (2, 0),
    "ioa2024": (7, 4),
    "korea2025": (4, 0),
    "midea2024": (4, 0),
    "xju2025": (4, 0),
}


@pytest.fixture(scope="module")
def repeated():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("repeated")
    sys.modules.pop("repeated")


def test_every_report_has_a_script_and_every_script_a_report():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    assert scripts == set(REPORTS) | {"curve", "fuzz", "quality", "repeated"}
    assert {name.split("/")[0] for name in RECIPES} == set(REPORTS) | {"frozen", "small", "beyond"}


@pytest.mark.parametrize("report", REPORTS)
def test_systems_of_a_report_take_the_fields_of_a_tiny_run(repeated, report, tmp_path):
    singles = repeated.singles(report)
    assert (len(singles), len(repeated.ensembles(report))) == REPORTS[report]
    for name in singles:
        given = Namespace(systems=[name], out=tmp_path)
        weights = repeated.tiny_backbones(given)
        words = [name, "--data", "data", "--out", "out", *repeated.tiny_fields(name)]
        words += ["--weights", *weights] if weights else []
        train = arguments.parse("run", words).config.train
        assert train.epochs == 2 if report == "baseline" else train.steps == 60


def test_korea2025_runs_tiny_without_weights(repeated, tmp_path, monkeypatch, capsys):
    tone_machine(tmp_path / "data", "fan")
    tone_machine(tmp_path / "data", "pump", seed=1)
    words = ["--data", tmp_path / "data", "--out", tmp_path / "out", "--tiny"]
    words += ["--systems", "korea2025/system1", "korea2025/system2"]
    fields = ["--train.steps", 6, "--train.batch", 2, "--audio.seconds", 0.5]
    monkeypatch.setattr(sys, "argv", ["korea2025.py", *map(str, (*words, *fields))])
    repeated.main("Table 1.", "korea2025")
    shown = capsys.readouterr().out
    assert (tmp_path / "out" / "tiny-beats.safetensors").is_file()
    assert "published, dev 2025" in shown
    found = [line for line in shown.splitlines() if "fan" in line and "auc_source" in line]
    assert ["50.84" in found[0], "49.47" in found[1]] == [True, True]  # table 1: fan
    fan = harmonic_mean([50.84, 66.76, 56.47])
    rows = [line for line in shown.splitlines() if "1 machine " in line and "harmonic" in line]
    assert f"{fan:.2f}" in rows[0]  # not beside the total of seven
    assert len(rows) == 2
    assert (tmp_path / "out/korea2025/system2/seed0/model.safetensors").is_file()


def test_table_1_of_xju_stands_beside_what_ran(repeated, tmp_path, capsys):
    """`repeated` puts the folder of the experiments on the path."""
    experiment = importlib.import_module("xju2025")
    name = "xju2025/beats-fft"
    folder = tmp_path / name / "seed0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"system": to_json(RECIPES[name].config)}))
    (folder / "labels.json").write_text(json.dumps({"0": ["a", "b", "c"], "1": ["a"]}))
    experiment.table_1(Namespace(out=tmp_path, systems=[name]))
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in shown.splitlines()]
    rows = {row[0]: row[1:] for row in rows if len(row) == 3 and row[0]}
    assert len(rows) == 16
    assert rows["Number of Classes"] == ["172", "3"]
    assert rows["Warm-up Steps"] == ["960", "960 micro-batches"]
    assert rows["Batch Size"] == ["16", "16"]
    sys.modules.pop("xju2025")
