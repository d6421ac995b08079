"""Where each edition's recordings are: the archives that `archives.csv` lists, and their labels.

A row of the csv is one zip of one machine type. Its md5 is the one that public loaders and download
logs recorded; it is empty where none is known (2021, 2022, 2024, 2025). A new edition is new rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asdjax.files import read_csv

# Labels of the evaluation test sets. They are not fetched: from 2023 on their licence allows
# evaluation only and forbids passing them on, so each user gets them from the organisers.
EVALUATORS = {
    2020: "https://zenodo.org/records/3951620",
    2021: "https://github.com/y-kawagu/dcase2021_task2_evaluator",
    2022: "https://github.com/Kota-Dohi/dcase2022_evaluator",
    2023: "https://github.com/nttcslab/dcase2023_task2_evaluator",
    2024: "https://github.com/nttcslab/dcase2024_task2_evaluator",
    2025: "https://github.com/nttcslab/dcase2025_task2_evaluator",
    2026: "https://github.com/nttcslab/dcase2026_task2_evaluator",
}


@dataclass(frozen=True)
class Archive:
    """One zip of one machine type; it unpacks to `<machine>/...`."""

    machine: str
    record: int  # Zenodo record
    name: str
    md5: str  # "" where none is known


def _read_table() -> dict[tuple[int, str], list[Archive]]:
    _, *rows = read_csv(Path(__file__).with_name("archives.csv"))
    table: dict[tuple[int, str], list[Archive]] = {}
    for year, part, machine, record, name, md5 in rows:
        table.setdefault((int(year), part), []).append(Archive(machine, int(record), name, md5))
    return table


# (year, part) -> archives; "eval" is the additional training set and the evaluation test set.
ARCHIVES = _read_table()
