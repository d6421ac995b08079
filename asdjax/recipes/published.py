"""The results that reports print for the recipes, per machine: `published.csv`, in per cent.

A row has what the report prints of a machine: AUC source, AUC target and pAUC, their harmonic mean,
or both. The row of the machine "all" is the total that the report prints. The first data of a
recipe in the file are those that `asdjax recipes` shows.

The csv follows the reports, misprints included:
- xju2025/beats-fft: the row of ToyCar repeats that of slider; the rows give 64.31, not 64.46, and
  the means 75.93, 61.42 and 58.14, not 73.79, 63.44 and 58.04.
- ioa2024, table 2: the means of AUC target are printed as 67.91 (k-means) and 62.94 (mixture), the
  rows give 68.17 and 62.96; the printed totals, 64.57 and 63.10, follow from the printed means.
- ioa2024, table 1: the mean of pAUC by wav2vec 2.0 is printed as 54.48, the rows give 55.32; with
  it the total would be 57.35, not 57.04.
- The baselines, dev 2024, are as table 1 of midea2024 prints them. Table 2 of ioa2024 has 66.98 and
  33.75 for ToyCar by MSE, and 57.58 for the pAUC of bearing by Mahalanobis.
- aithu2024/system4, eval 2024: from the results of the challenge; the report has none.
- The baselines, other data: eval from the read-mes of the official evaluators, dev 2025 from a copy
  of the task's page, dev 2026 by the official rules from public scores of an unmodified run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import harmonic_mean

from asdjax.files import read_csv

AREAS = ("auc_source", "auc_target", "pauc")
MEAN = "harmonic_mean"
TOTAL = "all"  # the machine of a report's own total
Table = dict[str, dict[str, float]]  # machine -> metric -> per cent


@cache
def _read() -> dict[str, dict[str, Table]]:
    (_, _, _, *metrics), *rows = read_csv(Path(__file__).with_name("published.csv"))
    found: dict[str, dict[str, Table]] = {}
    for recipe, data, machine, *cells in rows:
        values = {m: float(cell) for m, cell in zip(metrics, cells, strict=True) if cell}
        found.setdefault(recipe, {}).setdefault(data, {})[machine] = values
    return found


def tables(recipe: str) -> dict[str, Table]:
    """Return what is published for a recipe: data such as "dev 2024" -> table; {} if nothing is."""
    return _read().get(recipe, {})


def machines(table: Table) -> Table:
    """Return the rows of a table without the report's total."""
    return {machine: values for machine, values in table.items() if machine != TOTAL}


def mean(table: Table) -> float | None:
    """Return the harmonic mean of all values of the machines; None if only a total is printed."""
    rows = machines(table).values()
    values = [row[m] for row in rows for m in AREAS if m in row] or [row[MEAN] for row in rows]
    return harmonic_mean(values) if values else None


def total(table: Table) -> float:
    """Return the official score: as the report prints it, else the mean of its machines."""
    return table[TOTAL][MEAN] if TOTAL in table else mean(table)
