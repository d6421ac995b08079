"""Watching machines: sound as it comes is cut into windows, scored, and followed by their rules.

STATE/log-YYYY-MM-DD.jsonl   a line of JSON for each window and event, by the day (UTC) of writing
STATE/state.json             how far the log is accounted for: files read, memory of the rules

Lines are written once each. What is in the log counts: a watch that was killed reads what it wrote
after the last `state.json`, removes half a line, and goes on behind it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from asdjax.data import audio, layout, stream
from asdjax.data.content import to_float
from asdjax.data.healthy import natural
from asdjax.detector.alarms import Follower
from asdjax.detector.detector import Detector, Machine, Verdict
from asdjax.files import content_of_file, full_disk, write_json
from asdjax.report import console
from asdjax.types import SAMPLE_RATE_HZ, InputError

SETTLED_S = 2.0  # for so long a file has not changed when it is read
POLL_S = 0.5
SAVED_S = 10.0  # between two `state.json`
TOGETHER = 32  # windows that are scored at once
CHUNK, CHUNK_S, CHUNKS = 30, 6 * 3600, 40  # windows and time of a median at least; remembered
EDGES = np.sinh(np.linspace(-3, 6, 181))  # between which deviations are counted: 5 % apart
STEP = 2 / 3
MOVED = 1.0  # deviations of a median: half of the windows lie above the healthy upper quartile
CLIPPED = 0.1  # of the tenths of a second of a window that reach full scale, at least
FULL_SCALE = 1 - 2**-14
OF_AN_END = "begin", "peak", "peak_time", "file", "start", "nearest"
SILENT = 2**-14  # of the range of a window


class Part(NamedTuple):
    """A window and where it is from."""

    machine: Machine
    file: str  # relative to the folder that is watched; "-": standard input
    start_s: float  # in the file
    time: float  # seconds since 1970 where it begins
    wave: np.ndarray


@dataclass
class State:
    """What is remembered of what was read and written.

    Args:
      log, size: the name of the log and its bytes that are accounted for.
      done: size and time of change of files that are read, by name.
      reached: of files that are not read to their end, where the last window begins, in seconds.
      rules: memory and alarm of each machine, by name.
      recent: of the windows since a median was taken: when the first began, and how many have
        deviations between two `EDGES`, by place; by machine.
      medians: the latest, by machine.
      told: the median of the last drift or shift that was told, by machine.
      open: alarms that have begun and not ended, by machine: begin, peak and its place.
      detector: a digest of its file.
    """

    detector: str = ""
    log: str = ""
    size: int = 0
    done: dict[str, list[int]] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)
    rules: dict[str, tuple] = field(default_factory=dict)
    recent: dict[str, dict] = field(default_factory=dict)
    medians: dict[str, list[float]] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    open: dict[str, dict] = field(default_factory=dict)


class Watch:
    """A detector that watches, and what it remembers in a folder.

    Args:
      detector: a file of `Detector.save`.
      folder: of log and state; locked by the caller.
      show: gets each line.
      clock: returns the seconds since 1970.
    """

    def __init__(
        self,
        detector: Path,
        folder: Path,
        show: Callable[[str], object] = print,
        clock: Callable[[], float] = time.time,
    ):
        self.detector, self.folder = Detector.load(detector), folder
        self.show, self.clock = show, clock
        self.machines = {one.name: one for one in self.detector.machines}
        self.state = _load(folder / "state.json")
        digest = content_of_file(detector)
        if self.state.detector not in ("", digest):
            console.note("the detector is another one than before: its rules begin anew")
        same, self.state.detector = self.state.detector in ("", digest), digest
        self._recover(same)
        self._saved = time.monotonic()

    # --- windows

    def take(self, parts: list[Part]) -> None:
        """Score windows and write their lines, and those of the alarms that begin or end."""
        self._begin_log()
        states = [_unusable(part.wave) for part in parts]
        scored = [part for part, state in zip(parts, states, strict=True) if not state]
        verdicts = iter(
            self.detector.judge_waves(
                [part.wave for part in scored], [part.machine.group for part in scored]
            )
            if scored
            else ()
        )
        lines: list[dict] = []
        for part, state in zip(parts, states, strict=True):
            line = self._line(part, None if state else next(verdicts), state)
            lines += [line, *self._follow(line)]
        self._write(lines)
        if time.monotonic() - self._saved > SAVED_S:
            self.save()

    def _line(self, part: Part, verdict: Verdict | None, state: str) -> dict:
        line = {
            "time": _iso(part.time),
            "machine": part.machine.name,
            "file": part.file,
            "start": round(part.start_s, 3),
            "score": None,
            "threshold": None,
            "condition": "",
            "state": state,
        }
        if verdict is not None:
            line |= {
                "score": verdict.score,
                "threshold": verdict.threshold,
                "condition": verdict.condition,
                "nearest": verdict.nearest,
            }
        return line

    def _follow(self, line: dict) -> list[dict]:
        """Tell a line's state from its score, and remember it; return the events that follow."""
        name = line["machine"]
        self.state.reached[line["file"]] = line["start"]
        rule = self.machines[name].rule
        if line["score"] is None or rule is None:
            line["state"] = line["state"] or "no limit"
            return []
        follower = Follower(rule, *self.state.rules.get(name, ((), False)))
        alarm = follower.add(line["score"], line["condition"])
        self.state.rules[name] = follower.state
        above = line["score"] > line["threshold"]
        line["state"] = "alarm" if alarm else "above" if above else "normal"
        now = self.state.open.get(name)
        events = []
        if alarm and now is None:
            now = self.state.open[name] = {"begin": line["time"], "peak": -math.inf}
            events.append({"event": "begin", **_of_event(line)})
        if now is not None and line["score"] > now["peak"]:
            now |= {"peak": line["score"], "peak_time": line["time"], "file": line["file"]}
            now |= {"start": line["start"], "nearest": line["nearest"]}
        if not alarm and now is not None:
            del self.state.open[name]
            ordered = {what: now[what] for what in OF_AN_END}
            events.append({"event": "end", "machine": name, "time": line["time"], **ordered})
        return events + self._drift(line, rule.deviation(line["score"], line["condition"]))

    def _drift(self, line: dict, deviation: float) -> list[dict]:
        """Return an event where the scores have moved as a whole: slowly (drift), or at once.

        What counts are medians of some hours. It is a drift if no step between two of them is more
        than `STEP` of the way.
        """
        state, name = self.state, line["machine"]
        recent = state.recent.setdefault(name, {"begin": line["time"], "counts": {}})
        counts, place = recent["counts"], str(np.searchsorted(EDGES, deviation))
        counts[place] = counts.get(place, 0) + 1
        windows = sum(counts.values())
        if windows < CHUNK or _seconds(line["time"]) - _seconds(recent["begin"]) < CHUNK_S:
            return []
        del state.recent[name]
        median = _median(counts)
        medians = state.medians[name] = [*state.medians.get(name, []), median][-CHUNKS:]
        told = state.told.get(name, 0.0)
        if median < MOVED / 2:
            state.told.pop(name, None)
        if median < told + MOVED:
            return []
        state.told[name] = median
        steps, way = np.diff([0.0, *medians]), median - min(0.0, *medians)
        event = "drift" if steps.max() <= STEP * way else "shift"
        of = {"median": round(median, 3), "windows": windows}
        return [{"event": event, "machine": name, "time": line["time"], **of}]

    # --- log and state

    def _write(self, lines: list[dict]) -> None:
        """Append lines to the log of the day, and show them."""
        path = self.folder / self.state.log
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with full_disk(path), path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.state.size += len(data)
        for line in lines:
            self.show(json.dumps(line))

    def _begin_log(self) -> None:
        """Begin the log of another day, before anything of it is remembered."""
        today = f"log-{datetime.fromtimestamp(self.clock(), UTC):%Y-%m-%d}.jsonl"
        if today > self.state.log:  # a clock that goes back stays in the file
            self.state.log, self.state.size = today, 0
            self.save()

    def save(self) -> None:
        """Write what is remembered."""
        write_json(self.folder / "state.json", vars(self.state))
        self._saved = time.monotonic()

    def _recover(self, same: bool) -> None:
        """Take in what the log has behind the last `state.json`.

        Args:
          same: the detector is the one that wrote it.
        """
        path = self.folder / self.state.log
        if not self.state.log or not path.is_file():
            return
        with path.open("r+b") as file:
            file.seek(self.state.size)
            data = file.read()
            whole = data.rfind(b"\n") + 1
            file.truncate(self.state.size + whole)
        lines = [json.loads(line) for line in data[:whole].splitlines()]
        self.state.size += whole
        missing: list[dict] = []
        for line in lines:
            if "event" in line:
                missing = [one for one in missing if one != line]
            else:
                missing = self._follow(dict(line))
        if same:
            if missing:  # of the last window
                self._write(missing)
        else:
            empty = State()
            for one in ("rules", "open", "recent", "medians", "told"):
                setattr(self.state, one, getattr(empty, one))
        self.save()


