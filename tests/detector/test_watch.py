"""A watch writes each window and event once, whatever ends it, and waits for files to be whole."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from trainings import SAMPLES, two_machines

from asdjax import Detector
from asdjax import __main__ as command_line
from asdjax.config import SystemConfig
from asdjax.detector import watch as module
from asdjax.detector.alarms import KOfN, Level, Rule
from asdjax.detector.detector import Verdict
from asdjax.detector.fitting import Alarms
from asdjax.detector.watch import Folder, Part, Watch, watch_stream
from asdjax.models.logmel import LogMel
from asdjax.scoring.knn import Knn
from asdjax.stages import lock
from asdjax.types import InputError

RULE = Rule(KOfN(2, 3), {"": Level(0.0, 1.0)}, 1.0, asked=1, stated=1, hours=1, blocks=1)
NOON = 1_800_000_000.0  # a clock that stands still


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_machines(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory):
    """Return the file of a detector of two machines, whose rule is known."""
    made = Detector.fit(data, SystemConfig((LogMel(),), Knn()), alarms=Alarms(confirm=(1, 1)))
    machines = tuple(replace(one, rule=RULE) for one in made.machines)
    path = tmp_path_factory.mktemp("detector") / "machines.asdjax"
    replace(made, machines=machines).save(path)
    return path


@pytest.fixture
def scored(monkeypatch):
    """Let the first sample of a window be its score, in thousandths of full scale."""

    def judge(self, waves, groups):
        return [
            Verdict("", group[0], round(1000 * float(wave[0]), 3), 1.0, "", "some.wav")
            for wave, group in zip(waves, groups, strict=True)
        ]

    monkeypatch.setattr(Detector, "judge_waves", judge)


def window(watch, score, at, name="fan"):
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, 8000).astype(np.float32)
    wave[0] = score / 1000
    return Part(watch.machines[name], f"{name}/{at}.wav", 0.0, NOON + at, wave)


def begun(saved, folder, lines=None):
    folder.mkdir(exist_ok=True)
    show = (lambda line: None) if lines is None else lines.append
    return Watch(saved, folder, show, clock=lambda: NOON)


def logged(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("log-*.jsonl")))


SCORES = [0.5, 1.5, 1.6, 0.2, 0.3, 0.1, 2.0, 0.4, 3.0, 0.1, 0.1, 0.1, 1.2]


def take_all(watch):
    """Give a watch what it has not got yet, a few windows at a time, as a folder would."""
    parts = [window(watch, s, at, n) for at, s in enumerate(SCORES) for n in ("fan", "pump")]
    left = [part for part in parts if part.file not in watch.state.reached]
    for start in range(0, len(left), 4):
        watch.take(left[start : start + 4])


def test_events_are_those_of_the_rule(saved, scored, tmp_path):
    lines = []
    take_all(begun(saved, tmp_path / "state", lines))
    lines = list(map(json.loads, lines))
    fan = [one for one in lines if one["machine"] == "fan"]
    states = [one["state"] for one in fan if "state" in one]
    want = ["normal", "above", *3 * ["alarm"], "normal", "above", "normal"]
    assert states == [*want, *3 * ["alarm"], "normal", "above"]
    events = [(one["event"], one["time"][14:19]) for one in fan if "event" in one]
    second = [one["time"][14:19] for one in fan if "state" in one]
    assert events == [
        ("begin", second[2]),
        ("end", second[5]),
        ("begin", second[8]),
        ("end", second[11]),
    ]
    ends = [one for one in fan if one.get("event") == "end"]
    assert [(one["peak"], one["file"]) for one in ends] == [(1.6, "fan/2.wav"), (3.0, "fan/8.wav")]
    assert logged(tmp_path / "state").decode().splitlines() == [json.dumps(x) for x in lines]


@pytest.mark.parametrize("saves", [0, 2, 5])
def test_a_watch_that_was_killed_at_any_byte_goes_on_as_if_it_had_not_been(
    saves, saved, scored, tmp_path
):
    """The state is of some earlier moment; the log ends anywhere behind it."""
    whole = begun(saved, tmp_path / "whole")
    take_all(whole)
    want = logged(tmp_path / "whole")
    early = begun(saved, tmp_path / "early")
    parts = [window(early, s, at, n) for at, s in enumerate(SCORES) for n in ("fan", "pump")]
    for start in range(0, 4 * saves, 4):
        early.take(parts[start : start + 4])
    early.save()
    state = (tmp_path / "early" / "state.json").read_text()
    name = early.state.log or whole.state.log
    for cut in range(early.state.size, len(want) + 1, 97 if saves else 61):
        folder = tmp_path / f"cut {cut}"
        folder.mkdir()
        (folder / "state.json").write_text(state.replace('"log": ""', f'"log": "{name}"'))
        (folder / name).write_bytes(want[:cut])
        take_all(begun(saved, folder))
        assert logged(folder) == want


def test_windows_that_say_nothing_of_the_machine_have_states_of_their_own(saved, tmp_path):
    watch = begun(saved, tmp_path / "state", lines := [])
    rng = np.random.default_rng(0)
    loud = (40000 * rng.standard_normal(8000)).clip(-32768, 32767).astype(np.int16)
    for wave in (np.zeros(8000, np.int16), loud, np.full(8000, np.nan, np.float32)):
        watch.take([Part(watch.machines["fan"], "-", 0.0, NOON, wave)])
    lines = [json.loads(line) for line in lines]
    assert [one["state"] for one in lines] == ["silent", "clipped", "no numbers"]
    assert all(one["score"] is None for one in lines)
    assert watch.state.rules == {}


def test_a_day_has_a_log_and_a_clock_that_goes_back_begins_none(saved, scored, tmp_path):
    watch = begun(saved, tmp_path)
    for at, now in enumerate((NOON, NOON + 86400, NOON + 3600)):
        watch.clock = lambda now=now: now
        watch.take([window(watch, 0.5, at)])
    logs = sorted(tmp_path.glob("log-*.jsonl"))
    assert [len(path.read_text().splitlines()) for path in logs] == [1, 2]
    again = begun(saved, tmp_path)
    assert (again.state.log, again.state.size) == (logs[1].name, logs[1].stat().st_size)


def test_another_detector_begins_its_rules_anew(saved, scored, tmp_path, capsys):
    watch = begun(saved, tmp_path / "state")
    watch.take([window(watch, 2.0, at) for at in range(3)])
    other = tmp_path / "other.asdjax"
    changed = Detector.load(saved)
    replace(changed, machines=changed.machines[:1]).save(other)
    again = begun(other, tmp_path / "state")
    assert "another one than before" in capsys.readouterr().err
    assert (again.state.rules, again.state.open) == ({}, {})
    assert set(again.state.reached) == {f"fan/{at}.wav" for at in range(3)}


# --- folders


def write(path: Path, seconds=0.5, odd=False, rate=16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hz = {"fan": 500.0, "pump": 2000.0}.get(path.parent.name, 500.0) * (1 + odd)
    t = np.arange(round(seconds * rate)) / rate
    hum = (0.5 if odd else 0.1) * np.sin(2 * np.pi * hz * t)
    noise = 0.02 * np.random.default_rng(len(path.name)).standard_normal(len(t))
    soundfile.write(path, hum + noise, rate, "PCM_16")
    old = time.time() - 60
    os.utime(path, (old, old))
    return path


def polled(saved, root, state, **how):
    """Return the lines of one more look at a folder, from another start of the watch."""
    state.mkdir(exist_ok=True)
    watch = Watch(saved, state, (lines := []).append)
    Folder(root, watch, **how).poll()
    watch.save()
    return [json.loads(line) for line in lines]


def test_a_folder_that_fills_is_scored_once(saved, tmp_path):
    root, state = tmp_path / "sounds", tmp_path / "state"
    write(root / "fan" / "1.wav")
    write(root / "pump" / "2.wav")
    lines = polled(saved, root, state)
    assert [(one["machine"], one["file"]) for one in lines] == [
        ("fan", "fan/1.wav"),
        ("pump", "pump/2.wav"),
    ]
    want = Detector.load(saved).score([root / one["file"] for one in lines])
    # 2e-5: a program for another number of clips sums in another order
    np.testing.assert_allclose([one["score"] for one in lines], want, rtol=2e-5)
    assert polled(saved, root, state) == []
    write(root / "fan" / "3.wav")
    assert [one["file"] for one in polled(saved, root, state)] == ["fan/3.wav"]
    (root / "fan" / "1.wav").unlink()
    polled(saved, root, state)
    assert "fan/1.wav" not in json.loads((state / "state.json").read_text())["done"]


def test_files_that_are_being_written_are_waited_for(saved, tmp_path, monkeypatch):
    path = write(tmp_path / "sounds" / "fan" / "1.wav")
    os.utime(path)  # now
    watch = begun(saved, tmp_path / "state", lines := [])
    watch.clock = time.time
    folder = Folder(tmp_path / "sounds", watch)
    assert folder.poll() == 0
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 1.5)
    with path.open("ab") as file:
        file.write(bytes(100))
    assert folder.poll() == 0
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 3)
    assert folder.poll() == 0
    write(path)
    os.utime(path)
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 4)
    folder.poll()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 6.1)
    folder.poll()
    assert [json.loads(line)["file"] for line in lines] == ["fan/1.wav"]


def test_broken_files_are_named_once_and_passed_over(saved, tmp_path, capsys):
    root, state = tmp_path / "sounds", tmp_path / "state"
    write(root / "fan" / "2.wav")
    for name, content in (("fan/1.wav", b"no sound"), ("elsewhere/3.wav", None)):
        path = write(root / name)
        if content:
            path.write_bytes(content)
        os.utime(path, (time.time() - 70,) * 2)
    assert [one["file"] for one in polled(saved, root, state)] == ["fan/2.wav"]
    told = capsys.readouterr().err
    assert told.count("passed over") == 2
    assert "fan/1.wav" in told
    assert "in no folder of a machine: fan, pump" in told
    assert polled(saved, root, state) == []
    assert "passed over" not in capsys.readouterr().err


def test_a_full_disk_ends_the_watch_and_is_no_broken_file(saved, tmp_path, monkeypatch, capsys):
    write(tmp_path / "sounds" / "fan" / "1.wav")

    def full(self, lines):
        raise InputError("the disk of log is full")

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "_write", full)
        with pytest.raises(InputError, match="is full"):
            polled(saved, tmp_path / "sounds", tmp_path / "state")
    assert "passed over" not in capsys.readouterr().err
    lines = polled(saved, tmp_path / "sounds", tmp_path / "state")
    assert [one["file"] for one in lines] == ["fan/1.wav"]


def test_long_recordings_are_windows_and_the_machine_can_be_named(saved, tmp_path, capsys):
    path = write(tmp_path / "new" / "long.wav", seconds=2.2, rate=48000)
    lines = polled(saved, path, tmp_path / "state", window_s=1.0, hop_s=0.5, machine="pump")
    assert [one["start"] for one in lines] == [0.0, 0.5, 1.0, 1.2]
    assert {one["machine"] for one in lines} == {"pump"}
    times = [one["time"] for one in lines]
    assert times == sorted(times)
    told = " ".join(capsys.readouterr().err.split())
    assert "for a clip each 0.5 s" not in told
    polled(saved, path, tmp_path / "fast", hop_s=0.25, machine="pump")
    told = " ".join(capsys.readouterr().err.split())
    assert "where the limit is for a clip each 0.5 s: expect up to 2 times as many" in told
    with pytest.raises(InputError, match="expected windows of"):
        Folder(path, begun(saved, tmp_path / "other"), 1.0, 2.0, "pump")


def test_an_interrupted_long_recording_goes_on_where_it_was(saved, tmp_path):
    path = write(tmp_path / "sounds" / "fan" / "long.wav", seconds=4.0)
    whole = polled(saved, path, tmp_path / "whole", machine="fan")
    state = tmp_path / "state"
    state.mkdir()
    log = next((tmp_path / "whole").glob("log-*"))
    (state / log.name).write_bytes(b"".join(log.read_bytes().splitlines(True)[:3]))
    (state / "state.json").write_text(
        json.dumps({"log": log.name, "size": 0, "rules": {}, "detector": ""})
    )
    rest = polled(saved, path, state, machine="fan")
    assert rest == whole[3:]
    assert len(whole) == 8


# --- commands


def test_pcm_on_standard_input_is_watched(saved, tmp_path, monkeypatch, capsys):
    sound = soundfile.read(write(tmp_path / "x.wav", seconds=1.6), dtype="int16")[0]
    watch = begun(saved, tmp_path / "state", lines := [])
    pcm = io.BytesIO(sound.tobytes())
    watch_stream(watch, pcm, watch.machines["fan"], 16000, 1, "s16")
    assert "false alarms" not in capsys.readouterr().err  # a window each clip's length
    lines = [json.loads(line) for line in lines]
    assert [one["start"] for one in lines] == [0.0, 0.5, 1.0]
    waves = [sound[i : i + SAMPLES] for i in (0, 8000, 16000)]
    # 2e-5: a program for another number of clips sums in another order
    want = Detector.load(saved).score(waves, "fan")
    np.testing.assert_allclose([one["score"] for one in lines], want, rtol=2e-5)

    class Input:
        buffer = io.BytesIO(sound.tobytes())

    monkeypatch.setattr(sys, "stdin", Input)
    monkeypatch.setattr(sys, "argv", ["asdjax", "watch", str(saved), "-", "--machine", "fan"])
    command_line.main()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["score"] for one in printed] == [one["score"] for one in lines]
    assert (saved.parent / f"{saved.name}.watch" / "state.json").is_file()


def test_a_second_watch_on_the_same_state_is_refused(saved, tmp_path, monkeypatch, capsys):
    write(tmp_path / "fan" / "1.wav")
    words = ["asdjax", "watch", str(saved), str(tmp_path), "--once", "--state", str(tmp_path / "s")]
    monkeypatch.setattr(sys, "argv", words)
    with lock.locked(tmp_path / "s"), pytest.raises(SystemExit, match="is in use by"):
        command_line.main()
    command_line.main()
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_watch_that_is_killed_again_and_again_writes_every_line_once(saved, tmp_path):
    root, state = tmp_path / "sounds", tmp_path / "state"
    for i in range(90):
        write(root / ("fan", "pump")[i % 2] / f"{i}.wav", odd=i % 14 > 7)
    made = Detector.load(saved)
    normal, odd = (made.score(root / "fan" / f"{i}.wav")[0] for i in (0, 8))
    rule = replace(RULE, levels={"": Level(0.0, float(normal + odd) / 2)})
    saved = tmp_path / "low.asdjax"
    replace(made, machines=tuple(replace(one, rule=rule) for one in made.machines)).save(saved)
    words = [sys.executable, "-m", "asdjax", "watch", str(saved), str(root), "--state", str(state)]
    for _ in range(2):  # each time 32 windows and more are left, or it would wait for sound
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    subprocess.run([*words, "--once"], check=True, stdout=subprocess.DEVNULL)
    want = tmp_path / "want"
    subprocess.run([*words[:-1], str(want), "--once"], check=True, stdout=subprocess.DEVNULL)
    found, lines = ([json.loads(x) for x in logged(one).splitlines()] for one in (state, want))
    assert len([one for one in lines if "event" not in one]) == 90
    assert any("event" in one for one in lines)

    def plain(line):  # scores differ by rounding between batches
        return {k: v for k, v in line.items() if k not in ("score", "peak")}

    assert list(map(plain, found)) == list(map(plain, lines))
