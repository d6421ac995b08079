"""Folders of runs as the stage `score` leaves them, with made-up scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from asdjax.artifact import record
from asdjax.metrics import score_files
from asdjax.recipes import RECIPES
from asdjax.stages import folder
from asdjax.types import Clip, Scores

SYSTEM = RECIPES["frozen/logmel"].config
MACHINES = (("fan", "section_00"), ("pump", "section_00"))


def make_clips(groups=MACHINES, domains=("source", "target"), count=8) -> list[Clip]:
    """Return 16 training clips and `count` test clips of each domain and label."""
    cells = [("train", d, 0, 16 // len(domains)) for d in domains]
    cells += [("test", d, label, count) for d in domains for label in (0, 1)]
    return [
        Clip(Path(m) / split / f"{s}_{d}_{label}_{i}.wav", m, s, split, d, label)
        for m, s in groups
        for split, d, label, number in cells
        for i in range(number)
    ]


def make_run(out: Path, clips: list[Clip], seed: int, year: int | None = 2024) -> Path:
    """Write what a scored run leaves: noisy scores in quarters, so that there are ties."""
    rng = np.random.default_rng(seed)
    made = folder.Run(SYSTEM, out, tuple(clips), year, ("",), {}, {})
    folder.save(out, made)
    for group, own in made.groups.items():
        train, test = ([c for c in own if c.split == split] for split in ("train", "test"))
        label = np.array([c.label or 0 for c in test])
        values = rng.integers(0, 8, len(test)) / 4 + label * rng.uniform(0, 1) // 0.25 / 4
        score_files.save(out / folder.SCORES, Scores(*group, tuple(c.name for c in test), values))
        left_out = rng.permutation(np.arange(len(train)) % 8) / 4
        folder.save_left_out(out / folder.SCORES, train, left_out)
    finish(out)
    return out


def finish(out: Path) -> None:
    """Count the scores of a run as finished, as they are."""
    record(folder.load(out).scores(out))


def make_flipped(clips) -> list[Clip]:
    """Return the clips, the first test clip with the other label."""
    first = next(c for c in clips if c.split == "test")
    return [replace(c, label=1 - c.label) if c == first else c for c in clips]


def fan(kind: str) -> str:
    """Return where a run has scores of the fan."""
    end = "train" if kind == "leave_one_out" else "test"
    return f"scores/{kind}_fan_section_00_{end}.csv"


def spoil(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
