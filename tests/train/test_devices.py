"""A run is the same on any number of devices, in one process or two."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import processes
import pytest
from jax.experimental import multihost_utils
from machines import tiny_eat, tone_machine

from asdjax import devices
from asdjax.config import SystemConfig
from asdjax.data import dcase
from asdjax.data.batches import Audio
from asdjax.frontend.augment import Augment
from asdjax.losses.adacos import AdaCos
from asdjax.models import weights_file
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.scoring.knn import Knn
from asdjax.train import batches, interrupt
from asdjax.train.config import HeadConfig, Train
from asdjax.train.optimizer import Optimizer, Schedule
from asdjax.train.plan import make_plan
from asdjax.types import InputError

PASSES, BATCH = 12, 8
STOPS = (5, 6), (8, 8)  # the pass in which a process is told to stop, and all stop after
MACHINES = "fan", "pump"
ADAPTED = Pretrained("tiny", Lora(2, dropout=0.2, targets=("q", "v")), "statistics", embedding=16)
SYSTEM = SystemConfig(  # everything that draws, and everything that looks at the whole batch
    (ADAPTED,),
    audio=Audio(seconds=0.3),
    train=Train(
        steps=PASSES,
        batch=BATCH,
        heads=(HeadConfig(AdaCos(subclusters=2)),),
        optimizer=Optimizer("adamw", Schedule("constant", peak=1e-4)),
        augment=Augment(mask=20, mixup=0.5, crop="random", shift=True),
        ema=0.9,
        held_out=0.3,
        log_every=2,
        save_every=4,
    ),
    scorer=Knn(k=1),
)


def call(notes: Path, stop: int, words: list[str]) -> None:
    """Run; note which clips are read and what of OUT is written; send itself a SIGTERM."""
    from asdjax import __main__ as command_line
    from asdjax.recipes import RECIPES
    from asdjax.recipes.recipe import Recipe

    devices.WAIT_S = int(os.environ.get("WAIT_S", devices.WAIT_S))
    RECIPES["test"] = Recipe("", SYSTEM, "")
    out = Path(words[words.index("--out") + 1])
    read, written, passes = [], set(), itertools.count(1)
    read_batch, asked = batches.read_batch, interrupt.Stop.asked

    def reading(paths, *rest):
        read.append([str(path) for path in paths])
        return read_batch(paths, *rest)

    def asking(self, agree):
        if next(passes) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(self, agree)

    def opened(event, arguments):
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            path = Path(str(arguments[0]))
            if path.is_relative_to(out):
                written.add(path.relative_to(out).parts[0])

    batches.read_batch, interrupt.Stop.asked = reading, asking
    sys.addaudithook(opened)
    sys.argv = words
    try:
        command_line.main()
    finally:
        notes.write_text(json.dumps({"read": read, "written": sorted(written)}))


class Run(NamedTuple):
    """A call, of one or two processes."""

    out: Path
    processes: list[BaseProcess]

    def wait(self) -> Run:
        for process in self.processes:
            process.join(600)
        return self

    @property
    def codes(self) -> list[int]:
        return [process.exitcode for process in self.processes]

    def told(self, number: int = 0) -> str:
        """Return what a process printed, without what Gloo says of connecting CPUs."""
        lines = Path(f"{self.out}.{number}.log").read_text().splitlines()
        return "\n".join(line for line in lines if "Gloo" not in line and "peer ranks" not in line)

    def noted(self, number: int) -> dict:
        return json.loads(Path(f"{self.out}.{number}.json").read_text())

    def log(self) -> list[dict]:
        """Return the lines of `log.jsonl` without what depends on the machine's speed."""
        lines = map(json.loads, (self.out / "log.jsonl").read_text().splitlines())
        timing = "clips_per_second", "waiting"
        return [{n: v for n, v in line.items() if n not in timing} for line in lines]

    def checkpoints(self) -> set[str]:
        return {path.name for path in (self.out / "checkpoints").iterdir()}

    def arrays(self) -> dict[str, np.ndarray]:
        return weights_file.load(self.out / "model.safetensors").arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("devices")
    more = "section_00_{domain}_{split}_{label}_1{index:03d}_spd_{speed}.wav"
    for machine in MACHINES:  # 12 + 6 training clips each
        tone_machine(root / "data", machine)
        tone_machine(root / "data", machine, 1, more)
    tiny_eat(root / "tiny.safetensors")
    return root


