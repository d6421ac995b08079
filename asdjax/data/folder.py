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
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from asdjax.data import layout
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
    problems = layout.find_problems(machines, found) + layout.find_untrained(found)
    for directory in sorted({*machines, *(machine.parent for machine in machines)}):
        if (directory / "labels.csv").is_file():
            problems += _apply_csv(directory / "labels.csv", clips)
    strange = [path for path, c in clips.items() if c.split == "train" and c.label != NORMAL]
    if strange:
        problems.append(
            f"expected only normal clips in train/, got anomalies by name or csv: "
            f"{preview(strange)}; move them to test/ or correct the label"
        )
    layout.refuse(root, problems)
    return DataSet(root, tuple(clips.values()))


def _label_by_name(clip: Clip) -> Clip:
    """Set the label that the words of the name give; two that differ give none."""
    words = set(re.findall("[a-z]+", clip.path.stem.lower()))
    labels = {label for word, label in _WORDS.items() if word in words}
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
        name, label, domain = (row.get(key, "") for key in ("file_name", "label", "domain"))
        path, *more = by_ending.get(PurePosixPath(name.replace("\\", "/")).parts, [None])
        if "label" not in row or label not in (*_LABELS, "") or domain not in (*_DOMAINS, ""):
            problems.append(
                f"{file}: expected a label of {', '.join(_LABELS)} and a domain of "
                f"{' or '.join(_DOMAINS)}, or empty, got {','.join(cells)}"
            )
        elif path is None or more or path in named:
            count = "none" if path is None else "several" if more else "one named twice"
            problems.append(f"{file}: expected one recording {name}, got {count}")
        else:  # an empty cell changes nothing
            named.add(path)
            clips[path] = replace(
                clips[path],
                label=_LABELS[label] if label else clips[path].label,
                domain=domain or clips[path].domain,
                attributes=row.get("attributes", ""),
            )
    return problems


def _paths_by_ending(directory: Path, paths: Iterable[Path]) -> dict[tuple[str, ...], list[Path]]:
    """Return every ending of the paths below a directory -> the paths that end so."""
    endings: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for path in paths:
        if path.is_relative_to(directory):
            parts = path.relative_to(directory).parts
            for start in range(len(parts)):
                endings[parts[start:]].append(path)
    return endings
