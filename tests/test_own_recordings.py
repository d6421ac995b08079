"""A person's own recordings, as they really come, run to scores with the commands of the README."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from machines import tone_machine

from asdjax.__main__ import dispatch
from asdjax.files import read_csv
from asdjax.losses.adacos import AdaCos
from asdjax.recipes import RECIPES
from asdjax.scoring.clusters import Pseudo
from asdjax.stages import folder, stages
from asdjax.train.config import HeadConfig
from asdjax.types import InputError

SHORT = ["--train.steps", "4", "--train.batch", "64", "--audio.seconds", "0.5"]
SYSTEMS = {
    "frozen/logmel": [],
    "small/dual": SHORT,
    "baseline/mse": ["--train.epochs", "1"],
}
OWN = "{split}_{label}_{index:02d}{domain}.wav"


def one_machine(data: Path) -> None:
    tone_machine(data, "pump", name=OWN)


def two_without_attributes(data: Path) -> None:
    for seed, machine in enumerate(("pump", "fan")):
        tone_machine(data, machine, seed, name=OWN)


def all_of_the_source(data: Path) -> None:
    tone_machine(data, "fan")
    for path in (data / "fan" / "train").glob("*target*"):
        path.unlink()


def without_labels(data: Path) -> None:
    tone_machine(data, "pump", name="{split}_{label[0]}{domain[0]}_{index:02d}.wav")


def wav_and_flac(data: Path) -> None:
    tone_machine(data, "pump", name=OWN)
    for path in sorted((data / "pump").rglob("*.wav"))[::2]:
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path, dtype="int16"))
        path.unlink()


FOLDERS = (one_machine, two_without_attributes, all_of_the_source, without_labels, wav_and_flac)


@pytest.mark.parametrize(
    ("recipe", "write"),
    [
        *(("frozen/logmel", write) for write in FOLDERS),
        *(("small/dual", write) for write in (one_machine, all_of_the_source, without_labels)),
        *(("baseline/mse", write) for write in (two_without_attributes, wav_and_flac)),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_it_runs_to_scores(recipe, write, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    write(data)
    dispatch(["run", recipe, "--data", str(data), "--out", str(out), *SYSTEMS[recipe]])
    for machine in data.iterdir():
        (path,) = (out / "scores").glob(f"anomaly_score_{machine.name}_*.csv")
        rows = read_csv(path)
        assert {name for name, _ in rows} == {clip.name for clip in (machine / "test").iterdir()}
        assert np.isfinite([float(value) for _, value in rows]).all()
        (path,) = (out / "scores").glob(f"decision_result_{machine.name}_*.csv")
        assert {decision for _, decision in read_csv(path)} <= {"0", "1"}
    assert (out / "results.csv").exists() == (write is not without_labels)
    said = " ".join(capsys.readouterr().err.split())
    if write is without_labels:
        above = [name for name, decision in read_csv(path) if decision == "1"]
        found = re.search(r"(\d+) of \d+ test clips of pump/section_00 above the threshold", said)
        assert int(found[1]) == len(above)
    if recipe == "small/dual":
        assert "too few classes to train on" in said
        assert "instead of 64: there are" in said


def test_clusters_are_by_sound_and_at_least_three(tmp_path):
    """One machine whose clips hum at four pitches: its classes are these."""
    seconds, rng = np.arange(8000) / 16000, np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 4)):
        for index in range(count):
            wave = 0.1 * np.sin(2 * np.pi * 500 * 2 ** (index % 4) * seconds)
            path = tmp_path / "data" / "pump" / split / f"{index:02d}_{index % 4}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave + 0.01 * rng.standard_normal(8000), 16000, "PCM_16")
    out = tmp_path / "run"
    words = ["--data", str(tmp_path / "data"), "--out", str(out), *SHORT]
    dispatch(["train", "small/dual", *words])
    heading, *rows = read_csv(out / "pseudo" / "labels.csv")
    assert heading == ["machine", "section", "file", "label"]
    assert len({(Path(name).stem[-1], label) for *_, name, label in rows}) == 4
    assert len({label for *_, label in rows}) == 4
    before = (out / "pseudo" / "labels.csv").stat().st_mtime_ns
    dispatch(["train", "small/dual", *words])  # kept
    assert (out / "pseudo" / "labels.csv").stat().st_mtime_ns == before


def test_equal_clips_cannot_be_clustered(tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000)
    for split in ("train", "test"):
        for index in range(4):
            path = tmp_path / "data" / "pump" / split / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, 16000, "PCM_16")
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *SHORT]
    with pytest.raises(InputError, match="3 or more different training clips"):
        dispatch(["train", "small/dual", *words])


def test_pseudo_labels_of_one_machine(tmp_path, capsys):
    """Two trainings and two heads, one of which tells machines apart."""
    one_machine(tmp_path / "data")
    small, out = RECIPES["small/dual"].config, tmp_path / "run"
    heads = tuple(HeadConfig(AdaCos(), labels) for labels in ("attributes", "machine"))
    train = replace(small.train, steps=2, batch=4, heads=heads)
    audio = replace(small.audio, seconds=0.5)
    system = replace(small, audio=audio, train=train, pseudo=Pseudo("kmeans"))
    stages.train(system, tmp_path / "data", out)
    first = folder.load(out / "first-stage").system.train.heads
    assert [head.labels for head in first] == ["attributes", "attributes"]
    assert "1 of 2 heads left out: a single class" in " ".join(capsys.readouterr().err.split())
    labels = json.loads((out / "labels.json").read_text())
    assert list(labels) == ["0"]
    assert len(labels["0"]) >= 3
