"""Csv files that people wrote: rows by column name, each with its place for messages.

A comma, semicolon or tab separates the cells: the one that the first line has most. Capitals and
blanks around a name of a column do not count, and neither does a first column without name, as
pandas writes it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from asdjax.data import layout
from asdjax.files import read_rows
from asdjax.types import InputError, preview

_LOOKS_READ = re.compile(
    r"(labels?|attributes?)([\W\d_]|section|train|test|source|target)*\.(csv|tsv|txt)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Row:
    place: str  # file and line
    cells: dict[str, str]  # column, in lower case -> what stands there; "" where nothing does

    def __str__(self) -> str:
        return ",".join(self.cells.values())


def read(
    file: Path, columns: Collection[str], short_rows: bool = False
) -> tuple[list[Row], list[str]]:
    """Return the good rows of a file, and what is wrong with it.

    Args:
        file: a csv whose first line names its columns.
        columns: those it has in any case.
        short_rows: whether a row may end early, as those of the challenge's attributes do.
    """
    try:
        (line, header), *lines = read_rows(file, ",;\t") or [(1, [])]
    except InputError as error:
        return [], [str(error)]
    names = _column_names(header)
    if len(names) > len(set(names)) or "" in names[1:] or not set(columns) <= set(names):
        return [], [
            f"{file} line {line}: expected the columns {','.join(columns)}, each column once and "
            f"with a name, got {','.join(header)}; correct the first line"
        ]
    rows, problems = [], []
    for line, cells in lines:
        place = f"{file} line {line}"
        if any(cells[len(names) :]) or (len(cells) < len(names) and not short_rows):
            problems.append(
                f"{place}: expected {len(names)} cells as in the first line, got {len(cells)}: "
                f"{','.join(cells)}; complete it, or put a text with commas into double quotes"
            )
        else:
            cells += [""] * (len(names) - len(cells))
            cells_of = zip(names, cells, strict=False)
            rows.append(Row(place, {name: cell for name, cell in cells_of if name}))
    return rows, problems


def _column_names(header: Sequence[str]) -> list[str]:
    """Return the names in lower case, without the empty cells at the end."""
    names = [name.lower() for name in header]
    while names and not names[-1]:
        names.pop()
    return names


def find_unread(machines: Collection[Path], read: Collection[Path], remedy: str) -> list[str]:
    """Return a line for each csv in or around the machines that is meant to be read but is not."""
    folders = {machine.parent for machine in machines}.union(machines)
    folders.update(machine / split for machine in machines for split in layout.SPLIT_FOLDERS)
    files = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    unread = sorted(path for path in files.difference(read) if _LOOKS_READ.fullmatch(path.name))
    return [f"{preview(unread)}: not read; {remedy}"] if unread else []
