"""Commands that write keep others out of their folder; what a killed one left is removed."""

import errno
import fcntl
import os
import platform
import subprocess
import sys
from contextlib import contextmanager

import pytest

from asdjax.files import atomic
from asdjax.recipes import RECIPES
from asdjax.scoring.clusters import Pseudo
from asdjax.scoring.combine import Ensemble
from asdjax.stages import ensemble, pseudo_labels, stages
from asdjax.stages.lock import LOCK, locked
from asdjax.types import InputError

FROZEN, TRAINED = (RECIPES[name].config for name in ("frozen/logmel", "small/dual"))
COMMANDS = {
    "run": lambda out: stages.run(FROZEN, out / "no data", out),
    "train": lambda out: stages.train(TRAINED, out / "no data", out),
    "embed": lambda out: stages.embed(FROZEN, out / "no data", out),
    "score": stages.score,
    "report": stages.report,
    "ensemble": lambda out: ensemble.ensemble([out / "a", out / "b"], Ensemble(), out),
    "pseudo": lambda out: pseudo_labels.cluster_run(out, Pseudo()),
    "pseudo --out": lambda out: pseudo_labels.cluster_run(out / "run", Pseudo(), out),
}
OTHER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("process 7 on elsewhere", file=file, flush=True)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(out):
    """Let another process lock a folder; kill it at the end."""
    words = [sys.executable, "-c", OTHER, str(out / LOCK)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **pipes) as process:
        try:
            assert process.stdout.readline() == b"locked\n"
            yield
        finally:
            process.kill()


def test_every_command_that_writes_is_refused_while_another_process_works_there(tmp_path):
    with another_process(tmp_path):
        for command in COMMANDS.values():
            with pytest.raises(InputError, match=f"{tmp_path} is in use by process 7 on elsewhere"):
                command(tmp_path)
    with locked(tmp_path):  # the process was killed
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {platform.node()}"
    assert not list(tmp_path.iterdir())


def test_a_lock_ends_with_its_command_whether_that_fails_or_not(tmp_path):
    def work():
        with locked(tmp_path):
            with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
                COMMANDS["run"](tmp_path)
            with locked(tmp_path / "other"):
                pass
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            work()
    assert not list(tmp_path.iterdir())


def test_a_command_that_was_refused_leaves_no_folder_of_its_own(tmp_path):
    own = tmp_path / "a" / "b"
    with pytest.raises(InputError), locked(own):
        raise InputError("no such recordings")
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError), locked(tmp_path):
        raise InputError("no such recordings")
    assert tmp_path.exists()
    with locked(own):
        (own / "results.csv").touch()
    assert [path.name for path in own.iterdir()] == ["results.csv"]


def test_a_lock_that_another_process_removes_is_taken_again(tmp_path, monkeypatch):
    """Between opening and locking a file, its owner ends."""
    lock, calls = fcntl.flock, []

    def late(file, how):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(how)
        lock(file, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with locked(tmp_path):
            assert len(calls) == 2
            with pytest.raises(InputError, match="in use by"), locked(tmp_path):
                pass


def test_a_disk_without_locks_is_told_and_nothing_removed_there(tmp_path, monkeypatch, capsys):
    def lacking(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lacking)
    living = tmp_path / ".config.json.0123abcd.tmp"
    living.touch()
    with locked(tmp_path):
        pass
    assert living.exists()
    told = capsys.readouterr().err
    assert f"{tmp_path} cannot be locked" in told
    assert "No locks available" in told


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    with atomic(tmp_path / "embeddings" / "fan.npz") as temporary:
        temporary.touch()
    name = temporary.name
    left = [tmp_path / part / name for part in ("", "embeddings", "first-stage/embeddings")]
    others = [  # of another command, of the user, of another program
        tmp_path / "members" / "frozen" / name,
        tmp_path / "fan.npz.0123abcd.tmp",
        tmp_path / ".fan.npz.tmp",
        tmp_path / "embeddings" / "fan.npz",
    ]
    for path in (*left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with locked(tmp_path):
        assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
