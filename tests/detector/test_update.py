"""New healthy sound joins a detector; drift is told from faults."""

import json
import os
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdjax import Detector
from asdjax import __main__ as command_line
from asdjax.config import SystemConfig
from asdjax.detector.fitting import Alarms
from asdjax.detector.update import centers, update
from asdjax.detector.watch import EDGES, Watch, _iso, _median
from asdjax.models.logmel import LogMel
from asdjax.scoring.knn import Knn
from asdjax.types import InputError

QUICK = SystemConfig((LogMel(),), Knn())


def record(folder: Path, names, hz=500.0, days_ago=0.0, level=0.1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        rng = np.random.default_rng(int(hz) + name)
        t = np.arange(8000) / 16000
        wave = level * np.sin(2 * np.pi * hz * t) + 0.02 * rng.standard_normal(8000)
        path = folder / f"{name}.wav"
        soundfile.write(path, wave, 16000, "PCM_16")
        when = time.time() - 86400 * days_ago
        os.utime(path, (when, when))
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = record(tmp_path_factory.mktemp("old") / "fan", range(30), days_ago=100)
    return Detector.fit(folder, QUICK, alarms=Alarms(confirm=(1, 1)))


def lines_of(lines) -> str:
    return "\n".join(lines)


def test_new_clips_are_compared_with_from_then_on(old, tmp_path):
    new = record(tmp_path / "fan", range(100, 112))
    made, lines = update(old, [new])
    assert "12 clips joined" in lines_of(lines)
    assert "drift:" not in lines_of(lines)
    paths = sorted(new.iterdir())
    assert made.score(paths).max() < 1e-5 < old.score(paths).min()  # each finds itself
    assert len(made.machines[0].normal.clips) == 42
    (before,), (after,) = old.machines, made.machines
    assert len(after.healthy.scores) == len(before.healthy.scores) + 12
    np.testing.assert_allclose(np.sort(after.healthy.scores[30:]), np.sort(old.score(paths)))
    assert after.rule.hours > before.rule.hours
    assert len(np.unique(after.healthy.blocks)) > len(np.unique(before.healthy.blocks))
    made.save(tmp_path / "machine.asdjax")
    assert Detector.load(tmp_path / "machine.asdjax").judge(paths) == made.judge(paths)


def test_clips_that_it_has_already_do_not_join_again(old, tmp_path):
    """Their scores would be 0 and lower the limit."""
    new = record(tmp_path / "fan", range(100, 104))
    (new / "copy.wav").write_bytes((new / "100.wav").read_bytes())
    made, lines = update(old, [new])
    assert "1 clip left out, of which it has an equal one" in lines_of(lines)
    again, lines = update(made, [new])
    assert "5 clips left out" in lines_of(lines)
    assert len(again.machines[0].normal.clips) == 34
    assert len(again.machines[0].healthy.scores) == 34


def test_drift_is_told_from_faults(old, tmp_path):
    drifted = record(tmp_path / "drifted" / "fan", range(20), hz=530.0)
    _, lines = update(old, [drifted])
    assert "drift: the median of the new scores is" in lines_of(lines)
    mixed = record(tmp_path / "mixed" / "fan", range(200, 220))
    record(mixed, [999], hz=3000.0, level=0.5)
    _, lines = update(old, [mixed])
    assert "drift:" not in lines_of(lines)
    assert "listen to them" in lines_of(lines)
    assert "999.wav" in lines_of(lines)


def test_old_clips_retire_and_a_bound_keeps_those_that_cover_the_others(old, tmp_path):
    new = record(tmp_path / "fan", range(300, 310))
    made, lines = update(
        old, [new], retire=time.strftime("%Y-%m-%d", time.gmtime(time.time() - 9e5))
    )
    assert {clip.name for clip in made.machines[0].normal.clips} == {
        f"{i}.wav" for i in range(300, 310)
    }
    assert "30 clips of before" in lines_of(lines)
    made, lines = update(old, [new], most=25)
    assert len(made.machines[0].normal.clips) == len(made.machines[0].dates) == 25
    assert "25 of 40 clips kept" in lines_of(lines)
    with pytest.raises(InputError, match="expected a date YYYY-MM-DD, got '9 days'"):
        update(old, [new], retire="9 days")


@pytest.mark.parametrize("seed", range(5))
def test_centers_cover_within_twice_the_best(seed):
    rows = np.random.default_rng(seed).standard_normal((12, 3))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T
    chosen, radius = centers(rows, 4)
    assert radius == pytest.approx(apart[chosen].min(0).max())
    best = min(apart[list(some)].min(0).max() for some in combinations(range(12), 4))
    # Twice in chords, whose squares are twice these distances
    assert best <= radius + 1e-12
    assert radius <= 4 * best + 1e-12
    every, none = centers(rows, 12)
    assert (every.tolist(), none) == (list(range(12)), 0.0)


def test_the_command_keeps_the_file_before(old, tmp_path, monkeypatch, capsys):
    path = tmp_path / "machine.asdjax"
    old.save(path)
    before = path.read_bytes()
    for n in (1, 2):
        new = record(tmp_path / f"new {n}" / "fan", range(400 + 4 * n, 404 + 4 * n))
        words = ["asdjax", "update", str(path), str(new)]
        monkeypatch.setattr(sys, "argv", words)
        command_line.main()
        assert len(Detector.load(path).machines[0].normal.clips) == 30 + 4 * n
    assert (tmp_path / "machine.asdjax.1").read_bytes() == before
    assert f"before: {path}.2" in "".join(capsys.readouterr().err.split("\n"))


@pytest.mark.parametrize(("slow", "event"), [(True, "drift"), (False, "shift")])
def test_a_watch_tells_a_slow_change_of_all_scores_from_a_sudden_one(slow, event, old, tmp_path):
    path = tmp_path / "machine.asdjax"
    old.save(path)
    (tmp_path / "state").mkdir()
    watch = Watch(path, tmp_path / "state", lambda line: None)
    rule, rng, events = old.machines[0].rule, np.random.default_rng(0), []
    level = rule.levels[""]
    for i in range(12 * 72):  # twelve times six hours
        moved = 3 * i / (12 * 72) if slow else 3.0 * (i >= 8 * 72)
        score = level.center + level.spread * (moved + 0.3 * rng.standard_normal())
        line = {
            "machine": "fan",
            "file": "-",
            "start": i,
            "time": _iso(300.0 * i),
            "condition": "",
            "state": "",
        }
        line |= {"score": score, "threshold": rule.threshold(), "nearest": ""}
        events += [one for one in watch._follow(line) if one["event"] not in ("begin", "end")]
    assert {one["event"] for one in events} == {event}
    assert events[0]["median"] >= 1
    json.dumps(events)


def test_medians_of_counts_are_right_to_five_per_cent():
    rng = np.random.default_rng(1)
    for values in (rng.standard_normal(501), 40 * rng.exponential(1, 300), np.full(3, 0.7)):
        places = np.searchsorted(EDGES, values)
        counts = {str(place): int((places == place).sum()) for place in np.unique(places)}
        assert _median(counts) == pytest.approx(np.median(values), rel=0.06, abs=0.06)
