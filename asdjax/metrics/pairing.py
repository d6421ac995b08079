"""Score rows and labelled clips brought together by file name.

The official evaluators sort both sides and pair them by position, so a file with the right number
of wrong names passes there with wrong numbers; here every difference is refused and listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asdjax.types import Clip, InputError, Scores, preview


@dataclass(frozen=True)
class Table:
    """The clips of one machine type and section that count."""

    label: np.ndarray  # [n] int, NORMAL or ANOMALY
    domain: np.ndarray  # [n] str, "" where the clip has none
    score: np.ndarray  # [n] float64
    decision: np.ndarray | None  # [n] int, 1 = anomaly


def pair(
    scores: Sequence[Scores],
    clips: Sequence[Clip],
    full_names: bool = True,
) -> dict[tuple[str, str], Table]:
    """Return a table per machine type and section, sorted, ASCII order.

    The labelled test clips must each have exactly one row. Rows of unlabelled test clips are
    allowed and do not count.

    Args:
      full_names: whether rows may use `Clip.full_name` as well. A row may also lack .wav or .flac
        or have the other one of them.
    Raises:
      InputError: missing, unknown or doubled names, scores that are not finite, a machine or
        section on one side only; all at once.
    """
    labelled = [clip for clip in clips if clip.split == "test" and clip.label is not None]
    if not labelled:
        raise InputError("no labelled test clip to evaluate on; give the ground truth")
    return {
        group: _table(files, counted, position)
        for group, (files, counted, position) in _paired(
            scores, clips, labelled, full_names, "labelled test clip"
        ).items()
    }


def by_clip(
    scores: Sequence[Scores], clips: Sequence[Clip], full_names: bool = True
) -> dict[Clip, float]:
    """Return the score of every test clip, labelled or not; arguments and errors as `pair`."""
    test = [clip for clip in clips if clip.split == "test"]
    found = {}
    for files, own, position in _paired(scores, clips, test, full_names, "test clip").values():
        values = np.concatenate([file.values for file in files]).tolist()
        found |= {clip: values[position[clip]] for clip in own}
    return found


def _paired(
    scores: Sequence[Scores],
    clips: Sequence[Clip],
    wanted: Sequence[Clip],
    full_names: bool,
    what: str,
) -> dict[tuple[str, str], tuple[list[Scores], list[Clip], dict[Clip, int]]]:
    """Return files, wanted clips and the row of each, per machine type and section.

    Args:
      wanted: the clips that need a row.
      what: they are, for errors.
    """
    files, test, own = defaultdict(list), defaultdict(list), defaultdict(list)
    for file in scores:
        files[file.machine, file.section].append(file)
    for clip in clips:
        if clip.split == "test":
            test[clip.group].append(clip)
    for clip in wanted:
        own[clip.group].append(clip)
    problems = [f"{m}/{s}: no {what}" for m, s in sorted(files.keys() - own.keys())]
    problems += [f"{m}/{s}: no score file" for m, s in sorted(own.keys() - files.keys())]
    found = {}
    for group in sorted(files.keys() & own.keys()):
        position, wrong = _match(files[group], test[group], own[group], full_names)
        problems += [f"{'/'.join(group)}: {text}" for text in wrong]
        found[group] = files[group], own[group], position
    if problems:
        head = f"scores and ground truth differ; each {what} needs one row of its name"
        raise InputError(head + ":\n  " + "\n  ".join(problems))
    return found


def _match(
    files: list[Scores], test: list[Clip], counted: list[Clip], full_names: bool
) -> tuple[dict[Clip, int], list[str]]:
    """Return the row of each clip, counted over all files in order, and the problems."""
    clip_of, shared = _names(test, full_names)
    of_stem = _stems(clip_of)
    position: dict[Clip, int] = {}
    unknown, twice = [], []
    rows = [row for file in files for row in file.names]
    for i, row in enumerate(rows):
        # A name may begin with a blank, or have one only in the csv.
        clip = clip_of.get(row) or clip_of.get(row.strip()) or of_stem.get(_stem(row.strip()))
        if clip is None:
            unknown.append(row)
        elif position.setdefault(clip, i) != i:
            twice.append(row)
    missing = [clip.name for clip in counted if clip not in position]
    finite = np.isfinite(np.concatenate([file.values for file in files]))
    bad = [row for row, good in zip(rows, finite, strict=True) if not good]
    wrong = {
        "in the ground truth more than once": shared,
        "missing in the scores": missing,
        "unknown": unknown,
        "more than one score row for": twice,
        "score not finite": bad,
    }
    return position, [f"{what}: {preview(names)}" for what, names in wrong.items() if names]


def _names(clips: list[Clip], full_names: bool) -> tuple[dict[str, Clip], list[str]]:
    """Return clip by name, and the names that two clips share."""
    clip_of: dict[str, Clip] = {}
    shared = []
    for clip in clips:
        names = {clip.name, clip.full_name or clip.name} if full_names else {clip.name}
        shared += [name for name in sorted(names) if clip_of.setdefault(name, clip) is not clip]
    return clip_of, shared


def _stems(clip_of: dict[str, Clip]) -> dict[str, Clip]:
    """Return clip by name without .wav or .flac, where that is the name of one clip alone."""
    found: dict[str, set[Clip]] = defaultdict(set)
    for name, clip in clip_of.items():
        found[_stem(name)].add(clip)
    return {name: clips.pop() for name, clips in found.items() if len(clips) == 1}


def _stem(name: str) -> str:
    return name.rpartition(".")[0] if name.lower().endswith((".wav", ".flac")) else name


def _table(files: list[Scores], clips: list[Clip], position: dict[Clip, int]) -> Table:
    row = [position[clip] for clip in clips]
    decided = all(file.decisions is not None for file in files)
    return Table(
        label=np.array([clip.label for clip in clips]),
        domain=np.array([clip.domain or "" for clip in clips]),
        score=np.concatenate([file.values for file in files])[row],
        decision=np.concatenate([file.decisions for file in files])[row] if decided else None,
    )
