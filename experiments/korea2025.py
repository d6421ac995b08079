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
    given, fields = repeated.parser(__doc__.splitlines()[0], [SYSTEM]).parse_known_args()
    runs = repeated.run_all(given, fields)[SYSTEM]
    rows = []
    for machine in repeated.machines_of(runs):
        published = [f"{x:.2f}" for x in PUBLISHED.get(machine, ())] or ["-"] * 3
        for name, theirs in zip(repeated.MEASURED, published, strict=True):
            rows.append(
                [machine, name, repeated.spread([run[machine, name] for run in runs]), theirs]
            )
    machines = repeated.machines_of(runs)
    total = repeated.spread([repeated.mean(run, machines) for run in runs])
    rows.append(["all", "harmonic mean", total, published_total()])
    console.table(["machine", "", f"ours, {len(runs)} runs", "published"], rows, str(given.data))


def published_total() -> str:
    numbers = [value for machine in PUBLISHED.values() for value in machine]
    return f"{statistics.harmonic_mean(numbers):.2f}"


if __name__ == "__main__":
    main()
