"""The members of an ensemble: finished runs that are of the same recordings, labels and rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from asdjax import runs
from asdjax.config import digest
from asdjax.metrics import score_files
from asdjax.runs import Run
from asdjax.types import Clip, Domain, InputError, preview

Key = tuple[str, str, str, str]  # machine, section, split and name of a clip


@dataclass(frozen=True)
class Member:
    """A finished run: scores of its test clips, leave-one-out scores of its training clips."""

    path: Path
    run: Run
    scores: Mapping[Key, float]

    def of(self, clips: Sequence[Clip]) -> np.ndarray:
        """Return the scores `[n]` of clips."""
        return np.array([self.scores[_key(clip)] for clip in clips])

    @cached_property
    def labels(self) -> dict[Key, tuple[int | None, Domain | None]]:
        """Return label and domain of every clip, in the order of the run's clips."""
        return {_key(clip): (clip.label, clip.domain) for clip in self.run.clips}

    @cached_property
    def files(self) -> dict[Key, Path]:
        """Return the file of every clip."""
        return {_key(clip): clip.path for clip in self.run.clips}

    @cached_property
    def sha256(self) -> str:
        """Return a digest of the scores."""
        return digest(sorted(self.scores.items()))

    def describe(self) -> dict[str, str]:
        """Return where the run lies and digests of what it is, as the ensemble records them."""
        return {
            "path": str(self.path),
            "system_sha256": digest(self.run.system),
            "weights_sha256": self.run.weights_sha256,
            "scores_sha256": self.sha256,
        }


def load_members(paths: Sequence[Path]) -> list[Member]:
    """Read finished runs and compare their clips, labels and rules.

    Args:
      paths: two or more folders of runs.
    Raises:
      InputError: all runs that cannot be read, and all that differ from the first in recordings,
        labels or year.
    """
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        raise InputError(f"expected two or more different runs, got {preview(paths) or 'none'}")
    members, problems = [], []
    for path in paths:
        try:
            members.append(_load(path))
        except InputError as error:
            problems.append(str(error))
    for other in members[1:]:
        problems += _differences(members[0], other)
    if problems:
        raise InputError("cannot combine these runs:\n  " + "\n  ".join(problems))
    return members


def _load(path: Path) -> Member:
    made = runs.load(path)
    if not any((path / "scores").rglob(f"{score_files.SCORE}_*.csv")):
        raise InputError(f"expected scores in {path / 'scores'}: give `asdjax score {path}`")
    scores = {
        (file.machine, file.section, "test", name): value
        for file in score_files.load(path / "scores")
        for name, value in zip(file.names, file.values.tolist(), strict=True)
    }
    clips = {_key(clip) for clip in made.clips if clip.split == "test"}
    if differ := scores.keys() ^ clips:
        raise InputError(
            f"{path}: scores and test clips of the run differ: {_show(differ)}; "
            f"give `asdjax score {path}` again"
        )
    for group in made.groups:
        normal = made.select(group, "train")
        values = runs.load_left_out(path, made, group).tolist()
        scores |= zip(map(_key, normal), values, strict=True)
    return Member(path, made, scores)


def _differences(first: Member, other: Member) -> list[str]:
    """Return in what two runs are not of the same recordings, labels and rules."""
    problems = []
    if other.run.year != first.run.year:
        years = f"year {other.run.year}, {first.path} has {first.run.year}"
        problems.append(f"{other.path}: {years}; give both runs the same --year")
    if missing := first.scores.keys() - other.scores.keys():
        problems.append(f"{other.path} lacks clips of {first.path}: {_show(missing)}")
    if extra := other.scores.keys() - first.scores.keys():
        problems.append(f"{other.path} has clips that {first.path} lacks: {_show(extra)}")
    shared = first.labels.keys() & other.labels.keys()
    if differ := {key for key in shared if _differ(first.files[key], other.files[key])}:
        problems.append(
            f"{other.path}: recordings of other sizes than those of {first.path}, in "
            f"{other.run.data} and {first.run.data}: {_show(differ)}"
        )
    if differ := {key for key in shared if first.labels[key] != other.labels[key]}:
        problems.append(
            f"{other.path}: labels or domains differ from {first.path}: {_show(differ)}; "
            "give both runs the same --ground-truth"
        )
    return problems


def _key(clip: Clip) -> Key:
    return (*clip.group, clip.split, clip.name)


def _differ(one: Path, other: Path) -> bool:
    """Tell whether two files that are both still there cannot be copies of each other."""
    if one == other or not (one.is_file() and other.is_file()):
        return False
    return one.stat().st_size != other.stat().st_size


def _show(keys: Iterable[Key]) -> str:
    return preview("/".join(key) for key in sorted(keys))