@pytest.fixture(scope="module")
def start(folder):
    def start(name, command, source, devices=1, count=1, stop=0, **environment):
        """Start a training, or a whole run.

        Args:
          name: of its run; one that is there is gone on with.
          devices: of each process.
          count: of processes.
          stop: the pass in which the last process gets a SIGTERM.
        """
        words = ("asdjax", command, "test", "--data", folder / "data", "--out", folder / name)
        words += ("--weights", folder / "tiny.safetensors", "--train.source", source)
        words = list(map(str, (*words, "--keep-checkpoints")))
        if count > 1 or environment:
            words.append("--distributed")
        port, cache, started = processes.free_port(), folder / "cache", []
        for number in range(count):
            own = environment | (processes.address(port, number) if count > 1 else {})
            given = folder / f"{name}.{number}.json", stop if number == count - 1 else 0, words
            log = folder / f"{name}.{number}.log"
            log.unlink(missing_ok=True)
            started.append(processes.call(call, log, *given, cache=cache, devices=devices, **own))
        return Run(folder / name, started)

    return start


@pytest.fixture(scope="module")
def ran(start) -> dict[str, Run]:
    """Return what one process does on 1 and 2 devices; all other tests run on 2."""
    one, two = start("one", "train", "resident"), start("two", "run", "streaming", 2)
    ran = {"one": one.wait(), "two": two.wait()}
    for run in ran.values():
        assert run.codes == [0], run.told()
    return ran


class Stopped(NamedTuple):
    """What a call left of which one process got a SIGTERM."""

    codes: list[int]
    told: list[str]
    noted: list[dict]
    checkpoints: set[str]
    steps: list[int]
    model: bool


@pytest.fixture(scope="module")
def stopped(start) -> tuple[list[Stopped], Run]:
    """Return a training that is stopped twice, and its end, with the scores.

    Two processes keep the clips; one with two devices goes on and streams them; then two do.
    """
    found = []
    for source, count, told in (
        ("resident", 2, STOPS[0][0]),
        ("streaming", 1, STOPS[1][0] - STOPS[0][1]),
    ):
        call = start("stopped", "train", source, 3 - count, count, stop=told).wait()
        found.append(
            Stopped(
                call.codes,
                [call.told(number) for number in range(count)],
                [call.noted(number) for number in range(count)],
                call.checkpoints(),
                [line["step"] for line in call.log()],
                (call.out / "model.safetensors").exists(),
            )
        )
    end = start("stopped", "run", "streaming", count=2).wait()
    assert end.codes == [0, 0], [end.told(number) for number in range(2)]
    return found, end


def test_number_of_devices_does_not_matter(ran):
    # Sums over the batch in another order, 1e-7 each, which grows with 12 updates: 1e-5 was once
    # exceeded by a tenth, on a Xeon; ten times that is allowed. A batch
    # norm or a scale that sees one device's clips, or other random numbers, would change 1e-2.
    one, two = ran.values()
    assert [line["step"] for line in one.log()] == list(range(2, PASSES + 1, 2))
    statistics = {f"branches.0.pool.norm.{n}" for n in ("mean", "var")} | {"heads.0.scale"}
    assert statistics <= one.arrays().keys()
    for ours, theirs in zip(one.log(), two.log(), strict=True):
        # The spread is 1 - a length near 1, whose rounding is 1e-7.
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for name in statistics:
        ours, theirs = one.arrays()[name], two.arrays()[name]
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


def test_two_processes_train_as_one_with_two_devices(stopped, ran):
    # Equal bits: a sum of two numbers is rounded once, whichever comes first.
    _, end = stopped
    ours, theirs = end.arrays(), ran["two"].arrays()
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    for mine, line in zip(end.log(), ran["two"].log(), strict=True):
        assert {name: mine[name] for name in line} == line  # also has the validations at the stops


def test_two_processes_score_as_one_with_two_devices(stopped, ran):
    _, end = stopped
    one, two = (run.out / "scores" for run in (ran["two"], end))
    names = sorted(path.name for path in one.glob("anomaly_score_*.csv"))
    assert len(names) == len(MACHINES)
    assert names == sorted(path.name for path in two.glob("anomaly_score_*.csv"))
    for name in names:
        mine, other = (
            [row.split(",") for row in (f / name).read_text().split()] for f in (one, two)
        )
        assert [clip for clip, _ in mine] == [clip for clip, _ in other]
        values = [[float(value) for _, value in rows] for rows in (mine, other)]
        # float32 distances of embeddings from batches of another size
        np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-5)


