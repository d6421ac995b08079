"""Clips of a user's own recordings: `DIR/<machine>/train/*.{wav,flac}`, `DIR/<machine>/test/*`.

All train clips are normal. The label of a test clip comes from `labels.csv`, else from a word of
its name (`asdjax.data.words`), else it is unknown.

`labels.csv` lies in DIR, in a machine's folder, in its train or test, or in several of them, which
must not contradict each other. Its columns:

    file_name     path of the recording, or the end of it: `fan/test/a.wav`, `test/a.wav`; `a.wav`
                  when only one recording beside or below the csv fits; the suffix may be missing
    label         normal or 0, anomaly or 1, or empty
    domain        source, target or empty (the column may be missing)
    attributes    any text, one class label as a whole (the column may be missing)

An empty cell leaves what the name or another csv says.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from asdjax.data import layout, tables, words
from asdjax.types import ANOMALY, NORMAL, Clip, DataSet, preview

_LABELS = {**words.WORDS, "0": NORMAL, "1": ANOMALY, "0.0": NORMAL, "1.0": ANOMALY}
_DOMAINS = ("source", "target")
_COLUMNS = ("label", "domain", "attributes")
_Said = dict[tuple[Path, str], tuple[object, tables.Row]]  # recording, column -> value, where
_Known = Mapping[str, Sequence[tuple[Path, tuple[str, ...]]]]  # stem -> recordings, their parts


def describe(root: Path, machines: Sequence[Path], found: Sequence[Clip]) -> DataSet:
    """Return the data set of the recordings found below `root`, with what names and csvs say.

    Raises:
        InputError: everything that is wrong with the folders and the csv files.
    """
    folders = {folder for clip in found for folder in clip.path.parents[:3]}
    files = sorted(path for path in (f / "labels.csv" for f in folders) if path.is_file())
    problems = layout.find_problems(machines, found) + layout.find_untrained(found)
    remedy = "your own recordings are described in labels.csv, so rename or remove it"
    problems += tables.find_unread(machines, files, remedy)
    said: _Said = {}
    known = _by_stem(clip.path for clip in found)
    for file in files:
        problems += _read(file, known, said)
    by_name = words.labels(clip.path.stem for clip in found)
    clips = [_describe(clip, by_name[clip.path.stem], said) for clip in found]
    strange = [clip.path for clip in clips if clip.split == "train" and clip.label != NORMAL]
    if strange:
        problems.append(
            f"expected only normal clips in train/, got anomalies by name or csv: "
            f"{preview(strange)}; move them to test/ or correct the label"
        )
    layout.refuse(root, problems)
    return DataSet(root, tuple(clips), notes=_notes(clips, by_name, said))


def _describe(clip: Clip, by_name: int | None, said: _Said) -> Clip:
    """Add what the csvs say, else the name."""
    label, domain, attributes = (said.get((clip.path, column), (None,))[0] for column in _COLUMNS)
    if label is None:
        label = clip.label if by_name is None else by_name
    return replace(clip, label=label, domain=domain, attributes=attributes or "")


def _notes(
    clips: Sequence[Clip], by_name: Mapping[str, int | None], said: _Said
) -> tuple[str, ...]:
    """Return where labels came from, names that a csv overrules, and columns that nobody reads."""
    tests = [clip for clip in clips if clip.split == "test"]
    by_csv = {path for path, column in said if column == "label"}
    remedy = "their names do not say normal or anomaly for certain; labels.csv can"
    lines = layout.label_notes(tests, dict.fromkeys(by_csv, "labels.csv"), remedy)
    named = {c.path.stem: by_name[c.path.stem] for c in tests if c.path not in by_csv}
    if others := words.beside(named):
        lines.append(f"labels: other words in names, not counted: {preview(others, 10)}")
    overruled = [
        clip.name
        for clip in tests
        if clip.path in by_csv and by_name[clip.path.stem] not in (None, clip.label)
    ]
    if overruled:
        shown = preview(overruled, layout.MOST_IN_NOTE)
        lines.append(f"labels.csv counts, not the word in the name: {shown}")
    columns = {column for _, row in said.values() for column in row.cells}
    if unread := sorted(columns.difference(("file_name", *_COLUMNS))):
        lines.append(f"columns of labels.csv that are not read: {preview(unread)}")
    return tuple(lines)


def _read(file: Path, known: _Known, said: _Said) -> list[str]:
    """Add the rows of one csv to `said`; return what is wrong with them."""
    rows, problems = tables.read(file, ("file_name", "label"))
    named: dict[Path, tables.Row] = {}
    for row in rows:
        values, wrong = _values(row)
        paths = _find(row.cells["file_name"], file.parent, known)
        if len(paths) != 1:
            count = "several" if paths else "none"
            wrong.append(f"expected one recording {row.cells['file_name']}, got {count}")
        elif (first := named.setdefault(paths[0], row)) is not row:
            wrong.append(f"expected one row for a recording, got another in {first.place}")
        for column, value in values.items() if not wrong else ():
            before, where = said.setdefault((paths[0], column), (value, row))
            if before != value:
                wrong.append(f"expected the {column} of {where.place}, which is {where}")
        problems += [f"{row.place}: {what}; correct the row {row}" for what in wrong]
    return problems


def _values(row: tables.Row) -> tuple[dict[str, object], list[str]]:
    """Return what the cells that are not empty mean, and what is wrong with them."""
    label, domain, attributes = (row.cells.get(column, "") for column in _COLUMNS)
    wrong = []
    if label.lower() not in (*_LABELS, ""):
        wrong.append("expected a label of normal, anomaly, 0, 1 or empty")
    if domain.lower() not in (*_DOMAINS, ""):
        wrong.append("expected a domain of source, target or empty")
    values = _LABELS.get(label.lower()), domain.lower() or None, attributes or None
    return {c: v for c, v in zip(_COLUMNS, values, strict=True) if v is not None}, wrong


def _by_stem(paths: Iterable[Path]) -> _Known:
    known = defaultdict(list)
    for path in paths:
        parts = _parts(path.absolute().as_posix())
        known[_stem(parts[-1])].append((path, parts))
    return known


def _find(name: str, directory: Path, known: _Known) -> list[Path]:
    """Return the recordings below a directory that a name may mean: with its suffix, else any."""
    *above, last = _parts(name.replace("\\", "/")) or ("",)
    fits = [
        (path, parts)
        for path, parts in known.get(_stem(last), ())
        if path.is_relative_to(directory) and parts[-1 - len(above) : -1] == tuple(above)
    ]
    return [path for path, parts in fits if parts[-1] == last] or [path for path, _ in fits]


def _parts(path: str) -> tuple[str, ...]:
    """Return the folders and the name; letters with marks in one form, as systems differ."""
    return PurePosixPath(unicodedata.normalize("NFC", path)).parts


def _stem(name: str) -> str:
    return layout.stem(name).strip()  # blanks around a cell do not count
