"""Clips of a user's own recordings: `DIR/<machine>/train/*.{wav,flac}`, `DIR/<machine>/test/*`.

All train clips are normal. The label of a test clip comes from `labels.csv`, else from the word
`normal`, or `anomaly` (`anomalous`, `abnormal`), in the file name, else it is unknown.

`labels.csv` lies in DIR, in a machine's folder or in both, with the columns

    file_name     path from the csv's folder, or the end of it: `fan/test/a.wav`, `test/a.wav`,
                  `a.wav` when only one clip fits
    label         normal or 0, anomaly or 1, or empty
    domain        source, target or empty (the column may be missing)
    attributes    any text, one class label as a whole (the column may be missing)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from asdjax.data import tree
from asdjax.files import read_csv
from asdjax.types import ANOMALY, NORMAL, Clip, DataSet, preview

_WORDS = {"normal": NORMAL, "anomaly": ANOMALY, "anomalous": ANOMALY, "abnormal": ANOMALY}
_LABELS = {"normal": NORMAL, "anomaly": ANOMALY, "0": NORMAL, "1": ANOMALY}
_DOMAINS = ("source", "target")


def describe(root: Path, machines: Sequence[Path], found: Sequence[Clip]) -> DataSet:
    """Return the data set of the recordings found below `root`, with what names and csvs say.

    Raises:
        InputError: everything that is wrong with the folders and the csv files.
    """
    clips = {clip.path: _label_by_name(clip) for clip in found}
    problems = tree.find_problems(machines, found) + tree.find_untrained(found)
    for directory in sorted({*machines, *(machine.parent for machine in machines)}):
        if (directory / "labels.csv").is_file():
            problems += _apply_csv(directory / "labels.csv", clips)
    strange = [path for path, c in clips.items() if c.split == "train" and c.label != NORMAL]
    if strange:
        problems.append(
            f"expected only normal clips in train/, got anomalies by name or csv: "
            f"{preview(strange)}; move them to test/ or correct the label"
        )
    tree.refuse(root, problems)
    return DataSet(root, tuple(clips.values()))


def _label_by_name(clip: Clip) -> Clip:
    """Set the label that the words of the name tell; two that differ tell none."""
    words = re.findall("[a-z]+", clip.path.stem.lower())
    labels = {_WORDS[word] for word in words if word in _WORDS}
    return replace(clip, label=labels.pop()) if len(labels) == 1 else clip


def _apply_csv(file: Path, clips: dict[Path, Clip]) -> list[str]:
    """Put the rows of one csv into `clips`; return what is wrong with them."""
    header, *rows = read_csv(file) or [[]]
    if not {"file_name", "label"} <= set(header):
        return [f"{file}: expected columns file_name,label[,domain][,attributes], got {header}"]
    by_ending = _paths_by_ending(file.parent, clips)
    problems, named = [], set()
    for cells in rows:
        row = dict(zip(header, cells, strict=False))
        name = row.get("file_name", "")
        path, *more = by_ending.get(_parts(name), [None])
        if row.get("label") not in (*_LABELS, "") or row.get("domain", "") not in (*_DOMAINS, ""):
            problems.append(
                f"{file}: expected a label of {', '.join(_LABELS)} and a domain of "
                f"{' or '.join(_DOMAINS)}, or empty, got {','.join(cells)}"
            )
        elif path is None or more or path in named:
            count = "none" if path is None else "several" if more else "one named twice"
            problems.append(f"{file}: expected one recording {name}, got {count}")
        else:
            named.add(path)
            clips[path] = _with_row(clips[path], row)
    return problems


def _parts(file_name: str) -> tuple[str, ...]:
    return PurePosixPath(file_name.replace("\\", "/")).parts


def _paths_by_ending(directory: Path, paths: Iterable[Path]) -> dict[tuple[str, ...], list[Path]]:
    """Return every ending of the paths below a directory -> the paths that end so."""
    endings: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        if path.is_relative_to(directory):
            parts = path.relative_to(directory).parts
            for start in range(len(parts)):
                endings.setdefault(parts[start:], []).append(path)
    return endings


def _with_row(clip: Clip, row: dict[str, str]) -> Clip:
    """Return the clip with what the row says; an empty cell changes nothing."""
    return replace(
        clip,
        label=_LABELS[row["label"]] if row["label"] else clip.label,
        domain=row.get("domain") or clip.domain,
        attributes=row.get("attributes", ""),
    )
