"""A run that is killed again and again, wherever it is, ends as one that never was."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
from machines import tone_machine

from asdjax.models import weights_file

PASSES = 24
SETTINGS = (
    *("--audio.seconds", 0.3, "--train.augment.crop", "random", "--train.augment.shift"),
    *("--train.ema", 0.9, "--train.steps", PASSES),
    *("--train.batch", 4, "--train.log-every", 1, "--train.save-every", 2),
)
TOUCHES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.link"}


def run(count: int, part: str, words: list[str]) -> None:
    """Run; SIGKILL itself at the `count`th touch of a file of OUT whose name has `part`."""
    from asdjax import __main__ as command_line
    from asdjax.recipes import RECIPES
    from asdjax.recipes.recipe import Recipe

    dual = RECIPES["small/dual"].config
    RECIPES["test"] = Recipe("", replace(dual, encoders=dual.encoders[:1]), "")
    out, touched = words[words.index("--out") + 1] + os.sep, 0

    def touch(event, arguments):  # told before it is done
        nonlocal touched
        if event in TOUCHES and part in (path := str(arguments[0])) and path.startswith(out):
            touched += 1
            if touched == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touch)
    sys.argv = words
    command_line.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("kill")
    for seed, machine in enumerate(("fan", "pump")):
        tone_machine(root / "data", machine, seed)
    return root


@pytest.fixture(scope="module")
def start(folder):
    def start(name: str, count: int = 0, part: str = ""):
        where = "--data", folder / "data", "--out", folder / name
        words = list(map(str, ("asdjax", "run", "test", *where, *SETTINGS)))
        log, cache = folder / f"{name}.log", folder / "cache"
        return processes.call(run, log, int(count), part, words, cache=cache)

    return start


@pytest.fixture(scope="module")
def killed(folder, start):
    """Return two runs, killed until they were through, beside a third that was never killed.

    Both draw when: one kills itself while it touches files, the other is killed from outside.
    """
    whole = start("whole")  # fills the cache
    whole.join()
    assert whole.exitcode == 0, (folder / "whole.log").read_text()
    inside, outside = killing_itself(start), killing(folder / "outside", start)
    while any([next(inside, None), next(outside, None)]):
        time.sleep(0.001)
    return folder / "inside", folder / "outside"


def killing_itself(start):
    """Let a run kill itself, each time elsewhere; yield while it goes on."""
    draw = np.random.default_rng(0).integers
    moments = (
        (draw(10, 100), ""),  # of more: the call does not end before
        (draw(30, 120), "orbax-checkpoint-tmp"),  # while a checkpoint is written
        (draw(1, 3), "model.safetensors."),  # before it is written, or before it has its name
        (draw(1, 3), "finished.json."),  # the model is there, but nothing says so
    )
    for moment in moments:
        call = start("inside", *moment)
        while call.is_alive():
            yield call
        assert call.exitcode == -signal.SIGKILL, moment
    call = start("inside")
    while call.is_alive():
        yield call
    assert call.exitcode == 0


def killing(out: Path, start):
    """Kill a run from outside, each time further on; yield while it goes on."""
    reached = np.random.default_rng(1).integers(6, 18)
    moments = (
        (out / "checkpoints").is_dir,  # it reads or compiles
        lambda: logged(out) >= reached and any(out.glob("checkpoints/*-tmp*")),
    )
    for come in moments:
        call = start("outside")
        while call.is_alive() and not come():
            yield call
        call.kill()
        call.join()
    call = start("outside")
    while call.is_alive():
        yield call
    assert call.exitcode == 0


def logged(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def test_log_has_each_pass_once(killed, folder):
    timing = "clips_per_second", "waiting"

    def lines(out):
        read = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [{n: v for n, v in line.items() if n not in timing} for line in read]

    assert [line["step"] for line in lines(folder / "whole")] == list(range(1, PASSES + 1))
    for out in killed:
        assert lines(out) == lines(folder / "whole")


def test_weights_are_the_same_in_every_bit(killed, folder):
    theirs, header, _ = weights_file.load(folder / "whole" / "model.safetensors")
    for out in killed:
        ours, described, _ = weights_file.load(out / "model.safetensors")
        assert described == header
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            assert ours[name].tobytes() == array.tobytes(), name


def test_scores_are_the_same_in_every_bit(killed, folder):
    whole = folder / "whole"
    files = [whole / "results.csv", *sorted(whole.glob("scores/**/*.csv"))]
    # results; scores, decisions and left-out scores of two machines; thresholds
    assert len(files) == 1 + 2 * 3 + 1
    for out in killed:
        assert {f.name for f in out.glob("scores/**/*.csv")} == {f.name for f in files[1:]}
        for file in files:
            assert (out / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_killed_runs_were_resumed(killed, folder):
    for out in killed:
        told = (folder / f"{out.name}.log").read_text()
        assert re.search(r"resuming after step [1-9]", told)


def test_nothing_that_was_half_written_is_left(killed, folder):
    def names(out):
        return {path.relative_to(out) for path in out.rglob("*")}

    for out in killed:
        assert names(out) == names(folder / "whole")
