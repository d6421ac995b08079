"""Two processes on one machine train, embed and score as one does."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
from machines import tiny_eat, tone_machine

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.data.batches import Audio
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.scoring.clusters import Pseudo
from asdjax.scoring.knn import Knn
from asdjax.stages.embed import own_groups
from asdjax.train.config import HeadConfig, Train

MEAN = Pretrained("tiny", pooling="mean", embedding=None)
FROZEN = SystemConfig((MEAN,), audio=Audio(seconds=0.3), scorer=Knn(k=1))
ADAPTED = SystemConfig(
    (Pretrained("tiny", Lora(2, targets=("q", "v")), "statistics", embedding=16),),
    audio=Audio(seconds=0.3),
    train=Train(steps=4, batch=8, heads=(HeadConfig(),)),
    scorer=Knn(k=1),
)
MEMBERS = {"test/one": FROZEN, "test/two": replace(FROZEN, scorer=Knn(k=2))}
BOTH = EnsembleConfig(tuple(MEMBERS))
MACHINES = "fan", "pump", "valve"


def call(config: SystemConfig | EnsembleConfig, words: list[str]) -> None:
    from asdjax import __main__ as command_line
    from asdjax.recipes import RECIPES
    from asdjax.recipes.recipe import Recipe

    RECIPES.update(
        {name: Recipe("", one, "") for name, one in (MEMBERS | {"test": config}).items()}
    )
    sys.argv = words
    command_line.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    for machine in MACHINES:
        tone_machine(root / "data", machine)
    tiny_eat(root / "tiny.safetensors")
    return root


@pytest.fixture(scope="module")
def start(folder):
    def start(name, command, system, count=1, second=()):
        words = ["asdjax", command, "test", "--data", folder / "data", "--out", folder / name]
        words += ["--weights", folder / "tiny.safetensors", *["--distributed"] * (count > 1)]
        port, started = processes.free_port(), []
        for number in range(count):
            own = processes.address(port, number) if count > 1 else {}
            log = folder / f"{name}.{number}.log"
            given = system, list(map(str, (*words, *(second if number else ()))))
            cache = folder / "cache"
            started.append(processes.call(call, log, *given, cache=cache, **own))
        return started

    return start


@pytest.fixture(scope="module")
def ran(start, folder):
    """Return the folder of two runs of an ensemble: "one" of one process, "two" of two."""
    for count, name in ((1, "one"), (2, "two")):
        started = start(name, "run", BOTH, count)
        for number, process in enumerate(started):
            process.join(600)
            assert process.exitcode == 0, (folder / f"{name}.{number}.log").read_text()
    return folder


def files(run: Path) -> dict[str, bytes]:
    """Return the files of a run but its lock and its figures, which hold the time."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file()
        and path.suffix not in (".png", ".pdf", ".svg")
        and "lock" not in path.name
    }


def test_two_processes_give_the_files_of_one(ran):
    member = Path("members", "test", "one")
    one, two = (files(ran / name / member) for name in ("one", "two"))
    assert one.keys() == two.keys()
    embedded = {Path(file).stem for file in one if file.startswith("embeddings/")}
    assert embedded == {f"{machine}_section_00" for machine in MACHINES}
    for file, content in one.items():
        if file.endswith(".npz"):
            paths = (ran / name / member / file for name in ("one", "two"))
            with np.load(next(paths)) as ours, np.load(next(paths)) as theirs:
                assert ours.files == theirs.files
                for part in ours.files:
                    np.testing.assert_array_equal(theirs[part], ours[part], err_msg=file)
        else:
            assert two[file] == content, file


def test_two_processes_run_an_ensemble_as_one(ran):
    """Both embed the first member; of the second, which has the same embeddings, they copy them."""
    one, two = files(ran / "one"), files(ran / "two")
    assert one.keys() == two.keys()
    scores = [file for file in one if Path(file).name.startswith("anomaly_score")]
    assert len(scores) == 3 * len(MACHINES)  # of two members and the ensemble
    for file in (*scores, "results.csv"):
        assert two[file] == one[file], file
    told = [(ran / f"two.{number}.log").read_text() for number in range(2)]
    assert told[0].count("scores:") == 3
    assert "scores:" not in told[1]


def test_an_error_of_one_process_ends_both_with_its_reason(start, folder):
    """The first would go on to make labels, for which it waits for the second."""
    system = replace(ADAPTED, pseudo=Pseudo())
    started = start("failed", "run", system, count=2, second=("--data", folder / "absent"))
    for process in started:
        process.join(600)
    told = [(folder / f"failed.{number}.log").read_text() for number in range(2)]
    assert [process.exitcode for process in started] == [1, 1], told
    assert "another one failed at recordings" in " ".join(told[0].split())
    assert str(folder / "absent") in told[1].replace("\n", "")


def test_processes_that_would_embed_differently_are_refused(start, folder):
    """As two hosts do for which `dtype auto` is not the same."""
    started = start("differ", "embed", FROZEN, count=2, second=("--encoders.0.dtype", "bfloat16"))
    for number, process in enumerate(started):
        process.join(600)
        told = " ".join((folder / f"differ.{number}.log").read_text().split())
        assert process.exitcode == 1, told
        assert "expected the same settings, weights and dtype of products" in told
    assert not (folder / "differ" / "embeddings").exists()


def test_each_process_embeds_its_share(ran):
    """Three machines of 21 clips: the first process embeds two of them, and alone tells of it."""
    told = [(ran / f"two.{number}.log").read_text() for number in range(2)]
    assert " 42/42 " in told[0]
    assert "scores:" in told[0]
    assert "embedding" not in told[1]
    assert "scores:" not in told[1]


def test_shares_are_balanced(monkeypatch):
    sizes = {"a": 10, "b": 50, "c": 30, "d": 30, "e": 5}
    groups = {(name, "00"): (None,) * size for name, size in sizes.items()}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = []
    for number in range(2):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        shares.append([name for name, _ in own_groups(groups)])
    assert shares == [["a", "b", "e"], ["c", "d"]]
