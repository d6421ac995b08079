"""Table 1 of Korea University 2025 again, System1: ours beside published.

    python experiments/korea2025.py --data DATA/dcase2025t2/dev_data/raw --out RUNS \
        --weights beats-iter3 --runs 3

Per cent; ours are means ± deviations over random starts. The report prints no total: the last line
has the harmonic mean of its 21 numbers.
"""

from __future__ import annotations

import statistics

import repeated

from asdjax.recipes.korea2025 import PUBLISHED
from asdjax.report import console

SYSTEM = "korea2025/system1"


def main() -> None:
    given, fields = repeated.options(__doc__.splitlines()[0], [SYSTEM])
    runs = repeated.run_all(given, fields)[SYSTEM]
    rows = []
    for machine in repeated.machines_of(runs):
        published = [f"{x:.2f}" for x in PUBLISHED.get(machine, ())] or ["-"] * 3
        for name, theirs in zip(repeated.MEASURED, published, strict=True):
            rows.append(
                [machine, name, repeated.spread([run[machine, name] for run in runs]), theirs]
            )
    rows.append(
        ["all", "harmonic mean", repeated.spread(list(map(total, runs))), published_total()]
    )
    console.table(["machine", "", f"ours, {len(runs)} runs", "published"], rows, str(given.data))


def total(run: repeated.Numbers) -> float:
    machines = repeated.machines_of([run])
    return statistics.harmonic_mean([run[m, name] for m in machines for name in repeated.MEASURED])


def published_total() -> str:
    numbers = [value for machine in PUBLISHED.values() for value in machine]
    return f"{statistics.harmonic_mean(numbers):.2f}"


if __name__ == "__main__":
    main()
