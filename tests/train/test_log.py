"""The log of a run: whole lines, none of steps that will be done again, and TensorBoard's copy."""

import json
import sys
from types import ModuleType

import pytest

from asdjax.train.log import Log


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "log.jsonl"


def write(path, first, *steps):
    log = Log(path, first)
    for step in steps:
        log.write(step, {"loss": 1 / step, "accuracy": 0.5})
    log.close()


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_line_is_the_step_and_its_values(path):
    write(path, 0, 2, 4)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "loss": 0.5, "accuracy": 0.5},
        {"step": 4, "loss": 0.25, "accuracy": 0.5},
    ]


def test_lines_are_on_disk_as_soon_as_they_are_written(path):
    log = Log(path, 0)
    log.write(2, {"loss": 1.0})
    assert steps(path) == [2]
    log.close()


def test_going_on_drops_the_lines_after_the_checkpoint(path):
    write(path, 0, 2, 4, 6, 8)
    write(path, 5, 7)
    assert steps(path) == [2, 4, 7]
    write(path, 7)
    assert steps(path) == [2, 4, 7]


def test_a_training_anew_starts_an_empty_log(path):
    write(path, 0, 2, 4)
    write(path, 0, 1)
    assert steps(path) == [1]


def test_half_a_line_of_a_killed_run_is_dropped(path):
    write(path, 0, 2, 4)
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    write(path, 6, 8)
    assert steps(path) == [2, 4, 8]


def test_tensorboard_gets_the_same_numbers_where_it_is_installed(path, monkeypatch):
    told = []

    class Writer:
        def __init__(self, folder):
            told.append(folder)

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def close(self):
            told.append("closed")

    summary = ModuleType("tensorboard.summary")
    summary.Writer = Writer
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "tensorboard.summary", summary)
    write(path, 0, 2)
    folder = str(path.parent / "tensorboard")
    assert told == [folder, ("loss", 0.5, 2), ("accuracy", 0.5, 2), "closed"]


def test_without_tensorboard_there_is_only_the_file(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    write(path, 0, 2)
    assert [file.name for file in path.parent.iterdir()] == ["log.jsonl"]
