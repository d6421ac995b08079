"""Scores of several systems on the same recordings: of runs, of ensembles, or of anybody's files.

Whoever reads them (`ensemble`, `compare`) needs one run among them, which knows the clips and their
labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asdjax.metrics import official, score_files
from asdjax.metrics.pairing import by_clip
from asdjax.stages import folder
from asdjax.stages.folder import ENSEMBLE, RECORD, SCORES, Group, Run
from asdjax.types import Clip, Domain, InputError, Scores, preview

Key = tuple[str, str, str, str]  # machine, section, split and name of a clip


@dataclass(frozen=True)
class Member:
    """Scores of a system: of its test clips, and of training clips that it did not see.

    Args:
      run: None for score files that are not of a run; these may lack training clips.
      transductive: statistics of test clips were used for it.
      labels_used: labels of test clips were.
    """

    path: Path
    run: Run | None
    scores: Mapping[Key, float]
    transductive: bool = False
    labels_used: bool = False

    def of(self, clips: Sequence[Clip]) -> np.ndarray:
        """Return the scores `[n]` of clips."""
        return np.array([self.scores[_key(clip)] for clip in clips])

    def knows(self, clips: Sequence[Clip]) -> bool:
        return all(_key(clip) in self.scores for clip in clips)


def load_members(paths: Sequence[Path]) -> tuple[Run, list[Member]]:
    """Return the first run and all members, whose clips, labels and rules are compared with it.

    Args:
      paths: two or more folders: of runs, of ensembles, or with score files.

    Raises:
      InputError: all that cannot be read, and all that differ from the first run in recordings,
        labels or year; none of them is a run.
    """
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        raise InputError(f"expected two or more different runs, got {preview(paths) or 'none'}")
    members, problems = {}, []
    for path in paths:
        try:
            if (found := _files(path)) is None:
                members[path] = _of_run(path)
            else:
                members[path] = found
        except InputError as error:
            problems.append(str(error))
    runs = [one for one in members.values() if isinstance(one, Member)]
    if not runs and not problems:
        problems.append(f"expected a run of asdjax among them, got score files: {preview(paths)}")
    for path, found in members.items() if runs else ():
        try:
            if isinstance(found, Member):
                problems += _differences(runs[0], found)
            else:
                members[path] = _of_files(path, found, runs[0].run)
        except InputError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise InputError("these folders do not go together:\n  " + "\n  ".join(problems))
    return runs[0].run, list(members.values())


def _files(path: Path) -> list[Scores] | None:
    """Return the score files of a folder that is no run; None where it should be one."""
    if (path / RECORD).is_file():
        return score_files.load(path / ENSEMBLE)
    if (path / "config.json").exists() or not any(path.rglob(f"{score_files.SCORE}_*.csv")):
        return None
    return score_files.load(path)


def _of_run(path: Path) -> Member:
    run = folder.load_scored(path)
    scores = {
        (file.machine, file.section, "test", name): value
        for file in score_files.load(path / SCORES)
        for name, value in zip(file.names, file.values.tolist(), strict=True)
    }
    for group in run.groups:
        values = folder.load_left_out(path / SCORES, group)
        scores |= {(*group, "train", name): value for name, value in values.items()}
    return Member(path, run, scores)


def _of_files(path: Path, files: Sequence[Scores], run: Run) -> Member:
    """Return scores of another system on a run's clips."""
    full_names = run.year is None or run.year >= 2023
    found = by_clip(files, run.clips, full_names)
    scores = {_key(clip): value for clip, value in found.items()}
    for group in run.groups:
        clips, values = run.select(group, "train"), folder.load_left_out(path, group)
        names = {clip.name for clip in clips}
        if values and (odd := names ^ values.keys()):
            raise InputError(
                f"{'/'.join(group)}: expected a score of each training clip or none; "
                f"missing or unknown: {preview(sorted(odd))}"
            )
        scores |= {(*group, "train", name): value for name, value in values.items()}
    described = _record(path)
    if described.get("year", run.year) != run.year:
        raise InputError(f"year {described['year']}, the run has {run.year}; give both the same")
    used = {name: described.get(name, False) for name in ("transductive", "labels_used")}
    return Member(path, None, scores, **used)


def _record(path: Path) -> dict:
    """Return what `ensemble.json` says, {} where there is none."""
    record = path / RECORD
    try:
        return json.loads(record.read_text()) if record.is_file() else {}
    except ValueError as error:
        raise InputError(f"{record} is damaged ({error}); combine that ensemble again") from error


def labels_of(run: Run) -> dict[Key, tuple[int | None, Domain | None]]:
    """Return label and domain of every clip, in the order of the run's clips."""
    return {key: (clip.label, clip.domain) for key, clip in _by_key(run).items()}


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
    ours, theirs = _by_key(first.run), _by_key(other.run)
    shared = ours.keys() & theirs.keys()
    if differ := {key for key in shared if ours[key].content != theirs[key].content}:
        problems.append(
            f"{other.path}: recordings of other content than those of {first.path}, in "
            f"{other.run.data} and {first.run.data}: {_show(differ)}"
        )
    labels, others = labels_of(first.run), labels_of(other.run)
    if differ := {key for key in shared if labels[key] != others[key]}:
        problems.append(
            f"{other.path}: labels or domains differ from {first.path}: {_show(differ)}; "
            "give both runs the same --ground-truth"
        )
    return problems


def labelled_clips(run: Run) -> dict[Group, list[Clip]]:
    """Return the labelled test clips of machines and sections that can have official numbers.

    Raises:
      InputError: there are none.
    """
    lacking = official.lacking(run.clips, run.year)
    found = {
        group: [clip for clip in run.select(group, "test") if clip.label is not None]
        for group in run.groups
        if group not in lacking
    }
    if not found:
        reasons = "\n  ".join(f"{'/'.join(group)}: {why}" for group, why in lacking.items())
        raise InputError(f"this needs labels; give the runs --ground-truth:\n  {reasons}")
    return found


def _by_key(run: Run) -> dict[Key, Clip]:
    return {_key(clip): clip for clip in run.clips}


def _key(clip: Clip) -> Key:
    return (*clip.group, clip.split, clip.name)


def _show(keys: Iterable[Key]) -> str:
    return preview(("/".join(key) for key in sorted(keys)), 5)