def test_a_signal_to_one_process_stops_both_after_the_same_pass(stopped):
    calls, end = stopped
    for call, (_, heard) in zip(calls, STOPS, strict=True):
        assert set(call.codes) == {143}, call.told
        assert call.steps == list(range(2, heard + 1, 2))
        assert f"step_{heard}" in call.checkpoints
        assert not call.model
    assert f"resuming after step {STOPS[0][1]} of {PASSES}" in calls[1].told[0]
    assert f"resuming after step {STOPS[1][1]} of {PASSES}" in end.told()
    assert f"step_{PASSES}" in end.checkpoints()


def test_each_process_reads_its_share_of_the_files(stopped, folder):
    clips = [clip for clip in dcase.scan(folder / "data").clips if clip.split == "train"]
    plan = make_plan(SYSTEM.train, clips)
    paths = np.array([str(clip.path) for clip in clips])
    trained, held = paths[~plan.held_out], paths[plan.held_out]
    calls, end = stopped
    notes = calls[0].noted, [end.noted(number) for number in range(2)]
    resident, streaming = ([[tuple(paths) for paths in n["read"]] for n in two] for two in notes)
    halves = [np.array_split(paths, 2) for paths in (trained, held)]
    assert resident == [[tuple(half[number]) for half in halves] for number in range(2)]
    rows = batches.shuffled(len(trained), BATCH, SYSTEM.train.seed)
    turns = batches.validation_batches(len(held), BATCH)
    first = STOPS[1][1]
    for read, share in zip(streaming, (slice(BATCH // 2), slice(BATCH // 2, BATCH)), strict=True):
        asked = [tuple(trained[rows(step)[share]]) for step in range(first, 2 * PASSES)]
        again = [tuple(held[turns(step).clip[share]]) for step in range(PASSES)]
        read = {batch for batch in read if set(batch) <= {*paths}}  # not those that are embedded
        assert {*asked[: PASSES - first], *again[:2]} <= read <= {*asked, *again}  # reads ahead


def test_only_the_first_process_writes_and_tells(stopped):
    (call, _), end = stopped
    for noted, told in (
        (call.noted, call.told),
        ([end.noted(number) for number in range(2)], [end.told(number) for number in range(2)]),
    ):
        assert {"checkpoints", "log.jsonl"} <= set(noted[0]["written"])
        others = {name for name in noted[1]["written"] if not name.startswith(".finished.1")}
        assert others <= {"checkpoints", "embeddings"}
        assert "parameters" in told[0]
        assert told[1] == ""


def test_a_process_that_does_not_find_the_others_says_so(start):
    call = start(
        "lost", "train", "resident", WAIT_S=2, **processes.address(processes.free_port(), 1)
    )
    assert call.wait().codes == [1]
    assert "expected all 2 to be there within 2 s" in call.told()


def test_processes_that_were_told_different_things_are_refused(monkeypatch):
    def gathered(other):
        hashes = [[hashlib.sha256(v.encode()).digest() for v in ("a", x)] for x in ("b", other)]
        return np.frombuffer(b"".join(itertools.chain(*hashes)), np.uint8).reshape(2, 2, -1)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: gathered("b"))
    devices.agree({"data": "a", "settings": "b"})
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: gathered("c"))
    with pytest.raises(InputError, match="expected the same settings on every host"):
        devices.agree({"data": "a", "settings": "b"})


def test_what_fails_in_one_process_fails_in_all_and_keeps_its_error(monkeypatch):
    told = []

    def agree(values):
        told.append(values)
        if len(told) == 1:
            raise InputError("others are well")

    monkeypatch.setattr(devices, "agree", agree)
    with pytest.raises(OSError, match="gone"), devices.together("recordings"):
        raise OSError("gone")
    with devices.together("recordings"):
        pass
    assert told == [{"recordings": "failed"}, {"recordings": "done"}]


def test_rows_lie_on_the_devices_in_order():
    mesh = devices.data_mesh(jax.devices()[::-1])
    assert list(mesh.devices) == jax.devices()
    assert devices.own_share(5, mesh) == slice(0, 6)


def test_copies_are_whole_on_every_device_and_keys_stay_keys():
    key = jax.random.key(3)
    array, copy = devices.put_copies((np.arange(3), key), devices.data_mesh())
    assert [shard.data.shape for shard in array.addressable_shards] == [(3,), (3,)]
    assert copy.dtype == key.dtype
    assert copy.is_fully_replicated
    np.testing.assert_array_equal(jax.random.key_data(copy), jax.random.key_data(key))
