"""The attributes of the challenge's clips: in the file name, else in `attributes_<SS>.csv`.

The csv's columns are `file_name,d1p,d1v[,d2p,d2v...]`: parameters that shift between the domains
and their values, as many as a section needs. They are joined with `_`. `file_name` has three
spellings: a path from the organisers' folder, a name, and a name without suffix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from asdjax.data import layout, tables
from asdjax.types import Clip, preview


def read(
    machines: Sequence[Path], clips: Sequence[Clip]
) -> tuple[dict[Path, dict[str, str]], list[str], list[str]]:
    """Return machine's folder -> stem -> attributes, what is wrong, and lines for the console."""
    files = {machine: sorted(machine.glob("attributes_[0-9][0-9].csv")) for machine in machines}
    every = [file for some in files.values() for file in some]
    remedy = "the challenge's attributes are in MACHINE/attributes_<SS>.csv, so rename or remove it"
    problems = tables.find_unread(machines, every, remedy)
    found, strangers = {}, []
    here: dict[Path, set[str]] = defaultdict(set)
    for clip in clips:
        here[clip.path.parent.parent].add(clip.path.stem)
    for machine in machines:
        found[machine], wrong = _read_machine(files[machine])
        problems += wrong
        absent = sorted(found[machine].keys() - here[machine])
        strangers += absent
        if absent and len(absent) == len(found[machine]):
            problems.append(
                f"{preview(files[machine])}: no row names a recording in {machine}, but "
                f"{preview(absent, layout.MOST_IN_NOTE)}; remove it, or take that of this machine"
            )
    shown = preview(strangers, layout.MOST_IN_NOTE)
    notes = [f"attributes: {len(strangers)} rows of csvs name clips that are not here: {shown}"]
    return found, problems, notes if strangers else []


def _read_machine(files: Sequence[Path]) -> tuple[dict[str, str], list[str]]:
    """Return stem -> attributes of the rows that have any, and what is wrong."""
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        rows, wrong = tables.read(file, ("file_name",), short_rows=True)
        problems += wrong
        for row in rows:
            stem = layout.stem(row.cells["file_name"])
            cells = [cell for column, cell in row.cells.items() if cell and column != "file_name"]
            attributes = layout.visible("_".join(cells))
            first = places.setdefault(stem, row.place)
            if found.setdefault(stem, attributes) != attributes:
                problems.append(
                    f"{row.place}: expected the attributes {found[stem]} of {stem}, as in {first}, "
                    f"got {attributes}; correct one of them"
                )
    return {stem: attributes for stem, attributes in found.items() if attributes}, problems