class Folder:
    """The recordings of a folder that fills.

    Args:
      root: the folder; recordings may be at any depth. Or one recording.
      watch: what they are for.
      window_s, hop_s: of a window and from one to the next; None: as the machine's clips.
      machine: whose they are, where the detector knows several and no folder is called so.
    """

    def __init__(
        self,
        root: Path,
        watch: Watch,
        window_s: float | None = None,
        hop_s: float | None = None,
        machine: str = "",
    ):
        self.only = None if root.is_dir() else root
        self.root = root.parent if self.only else root
        self.watch, self.machine = watch, machine
        self.window_s, self.hop_s = window_s, hop_s
        machines = [self._machine(root)] if self.only else watch.detector.machines
        for one in [watch.detector.named(machine)] if machine else machines:
            _, hop = window_samples(watch.detector, one, window_s, hop_s)
            if hop_s or self.only:
                note_rate(one, hop)
        self._sizes: dict[Path, tuple[int, float]] = {}  # size, and since when

    def poll(self) -> int:
        """Score the recordings that are complete; return how many there were."""
        files = sorted(self._complete(), key=lambda one: (one[1].st_mtime_ns, natural(one[0])))
        waiting: deque[Part] = deque()
        ended: list[tuple[str, os.stat_result]] = []

        def score() -> None:
            self.watch.take(list(waiting))
            waiting.clear()
            for name, found in ended:
                self.watch.state.done[name] = [found.st_size, found.st_mtime_ns]
                self.watch.state.reached.pop(name, None)
            ended.clear()

        for path, found in files:
            name = path.relative_to(self.root).as_posix()
            parts = self._parts(path, name, found)
            while (part := self._next(parts, path)) is not None:
                waiting.append(part)
                if len(waiting) == TOGETHER:
                    score()
            ended.append((name, found))
        if waiting or ended:
            score()
        return len(files)

    @staticmethod
    def _next(parts: Iterator[Part], path: Path) -> Part | None:
        """Return the next window; None at the end, or, with a line, where a file is broken."""
        try:
            return next(parts, None)
        except InputError as error:
            console.note(f"passed over: {path}: {error}")
            return None

    def _complete(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield new files whose size has not changed for a while."""
        state, now, there = self.watch.state, time.monotonic(), {}
        if self.only:
            yield self.only, self.only.stat()
            return
        for folder in (self.root, *self.root.rglob("*/")):
            with suppress(OSError):  # removed in between
                for path in layout.files(folder):
                    there[path] = path.stat()
        names = {path.relative_to(self.root).as_posix() for path in there}
        for name in state.done.keys() - names:  # so that the state does not grow for ever
            del state.done[name]
        self._sizes = {path: one for path, one in self._sizes.items() if path in there}
        for path, found in there.items():
            known = state.done.get(path.relative_to(self.root).as_posix())
            if known == [found.st_size, found.st_mtime_ns]:
                continue
            size, since = self._sizes.get(path, (-1, now))
            if size != found.st_size:
                self._sizes[path] = found.st_size, now
                since = now
            old = self.watch.clock() - found.st_mtime > SETTLED_S
            if found.st_size and (old or now - since > SETTLED_S):
                yield path, found

    def _parts(self, path: Path, name: str, found: os.stat_result) -> Iterator[Part]:
        machine = self._machine(path)
        begin = found.st_mtime - audio.probe(path).seconds
        channel = self.watch.detector.system.audio.channel
        lengths = window_samples(self.watch.detector, machine, self.window_s, self.hop_s)
        reached = self.watch.state.reached.get(name, -1.0)
        for window in stream.of_file(path, channel, *lengths):
            start_s = window.start / SAMPLE_RATE_HZ
            if len(window.wave) < self.watch.detector.shortest:
                raise InputError("shorter than the detector can use")
            if round(start_s, 3) > reached:
                yield Part(machine, name, start_s, begin + start_s, window.wave)

    def _machine(self, path: Path) -> Machine:
        detector = self.watch.detector
        if self.machine or len(detector.machines) == 1:
            return detector.named(self.machine)
        group = detector.group_of(path)
        if group is None:
            raise InputError(f"in no folder of a machine: {', '.join(self.watch.machines)}")
        return next(one for one in detector.machines if one.group == group)


def watch_stream(
    watch: Watch,
    file: BinaryIO,
    machine: Machine,
    rate_hz: int,
    channels: int,
    form: stream.Format,
    window_s: float | None = None,
    hop_s: float | None = None,
) -> None:
    """Watch raw PCM until it ends; times are those of the clock when it began."""
    lengths = window_samples(watch.detector, machine, window_s, hop_s)
    note_rate(machine, lengths[1])
    channel = watch.detector.system.audio.channel
    begin = watch.clock()
    for window in stream.of_pcm(file, rate_hz, channels, form, channel, *lengths):
        start_s = window.start / SAMPLE_RATE_HZ
        watch.take([Part(machine, "-", start_s, begin + start_s, window.wave)])
    watch.save()


def watch_folder(folder: Folder, once: bool = False) -> None:
    """Watch a folder until it is interrupted, or `once`: what is there and complete."""
    while True:
        found = folder.poll()
        if once:
            folder.watch.save()
            return
        if not found:
            time.sleep(POLL_S)


def note_rate(machine: Machine, hop: int) -> None:
    """Tell where windows follow each other faster than the clips that the limit is from."""
    times = machine.every * SAMPLE_RATE_HZ / hop
    if machine.rule is not None and times > 1.01:
        console.note(
            f"{machine.name}: a window each {hop / SAMPLE_RATE_HZ:g} s, where the limit is for a "
            f"clip each {machine.every:g} s: expect up to {times:.3g} times as many false alarms"
        )


def window_samples(
    detector: Detector, machine: Machine, window_s: float | None, hop_s: float | None
) -> tuple[int, int]:
    """Return the samples of a window, and from one to the next, at 16 kHz.

    Raises:
      InputError: windows that the system cannot use, or that leave sound out.
    """
    own = detector.system.audio.seconds or machine.seconds
    window = round((window_s or own) * SAMPLE_RATE_HZ)
    hop = round(hop_s * SAMPLE_RATE_HZ) if hop_s else window
    if window < detector.shortest or not 0 < hop <= window:
        raise InputError(
            f"expected windows of {detector.shortest / SAMPLE_RATE_HZ:g} s or more, and hops of up "
            f"to a window, got {window / SAMPLE_RATE_HZ:g} s and {hop / SAMPLE_RATE_HZ:g} s"
        )
    return window, hop


def _of_event(line: dict) -> dict:
    return {name: line[name] for name in ("machine", "time", "file", "start", "score", "threshold")}


def _unusable(wave: np.ndarray) -> str:
    """Return why a window says nothing of the machine; "" if it does."""
    near = to_float(wave if wave.ndim == 1 else wave[:, 0])
    tenths = np.arange(0, len(near), SAMPLE_RATE_HZ // 10)
    low, high = np.minimum.reduceat(near, tenths), np.maximum.reduceat(near, tenths)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return "no numbers"
    if high.max() - low.min() < SILENT:
        return "silent"
    if np.mean(np.maximum(high, -low) >= FULL_SCALE) >= CLIPPED:
        return "clipped"
    return ""


def _median(counts: dict[str, int]) -> float:
    """Return the median of deviations by how many lie between two edges, to 5 %."""
    places = np.sort([int(place) for place in counts])
    total = np.cumsum([counts[str(place)] for place in places])
    middle = places[np.searchsorted(total, total[-1] / 2)]
    around = EDGES[np.clip([middle - 1, middle], 0, len(EDGES) - 1)]
    return float(around.mean())


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _load(path: Path) -> State:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return State()
    except ValueError as error:
        raise InputError(f"{path} is damaged; remove it, and the watch begins anew") from error
    found["rules"] = {name: (tuple(m), alarm) for name, (m, alarm) in found["rules"].items()}
    return State(**found)
